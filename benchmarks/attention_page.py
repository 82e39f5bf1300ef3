"""The page that benchmarks/attention.py draws from its numbers."""

from __future__ import annotations

import textwrap
from statistics import median

GOALS = {  # (forward, training step at 512, from 2048 on, decode); None: no goal was set
    "kv_shift": (None, 1.10, 1.05, 1.05),
    "gated, headwise": (1.05, 1.05, 1.05, 1.05),
    "sink_logit": (1.15, 1.15, 1.15, 1.15),
    "softmax_one": (1.15, 1.15, 1.15, 1.15),
    "attention_bias": (1.15, 1.15, 1.15, 1.15),
    "clipped_softmax": (4.0, 3.0, 3.0, None),
    "softpick": (4.0, 3.0, 3.0, None),
}
TIMES = ("forward", "training step", "decode")

_HEAD = """\
# What the attention variants cost

Written by `python benchmarks/attention.py --out docs/results/attention-speed.md`; torch {torch},
{machine}, {threads} thread(s), fp32, batch 1, SmolLM2-135M's shapes (2 layers; 1 from T = 4096 on).

Time as a multiple of SDPA's in the same model: median of interleaved pairs [90 % interval]; in decoding,
of two pairs in either order together. A goal that was set and is missed is marked with its number.
"""
_PEER = """\
The rows of x-transformers {peer} stand beside ours of the same idea: {pairs}. Only full passes are timed, each as a
multiple of that library's own plain model of the same sizes on its fused kernel. Its learned sink does not run on the
fused kernel, so that its row includes the loss of it. Token shift is its nearest thing to KV shift: it moves half of
the features of each block's input by one token. It has no clipped softmax, no softpick and no differential attention.
"""


def goal(name: str, kind: str, length: int) -> float | None:
    """What was to be reached."""
    forward, short, long, step = GOALS.get(name, (None,) * 4)
    return {"forward": forward, "decode": step, "training step": short if length <= 512 else long}[kind]


def page(numbers: dict, names: list[str], peers: dict[str, str], pinned: str) -> str:
    """The page as Markdown.

    Args:
        numbers: {"conditions": {...}, "time": {kind: {name: {T: result}}}, "memory": {form: {T: MiB}}}, T as text.
        names: the order of the rows.
        peers: {peer's row: the row of ours it belongs to}.
        pinned: the peer's version.
    """
    text = _HEAD.format(**numbers["conditions"])
    for kind in TIMES:
        text += _times(kind, numbers["time"].get(kind, {}), [*names, *(peers if kind != "decode" else ())])
    pairs = "; ".join(f"`{peer.partition(': ')[2]}` with {ours}" for peer, ours in peers.items())
    about = textwrap.fill(_PEER.format(peer=pinned, pairs=pairs), 110, break_on_hyphens=False)
    return f"{text}\n{about}\n" + _memory(numbers.get("memory", {}))


def _times(kind: str, found: dict[str, dict[str, dict]], names: list[str]) -> str:
    lengths = sorted({int(t) for by_length in found.values() for t in by_length})
    if not lengths:
        return f"\n## {kind}\n\nNot run.\n"
    rows = [[name, *(_cell(found.get(name, {}).get(str(t)), goal(name, kind, t)) for t in lengths)] for name in names]
    ours = {name: by_length for name, by_length in found.items() if not name.startswith("x-transformers")}
    theirs = {name: by_length for name, by_length in found.items() if name not in ours}
    rows += [["*SDPA itself*", *_plain(ours, lengths)]]
    rows += [["*x-transformers' plain model*", *_plain(theirs, lengths)]] if kind != "decode" else []
    return f"\n## {kind}\n\n" + _table(["variant", *(f"T = {t}" for t in lengths)], rows)


def _plain(found: dict[str, dict[str, dict]], lengths: list[int]) -> list[str]:
    """What the ratios are multiples of, in milliseconds: the median over all rows."""
    known = [
        [by_length[str(t)]["base_seconds"] for by_length in found.values() if str(t) in by_length] for t in lengths
    ]
    return [f"{median(seconds) * 1e3:.1f} ms" if seconds else "not run" for seconds in known]


def _cell(result: dict | None, wanted: float | None) -> str:
    if result is None:
        return "not run"
    missed = f" **> {wanted}**" if wanted and result["ratio"] > wanted else ""
    return f"{result['ratio']:.2f} [{result['low']:.2f}, {result['high']:.2f}]{missed}"


def _memory(used: dict[str, dict[str, float]]) -> str:
    lengths = sorted({int(t) for by_length in used.values() for t in by_length})
    title = "\n## Peak memory of clipped softmax, forward and backward, one layer of 9 heads (MiB)\n\n"
    rows = [
        [form, *(f"{by_length[str(t)]:.0f}" if str(t) in by_length else "not run" for t in lengths)]
        for form, by_length in used.items()
    ]
    return title + (_table(["form", *(f"T = {t}" for t in lengths)], rows) if rows else "Not run.\n")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["-"] * len(head), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
