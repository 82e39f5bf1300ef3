"""The skyline: what rounding each fused group alone costs, one tower a group, the tallest named with their cause, and
those that hold a super weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.records import Findings, Result, Sensitivity
from studfinder.report.style import BLUE, GREEN, GREY, INK, PURPLE, VERMILLION, new_figure, styled

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
        holds: the super weight in it, as it is printed; "" for none.
    """

    layer: int
    kind: str
    kl: float
    why: str = ""
    holds: str = ""

    @property
    def name(self) -> str:
        """As tables have it."""
        return f"L{self.layer} {self.kind}"

    @property
    def words(self) -> str:
        """What is said of it."""
        return "; ".join(
            [*([f"holds the super weight {self.holds}"] if self.holds else []), *filter(None, (self.why,))]
        )


@dataclass(frozen=True, kw_only=True)
class Skyline:
    """What every group of a model costs.

    Attributes:
        towers: a group each.
        stored_as: the format they are rounded to, in words.
        source: where that was measured or predicted, in words.
    """

    towers: tuple[Tower, ...]
    stored_as: str
    source: str

    def draw(self, width: float) -> Figure:
        """At a width in CSS pixels."""
        with styled():
            return _draw(self.towers, width, y=f"KL alone in {self.stored_as}, nats per token")

    def describe(self) -> str:
        """In words."""
        return _said(self.towers, f"What rounding each group alone to {self.stored_as} costs")


def skyline_of(costs: Sensitivity | Result, findings: Findings | None = None) -> Skyline | None:
    """The skyline of a plan's costs, or of a which-layer experiment; None where they hold none.

    Args:
        findings: of the same model, whose proven super weights are named.
    """
    if isinstance(costs, Sensitivity):
        stored_as, towers = _of_costs(costs)
        source = "from one backward pass, measured where the plan measured it"
    else:
        of = [data.get("groups", ()) for data in costs.data.values() if isinstance(data, dict)]
        towers = [Tower(layer=layer, kind=kind, kl=max(kl, 0.0)) for groups in of[:1] for layer, kind, kl in groups]
        bits = (costs.run.settings.get(name) for name in ("element", "block"))
        stored_as = "-g".join(str(one) for one in bits if one) or "few bits"
        source = f"measured by {costs.name}"
    proven = findings.proven if findings is not None else ()
    held = {(w.layer, part): f"[{w.row}, {w.col}]" for w in reversed(proven) for part in w.parameter.split(".")}
    named = (
        next((held[one.layer, part] for part in one.kind.split("+") if (one.layer, part) in held), "") for one in towers
    )
    whole = tuple(replace(one, holds=name) for one, name in zip(towers, named, strict=True))
    return Skyline(towers=whole, stored_as=stored_as, source=source) if whole else None


def _of_costs(costs: Sensitivity) -> tuple[str, list[Tower]]:
    """In the format that most groups have as their first, the one that is dearest; measured where it was."""
    names = Counter(one.costs[0].stored_as for one in costs.groups if one.costs)
    if not names:
        return "", []
    name = max(names, key=lambda one: names[one])
    towers = [
        Tower(layer=group.layer, kind=group.name.rpartition(".")[2], kl=cost.nats, why=group.why)
        for group in costs.groups
        for cost in group.costs
        if cost.stored_as == name
    ]
    return name, towers


def _draw(towers: Sequence[Tower], width: float, *, y: str) -> Figure:
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
    first = sorted(towers, key=lambda one: (not one.holds, -one.kl))[: _NAMED if wide else 2]
    tallest = sorted(first, key=lambda one: one.layer)
    left, right = axes.get_xlim()
    for place, one in enumerate(tallest):
        x = one.layer - 0.43 + step * (kinds.index(one.kind) + 0.5)
        said = one.words if wide else "super weight" if one.holds else ""
        words = one.name + (f": {said}" if said else "")
        late = x > (left + right) / 2
        axes.annotate(
            words if len(words) < 60 else words[:58] + "…",
            (x, one.kl),
            xycoords="data",
            xytext=(x, axes.get_ylim()[1] * (0.98 - 0.055 * place)),
            ha="right" if late else "left",
            va="top",
            color=INK,
            fontsize=9,
            weight="bold" if one.holds else "normal",
            arrowprops={"arrowstyle": "-", "color": GREY, "linewidth": 0.8, "shrinkB": 0, "relpos": (late, 0)},
        )


def _said(towers: Sequence[Tower], what: str) -> str:
    """In words."""
    tallest = sorted(towers, key=lambda one: -one.kl)[:3]
    named = ", ".join(f"{one.name} ({one.kl:.3g}{'; ' + one.words if one.words else ''})" for one in tallest)
    return f"{what}, one tower a fused group, by layer. The tallest: {named}."
