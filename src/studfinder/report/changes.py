"""What changed between two scans: which numbers still carry the model, and which activations moved."""

from __future__ import annotations

from collections import Counter

from studfinder.records import Cell, Findings, MassiveActivation, OtherNumber, SuperWeight, Table
from studfinder.report.words import count

_ALIKE = 0.25
"""A number or an activation within this share of what it was is said to be as it was."""


def changes(before: Findings, after: Findings) -> tuple[list[str], list[Table]]:
    """Sentences, and tables of every proven number and every dim with massive activations of either scan.

    Models of unlike shapes share no places: of them a sentence says so, and there are no tables.
    """
    shapes = [(one.model.layers, one.model.hidden, one.model.intermediate) for one in (before, after)]
    if shapes[0] != shapes[1]:
        return ["The two models are of unlike shapes, so no number of one has its place in the other."], []
    numbers, activations = _numbers(before, after), _activations(before, after)
    heads = [{(one.layer, one.head) for one in of.attention_sinks} for of in (before, after)]
    said = [_said("proven number", numbers), _said("massive dim", activations)]
    if any(heads):
        kept = len(heads[0] & heads[1])
        said.append(
            f"Heads with an attention sink: {len(heads[0])} before, {len(heads[1])} after, {kept} of them the same."
        )
    return [one for one in said if one], [table for table in (numbers, activations) if table.rows]


def _said(one: str, table: Table) -> str:
    """How many of each kind of change, and of what is gone or new the names."""
    if not table.rows:
        return ""
    kinds = Counter(str(row[-1]).partition(":")[0] for row in table.rows)
    named = {
        kind: ", ".join(str(row[0]) for row in table.rows if str(row[-1]).partition(":")[0] == kind)
        for kind, n in kinds.items()
        if kind not in ("survived", "as it was") and n <= 4
    }
    parts = [f"{n} {kind}" + (f" ({named[kind]})" if kind in named else "") for kind, n in kinds.most_common()]
    return f"Of {count(len(table.rows), one)} in either: {', '.join(parts)}."


def _numbers(before: Findings, after: Findings) -> Table:
    every = [_by_place(of) for of in (before, after)]
    rows: list[tuple[Cell, ...]] = []
    for place in dict.fromkeys((one.parameter, one.index) for of in (before, after) for one in of.proven_numbers):
        was, now = (of.get(place) for of in every)
        named = was or now
        rows.append((str(named), *_number(was), *_number(now), _fate(was, now)))
    heads = ("number", "value before", "KL before", "value after", "KL after", "what became of it")
    note = "All that were proven in either. KL: of setting the number to zero, nats per token."
    return Table(title="Numbers that carry the model", columns=heads, rows=tuple(rows), note=note)


def _by_place(findings: Findings) -> dict[tuple[str, tuple[int, ...]], SuperWeight | OtherNumber]:
    every: list[SuperWeight | OtherNumber] = [*findings.super_weights, *findings.other_numbers]
    return {(one.parameter, one.index): one for one in every}


def _number(one: SuperWeight | OtherNumber | None) -> tuple[Cell, Cell]:
    return (None, None) if one is None else (one.value, one.effect.kl if one.effect else None)


def _fate(was: SuperWeight | OtherNumber | None, now: SuperWeight | OtherNumber | None) -> str:
    proven = [one is not None and one.verdict.startswith("proven") for one in (was, now)]
    if now is None:
        return "gone: no candidate any more"
    if not proven[1]:
        return f"no longer proven: {now.verdict}"
    if was is None or not proven[0]:
        return "new"
    return "survived" if abs(now.value - was.value) <= _ALIKE * abs(was.value) else "survived, changed"


def _activations(before: Findings, after: Findings) -> Table:
    found = [_by_dim(of) for of in (before, after)]
    rows: list[tuple[Cell, ...]] = []
    for dim in sorted({*found[0], *found[1]}, key=lambda dim: -max(_size(of.get(dim)) for of in found)):
        was, now = (of.get(dim) for of in found)
        rows.append((f"dim {dim}", _top(was), _layers(was), _top(now), _layers(now), _moved(was, now)))
    heads = ("dim", "largest before", "layers before", "largest after", "layers after", "what became of it")
    return Table(title="Massive activations, by dim", columns=heads, rows=tuple(rows))


def _by_dim(findings: Findings) -> dict[int, list[MassiveActivation]]:
    dims: dict[int, list[MassiveActivation]] = {}
    for entry in findings.massive_activations:
        dims.setdefault(entry.dim, []).append(entry)
    return dims


def _size(entries: list[MassiveActivation] | None) -> float:
    return max((abs(one.value) for one in entries or ()), default=0.0)


def _top(entries: list[MassiveActivation] | None) -> Cell:
    return max((one.value for one in entries), key=abs) if entries else None


def _layers(entries: list[MassiveActivation] | None) -> Cell:
    if not entries:
        return None
    layers = [one.layer for one in entries]
    return f"{min(layers)} to {max(layers)}"


def _moved(was: list[MassiveActivation] | None, now: list[MassiveActivation] | None) -> str:
    if not now:
        return "gone"
    if not was:
        return "new"
    parts = []
    if _layers(was) != _layers(now):
        parts.append("other layers")
    if abs(_size(now) - _size(was)) > _ALIKE * _size(was):
        parts.append(f"{_size(now) / _size(was):.3g} times as large")
    carriers = [{one.token_class for one in of} for of in (was, now)]
    if carriers[0] != carriers[1]:
        parts.append("on other tokens")
    return f"moved: {', '.join(parts)}" if parts else "as it was"
