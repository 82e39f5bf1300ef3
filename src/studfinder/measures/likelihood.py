"""How likely a model finds given continuations of given contexts: what every multiple choice here is scored by.

Three savings, none of which changes a score beyond rounding: what requests have in common (a few-shot prompt, a
question with several answers) runs once and stays in the KV cache; rows of a batch are of similar length; and the
vocabulary is multiplied out only where a token is scored.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from studfinder import sites
from studfinder.errors import StudfinderError
from studfinder.measures.head import head_of
from studfinder.models import LM

Request = tuple[list[int], list[int]]
"""Token ids of a context and of its continuation."""

_IN_CACHE = 8
"""Positions whose logits are turned into log-probabilities at a time on a CPU."""

_WORTH = 16
"""Shortest beginning common to all requests that is run by itself."""


@dataclass(frozen=True)
class Likelihood:
    """How a model takes a continuation.

    Attributes:
        logprob: sum of the log-probabilities of its tokens, in nats.
        tokens: how many they are.
        greedy: whether each is the model's first choice.
    """

    logprob: float
    tokens: int
    greedy: bool


def log_likelihoods(
    lm: LM,
    requests: Sequence[Request],
    *,
    batch_tokens: int | None = None,
    truncate: bool = False,
    progress: Callable[[int], Any] | None = None,
) -> list[Likelihood]:
    """Log-probability of each continuation after its context, in the order of the requests.

    As in lm-evaluation-harness the model reads context and continuation without the last token. Results do not depend
    on batch size or order beyond rounding. In bf16 that is about a hundredth of a nat a token (a sum over a long
    continuation moves by a nat now and then), as much between two full passes of different batches as between shared
    contexts and full passes; in fp32 it cannot be seen.

    While a site is being replaced (an edit of activations), nothing is shared: every request is one full pass over
    its own tokens, because such an edit may depend on all tokens it sees.

    Args:
        requests: (context ids, continuation ids), neither empty.
        batch_tokens: tokens in one forward pass; the default is 2,048 on a CPU and 16,384 elsewhere.
        truncate: cut what is longer than the model's window from the left, as lm-evaluation-harness does.
        progress: called with the number of requests done.

    Raises:
        StudfinderError: an empty or too long request, or ids beyond the vocabulary.
    """
    limit = lm.anatomy.max_positions
    cut = [_checked(lm, number, request, limit, truncate) for number, request in enumerate(requests)]
    rows = _rows(cut)
    size = batch_tokens or (2048 if lm.device.type == "cpu" else 16384)
    whole = _uncut(lm)
    results: list[Likelihood | None] = [None] * len(requests)
    with torch.no_grad():
        engine = _Engine(lm, whole)
        start = 0 if whole else _common(rows)
        common = engine.read(None, [rows[0].ids], 0, start) if start else None
        for chunk in _chunks(rows, start, size):
            cache, parents, split = common, [0] * len(chunk), start
            if not whole and (shared := _shared(chunk, start)):
                stems, parents = _distinct([row.ids[:shared] for row in chunk])
                cache, split = engine.read(cache and _selected(cache, [0] * len(stems)), stems, start, shared), shared
            for group in _alike(chunk, split, size):
                own = cache and _selected(cache, [parents[i] for i in group])
                scored = engine.score(own, [chunk[i] for i in group], split)
                for number, likelihood in scored:
                    results[number] = likelihood
                if progress is not None:
                    progress(len(scored))
    return results  # type: ignore[return-value]


# --- what is asked ------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """Token ids that are read in one go, and who asks for what there.

    Attributes:
        ids: context and continuation without its last token.
        context: length of the context.
        asked: (request, its continuation); continuations that differ in their last token share a row.
    """

    ids: tuple[int, ...]
    context: int
    asked: list[tuple[int, list[int]]] = field(default_factory=list)


def _checked(lm: LM, number: int, request: Request, limit: int | None, truncate: bool) -> Request:
    context, continuation = list(request[0]), list(request[1])
    if not context or not continuation:
        raise StudfinderError(
            f"request {number} has no {'continuation' if context else 'context'}",
            expected="at least one token of each",
            do="" if context else "Begin with BOS or another token",
        )
    if max(*context, *continuation) >= lm.anatomy.vocabulary or min(*context, *continuation) < 0:
        raise StudfinderError(f"request {number} has ids beyond the vocabulary", do="Is it this model's tokenizer?")
    over = len(context) + len(continuation) - 1 - (limit or len(context) + len(continuation))
    if over <= 0:
        return context, continuation
    if truncate and over < len(context):
        return context[over:], continuation
    raise StudfinderError(
        f"request {number} has {len(context)} + {len(continuation)} tokens", expected=f"no more than {limit} to read"
    )


def _rows(requests: Sequence[Request]) -> list[_Row]:
    """Distinct rows, the longest contexts first: what does not fit into memory shows at once."""
    found: dict[tuple[tuple[int, ...], int], _Row] = {}
    for number, (context, continuation) in enumerate(requests):
        ids = (*context, *continuation[:-1])
        row = found.setdefault((ids, len(context)), _Row(ids, len(context)))
        row.asked.append((number, continuation))
    return sorted(found.values(), key=lambda row: (-row.context, row.ids[: row.context], -len(row.ids), row.ids))


# --- what is run together ------------------------------------------------------------------------------------------


def _common(rows: Sequence[_Row]) -> int:
    """How many tokens all contexts have in common, without a context's last; 0 if not worth a pass of its own."""
    if len(rows) < 2:
        return 0
    low, high = (choose(row.ids[: row.context - 1] for row in rows) for choose in (min, max))
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    length = min(length, min(row.context for row in rows) - 1)
    return length if length >= _WORTH else 0


