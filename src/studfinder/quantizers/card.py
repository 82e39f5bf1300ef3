"""The record of a quantised checkpoint and its model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What was done to a checkpoint, as written to studfinder.json in it.

    Attributes:
        model, origin: the id it was asked for by, and where it came from.
        method, settings: the method's class and record.
        scheme, kernel: in words; what vLLM runs it with, or None.
        format: of the checkpoint.
        bits: true bits a weight over all matrices in the blocks: elements, scales, zero points, and what is left in
            full precision.
        quantized, skipped: how many matrices, and which fused groups stay as they are.
        kept: what was asked to be kept, in words.
        instead: fused groups that are skipped because the format has no place for the numbers to keep in them.
        notes: what methods and transforms report of themselves.
        calibration: the text and its size, or None.
        verified: how the written files were held against what was meant, in words.
        scores: by name, a line each, of this model beside the one it was made from.
        versions, made: of the packages; when.
    """

    model: str
    origin: str
    method: str
    settings: Mapping[str, Any]
    scheme: str
    kernel: str | None
    format: str
    bits: float
    quantized: int
    skipped: tuple[str, ...]
    kept: tuple[str, ...]
    instead: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibration: str | None = None
    scores: Mapping[str, str] = field(default_factory=dict)
    verified: str = "not verified"
    versions: Mapping[str, str]
    made: str


def card(done: Quantization) -> str:
    """The README.md of the checkpoint."""
    served = done.kernel or ("none needed: the weights are dense" if done.format == "dense" else "none known")
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {done.model}",
        f"tags: [studfinder, {'quantized' if done.format == 'dense' else 'compressed-tensors'}]",
        "---",
        f"# {done.model.rstrip('/').rpartition('/')[2]}, quantised",
        "",
        f"Made by studfinder {done.versions.get('studfinder', '')} from {done.model} ({done.origin}).",
        "",
        "| | |",
        "|---|---|",
        f"| method | {done.method} |",
        f"| scheme | {done.scheme} |",
        f"| bits per weight | {done.bits:.3f} over the matrices of the blocks, scales and zero points included |",
        f"| matrices quantised | {done.quantized} |",
        f"| format | {_format(done.format)} |",
        f"| kernel in vLLM | {served} |",
        f"| verified | {done.verified} |",
        f"| calibration text | {done.calibration or 'none: the method looks at the weights only'} |",
        "",
        *_section("Scores", [f"{name}: {line}" for name, line in done.scores.items()]),
        *_section("Kept", list(done.kept) or ["nothing was asked to be kept"]),
    ]
    if done.instead:
        lines += [
            "The format has no place for single numbers, so the matrices that hold them stay as they were:",
            "",
            *(f"- `{name}`" for name in done.instead),
            "",
        ]
    left = [name for name in done.skipped if name not in done.instead]
    lines += _section("Left in full precision", ["embeddings, head and norms", *(f"`{name}`" for name in left)])
    lines += _section("Notes", [*done.notes, *_caution(done.origin)])
    settings = "\n".join(f"    {name}: {value}" for name, value in done.settings.items())
    return "\n".join([*lines, "## Recipe", "", settings, "", f"Made {done.made}.", ""])


def _format(format: str) -> str:
    return "dense: dequantised weights" if format == "dense" else f"compressed-tensors, {format}"


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {line}" for line in lines), ""] if lines else []


def _caution(origin: str) -> list[str]:
    if "Q4" not in origin:
        return []
    return [
        "The model it was made from comes from 4-bit blocks of 32 itself, so that quantising it to 4 bits in groups of "
        "32 is nearly lossless by construction: judge groups of 64 and more."
    ]
