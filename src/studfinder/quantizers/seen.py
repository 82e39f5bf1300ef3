"""In which engines a checkpoint of a format was seen to load and to run: facts of a benchmark that ran them.

`seen.json` is written by benchmarks/serving/facts.py, and by nothing else: where it says nothing of a format, nobody
tried, and that is what is said.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from studfinder.records.scheme import Format, format_named

NOT_TRIED = "not tried in any engine"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What became of a format in an engine.

    Attributes:
        engine, version: which.
        loads: whether a checkpoint was loaded and run.
        note: what else was seen, or why it was refused, in a few words; may be empty.
    """

    engine: str
    version: str
    loads: bool
    note: str = ""

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        return f"{'' if self.loads else 'refused by '}{self.engine} {self.version}{note}"


def seen(format: Format) -> tuple[Seen, ...]:
    """By engine what was seen of a format; empty if it was not tried."""
    return _facts().get(_as_stored(format), ())


def seen_in_words(formats: Format | Iterable[Format]) -> str:
    """Where a checkpoint loads that has matrices in these formats: the engines in which each of them does, then those
    that refuse one of them."""
    given = (formats,) if isinstance(formats, Format) else tuple(dict.fromkeys(formats))
    given = tuple(format for format in given if format.weights is not None)
    found = [seen(format) for format in given]
    untried = [format.name for format, facts in zip(given, found, strict=True) if not facts]
    if untried or not found:
        return NOT_TRIED if len(given) < 2 else f"{NOT_TRIED}: {', '.join(untried)}"
    engines = dict.fromkeys(one.engine for facts in found for one in facts)
    lines = [_together([one for facts in found for one in facts if one.engine == name], len(found)) for name in engines]
    told = [line for line in lines if line is not None]
    loading = [str(one) for one in told if one.loads]
    return "; ".join([", ".join(loading) or "none", *(str(one) for one in told if not one.loads)])


def _together(facts: list[Seen], formats: int) -> Seen | None:
    """One engine's facts of several formats as one; None where it did not try all of them and refused none."""
    refused = [one for one in facts if not one.loads]
    if not refused and len(facts) < formats:
        return None
    chosen = refused or facts
    return replace(chosen[0], note="; ".join(dict.fromkeys(one.note for one in chosen if one.note)))


def _as_stored(format: Format) -> str:
    """The name of what a checkpoint says of a format: not which float its scales are, nor whether codes are narrow."""
    scheme = format.weights
    if scheme is None:
        return format.name
    floats = ("float32", "float16", "bfloat16")
    plain = replace(scheme, narrow=False, scale="bfloat16" if scheme.scale in floats else scheme.scale)
    return replace(format, weights=plain).name


@cache
def _facts() -> dict[str, tuple[Seen, ...]]:
    found: dict[str, dict[str, dict[str, Any]]] = seen_record()["formats"]
    return {
        _as_stored(format_named(name)): tuple(Seen(engine=engine, **fact) for engine, fact in engines.items())
        for name, engines in found.items()
    }


def seen_record() -> dict[str, Any]:
    """The facts as the benchmark wrote them: `made with`, and `formats` by name, by engine."""
    return json.loads(files("studfinder.quantizers").joinpath("seen.json").read_text("utf-8"))
