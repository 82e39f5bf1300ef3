"""The super-weight paper's experiments, from end to end, on a tiny model with a planted super weight."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from experimented import run

from proving import COL, LAYER, ROW, provable
from studfinder.models import load
from studfinder.records import Comparison, Interval
from tasked import choices, words, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with small data, a cache and a run folder of its own: the scan in it serves all experiments."""
    folder = tmp_path_factory.mktemp("experiments")
    random = np.random.default_rng(0)
    write(folder / "data", "choice/piqa.jsonl", choices(12, 2))
    write(folder / "data", "choice/winogrande.jsonl", [])
    write(folder, "passages.jsonl", [{"text": words(random, 9)} for _ in range(12)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("STUDFINDER_DATA", str(folder / "data"))
        patch.setenv("STUDFINDER_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder


@pytest.fixture(scope="module")
def planted():
    """A model with one super weight, and a tokenizer that has an end."""
    lm = provable("llama", planted=True)[0]
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.eos_token = "?"
    return load(lm.model, tokenizer)


def cells(table, label):
    (row,) = [row for row in table.rows if row[0] == label]
    return dict(zip(table.columns, row, strict=True))


def test_ablation(planted, folder):
    result = run(
        "super-weight/ablation", planted, folder, limit=6, windows=3, others=40, tasks="piqa,hellaswag", texts="proof"
    )
    scores, change, _, units = result.tables
    assert f"[{ROW}, {COL}]" in scores.note and "hellaswag is not here" in scores.note
    assert cells(scores, "original")["hellaswag"] == "not here"
    pruned, others = cells(change, "prune SW"), cells(change, "prune others")
    assert isinstance(pruned["perplexity proof"], Comparison)
    alone = cells(units, f"L{LAYER} [{ROW}, {COL}] alone")["KL in nats per token"]
    control = units.rows[1][1]
    assert isinstance(alone, Interval) and isinstance(control, Interval)
    assert alone.low > control.high
    assert others["perplexity proof"].interval.value != pruned["perplexity proof"].interval.value


def test_stopwords(planted, folder):
    text = str(folder / "passages.jsonl")
    result = run("super-weight/stopwords", planted, folder, limit=12, top=5, text=text)
    by_class, by_token = result.tables
    classes = [cells(by_class, f"{kind} tokens") for kind in ("delimiter", "low-semantic", "other")]
    assert sum(row["as it is"].value for row in classes) == pytest.approx(1.0)
    assert classes[0]["as it is"].n == 6  # half of the prompts judge
    assert len(by_token.rows) == 5
    assert cells(by_class, "all stopwords")["control / as it is"].interval.value == pytest.approx(1, abs=0.3)
