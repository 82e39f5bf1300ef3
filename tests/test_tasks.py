"""Public tasks: lm-eval's own prompts and scores, on the live model, with a cache that an edit never deceives."""

from __future__ import annotations

import json
import re
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tasked import choices, worded, words, write

pytest.importorskip("lm_eval", reason="the extra `evaluate` is not installed")

from studfinder.edits import Activations, Everything, Weights, edited, mean, scale
from studfinder.errors import StudfinderError
from studfinder.measures import compare, measure_named
from studfinder.measures.tasks import TASKS, arithmetic, availability, harness, headroom_note, run, tasks
from studfinder.sites import Site, tapped

ROW = Weights(parameter="model.layers.1.mlp.down_proj.weight", entries=((3, None), (5, None)))


@pytest.fixture
def data(tmp_path, monkeypatch, cache):
    """A folder of evaluation data, without the hub."""
    folder = tmp_path / "data"
    monkeypatch.setenv("STUDFINDER_DATA", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write(folder, "choice/piqa.jsonl", choices(16, 2))
    return folder


@pytest.fixture
def runs(monkeypatch):
    """How often a task was really run."""
    counted = []

    def counting(*arguments):
        counted.append(1)
        return harness.evaluated(*arguments)

    monkeypatch.setattr(run, "evaluated", counting)
    return counted


# --- prompts ----------------------------------------------------------------------------------------------------------

ROW_OF = {"question": "Why?", "choices": ["One", "Two"], "label": 1}
FIVE = {"question": "How many?", "choices": ["1", "2", "3", "4", "5"], "label": 4}

# As lm-eval's task files say: (file, line, continuations by prompt, right answer).
PROMPTS = {
    "piqa": ("choice/piqa.jsonl", ROW_OF, [("Question: Why?\nAnswer:", " One"), ("Question: Why?\nAnswer:", " Two")]),
    "arc_easy": (
        "choice/arc-easy.jsonl",
        ROW_OF,
        [("Question: Why?\nAnswer:", " One"), ("Question: Why?\nAnswer:", " Two")],
    ),
    "openbookqa": ("choice/openbookqa.jsonl", ROW_OF, [("Why?", " One"), ("Why?", " Two")]),
    "winogrande": (
        "choice/winogrande.jsonl",
        {"question": "Ann thanked Eve since _ had helped.", "choices": ["Ann", "Eve"], "label": 1},
        [("Ann thanked Eve since Ann", " had helped."), ("Ann thanked Eve since Eve", " had helped.")],
    ),
    "lambada": ("lambada/lambada_test.jsonl", {"text": "It was a stone"}, [("It was a", " stone")]),
    "sciq": (
        "choice/sciq.jsonl",
        {
            "support": " Water boils.",
            "question": "What boils?",
            "distractor1": "A",
            "distractor2": "B",
            "distractor3": "C",
            "correct_answer": "D",
        },
        [("Water boils.\nQuestion: What boils?\nAnswer:", f" {letter}") for letter in "ABCD"],
    ),
    "hellaswag": (
        "choice/hellaswag.jsonl",
        {"activity_label": "Running", "ctx_a": "A man runs.", "ctx_b": "he", "endings": list("abcd"), "label": "2"},
        [("Running: A man runs. He", f" {letter}") for letter in "abcd"],
    ),
    "boolq": (
        "choice/boolq.jsonl",
        {"passage": "It is.", "question": "is it", "label": 1},
        [("It is.\nQuestion: is it?\nAnswer:", " no"), ("It is.\nQuestion: is it?\nAnswer:", " yes")],
    ),
    "boolq-nopassage": (
        "choice/boolq_nopassage.jsonl",
        {"passage_question": "is it?", "label": True},
        [("Question: is it?\nAnswer:", " no"), ("Question: is it?\nAnswer:", " yes")],
    ),
    "aqua": (
        "choice/aqua.jsonl",
        FIVE,
        [
            (
                "Q: How many? Answer Choices: (A)1 (B)2 (C)3 (D)4 (E)5\nA: Among A through E, the answer is",
                f" ({letter}){number}",
            )
            for letter, number in zip("ABCDE", "12345", strict=True)
        ],
    ),
    "sentiment": (
        "text/movie_reviews.jsonl",
        {"text": "a fine \nfilm", "label": 1},
        [("Review: a fine film\nSentiment:", " negative"), ("Review: a fine film\nSentiment:", " positive")],
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_are_those_of_the_harness(name, data):
    file, line, expected = PROMPTS[name]
    write(data, file, [line])
    built = harness.build_task(name, TASKS[name])
    harness.requests_hash(built, [0])
    assert [one.arguments for one in built.harness.instances] == expected
    if name in ("piqa", "arc_easy", "openbookqa", "winogrande", "boolq", "boolq-nopassage", "sentiment"):
        assert run._answer(built, built.harness.eval_docs[0]) == 1


def test_every_task_has_a_prompt_test():
    assert set(PROMPTS) == set(TASKS) - {"arithmetic", "gsm8k", "arc_challenge"}


def test_worked_examples_need_no_training_split(data):
    write(data, "gsm8k/test.jsonl", [{"question": "How many?", "answer": "Two.\n#### 2"}])
    built = harness.build_task("gsm8k", TASKS["gsm8k"])
    harness.requests_hash(built, [0])
    (prompt, settings) = built.harness.instances[0].arguments
    assert prompt.count("\nA:") == 9
    assert prompt.endswith("\n\nQ: How many?\nA:")
    assert settings["do_sample"] is False
    assert "8-shot" in built.source


# --- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_scores_are_those_of_hflm(architecture, data, recwarn):
    from lm_eval.models.huggingface import HFLM

    from studfinder.measures.tasks.adapter import LiveLM

    lm = worded(architecture)
    random = np.random.default_rng(1)
    write(data, "lambada/lambada_test.jsonl", [{"text": words(random, 9)} for _ in range(8)])
    theirs = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4, max_length=128)
    for name in ("piqa", "lambada"):
        built = harness.build_task(name, TASKS[name])
        ours_found = harness.evaluated(LiveLM(lm), built, list(range(8)))
        theirs_found = harness.evaluated(theirs, harness.build_task(name, TASKS[name]), list(range(8)))
        for one, other in zip(ours_found, theirs_found, strict=True):
            ours_of, theirs_of = (np.array(sample["filtered_resps"], float) for sample in (one, other))
            np.testing.assert_allclose(ours_of, theirs_of, rtol=0, atol=2e-4)
            assert one["acc"] == other["acc"]


def _requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, i) for i, one in enumerate(arguments)]


