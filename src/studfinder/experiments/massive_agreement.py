"""Whether heads share their largest dims, in all layers at once: beyond what sharing a rotary band explains.

The k = D/32 largest dims of every head of a layer; their overlap is the mean over pairs of heads. The null shuffles the
dims of each head by itself, and only among those of the same band (that turn in training, or never do): where massive
values lie in slow dims anyway, heads that chose theirs at random among those would overlap too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from studfinder.records import Interval

_DRAWS = 1999


@dataclass(frozen=True, kw_only=True)
class LayersAgreement:
    """How far heads agree, over the layers of a model.

    Attributes:
        overlap, null: mean over layers of the overlap, and of the mean that shuffled dims give.
        excess: the one less the other; its ends hold it against the null's own spread, so that they leave out 0 where p
            is below 0.025. Every layer of the model is seen, and none is drawn.
        p: the share of draws whose sum over all layers is as large.
        agreeing: layers whose own p, times their number, is below 0.05.
        layers: how many.
    """

    overlap: float
    null: float
    excess: Interval
    p: float
    agreeing: int
    layers: int


def layers_agreement(
    norm_LHD: np.ndarray, slow_LD: np.ndarray, seed: int = 0, *, groups: int | None = None
) -> LayersAgreement | None:
    """Of M by layer; None where there are no two heads to compare.

    Args:
        slow_LD: which dims never turn, bool; all alike where there is no rotation.
        groups: compare only heads of different groups, each of so many neighbours as make so many groups; each head is
            one by itself unless told.
    """
    layers, heads, dims = norm_LHD.shape
    groups = groups or heads
    if groups < 2:
        return None
    k = max(1, dims // 32)
    chosen_LHD = np.argsort(np.argsort(-norm_LHD, axis=-1), axis=-1) < k
    overlap_L = _overlap(chosen_LHD.reshape(layers, groups, -1, dims).sum(axis=2), heads, k)
    generator = np.random.default_rng(seed)
    null_NL = np.stack([_shuffled(*of, k, groups, generator) for of in zip(chosen_LHD, slow_LD, strict=True)], axis=1)
    null_N = null_NL.mean(axis=1)
    most, least = np.quantile(null_N, [0.975, 0.025])
    overlap = float(overlap_L.mean())
    own_p_L = (1 + (null_NL >= overlap_L - 1e-9).sum(axis=0)) / (1 + _DRAWS)
    return LayersAgreement(
        overlap=overlap,
        null=float(null_N.mean()),
        excess=Interval(
            value=overlap - float(null_N.mean()),
            low=overlap - float(most),
            high=overlap - float(least),
            level=0.95,
            n=layers,
            method=f"{_DRAWS} draws of shuffled dims",
        ),
        p=float((1 + (null_N >= overlap - 1e-9).sum()) / (1 + _DRAWS)),
        agreeing=int((own_p_L * layers < 0.05).sum()),
        layers=layers,
    )


def _overlap(votes: np.ndarray, heads: int, k: int) -> np.ndarray:
    """From how many heads of each group chose each dim, (..., G, D), to the mean overlap of their choices, (...)."""
    size = heads / votes.shape[-2]
    pairs = np.square(votes.sum(axis=-2)).sum(axis=-1) - np.square(votes).sum(axis=(-2, -1))
    return np.asarray(pairs / (heads * (heads - size) * k))


def _shuffled(
    chosen_HD: np.ndarray, slow_D: np.ndarray, k: int, groups: int, generator: np.random.Generator
) -> np.ndarray:
    """The overlap with the dims of each head shuffled within their band, (draws,)."""
    heads = len(chosen_HD)
    votes_NGD = np.zeros((_DRAWS, groups, len(slow_D)))
    for band in (np.flatnonzero(slow_D), np.flatnonzero(~slow_D)):
        for head, count in enumerate(chosen_HD[:, band].sum(axis=1)):
            if count:
                drawn_NB = generator.random((_DRAWS, len(band)), dtype=np.float32)
                picked = drawn_NB.argpartition(count - 1, axis=1)[:, :count]
                votes_NGD[np.arange(_DRAWS)[:, None], head * groups // heads, band[picked]] += 1
    return _overlap(votes_NGD, heads, k)
