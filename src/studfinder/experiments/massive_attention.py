"""How one text's later tokens attend to its massive ones, and to control tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from studfinder.detectors.attention_sinks import attention_weights
from studfinder.experiments.massive_onset import Onset, set_massive
from studfinder.experiments.massive_reading import forward_read
from studfinder.models import LM
from studfinder.sites import AttentionCall, BlockOutput


@dataclass(frozen=True)
class LayerAttention:
    """One layer: the queries are the second half's tokens that are not massive.

    Attributes:
        p_HTS: attention of the queries to every token.
        value_HSD: values, one for each query head.
        held: tokens of the first half that are massive as they enter this layer; before the onset those that are going
            to be, and after the last layer with any those that were.
        free: the first half's other tokens.
        beside: as many of `free` as are held, the nearest ones.
    """

    layer: int
    p_HTS: torch.Tensor
    value_HSD: torch.Tensor
    queries: torch.Tensor
    held: torch.Tensor
    free: torch.Tensor
    beside: torch.Tensor

    @property
    def mass_H(self) -> torch.Tensor:
        """Of each head, attention to the massive tokens: mean over queries."""
        return self.p_HTS[..., self.held].sum(dim=-1).mean(dim=-1)

    @property
    def beside_H(self) -> torch.Tensor:
        """To those beside them."""
        return self.p_HTS[..., self.beside].sum(dim=-1).mean(dim=-1)

    @property
    def norm_H(self) -> torch.Tensor:
        """Mean length of the massive tokens' values over that of the half's others."""
        norm_HS = self.value_HSD.norm(dim=-1)
        return norm_HS[:, self.held].mean(dim=-1) / norm_HS[:, self.free].mean(dim=-1)


def calls_of(lm: LM, ids: Sequence[int], onset: Onset | None = None) -> tuple[dict[int, AttentionCall], torch.Tensor]:
    """By layer the attention calls of one forward pass that can be formed again; and with an `onset`, in which layers
    which tokens are massive, shape (layers, T)."""
    calls: dict[int, AttentionCall] = {}
    massive_LT = torch.zeros(len(lm.anatomy.layers), len(ids), dtype=torch.bool)

    def on_attention(event: AttentionCall) -> None:
        if event.comparable:
            calls[event.layer] = event

    def on_block(event: BlockOutput) -> None:
        if onset is not None and event.layer >= 0:
            massive_LT[event.layer] = onset.tokens(event.layer, event.hidden_BTC[0]).cpu()

    forward_read(lm, ids, {AttentionCall: on_attention, BlockOutput: on_block})
    return calls, massive_LT


def attention_to_massive(lm: LM, onset: Onset, ids: Sequence[int]) -> Iterator[LayerAttention]:
    """Layer by layer; those are left out where the first half holds no massive token, or as many as others."""
    calls, massive_LT = calls_of(lm, ids, onset)
    half = len(ids) // 2
    for layer, event in sorted(calls.items()):
        massive_T = massive_LT[min(max(layer - 1, onset.layer), onset.last)]
        held, free = massive_T[:half].nonzero()[:, 0], (~massive_T[:half]).nonzero()[:, 0]
        queries = half + (~massive_T[half:]).nonzero()[:, 0]
        if not 0 < len(held) < len(free) or len(queries) < 2:
            continue
        p_HTS = attention_weights(event, 0, len(ids), len(ids))[0].cpu()[:, queries]
        value_GSD = event.value_BGSD[0].float().cpu()
        value_HSD = value_GSD.repeat_interleave(len(p_HTS) // len(value_GSD), dim=0)
        yield LayerAttention(layer, p_HTS, value_HSD, queries, held, free, _nearest(held, free))


def mass_at_zero(lm: LM, onset: Onset, ids: Sequence[int], seen: Sequence[LayerAttention]) -> dict[int, torch.Tensor]:
    """By layer, each head's attention to the same tokens while their massive entries are set to zero, shape (H,)."""
    with set_massive(lm, onset, onset.dims):
        calls, _ = calls_of(lm, ids)
    return {
        one.layer: attention_weights(calls[one.layer], 0, len(ids), len(ids))[0]
        .cpu()[:, one.queries][..., one.held]
        .sum(dim=-1)
        .mean(dim=-1)
        for one in seen
    }


