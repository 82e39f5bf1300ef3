"""The model card of a quantised checkpoint."""

from __future__ import annotations

import re

import yaml

from studfinder.records import Quantization
from studfinder.report.escaped import code, for_markdown, for_yaml
from studfinder.visible import visible


def card(done: Quantization) -> str:
    """The README.md of the checkpoint."""
    stored = "dense: dequantised weights" if done.stored_as == "dense" else f"compressed-tensors, {done.stored_as}"
    calibration = done.calibration or "none: the method looks at the weights only"
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {for_yaml(done.model)}",
        "base_model_relation: quantized",
        *_metrics(done),
        f"tags: [studfinder, {'quantized' if done.stored_as == 'dense' else 'compressed-tensors'}]",
        "---",
        f"# {for_markdown(done.model.rstrip('/').rpartition('/')[2])}, quantised",
        "",
        for_markdown(f"Made by studfinder {done.versions.get('studfinder', '')} from {done.model} ({done.origin})."),
        "",
        "| | |",
        "|---|---|",
        f"| method | {for_markdown(done.method)} |",
        f"| scheme | {for_markdown(done.scheme)} |",
        f"| bits per weight | {done.bits:.3f} over the matrices of the blocks, scales and zero points included |",
        f"| matrices quantised | {done.quantized} |",
        f"| format | {for_markdown(stored)} |",
        f"| seen to load in | {for_markdown(done.engines)} |",
        f"| verified | {for_markdown(done.verified)} |",
        f"| calibration text | {for_markdown(calibration)} |",
        "",
        *_section("Scores", [for_markdown(f"{name}: {line}") for name, line in done.scores.items()]),
        *_section("Kept", [for_markdown(line) for line in done.kept] or ["nothing was asked to be kept"]),
    ]
    if done.instead:
        lines += [
            "The format has no place for single numbers, so the matrices that hold them stay as they were:",
            "",
            *(f"- {code(name)}" for name in done.instead),
            "",
        ]
    left = [name for name in done.skipped if name not in done.instead]
    lines += _section("Left in full precision", ["embeddings, head and norms", *map(code, left)])
    lines += _section("Notes", [*map(for_markdown, done.notes), *_caution(done.origin)])
    settings = "\n".join(f"    {visible(name)}: {visible(value)}" for name, value in done.settings.items())
    return "\n".join([*lines, "## Recipe", "", settings, "", f"Made {for_markdown(done.made)}.", ""])


def _metrics(done: Quantization) -> list[str]:
    """What was measured on the written files, as the hub reads it."""
    measured = [
        {"type": kind, "name": name, "value": float(number[0])}
        for name, line in done.scores.items()
        for begins, kind in (("KL", "kl-divergence"), ("perplexity", "perplexity"))
        if name.startswith(begins) and (number := re.match(r"\d+(\.\d+)?(?=[,\s])", line))
    ]
    if not measured:
        return []
    data = {"type": "text", "name": "the text that the score names"}
    result = {"task": {"type": "text-generation"}, "dataset": data, "metrics": measured}
    index = [{"name": done.model.rstrip("/").rpartition("/")[2], "results": [result]}]
    return yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True).rstrip().splitlines()


def _section(title: str, lines: list[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {line}" for line in lines), ""] if lines else []


def _caution(origin: str) -> list[str]:
    if "Q4" not in origin:
        return []
    return [
        "The model it was made from comes from 4-bit blocks of 32 itself: with a scale and a float minimum a block, as "
        "there, 4 bits in groups of 32 hardly lose anything (with an integer zero point they do). Judge groups of 64 "
        "and more."
    ]
