"""Massive values of Q, K and V by layer and dim."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.records import Findings
from studfinder.records.findings import QKV
from studfinder.report.profile import Profile, head_ratios, layers_of
from studfinder.report.style import BLUE, INK, RAMP, RULE, WIDE, new_figure
from studfinder.report.words import count


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether attention could be read."""
    return any(f"norm.{tensor}" in profile for tensor in QKV)


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """A panel a tensor: the largest M / mean over the heads of each layer, with the dims that never turn marked."""
    present = [tensor for tensor in QKV if f"norm.{tensor}" in profile]
    wide = width > 600
    shape = (1, len(present)) if wide else (len(present), 1)
    figure = new_figure(width, 400 if wide else 300 * len(present))
    lam = findings.summary.thresholds.get("lam", 5.0)
    largest = {tensor: head_ratios(profile[f"norm.{tensor}"]).max(axis=1) for tensor in present}
    top = max(2 * lam, *(float(ratio.max()) for ratio in largest.values()))
    norm = TwoSlopeNorm(vmin=0, vcenter=lam, vmax=top)
    panels = figure.subplots(*shape, squeeze=False).flat
    for axes, tensor in zip(panels, present, strict=True):
        image = axes.imshow(largest[tensor], cmap=RAMP, norm=norm, aspect="auto", interpolation="nearest")
        layers = layers_of(profile, tensor)
        ticks = [int(t) for t in MaxNLocator(6, integer=True).tick_values(0, len(layers) - 1) if 0 <= t < len(layers)]
        axes.set_yticks(ticks, [str(layers[tick]) for tick in ticks])
        axes.set_title(tensor, pad=13)
        axes.set_xlabel("dim of the head")
        axes.spines[:].set_visible(False)
        if tensor != "value" and "rotary.never_turns" in profile:
            _rotary_band(axes, profile["rotary.never_turns"])
    figure.axes[0].set_ylabel("layer")
    bar = figure.colorbar(image, ax=figure.axes, orientation="horizontal", shrink=0.5, aspect=40)
    bar.set_label(f"largest M / its head's mean; massive above {lam:g}; bar on top: dims that never turn")
    bar.set_ticks([0, lam / 2, lam, top], labels=["0", f"{lam / 2:g}", f"{lam:g}", f"{top:.0f}"])
    bar.outline.set_edgecolor(RULE)
    return figure


def _rotary_band(axes: Axes, never_LD: np.ndarray) -> None:
    share = (never_LD == 1).mean(axis=0)
    for dim in np.nonzero(share)[0]:
        axes.plot(
            [dim - 0.5, dim + 0.5],
            [1.02, 1.02],
            color=INK if share[dim] == 1 else BLUE,
            linewidth=4,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    parts = []
    for summary in findings.summary.massive_values:
        text = f"{summary.tensor}: {count(summary.entries, 'massive entry', 'massive entries')}"
        text += f" in {summary.layers_with} of {summary.layers} layers"
        if summary.slow_share is not None:
            text += f", {summary.slow_share:.0%} of them in dims that never turn ({summary.slow_base:.0%} by chance)"
        parts.append(text)
    return "Heat maps of the norms of queries, keys and values by layer, head and dim. " + "; ".join(parts) + "."