def _nearest(held: torch.Tensor, free: torch.Tensor) -> torch.Tensor:
    """As many free places, each the nearest to a held one that is not taken yet, the later one of two."""
    left, found = free.tolist(), []
    for place in held.tolist():
        best = min(left, key=lambda one: (abs(one - place), -one))
        left.remove(best)
        found.append(best)
    return torch.tensor(found)


def head_means(one: LayerAttention, zeroed_H: torch.Tensor, random: torch.Generator, draws: int) -> dict[str, Any]:
    """Means over heads, and two values; see the experiment on no-op heads for what each is."""
    p_HTS, value_HSD, held, free = one.p_HTS, one.value_HSD, one.held, one.free
    heads = len(p_HTS)
    sets = [free[torch.randperm(len(free), generator=random)[: len(held)]] for _ in range(draws)]
    norm_HS = value_HSD.norm(dim=-1)
    moved_HT = torch.linalg.vecdot(p_HTS[..., held], norm_HS[:, None, held]) / norm_HS[:, free].mean(dim=-1)[:, None]
    given_HTD, whole_HTD = p_HTS[..., held] @ value_HSD[:, held], p_HTS @ value_HSD
    # The mean over queries of the ratio would be ruled by queries whose output happens to vanish.
    share_H = given_HTD.norm(dim=-1).mean(dim=-1) / whole_HTD.norm(dim=-1).mean(dim=-1)
    most_HK = free[p_HTS[..., free].mean(dim=1).topk(len(held)).indices]
    alike = [_constancy(p_HTS, value_HSD, chosen.expand(heads, -1)).mean() for chosen in (held, *sets)]
    return {
        "held": len(held),
        "mass": float(one.mass_H.mean()),
        "beside": float(one.beside_H.mean()),
        "random": float(np.mean([float(p_HTS[..., chosen].sum(dim=-1).mean()) for chosen in sets])),
        "zeroed": float(zeroed_H.mean()),
        "norm": float(one.norm_H.mean()),
        "moved": float(moved_HT.mean()),
        "share": float(share_H.mean()),
        "constancy": float(alike[0]),
        "null": float(torch.stack(alike[1:]).mean()),
        "attended": float(_constancy(p_HTS, value_HSD, most_HK).mean()),
        "no_op_heads": int(((one.mass_H > 0.5) & (one.norm_H < 0.5)).sum()),
        "heads": heads,
        # Four digits: enough for a cosine, and a third of the file.
        "value": [[float(f"{x:.4g}") for x in row] for row in value_HSD[:, held[0]].tolist()],
        "other": [[float(f"{x:.4g}") for x in row] for row in value_HSD[:, sets[0][0]].tolist()],
    }


def _constancy(p_HTS: torch.Tensor, value_HSD: torch.Tensor, chosen_HK: torch.Tensor) -> torch.Tensor:
    """mean_k |u_k - ubar| / |ubar| of each head, shape (H,)."""
    heads, queries, _ = p_HTS.shape
    p_HTK = p_HTS.gather(2, chosen_HK[:, None].expand(heads, queries, -1))
    u_HTD = p_HTK @ value_HSD.gather(1, chosen_HK[..., None].expand(heads, -1, value_HSD.shape[-1]))
    mean_H1D = u_HTD.mean(dim=1, keepdim=True)
    return (u_HTD - mean_H1D).norm(dim=-1).mean(dim=1) / mean_H1D.norm(dim=-1)[:, 0].clamp_min(1e-30)
