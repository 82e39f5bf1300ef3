"""A gate: conditions on what was measured, at which a command ends with 1."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from studfinder.errors import StudfinderError, unknown
from studfinder.records import Interval

_SIGNS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_CONDITION = re.compile(r"\s*(?P<name>[^<>=]+?)(?:\.(?P<end>low|high|value))?\s*(?P<sign>[<>]=?)\s*(?P<limit>\S+)\s*")
WORSE = "worse"


@dataclass(frozen=True)
class Gate:
    """A condition at which a check fails.

    Attributes:
        said: as it was said.
        name: what is looked at; "worse" is any change that is called so, and "ill" a diagnosis that found a cause.
        end: "value", or an end of the interval: "low", "high".
        sign, limit: of a number.
    """

    said: str
    name: str
    end: str = "value"
    sign: str = ""
    limit: float = 0.0

    def fails(self, value: Interval | bool) -> bool:
        """Whether the condition holds, so that the check fails."""
        if isinstance(value, bool):
            return value
        return _SIGNS[self.sign](float(getattr(value, self.end)), self.limit)


def parse_gates(lines: Iterable[str], words: Iterable[str] = ()) -> tuple[Gate, ...]:
    """Conditions such as "kl>0.1", "kl.high>0.1", "agreement<0.9", or one of some words alone.

    Raises:
        StudfinderError: a line is none.
    """
    found, words = [], tuple(words)
    for line in lines:
        if line.strip() in words:
            found.append(Gate(line, line.strip()))
            continue
        parts = _CONDITION.fullmatch(line)
        try:
            limit = float(parts["limit"]) if parts else float("nan")
        except ValueError:
            limit = float("nan")
        if parts is None or limit != limit:
            alone = f", or {' or '.join(words)}" if words else ""
            raise StudfinderError(
                f"--fail-if {line[:60]!r}", expected=f'a condition, e.g. "kl>0.1" or "kl.high>0.1"{alone}'
            )
        found.append(Gate(line, parts["name"].strip(), parts["end"] or "value", parts["sign"], limit))
    return tuple(found)


def failed_gates(gates: Iterable[Gate], values: Mapping[str, Interval | bool]) -> list[str]:
    """The conditions that hold, with the numbers at which they do.

    Raises:
        StudfinderError: something that was not measured is asked for.
    """
    failed = []
    for gate in gates:
        if gate.name not in values:
            raise unknown("--fail-if asks for what was not measured:", gate.name, values)
        value = values[gate.name]
        if isinstance(value, bool) != (not gate.sign):
            kind = "a word of its own" if isinstance(value, bool) else "a number"
            raise StudfinderError(
                f"--fail-if {gate.said!r}: {gate.name} is {kind}", expected='e.g. "kl>0.1" or "worse"'
            )
        if gate.fails(value):
            failed.append(f"{gate.said}: " + ("yes" if isinstance(value, bool) else f"{gate.name} is {value}"))
    return failed
