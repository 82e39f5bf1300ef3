"""Massive values of Q, K and V (Jin et al. 2025, arXiv 2502.01563, section 3).

M[h,d] = sqrt(sum over all real tokens of all prompts of q[h,d]^2); an entry is massive if it exceeds lambda times the
mean over d of its head (per head; over all heads as an option).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

from studfinder.detectors.detector import Detector, stacked
from studfinder.models import LM, rotary_of
from studfinder.records import MassiveValue, MassiveValueSummary, ModelCard, Thresholds
from studfinder.records.findings import QKV
from studfinder.sites import AttentionCall
from studfinder.stats import SumOfSquares
from studfinder.texts import Batch

_NULL_DRAWS = 999


class MassiveValues(Detector):
    """Sums of squares over tokens of Q, K and V, per layer, head and dim.

    Args:
        scope: whether an entry is held against the mean of its head or of its layer.
    """

    def __init__(self, lm: LM, at: Thresholds | None = None, *, scope: Literal["head", "layer"] = "head") -> None:
        super().__init__(lm, at)
        self.scope = scope
        self.sums: dict[tuple[str, int], SumOfSquares] = {}

    @property
    def readers(self) -> Mapping[type, Callable[[list[Any]], None]]:
        return {AttentionCall: self._read}

    def _read(self, seen: list[tuple[Batch, AttentionCall]]) -> None:
        for batch, event in seen:
            new = event.query_BHTD.shape[2]  # with a cache, keys hold history that was counted before
            tensors = (event.query_BHTD, event.key_BGSD[:, :, -new:], event.value_BGSD[:, :, -new:])
            for name, tensor_BHTD in zip(QKV, tensors, strict=True):
                values = tensor_BHTD.float()
                if batch.mask_BT is not None:
                    values = values * batch.mask_BT[:, None, :, None].to(values.device)
                squares_HD = values.square().sum(dim=(0, 2))
                self.sums.setdefault((name, event.layer), SumOfSquares()).add(squares_HD)

    def merge(self, other: MassiveValues) -> None:
        super().merge(other)
        for key, sums in other.sums.items():
            self.sums.setdefault(key, SumOfSquares()).merge(sums)

    def layers(self, tensor: str) -> list[int]:
        """The layers where this tensor was seen."""
        return sorted(layer for name, layer in self.sums if name == tensor)

    def norm_HD(self, tensor: str, layer: int) -> torch.Tensor:
        """M of one tensor in one layer, shape (H, D)."""
        # An overflow is reported by `nonfinite`; it must not turn a whole head's ratios into NaN.
        return self.sums[tensor, layer].root.nan_to_num(nan=0.0, posinf=0.0)

    def ratio_HD(self, tensor: str, layer: int) -> torch.Tensor:
        """M over its mean (of the head, or of the whole layer)."""
        norm = self.norm_HD(tensor, layer)
        mean = norm.mean(dim=-1, keepdim=True) if self.scope == "head" else norm.mean().expand(norm.shape[0], 1)
        return torch.where(mean > 0, norm / mean.clamp_min(torch.finfo(norm.dtype).tiny), torch.zeros_like(norm))

    def found(self) -> tuple[MassiveValue, ...]:
        """The massive entries, by tensor and layer, largest ratio first."""
        entries = []
        for tensor in QKV:
            for layer in self.layers(tensor):
                norm, ratio = self.norm_HD(tensor, layer), self.ratio_HD(tensor, layer)
                hits = (ratio > self.at.lam).nonzero().tolist()
                for head, dim in sorted(hits, key=lambda hit: -float(ratio[hit[0], hit[1]])):
                    entries.append(
                        MassiveValue(
                            layer=layer,
                            tensor=tensor,
                            head=head,
                            dim=dim,
                            norm=float(norm[head, dim]),
                            ratio=float(ratio[head, dim]),
                        )
                    )
        return tuple(entries)

    def nearest(self) -> MassiveValue | None:
        """The nearest miss: the largest ratio in Q or K that is not above lambda."""
        best: MassiveValue | None = None
        for tensor in QKV[:2]:
            for layer in self.layers(tensor):
                norm, ratio = self.norm_HD(tensor, layer), self.ratio_HD(tensor, layer)
                below = ratio.masked_fill(ratio > self.at.lam, -1)
                head, dim = divmod(int(below.argmax()), ratio.shape[1])
                if best is None or float(below[head, dim]) > best.ratio:
                    best = MassiveValue(
                        layer=layer,
                        tensor=tensor,
                        head=head,
                        dim=dim,
                        norm=float(norm[head, dim]),
                        ratio=float(below[head, dim]),
                    )
        return best

    def summary(self, model: ModelCard) -> dict[str, Any]:
        tensors = tuple(self._tensor(tensor, model.train_length) for tensor in QKV if self.layers(tensor))
        return {"massive_values": tensors, "nearest_massive_value": self.nearest()}

    def _tensor(self, tensor: str, train_length: int) -> MassiveValueSummary:
        layers = self.layers(tensor)
        entries = [entry for entry in self.found() if entry.tensor == tensor]
        maps = [self.norm_HD(tensor, layer) for layer in layers]
        agreements = [found for found in map(agreement, maps) if found is not None]
        overlaps = torch.tensor([found.overlap for found in agreements])
        slow = rotary_share(self.lm, entries, train_length) if tensor != "value" else None
        return MassiveValueSummary(
            tensor=tensor,
            stage="no RoPE" if tensor == "value" else self.lm.anatomy.stage,
            entries=len(entries),
            layers_with=len({entry.layer for entry in entries}),
            layers=len(layers),
            overlap=float(overlaps.median()) if len(overlaps) else None,
            agreeing_layers=sum(found.p < 0.05 for found in agreements),
            concentration=float(torch.cat([concentration(m) for m in maps]).median()),
            concentration_null=concentration_null(maps[0].shape[1]),
            slow_share=slow.share if slow else None,
            slow_base=slow.base_rate if slow else None,
        )

    def profile(self, model: ModelCard) -> dict[str, torch.Tensor]:
        """`norm.query` (L,H,D) and its kin hold M, with `norm.query.layers` naming the layers of models that have some
        without attention; `rotary.never_turns` (L,D) is 1 where a dim never completes a turn within the training
        length and 2 in layers without RoPE and past a layer's own dims. They can weigh a quantiser."""
        profile = {}
        for tensor in QKV:
            layers = self.layers(tensor)
            if layers:
                profile[f"norm.{tensor}"] = stacked([self.norm_HD(tensor, layer) for layer in layers])
                profile[f"norm.{tensor}.layers"] = torch.tensor(layers)
        rotary = [rotary_of(self.lm, layer) for layer in self.layers("query")]
        if any(rotary):
            widths = [self.norm_HD("query", layer).shape[-1] for layer in self.layers("query")]
            found = [
                () if facts is None else tuple(map(int, facts.never_turns(model.train_length))) for facts in rotary
            ]
            flags = [own + (2,) * (max(widths) - len(own)) for own in found]  # heads of one model may differ
            profile["rotary.never_turns"] = torch.tensor(flags, dtype=torch.uint8)
        return profile

    def nonfinite(self) -> list[str]:
        return [f"{name}[{layer}]" for (name, layer), sums in self.sums.items() if not torch.isfinite(sums.root).all()]


