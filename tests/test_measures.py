"""Each measure says what it should of models whose answers are known, and its items never depend on the model."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from studfinder.errors import NotApplicable, StudfinderError
from studfinder.measures import MEASURES, choices, compare, induction, knowledge_conflict, measure_named, scored
from studfinder.measures.choices import Question, multiple_choice
from studfinder.measures.facts import draw_facts, facts, wrong_answers
from studfinder.measures.greedy import greedy
from studfinder.measures.likelihood import Likelihood
from studfinder.measures.matched_facts import (
    _items,
    calibrate_facts,
    contrast,
    facts_in_context,
    facts_parametric_matched,
)
from studfinder.measures.repetition import distinct_share, loops
from studfinder.models import load
from studfinder.texts import encode_pairs, filler, nonce_names, relations
from tiny import tiny, tokenizer


def characters() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes: any text fits a tiny vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"</s>": 0, **{letter: i for i, letter in enumerate(alphabet, 1)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")


@pytest.fixture(scope="module")
def lm():
    """A random model with a window of 4,096 letters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return load(LlamaForCausalLM(config).eval(), tokenizer=characters())


SMALL = {
    "facts": 18,
    "facts-in-context": 9,
    "facts-parametric-matched": 9,
    "knowledge-conflict": 9,
    "passkey:512": 2,
    "lookup": 2,
    "induction:16": 2,
    "in-context-learning": 2,
    "repetition:8": 3,
}


def test_every_measure_is_tested_here():
    assert {name.partition(":")[0] for name in SMALL} | {"perplexity"} >= {
        name for name, entry in MEASURES.items() if "tasks" not in entry.place
    }


@pytest.mark.parametrize("name", SMALL)
def test_items_depend_on_the_seed_alone(lm, name):
    measure, limit = measure_named(name), SMALL[name]
    first = measure(lm, limit=limit)
    weight = lm.model.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.normal_()
    try:
        edited = measure(lm, limit=limit)
    finally:
        with torch.no_grad():
            weight.copy_(before)
    again = measure(lm, limit=limit)
    assert first.items == again.items
    assert edited.items != first.items
    assert len(first.items["score"]) <= limit
    compare(first, edited)  # the same items, or this is refused
    if name not in ("in-context-learning", "repetition:8"):
        assert measure(lm, limit=limit, seed=1).text != first.text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("facts:wikipedia", "no facts 'wikipedia'"),
        ("facts-in-context:0", "1 up"),
        ("facts-in-context:many", "1 up"),
        ("facts-in-context:400", "fewer facts"),
        ("passkey:long", "numbers"),
        ("passkey:64", "at least"),
        ("passkey:5000", "window of 4096"),
        ("lookup:0", "numbers"),
        ("lookup:500", "window of 4096"),
        ("lookup:1000", "at most 900"),
        ("induction:1", "from 2 up"),
        ("induction:3000", "window of 4096"),
        ("repetition:2", "from 4 up"),
        ("repetition:5000", "no more than"),
        ("in-context-learning:nothing", "no text"),
    ],
)
def test_bad_arguments_are_named(lm, name, says):
    with pytest.raises(StudfinderError, match=says):
        measure_named(name)(lm, limit=4)


@pytest.mark.parametrize("name", SMALL)
def test_no_items_is_an_error(lm, name):
    with pytest.raises(StudfinderError, match=r"no (items|document)"):
        measure_named(name)(lm, limit=0)


def test_t_rex_is_asked_for_by_name_and_never_substituted(lm, monkeypatch, tmp_path):
    monkeypatch.setenv("STUDFINDER_DATA", str(tmp_path))
    with pytest.raises(StudfinderError, match="T-REx is not here"):
        facts(lm, "trex")
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts/P36.jsonl").write_text('{"subject": "Utopia"}\n')
    with pytest.raises(StudfinderError, match=r"P36.jsonl cannot be read"):
        facts(lm, "trex")
    rows = "".join(f'{{"subject": "s{i}", "object": "o{i % 5}"}}\n' for i in range(20))
    (tmp_path / "facts/P36.jsonl").write_text(rows)
    scores = facts(lm, "trex", limit=10)
    assert scores.text.startswith("T-REx (STUDFINDER_DATA)")
    assert scores.chance == pytest.approx(1 / 5)


