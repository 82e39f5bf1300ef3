"""Whether a model's largest activations fit into a format: by layer, beside what each can hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from studfinder.records import Cell, Findings, Table
from studfinder.report.profile import Profile, magnitude

LIMITS = {"fp8 e4m3": 448.0, "fp8 e5m2": 57_344.0, "fp16": 65_504.0}
"""The largest number of each format, to which no scale is applied."""
_STEPS = 127
"""Of int8, on either side of zero: with one scale for all, what is below half a step of the largest becomes 0."""
_SUM = 2**31 // _STEPS**2
"""So many products of 8-bit numbers fit into 32 bits, whatever they are."""


def layer_ranges(profile: Profile) -> dict[str, np.ndarray]:
    """By what was read, the largest |a| of each layer (L,): of the residual stream after it, and of what goes into its
    down projection. NaN where nothing finite was seen."""
    found = {}
    if "residual.top" in profile and len(profile["residual.top"]) > 1:
        top = magnitude(profile["residual.top"][1:])
        found["residual"] = np.fmax.reduce(np.pad(top, ((0, 0), (0, 1)), constant_values=np.nan), axis=1)
    if "spike.input" in profile:
        found["input of down_proj"] = magnitude(profile["spike.input"])
    return found


def ranges_table(findings: Findings, profile: Profile) -> Table | None:
    """What fits and what will overflow, and where; None where nothing was read."""
    found = layer_ranges(profile)
    if not found:
        return None
    rows: list[tuple[Cell, ...]] = []
    for name, limit in LIMITS.items():
        where = (_layers(_over(findings, of, sizes, limit)) for of, sizes in found.items())
        rows.append((f"{name}, no scale", f"{limit:,.0f}", *where))
    if "residual" in found:
        median = magnitude(profile["residual.median"][1:])
        lost = np.flatnonzero(found["residual"] > 2 * _STEPS * median).tolist()
        cells = [_layers(lost, "the median becomes 0") if of == "residual" else None for of in found]
        rows.append(("int8, one scale for a layer", f"{2 * _STEPS} × the median", *cells))
    widest = max(findings.model.hidden, findings.model.intermediate)
    fits = "fits" if widest <= _SUM else "will overflow"
    rows.append(("sums of 8-bit products in int32", f"{_SUM:,} terms", *[f"{fits}: {widest:,} at most"] * len(found)))
    return Table(
        title="Will it overflow?",
        columns=("format", "holds up to", *found),
        rows=tuple(rows),
        note=f"By the largest numbers seen on {findings.prompts.total:,} tokens; other text may reach further. "
        "A scale for each token or tensor moves the limit, and costs what is small.",
    )


def _over(findings: Findings, of: str, sizes: np.ndarray, limit: float) -> Sequence[int]:
    site = "residual" if of == "residual" else "down_proj.input"
    return [at for at, size in enumerate(sizes) if size > limit or f"{site}[{at}]" in findings.nonfinite]


def _layers(layers: Sequence[int], what: str = "will overflow") -> str:
    """In words, neighbours together."""
    if not layers:
        return "fits"
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    named = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
    return f"{what} at layer{'s' * (len(layers) > 1)} {named}"