def test_whole_texts_and_answers_are_those_of_hflm(cache, recwarn):
    from lm_eval.models.huggingface import HFLM

    from studfinder.measures.tasks.adapter import LiveLM

    lm = worded()
    random = np.random.default_rng(2)
    theirs = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=3, max_length=128)
    texts = _requests("loglikelihood_rolling", [(words(random, n),) for n in (5, 60, 300)])
    np.testing.assert_allclose(
        LiveLM(lm).loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts, disable_tqdm=True), atol=1e-3
    )
    settings = {"until": ["w7 ", "w9"], "max_gen_toks": 12, "do_sample": False}
    prompts = _requests("generate_until", [(words(random, n), settings) for n in (3, 8, 5, 20)])
    ours = LiveLM(lm).generate_until(prompts)
    assert ours == theirs.generate_until(prompts, disable_tqdm=True)
    assert len(set(ours)) > 1


def test_sampling_is_refused(cache):
    from studfinder.measures.tasks.adapter import LiveLM

    prompt = _requests("generate_until", [("w3", {"do_sample": True, "temperature": 1.0})])
    with pytest.raises(StudfinderError, match="samples its answers"):
        LiveLM(worded()).generate_until(prompt)


def test_scores_by_item(data):
    lm = worded()
    seen = []
    scores = tasks(lm, "piqa", progress=seen.append)
    assert sum(seen) == 32
    assert scores.value == np.mean(scores.items["correct"])
    assert scores.chance == 0.5
    assert [value > 0 for value in scores.items["margin"]] == [bool(value) for value in scores.items["correct"]]
    assert set(scores.items) == {"score", "correct", "margin", "acc_norm"}
    assert "STUDFINDER_DATA" in scores.text


