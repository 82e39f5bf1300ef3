"""Findings as a pandas DataFrame; pandas is optional."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from studfinder.errors import StudfinderError
from studfinder.records.findings import LISTS, Findings
from studfinder.records.interval import Interval

if TYPE_CHECKING:
    import pandas


def frame_of(findings: Findings, of: str = "super_weights") -> pandas.DataFrame:
    """One list as a frame with a column a field, also when it is empty."""
    if of not in LISTS and of not in findings.others:
        raise StudfinderError(f"findings have no list {of!r}", expected=", ".join([*LISTS, *findings.others]))
    try:
        import pandas
    except ImportError:
        raise StudfinderError("to_frame() needs pandas", do="Install it: pip install studfinder[frames]") from None
    if of in findings.others:
        return pandas.DataFrame(findings.others[of])
    rows = [_row(entry) for entry in getattr(findings, of)]
    names = [field.name for field in dataclasses.fields(LISTS[of]) if field.name not in _EFFECTS]
    more = list(dict.fromkeys(name for row in rows for name in row if name not in names))
    return pandas.DataFrame(rows, columns=[*names, *more])


_EFFECTS = {"effect": "", "effect_off": "_off"}
"""Fields that become columns, and how their names end."""


def _row(entry: Any) -> dict[str, Any]:
    row = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry) if field.name not in _EFFECTS}
    for name, end in _EFFECTS.items():
        effect = getattr(entry, name, None)
        for field in dataclasses.fields(effect) if effect is not None else ():
            value = getattr(effect, field.name)
            if isinstance(value, Interval):
                parts = {"": value.value, "_low": value.low, "_high": value.high}
                row |= {f"{field.name}{end}{part}": at for part, at in parts.items()}
    return row
