"""card.png: what a page says, as the picture that is shown where its address is shared."""

from __future__ import annotations

import io
import textwrap
import warnings

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

from studfinder.report.style import INK, MUTED, PAPER, VERMILLION, styled
from studfinder.visible import visible

_WIDTH, _HEIGHT = 1200, 630
"""Pixels, as sites that show a link want them."""
_SIZES = ((70, 30, 46), (130, 24, 58), (10**6, 19, 74))
"""Up to so many letters a title has a size in points, and so many letters a line."""
_LINES = 4


def sharing_card(*, title: str, about: str, foot: str, picture: Figure | None = None) -> bytes:
    """A PNG of 1200 x 630 pixels.

    Args:
        title: what was found, in a sentence or two; its end is left out where there is no room.
        about, foot: of what kind it is, and of which model.
        picture: the figure that says most.
    """
    title = visible(title)
    size, letters = next((size, letters) for most, size, letters in _SIZES if len(title) <= most)
    lines = textwrap.wrap(title, letters, max_lines=_LINES, placeholder=" …")
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name may be in letters that no font here has
        card = Figure(figsize=(_WIDTH / 100, _HEIGHT / 100), dpi=100, facecolor=PAPER)
        card.text(0.04, 0.93, "studfinder", color=INK, fontsize=15, weight="bold", va="center")
        card.text(0.96, 0.93, visible(about), color=MUTED, fontsize=13, va="center", ha="right")
        card.text(0.04, 0.86, "\n".join(lines), color=INK, fontsize=size, family="serif", va="top", linespacing=1.25)
        card.text(0.04, 0.045, visible(foot)[:110], color=MUTED, fontsize=13, va="center")
        card.add_artist(Line2D([0, 1], [0.995, 0.995], color=VERMILLION, linewidth=7))
        if picture is not None:
            top = 0.83 - len(lines) * size * 1.25 / 72 / (_HEIGHT / 100)
            _place(card, picture, top)
        buffer = io.BytesIO()
        card.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _place(card: Figure, picture: Figure, top: float) -> None:
    """The picture as large as it can be between the title and the foot."""
    room = (0.92 * _WIDTH, (top - 0.1) * _HEIGHT)
    width, height = picture.get_size_inches()
    dpi = min(room[0] / width, room[1] / height)
    buffer = io.BytesIO()
    picture.savefig(buffer, format="png", dpi=2 * dpi)
    buffer.seek(0)
    share = (dpi * width / _WIDTH, dpi * height / _HEIGHT)
    axes = card.add_axes((0.5 - share[0] / 2, top - share[1], *share))
    axes.imshow(np.asarray(imread(buffer)), aspect="auto", interpolation="antialiased")
    axes.set_axis_off()
