"""Tasks on the built-in model and the evaluation texts: HFLM's scores, lm-eval's sizes, headroom."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="the extra `evaluate` is not installed")

import studfinder as sf
from studfinder.edits import channel, zero
from studfinder.measures import compare
from studfinder.measures.tasks import TASKS, availability, harness, tasks

pytestmark = pytest.mark.real

SIZES = {  # documents of the splits that lm-eval scores
    "piqa": 1838,
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "winogrande": 1267,
    "lambada": 5153,
    "boolq-nopassage": 3270,
    "openbookqa": 500,
    "gsm8k": 1319,
    "aqua": 254,
    "sentiment": 2000,
}


@pytest.fixture(scope="module")
def lm():
    return sf.load("smollm2", dtype="float32")


@pytest.fixture(autouse=True)
def _data(data, cache, monkeypatch):
    monkeypatch.setenv("STUDFINDER_DATA", str(data))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_every_local_task_has_the_documents_of_its_split():
    found = {
        name: harness.build_task(name, TASKS[name]).size for name in TASKS if availability(name) == "STUDFINDER_DATA"
    }
    assert found == SIZES


@pytest.mark.parametrize("name", ["piqa", "arc_easy", "winogrande", "lambada", "aqua"])
def test_scores_are_those_of_hflm(name, lm):
    from lm_eval.models.huggingface import HFLM

    from studfinder.measures.tasks.adapter import LiveLM

    picked = list(range(0, 60, 10))
    theirs = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
    one, other = (
        harness.evaluated(model, harness.build_task(name, TASKS[name]), picked) for model in (LiveLM(lm), theirs)
    )
    ours_of, theirs_of = (np.array([sample["filtered_resps"] for sample in found], float) for found in (one, other))
    difference = float(np.abs(ours_of - theirs_of).max())
    print(f"\n{name}: largest difference of a log-probability {difference:.2g} nats")
    assert difference < 2e-3
    assert [sample["acc"] for sample in one] == [sample["acc"] for sample in other]


def test_easy_science_has_headroom_and_an_edit_takes_it(lm):
    clean = tasks(lm, "arc_easy", limit=40)
    assert clean.details["headroom"] == 1
    # Half of what the first two blocks write: little is left of the model.
    target = [channel(lm, layer, row) for layer in range(2) for row in range(0, 576, 2)]
    broken = tasks(lm, "arc_easy", limit=40, edits=zero(target))
    assert compare(clean, broken).interval.high < 0
    assert broken.details["headroom"] == 0
