"""Findings as something to paste."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from studfinder.records import Findings, OtherNumber, SuperWeight


def as_python(findings: Findings, numbers: Sequence[SuperWeight | OtherNumber]) -> str:
    """Code that reads these numbers from the model."""
    if not numbers:
        return ""
    lines = ["import studfinder as sf", "", f"lm = sf.load({findings.model.id!r})", "numbers = ["]
    lines += [f"    ({one.parameter!r}, {one.index!r}),  # {one.value:+.6g}, {one.verdict}" for one in numbers]
    lines += [
        "]",
        "for name, index in numbers:",
        "    print(name, index, lm.model.get_parameter(name)[index])",
        "",
    ]
    return "\n".join(lines)


def as_keep(folder: str) -> str:
    """The option that hands these findings to a quantiser."""
    return f"--keep {shlex.quote(folder or 'findings.json')}"
