"""Factors for the rotary pairs of K and Q: what K loses in size Q gains, and attention stays what it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM, rotary_of
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
        lm = bench.lm
        query, key = _projections(lm, attention)
        heads, groups, dim = lm.anatomy.heads, lm.anatomy.kv_heads, lm.anatomy.head_dim
        weight = lm.model.get_parameter(f"{key}.weight").detach().float().reshape(groups, dim, -1)
        size_GD = weight.norm(dim=-1)
        pair_D = pairs_of(lm, layer).to(weight.device)
        size_GP = mean_by_pair(size_GD.square(), pair_D).sqrt()
        power_GP = (size_GP.mean(dim=1, keepdim=True) / size_GP).log2().round().nan_to_num(0, 0, 0)
        factor_GD = torch.exp2(power_GP.clamp(-self.most, self.most))[:, pair_D]
        scale_rows(bench, f"{key}.weight", list(range(groups * dim)), factor_GD.flatten())
        factor_HD = factor_GD.repeat_interleave(heads // groups, dim=0)
        scale_rows(bench, f"{query}.weight", list(range(heads * dim)), 1 / factor_HD.flatten())


def _projections(lm: LM, attention: str) -> tuple[str, str]:
    module = lm.model.get_submodule(attention)
    norms = any(hasattr(module, name) for name in ("q_norm", "k_norm", "q_layernorm", "k_layernorm"))
    if norms or not all(isinstance(getattr(module, name, None), nn.Linear) for name in ("q_proj", "k_proj")):
        raise StudfinderError(
            f"{attention} normalises Q and K, or does not make them apart",
            expected="q_proj and k_proj that nothing follows but the rotation",
        )
    if lm.anatomy.stage != "post-RoPE":
        raise StudfinderError(f"{lm.anatomy.architecture} has no rotary positions that are known")
    return f"{attention}.q_proj", f"{attention}.k_proj"


def mean_by_pair(value_HD: torch.Tensor, pair_D: torch.Tensor) -> torch.Tensor:
    """The mean over the dims of each pair, (heads, pairs)."""
    sum_HP = value_HD.new_zeros(len(value_HD), int(pair_D.max()) + 1).index_add_(1, pair_D, value_HD)
    return sum_HP / torch.bincount(pair_D)


def pairs_of(lm: LM, layer: int) -> torch.Tensor:
    """Which pair each dim of a head belongs to, (D,); a dim that is not rotated is a pair of its own."""
    rotary = rotary_of(lm, layer)
    found, alone = [], 0 if rotary is None else len(rotary.inv_freq)
    for dim in range(lm.anatomy.head_dim):
        pair = None if rotary is None else rotary.pair_of(dim)
        if pair is None:
            pair, alone = alone, alone + 1
        found.append(pair)
    return torch.tensor(found)