# --- multiple choice ----------------------------------------------------------------------------------------------


def answering(monkeypatch, value):
    """Likelihoods by a rule instead of a model: `value(context, continuation)` in nats a token."""

    def log_likelihoods(lm, requests, **_):
        decode = lm.tokenizer.decode
        return [Likelihood(value(decode(c), decode(a)) * len(a), len(a), False) for c, a in requests]

    monkeypatch.setattr(choices, "log_likelihoods", log_likelihoods)


def test_right_is_the_answer_with_the_highest_mean_log_probability_a_token(lm, monkeypatch):
    answering(monkeypatch, lambda context, answer: {" long answer": -1.0, " a": -2.0, " b": -3.0}[answer])
    questions = [Question("?", ("long answer", "a"), "x", "g"), Question("?", ("b", "a"), "y", "g")]
    found = multiple_choice(lm, "m", questions, "s")
    assert found.items["correct"] == (1.0, 0.0)
    assert found.items["margin"] == pytest.approx((1.0, -1.0))
    assert (found.value, found.chance, found.details) == (0.5, 0.5, {"g": 0.5})


def test_guessing_scores_chance(lm, monkeypatch):
    random_ = random.Random(0)
    answering(monkeypatch, lambda *_: random_.gauss(-3, 1))
    scores = facts(lm)
    assert scores.interval.low < scores.chance < scores.interval.high
    assert scores.interval.n < len(scores.items["score"])  # subjects, not items


def test_who_knows_the_facts_and_cannot_read_scores_on_memory_alone(lm, monkeypatch):
    known = {(subject, obj) for relation in relations()[1] for subject, obj in relation.facts}

    def from_memory(context, answer):
        question = context.rpartition(". ")[2]
        return -1.0 if any(subject in question and answer.strip() == obj for subject, obj in known) else -5.0

    answering(monkeypatch, from_memory)
    assert facts_parametric_matched(lm, limit=90).value > 0.95
    assert facts_in_context(lm, limit=90).value < 0.1


def test_who_reads_and_knows_nothing_scores_on_context_alone(lm, monkeypatch):
    def from_context(context, answer):
        *said, question = context.split(". ")
        return -1.0 if f"{question}{answer}" in said else -5.0

    answering(monkeypatch, from_context)
    assert facts_in_context(lm, 4, limit=90).value == 1.0
    assert facts_parametric_matched(lm, 4, limit=90).value == 0.0  # ties are wrong


def test_who_copies_any_fitting_answer_is_wrong_as_often_as_there_are_rivals(lm, monkeypatch):
    random_ = random.Random(0)
    answering(monkeypatch, lambda context, answer: random_.random() - 5 * (f"{answer}." not in context))
    assert facts_in_context(lm, 1, limit=90).value == 1.0
    assert facts_in_context(lm, 4, limit=180).value == pytest.approx(1 / 4, abs=0.1)


def test_matched_versions_differ_in_one_sentence_and_the_subject():
    for contextual, parametric in _items(3, "built-in", 60, 0)[1]:
        assert contextual.answers == parametric.answers
        assert len(set(contextual.answers)) == 8
        a, b = contextual.context.split(". "), parametric.context.split(". ")
        assert len(a) == len(b)
        assert sum(x != y for x, y in zip(a, b, strict=True)) == 2
        assert any(sentence.endswith(f" {contextual.answers[0]}") for sentence in a)
        assert not any(sentence.endswith(f" {contextual.answers[0]}") for sentence in b[:-1])


def test_calibration_finds_the_count_in_range_on_other_items(lm, monkeypatch):
    seen = set()

    random_ = random.Random(0)

    def by_count(context, answer):
        seen.add(context)
        template_words = context.rpartition(". ")[2].split()[-1]
        same = sum(template_words in sentence.split() for sentence in context.split(". ")[:-1])
        said = any(sentence.endswith(answer) for sentence in context.split(". "))
        return random_.random() + (3.0 / max(1, same) ** 2 if said else 0.0)

    answering(monkeypatch, by_count)
    count = calibrate_facts(lm, limit=45)
    judged = {contextual.context for contextual, _ in _items(count, "built-in", 180, 0)[1]}
    assert not judged & seen


