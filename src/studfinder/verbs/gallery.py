"""gallery: a site of finished runs, which opens from a file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError, WriteFailed
from studfinder.records import Findings, ModelCard, Plan, Scorecard, Sensitivity
from studfinder.report.document import anchor, document
from studfinder.report.scorecard import scorecard_verdict
from studfinder.report.skyline import skyline_of
from studfinder.report.tables import massive_dims
from studfinder.report.words import number, verdict_sentence
from studfinder.runs import kind_of, read, write_text, writes_to

INDEX, _LIST = "index.html", "gallery.json"
_DATA = ("findings.json", "plan.json", "sensitivity.json", "scorecard.json", "diagnosis.json", "equivalence.json")
"""Records that are copied beside their pages, for who wants the numbers."""


@dataclass(frozen=True, kw_only=True)
class GalleryEntry:
    """A page of the site.

    Attributes:
        kind: what it is of, e.g. "scan".
        model: id of the model.
        weights: hash of its weights, which says what belongs together; "" where the record does not know it.
        folder: in the site.
        says: a sentence or two.
        facts: for the table of all models, by heading.
    """

    kind: str
    model: str
    weights: str
    folder: str
    says: str
    facts: dict[str, str]


def gallery(runs: Sequence[Path], out: Path, draw: Callable[[str, Path, Path], Any]) -> tuple[Path, list[str]]:
    """Draw the pages of finished runs into a site, with an index; returns the index, and what was left out and why.

    Args:
        runs: run folders, or folders that hold such at any depth.
        out: the site's folder: a new one, or one that this made before.
        draw: draws the page of a run of some kind (its format) into a folder.

    Raises:
        StudfinderError: there are no runs, or `out` is something else.
    """
    if out.exists() and not (out / _LIST).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise StudfinderError(f"--out {out} is no gallery", expected="a name that does not exist yet, or a gallery")
    entries: dict[str, GalleryEntry] = {}
    left: list[str] = []
    for run in finished(runs):
        try:
            kind, file = kind_of(run)
            record = read(file)
            entry = _entry(kind.removeprefix("studfinder."), record, file.parent, entries)
            with writes_to(out):
                (out / entry.folder).mkdir(parents=True, exist_ok=True)
            draw(kind, run, out / entry.folder)
        except WriteFailed:
            raise
        except StudfinderError as error:
            left.append(f"{run}: {error}")
            continue
        for name in _DATA:
            if (file.parent / name).is_file():
                with writes_to(out):
                    shutil.copyfile(file.parent / name, out / entry.folder / name)
        entries[entry.folder] = entry
    if not entries:
        raise StudfinderError("no page could be drawn", expected="finished runs", do="; ".join(left) or None)
    write_text(out / _LIST, json.dumps([vars(one) for one in entries.values()], indent=1) + "\n")
    write_text(out / INDEX, _index(list(entries.values())))
    return out / INDEX, left


def finished(paths: Iterable[Path]) -> list[Path]:
    """The run folders among some paths and below them. Raises StudfinderError if a path holds none."""
    found: dict[Path, None] = {}
    for path in paths:
        below = {file.parent for name in (*_DATA, "result.json", "studfinder.json") for file in path.rglob(name)}
        own = sorted(one for one in below if not one.name.endswith(".partial"))
        if not own:
            raise StudfinderError(f"{path} holds no finished run", expected="a run folder, or a folder of such")
        found |= dict.fromkeys(own)
    return list(found)


def _entry(kind: str, record: Any, folder: Path, others: Iterable[str]) -> GalleryEntry:
    cards: Sequence[ModelCard] = getattr(record, "models", None) or [getattr(record, "model", None)]
    card = cards[0] if isinstance(cards[0], ModelCard) else None
    model = card.id if card is not None else str(cards[0] or folder.name)
    name = base = "-".join(filter(None, (anchor(Path(model).name), anchor(folder.name))))
    place = 1
    while name in others:
        place += 1
        name = f"{base}-{place}"
    says, facts = _said(record, folder)
    called = getattr(record, "name", "") or {"findings": "scan"}.get(kind, kind)
    return GalleryEntry(
        kind=str(called),
        model=model,
        weights=card.content_hash if card is not None else "",
        folder=name,
        says=says,
        facts=facts,
    )


def _said(record: Any, folder: Path) -> tuple[str, dict[str, str]]:
    """What an entry says, and its cells of the table of models."""
    if isinstance(record, Findings):
        facts = {
            "parameters": f"{record.model.parameters / 1e6:,.1f} M",
            "numbers proven": str(len(record.proven_numbers)) if record.proof else "not tested",
            "largest |a|": number(max((abs(one.value) for one in record.massive_activations), default=None)),
            "massive dims": ", ".join(map(str, massive_dims(record)[:4])) or "none",
            "heads with a sink": f"{len(record.attention_sinks)} of {record.summary.sink_heads}",
        }
        return verdict_sentence(record), facts
    if isinstance(record, Plan):
        best = record.solutions[0]
        kl = "not judged" if best.kl is None else f"KL {best.kl}"
        facts = {"plan": f"{best.bits:.3g} bits: {kl}"}
        skyline = skyline_of(read(folder, Sensitivity))
        if skyline is not None:
            top = max(skyline.towers, key=lambda one: one.kl)
            facts["hardest to round"] = f"{top.name} ({number(top.kl)} nats in {skyline.stored_as})"
        return best.verdict or f"{best.bits:.3g} bits a weight, {best.predicted:.3g} nats expected.", facts
    if isinstance(record, Scorecard):
        return " ".join(scorecard_verdict(record)), {}
    return str(getattr(record, "verdict", "") or next(iter(getattr(record, "notes", ())), "")), {}


def _index(entries: Sequence[GalleryEntry]) -> str:
    models: dict[str, list[GalleryEntry]] = {}
    for one in sorted(entries, key=lambda one: (one.model, one.kind != "scan", one.kind)):
        models.setdefault(one.weights or one.model, []).append(one)
    facts = [{name: cell for one in of for name, cell in one.facts.items()} for of in models.values()]
    heads = list(dict.fromkeys(name for of in facts for name in of))
    return document(
        "gallery.html",
        title="Gallery",
        about="gallery",
        pictures=True,
        models=list(zip(models.values(), facts, strict=True)),
        heads=heads,
        entries=len(entries),
    )
