"""Several scans side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from studfinder.records import Findings
from studfinder.report.screen import Screen
from studfinder.report.words import dims_in_words


def rows(runs: Sequence[Findings]) -> list[tuple[str, list[str]]]:
    """(what is compared, one cell a run)."""
    shown = [(name, [cell(findings) for findings in runs]) for name, cell in _ROWS.items()]
    for name in dict.fromkeys(name for findings in runs for name in findings.others):
        cells = [str(len(f.others[name])) if name in f.others else "not looked for" for f in runs]
        shown.append((name.replace("_", " "), cells))
    return shown


def print_comparison(names: Sequence[str], runs: Sequence[Findings], console: Screen | None = None) -> None:
    """The same table in the terminal."""
    console = console or Screen()
    table = Table(box=None, padding=(0, 2), header_style="bold")
    table.add_column("", style="dim")
    for name in names:
        table.add_column(name, overflow="fold")
    for what, cells in rows(runs):
        table.add_row(what, *cells)
    console.print(table)


def _size(f: Findings) -> str:
    return f"{f.model.architecture}, {f.model.layers} layers x {f.model.hidden}, {f.model.parameters / 1e6:,.1f} M"


def _tested(f: Findings) -> str:
    n = len(f.super_weights)
    return f"{len(f.proven)} of {f.proof.tested} tested" if f.proof else f"{n} candidates, not tested" if n else "none"


def _strongest(f: Findings) -> str:
    shown = f.proven or f.super_weights
    return f"{shown[0]} = {shown[0].value:+.3g}" if shown else "–"


def _effect(f: Findings) -> str:
    effect = next((weight.effect for weight in f.proven if weight.effect), None)
    return f"x {effect.perplexity_ratio}" if effect else "–"


def _largest(f: Findings) -> str:
    if not f.massive_activations:
        nearest = f.summary.nearest_massive_activation
        return "none" + (f" (nearest: {nearest.ratio:,.0f} x the median)" if nearest else "")
    top = max(f.massive_activations, key=lambda entry: abs(entry.value))
    return f"{top.value:,.0f} = {top.ratio:,.0f} x the median"


def _dims(f: Findings) -> str:
    return dims_in_words(entry.dim for entry in f.massive_activations) or "–"


def _depth(f: Findings) -> str:
    leaves = f.summary.leaves
    return "–" if leaves is None else f"{f.summary.enters} to {leaves - 1} of {f.model.layers}"


def _values(f: Findings) -> str:
    return ", ".join(f"{s.tensor[0].upper()} {s.entries}" for s in f.summary.massive_values) or "not read"


def _slow(f: Findings) -> str:
    shares = [s for s in f.summary.massive_values if s.slow_share is not None and s.slow_base is not None]
    return ", ".join(f"{s.tensor[0].upper()} {s.slow_share:.0%} (chance {s.slow_base:.0%})" for s in shares) or "–"


def _sinks(f: Findings) -> str:
    heads = f.summary.sink_heads
    return f"{len(f.attention_sinks)} of {heads} heads ({len(f.attention_sinks) / heads:.0%})" if heads else "not read"


def _text(f: Findings) -> str:
    return f"{f.prompts.id}, {f.prompts.total:,} tokens, {'BOS' if f.prompts.bos else 'no BOS'}"


_ROWS = {
    "model": _size,
    "weights": lambda f: f.model.origin,
    "dtype": lambda f: f.model.dtype,
    "super weights proven": _tested,
    "strongest": _strongest,
    "perplexity without it": _effect,
    "massive activation": _largest,
    "in dims": _dims,
    "in layers": _depth,
    "massive values": _values,
    "in dims that never turn": _slow,
    "attention sinks": _sinks,
    "text": _text,
    "content hash": lambda f: f.model.content_hash[:16],
}
