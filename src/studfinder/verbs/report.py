"""report: draw the page and the figures of finished scans again, or set several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from studfinder.errors import StudfinderError
from studfinder.records import Findings
from studfinder.report import figures
from studfinder.report.html import comparison_page, page
from studfinder.report.profile import Profile
from studfinder.report.style import attempted, rendered
from studfinder.runs import drawn, read, record_file, write_bytes, write_text


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
    written, failed = ["report.html"], set()
    for name in figures.available(findings, profile):
        content = attempted(name, partial(_files, name, findings, profile))
        if content is None:
            failed.add(name)
        for file, of in (content or {}).items():
            written.append(file)
            write_bytes(folder / file, partial(Path.write_bytes, data=of))
    write_text(folder / "report.html", page(findings, profile, folder=str(run or folder), without=failed))
    drawn(folder, written)
    return folder / "report.html"


def _files(name: str, findings: Findings, profile: Profile) -> dict[str, bytes]:
    figure = figures.draw(name, findings, profile)
    return {f"figure-{name}.{kind}": rendered(figure, kind=kind, name=name) for kind in ("png", "svg")}
