"""Write docs/results/serving.md from the records of products.py, and serving-formats.md from those of formats.py.

A page of which nothing was measured here stays as it is.

python benchmarks/serving/page.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from environments import PIP
from facts import gap, in_few_words
from formats import FORMATS, MIXED, ON_SMOLLM2
from kept import LENGTH, WINDOWS, record
from products import CONTROLS, ROWS, SPARED_AS

from studfinder.records import Comparison, Interval, Table
from studfinder.records.result import Cell
from studfinder.report.cells import markdown
from studfinder.stats import crossed, student_interval

PAGES = Path(__file__).resolve().parents[2] / "docs" / "results"
TOKENS = WINDOWS * (LENGTH - 1)


def interval(per_window: Sequence[float] | np.ndarray, tokens: int = LENGTH - 1) -> Interval:
    """Mean a token of sums by window, windows as the sample."""
    return student_interval(np.asarray(per_window), np.full(len(per_window), tokens))


# --- what is gained -------------------------------------------------------------------------------------------------


def kls(row: str, spared: str) -> np.ndarray | None:
    """KL of each window, summed over its tokens; None where it was not measured."""
    found = record("product", row, spared)
    return None if found is None or "kl" not in found else np.asarray(found["kl"])


def size_of(row: str, spared: str) -> float:
    """Bytes of the file; NaN where its tool's record has none."""
    return float((record("product", row, spared) or {}).get("bytes", float("nan")))


def gains() -> tuple[Table, list[str]]:
    """A row a quantiser, and of how many of them it can be said that the found ones' gain is not any others'."""
    rows, larger, smaller = [], [], []
    for row in ROWS:
        plain, found = kls(row, "plain"), kls(row, "found")
        drawn = [kl for draw in range(1, CONTROLS + 1) if (kl := kls(row, f"other {draw}")) is not None]
        if plain is None or found is None or not drawn:
            continue
        more = size_of(row, "found") / size_of(row, "plain") - 1
        both = {"others": np.stack(drawn), "found": found[None]}
        beyond = crossed(lambda mean: (mean["others"] - mean["found"]) / (LENGTH - 1), both, what="windows")
        gain = interval(plain - found)
        (larger if gain.low > 0 and beyond.low > 0 else smaller).append(row)
        others = [float((plain - kl).sum() / TOKENS) for kl in drawn]
        rows.append(
            (
                row,
                interval(plain),
                interval(found),
                Comparison(kind="difference", interval=gain),
                ", ".join(f"{one:.4f}" for one in others),
                Comparison(kind="difference", interval=beyond),
                "" if np.isnan(more) else f"{more:+.1%}",
            )
        )
    columns = ("quantiser", "plain", "spared", "gain", "gains of others", "beyond the others", "size")
    said = [
        f"{len(larger)} of {len(larger) + len(smaller)} gain, and more than by sparing as many others: "
        f"{', '.join(larger) or 'none'}."
    ]
    if smaller:
        said.append(f"Not shown for {', '.join(smaller)}.")
    return Table(title="Findings in other tools", columns=columns, rows=tuple(rows)), said


# --- what loads -----------------------------------------------------------------------------------------------------


def cell(engine: str, model: str, format: str) -> str:
    """What became of a format in an engine that gives log-probabilities: their gap to plain transformers', in nats."""
    found, plain = record(engine, model, format), record("transformers", model, format)
    if found is None:
        return "not tried"
    if "error" in found:
        return f"refused: {in_few_words(found['error'])}"
    return "runs" if plain is None or "error" in plain else f"{gap(found, plain):.2g}"


def loss(engine: str, model: str, format: str) -> Comparison | None:
    """By how much an engine's loss on the text exceeds plain transformers', nats a token, paired by window."""
    found, plain = record(engine, model, format), record("transformers", model, format)
    if found is None or plain is None or "error" in found or "error" in plain:
        return None
    more = [sum(ours) - sum(theirs) for ours, theirs in zip(plain["logprobs"], found["logprobs"], strict=True)]
    return Comparison(kind="difference", interval=interval(more, len(plain["logprobs"][0])))


def own_gap(answer: dict[str, Any]) -> float:
    """How far transformers is from itself with the sums of attention in another order."""
    return gap(answer, {"logprobs": answer["logprobs in another order"]})


