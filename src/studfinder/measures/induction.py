"""What a model takes from repetition within its context: induction on random tokens, and loss that falls along a text.

After Olsson et al. (2022, "In-context Learning and Induction Heads"): nothing but copying helps on the second half of
a repeated random sequence, so loss there is a pure reading of the context.
"""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch

from studfinder.errors import NotApplicable
from studfinder.measures.asked import Advance, check_items, check_window, number_asked
from studfinder.measures.perplexity import documents_of
from studfinder.measures.scores import Scores, scored
from studfinder.models import LM
from studfinder.sites import AttentionCall, check_causal, tapped
from studfinder.texts import ONE_DOCUMENT, WHOLE, Text, digest, encode

LENGTH = 64
_SEQUENCES = 32
_EARLY, _LATE = (16, 48), (144, 208)


def induction(
    lm: LM, length: str = str(LENGTH), *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Next-token accuracy on the second half of random token sequences that are repeated once.

    An item is a sequence. Items: "score" (share of the second half's tokens that are the model's first choice, the
    first of them left out, which nothing announces), "loss" there and "first_loss" on the first half, nats a token.
    Details: their means, and "prefix matching": the largest mean attention of any head from the second half's tokens
    to the token after their own earlier occurrence, with its layer and head; left out where attention cannot be read.

    Args:
        length: of the sequence that is repeated, in tokens; BOS goes before it if the tokenizer sets one.
        limit: at most so many sequences, 32 unless told.
        seed: draws the tokens, from the whole vocabulary but the special ones.

    Raises:
        StudfinderError: `length` is not a number from 2 up, or twice as much does not fit into the window.
    """
    size = number_asked(length, "induction", 2, "tokens")
    sequences = repeated(lm, size, _SEQUENCES if limit is None else limit, seed)
    check_items("induction", sequences)
    check_window(lm, "induction", len(sequences[0]))
    check_causal(lm, "induction")
    attention = _PrefixMatching(size)
    score, loss, first_loss = [], [], []
    for ids in sequences:
        with tapped(lm, read={AttentionCall: [attention]}):
            nll_T, right_T = _next(lm, ids)
        score.append(float(right_T[-(size - 1) :].mean()))
        loss.append(float(nll_T[-(size - 1) :].mean()))
        first_loss.append(float(nll_T[-(2 * size - 1) : -size].mean()))
        if progress is not None:
            progress(1)
    details = {"loss": float(np.mean(loss)), "first loss": float(np.mean(first_loss)), **attention.best()}
    return scored(
        "induction",
        score,
        text=f"random tokens {digest(sequences)}",
        chance=1 / lm.anatomy.vocabulary,
        details=details,
        loss=loss,
        first_loss=first_loss,
    )


def in_context_learning(
    lm: LM, text: str = "proof", *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """How much less a model loses late in a window than early: mean loss of tokens 144 to 207 minus tokens 16 to 47 of
    each document, nats a token. Lower is better; a model that does not use its context stays at 0.

    Olsson et al. take the 500th token minus the 50th; spans say the same with less noise. What stands early and
    late in a document differs in difficulty by itself, so the paired change between two models is much sharper than
    the score.

    Args:
        text: "proof" (our own), or what `perplexity` takes.
        limit: at most so many documents; those of fewer than 208 tokens are passed over. A plain file is one document;
            .jsonl holds several.
        seed: changes nothing, as nothing is drawn.

    Raises:
        StudfinderError: the text is not there or has no such document, or the model's window is shorter.
    """
    check_window(lm, "in-context-learning", _LATE[1])
    name, documents = documents_of(text)
    encoded = (encode(lm, [Text(name, document)], limit=WHOLE)[0][0] for document in documents)
    windows = list(islice((ids[: _LATE[1]] for ids in encoded if len(ids) >= _LATE[1]), limit))
    if not windows:
        raise NotApplicable(f"{name} has no document of {_LATE[1]} tokens", do=ONE_DOCUMENT)
    check_causal(lm, "losses")
    score, early, late = [], [], []
    for piece in windows:
        nll_T, _ = _next(lm, piece)
        early.append(float(nll_T[_EARLY[0] - 1 : _EARLY[1] - 1].mean()))
        late.append(float(nll_T[_LATE[0] - 1 : _LATE[1] - 1].mean()))
        score.append(late[-1] - early[-1])
        if progress is not None:
            progress(1)
    return scored(
        "in-context-learning",
        score,
        text=f"{name} {digest(windows)}",
        better="lower",
        details={"early loss": float(np.mean(early)), "late loss": float(np.mean(late))},
        early=early,
        late=late,
    )


def repeated(lm: LM, size: int, count: int, seed: int) -> list[list[int]]:
    """So many sequences: BOS if the tokenizer sets one, then the same `size` random tokens twice, drawn from the whole
    vocabulary but the special ones."""
    tokenizer = lm.tokenizer
    special = set(tokenizer.all_special_ids) if tokenizer is not None else set()
    start: list[int] = []
    if tokenizer is not None and encode(lm, [Text("BOS", "a")])[1]:
        start = [int(tokenizer.bos_token_id)]
    # A tokenizer may know fewer ids than the embedding has rows, and those rows were never trained.
    known = lm.anatomy.vocabulary if tokenizer is None else min(lm.anatomy.vocabulary, len(tokenizer))
    generator = torch.Generator().manual_seed(seed)
    allowed = torch.tensor([token for token in range(known) if token not in special])
    drawn = allowed[torch.randint(len(allowed), (count, size), generator=generator)].tolist()
    return [[*start, *half, *half] for half in drawn]


def _next(lm: LM, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood in nats and right (1) or wrong (0) of every token but the first, shape (T - 1,)."""
    with torch.no_grad():
        logits_TV = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0, :-1].float()
    targets = torch.tensor(ids[1:], device=logits_TV.device)
    nll_T = torch.nn.functional.cross_entropy(logits_TV, targets, reduction="none").double()
    return nll_T.cpu(), (logits_TV.argmax(dim=-1) == targets).double().cpu()


