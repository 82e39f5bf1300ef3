"""anatomy: the parts of a model in words, one paragraph for all layers that are built alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from studfinder.models import Anatomy, HeadRows, Layer, MatrixRef, Mixer, Rows, Writer
from studfinder.models.probe import renamed

_STAGES = {
    "post-RoPE": "queries and keys are read after RoPE, as attention receives them",
    "pre-RoPE": "queries and keys are read before RoPE, as its matrices give them: attention of its own, outside "
    "transformers' AttentionInterface",
    "no RoPE": "no RoPE",
}
_UNKNOWN = "unknown: probing could not confirm it"


def anatomy_in_words(anatomy: Anatomy) -> list[tuple[str, list[tuple[str, str]]]]:
    """A heading and (part, what it is) pairs: first of the model, then of each kind of layer. Names are relative to the
    block; those of parts that blocks share are whole."""
    facts = [
        ("blocks", f"{len(anatomy.layers)} at {anatomy.layers[0].block.rpartition('.')[0]}"),
        ("hidden size", f"{anatomy.hidden:,}"),
        ("vocabulary", f"{anatomy.vocabulary:,}"),
    ]
    if anatomy.streams > 1:
        each = anatomy.hidden // anatomy.streams
        facts[1] = ("hidden size", f"{anatomy.streams} residual streams of {each:,} side by side")
    if anatomy.max_positions is not None:
        facts.append(("positions", f"{anatomy.max_positions:,} at most, its configuration says"))
    kinds: dict[Layer, list[int]] = {}
    for number, layer in enumerate(anatomy.layers):
        kinds.setdefault(_relative(layer, layer.block), []).append(number)
    layers = [
        (f"layer{'s' * (len(numbers) > 1)} {_runs(numbers)}", list(_layer(kind))) for kind, numbers in kinds.items()
    ]
    return [(anatomy.architecture, facts), *layers]


def _relative(value: Any, block: str) -> Any:
    """The same with names relative to the block."""
    return renamed(value, lambda name: "" if name == block else name.removeprefix(f"{block}."))


def _runs(numbers: Sequence[int]) -> str:
    """0-2, 4."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _layer(layer: Layer) -> Iterator[tuple[str, str]]:
    for mixer in layer.mixers:
        yield from _attention(mixer) if mixer.kind == "softmax" else _recurrence(mixer)
    if not layer.mixers:
        yield "attention", "none"
    by_parameter: dict[str, list[Writer]] = {}
    for writer in layer.writers:
        # experts that are kept apart differ in a number alone
        key = ".".join("#" if part.isdigit() else part for part in writer.parameter.split("."))
        by_parameter.setdefault(key if writer.routed else writer.parameter, []).append(writer)
    for writers in by_parameter.values():
        yield from _feed_forward(writers)
    if not layer.writers:
        yield "feed-forward", "none: there is nowhere to look for super weights"
    if layer.routers:
        yield "router", ", ".join(map(_short, layer.routers))
    if layer.norms:
        yield "norms", ", ".join(norm.module + " (times 1 + weight)" * bool(norm.offset) for norm in layer.norms)
    else:
        yield "norms", "none found"
    for group in layer.fused:
        yield "fused", f"{' + '.join(group)}: one matrix in serving engines, so they share a format"


def _attention(mixer: Mixer) -> Iterator[tuple[str, str]]:
    said = [f"{mixer.module}: softmax", f"{mixer.heads} heads of {mixer.head_dim}"]
    if mixer.kv_heads != mixer.heads:
        said.append(f"{mixer.kv_heads} for keys and values")
    if mixer.value_dim != mixer.head_dim:
        said.append(f"values of {mixer.value_dim}")
    stage = _STAGES[mixer.stage]
    if mixer.stage == "no RoPE" and not mixer.interface:
        stage = "no RoPE; attention of its own, outside transformers' AttentionInterface"
    yield "attention", ", ".join(said) + f"; {stage}"
    if mixer.turned:
        yield "  RoPE", f"turns the dims of a head from {mixer.turned} on"
    for name, rows in (("queries", mixer.query), ("keys", mixer.key), ("values", mixer.value)):
        yield f"  {name}", _UNKNOWN if rows is None else _heads(rows)
    yield "  output", _UNKNOWN if mixer.output is None else _matrix(mixer.output)
    if mixer.gate is not None:
        yield "  gate", f"{_heads(mixer.gate)}, times what attention gives"


def _recurrence(mixer: Mixer) -> Iterator[tuple[str, str]]:
    yield (
        "mixer",
        f"{mixer.module}: no softmax (linear attention, a recurrence or a convolution), so there are no queries and "
        "keys: skipped where those are read",
    )
    if mixer.output is not None:
        yield "  output", _matrix(mixer.output)


def _feed_forward(writers: Sequence[Writer]) -> Iterator[tuple[str, str]]:
    first, last = writers[0], writers[-1]
    if not first.routed:
        yield "feed-forward", f"down: {_matrix(first)}"
    elif first.parameter == last.parameter:
        yield "experts", f"{len(writers)} in {_matrix(first)}" + ", one under the other" * bool(first.stacked)
    else:
        yield "experts", f"{len(writers)}: {_matrix(first)} to {_matrix(last)}"
    if first.up is None:
        yield "  up, gate", _UNKNOWN
        return
    both = first.gate is not None and first.gate.ref.parameter == first.up.ref.parameter
    yield "  up", _rows(first.up, both)
    yield "  gate", "none" if first.gate is None else _rows(first.gate, both)


def _matrix(ref: MatrixRef) -> str:
    return _short(ref.parameter) + " (stored in, out)" * ref.transposed


def _rows(rows: Rows, shared: bool) -> str:
    """Of a matrix that holds others' rows too: which."""
    if not shared:
        return _matrix(rows.ref)
    which = f"from row {rows.first} on" if rows.step == 1 else f"every {rows.step}th row from {rows.first} on"
    return f"{_matrix(rows.ref)}, {which.replace('2th', '2nd')}"


def _heads(rows: HeadRows) -> str:
    starts = list(dict.fromkeys(rows.first))
    ends = [first + rows.width - 1 for first in starts]
    if all(end + 1 == start for end, start in zip(ends, starts[1:], strict=False)):
        return f"{_matrix(rows.ref)}, rows {starts[0]}-{ends[-1]}"
    shown = ", ".join(f"{start}-{end}" for start, end in list(zip(starts, ends, strict=True))[:2])
    return f"{_matrix(rows.ref)}, rows {shown}{' and so on' * (len(starts) > 2)}, a piece a head"


def _short(parameter: str) -> str:
    return parameter.removesuffix(".weight")
