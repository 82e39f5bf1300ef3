"""Plant a number in each kind of parameter of tiny models of every architecture: where does the census put it?

    python benchmarks/census_types.py [TYPE ...]

Writes docs/results/census-types.json, which a test holds against another run, and docs/results/census-types.md. What is
not asked for stays as an earlier run wrote it.
"""
# ruff: noqa: E402 (the tiny models stand beside the tests)

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from architected import TYPES
from planted import CARRIES, FACTORS, FIRST, LITTLE, LOUDER, plants
from studfinder.records import Table
from studfinder.report.cells import markdown

RECORD = ROOT / "docs" / "results" / "census-types.json"
PARTS = {
    "embedding": r"embed(?!.*norm)|wte|wpe|embedding",
    "head": r"lm_head|^head|output\.weight",
    "gain": r"norm(?!.*bias)|ln_.*weight|layernorm",
    "bias": r"bias",
    "router": r"router|\.gate\.weight|gate\.w",
    "expert": r"expert",
    "convolution": r"conv",
    "state space": r"A_log|\.D$|dt_|x_proj|in_proj|mamba|mixer|linear_attn|ssm|time_",
    "query, key, value": r"q_proj|k_proj|v_proj|qkv|query|key|value|c_attn|kv_|q_a|q_b|\.W_",
    "attention output": r"o_proj|out_proj|attn\.c_proj|dense\.weight|attention\.output",
    "gate, up": r"gate|up_proj|c_fc|fc1|fc_in|h_to_4h|dense_h|w1|w3",
    "down": r"down|mlp\.c_proj|fc2|fc_out|4h_to_h|w2",
}
"""What a parameter is, by its name: the first that fits."""
_SIZES = ("|w| x input", "|w| / median")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="by default all")
    record = json.loads(RECORD.read_text("utf-8")) if RECORD.exists() else {}
    for kind in parser.parse_args().types or TYPES:
        record[kind] = {one.kind: _plain(asdict(one), one.best, one.carries_most) for one in plants(kind)}
        RECORD.write_text(_text(record), "utf-8")
        print(kind, len(record[kind]), "planted,", sum(one["best"] <= FIRST for one in record[kind].values()), "first")
    RECORD.with_suffix(".md").write_text(_page(dict(sorted(record.items()))), "utf-8")


def _plain(plant: dict[str, Any], best: int, carries_most: bool) -> dict[str, Any]:
    rounded = {name: float(f"{plant[name]:.3g}") for name in ("loudest", "kl", "predicted")}
    return {"factor": plant["factor"], **rounded, "places": plant["places"], "best": best, "most": carries_most}


def _text(record: dict[str, dict[str, Any]]) -> str:
    """JSON, one plant a line."""
    types = [
        f'"{kind}": {{\n' + ",\n".join(f" {json.dumps(name)}: {json.dumps(one)}" for name, one in found.items()) + "}"
        for kind, found in sorted(record.items())
    ]
    return "{\n" + ",\n".join(types) + "\n}\n"


def _page(record: dict[str, dict[str, dict[str, Any]]]) -> str:
    rows = [(kind, name, one) for kind, found in record.items() for name, one in found.items()]
    counts: dict[str, Counter[str]] = {part: Counter() for part in [*PARTS, "other"]}
    for _, name, one in rows:
        count, first = counts[_part(name)], {order for order, place in one["places"].items() if place <= FIRST}
        count["planted"] += 1
        if one["most"]:
            count["most"] += 1
            count["scan"] += bool(first & {"census", "spikes"})
            for order in _SIZES:
                count[order] += bool(first & {"census", "spikes", order})
        else:
            count["kind"] += "own kind" in first
    shown = [
        (part, c["planted"], c["most"], c["scan"], *(c[order] for order in _SIZES), c["planted"] - c["most"], c["kind"])
        for part, c in counts.items()
        if c["planted"]
    ]
    sums = [sum(row[at] for row in shown) for at in range(1, len(shown[0]))]
    summary = Table(
        title="By part",
        columns=(
            *("part", "planted", "carry most", "of these first by census or spikes"),
            *(f"or by {order}" for order in _SIZES),
            *("carry less", "of these first of their kind by census"),
        ),
        rows=(*shown, ("all", *sums)),
    )
    behind = Table(
        title="Carry most, and first in neither census nor spikes",
        columns=(*("type", "parameter", "times", "loudest other", "carries", "predicted", "census"), *_SIZES),
        rows=tuple(
            (
                kind,
                name,
                one["factor"],
                one["loudest"],
                one["kl"],
                one["predicted"],
                *map(one["places"].get, ("census", *_SIZES)),
            )
            for kind, name, one in rows
            if one["most"] and one["best"] > FIRST
        ),
        note="Carries, predicted and the loudest other in nats per token. No place: not among the first 1,000, or 20.",
    )
    return "\n".join([_HEAD.format(types=len(record)), markdown(summary), markdown(behind)])


_HEAD = f"""# What is planted, by type

    python benchmarks/census_types.py

Tiny random models of {{types}} architectures. In each kind of parameter one number, in the middle of the depth, is
made {FACTORS[0]} to {FACTORS[-1]} times as large as the largest beside it: by the smallest of these factors with which
taking it out costs {LOUDER} times as much as the loudest of all others, and at least {CARRIES} nats (it carries most).
That is measured on text that ranks nothing. Where no factor is enough, by the smallest that reaches half of what any
does (it carries less); below {LITTLE} nats nothing is planted.

First is to be among the first {FIRST} of an order: by census, of embeddings or of all others, or by spikes, as the scan
takes them. Two orders by size stand beside them, |w| x input and |w| over the median of its parameter. They see
what census does not: a number that fills its vector, so that a norm takes its size away and the slope with it, and one
that changes which experts a router takes, which no slope sees. But in a random model nothing else is large: they put
what is planted first by construction.
"""


def _part(name: str) -> str:
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "other")


if __name__ == "__main__":
    main()
