"""report.html: findings and arrays to one file that needs no network."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from markupsafe import Markup

from studfinder.records import Findings
from studfinder.report import figures, tables
from studfinder.report.caveats import caveats
from studfinder.report.comparison import WIDEST
from studfinder.report.comparison import rows as comparison_rows
from studfinder.report.document import document
from studfinder.report.figures.places import APART
from studfinder.report.next_steps import next_steps
from studfinder.report.profile import Profile, pack_profile
from studfinder.report.snippets import as_keep, as_python
from studfinder.report.style import NARROW, WIDE, attempted, inline_svg
from studfinder.report.words import (
    census_sentence,
    count,
    other_lists,
    verdict_sentence,
)

_STATIC = ("effects", "scores", "iceberg", "places", "predicted", "depth", "spikes")
"""The page draws maps and sinks itself, so that they can be explored."""
_TITLES = {
    "effects": "Effect of each super weight against its controls",
    "scores": "How far the candidates stand out",
    "iceberg": "Numbers of the model by predicted KL",
    "places": "Predicted KL by layer and kind",
    "predicted": "Measured against predicted KL",
    "depth": "Massive activations by depth",
    "spikes": "Input and output spikes of down_proj by layer",
}


def page(findings: Findings, profile: Profile, *, folder: str = "", without: Collection[str] = ()) -> str:
    """The report of one scan as HTML.

    Args:
        findings: what a scan found, proved or not.
        profile: the arrays of `profile.safetensors`.
        folder: the run folder as a user would type it, for the copied `--keep`.
        without: figures that are left out.
    """
    data = pack_profile(profile)
    at = findings.summary.thresholds
    data |= {"lam": at.get("lam", 5.0), "sinkThreshold": at.get("sink", 0.3)}
    available = figures.available(findings, profile)
    charts = {
        name: attempted(name, partial(_chart, name, findings, profile))
        for name in _STATIC
        if name in available and name not in without
    }
    return document(
        "page.html",
        title=findings.model.id,
        about="what holds this model up",
        beside=" · ".join(filter(None, (findings.model.id, findings.run.started[:10]))),
        steps=next_steps(findings, folder),
        f=findings,
        verdict=verdict_sentence(findings),
        census=census_sentence(findings),
        data=data,
        charts={name: charts.get(name) for name in _STATIC},
        describe={name: figures.describe(name, findings, profile) for name in available},
        controls=_controls(findings),
        apart=sum(one.predicted for one in findings.census.places if one.kind == APART) if findings.census else 0,
        layers=_layers(data),
        start=_start(findings, data),
        searched=tables.searched(findings),
        weights=[(one, as_python(findings, (one,))) for one in tables.ranked(findings.super_weights)],
        numbers=[(one, as_python(findings, (one,))) for one in tables.ranked(findings.other_numbers)],
        activations=tables.activations(findings),
        others=other_lists(findings),
        python=as_python(findings, tables.ranked(findings.proven_numbers) or findings.super_weights),
        keep=as_keep(folder),
        caveats=caveats(findings),
    )


def comparison_page(runs: Sequence[tuple[str, Findings, Profile]]) -> str:
    """Several scans side by side as HTML: (name, findings, profile) each."""
    charts = []
    for place, (name, findings, profile) in enumerate(runs):
        if "depth" in figures.available(findings, profile):
            draw = partial(_svg, "depth", findings, profile, NARROW, "chart", f"run{place}-depth")
            charts.append((name, attempted("depth", draw) or Markup("")))
    return document(
        "comparison.html",
        title=", ".join(name for name, _, _ in runs),
        about="side by side",
        names=[name for name, _, _ in runs],
        rows=comparison_rows([findings for _, findings, _ in runs]),
        many=len(runs) > WIDEST,
        verdicts=[(name, verdict_sentence(findings)) for name, findings, _ in runs],
        charts=charts,
    )


def _chart(name: str, findings: Findings, profile: Profile) -> Markup:
    """The same drawing for a wide screen and for a phone; the style sheet shows one."""
    wide = _svg(name, findings, profile, WIDE, "chart wide", f"{name}-wide")
    return wide + _svg(name, findings, profile, NARROW, "chart narrow", f"{name}-narrow")


def _svg(name: str, findings: Findings, profile: Profile, width: int, css: str, unique: str) -> Markup:
    figure = figures.draw(name, findings, profile, width=width)
    description = figures.describe(name, findings, profile)
    return inline_svg(figure, name=unique, title=_TITLES[name], description=description, css=css)


def _controls(findings: Findings) -> str:
    sizes = {len(weight.effect.control_kls) for weight in findings.super_weights if weight.effect is not None}
    return count(max(sizes, default=0), "control weight")


def _layers(data: dict) -> list[int]:
    """Every layer that the slider can show."""
    return sorted({layer for tensor in data["maps"] for layer in tensor["layers"]})


def _start(findings: Findings, data: dict) -> int:
    """Where the slider stands first: the layer with the most massive values of Q and K."""
    layers = _layers(data)
    counts = dict.fromkeys(layers, 0)
    for entry in findings.massive_values:
        if entry.layer in counts and entry.tensor != "value":
            counts[entry.layer] += 1
    return layers.index(max(counts, key=lambda layer: counts[layer])) if counts else 0
