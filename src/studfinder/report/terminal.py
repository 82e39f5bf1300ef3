"""The summary of a scan on one screen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.table import Table
from rich.text import Text

from studfinder.records import Findings, MassiveValueSummary
from studfinder.report.screen import Screen
from studfinder.report.tables import searched
from studfinder.report.words import (
    bidirectional_sentence,
    count,
    dims_in_words,
    layers_and_experts,
    other_lists,
    shorten,
    token,
    verdict_sentence,
)

_ROWS = 8
_STYLE = {"proven": "bold green", "proven-jointly": "green", "inert": "dim", "candidate": "yellow"}


def print_findings(findings: Findings, folder: Path | None, console: Screen | None = None) -> None:
    """Print what stands out, what was searched when nothing does, where the report is and what to run next."""
    console = console or Screen(100)  # what the tables need
    _head(findings, console)
    console.print()
    console.print(verdict_sentence(findings), style="bold")
    console.print()
    _super_weights(findings, console)
    _facts(findings, console)
    for site in findings.nonfinite:
        console.print(f"inf or NaN at {site}: left out of the statistics there", style="bold red")
    _tail(findings, folder, console)


def print_candidates(findings: Findings, console: Screen | None = None) -> None:
    """Print on stderr what looks like a super weight, before the proof says whether it is one."""
    console = console or Screen(100, stderr=True)
    console.print(
        f"Found {count(len(findings.super_weights), 'super-weight candidate')}; the proof begins.", style="bold"
    )
    _super_weights(findings, console)


def _head(findings: Findings, console: Screen) -> None:
    model, prompts = findings.model, findings.prompts
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    name = model.id if model.origin in ("a local folder", "a live model object") else f"{model.id}: {model.origin}"
    grid.add_row("model", name)
    grid.add_row(
        "",
        f"{model.architecture}, {model.layers} layers x {model.hidden}, {model.heads} heads "
        f"({model.kv_heads} KV) x {model.head_dim}, {model.parameters / 1e6:,.1f} M parameters, "
        f"{model.dtype} on {findings.run.device}",
    )
    grid.add_row(
        "text",
        f"{count(len(prompts.tokens), 'prompt')} ({prompts.id}), {prompts.total:,} tokens, "
        f"{'BOS first' if prompts.bos else 'no BOS'}, no chat template",
    )
    if findings.summary.bidirectional:
        grid.add_row("bidirectional", bidirectional_sentence(findings))
    grid.add_row("time", f"{findings.run.seconds:.1f} s")
    console.print(grid)


def _super_weights(findings: Findings, console: Screen) -> None:
    weights = findings.super_weights
    if not weights:
        return
    proved = any(weight.effect for weight in weights)
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("super weight", no_wrap=True)
    names = ["weight", "input", "output", "share", *(["KL", "perplexity"] if proved else ["score"])]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for weight in weights[:_ROWS]:
        cells = [
            str(weight),
            f"{weight.value:+.3f}",
            f"{weight.input_spike:,.0f}",
            f"{weight.output_spike:,.0f}",
            f"{weight.share:.0%}",
        ]
        if not proved:
            cells.append(f"{weight.score:,.0f}")
        elif weight.effect is None:
            cells += ["", ""]
        else:
            cells += [f"{weight.effect.kl.value:.3g}", f"x {weight.effect.perplexity_ratio.value:.3g}"]
        table.add_row(*cells, Text(weight.verdict, style=_STYLE[weight.verdict]))
    console.print(table)
    more = weights[_ROWS:]
    if more:
        kinds = ", ".join(f"{n} {verdict}" for verdict, n in Counter(w.verdict for w in more).most_common())
        console.print(f"  and {len(more)} more ({kinds}) in findings.json", style="dim")
    console.print()


def _facts(findings: Findings, console: Screen) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    if not findings.super_weights:
        grid.add_row("super weights", _none(findings, "super-weight candidates"))
    grid.add_row("massive activations", _activations(findings))
    for summary in findings.summary.massive_values:
        grid.add_row(f"massive values of {summary.tensor[0].upper()}", _values(summary, findings))
    grid.add_row("attention sinks", _sinks(findings))
    for subject, sentence in layers_and_experts(findings):
        grid.add_row(subject, sentence)
    for name, entries in other_lists(findings):
        first = "; first: " + ", ".join(f"{key} {value}" for key, value in entries[0].items()) if entries else ""
        grid.add_row(name, count(len(entries), "entry", "entries") + first)
    console.print(grid)


def _none(findings: Findings, what: str) -> str:
    """By which rule nothing was found, and what came nearest."""
    row = next(row for row in searched(findings) if row.what == what)
    return f"none with {row.rule}" + (f"; nearest: {row.nearest}" if row.nearest else "")


def _activations(findings: Findings) -> str:
    found = findings.massive_activations
    if not found:
        return _none(findings, "massive activations")
    top = max(found, key=lambda entry: abs(entry.value))
    classes = Counter(entry.token_class for entry in found)
    carriers = ", ".join(f"{name} {n / len(found):.0%}" for name, n in classes.most_common())
    return (
        f"up to {top.value:,.0f} = {top.ratio:,.0f} x the median, in dim {top.dim} at token {token(top.token)} "
        f"(position {top.position}); dims {dims_in_words(entry.dim for entry in found)}; layers "
        f"{findings.summary.enters} to {(findings.summary.leaves or 0) - 1}; carried by: {carriers}"
    )


def _values(summary: MassiveValueSummary, findings: Findings) -> str:
    text = f"in {summary.layers_with} of {summary.layers} layers, {count(summary.entries, 'entry', 'entries')}"
    if summary.stage == "pre-RoPE":
        text += " (read before RoPE)"
    if summary.slow_share is not None:
        text += f"; {summary.slow_share:.0%} in dims that never turn in training (chance {summary.slow_base:.0%})"
    if summary.overlap is not None and summary.entries:
        text += f"; heads agree in {summary.agreeing_layers} layers"
    text += f"; concentration {summary.concentration:.2f} (one vector by chance: {summary.concentration_null:.2f})"
    return text


def _sinks(findings: Findings) -> str:
    heads = findings.summary.sink_heads
    if not heads:
        return "not measured: this architecture's attention cannot be read after its positions"
    share = len(findings.attention_sinks) / heads
    at = findings.summary.thresholds
    return (
        f"{len(findings.attention_sinks)} of {heads} heads ({share:.0%}) pay the first token more than "
        f"{at['sink']:.0%} of their attention"
    )


def _tail(findings: Findings, folder: Path | None, console: Screen) -> None:
    console.print()
    if folder is not None:
        report = folder / "report.html"
        where = report if report.is_file() else folder
        console.print(f"report    {where}", soft_wrap=True)
    best = findings.super_weights[0] if findings.super_weights else None
    if best is not None:
        console.print(
            f"next      sf.load({findings.model.id!r}).model.get_parameter({shorten(best.parameter)!r})"
            f"[{', '.join(map(str, best.index))}]  # {best.value:+.4g}",
            soft_wrap=True,
        )
