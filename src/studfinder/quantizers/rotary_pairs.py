"""Factors for the rotary pairs of K and Q: what K loses in size Q gains, and attention stays what it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM, HeadRows, rotary_of
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.ffn import scale_rows


@dataclass(frozen=True, kw_only=True)
class RotaryPairs:
    """Scale each pair of K's dims that rotate together towards its head's mean size, by a power of two, and the same
    dims of the Q heads that read it the other way. Rotation mixes only the two dims of a pair, so q.k is bit-equal.

    At group scales it changes little, because a row's scale takes the factor up; it is of use for a quantised cache.

    Attributes:
        most: the largest power, either way.
    """

    most: int = 4

    def apply(self, bench: Workbench) -> None:
        for layer, part in enumerate(bench.lm.anatomy.layers):
            if part.attention is not None:
                self._layer(bench, layer, part.attention)
        bench.notes.append("rotary pairs of K and Q rescaled by powers of two (exact)")

    def _layer(self, bench: Workbench, layer: int, attention: str) -> None:
        lm, mixer = bench.lm, bench.lm.anatomy.layers[layer].mixer
        query, key = query_and_key(lm, layer)
        if any(norm.module.startswith(f"{attention}.") for norm in lm.anatomy.layers[layer].norms):
            raise StudfinderError(f"{attention} normalises Q and K", expected="nothing after them but the rotation")
        if mixer is None or mixer.stage != "post-RoPE":
            raise StudfinderError(f"{lm.anatomy.architecture} has no rotary positions that are known")
        weight = lm.model.get_parameter(key.ref.parameter).detach().float()
        size_GD = weight[all_rows(key).to(weight.device)].unflatten(0, (mixer.kv_heads, -1)).norm(dim=-1)
        pair_D = pairs_of(lm, layer).to(weight.device)
        size_GP = mean_by_pair(size_GD.square(), pair_D).sqrt()
        power_GP = (size_GP.mean(dim=1, keepdim=True) / size_GP).log2().round().nan_to_num(0, 0, 0)
        factor_GD = torch.exp2(power_GP.clamp(-self.most, self.most))[:, pair_D]
        scale_rows(bench, key.ref.parameter, all_rows(key), factor_GD.flatten())
        factor_HD = factor_GD.repeat_interleave(mixer.heads // mixer.kv_heads, dim=0)
        scale_rows(bench, query.ref.parameter, all_rows(query), 1 / factor_HD.flatten())


def query_and_key(lm: LM, layer: int) -> tuple[HeadRows, HeadRows]:
    """The rows of a block's query and key projections, each a matrix (out, in) that makes nothing else.

    Raises:
        StudfinderError: they are not, or probing could not tell.
    """
    mixer = lm.anatomy.layers[layer].mixer
    found = [] if mixer is None else [rows for rows in (mixer.query, mixer.key) if rows is not None]
    for rows in found:
        size = lm.model.get_parameter(rows.ref.parameter).shape[0]
        if rows.ref.transposed or size != len(rows.first) * rows.width:
            raise StudfinderError(f"{rows.ref.parameter} makes more than Q or K", expected="a matrix for each of them")
    if len(found) != 2:
        raise StudfinderError(f"which matrices make Q and K in layer {layer} of {lm.source.id} is unknown")
    return found[0], found[1]


def all_rows(rows: HeadRows) -> torch.Tensor:
    """The rows of all heads, one head after the other."""
    return (torch.tensor(rows.first)[:, None] + torch.arange(rows.width)).flatten()


def mean_by_pair(value_HD: torch.Tensor, pair_D: torch.Tensor) -> torch.Tensor:
    """The mean over the dims of each pair, (heads, pairs)."""
    sum_HP = value_HD.new_zeros(len(value_HD), int(pair_D.max()) + 1).index_add_(1, pair_D, value_HD)
    return sum_HP / torch.bincount(pair_D)


def pairs_of(lm: LM, layer: int) -> torch.Tensor:
    """Which pair each dim of a head belongs to, (D,); a dim that is not rotated is a pair of its own."""
    rotary, mixer = rotary_of(lm, layer), lm.anatomy.layers[layer].mixer
    found, alone = [], 0 if rotary is None else len(rotary.inv_freq)
    for dim in range(0 if mixer is None else mixer.head_dim):
        pair = None if rotary is None or mixer is None or dim < mixer.turned else rotary.pair_of(dim - mixer.turned)
        if pair is None:
            pair, alone = alone, alone + 1
        found.append(pair)
    return torch.tensor(found)
