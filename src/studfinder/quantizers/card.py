"""The model card of a quantised checkpoint."""

from __future__ import annotations

from studfinder.records import Quantization


def card(done: Quantization) -> str:
    """The README.md of the checkpoint."""
    served = done.kernel or ("none needed: the weights are dense" if done.stored_as == "dense" else "none known")
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {done.model}",
        f"tags: [studfinder, {'quantized' if done.stored_as == 'dense' else 'compressed-tensors'}]",
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
        f"| format | {_format(done.stored_as)} |",
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
