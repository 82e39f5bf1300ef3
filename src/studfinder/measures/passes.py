"""One forward pass over rows of token ids, and how likely it finds what is asked of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from studfinder import sites
from studfinder.measures.packs import Pack, additive, packed
from studfinder.models import LM
from studfinder.passes.head import head_of

_IN_CACHE = 8
"""Positions whose logits are turned into log-probabilities at a time on a CPU."""


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


class Engine:
    """Forward passes, and what they say of the rows."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self.decoder = lm.model.get_submodule(lm.anatomy.decoder)
        self.head = head_of(lm)
        self.slice = max(1, (1 << 26) // lm.anatomy.vocabulary)

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
        self.decoder(input_ids=torch.tensor([list(ids)], device=self.lm.device), past_key_values=cache, use_cache=True)
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
        """The decoder's output (B,N,C) for a batch of packs, behind what is cached."""
        size = max(len(pack.ids) for pack in packs)
        ids_BN = torch.tensor([pack.ids + pack.ids[-1:] * (size - len(pack.ids)) for pack in packs])
        cache = cache and _copied(cache, len(packs))
        if all(pack.straight for pack in packs):
            return self._hidden(ids_BN, None, cache)
        depth_BN = torch.tensor([pack.depths + [start] * (size - len(pack.ids)) for pack in packs])
        mask = additive(packs, size, start, self.lm.dtype)
        return self._hidden(ids_BN, mask, cache, position_ids=depth_BN.to(self.lm.device))

    def _hidden(self, ids: torch.Tensor, mask: torch.Tensor | None, cache: Any, **options: Any) -> torch.Tensor:
        """The decoder's output, or the logits of a model whose head is not understood."""
        options |= {
            "input_ids": ids.to(self.lm.device),
            "attention_mask": None if mask is None else mask.to(self.lm.device),
            "past_key_values": cache,
            "use_cache": cache is not None,
        }
        if self.head is None:
            return self.lm.model(**options).logits
        return self.decoder(**options).last_hidden_state

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
        for begin in range(0, len(flat), self.slice):
            slice_SX = states_PX[begin : begin + self.slice]
            logits_SV = slice_SX if self.head is None else self.head(slice_SX)
            here_M = ((which_N >= begin) & (which_N < begin + len(slice_SX))).nonzero()[:, 0]
            log_p_N[here_M], greedy_N[here_M] = _at(logits_SV, target_N[here_M], which_N[here_M] - begin)
        found, begin = [], 0
        for number, tokens in asked:
            end = begin + len(tokens)
            found.append(
                (number, Likelihood(float(log_p_N[begin:end].sum()), len(tokens), bool(greedy_N[begin:end].all())))
            )
            begin = end
        return found


def _at(logits_PV: torch.Tensor, target_N: torch.Tensor, which_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target at its position, and whether it is the likeliest token there.

    On a CPU a few positions at a time, so that their logits stay in its cache. Of equal logits the first is the
    likeliest, as for argmax, which is slow.
    """
    device = logits_PV.device
    target_N, which_N = target_N.to(device), which_N.to(device)
    own_N = logits_PV[which_N, target_N].float()
    top_P = torch.empty(len(logits_PV), device=device)
    rest_P = torch.empty_like(top_P)
    step = _IN_CACHE if device.type == "cpu" else len(logits_PV)
    for begin in range(0, len(logits_PV), step):
        logits_RV = logits_PV[begin : begin + step].to(torch.float32, copy=True)
        top_R1 = torch.amax(logits_RV, dim=-1, keepdim=True)
        top_P[begin : begin + step] = top_R1[:, 0]
        rest_P[begin : begin + step] = logits_RV.sub_(top_R1).exp_().sum(dim=-1)
    log_p_N = (own_N - top_P[which_N]).double() - rest_P[which_N].double().log()
    greedy_N = own_N == top_P[which_N]
    for i in greedy_N.nonzero()[:, 0].tolist():
        earlier_T = logits_PV[which_N[i], : target_N[i]]
        greedy_N[i] = not len(earlier_T) or earlier_T.float().amax() < own_N[i]
    return log_p_N.cpu(), greedy_N.cpu()


def _copied(cache: Any, rows: int) -> Any:
    """A cache of so many equal rows; the other stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    if rows > 1:
        chosen.batch_select_indices(torch.zeros(rows, dtype=torch.long, device=cache.layers[0].keys.device))
    return chosen
