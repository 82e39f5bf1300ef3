"""What the model loses without each super weight, against its matched controls."""

from __future__ import annotations

from math import inf

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from studfinder.records import Effect, Findings, SuperWeight
from studfinder.report.profile import Profile
from studfinder.report.style import BLUE, GREY, INK, MUTED, VERMILLION, WIDE, log_ticks, new_figure
from studfinder.report.words import brief, count

MOST_ROWS = 16


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether there was a proof."""
    return bool(tested(findings))


def tested(findings: Findings) -> list[SuperWeight]:
    """The weights that were tested, the one that matters most first."""
    weights = [weight for weight in findings.super_weights if weight.effect is not None]
    return sorted(weights, key=lambda weight: -weight.effect.kl.value)  # type: ignore[union-attr]


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """A row a weight: its KL with its interval, and the KL of every control, on one log axis."""
    weights = tested(findings)[:MOST_ROWS]
    joint = findings.proof.joint if findings.proof else None
    rows: list[tuple[str, Effect, str]] = [(brief(w), w.effect, w.verdict) for w in weights if w.effect is not None]
    if joint is not None and len(rows) > 1:
        rows.insert(0, ("all of them at once", joint, "joint"))
    wide = width > 600
    figure = new_figure(width, (96 if wide else 170) + (27 if wide else 24) * len(rows))
    axes = figure.add_subplot()
    floor = findings.proof.floor if findings.proof else 0.01
    left, right = _limits(rows, floor)
    for y, (_, effect, verdict) in enumerate(rows):
        _row(axes, y, effect, verdict, (left, right))
        if wide:
            text = f"perplexity × {effect.perplexity_ratio.value:.3g}"
            axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), va="center", color=MUTED)
    axes.axvline(floor, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xscale="log", xlim=(left, right), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel("KL(clean || without the weight), nats per token" if wide else "KL, nats per token")
    log_ticks(axes.xaxis, most=8 if wide else 4)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    figure.legend(handles=_key(rows, floor), loc="outside upper left", ncols=5 if wide else 1, borderaxespad=0.2)
    return figure


def _limits(rows: list[tuple[str, Effect, str]], floor: float) -> tuple[float, float]:
    kls = [floor]
    for _, effect, _ in rows:
        kls += [kl for kl in (effect.kl.low, effect.kl.value, effect.kl.high, *effect.control_kls) if 0 < kl < inf]
    return max(min(kls) / 2, floor * 1e-5), max(kls) * 2


def _row(axes: Axes, y: int, effect: Effect, verdict: str, limits: tuple[float, float]) -> None:
    def seen(kl: float) -> float:  # a control can gain by chance, and a loss can be infinite: both stand at the edge
        return min(max(kl, limits[0] * 1.06), limits[1] / 1.06)

    axes.plot([seen(kl) for kl in effect.control_kls], [y] * len(effect.control_kls), "|", color=GREY, markersize=11)
    colour = {"proven": VERMILLION, "proven-jointly": VERMILLION, "joint": INK}.get(verdict, BLUE)
    axes.plot([seen(effect.kl.low), seen(effect.kl.high)], [y, y], color=colour, linewidth=2.2)
    solid = verdict in ("proven", "joint")
    axes.plot(seen(effect.kl.value), y, "o", color=colour, markersize=8.5, mfc=colour if solid else "none", mew=1.8)
    if effect.marginal_kl is not None and verdict == "proven-jointly":
        axes.plot(seen(effect.marginal_kl.value), y, "D", color=colour, markersize=6.5)


def _key(rows: list[tuple[str, Effect, str]], floor: float) -> list[Line2D]:
    key = [
        Line2D([], [], color=VERMILLION, marker="o", markersize=8, linewidth=2.2, label="proven weight"),
        Line2D([], [], color=BLUE, marker="o", markersize=8, mfc="none", mew=1.8, linewidth=2.2, label="not proven"),
        Line2D([], [], color=GREY, marker="|", markersize=11, linewidth=0, mew=1.5, label="a control"),
        Line2D([], [], color=INK, linewidth=1, linestyle=(0, (4, 3)), label=f"floor ({floor:g} nats)"),
    ]
    if any(verdict == "proven-jointly" for _, _, verdict in rows):
        share = Line2D(
            [], [], color=VERMILLION, marker="D", markersize=6.5, linewidth=0, label="proven jointly: share of the set"
        )
        key.insert(1, share)
    return key


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    parts = []
    for weight in tested(findings)[:MOST_ROWS]:
        effect = weight.effect
        assert effect is not None
        largest = max(effect.control_kls, default=None)
        controls = "" if largest is None else f", largest of {count(len(effect.control_kls), 'control')} {largest:.2g}"
        parts.append(f"{weight}: KL {effect.kl}{controls}, {weight.verdict}")
    return "Dot plot of KL in nats per token on a log axis. " + "; ".join(parts) + "."