def loads(model: str, formats: Sequence[str], llama: bool) -> Table:
    """A row a format."""
    rows = []
    for format in ("original", *formats):
        plain = record("transformers", model, format)
        if plain is None:
            continue
        if "error" in plain:
            kl, own = f"refused: {in_few_words(plain['error'])}", ""
        else:
            kl, own = mean_kl(plain), f"{own_gap(plain):.2g}" + " (bf16)" * (plain["dtype"] != "float32")
        row: list[Cell] = [format, kl, own, cell("vllm", model, format), loss("vllm", model, format)]
        if not llama:
            row.append(cell("vllm bfloat16", model, format))
        if llama:
            there = record("llama.cpp", model, format)
            row.append("not tried" if there is None else in_llama(there))
        rows.append(tuple(row))
    columns = ["format", "KL in transformers", "transformers to itself", "vLLM, fp32", "its loss - transformers'"]
    columns += ["KL in llama.cpp" if llama else "vLLM, bf16"]
    return Table(title=f"Formats, {model}", columns=tuple(columns), rows=tuple(rows))


def mean_kl(answer: dict[str, Any]) -> Interval:
    """Of an engine that ran it."""
    return interval(answer["kl"], len(answer["logprobs"][0]))


def in_llama(answer: dict[str, Any]) -> Cell:
    """What became of a format in llama.cpp."""
    return f"refused: {in_few_words(answer['error'])}" if "error" in answer else mean_kl(answer)


def versions() -> str:
    """Of every engine that answered."""
    found = {}
    for engine in ("transformers", "vllm", "llama.cpp"):
        answer = record(engine, "smollm2", "original")
        if answer is not None and "version" in answer:
            found[answer["engine"]] = answer["version"]
    return ", ".join(f"{name} {version}" for name, version in found.items())


def products_page() -> str:
    """What findings gain in other tools."""
    table, said = gains()
    spared = ", ".join(f"{tool}'s in {format}" for tool, format in SPARED_AS.items())
    return f"""# What findings gain in other tools

Made by `benchmarks/serving` on two CPU cores ({tools()}); smollm2, {WINDOWS} windows of {LENGTH} tokens of
WikiText-2. KL is KL(original || quantised) in nats a token; intervals of 95 % are of windows. [What loads
where](serving-formats.md).

{" ".join(said)}

Each tool quantises the model by its own command: plainly; with the matrices spared that a scan proves
(`studfinder recipe write RUN --for TOOL`; {spared}); and with as many down projections of other layers spared, drawn
{CONTROLS} times. *Gain* is the KL that sparing saves, paired by window. *Beyond* is the gain less the
mean of the others', draws and windows resampled. A draw that happens to hold a matrix that is dear to round gains, too:
which those are is what `studfinder plan` says.

{markdown(table)}

## Again

```sh
studfinder scan smollm2 --dtype float32 --out runs/smollm2-scan
python benchmarks/serving/products.py --findings runs/smollm2-scan && python benchmarks/serving/page.py
```
"""


def formats_page() -> str:
    """What loads, and whether it means the same."""
    return f"""# Our files in the engines that people use

Made by `benchmarks/serving` on two CPU cores with AVX2 ({versions()}); smollm2, {WINDOWS} windows of {LENGTH} tokens of
WikiText-2. KL is KL(original || quantised) in nats a token, in the engine itself; intervals of 95 % are of windows.

vLLM's columns are the mean |difference| of the log-probabilities of the text's tokens from those of plain
transformers in fp32, in nats. *Transformers to itself* is the same difference with the sums of attention in another
order (eager for SDPA): no engine can be nearer. Where inputs are rounded as they come, a number that falls to the other
side of a step moves all that follows, so that two right computations lie further apart than of the unquantised model.
What an engine does wrong shows in the loss, which no such chance moves in one direction.

Two rows need a word. With zero points (w4-...) transformers rounds what it decompresses to bfloat16, the type of the
scales, and vLLM does not; without them both compute in fp32. The int8 product of this vLLM, on a processor without
VNNI, costs more than the format does: the sums of its 8-bit products are documented to saturate there.

{markdown(loads("smollm2", ON_SMOLLM2, llama=True))}

### All formats, on a small random model

Its sizes are all divided by 128, as some formats need; 4 windows of 128 tokens.

{markdown(loads("small", (*FORMATS, *MIXED), llama=False))}

## Again

```sh
python benchmarks/serving/formats.py
python benchmarks/serving/facts.py && python benchmarks/serving/page.py
```
"""


def tools() -> str:
    """The versions of those whose products were measured."""
    product = record("product", "Q4_0", "plain") or {}
    return f"llama.cpp {product.get('version', '')}, {PIP['llm-compressor'][0].replace('==', ' ')}"


def main() -> None:
    if record("product", "RTN", "found") is not None:
        (PAGES / "serving.md").write_text(products_page(), "utf-8")
        print(*gains()[1])
    if record("transformers", "smollm2", "original") is not None:
        (PAGES / "serving-formats.md").write_text(formats_page(), "utf-8")


if __name__ == "__main__":
    main()