@pytest.mark.parametrize(
    ("accuracies", "best", "asked"),
    [
        ((1.0, 0.97, 0.93, 0.8, 0.55, 0.2), 4, 5),  # what follows the first below the range is not asked
        ((0.5,), 1, 1),  # out of the range: the nearest all the same
        ((1.0, 0.95, 0.91), 3, 3),  # longer prompts do not fit
    ],
)
def test_calibration_takes_the_count_nearest_the_middle(lm, monkeypatch, accuracies, best, asked):
    tried = []

    def matched(_lm, _name, count, *_):
        tried.append(count)
        if len(tried) > len(accuracies):
            raise NotApplicable("they do not fit")
        return SimpleNamespace(value=accuracies[len(tried) - 1])

    monkeypatch.setattr("studfinder.measures.matched_facts._matched", matched)
    assert calibrate_facts(lm) == best
    assert len(tried) == asked + (asked == len(accuracies) and accuracies[-1] >= 0.6)


# --- the difference of differences ----------------------------------------------------------------------------------


def run(measure, correct, margin=None, text="t"):
    margin = [0.0] * len(correct) if margin is None else margin
    clusters = [f"s{i // 2}" for i in range(len(correct))]
    return scored(
        measure, correct, text=f"{measure} {text}", chance=1 / 8, clusters=clusters, correct=correct, margin=margin
    )


CONTEXT, MEMORY = "facts-in-context", "facts-parametric-matched"


def test_contrast_is_the_difference_of_chance_corrected_changes():
    ones, zeros = [1.0] * 40, [0.0] * 40
    half = [1.0, 0.0] * 20
    found = contrast(run(CONTEXT, ones), run(CONTEXT, zeros, [-2.0] * 40), run(MEMORY, ones), run(MEMORY, half))
    assert found.context.value == pytest.approx(-8 / 7)
    assert found.memory.value == pytest.approx(-4 / 7)
    assert found.accuracy.value == pytest.approx(-4 / 7)
    assert found.accuracy.high < 0
    assert found.margin.value == pytest.approx(-2.0)
    assert found.accuracy.n == 20


def test_an_edit_that_hurts_both_alike_shows_no_contrast():
    generator = np.random.default_rng(0)
    clean = [1.0] * 200
    context, memory = (generator.integers(0, 2, 200).astype(float).tolist() for _ in range(2))
    found = contrast(run(CONTEXT, clean), run(CONTEXT, context), run(MEMORY, clean), run(MEMORY, memory))
    assert found.accuracy.low < 0 < found.accuracy.high


def test_scores_that_are_not_matched_are_refused():
    one = [1.0] * 4
    with pytest.raises(StudfinderError, match="not matched"):
        contrast(run(CONTEXT, one), run(CONTEXT, one, text="other"), run(MEMORY, one), run(MEMORY, one))
    with pytest.raises(StudfinderError, match="not matched"):
        contrast(run(CONTEXT, one), run(CONTEXT, one), run(CONTEXT, one), run(CONTEXT, one))


# --- knowledge conflict ----------------------------------------------------------------------------------------------


def test_conflict_tells_readers_from_knowers(lm, monkeypatch):
    answering(monkeypatch, lambda context, answer: -1.0 if f"{answer}." in context else -3.0)
    reader = knowledge_conflict.knowledge_conflict(lm, limit=45)
    assert reader.value == 1.0
    facts_ = {(subject, obj) for relation in relations()[1] for subject, obj in relation.facts}
    answering(
        monkeypatch,
        lambda context, answer: (
            -1.0 if any(s in context.rpartition(". ")[2] and answer.strip() == o for s, o in facts_) else -3.0
        ),
    )
    knower = knowledge_conflict.knowledge_conflict(lm, limit=45)
    assert knower.value < 0.1
    assert knower.details["known without the statement"] > 0.9


# --- induction, repetition -------------------------------------------------------------------------------------------


