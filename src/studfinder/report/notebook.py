"""Records in a notebook cell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from studfinder.records import Findings, Result, Scorecard, Table
from studfinder.report.cells import text
from studfinder.report.tables import ranked
from studfinder.report.words import number_kind
from studfinder.visible import visible

_ROWS = 5


def html_of(record: Any) -> str:
    """What it prints as, and its tables; of what has none, its fields. Everything from outside is escaped: a token is
    text that somebody else wrote."""
    lines = [f"<div><b>{_safe(repr(record))}</b>"]
    for columns, rows in _tables(record):
        lines.append("<table><tr>" + "".join(f"<th>{_safe(name)}</th>" for name in columns) + "</tr>")
        lines += ["<tr>" + "".join(f"<td>{_safe(cell)}</td>" for cell in row) + "</tr>" for row in rows]
        lines.append("</table>")
    return "".join(lines) + "</div>"


def _safe(words: str) -> str:
    return escape(visible(words, keep="\n\t"))


def _tables(record: Any) -> list[tuple[Sequence[str], list[Sequence[str]]]]:
    """Columns and rows."""
    if isinstance(record, Findings):
        shown = ranked(record.proven_numbers or record.super_weights)[:_ROWS]
        rows = [
            (str(one), number_kind(one), f"{one.value:+.4g}", str(one.effect.kl) if one.effect else "", one.verdict)
            for one in shown
        ]
        return [(("number", "kind", "value", "KL, nats", "verdict"), [*rows])] if rows else []
    if isinstance(record, Scorecard):
        from studfinder.report.scorecard import tables

        return [_of(table) for table in tables([record])]
    if isinstance(record, Result):
        return [_of(table) for table in record.tables]
    fields = {one.name: getattr(record, one.name) for one in dataclasses.fields(record)}
    for nested in ("settings", "details"):
        fields |= fields.pop(nested, None) or {}
    return [(("", ""), [(name, _short(value)) for name, value in fields.items()])]


def _of(table: Table) -> tuple[Sequence[str], list[Sequence[str]]]:
    return table.columns, [[text(cell) for cell in row] for row in table.rows]


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and value:
        return ", ".join(value)
    said = str(value)
    return said if len(said) < 100 else said[:99] + "…"
