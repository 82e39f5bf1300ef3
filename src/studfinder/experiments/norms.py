"""The maps M[h,d] of Q, K and V that the massive-value experiments read: per prompt, before and after RoPE.

M[h,d] = sqrt(sum over tokens of q[h,d]^2) (Jin et al. 2025, arXiv 2502.01563, section 3). Squares are kept by prompt,
so that what is counted can be counted again on resampled prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.records import Interval
from studfinder.records.config import option
from studfinder.sites import AttentionCall, tapped
from studfinder.stats import bootstrap
from studfinder.studies.experiment import StudyConfig
from studfinder.texts import default_prompts, encode

LETTERS = {
    "query": "Q",
    "key": "K",
    "value": "V",
    "query.pre_rope": "Q before RoPE",
    "key.pre_rope": "K before RoPE",
}
"""The tensors, in the order of the tables, and their names in print."""


@dataclass(frozen=True, kw_only=True)
class MapsConfig(StudyConfig):
    """On how much Q, K and V are read."""

    limit: int = option(12, help="Of our twelve prompts.", least=1)


@dataclass(frozen=True, kw_only=True)
class LambdaConfig(MapsConfig):
    """And what counts as massive."""

    lam: float = option(5.0, help="Massive is above this many times the head's mean.")


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
    """Read the first `limit` of our twelve prompts, one forward pass each: by prompt, before and after RoPE, as no
    measure does.

    Raises:
        StudfinderError: no layer of this model has an attention that can be read.
    """
    encoded = encode(lm, default_prompts()[:limit])[0]
    squares: dict[str, dict[int, np.ndarray]] = {}
    own, number = ".pre_rope" if lm.anatomy.stage == "pre-RoPE" else "", 0

    def read(event: AttentionCall) -> None:
        found: dict[str, torch.Tensor | None] = {
            f"query{own}": event.query_BHTD,
            f"key{own}": event.key_BGSD,
            "value": event.value_BGSD,
        }
        if lm.anatomy.stage == "post-RoPE":
            found |= {"query.pre_rope": event.query_pre_BHTD, "key.pre_rope": event.key_pre_BGTD}
        for name, values in found.items():
            if values is None:
                continue  # a layer without rotation in a model that has it
            norm_HD = values.float().square().sum(dim=(0, 2)).to("cpu", torch.float64).sqrt()
            nothing = np.zeros((len(encoded), *norm_HD.shape))
            # As in a scan: an overflow must not turn a whole head's norm_ratios into NaN.
            kept_HD = norm_HD.nan_to_num(nan=0.0, posinf=0.0)
            squares.setdefault(name, {}).setdefault(event.layer, nothing)[number] += kept_HD.square().numpy()

    with torch.no_grad(), tapped(lm, read={AttentionCall: [read]}, pre_rope=lm.anatomy.stage == "post-RoPE"):
        for number, ids in enumerate(encoded):
            lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False)
            if progress is not None:
                progress("reading Q, K and V", number + 1, len(encoded))
    if not squares:
        raise StudfinderError(f"no layer of {lm.source.id} has an attention whose Q and K can be read")
    return Maps(
        {name: tuple(sorted(found)) for name, found in squares.items()},
        {name: np.stack([found[layer] for layer in sorted(found)], axis=1) for name, found in squares.items()},
        sum(map(len, encoded)),
    )


# --- what is counted ------------------------------------------------------------------------------------------------


def norm_ratios(norms: np.ndarray, scope: str = "head") -> np.ndarray:
    """M, (..., H, D), over the mean of its head, or ("layer") of all heads of its layer; of the same shape."""
    mean = norms.mean(axis=-1 if scope == "head" else (-2, -1), keepdims=True)
    return np.divide(norms, mean, out=np.zeros_like(norms), where=mean > 0)


def counts(norms: np.ndarray, lam: float, scope: str = "head") -> np.ndarray:
    """Massive entries of M, (..., L, H, D), by layer, shape (..., L)."""
    return (norm_ratios(norms, scope) > lam).sum(axis=(-2, -1))


def massive_total(tensor: str, lam: float, norms: Mapping[str, np.ndarray]) -> np.ndarray:
    """Massive entries of one tensor, as a statistic."""
    return np.asarray(counts(norms[tensor], lam).sum(axis=-1))


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
