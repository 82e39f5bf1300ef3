"""The papers' picture: |a| of the residual stream over tokens and dims, where the largest number stands
(Sun et al. 2024, figure 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.records import Findings
from studfinder.report.profile import Profile, magnitude
from studfinder.report.style import BLUE, GREY, INK, RULE, VERMILLION, WIDE, new_figure
from studfinder.report.words import number, shorten, token
from studfinder.visible import visible

_STEMS = 400
"""Entries that are drawn as stems, the largest; the others would not rise above the ground."""
_NAMED = 3
"""Dims that are named."""


def applies(findings: Findings, profile: Profile) -> bool:
    """Whether the scan kept such a picture (earlier ones did not), and something finite is in it."""
    return "residual.picture" in profile and bool(np.isfinite(magnitude(profile["residual.picture"])).any())


def _peaks(size_TC: np.ndarray) -> list[int]:
    """Dims with the largest |a|, the first one first."""
    most_C = size_TC.max(axis=0)
    return [int(dim) for dim in np.argsort(-most_C)[:_NAMED] if most_C[dim] > 0.1 * most_C.max()]


def draw(findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """Stems over a floor of tokens and dims."""
    wide = width > 600
    size_TC = np.nan_to_num(magnitude(profile["residual.picture"]))
    tokens, dims = size_TC.shape
    figure = new_figure(width, 440 if wide else 330)
    figure.set_layout_engine("none")  # it leaves a solid half of the room
    axes: Any = figure.add_axes((0.0, 0.02, 0.9, 1.0) if wide else (0.0, 0.05, 0.84, 1.0), projection="3d")
    axes.set_box_aspect((2.3 if wide else 1.4, 1.2, 1.0), zoom=1.25 if wide else 1.0)
    peaks = _peaks(size_TC)
    for row in range(tokens):
        axes.plot([0, dims], [row, row], [0, 0], color=RULE, linewidth=0.8)
    for flat in np.argsort(-size_TC, axis=None)[:_STEMS][::-1]:
        row, dim = divmod(int(flat), dims)
        colour = VERMILLION if dim in peaks else BLUE
        axes.plot([dim, dim], [row, row], [0, size_TC[row, dim]], color=colour, linewidth=2.2 if dim in peaks else 1)
    for dim in peaks:
        row = int(size_TC[:, dim].argmax())
        axes.text(
            dim, row, size_TC[row, dim], f" dim {dim}: {number(float(size_TC[row, dim]))}", color=INK, fontsize=10
        )
    axes.set_xlabel("dim", labelpad=10)
    axes.set_zlabel("|a|", labelpad=8)
    axes.set_yticks(
        range(tokens), [shorten(visible(one.strip() or one), 12) for one in _tokens(findings, profile)], fontsize=9
    )
    axes.tick_params(axis="y", pad=-2)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.zaxis.set_major_locator(MaxNLocator(4))
    axes.zaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set(ylim=(0, tokens - 1), xlim=(0, dims), zlim=(0, 1.05 * float(size_TC.max())))
    axes.view_init(elev=22, azim=-62)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_visible(False)
        axis.line.set_color(GREY)
        axis._axinfo["grid"].update(color=RULE, linewidth=0.5)
    return figure


def _tokens(findings: Findings, profile: Profile) -> list[str]:
    count, start = len(profile["residual.picture"]), int(profile["residual.picture.where"][2])
    return list(findings.summary.pictured[:count]) or [f"position {start + row}" for row in range(count)]


def describe(findings: Findings, profile: Profile) -> str:
    """In words."""
    layer, prompt, start = map(int, profile["residual.picture.where"])
    size_TC = np.nan_to_num(magnitude(profile["residual.picture"]))
    rows = [int(size_TC[:, dim].argmax()) for dim in _peaks(size_TC)]
    named = _tokens(findings, profile)
    parts = [
        f"dim {dim}: {number(float(size_TC[row, dim]))} at token {token(named[row])}, position {start + row}"
        for dim, row in zip(_peaks(size_TC), rows, strict=True)
    ]
    return f"|a| after layer {layer} by token and dim, prompt {prompt}. The largest: {'; '.join(parts)}."
