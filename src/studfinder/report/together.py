"""Experiments of several models as one set of tables: a row of each model where a run has one."""

from __future__ import annotations

from collections.abc import Sequence

from studfinder.records import Cell, Result, Table
from studfinder.report.claims import claims_overview


def together(results: Sequence[tuple[str, Result]]) -> tuple[list[Table], list[str]]:
    """Tables and notes of several runs of experiments. Tables of one experiment with the same title and columns become
    one, with the model as its first column; what the models say of claims comes first, side by side.

    Args:
        results: each with what tells it from another of the same experiment and model, e.g. its folder.
    """
    models = [(result.name, card.id) for _, result in results for card in result.models]
    experiments = {result.name for _, result in results}
    found: dict[tuple[str, tuple[str, ...]], list[tuple[Cell, ...]]] = {}
    notes: dict[tuple[str, tuple[str, ...]], str] = {}
    for place, result in results:
        for table in result.tables:
            model = next((name for name in result.data if table.title.startswith(f"{name}: ")), "")
            title = table.title.removeprefix(f"{model}: ") if model else table.title
            key = (f"{result.name}: {title}" if len(experiments) > 1 else title, table.columns)
            label = model or ", ".join(card.id for card in result.models) or "trained there"
            if models.count((result.name, label)) > 1 or not result.models:
                label += f" ({place})"
            found.setdefault(key, []).extend((label, *row) for row in table.rows)
            notes.setdefault(key, table.note)
    tables = [
        Table(title=title, columns=("model", *columns), rows=tuple(rows), note=notes[title, columns])
        for (title, columns), rows in found.items()
    ]
    said = dict.fromkeys(note for _, result in results for note in result.notes)
    return [*claims_overview([result for _, result in results]), *tables], list(said)
