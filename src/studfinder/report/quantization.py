"""A quantised checkpoint as tables: what was done to it, what was kept, how it scores."""

from __future__ import annotations

from studfinder.records import Cell, Quantization, RunCard, Table
from studfinder.report.result import Sheet


def quantization_sheet(done: Quantization) -> Sheet:
    """What a person reads of a quantised checkpoint."""
    facts: list[tuple[Cell, ...]] = [
        ("scheme", done.scheme),
        ("method", done.method),
        ("bits a weight, over the matrices of the blocks", done.bits),
        ("matrices quantised", done.quantized),
        ("stored as", done.stored_as),
        ("seen to load in", done.engines),
        ("calibration text", done.calibration or "none: the method looks at the weights only"),
        ("verified", done.verified),
    ]
    tables = [Table(title="What was done", columns=("what", "value"), rows=tuple(facts))]
    if done.scores:
        rows = tuple((name, line) for name, line in done.scores.items())
        tables.append(Table(title="Beside the original", columns=("score", "value"), rows=rows))
    kept = [*(("kept", line) for line in done.kept), *(("left whole", name) for name in done.skipped)]
    if kept:
        tables.append(Table(title="Kept", columns=("how", "what"), rows=tuple(kept)))
    run = RunCard(verb="quantize", key="", settings={}, started=done.made, versions=dict(done.versions))
    return Sheet(
        title=f"{done.model}, quantised",
        lead=f"From {done.origin}.",
        models=(),
        run=run,
        record=done,
        tables=tables,
        notes=done.notes,
    )
