"""What the page's tables hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from studfinder.records import Findings, MassiveActivation, OtherNumber, SuperWeight
from studfinder.report.words import number, other_lists, token

Number = TypeVar("Number", bound=SuperWeight | OtherNumber)

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


def ranked(numbers: Iterable[Number]) -> list[Number]:
    """Proven ones, then tested ones by effect, then the rest: super weights by score, others by what is predicted."""

    def place(number: SuperWeight | OtherNumber) -> tuple[int, bool, float, float]:
        kl = number.effect.kl.value if number.effect is not None else 0.0
        most = (
            number.score if isinstance(number, SuperWeight) else max(number.predicted or 0, number.predicted_off or 0)
        )
        return _RANK.get(number.verdict, 2), number.effect is None, -kl, -most

    return sorted(numbers, key=place)


def activations(findings: Findings) -> list[ActivationRow]:
    """Massive activations by dim, the largest first."""
    dims: dict[int, list[MassiveActivation]] = {}
    for entry in findings.massive_activations:
        dims.setdefault(entry.dim, []).append(entry)
    rows = []
    for dim, entries in dims.items():
        largest = max(entries, key=lambda entry: abs(entry.value))
        first, last = (choose(entry.layer for entry in entries) for choose in (min, max))
        layers = str(first) if first == last else f"{first} to {last}"
        classes = sorted({entry.token_class for entry in entries})
        rows.append(ActivationRow(dim, len(entries), layers, largest, token(largest.token), ", ".join(classes)))
    return sorted(rows, key=lambda row: -abs(row.largest.value))


def massive_dims(findings: Findings) -> list[int]:
    """Dims with massive activations, the largest first: what other tools ask for."""
    return [row.dim for row in activations(findings)]


def searched(findings: Findings) -> list[Searched]:
    """A row a phenomenon."""
    at, summary = findings.summary.thresholds, findings.summary
    n, tested = len(findings.super_weights), any(weight.effect for weight in findings.super_weights)
    weight, activation, value = (
        summary.nearest_super_weight,
        summary.nearest_massive_activation,
        summary.nearest_massive_value,
    )
    by = ", ".join(f"{of.entries} in {of.tensor}" for of in summary.massive_values)
    sinks = f"{len(findings.attention_sinks)} of {summary.sink_heads} heads" if summary.sink_heads else ""
    return [
        Searched(
            "super-weight candidates",
            f"score > {at.get('score', 50):g} and share ≥ {at.get('share', 0.5):.0%} in every down_proj",
            f"{n}, {len(findings.proven)} proven" if tested else str(n),
            "" if weight is None else f"{weight}: score {weight.score:.3g}, share {weight.share:.0%}",
        ),
        Searched(
            "massive activations",
            f"|a| > {at.get('activation', 100):g} and > {at.get('activation_ratio', 1000):,.0f} × the layer's median",
            str(len(findings.massive_activations)),
            ""
            if activation is None
            else f"{number(activation.value)} = {activation.ratio:,.0f} × the median in layer {activation.layer}, "
            f"dim {activation.dim}",
        ),
        Searched(
            "massive values",
            f"norm over all tokens > {at.get('lam', 5):g} × its head's mean",
            by or "attention could not be read",
            ""
            if value is None
            else f"{value.ratio:.2f} × in {value.tensor}, layer {value.layer}, head {value.head}, dim {value.dim}",
        ),
        Searched(
            "attention sinks",
            f"mean attention to the first token > {at.get('sink', 0.3):.0%}",
            sinks or "attention could not be read",
            "",
        ),
        *_searched_by_census(findings),
        *(Searched(name, "its detector's own", str(len(entries)), "") for name, entries in other_lists(findings)),
    ]


def _searched_by_census(findings: Findings) -> list[Searched]:
    card, others = findings.census, findings.other_numbers
    if card is None:
        return []
    proven = len(findings.proven_numbers) - len(findings.proven)
    tested = any(number.effect for number in others)
    rule = f"the largest of {card.numbers:,} numbers by predicted KL, no candidate yet"
    return [Searched("other numbers", rule, f"{len(others)}, {proven} proven" if tested else str(len(others)), "")]
