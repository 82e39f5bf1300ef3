"""The look of figures: one palette, and how a matplotlib figure becomes an inline SVG that follows the page's theme."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from typing import Any, TypeVar

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from studfinder.errors import in_a_line, known
from studfinder.visible import say

Drawn = TypeVar("Drawn")

WIDE, NARROW = 980, 358
"""Widths in CSS pixels: of a figure file and a wide screen, and of a phone."""

INK, MUTED, RULE, PAPER = "#1c2026", "#666c75", "#dcd9d2", "#fffefc"
# Okabe and Ito's colours, which colour-blind people can tell apart.
VERMILLION, BLUE, GREEN, PURPLE, ORANGE, GREY = "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#9a9fa8"
SKY = "#56b4e9"
CATEGORIES = (VERMILLION, BLUE, GREEN, PURPLE)
MARKERS = ("o", "s", "^", "D")
KIND_LOOKS = {
    "gain": (VERMILLION, "o"),
    "down projection": (BLUE, "s"),
    "other weight": (GREEN, "^"),
    "bias": (PURPLE, "D"),
    "head": (ORANGE, "v"),
    "embedding": (MUTED, "X"),
}
"""Colour and marker of each kind of number, the same in every figure."""

_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    RULE: "--rule",
    PAPER: "--paper",
    VERMILLION: "--vermillion",
    BLUE: "--blue",
    GREEN: "--green",
    PURPLE: "--purple",
    ORANGE: "--orange",
    SKY: "--sky",
    GREY: "--grey",
}
_STYLE = {
    "font.size": 12.5,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 12.5,
    "axes.titlecolor": INK,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.labelcolor": MUTED,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.6,
    "text.color": INK,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.solid_capstyle": "butt",
    "svg.fonttype": "none",
    "path.simplify": True,
    "text.parse_math": False,  # a $ in a model's name is a $
}

RAMP = LinearSegmentedColormap.from_list(
    "below and above a threshold",
    [
        (0.0, "#f3f1ec"),
        (0.25, "#a9c0d6"),
        (0.4999, "#2f6496"),
        (0.5001, "#f0a93b"),
        (0.75, VERMILLION),
        (1.0, "#702c00"),
    ],
)
"""Blue below the threshold, orange above it; the page's own ramps are in page.css."""


def log_ticks(axis: Axis, *, most: int = 8) -> None:
    """Ticks of a log axis, its limits being set, as plain numbers: 10,000 and 0.001."""
    low, high = axis.get_view_interval()
    if not 0 < low < high < inf:  # nothing that a log axis can show
        return
    if high / low < 4:  # too little for decades
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    else:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 60 else (1,), numticks=most))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float, _: object) -> str:
    return f"{value:,.12g}" if value >= 1 else f"{value:.10f}".rstrip("0")


@contextmanager
def styled(**more: Any) -> Iterator[None]:
    """Our settings for the time of drawing; the user's own stay untouched."""
    with rc_context({**_STYLE, **more}):
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of that many CSS pixels (one SVG unit each). No pyplot: nothing global is touched."""
    return Figure(figsize=(width / 72, height / 72), layout=ConstrainedLayoutEngine(w_pad=4 / 72, h_pad=4 / 72))


def attempted(name: str, draw: Callable[[], Drawn]) -> Drawn | None:
    """What `draw` gives. Where it fails, the figure is named on stderr, and None: numbers that took hours to make are
    not lost to a picture of them. Memory and disks that ended are raised."""
    try:
        return draw()
    except Exception as error:  # matplotlib raises many kinds
        if known(error) is not None:
            raise
        say(f"studfinder: note: figure {name} cannot be drawn ({in_a_line(error)})", file=sys.stderr)
        return None


def rendered(figure: Figure, *, kind: str, name: str) -> bytes:
    """A figure as the bytes of a file; arguments as of `save`."""
    buffer = io.BytesIO()
    save(figure, buffer, kind=kind, name=name)
    return buffer.getvalue()


def save(figure: Figure, path: Any, *, kind: str, name: str) -> None:
    """Write a figure as "png" (twice the pixels) or "svg" (text stays text, the same bytes every time)."""
    with styled(**{"svg.hashsalt": name}):
        metadata = {"Date": None} if kind == "svg" else None
        figure.savefig(path, format=kind, dpi=144 if kind == "png" else 72, metadata=metadata)


def inline_svg(figure: Figure, *, name: str, title: str, description: str, css: str) -> Markup:
    """A figure as an `<svg>` element whose colours are the page's variables.

    Args:
        name: unique in the page; ids are made from it.
        title, description: what a screen reader says.
        css: its class.
    """
    buffer = io.StringIO()
    with styled(**{"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    view = re.search(r'viewBox="([^"]+)"', text)
    assert view is not None
    body = text[text.index(">", view.end()) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"\n\s*", "\n", body).replace("xlink:href", "href")
    used = set(re.findall(r'#([\w.]+)["\')]', body))  # the others are numbered alike in every figure
    body = re.sub(r' id="([\w.]+)"', lambda match: match[0] if match[1] in used else "", body)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, f"var({variable})")
    return Markup(  # matplotlib's own output; what comes from outside is escaped
        f'<svg class="{escape(css)}" viewBox="{escape(view[1])}" role="img" '
        f'aria-labelledby="{escape(name)}-t {escape(name)}-d">'
        f'<title id="{escape(name)}-t">{escape(title)}</title>'
        f'<desc id="{escape(name)}-d">{escape(description)}</desc>{body}</svg>'
    )
