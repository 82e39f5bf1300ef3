"""The same small language model with each attention that promises fewer outliers (arXiv 2306.12929 and its successors).

Quantizable Transformers' OPT-125m after 12.3 B tokens: inf norm 340 and kurtosis 1,778 with vanilla attention, 8.7 and
18.9 with gates, 63 and 19,728 with clipped softmax. Those outliers take tens of thousands of steps to grow. A short run
shows their beginning if there is one, and what each attention does to the loss; "no outliers" in every row means that
there was nothing to prevent yet.

After training, the loss with weights and activations in eight bits (`w8a8` says how, and what differs from the paper),
and the gap to the loss in full precision: what outliers cost a quantiser.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from studfinder.experiments.w8a8 import STATIC, W8A8_CAVEAT, WAYS, w8a8_losses, window_losses
from studfinder.models import load
from studfinder.records import Interval
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.language import SMALL, language_cells, language_table, source_of
from studfinder.studies.seeds import Cells, about, against, curves, ends_table, last, seed_mean
from studfinder.training import TextSource

_SCORES = {
    "test": "test loss",
    "outliers/inf_norm": "inf norm",
    "outliers/paper_inf_norm": "inf norm (paper's way)",
    "outliers/kurtosis": "kurtosis",
    "outliers/paper_kurtosis": "kurtosis (paper's way)",
    "outliers/massive_activations": "massive activations",
    "outliers/top_sink": "largest attention to the first token",
}
_COST = f"W8A8 {STATIC} minus full precision"
_BITS = {
    "full": "test loss",
    f"bits/{STATIC}": f"W8A8 {STATIC}",
    f"gap/{STATIC}": _COST,
    **{f"gap/{way}": f"{way} minus full precision" for way in WAYS if way != STATIC},
}

_PAPER = (
    "The paper's OPT-125m, perplexity in full precision and in W8A8: vanilla 15.84 and 21.18, clipped softmax 16.29 "
    "and 37.20, gated 15.55 and 16.02."
)
EXPERIMENT = Experiment(
    trains=True,
    name="outlier-free/pretrain",
    paper="2306.12929",
    shows="table 2",
    summary="Which attention trains with fewer outliers, and at what loss?",
    needs="hours on two cores (no model is loaded: small ones are trained on wikitext2)",
    presets={"cpu": SMALL},
)


def models(length: int) -> dict[str, list[str]]:
    """Kinds of attention; clipped softmax's gamma follows from the training length, as in the paper."""
    return {
        "vanilla": [],
        "clipped softmax": [f"clipped_softmax:alpha=12,length={length}"],
        "gated": ["gated:kind=linear,pi_init=0.25"],
        "explicit k', v'": ["attention_bias"],
        "softmax-one": ["softmax_one"],
        "KV shift": ["kv_shift"],
        "KV shift + gate": ["kv_shift", "gated:kind=linear,pi_init=0.25"],
    }


def run(bench: Bench) -> Outcome:
    """Loss, outliers and eight bits of each attention, over seeds."""
    own = bench.config
    source = source_of(bench)
    finish = partial(in_eight_bits, own.test, source)
    cells = language_cells(bench, source, models(own.length), watch=True, finish=finish)
    tables = [
        language_table(bench, source, cells, _SCORES),
        ends_table("Loss in eight bits, nats a token", cells, _BITS, note=f"{W8A8_CAVEAT} {_PAPER}"),
    ]
    outliers = {name: _SCORES[name] for name in ("outliers/inf_norm", "outliers/kurtosis")}
    notes = against(cells, "vanilla", {"test": _SCORES["test"], **outliers, f"gap/{STATIC}": _COST})
    charts = [
        curves(cells, {"test": "test loss, nats a token"}, name="loss"),
        curves(cells, outliers, name="outliers", log=tuple(outliers)),
    ]
    return Outcome(tables, [*notes, _cost(cells), *about(cells)], charts, cells)


def in_eight_bits(test: int, source: TextSource, model: Any) -> dict[str, Any]:
    """The loss of a trained model on the test windows in full precision, in eight bits, and the gap (nats a token; each
    a curve of one point)."""
    lm = load(model)
    windows = [source.row("test", 0, index)["input_ids"].tolist() for index in range(min(test, source.test_rows))]
    calibration = [source.row("train", 0, index)["input_ids"].tolist() for index in range(16)]
    full = float(np.mean(window_losses(lm, windows)))
    losses = {way: float(np.mean(found)) for way, found in w8a8_losses(lm, windows, calibration).items()}
    return {
        "full": [[0, full]],
        "bits": {way: [[0, loss]] for way, loss in losses.items()},
        "gap": {way: [[0, loss - full]] for way, loss in losses.items()},
    }


def _cost(cells: Cells) -> str:
    """Whether eight bits cost vanilla attention anything; else there is nothing to win."""
    gap = seed_mean(cells["vanilla"], partial(last, curve=f"gap/{STATIC}"))
    if not isinstance(gap, Interval):
        return f"What W8A8 {STATIC} costs vanilla attention is not known: it diverged at every seed."
    if gap.low > 0:
        return f"W8A8 {STATIC} costs vanilla attention {gap} nats a token."
    return (
        f"W8A8 {STATIC} is not shown to cost vanilla attention anything at this size ({gap} nats a token), so no other "
        "attention can be shown to save it."
    )
