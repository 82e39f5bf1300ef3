"""Where massive activations first appear, what they are there, and how they are set: learnt from our own prompts, which
nothing is scored on."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from studfinder.errors import StudfinderError
from studfinder.experiments.massive_reading import conditions, ids_of, least_massive, read_residual
from studfinder.models import LM
from studfinder.sites import Replacement, Site, tapped
from studfinder.texts import WHOLE, default_prompts

StandIns = Mapping[int, Mapping[int, int]]
"""By layer and massive dim, the dim that is changed in its place."""


@dataclass(frozen=True)
class Onset:
    """The dims that hold massive activations on our prompts, and where.

    Attributes:
        layers: by dim, those after which it holds any; the dims with most entries first.
        least: by layer, what |a| must exceed (the mean over prompts).
        means: by (dim, layer), the mean value of its massive entries, at first tokens and at others; where there are
            none, the mean over both.
        sizes: by (dim, layer), the mean of |a| of every dim at the tokens where this one is massive, shape (C,).
        medians: by layer, of |a|.
    """

    layers: dict[int, tuple[int, ...]]
    least: dict[int, float]
    means: dict[tuple[int, int], tuple[float, float]]
    sizes: dict[tuple[int, int], torch.Tensor]
    medians: dict[int, float]

    @property
    def dims(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(self.layers)

    @property
    def layer(self) -> int:
        """The first layer after which there are any."""
        return min(min(layers) for layers in self.layers.values())

    @property
    def last(self) -> int:
        """The last layer after which there are any."""
        return max(max(layers) for layers in self.layers.values())

    def tokens(self, layer: int, hidden_TC: torch.Tensor) -> torch.Tensor:
        """Which tokens hold a massive activation after a layer, shape (T,)."""
        dims = [dim for dim, layers in self.layers.items() if layer in layers]
        return (hidden_TC[:, dims].abs().float() > self.least[layer]).any(dim=-1)


def onset_of(lm: LM, *, bos: bool) -> Onset:
    """The onset of massive activations on our default prompts, each window by its own median. Raises StudfinderError
    if there are none."""
    values: dict[tuple[int, int], dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    sizes: dict[tuple[int, int], torch.Tensor] = {}
    medians: dict[int, list[float]] = defaultdict(list)
    nearest = 0.0

    def see(layer: int, hidden_TC: torch.Tensor, median: float) -> None:
        nonlocal nearest
        if layer < 0:
            return
        size_TC = hidden_TC.abs().float()
        medians[layer].append(median)
        nearest = max(nearest, float(size_TC.max()) / least_massive(median))
        massive_TC = size_TC > least_massive(median)
        for dim in massive_TC.any(dim=0).nonzero()[:, 0].tolist():
            for position in massive_TC[:, dim].nonzero()[:, 0].tolist():
                values[dim, layer][position == 0].append(float(hidden_TC[position, dim]))
            total_C = size_TC[massive_TC[:, dim]].sum(dim=0).cpu()
            sizes[dim, layer] = total_C + sizes.get((dim, layer), 0.0)

    for ids in ids_of(lm, default_prompts(), WHOLE, bos=bos):
        read_residual(lm, ids, see)
    if not values:
        raise StudfinderError(
            f"{lm.source.id} has no massive activation on our prompts: the nearest has {nearest:.2g} times the size "
            "that makes one",
            expected="|a| above 100 and above 1,000 times the median",
            do="See studfinder scan, or choose another model",
        )
    entries = {place: len(found[True]) + len(found[False]) for place, found in values.items()}
    often: Counter[int] = Counter()
    for (dim, _), n in entries.items():
        often[dim] += n
    medians_L = {layer: sum(found) / len(found) for layer, found in medians.items()}
    means = {}
    for place, found in values.items():
        first, other = (sum(v) / len(v) for v in (found[True] or found[False], found[False] or found[True]))
        means[place] = (first, other)
    return Onset(
        layers={dim: tuple(sorted(layer for own, layer in values if own == dim)) for dim, _ in often.most_common()},
        least={layer: least_massive(median) for layer, median in medians_L.items()},
        means=means,
        sizes={place: total_C / entries[place] for place, total_C in sizes.items()},
        medians=medians_L,
    )


def onsets(lm: LM) -> tuple[dict[str, tuple[bool, Onset]], list[str]]:
    """By condition (see `conditions`) whether it has BOS, and its onset; and why a condition has none. Raises
    StudfinderError if none has."""
    found: dict[str, tuple[bool, Onset]] = {}
    missing: dict[str, StudfinderError] = {}
    for label, bos in conditions(lm).items():
        try:
            found[label] = (bos, onset_of(lm, bos=bos))
        except StudfinderError as error:
            missing[label] = error
    if not found:
        raise next(iter(missing.values()))
    return found, [f"{label}: {error}" for label, error in missing.items()]


def stand_ins(onset: Onset, dims: Sequence[int], kind: str, seed: int = 0) -> StandIns:
    """As many other dims, at the same layers and tokens: "random" ones (the same in all layers), those "like" them,
    which are the next largest there, or those nearest the "median".

    Raises:
        StudfinderError: more than half of the dims are massive.
    """
    width = len(next(iter(onset.sizes.values())))
    if 2 * len(onset.dims) > width:
        raise StudfinderError(f"{len(onset.dims)} of {width} dims are massive", expected="at most half of them")
    drawn_C = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    found: dict[int, dict[int, int]] = {}
    for layer in sorted({layer for dim in dims for layer in onset.layers[dim]}):
        here = [dim for dim in dims if layer in onset.layers[dim]]
        size_C = torch.stack([onset.sizes[dim, layer] for dim in here]).mean(dim=0)
        scores = {"random": drawn_C, "like": size_C, "median": -(size_C - onset.medians[layer]).abs()}
        free_C = scores[kind].index_fill(0, torch.tensor(onset.dims), float("-inf"))
        # Of all dims that are asked for, so that a random one is the same wherever its own is massive.
        best = free_C.topk(len(dims)).indices.tolist()
        found[layer] = {dim: best[list(dims).index(dim)] for dim in here}
    return found


@contextmanager
def set_massive(
    lm: LM,
    onset: Onset,
    dims: Sequence[int],
    *,
    to_mean: bool = False,
    instead: StandIns | None = None,
    layers: Sequence[int] = (),
) -> Iterator[None]:
    """Wherever one of the dims is massive, after every layer where it was on our prompts, that entry is zero, or the
    mean of its dim and layer. Padding stands on the right, where no real token sees it.

    Args:
        to_mean: the mean, not zero.
        instead: change these at its token, in its place.
        layers: only after these.

    Raises:
        StudfinderError: the model ran and nothing was massive.
    """
    calls = changed = 0

    def after(layer: int) -> Replacement:
        here = [dim for dim in dims if layer in onset.layers[dim]]

        def replace(hidden_BTC: torch.Tensor) -> torch.Tensor:
            nonlocal calls, changed
            calls += 1
            new_BTC = hidden_BTC.clone()
            for dim in here:
                there_BT = hidden_BTC[..., dim].abs().float() > onset.least[layer]
                changed += int(there_BT.sum())
                first, other = onset.means[dim, layer] if to_mean else (0.0, 0.0)
                put_T = torch.full((hidden_BTC.shape[1],), other, dtype=hidden_BTC.dtype, device=hidden_BTC.device)
                put_T[0] = first
                own = dim if instead is None else instead[layer][dim]
                new_BTC[..., own] = torch.where(there_BT, put_T, hidden_BTC[..., own])
            return new_BTC

        return replace

    every = sorted({layer for dim in dims for layer in onset.layers[dim]})
    with tapped(lm, replace={Site("residual", layer): after(layer) for layer in layers or every}):
        yield
    if calls and not changed:
        raise StudfinderError(f"no activation of dims {list(dims)} was massive on these items", expected="at least one")
