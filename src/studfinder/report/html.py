"""report.html: findings and arrays to one file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import partial

from markupsafe import Markup

from studfinder.records import Findings
from studfinder.report import figures, tables
from studfinder.report.caveats import caveats
from studfinder.report.cells import is_number, text
from studfinder.report.changes import changes
from studfinder.report.comparison import WIDEST
from studfinder.report.comparison import rows as comparison_rows
from studfinder.report.document import document
from studfinder.report.figures.places import APART
from studfinder.report.next_steps import next_steps
from studfinder.report.profile import Profile, pack_profile
from studfinder.report.ranges import ranges_table
from studfinder.report.skyline import Skyline
from studfinder.report.snippets import as_keep, as_python
from studfinder.report.style import NARROW, WIDE, attempted, inline_svg
from studfinder.report.tables import massive_dims
from studfinder.report.words import (
    census_sentence,
    count,
    other_lists,
    verdict_sentence,
)

_STATIC = ("effects", "scores", "iceberg", "places", "predicted", "depth", "picture", "ranges", "spikes")
"""The page draws maps and sinks itself, so that they can be explored."""
_TITLES = {
    "effects": "Effect of each super weight against its controls",
    "scores": "How far the candidates stand out",
    "iceberg": "Numbers of the model by predicted KL",
    "places": "Predicted KL by layer and kind",
    "predicted": "Measured against predicted KL",
    "depth": "Massive activations by depth",
    "picture": "Massive activations by token and dim",
    "ranges": "Largest activations by layer",
    "spikes": "Input and output spikes of down_proj by layer",
}


def page(
    findings: Findings,
    profile: Profile,
    *,
    folder: str = "",
    without: Collection[str] = (),
    skyline: Skyline | None = None,
) -> str:
    """The report of one scan as HTML.

    Args:
        findings: what a scan found, proved or not.
        profile: the arrays of `profile.safetensors`.
        folder: the run folder as a user would type it, for the copied `--keep`.
        without: figures that are left out.
        skyline: what rounding each group of this model costs, where that is known.
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
        skyline=skyline,
        towers=attempted("skyline", partial(_skyline, skyline)) if skyline is not None else None,
        describe={name: figures.describe(name, findings, profile) for name in available},
        controls=_controls(findings),
        apart=sum(one.predicted for one in findings.census.places if one.kind == APART) if findings.census else 0,
        layers=_layers(data),
        start=_start(findings, data),
        ranges=ranges_table(findings, profile),
        dims=json.dumps(massive_dims(findings)),
        cell=text,
        is_number=is_number,
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
    said, tables = changes(runs[0][1], runs[1][1]) if len(runs) == 2 else ([], [])
    return document(
        "comparison.html",
        title=", ".join(name for name, _, _ in runs),
        about="side by side",
        names=[name for name, _, _ in runs],
        rows=comparison_rows([findings for _, findings, _ in runs]),
        many=len(runs) > WIDEST,
        verdicts=[(name, verdict_sentence(findings)) for name, findings, _ in runs],
        said=said,
        tables=tables,
        cell=text,
        is_number=is_number,
        charts=attempted("depth", partial(_depths, runs)) or [],
    )


def _depths(runs: Sequence[tuple[str, Findings, Profile]]) -> list[tuple[str, Markup]]:
    """The residual stream of each, all on the same axis."""
    shown = [(name, f, profile) for name, f, profile in runs if "depth" in figures.available(f, profile)]
    drawn = [figures.draw("depth", f, profile, width=NARROW) for _, f, profile in shown]
    ends = [figure.axes[0].get_ylim() for figure in drawn]
    charts = []
    for place, ((name, f, profile), figure) in enumerate(zip(shown, drawn, strict=True)):
        figure.axes[0].set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
        said = {"title": _TITLES["depth"], "description": figures.describe("depth", f, profile)}
        charts.append((name, inline_svg(figure, name=f"run{place}-depth", css="chart", **said)))
    return charts


def _chart(name: str, findings: Findings, profile: Profile) -> Markup:
    """The same drawing for a wide screen and for a phone; the style sheet shows one."""
    wide = _svg(name, findings, profile, WIDE, "chart wide", f"{name}-wide")
    return wide + _svg(name, findings, profile, NARROW, "chart narrow", f"{name}-narrow")


def _svg(name: str, findings: Findings, profile: Profile, width: int, css: str, unique: str) -> Markup:
    figure = figures.draw(name, findings, profile, width=width)
    description = figures.describe(name, findings, profile)
    return inline_svg(figure, name=unique, title=_TITLES[name], description=description, css=css)


def _skyline(skyline: Skyline) -> Markup:
    def svg(width: int, size: str) -> Markup:
        title, words = "What rounding each group alone costs", skyline.describe()
        return inline_svg(
            skyline.draw(width), name=f"skyline-{size}", title=title, description=words, css=f"chart {size}"
        )

    return svg(WIDE, "wide") + svg(NARROW, "narrow")


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
