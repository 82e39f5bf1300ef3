"""Try a tiny model of every architecture: its parts, planted super weights, reading, patching, quantising, converting.

    python benchmarks/architectures.py [--type TYPE ...] [--column COLUMN ...]

Writes src/studfinder/models/architectures.json, which `studfinder ls architectures` shows, and the same table as
docs/results/architectures.md. What is not asked for stays as an earlier run wrote it, unless that had other versions.
"""
# ruff: noqa: E402 (the tiny models stand beside the tests)

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import studfinder as sf
import tried
from architected import TYPES, built
from studfinder.attention.variant import VARIANTS, variant_class
from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from studfinder.models.tried import architectures_table
from studfinder.quantizers import plain, verify
from studfinder.report.cells import markdown

RECORD = ROOT / "src" / "studfinder" / "models" / "architectures.json"
PAGE = ROOT / "docs" / "results" / "architectures.md"


def attention(kind: str, lm: LM) -> str:
    """Layers by what mixes their tokens."""
    found: Counter[str] = Counter()
    for layer in lm.anatomy.layers:
        mixer = layer.mixer
        own = ", own" if mixer is not None and not mixer.interface else ""
        found["linear" if mixer is None and layer.mixers else "none" if mixer is None else mixer.stage + own] += 1
    return ", ".join(f"{count} {name}" for name, count in found.most_common())


def feed_forward(kind: str, lm: LM) -> str:
    """Layers by what writes from their feed-forward networks."""
    found: Counter[str] = Counter()
    for layer in lm.anatomy.layers:
        routed = sum(writer.routed for writer in layer.writers)
        dense = len(layer.writers) - routed
        named = [f"{routed} experts"] * bool(routed) + [f"{dense} down"] * bool(dense)
        found[" + ".join(named) or "none"] += 1
    return ", ".join(f"{count} with {name}" for name, count in found.most_common())


def unknown(kind: str, lm: LM) -> str:
    """Roles that probing could not confirm."""
    found: Counter[str] = Counter()
    for layer in lm.anatomy.layers:
        for mixer in layer.mixers:
            roles = ("query", "key", "value", "output") if mixer.kind == "softmax" else ()
            found.update(role for role in roles if getattr(mixer, role) is None)
        found.update({"up and gate": 1} if any(writer.up is None for writer in layer.writers) else {})
    return ", ".join(f"{name} ({count} layers)" for name, count in sorted(found.items())) or "none"


def parts(kind: str, lm: LM) -> str:
    return (
        f"but for one thing: {tried.OTHERWISE[kind]}" if kind in tried.OTHERWISE else _said(tried.differences(kind, lm))
    )


def planted(kind: str, lm: LM) -> str:
    if not any(layer.writers for layer in lm.anatomy.layers):
        return "nothing to plant in"
    return f"no: {tried.NO_TOKENS[kind]}" if kind in tried.NO_TOKENS else _said(tried.planted_of(lm, kind))


def patch(kind: str, lm: LM) -> str:
    if kind in tried.NO_TOKENS:
        return f"no: {tried.NO_TOKENS[kind]}"
    return f"but for one thing: {tried.STATES[kind]}" if kind in tried.STATES else _said(tried.left_of(lm))


def quantize(kind: str, lm: LM) -> str:
    """Law 9: four bits by channel, written, reloaded by plain transformers: the same logits as in memory."""
    verify.fresh = _reloaded
    with tempfile.TemporaryDirectory() as folder:
        lm.model.save_pretrained(Path(folder) / "m")
        sf.quantize(str(Path(folder) / "m"), bits=4, group="channel", zero="none", out=Path(folder) / "q")
    return "yes"


def _reloaded(folder: Path, ask: Mapping[str, Any]) -> Any:
    """As a process of its own would say it, which costs seconds."""
    try:
        return plain.reload(str(folder), dict(ask))
    except StudfinderError:
        raise
    except Exception as error:  # whatever transformers raises
        raise StudfinderError(f"plain transformers cannot load it ({error})") from error


def convert(kind: str, lm: LM) -> str:
    """How many of the variants could be swapped in, and run."""
    done, reasons = 0, []
    for name in VARIANTS:
        model = built(kind)
        try:
            settings = {"alpha": 4, "length": 16} if name == "clipped_softmax" else {}
            variant = variant_class(name)(**settings)
            sf.convert(model, variant, init=variant.identity or variant.inits[0] if variant.inits else None)
            model(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False)
            done += 1
        except Exception as error:
            reasons.append(f"{name}: {type(error).__name__} {error}".replace("StudfinderError ", ""))
    return "yes" if done == len(VARIANTS) else f"{done} of {len(VARIANTS)}; {reasons[0]}"


def _a_line_a_type(record: dict[str, Any]) -> str:
    types = ",\n".join(f"{json.dumps(kind)}: {json.dumps(row)}" for kind, row in record["types"].items())
    return f'{{"made with": {json.dumps(record["made with"])},\n"types": {{\n{types}\n}}}}\n'


def _said(wrong: list[str]) -> str:
    return f"no: {wrong[0]}" if wrong else "yes"


COLUMNS: dict[str, Callable[[str, LM], Any]] = {
    "layers": lambda kind, lm: len(lm.anatomy.layers),
    "marks": lambda kind, lm: tried.marks(lm),
    "attention": attention,
    "feed-forward": feed_forward,
    "unknown": unknown,
    "parts": parts,
    "planted": planted,
    "reading": lambda kind, lm: _said(tried.read_of(lm)),
    "patch": patch,
    "quantize": quantize,
    "convert": convert,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", action="append", choices=TYPES, metavar="TYPE")
    parser.add_argument("--column", action="append", choices=COLUMNS)
    asked = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    made_with = {name: version(name) for name in ("transformers", "torch", "studfinder")}
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.is_file() else {}
    if record.get("made with") != made_with:
        record = {"made with": made_with, "types": {}}
    for kind in asked.type or TYPES:
        row = record["types"].setdefault(kind, {})
        lm = load(built(kind))
        for column in asked.column or COLUMNS:
            try:
                row[column] = COLUMNS[column](kind, lm)
            except Exception as error:
                row[column] = " ".join(f"no: {type(error).__name__}: {error}".replace("StudfinderError: ", "").split())[
                    :200
                ]
        print(kind, *(f"{name}: {row[name]};" for name in row if name != "marks"), flush=True)
        record["types"] = dict(sorted(record["types"].items()))
        RECORD.write_text(_a_line_a_type(record), encoding="utf-8")
    PAGE.write_text(
        "# Architectures\n\nWritten by `python benchmarks/architectures.py`; `studfinder ls architectures` shows the "
        "same.\n\n" + markdown(architectures_table()),
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