def test_a_perfect_copier_has_full_accuracy_and_a_random_model_none(lm, monkeypatch):
    assert induction.induction(lm, "32", limit=4).value < 0.1

    def copying(input_ids, use_cache):
        size = input_ids.shape[1] // 2
        logits = torch.zeros(*input_ids.shape, 257)
        for t in range(input_ids.shape[1]):
            if t >= size:
                logits[0, t, input_ids[0, t - size + 1]] = 50.0
        return SimpleNamespace(logits=logits)

    monkeypatch.setattr(lm.model, "forward", copying)
    scores = induction.induction(lm, "32", limit=4)
    assert scores.value == 1.0
    assert scores.details["loss"] < 1e-3
    assert scores.details["first loss"] == pytest.approx(np.log(257), abs=1e-3)
    assert "prefix matching" not in scores.details


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "gpt_oss"])
def test_prefix_matching_is_the_models_own_attention(architecture):
    lm = tiny(architecture, attention="eager")
    scores = induction.induction(lm, "12", limit=3)
    sums = 0
    for ids in induction._sequences(lm, 12, 3, 0):
        with torch.no_grad():
            attentions = lm.model(input_ids=torch.tensor([ids]), output_attentions=True).attentions
        sums = sums + torch.stack(
            [torch.stack([layer[0, :, t, t - 11] for t in range(12, 23)], dim=1).mean(dim=1) for layer in attentions]
        )
    layer, head = int(scores.details["prefix matching layer"]), int(scores.details["prefix matching head"])
    assert scores.details["prefix matching"] == pytest.approx(float(sums.max()) / 3, abs=1e-5)
    assert float(sums[layer, head]) == pytest.approx(float(sums.max()), abs=1e-5)


def test_sequences_begin_with_bos_where_the_tokenizer_sets_it():
    lm = tiny("llama")
    lm = load(lm.model, tokenizer=tokenizer())
    for ids in induction._sequences(lm, 5, 3, 0):
        assert ids[0] == 1
        assert ids[1:6] == ids[6:]
        assert not {0, 1, 2} & set(ids[1:])


def test_distinct_and_loops():
    assert distinct_share([1, 1, 1, 1, 1], 2) == 1 / 4
    assert distinct_share([1, 2, 3, 4], 2) == 1
    assert loops([9, 8, 1, 2, 1, 2, 1, 2])
    assert loops([5, 7, 7, 7])
    assert not loops([1, 2, 1, 2])
    assert not loops(list(range(64)))


def test_greedy_overrules_the_checkpoints_sampling_and_can_forbid_the_end(lm, monkeypatch):
    config = lm.model.generation_config
    monkeypatch.setattr(config, "do_sample", True)
    monkeypatch.setattr(config, "temperature", 5.0)
    monkeypatch.setattr(config, "repetition_penalty", 9.0)
    prompt = [5, 6, 7, 8]
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(6):
            logits = lm.model(torch.tensor([ids])).logits[0, -1]
            logits[0] = -torch.inf
            ids.append(int(logits.argmax()))
    assert greedy(lm, [prompt, prompt], 6, to_the_end=True) == [ids[4:]] * 2


# --- texts ------------------------------------------------------------------------------------------------------------


def test_wrong_answers_are_never_right_for_the_subject():
    for fact, generator in draw_facts(relations()[1], 1000, 0):
        right = fact.relation.objects_of(fact.subject)
        assert not right & set(wrong_answers(fact, 7, generator))
        assert len(wrong_answers(fact, 7, generator)) == 7


def test_every_wording_names_its_subject_once_and_facts_differ():
    for relation in relations()[1]:
        assert len(relation.templates) == 3
        assert all(template.count("{s}") == 1 and not template.endswith(" ") for template in relation.templates)
        assert len(set(relation.facts)) == len(relation.facts) >= 20
        assert len(relation.objects) >= 10


def test_invented_names_differ_and_name_nobody_in_the_facts():
    names = nonce_names(2000, random.Random(0))
    assert len(set(names)) == 2000
    words = {
        word.strip(".,").lower() for r in relations()[1] for fact in r.facts for text in fact for word in text.split()
    }
    words |= {word.strip(".,").lower() for line in filler() for word in line.split()}
    assert len({name.lower() for name in names} & words) < 10


def test_pairs_are_cut_where_the_context_ends():
    lm = load(tiny("llama").model, tokenizer=tokenizer())
    assert encode_pairs(lm, [("w5 w6", " w7 w8"), ("w5", " w9")]) == [([1, 5, 6], [7, 8]), ([1, 5], [9])]