def prefix_matching(event: AttentionCall, size: int) -> torch.Tensor:
    """Of each head, the mean attention of the last `size` tokens of a sequence to the token after the one that stands
    as many before them: after their own earlier occurrence where the sequence is repeated. Shape (H,)."""
    tokens = event.query_BHTD.shape[2]
    # The last token is left out: the token after its earlier occurrence is where the second half begins.
    query = torch.arange(tokens - size, tokens - 1, device=event.query_BHTD.device)
    weights_HTS = _weights(event, query)
    return weights_HTS[:, torch.arange(len(query)), query - size + 1].mean(dim=1).double().cpu()


class _PrefixMatching:
    """Adds up prefix matching over sequences."""

    def __init__(self, size: int) -> None:
        self.size, self.calls = size, 0
        self.totals: dict[int, torch.Tensor] = {}

    def __call__(self, event: AttentionCall) -> None:
        if event.comparable:
            self.totals[event.layer] = self.totals.get(event.layer, 0) + prefix_matching(event, self.size)
            self.calls += event.layer == min(self.totals)

    def best(self) -> dict[str, float]:
        if not self.totals:
            return {}
        value, layer, head = max(
            (float(total) / self.calls, layer, head)
            for layer, totals in self.totals.items()
            for head, total in enumerate(totals)
        )
        return {"prefix matching": value, "prefix matching layer": layer, "prefix matching head": head}


def _weights(event: AttentionCall, query_T: torch.Tensor) -> torch.Tensor:
    """Attention of the first row's chosen queries, in fp32, shape (H,T,S)."""
    query_HTD = event.query_BHTD[0][:, query_T].float()
    key_GSD = event.key_BGSD[0].float()
    key_HSD = key_GSD.repeat_interleave(query_HTD.shape[0] // key_GSD.shape[0], dim=0)
    scale = event.scaling if event.scaling is not None else query_HTD.shape[-1] ** -0.5
    scores_HTS = query_HTD @ key_HSD.transpose(1, 2) * scale
    if event.softcap is not None:
        scores_HTS = torch.tanh(scores_HTS / event.softcap) * event.softcap
    tokens = key_HSD.shape[1]
    if event.mask is None:
        place_S = torch.arange(tokens, device=query_T.device)
        hidden_TS = place_S > query_T[:, None]
        if event.window is not None:
            hidden_TS |= place_S <= query_T[:, None] - event.window
        scores_HTS = scores_HTS.masked_fill(hidden_TS, float("-inf"))
    else:
        mask = event.mask[0][:, query_T, :tokens]
        scores_HTS = scores_HTS.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores_HTS + mask
    if event.sinks is not None:
        sinks_HT1 = event.sinks.float()[:, None, None].expand(-1, len(query_T), 1)
        scores_HTS = torch.cat([scores_HTS, sinks_HT1], dim=-1)
    return scores_HTS.softmax(dim=-1)[..., :tokens]
