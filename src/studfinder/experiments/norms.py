"""The maps M[h,d] of Q, K and V that the massive-value experiments read: per prompt, before and after RoPE.

M[h,d] = sqrt(sum over tokens of q[h,d]^2) (Jin et al. 2025, arXiv 2502.01563, section 3). Squares are kept by prompt,
so that what is counted can be counted again on resampled prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from studfinder.detectors.massive_values import MassiveValues
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.records import Interval
from studfinder.records.findings import QKV
from studfinder.sites import AttentionCall, tapped
from studfinder.stats import bootstrap
from studfinder.texts import Batch, batches, default_prompts, encode

LETTERS = {
    "query": "Q",
    "key": "K",
    "value": "V",
    "query.pre_rope": "Q before RoPE",
    "key.pre_rope": "K before RoPE",
}
"""The tensors, in the order of the tables, and their names in print."""


@dataclass(frozen=True)
class Maps:
    """Squares of one model.

    Attributes:
        layers: by tensor, the layers where it was seen.
        squares: by tensor, sums of squares over each prompt's tokens, shape (prompts, layers, heads, dims).
        tokens: of all prompts together.
    """

    layers: Mapping[str, tuple[int, ...]]
    squares: Mapping[str, np.ndarray]
    tokens: int

    @property
    def tensors(self) -> list[str]:
        """The tensors that this model has."""
        return [name for name in LETTERS if name in self.squares]

    def norm_LHD(self, tensor: str) -> np.ndarray:
        """M over all prompts."""
        return np.sqrt(self.squares[tensor].sum(axis=0))


def read_maps(lm: LM, limit: int, progress: Callable[[str, int, int], Any] | None = None) -> Maps:
    """Read the first `limit` of our twelve prompts, one forward pass each.

    Raises:
        StudfinderError: no layer of this model has an attention that can be read.
    """
    encoded = encode(lm, default_prompts()[:limit])[0]
    seen: dict[str, dict[int, list[np.ndarray]]] = {}
    for number, batch in enumerate(batches(encoded)):
        for name, layer, norm_HD in _norms(lm, batch):
            seen.setdefault(name, {}).setdefault(layer, []).append(norm_HD.square().numpy())
        if progress is not None:
            progress("reading Q, K and V", number + 1, len(encoded))
    if not seen:
        raise StudfinderError("no layer of this model has an attention that can be read")
    return Maps(
        {name: tuple(sorted(found)) for name, found in seen.items()},
        {name: np.stack([found[layer] for layer in sorted(found)], axis=1) for name, found in seen.items()},
        sum(len(ids) for ids in encoded),
    )


def _norms(lm: LM, batch: Batch) -> Iterator[tuple[str, int, torch.Tensor]]:
    """(tensor, layer, M) of one prompt, for each stage at which Q and K can be read; V has one stage."""
    for place, (stage, detector) in enumerate(_observed(lm, batch).items()):
        for tensor in QKV if place == 0 else QKV[:2]:
            for layer in detector.layers(tensor):
                name = tensor if tensor == "value" else f"{tensor}{stage}"
                yield name, layer, detector.norm_HD(tensor, layer)


def _observed(lm: LM, batch: Batch) -> dict[str, MassiveValues]:
    """A detector for each of the stages "" and ".pre_rope"."""
    stages = {"post-RoPE": ("", ".pre_rope"), "no RoPE": ("",), "pre-RoPE": (".pre_rope",)}[lm.anatomy.stage]
    watching = {stage: MassiveValues(lm) for stage in stages}
    for detector in watching.values():
        detector.begin(batch)

    def read(event: AttentionCall) -> None:
        for stage, detector in watching.items():
            shown = event
            if stage and lm.anatomy.stage == "post-RoPE":
                if event.query_pre_BHTD is None or event.key_pre_BGTD is None:
                    continue  # a layer without rotation in a model that has it
                shown = replace(event, query_BHTD=event.query_pre_BHTD, key_BGSD=event.key_pre_BGTD)
            detector.readers[AttentionCall]([shown])

    with torch.no_grad(), tapped(lm, read={AttentionCall: [read]}, pre_rope=len(stages) == 2):
        lm.model(input_ids=batch.input_ids_BT.to(lm.device), use_cache=False)
    return watching


# --- what is counted ------------------------------------------------------------------------------------------------


def norm_ratios(norm_LHD: np.ndarray, scope: str = "head") -> np.ndarray:
    """M over the mean of its head, or ("layer") of all heads of its layer, shape (..., H, D)."""
    mean = norm_LHD.mean(axis=-1 if scope == "head" else (-2, -1), keepdims=True)
    return np.divide(norm_LHD, mean, out=np.zeros_like(norm_LHD), where=mean > 0)


def counts(norm_LHD: np.ndarray, lam: float, scope: str = "head") -> np.ndarray:
    """Massive entries by layer, shape (..., L)."""
    return (norm_ratios(norm_LHD, scope) > lam).sum(axis=(-2, -1))


@lru_cache(maxsize=64)
def chance_above(dims: int, lam: float) -> float:
    """The share of entries above lambda if every head held one vector of random direction (20,000 draws, fixed seed):
    the null that a count has to beat."""
    drawn = np.abs(np.random.default_rng(0).standard_normal((20_000, dims)))
    return float((drawn > lam * drawn.mean(axis=1, keepdims=True)).mean())


Statistic = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""From M by tensor, each of shape (R,L,H,D), to a number for each of R draws of prompts."""


def resampled(maps: Maps, statistics: Mapping[str, Statistic]) -> dict[str, Interval]:
    """Numbers made of the maps, with bootstrap intervals over prompts."""

    def of_norms(times_RP: np.ndarray) -> np.ndarray:
        norms = {tensor: np.sqrt(np.tensordot(times_RP, of, 1)) for tensor, of in maps.squares.items()}
        return np.stack([statistic(norms) for statistic in statistics.values()], axis=1)

    prompts = len(next(iter(maps.squares.values())))
    width = max(of[0].size for of in maps.squares.values())
    found = bootstrap(of_norms, [prompts], width=width).T.tolist()
    return {
        name: Interval(value=value, low=low, high=high, level=0.95, n=prompts, method="bootstrap over prompts")
        for name, (value, low, high) in zip(statistics, found, strict=True)
    }


def five_digits(values: Sequence[Any] | np.ndarray) -> Any:
    """Nested lists with five digits: enough to draw and to count by, a third of the bytes."""
    array = np.asarray(values, dtype=float)
    return np.vectorize(lambda value: float(f"{value:.5g}"))(array).tolist() if array.size else []
