"""The skyline: what rounding each fused group alone costs, one tower a group, the tallest named with their cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.report.style import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION, new_figure

_COLOURS = (VERMILLION, BLUE, GREEN, PURPLE)
_NAMED = 4
"""Towers that are named."""


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A fused group.

    Attributes:
        layer: where it stands.
        kind: what it is called in every layer, e.g. "down_proj".
        kl: nats per token.
        why: what is known of its cause; "" for nothing.
    """

    layer: int
    kind: str
    kl: float
    why: str = ""

    @property
    def name(self) -> str:
        """As tables have it."""
        return f"L{self.layer} {self.kind}"


def draw_skyline(towers: Sequence[Tower], width: float, *, y: str) -> Figure:
    """A block a layer, with a tower for each group in it, kinds from left to right.

    Args:
        y: what the height is, with its unit.
    """
    wide = width > 600
    kinds = list(dict.fromkeys(one.kind for one in towers))
    colours = dict(zip(kinds, [*_COLOURS, *[GREY] * len(kinds)], strict=False))
    step = 0.86 / max(len(kinds), 1)
    figure = new_figure(width, 400 if wide else 360)
    axes = figure.add_subplot()
    for place, kind in enumerate(kinds):
        own = [one for one in towers if one.kind == kind]
        x = np.array([one.layer for one in own]) - 0.43 + step * (place + 0.5)
        axes.bar(x, [one.kl for one in own], width=step * 0.92, color=colours[kind], label=kind.replace("_proj", ""))
    top = max((one.kl for one in towers), default=1.0) or 1.0
    axes.set_ylim(0, top * 1.32)
    layers = [one.layer for one in towers]
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(10 if wide else 6, integer=True))
    axes.set_xlabel("layer")
    axes.set_ylabel(y)
    axes.grid(axis="y")
    _names(axes, towers, kinds, step, wide)
    figure.legend(loc="outside upper left", ncols=5 if wide else 3, borderaxespad=0.2)
    return figure


def _names(axes: Axes, towers: Sequence[Tower], kinds: Sequence[str], step: float, wide: bool) -> None:
    """The tallest, from left to right, each at a height of its own so that no two names meet."""
    tallest = sorted(sorted(towers, key=lambda one: -one.kl)[: _NAMED if wide else 2], key=lambda one: one.layer)
    left, right = axes.get_xlim()
    for place, one in enumerate(tallest):
        x = one.layer - 0.43 + step * (kinds.index(one.kind) + 0.5)
        words = one.name + (f": {one.why}" if one.why and wide else "")
        late = x > (left + right) / 2
        axes.annotate(
            words if len(words) < 60 else words[:58] + "…",
            (x, one.kl),
            xycoords="data",
            xytext=(x, axes.get_ylim()[1] * (0.98 - 0.055 * place)),
            ha="right" if late else "left",
            va="top",
            color=INK,
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkB": 0},
        )


def said_of_skyline(towers: Sequence[Tower], what: str) -> str:
    """In words."""
    tallest = sorted(towers, key=lambda one: -one.kl)[:3]
    named = ", ".join(f"{one.name} ({one.kl:.3g}{'; ' + one.why if one.why else ''})" for one in tallest)
    return f"{what}, one tower a fused group, by layer. The tallest: {named}."
