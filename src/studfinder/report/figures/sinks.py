"""How much attention each head pays to the first token."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.records import Findings
from studfinder.report.profile import Profile
from studfinder.report.style import RAMP, RULE, WIDE, new_figure


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether attention could be read."""
    return "sink" in profile


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """Heads by layers; orange above the threshold."""
    sink = np.nan_to_num(profile["sink"], posinf=0.0)
    layers = [int(layer) for layer in profile["sink.layers"]]
    threshold = findings.summary.thresholds.get("sink", 0.3)
    figure = new_figure(width, 150 + min(320, max(60, 22 * sink.shape[1])))
    axes = figure.add_subplot()
    norm = TwoSlopeNorm(vmin=0, vcenter=threshold, vmax=1)
    image = axes.imshow(sink.T, cmap=RAMP, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_xlabel("layer")
    axes.set_ylabel("head")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ticks = [int(t) for t in MaxNLocator(10, integer=True).tick_values(0, len(layers) - 1) if 0 <= t < len(layers)]
    axes.set_xticks(ticks, [str(layers[tick]) for tick in ticks])
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, ax=axes, orientation="horizontal", shrink=0.5, aspect=40)
    bar.set_label(f"share of attention on the first token; a sink above {threshold:.0%}")
    bar.set_ticks([0, threshold, 1], labels=["0", f"{threshold:.0%}", "100%"])
    bar.outline.set_edgecolor(RULE)
    return figure


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    heads, sinks = findings.summary.sink_heads, len(findings.attention_sinks)
    strongest = max(findings.attention_sinks, key=lambda sink: sink.strength, default=None)
    text = f"Heat map of attention to the first token by layer and head: {sinks} of {heads} heads are sinks."
    if strongest is not None:
        text += f" The strongest is head {strongest.head} of layer {strongest.layer} with {strongest.strength:.0%}."
    return text
