"""Where the numbers are that a model is predicted to stand on."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from studfinder.records import CensusCard, Findings
from studfinder.report.profile import Profile
from studfinder.report.style import KIND_LOOKS, WIDE, new_figure
from studfinder.report.words import number

APART = "embedding"
"""Predicted too large by far, so that its bar would hide all others: it is told, and not drawn."""


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether a census predicts anything."""
    card = findings.census
    return card is not None and any(sums.any() for sums in _sums(card).values())


def _sums(card: CensusCard) -> dict[str, np.ndarray]:
    """By kind the sum of predicted KL in each layer, and at the end outside the layers; without the embedding."""
    layers = 1 + max((place.layer for place in card.places if place.layer is not None), default=-1)
    kinds = {place.kind for place in card.places}
    sums: dict[str, np.ndarray] = {kind: np.zeros(layers + 1) for kind in KIND_LOOKS if kind in kinds and kind != APART}
    for place in card.places:
        if place.kind in sums:
            sums[place.kind][layers if place.layer is None else place.layer] += place.predicted
    return sums


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """A bar a layer, stacked by kind, and one of what lies outside the layers."""
    card = findings.census
    assert card is not None
    sums, wide = _sums(card), width > 600
    layers = len(next(iter(sums.values()))) - 1
    x = np.append(np.arange(layers), layers + 0.5)
    figure = new_figure(width, 340 if wide else 330)
    axes = figure.add_subplot()
    bottom = np.zeros(layers + 1)
    for kind, each in sums.items():
        axes.bar(x, each, bottom=bottom, width=0.8, color=KIND_LOOKS[kind][0])
        bottom += each
    axes.set_xlim(-0.7, layers + 1.2)
    axes.set_xlabel("layer")
    axes.set_ylabel("predicted KL, summed, nats per token" if wide else "predicted KL, summed, nats")
    ticks = MaxNLocator(10 if wide else 5, integer=True).tick_values(0, max(layers - 1, 1))
    shown = [int(tick) for tick in ticks if 0 <= tick < layers - (1 if wide else layers / 8)]
    axes.set_xticks([*shown, layers + 0.5], [*map(str, shown), "outside"])
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.grid(axis="y")
    key = [Patch(color=KIND_LOOKS[kind][0], label=kind) for kind in sums]
    figure.legend(handles=key, loc="outside upper left", ncols=6 if wide else 2, borderaxespad=0.2)
    return figure


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    card = findings.census
    assert card is not None
    sums = _sums(card)
    total = np.sum(list(sums.values()), axis=0)
    outside = len(total) - 1
    names = ["outside the layers" if at == outside else f"layer {at}" for at in range(len(total))]
    most = [f"{names[at]}: {number(float(total[at]))}" for at in np.argsort(-total)[:4]]
    kinds = [f"{kind} {number(float(each.sum()))}" for kind, each in sums.items()]
    return (
        "Stacked bars of predicted KL in nats per token, summed by layer and kind, without the embedding. The largest: "
        f"{'; '.join(most)}. By kind: {', '.join(kinds)}."
    )
