"""Findings as something to paste."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from studfinder.records import Findings, SuperWeight


def as_python(findings: Findings, weights: Sequence[SuperWeight]) -> str:
    """Code that reads these weights from the model."""
    if not weights:
        return ""
    lines = ["import studfinder as sf", "", f"lm = sf.load({findings.model.id!r})", "super_weights = ["]
    for weight in weights:
        index = ", ".join(map(str, weight.index))
        lines.append(f"    ({weight.parameter!r}, ({index})),  # {weight.value:+.6g}, {weight.verdict}")
    lines += [
        "]",
        "for name, index in super_weights:",
        "    print(name, index, lm.model.get_parameter(name)[index])",
        "",
    ]
    return "\n".join(lines)


def as_keep(folder: str) -> str:
    """The option that hands these findings to a quantiser."""
    return f"--keep {shlex.quote(folder or 'findings.json')}"