def _chunks(rows: list[_Row], start: int, size: int) -> Iterator[list[_Row]]:
    """Rows of similar contexts, as many as a pass holds; the rows of a context stay together if they fit."""
    chunk: list[_Row] = []
    tokens = 0
    for row in rows:
        # What is cached costs memory though no time.
        cost = len(row.ids) - start + start // 8
        if chunk and (tokens + cost > size or row.context < 0.8 * chunk[0].context - 4):
            yield chunk
            chunk, tokens = [], 0
        chunk.append(row)
        tokens += cost
    if chunk:
        yield chunk


def _shared(chunk: Sequence[_Row], start: int) -> int:
    """Up to which position to read each context once; 0 if the whole rows are nearly as cheap.

    It is the same position for the whole chunk, before the end of the shortest context, and the rest of a longer
    context is read with each of its continuations. Nothing is ever padded but at the end of rows, where causality
    hides it: no masks, and the same positions and sliding windows as in a plain pass.
    """
    end = chunk[-1].context - 1
    contexts = len({row.ids[:end] for row in chunk})
    saved = (len(chunk) - contexts) * (end - start)
    return end if saved > 0.15 * sum(len(row.ids) - start for row in chunk) else 0


def _distinct(stems: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The distinct stems, and which of them each one is."""
    numbers = {stem: number for number, stem in enumerate(dict.fromkeys(stems))}
    return list(numbers), [numbers[stem] for stem in stems]


def _alike(chunk: Sequence[_Row], split: int, size: int) -> Iterator[list[int]]:
    """Rows of a chunk by number, in groups whose remaining lengths are alike."""
    order = sorted(range(len(chunk)), key=lambda i: -len(chunk[i].ids))
    group: list[int] = []
    for i in order:
        longest = len(chunk[group[0]].ids) - split if group else 0
        short = len(chunk[i].ids) - split < 0.7 * longest
        if group and ((short and longest * len(group) >= 128) or longest * (len(group) + 1) > size):
            yield group
            group = []
        group.append(i)
    yield group


# --- running it ----------------------------------------------------------------------------------------------------


class _Engine:
    """Forward passes over rows, from the start or on top of a cache."""

    def __init__(self, lm: LM, whole: bool) -> None:
        self.lm, self.whole = lm, whole
        self.decoder = lm.model.get_submodule(lm.anatomy.decoder)
        self.head = head_of(lm)
        self.slice = max(1, (1 << 26) // lm.anatomy.vocabulary)

    def read(self, cache: Any, rows: Sequence[Sequence[int]], start: int, end: int) -> Any:
        """The cache after reading tokens `start` to `end` of each row on top of `cache`."""
        from transformers import DynamicCache

        # Without a config no layer of the cache forgets what has left its sliding window: the mask sees to that.
        cache = DynamicCache() if cache is None else cache
        ids = torch.tensor([row[start:end] for row in rows], device=self.lm.device)
        self.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def score(self, cache: Any, rows: Sequence[_Row], start: int) -> list[tuple[int, Likelihood]]:
        """Read the rows from token `start` on, and score what is asked of them."""
        width = max(len(row.ids) for row in rows)
        # Padded with a row's own last token: some models warn when they meet their padding token without a mask.
        ids = torch.tensor([(row.ids + (row.ids[-1],) * (width - len(row.ids)))[start:] for row in rows])
        mask = None
        if self.whole:  # edits must know which tokens are real
            mask = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
        options = {
            "input_ids": ids.to(self.lm.device),
            "attention_mask": None if mask is None else mask.to(self.lm.device),
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        asked = [(i, number, continuation) for i, row in enumerate(rows) for number, continuation in row.asked]
        where = [
            (i, rows[i].context - 1 + j - start, token)
            for i, _, continuation in asked
            for j, token in enumerate(continuation)
        ]
        row_N, position_N, target_N = torch.tensor(where, device=self.lm.device).T
        if self.head is None:
            logits_BTV = self.lm.model(**options).logits
            log_p, greedy = _at(logits_BTV[row_N.to(logits_BTV.device), position_N.to(logits_BTV.device)], target_N)
        else:
            hidden_BTC = self.decoder(**options).last_hidden_state
            log_p, greedy = self._by_head(hidden_BTC, row_N, position_N, target_N)
        found, begin = [], 0
        for _, number, continuation in asked:
            end = begin + len(continuation)
            likelihood = Likelihood(float(log_p[begin:end].sum()), end - begin, bool(greedy[begin:end].all()))
            found.append((number, likelihood))
            begin = end
        return found

    def _by_head(
        self, hidden_BTC: torch.Tensor, row_N: torch.Tensor, position_N: torch.Tensor, target_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Each distinct position goes through the head once, a slice at a time."""
        assert self.head is not None
        places, which_N = torch.unique(row_N * hidden_BTC.shape[1] + position_N, return_inverse=True)
        hidden_PC = hidden_BTC.flatten(0, 1)[places.to(hidden_BTC.device)]
        log_p, greedy = torch.zeros(len(target_N), dtype=torch.float64), torch.zeros(len(target_N), dtype=torch.bool)
        for begin in range(0, len(places), self.slice):
            logits_PV = self.head(hidden_PC[begin : begin + self.slice])
            here = ((which_N >= begin) & (which_N < begin + self.slice)).nonzero()[:, 0]
            found = _at(logits_PV, target_N[here], which_N[here] - begin)
            log_p[here.cpu()], greedy[here.cpu()] = found
        return log_p, greedy


def _at(
    logits_PV: torch.Tensor, target_N: torch.Tensor, which_N: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target at its position, and whether it is the likeliest token there.

    On a CPU a few positions at a time, so that their logits stay in its cache. Of equal logits the first is the
    likeliest, as for argmax, which is slow.
    """
    device = logits_PV.device
    target_N = target_N.to(device)
    which_N = torch.arange(len(target_N), device=device) if which_N is None else which_N.to(device)
    vocabulary_V = torch.arange(logits_PV.shape[-1], device=device)
    log_p_N = torch.zeros(len(target_N), dtype=torch.float64, device=device)
    greedy_N = torch.zeros(len(target_N), dtype=torch.bool, device=device)
    step = _IN_CACHE if device.type == "cpu" else len(logits_PV)
    for begin in range(0, len(logits_PV), step):
        logits_RV = logits_PV[begin : begin + step].float()
        here = ((which_N >= begin) & (which_N < begin + step)).nonzero()[:, 0]
        row_M, target_M = which_N[here] - begin, target_N[here]
        own_M, top_M = logits_RV[row_M, target_M], logits_RV.amax(dim=-1)[row_M]
        log_p_N[here] = own_M.double() - logits_RV.logsumexp(dim=-1)[row_M].double()
        best_K = (own_M == top_M).nonzero()[:, 0]
        equal_KV = logits_RV[row_M[best_K]] == top_M[best_K, None]
        earlier_K = (equal_KV & (vocabulary_V < target_M[best_K, None])).any(dim=-1)
        greedy_N[here[best_K]] = ~earlier_K
    return log_p_N.cpu(), greedy_N.cpu()


def _selected(cache: Any, rows: list[int]) -> Any:
    """A cache with these rows of another, which stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(torch.tensor(rows, device=cache.layers[0].keys.device))
    return chosen


def _uncut(lm: LM) -> bool:
    """Whether requests must be read whole: something replaces activations, or the model keeps states that are not
    keys and values (convolutions, linear attention), which a cache cannot be cut from."""
    return sites.replacing(lm) or any(layer.attention is None for layer in lm.anatomy.layers)