# --- what the map of one layer says beyond the count ---------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How far heads agree on their largest dims: mean pairwise overlap of their top-k sets, k = D/32, and the share of
    permutation draws (dims shuffled within each head) that overlap as much; None for a single head."""

    overlap: float
    p: float


def agreement(norm_HD: torch.Tensor) -> Agreement | None:
    """Agreement across heads with its permutation null (999 draws, fixed seed)."""
    heads, dims = norm_HD.shape
    if heads < 2:
        return None
    k = max(1, dims // 32)
    chosen = torch.zeros(heads, dims).scatter_(1, norm_HD.topk(k, dim=1).indices, 1.0)
    observed = float(_overlap(chosen[None], k)[0])
    null = _overlap_null(heads, dims, k)
    return Agreement(observed, float((1 + (null >= observed - 1e-9).sum()) / (1 + len(null))))


def _overlap(chosen_NHD: torch.Tensor, k: int) -> torch.Tensor:
    heads = chosen_NHD.shape[1]
    votes = chosen_NHD.sum(dim=1)
    return (votes * (votes - 1)).sum(dim=-1) / (heads * (heads - 1) * k)


@lru_cache(maxsize=64)
def _overlap_null(heads: int, dims: int, k: int) -> torch.Tensor:
    # Shuffling dims within a head makes its top-k set a uniform one, so the null depends on the sizes alone.
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(_NULL_DRAWS):
        picked = torch.rand(heads, dims, generator=generator).topk(k, dim=1).indices
        draws.append(_overlap(torch.zeros(1, heads, dims).scatter_(2, picked[None], 1.0), k)[0])
    return torch.stack(draws)


def concentration(norm_HD: torch.Tensor) -> torch.Tensor:
    """How much of each head's energy sits in few dims: (D - D_eff) / (D - 1), shape (H,), from 0 (even) to 1 (one dim).

    D_eff = 1 / sum_d e_d^2 with e_d = M_d^2 / sum M^2 is the participation ratio. Unlike a count above lambda it can be
    compared between head dims: with lambda = 5 a head of 8 dims would need 39 % of all norm in one of them.
    """
    dims = norm_HD.shape[1]
    energy = norm_HD.double().square()
    share = energy / energy.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    effective = 1 / share.square().sum(dim=1).clamp_min(1 / dims)
    return (dims - effective) / max(1, dims - 1)


@lru_cache(maxsize=64)
def concentration_null(dims: int) -> float:
    """The 99th percentile of `concentration` for one vector of random direction in D dims: as concentrated as a head
    can look by chance if it held a single constant vector (999 draws, fixed seed)."""
    generator = torch.Generator().manual_seed(0)
    return float(concentration(torch.randn(_NULL_DRAWS, dims, generator=generator).abs()).quantile(0.99))


def ratio_null(dims: int, heads: int) -> tuple[float, float, float]:
    """The largest entry over its head's mean if each of so many heads held one vector of random direction: the mean,
    and the 2.5th and 97.5th percentile (999 draws, fixed seed)."""
    drawn_NHD = torch.randn(_NULL_DRAWS, heads, dims, generator=torch.Generator().manual_seed(0)).abs()
    largest_N = (drawn_NHD.amax(dim=2) / drawn_NHD.mean(dim=2)).amax(dim=1)
    low, high = largest_N.quantile(torch.tensor([0.025, 0.975])).tolist()
    return float(largest_N.mean()), low, high


@dataclass(frozen=True)
class RotaryShare:
    """Share of massive entries in dims whose rotary pair never completes a turn in training, and the share of such dims
    among all (what chance would give); None where there is no RoPE or nothing massive."""

    share: float
    base_rate: float
    n: int


def rotary_share(lm: LM, entries: list[MassiveValue], train_length: int) -> RotaryShare | None:
    """Research on partial cycles (arXiv 2503.01832) applied to massive entries of Q and K."""
    slow, base = [], []
    for entry in entries:
        rotary = rotary_of(lm, entry.layer)
        if rotary is None:
            continue
        flags = rotary.never_turns(train_length)
        slow.append(flags[entry.dim])
        base.append(sum(flags) / len(flags))
    if not slow:
        return None
    return RotaryShare(sum(slow) / len(slow), math.fsum(base) / len(base), len(slow))
