"""report: draw the page and the figures of finished scans again, or set several side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from studfinder.errors import StudfinderError
from studfinder.records import Findings, Result, Sensitivity
from studfinder.report import figures
from studfinder.report.html import comparison_page, page
from studfinder.report.profile import Profile
from studfinder.report.sharing import sharing_card
from studfinder.report.skyline import Skyline, skyline_of
from studfinder.report.style import WIDE, attempted, rendered
from studfinder.report.tables import massive_dims
from studfinder.report.words import verdict_sentence
from studfinder.runs import drawn, read, record_file, write_bytes, write_text

_CARD = 1300
"""Width of a card's figure in CSS pixels: flat, so that it fills the card."""


class ScanRun(NamedTuple):
    """A finished scan: its folder, findings and arrays."""

    folder: Path
    findings: Findings
    profile: Profile


def report(
    paths: Sequence[str | Path] | str | Path, *, out: str | Path | None = None
) -> tuple[list[ScanRun], Path | None]:
    """Draw one report again, or several scans side by side.

    Args:
        paths: run folders of scans, or their findings.json files.
        out: where to write; the default is the run's own folder, and nowhere for several runs.

    Returns:
        the runs, and the page that was written, if any.

    Raises:
        StudfinderError: no runs, a folder without findings or arrays, `out` is a file.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not paths:
        raise StudfinderError("there are no runs", expected="the folder of at least one scan")
    runs = [read_run(Path(path)) for path in paths]
    folder = Path(out) if out is not None else runs[0].folder if len(runs) == 1 else None
    if folder is None:
        return runs, None
    if folder.exists() and not folder.is_dir():
        raise StudfinderError(f"--out {folder} is a file", expected="a folder, or a name that does not exist yet")
    folder.mkdir(parents=True, exist_ok=True)
    if len(runs) == 1:
        return runs, write_report(folder, runs[0].findings, runs[0].profile, run=runs[0].folder)
    named = [(name, run.findings, run.profile) for name, run in zip(names_of(runs), runs, strict=True)]
    write_text(folder / "report.html", comparison_page(named))
    return runs, folder / "report.html"


def read_run(path: Path) -> ScanRun:
    """A finished scan from its folder or its findings.json."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file, findings = (
        record_file(path, "findings.json"),
        read(path, Findings),
    )  # first: if this is no findings file, that is the mistake to name
    arrays = file.parent / "profile.safetensors"
    try:
        profile = load_file(arrays)
    except (OSError, SafetensorError):
        raise StudfinderError(
            f"{arrays} is missing or not readable", expected="the arrays that the scan wrote", do="Scan again"
        ) from None
    return ScanRun(file.parent, findings, profile)


def names_of(runs: Sequence[ScanRun]) -> list[str]:
    """A name a column: the model, with the folder where models repeat."""
    ids = [run.findings.model.id for run in runs]
    return [name if ids.count(name) == 1 else f"{name} ({run.folder})" for name, run in zip(ids, runs, strict=True)]


def write_report(folder: Path, findings: Findings, profile: Profile, *, run: Path | None = None) -> Path:
    """Write figure-*.png, figure-*.svg and report.html; returns the page. A figure that cannot be drawn is named on
    stderr, and left out.

    Args:
        run: the folder that it tells of, if that is not `folder`.
    """
    place, written, failed = run or folder, ["report.html"], set()
    skyline = skyline_beside(place, findings)
    draws: dict[str, Callable[..., Figure]] = {
        name: partial(figures.draw, name, findings, profile) for name in figures.available(findings, profile)
    }
    if skyline is not None:
        draws["skyline"] = skyline.draw
    for name, draw in draws.items():
        content = attempted(name, partial(_files, name, draw))
        if content is None:
            failed.add(name)
        for file, of in (content or {}).items():
            written.append(file)
            write_bytes(folder / file, partial(Path.write_bytes, data=of))
    whole = {name: draw for name, draw in draws.items() if name not in failed}
    card = attempted("card", partial(_card, findings, whole))
    if card is not None:
        written.append("card.png")
        write_bytes(folder / "card.png", partial(Path.write_bytes, data=card))
    written.append("massive-dims.json")
    write_text(folder / written[-1], json.dumps(massive_dims(findings)) + "\n")
    html = page(findings, profile, folder=str(place), without=failed, skyline=skyline)
    write_text(folder / "report.html", html)
    drawn(folder, written)
    return folder / "report.html"


_BEST = ("skyline", "effects", "scores", "depth")
"""Figures by how much they say, of which a card shows the first."""


def _card(findings: Findings, draws: Mapping[str, Callable[..., Figure]]) -> bytes:
    """What the page says, in a picture."""
    best = next((name for name in _BEST if name in draws), None)
    return sharing_card(
        title=verdict_sentence(findings),
        about="what holds this model up",
        foot=f"{findings.model.id} · {findings.model.parameters / 1e6:,.0f} M parameters · {findings.run.started[:10]}",
        picture=draws[best](width=_CARD) if best is not None else None,
    )


def _files(name: str, draw: Callable[..., Figure]) -> dict[str, bytes]:
    figure = draw(width=WIDE)
    return {f"figure-{name}.{kind}": rendered(figure, kind=kind, name=name) for kind in ("png", "svg")}


def skyline_beside(run: Path, findings: Findings) -> Skyline | None:
    """What rounding each group of a scanned model costs: from the newest plan or which-layer experiment of the same
    weights beside the run's folder; None where there is none that can be read."""
    files = [file for name in ("*/sensitivity.json", "*/result.json") for file in run.absolute().parent.glob(name)]
    for file in sorted(files, key=lambda one: one.stat().st_mtime_ns, reverse=True):
        try:
            costs = read(file)
        except StudfinderError:  # of another kind, or damaged: no matter of this page
            continue
        if not isinstance(costs, Sensitivity) and not (
            isinstance(costs, Result) and costs.name.endswith("which-layer")
        ):
            continue
        cards = costs.models if isinstance(costs, Result) else (costs.model,)
        if [card.content_hash for card in cards] == [findings.model.content_hash]:
            return skyline_of(costs, findings)
    return None