def test_a_limit_draws_the_same_documents_each_time(data):
    lm = worded()
    first, again, other = (tasks(lm, "piqa", limit=10, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.text != other.text
    assert len(first.items["score"]) == 10


def test_another_document_is_another_text(data):
    lm = worded()
    first = tasks(lm, "piqa")
    rows = choices(16, 2)
    rows[7]["label"] = 1 - rows[7]["label"]
    write(data, "choice/piqa.jsonl", rows)
    changed = tasks(lm, "piqa")
    assert abs(changed.value - first.value) == pytest.approx(1 / 16)
    with pytest.raises(StudfinderError, match="cannot be compared"):
        compare(first, changed)


def test_guessing_has_no_headroom_and_knowing_has(data):
    lm = worded()
    guessed = tasks(lm, "piqa")
    assert guessed.details["headroom"] == 0
    assert headroom_note(guessed) == "at chance: can show nothing"
    # Make right what the model chose.
    rows = choices(16, 2)
    for row, correct in zip(rows, guessed.items["correct"], strict=True):
        row["label"] = row["label"] if correct else 1 - row["label"]
    write(data, "choice/piqa.jsonl", rows)
    known = tasks(lm, "piqa")
    assert known.value == known.details["headroom"] == 1
    assert headroom_note(known) == ""


def test_always_yes_is_no_headroom(data):
    random = np.random.default_rng(3)
    lm = worded()
    questions = [words(random, 4) for _ in range(60)]
    write(data, "choice/boolq_nopassage.jsonl", [{"question": question, "label": 1} for question in questions])
    correct = tasks(lm, "boolq-nopassage").items["correct"]
    # " yes" and " no" are both unknown words to this tokenizer, so the first choice wins: "no".
    assert not any(correct)
    rows = [{"question": question, "label": int(i < 12)} for i, question in enumerate(questions)]
    write(data, "choice/boolq_nopassage.jsonl", rows)
    scores = tasks(lm, "boolq-nopassage")
    assert scores.value == scores.details["majority"] == 0.8
    assert scores.interval.low > scores.chance == 0.5
    assert scores.details["headroom"] == 0


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_clean_model_is_measured_once(data, runs):
    first = tasks(worded(), "piqa")
    assert tasks(worded(), "piqa") == first
    assert len(runs) == 1
    other = tasks(worded(seed=1), "piqa")
    assert len(runs) == 2
    assert other != first


def test_edited_weights_never_get_the_clean_score(data, runs):
    lm = worded()
    clean = tasks(lm, "piqa")
    with edited(lm, scale(ROW, 40.0)):
        changed = tasks(lm, "piqa")
        assert len(runs) == 2
    assert changed.items["margin"] != clean.items["margin"]
    assert tasks(lm, "piqa") == clean
    assert tasks(lm, "piqa", edits=scale(ROW, 40.0)) == changed
    assert len(runs) == 3
    assert tasks(lm, "piqa", edits=scale(ROW, 40.0)) == changed
    assert len(runs) == 3
    assert compare(clean, changed).interval.n == 16


def test_the_least_change_of_one_weight_is_seen(data, runs):
    lm = worded()
    tasks(lm, "piqa")
    with torch.no_grad():
        weight = lm.model.get_parameter(ROW.parameter)
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(2.0))
    tasks(lm, "piqa")
    assert len(runs) == 2


def _negated(lm, site):
    return tapped(lm, replace={site: lambda tensor: -tensor})


@pytest.mark.parametrize("site", [Site("residual", 1), Site("value", 1), Site("down_proj.output", 0)], ids=str)
def test_edited_activations_never_get_the_clean_score(site, data, runs):
    lm = worded()
    clean = tasks(lm, "piqa")
    for count in (2, 3):
        with _negated(lm, site):
            changed = tasks(lm, "piqa")
        assert changed.items["margin"] != clean.items["margin"]
        assert len(runs) == count  # nor is the score of an unknown state kept
    assert tasks(lm, "piqa") == clean
    assert len(runs) == 3


def test_scores_under_given_edits_are_kept_apart(data, runs):
    lm = worded()
    values = Activations(("value[0]", "value[1]"), Everything())
    kept = [(), scale(values, -1.0), scale(values, 0.5), mean(values), scale(ROW, 40.0)]
    first = [tasks(lm, "piqa", edits=edits) for edits in kept]
    assert len(runs) == 5
    assert [tasks(lm, "piqa", edits=edits) for edits in kept] == first
    assert len(runs) == 5
    assert len({scores.items["margin"] for scores in first}) == 5
    with edited(lm, kept[1]):  # the same edit, but nobody says so
        assert tasks(lm, "piqa") == first[1]
        assert len(runs) == 6
        # On top of it another one: no score of either alone.
        assert tasks(lm, "piqa", edits=kept[2]) not in first
    assert len(runs) == 7


def test_edited_first_and_clean_after(data):
    lm = worded()
    with _negated(lm, Site("value", 1)):
        changed = tasks(lm, "piqa")
    assert tasks(lm, "piqa").items["margin"] != changed.items["margin"]


def test_a_hook_of_anybody_is_seen(data, runs):
    lm = worded()
    clean = tasks(lm, "piqa")
    handle = lm.model.get_submodule("model.layers.1.mlp").register_forward_hook(lambda _m, _a, output: 0 * output)
    assert tasks(lm, "piqa").items["margin"] != clean.items["margin"]
    handle.remove()
    assert tasks(lm, "piqa") == clean
    assert len(runs) == 2


def _scaled(lm):
    lm.model.get_submodule("model.layers.0.self_attn").scaling *= 2


def _turned(lm):
    lm.model.get_submodule("model.rotary_emb").inv_freq.mul_(1.5)


def _replaced(lm):
    lm.model.get_submodule("model.layers.0.mlp").forward = lambda hidden: hidden


@pytest.mark.parametrize("change", [_scaled, _turned, _replaced])
def test_what_is_no_parameter_is_seen_too(change, data, runs):
    lm = worded()
    clean = tasks(lm, "piqa")
    change(lm)
    assert tasks(lm, "piqa").items["margin"] != clean.items["margin"]
    assert len(runs) == 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"scores": {}, "sha256": ""}', "value", "half"])
