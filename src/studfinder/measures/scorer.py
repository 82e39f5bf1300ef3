"""One forward pass over rows of token ids, and how likely it finds what is asked of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from studfinder import sites
from studfinder.measures.packs import Pack, additive, packed
from studfinder.models import LM
from studfinder.passes.head import Head, head_of, headless

_LOGITS = 1 << 26
"""Logits that are held at a time, where the vocabulary is not cut."""


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


@dataclass
class ScoredRow:
    """Token ids that are read in one go, and who asks for what there.

    Attributes:
        ids: context and continuation without its last token.
        context: length of the context.
        asked: (request, its continuation); continuations that differ in their last token share a row.
    """

    ids: tuple[int, ...]
    context: int
    asked: list[tuple[int, list[int]]] = field(default_factory=list)


Scored = list[tuple[int, Likelihood]]
"""(request, result) of one pass."""


@contextmanager
def scoring(lm: LM) -> Iterator[Scorer]:
    """A scorer of a model, which goes no further than its output matrix while the context lasts."""
    head = head_of(lm)
    if head is None:
        yield Scorer(lm, None, lambda run: run().logits)
        return
    with headless(lm) as before:
        yield Scorer(lm, head, before)


@dataclass
class Scorer:
    """What passes of the model's own say of rows.

    Attributes:
        head: what turns what the output matrix is given into logits; None where that is not understood.
        before: what the output matrix is given when a function runs the model (see `headless`), or its logits.
    """

    lm: LM
    head: Head | None
    before: Callable[[Callable[[], Any]], torch.Tensor]

    def takes_packs(self) -> bool:
        """Whether sequences in one row, with a mask and positions, are to this model what they are apart: tried."""
        if self.head is None:
            return False
        vocabulary = self.lm.anatomy.vocabulary
        apart_BT = torch.arange(3, 15).view(2, 6) % vocabulary
        apart_BT[1, :2] = apart_BT[0, :2]
        hidden_BTC = self._hidden(apart_BT, None, None)
        (pack,) = packed(apart_BT.tolist(), 0, 99)
        try:
            hidden_NC = self._packed([pack], None, 0)[0]
        except (TypeError, ValueError, RuntimeError):  # no such argument, or not of this shape
            return False
        ours_BTC = torch.stack([hidden_NC[pack.paths[i]] for i in range(2)])
        # Far above rounding, far below what tokens at wrong places or seen by the wrong ones come to.
        return bool((ours_BTC - hidden_BTC).float().norm() < 0.03 * hidden_BTC.float().norm())

    def read(self, ids: Sequence[int]) -> Any:
        """The cache after reading the beginning that all rows have in common."""
        from transformers import DynamicCache

        # Without a config no layer of the cache forgets what has left its sliding window: the mask sees to that.
        cache = DynamicCache()
        self._hidden(torch.tensor([list(ids)]), None, cache)
        return cache

    @torch.no_grad()
    def packs(self, rows: Sequence[ScoredRow], packs: Sequence[Pack], cache: Any, start: int) -> Scored:
        """Score what is asked of the rows in some packs."""
        hidden_BNC = self._packed(packs, cache, start)
        places = [
            (b, rows[number], lambda depth, path=path: path[depth - start])
            for b, pack in enumerate(packs)
            for number, path in pack.paths.items()
        ]
        return self._scored(hidden_BNC, places)

    @torch.no_grad()
    def whole(self, rows: Sequence[ScoredRow]) -> Scored:
        """Score rows that are read from their first token on, padded at the end, where causality hides it."""
        # Padded with a row's own last token: some models warn when they meet their padding token without a mask.
        width = len(rows[0].ids)
        ids_BT = torch.tensor([row.ids + (row.ids[-1],) * (width - len(row.ids)) for row in rows])
        mask_BT = None
        if sites.replacing(self.lm):  # edits must know which tokens are real
            mask_BT = torch.tensor([[1] * len(row.ids) + [0] * (width - len(row.ids)) for row in rows])
        return self._scored(
            self._hidden(ids_BT, mask_BT, None), [(b, row, lambda at: at) for b, row in enumerate(rows)]
        )

    def _packed(self, packs: Sequence[Pack], cache: Any, start: int) -> torch.Tensor:
        """What the output matrix is given (B,N,C) for a batch of packs, behind what is cached."""
        size = max(len(pack.ids) for pack in packs)
        ids_BN = torch.tensor([pack.ids + pack.ids[-1:] * (size - len(pack.ids)) for pack in packs])
        cache = cache and _copied(cache, len(packs))
        if all(pack.straight for pack in packs):
            return self._hidden(ids_BN, None, cache)
        depth_BN = torch.tensor([pack.depths + [start] * (size - len(pack.ids)) for pack in packs])
        mask = additive(packs, size, start, self.lm.dtype)
        return self._hidden(ids_BN, mask, cache, position_ids=depth_BN.to(self.lm.device))

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor | None, cache: Any, **options: Any) -> torch.Tensor:
        """What the output matrix is given, or the logits of a model whose head is not understood."""
        options |= {
            "input_ids": ids.to(self.lm.device),
            "attention_mask": None if mask is None else mask.to(self.lm.device),
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        return self.before(lambda: self.lm.model(**options))

    def _scored(
        self, states_BNX: torch.Tensor, places: Iterable[tuple[int, ScoredRow, Callable[[int], int]]]
    ) -> Scored:
        """What is asked of rows, given (batch, row, where the token at a depth is)."""
        asked = [
            (number, [(b, at(row.context - 1 + j), token) for j, token in enumerate(continuation)])
            for b, row, at in places
            for number, continuation in row.asked
        ]
        batch_N, place_N, target_N = torch.tensor([one for _, tokens in asked for one in tokens]).T
        # Each distinct position goes through the head once, a slice at a time.
        flat, which_N = torch.unique(batch_N * states_BNX.shape[1] + place_N, return_inverse=True)
        states_PX = states_BNX.flatten(0, 1)[flat.to(states_BNX.device)]
        log_p_N, greedy_N = (
            torch.zeros(len(target_N), dtype=torch.float64),
            torch.zeros(len(target_N), dtype=torch.bool),
        )
        step = max(1, _LOGITS // self.lm.anatomy.vocabulary)
        for start in range(0, len(flat), step):
            slice_SX = states_PX[start : start + step]
            pieces = [slice_SX] if self.head is None else self.head.pieces(slice_SX)
            here_M = ((which_N >= start) & (which_N < start + step)).nonzero()[:, 0]
            log_p_N[here_M], greedy_N[here_M] = at_targets(pieces, target_N[here_M], which_N[here_M] - start)
        found, begin = [], 0
        for number, tokens in asked:
            end = begin + len(tokens)
            found.append(
                (number, Likelihood(float(log_p_N[begin:end].sum()), len(tokens), bool(greedy_N[begin:end].all())))
            )
            begin = end
        return found


def at_targets(
    pieces: Iterable[torch.Tensor], target_N: torch.Tensor, which_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target at its position, and whether it is the likeliest token there: of equal logits the
    first, as for argmax, which is slow.

    Args:
        pieces: logits (P,.) of some words after those of others; see `Head.pieces`. They are written into.
        target_N: tokens.
        which_N: the position of each.
    """
    own_N, before_N = torch.zeros(len(target_N)), torch.full((len(target_N),), -torch.inf)
    top_P1: torch.Tensor | None = None
    begin = 0
    for piece in pieces:
        logits_PS = piece.float()
        most_P1 = logits_PS.amax(dim=1, keepdim=True)
        if top_P1 is None:
            top_P1, sum_P1 = torch.full_like(most_P1, -torch.inf), torch.zeros_like(most_P1, dtype=torch.float64)
        here = ((target_N >= begin) & (target_N < begin + logits_PS.shape[1])).nonzero()[:, 0]
        row, column = which_N[here].to(piece.device), (target_N[here] - begin).to(piece.device)
        chosen = logits_PS[row, column]
        own_N[here], before_N[here] = chosen.cpu(), top_P1[row, 0].cpu()
        for number in (chosen == most_P1[row, 0]).nonzero()[:, 0].tolist():
            earlier = logits_PS[row[number], : column[number]]
            if len(earlier):
                before_N[here[number]] = max(before_N[here[number]], earlier.amax().cpu())
        both_P1 = torch.maximum(top_P1, most_P1)
        sum_P1 = sum_P1 * (top_P1 - both_P1).double().exp()
        sum_P1 += logits_PS.sub_(both_P1).exp_().sum(dim=1, keepdim=True)
        top_P1, begin = both_P1, begin + piece.shape[1]
    assert top_P1 is not None
    top_N, sum_N = (one.cpu()[which_N, 0] for one in (top_P1, sum_P1))
    return (own_N - top_N).double() - sum_N.log(), (own_N == top_N) & (before_N < own_N)


def _copied(cache: Any, rows: int) -> Any:
    """A cache of so many equal rows; the other stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    if rows > 1:
        chosen.batch_select_indices(torch.zeros(rows, dtype=torch.long, device=cache.layers[0].keys.device))
    return chosen
