"""One figure a file. Each has `draw(findings, profile, width=...)`, which returns a matplotlib Figure, and
`describe(findings, profile)`, which says in words what it shows."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from matplotlib.figure import Figure

from studfinder.records import Findings
from studfinder.report.profile import Profile
from studfinder.report.style import WIDE, styled

FIGURES = {
    "effects": "studfinder.report.figures.effects",
    "scores": "studfinder.report.figures.scores",
    "iceberg": "studfinder.report.figures.iceberg",
    "places": "studfinder.report.figures.places",
    "predicted": "studfinder.report.figures.predicted",
    "depth": "studfinder.report.figures.depth",
    "picture": "studfinder.report.figures.picture",
    "ranges": "studfinder.report.figures.ranges",
    "spikes": "studfinder.report.figures.spikes",
    "maps": "studfinder.report.figures.maps",
    "sinks": "studfinder.report.figures.sinks",
}


def available(findings: Findings, profile: Profile) -> tuple[str, ...]:
    """The figures that these results have something for, in the order of the page."""
    return tuple(name for name in FIGURES if _module(name).applies(findings, profile))


def draw(name: str, findings: Findings, profile: Profile, *, width: float = WIDE) -> Figure:
    """One figure by name, at a width in CSS pixels."""
    with styled():
        return _module(name).draw(findings, profile, width=width)


def describe(name: str, findings: Findings, profile: Profile) -> str:
    """What the figure shows, in words: its alternative text."""
    return _module(name).describe(findings, profile)


def _module(name: str) -> ModuleType:
    return import_module(FIGURES[name])