def test_a_damaged_entry_is_measured_again(damage, data, runs, cache):
    lm = worded()
    clean = tasks(lm, "piqa")
    (entry,) = (cache / "tasks").glob("*.jsonl")
    text = entry.read_text()
    if damage == "value":  # still JSON, still scores
        content = json.loads(text)
        content["value"]["value"] = 0.99
        damage = json.dumps(content)
    entry.write_text(text[: len(text) // 2] if damage == "half" else damage)
    with pytest.warns(UserWarning, match="is damaged: its step is done again") if damage else nullcontext():
        assert tasks(lm, "piqa") == clean
    assert len(runs) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the damaged line, which stays
        assert tasks(lm, "piqa") == clean
    assert len(runs) == 2


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(data, runs, cache):
    cache.mkdir()
    (cache / "tasks").write_text("a file where the folder should be")
    lm = worded()
    assert tasks(lm, "piqa").value >= 0


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_sums_are_right_and_never_both_tuned_on_and_scored():
    scored_ones = arithmetic.sums(20, 60, 0)
    tuning = arithmetic.sums(20, 60, 0, for_tuning=True)
    for one in scored_ones + tuning:
        *shown, asked = one["context"].split("\n\n")
        assert len(shown) == 5
        for question in [*shown, asked + one["completion"]]:
            first, second, total = map(int, re.findall(r"\d+", question))
            assert first + second == total
    asked = [{one["context"].split("\n\n")[-1] for one in rows} for rows in (scored_ones, tuning)]
    shown = [set(rows[0]["context"].split("\n\n")[:-1]) for rows in (scored_ones, tuning)]
    assert len(asked[0]) == len(scored_ones) == 60
    assert not asked[0] & asked[1]
    assert not any(example.startswith(question) for example in shown[0] for question in asked[0])
    assert arithmetic.sums(20, 60, 0) == scored_ones != arithmetic.sums(20, 60, 1)


def test_a_small_bound_gives_what_there_is():
    assert len(arithmetic.sums(10, 1000, 0)) < 50
    with pytest.raises(StudfinderError, match="at least 10"):
        arithmetic.sums(3, 10, 0)


@pytest.mark.parametrize("able", [0, 10, 100, 750, 10**9])
def test_the_difficulty_is_the_largest_that_is_mastered(able):
    lm = worded()
    found = arithmetic.tuned_bound(lm, lambda bound: 0.7 if bound <= able else 0.2, lambda: True)
    assert found == max([bound for bound in arithmetic.BOUNDS if bound <= able], default=arithmetic.BOUNDS[0])
    # Remembered for the model, also while it is edited.
    assert arithmetic.tuned_bound(lm, lambda _: 1.0, lambda: False) == found


def test_an_edited_model_gets_the_clean_models_sums(data):
    lm = worded()
    with _negated(lm, Site("value", 1)):
        with pytest.raises(StudfinderError, match="tuned on the clean model"):
            tasks(lm, "arithmetic", limit=5)
        named = tasks(lm, "arithmetic:10", limit=5)
    clean = tasks(lm, "arithmetic", limit=5)
    with _negated(lm, Site("value", 1)):
        changed = tasks(lm, "arithmetic", limit=5)
    assert clean.measure == "tasks:arithmetic:10"  # a random model masters nothing
    assert clean.text == changed.text == named.text
    assert clean.details["headroom"] == 0


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hellaswag", "sciq", "boolq", "sentiment"])
def test_missing_data_names_what_is_needed(name, data):
    with pytest.raises(StudfinderError, match=TASKS[name].local):
        tasks(worded(), name)


@pytest.mark.parametrize("line", ["{", '{"question": "w3"}', '{"question": "w3", "choices": ["w3"], "label": 0}'])
def test_a_bad_document_is_named(line, data):
    path = data / "choice/piqa.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(StudfinderError, match="line 2"):
        tasks(worded(), "piqa")


def test_documents_of_another_form_are_refused(data):
    write(data, "choice/sciq.jsonl", [{"question": "w3", "answer": "w4"}])
    with pytest.raises(StudfinderError, match="not as lm-eval expects"):
        tasks(worded(), "sciq")


def test_an_empty_file_is_refused(data):
    write(data, "choice/piqa.jsonl", [])
    with pytest.raises(StudfinderError, match="is empty"):
        tasks(worded(), "piqa")


@pytest.mark.parametrize("name", ["", "pica", "piqa:3", "arithmetic:ten", "arithmetic:"])
def test_an_unknown_task_is_refused(name, data):
    with pytest.raises(StudfinderError, match="task"):
        tasks(worded(), name)


def test_no_documents_and_no_tokenizer_are_refused(data):
    lm = worded()
    with pytest.raises(StudfinderError, match="at least 1"):
        tasks(lm, "piqa", limit=0)
    from studfinder.models import load

    with pytest.raises(StudfinderError, match="no tokenizer"):
        tasks(load(lm.model), "piqa")


def test_without_the_harness_the_extra_is_named(data, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(StudfinderError, match=r"studfinder\[evaluate\]"):
        tasks(worded(), "piqa")


def test_where_documents_would_come_from(data, monkeypatch):
    assert availability("piqa") == "STUDFINDER_DATA"
    assert availability("hellaswag") == "not here"
    assert availability("arithmetic") == "generated"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert availability("hellaswag") == "hub"


def test_a_measure_by_name(data):
    lm = worded()
    assert measure_named("tasks:piqa")(lm, limit=5) == tasks(lm, "piqa", limit=5)
