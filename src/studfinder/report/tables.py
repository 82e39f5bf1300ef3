"""What the page's tables hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from studfinder.records import Findings, MassiveActivation, SuperWeight
from studfinder.report.words import number, other_lists, token

_RANK = {"proven": 0, "proven-jointly": 1}


@dataclass(frozen=True)
class Searched:
    """One phenomenon: by which rule it was looked for, how much was found and what came nearest."""

    what: str
    rule: str
    found: str
    nearest: str


@dataclass(frozen=True)
class ActivationRow:
    """All massive activations of one dim."""

    dim: int
    entries: int
    layers: str
    largest: MassiveActivation
    token: str
    carriers: str


def ranked(findings: Findings) -> list[SuperWeight]:
    """Super weights: proven ones, then tested ones by effect, then the rest by score."""

    def place(weight: SuperWeight) -> tuple[int, bool, float, float]:
        kl = weight.effect.kl.value if weight.effect is not None else 0.0
        return _RANK.get(weight.verdict, 2), weight.effect is None, -kl, -weight.score

    return sorted(findings.super_weights, key=place)


def activations(findings: Findings) -> list[ActivationRow]:
    """Massive activations by dim, the largest first."""
    dims: dict[int, list[MassiveActivation]] = {}
    for entry in findings.massive_activations:
        dims.setdefault(entry.dim, []).append(entry)
    rows = []
    for dim, entries in dims.items():
        largest = max(entries, key=lambda entry: abs(entry.value))
        layers = [entry.layer for entry in entries]
        classes = sorted({entry.token_class for entry in entries})
        rows.append(ActivationRow(dim, len(entries), _span(layers), largest, token(largest.token), ", ".join(classes)))
    return sorted(rows, key=lambda row: -abs(row.largest.value))


def _span(layers: Iterable[int]) -> str:
    first, last = min(layers := list(layers)), max(layers)
    return str(first) if first == last else f"{first} to {last}"


def searched(findings: Findings) -> list[Searched]:
    """A row a phenomenon."""
    more = [Searched(name, "its detector's own", str(len(entries)), "") for name, entries in other_lists(findings)]
    return [_weights(findings), _activations(findings), _values(findings), _sinks(findings), *more]


def _weights(findings: Findings) -> Searched:
    at, nearest = findings.summary.thresholds, findings.summary.nearest_super_weight
    n, proven = len(findings.super_weights), len(findings.proven)
    found = f"{n}, {proven} proven" if n and any(weight.effect for weight in findings.super_weights) else str(n)
    miss = "" if nearest is None else f"{nearest}: score {nearest.score:.3g}, share {nearest.share:.0%}"
    rule = f"score > {at.get('score', 50):g} and share ≥ {at.get('share', 0.5):.0%}"
    return Searched("super-weight candidates", f"{rule} in every down_proj", found, miss)


def _activations(findings: Findings) -> Searched:
    at, nearest = findings.summary.thresholds, findings.summary.nearest_massive_activation
    rule = f"|a| > {at.get('activation', 100):g} and > {at.get('activation_ratio', 1000):,.0f} × the layer's median"
    miss = ""
    if nearest is not None:
        miss = (
            f"{number(nearest.value)} = {nearest.ratio:,.0f} × the median in layer {nearest.layer}, dim {nearest.dim}"
        )
    return Searched("massive activations", rule, str(len(findings.massive_activations)), miss)


def _values(findings: Findings) -> Searched:
    at, nearest = findings.summary.thresholds, findings.summary.nearest_massive_value
    by = ", ".join(f"{summary.entries} in {summary.tensor}" for summary in findings.summary.massive_values)
    miss = ""
    if nearest is not None:
        miss = f"{nearest.ratio:.2f} × in {nearest.tensor}, layer {nearest.layer}, head {nearest.head}"
        miss += f", dim {nearest.dim}"
    rule = f"norm over all tokens > {at.get('lam', 5):g} × its head's mean"
    return Searched("massive values", rule, by or "attention could not be read", miss)


def _sinks(findings: Findings) -> Searched:
    at, heads = findings.summary.thresholds, findings.summary.sink_heads
    rule = f"mean attention to the first token > {at.get('sink', 0.3):.0%}"
    found = f"{len(findings.attention_sinks)} of {heads} heads" if heads else "attention could not be read"
    return Searched("attention sinks", rule, found, "")
