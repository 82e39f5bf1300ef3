"""Several scans side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from studfinder.records import CensusCard, Findings, OtherNumber
from studfinder.report.changes import changes
from studfinder.report.screen import Screen
from studfinder.report.tables import ranked
from studfinder.report.words import dims_in_words


def rows(runs: Sequence[Findings]) -> list[tuple[str, list[str]]]:
    """(what is compared, one cell a run)."""
    columns = [_cells(findings) for findings in runs]
    shown = [(name, [column[name] for column in columns]) for name in columns[0]]
    for name in dict.fromkeys(name for findings in runs for name in findings.others):
        cells = [str(len(f.others[name])) if name in f.others else "not looked for" for f in runs]
        shown.append((name.replace("_", " "), cells))
    return shown


WIDEST = 4
"""Up to so many runs each have a column; more have a row each."""

_BRIEF = (
    "super weights proven",
    "perplexity without it",
    "other numbers proven",
    "massive activation",
    "in layers",
    "massive values",
    "attention sinks",
)
"""What a terminal has room for, of many runs."""


def print_comparison(names: Sequence[str], runs: Sequence[Findings], console: Screen | None = None) -> None:
    """The same table in the terminal; of many runs its main columns, and a row for each."""
    console = console or Screen()
    found = rows(runs)
    many = len(runs) > WIDEST
    table = Table(box=None, padding=(0, 1 if many else 2), header_style="bold")
    table.add_column("", style="" if many else "dim", overflow="fold")
    if many:
        found = [(what, cells) for what, cells in found if what in _BRIEF]
        heads = [what for what, _ in found]
        found = [(name, [cells[place] for _, cells in found]) for place, name in enumerate(names)]
    else:
        heads = list(names)
    for head in heads:
        table.add_column(head, overflow="fold")
    for what, cells in found:
        table.add_row(what, *cells)
    console.print(table)
    for said in changes(runs[0], runs[1])[0] if len(runs) == 2 else ():
        console.print(f"• {said}")


def _cells(f: Findings) -> dict[str, str]:
    """A run's column, by what is compared."""
    model, summary, sinks = f.model, f.summary, len(f.attention_sinks)
    candidates = f"{len(f.super_weights)} candidates, not tested" if f.super_weights else "none"
    tested = sum(weight.effect is not None for weight in f.super_weights)
    others = ranked(number for number in f.proven_numbers if isinstance(number, OtherNumber))
    most = next((number.effect for number in others), None)
    strongest = next(iter(f.proven or f.super_weights), None)
    effect = next((weight.effect for weight in f.proven if weight.effect), None)
    top = max(f.massive_activations, key=lambda entry: abs(entry.value), default=None)
    nearest = summary.nearest_massive_activation
    miss = f" (nearest: {nearest.ratio:,.0f} x the median)" if nearest else ""
    slow = [s for s in summary.massive_values if s.slow_share is not None and s.slow_base is not None]
    return {
        "model": f"{model.architecture}, {model.layers} layers x {model.hidden}, {model.parameters / 1e6:,.1f} M",
        "weights": model.origin,
        "dtype": model.dtype,
        "super weights proven": f"{len(f.proven)} of {tested} tested" if f.proof else candidates,
        "strongest": f"{strongest} = {strongest.value:+.3g}" if strongest else "–",
        "perplexity without it": f"x {effect.perplexity_ratio}" if effect else "–",
        "other numbers proven": _others(f, len(others)),
        "the strongest": f"{others[0]} = {others[0].value:+.3g}" if others else "–",
        "perplexity without the number": f"x {most.perplexity_ratio}" if most else "–",
        "all numbers": _bound(f.census),
        "massive activation": f"{top.value:,.0f} = {top.ratio:,.0f} x the median" if top else f"none{miss}",
        "in dims": dims_in_words(entry.dim for entry in f.massive_activations) or "–",
        "in layers": "–" if summary.leaves is None else f"{summary.enters} to {summary.leaves - 1} of {model.layers}",
        "massive values": ", ".join(f"{s.tensor[0].upper()} {s.entries}" for s in summary.massive_values) or "not read",
        "in dims that never turn": ", ".join(
            f"{s.tensor[0].upper()} {s.slow_share:.0%} (chance {s.slow_base:.0%})" for s in slow
        )
        or "–",
        "attention sinks": f"{sinks} of {summary.sink_heads} heads ({sinks / summary.sink_heads:.0%})"
        if summary.sink_heads
        else "not read",
        "text": f"{f.prompts.id}, {f.prompts.total:,} tokens, {'BOS' if f.prompts.bos else 'no BOS'}",
        "content hash": model.content_hash[:16],
    }


def _others(f: Findings, proven: int) -> str:
    tested = sum(number.effect is not None for number in f.other_numbers)
    if not tested:
        return f"{len(f.other_numbers)} by prediction, not tested" if f.census else "not looked for"
    return f"{proven} of {tested} tested"


def _bound(card: CensusCard | None) -> str:
    """How many carry something, and how many more may."""
    if card is None:
        return "not looked for"
    if card.heavy is None:
        return "predicted, not tested"
    more = "others not measured" if card.unseen is None else f"at most {card.unseen:,} others (95%)"
    return f"{card.heavy:,} above {card.threshold:g} nats, {more}"
