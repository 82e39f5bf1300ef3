"""The summary of a scan on one screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from studfinder.records import Effect, Findings, MassiveValueSummary, OtherNumber, SuperWeight
from studfinder.report.screen import Screen
from studfinder.report.tables import ranked, searched
from studfinder.report.words import (
    bidirectional_sentence,
    census_sentence,
    count,
    dims_in_words,
    layers_and_experts,
    number,
    one_more,
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
    _other_numbers(findings, console)
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
    shown, proved = weights[:_ROWS], any(weight.effect for weight in weights)
    columns = {
        "super weight": [str(weight) for weight in shown],
        "weight": [f"{weight.value:+.3f}" for weight in shown],
        "input": [f"{weight.input_spike:,.0f}" for weight in shown],
        "output": [f"{weight.output_spike:,.0f}" for weight in shown],
        "share": [f"{weight.share:.0%}" for weight in shown],
    }
    if not proved:
        columns["score"] = [f"{weight.score:,.0f}" for weight in shown]
    else:
        columns |= {"predicted": [number(weight.predicted) for weight in shown]} if findings.census else {}
        columns |= _effects([weight.effect for weight in shown])
    _print_table(columns, [weight.verdict for weight in shown], ("predicted",), console)
    more = weights[_ROWS:]
    if more:
        console.print(f"  and {len(more)} more ({_by_verdict(more)}) in findings.json", style="dim")
    console.print()


def _other_numbers(findings: Findings, console: Screen) -> None:
    """Those that were tested; the others are counted."""
    numbers = ranked(findings.other_numbers)
    tested = [one for one in numbers if one.effect is not None]
    if not tested:
        return
    rows: list[tuple[str, str, str, str, Effect | None, str]] = []
    for one in tested[:_ROWS]:
        rows.append((one.name, one.kind, f"{one.value:+.3g}", number(one.predicted), one.effect, one.verdict))
        if one_more(one):
            rows.append(("  its factor 1 + w at 0", "", "", number(one.predicted_off), one.effect_off, ""))
    names, kinds, values, predicted, effects, verdicts = zip(*rows, strict=True)
    columns = {"other number": names, "kind": kinds, "weight": values, "predicted": predicted, **_effects(effects)}
    _print_table(columns, verdicts, ("weight", "kind", "predicted"), console)
    if any(map(one_more, tested[:_ROWS])):
        console.print("  of a gain 1 + w the first line sets w to 0, which leaves the factor 1", style="dim")
    more = tested[_ROWS:]
    if more:
        console.print(f"  and {len(more)} more ({_by_verdict(more)}) in findings.json", style="dim")
    if len(numbers) > len(tested):
        console.print(f"  and {count(len(numbers) - len(tested), 'untested number')} in findings.json", style="dim")
    console.print()


def _print_table(
    columns: Mapping[str, Sequence[str]], verdicts: Sequence[str], less: Sequence[str], console: Screen
) -> None:
    """A row a number, its name first and its verdict last; columns in `less` are left out, the first first, where there
    is no room for them."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if not place or name == "kind" else "right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for *cells, verdict in zip(*columns.values(), verdicts, strict=True):
        table.add_row(*cells, Text(verdict, style=_STYLE.get(verdict, "")))
    wanted = console.measure(table, options=console.options.update(width=10**4)).maximum
    if wanted > console.width and less:
        narrower = {name: cells for name, cells in columns.items() if name != less[0]}
        return _print_table(narrower, verdicts, less[1:], console)
    console.print(table)
    return None


def _effects(effects: Sequence[Effect | None]) -> dict[str, list[str]]:
    return {
        "KL": [f"{effect.kl.value:.3g}" if effect else "" for effect in effects],
        "perplexity": [f"x {effect.perplexity_ratio.value:.3g}" if effect else "" for effect in effects],
    }


def _by_verdict(numbers: Sequence[SuperWeight | OtherNumber]) -> str:
    return ", ".join(f"{n} {verdict}" for verdict, n in Counter(one.verdict for one in numbers).most_common())


def _facts(findings: Findings, console: Screen) -> None:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    if not findings.super_weights:
        grid.add_row("super weights", _none(findings, "super-weight candidates"))
    if findings.census:
        grid.add_row("all numbers", census_sentence(findings))
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
    best = next(iter(findings.super_weights or ranked(findings.proven_numbers)), None)
    if best is not None:
        console.print(
            f"python    sf.load({findings.model.id!r}).model.get_parameter({shorten(best.parameter)!r})"
            f"[{', '.join(map(str, best.index))}]  # {best.value:+.4g}",
            soft_wrap=True,
        )
