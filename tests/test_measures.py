"""Each measure says what it should of models whose answers are known, and its items never depend on the model."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from studfinder.errors import StudfinderError
from studfinder.measures import MEASURES, choices, compare, induction, knowledge_conflict, measure_named, scored
from studfinder.measures.beside import BESIDE
from studfinder.measures.choices import Square, choice, evidence, square_scores
from studfinder.measures.facts import draw_facts, facts, yes_no
from studfinder.measures.greedy import greedy
from studfinder.measures.in_context import _KINDS, _RULES, in_context
from studfinder.measures.likelihood import Likelihood
from studfinder.measures.lookup import lookup
from studfinder.measures.matched_facts import contrast, facts_in_context, facts_parametric_matched, matched_squares
from studfinder.measures.passkey import passkey
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
    "facts": 16,
    "yes-no": 8,
    "facts-in-context": 8,
    "facts-parametric-matched": 8,
    "knowledge-conflict": 8,
    "passkey:512": 2,
    "lookup": 6,
    "in-context": 8,
    "in-context:numbers": 8,
    "induction:16": 2,
    "in-context-learning": 2,
    "repetition:32": 3,
}


def test_every_measure_is_tested_here():
    assert {name.partition(":")[0] for name in SMALL} | {"perplexity"} >= {
        name for name, entry in MEASURES.items() if "tasks" not in entry.place and name not in BESIDE
    }  # those that hold two models side by side: tests/test_diagnose.py


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
    if name not in ("in-context-learning", "repetition:32"):
        assert measure(lm, limit=limit, seed=1).text != first.text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("facts:wikipedia", "no facts 'wikipedia'"),
        ("yes-no:city", "cities"),
        ("facts-in-context:1", "2 up"),
        ("facts-in-context:many", "2 up"),
        ("facts-in-context:400", "400 answers. Ask for fewer"),
        ("in-context:pictures", "words, numbers"),
        ("passkey:long", "numbers"),
        ("passkey:64", "at least"),
        ("passkey:5000", "window of 4096"),
        ("lookup:0", "numbers"),
        ("lookup:1", "2 to 64"),
        ("lookup:65", "2 to 64"),
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
    for relation in ("P36", "P413"):
        rows = "".join(f'{{"subject": "{relation} s{i}", "object": "{relation} o{i % 5}"}}\n' for i in range(20))
        (tmp_path / f"facts/{relation}.jsonl").write_text(rows)
    scores = facts(lm, "trex", limit=40)
    assert scores.text.startswith("T-REx (STUDFINDER_DATA)")
    assert {cluster.partition(":")[0] for cluster in scores.clusters} == {"P36", "P413"}
    assert {cluster.partition(":")[0] for cluster in facts(lm, "cities", limit=40).clusters} == {"P36"}
    with pytest.raises(StudfinderError, match="no relation of"):
        yes_no(lm, "technology")


# --- squares of questions -------------------------------------------------------------------------------------------


def answering(monkeypatch, value):
    """Likelihoods by a rule instead of a model: `value(context, continuation)` in nats; of a continuation of which only
    the beginning is asked the rule is told all."""
    cut, wholes = choices._cut, []

    def remembered(requests):
        wholes.extend(answer for _, answer in requests)
        return cut(requests)

    def log_likelihoods(lm, requests, **_):
        decode = lm.tokenizer.decode
        asked = zip(requests, wholes[-len(requests) :], strict=True)
        return [
            Likelihood(value(decode(context), decode(whole)), len(begun), False) for (context, begun), whole in asked
        ]

    monkeypatch.setattr(choices, "_cut", remembered)
    monkeypatch.setattr(choices, "log_likelihoods", log_likelihoods)


IN_SQUARES = {
    "facts": facts,
    "yes-no": yes_no,
    "in context": facts_in_context,
    "matched": facts_parametric_matched,
    "three matched": lambda lm, **options: facts_parametric_matched(lm, 3, **options),
    "lookup": lookup,
    "words": in_context,
    "numbers": lambda lm, **options: in_context(lm, "numbers", **options),
    "conflict": knowledge_conflict.knowledge_conflict,
}


@pytest.mark.parametrize("name", IN_SQUARES)
@pytest.mark.parametrize("seed", range(3))
def test_who_does_not_look_at_question_and_answer_together_scores_exactly_chance(lm, monkeypatch, name, seed):
    """Constant answers, favourite answers of any strength, prompts that are liked, and all of it at once."""
    likes = random.Random(seed)
    liked: dict[str, float] = {}

    def of(text):
        return liked.setdefault(text, likes.gauss(0, 10**seed))

    # Of a statement that is true or not, its length stands for both: that of its subject and that of its answer.
    rules = [
        lambda context, answer: -1.0,
        lambda context, answer: -3.0 * len(context) * (answer == " true"),
        lambda context, answer: of(answer) + len(context) * (1 + 2 * (answer == " true")),
    ]
    for rule in rules:
        answering(monkeypatch, rule)
        scores = IN_SQUARES[name](lm, limit=120, seed=seed)
        assert scores.value == pytest.approx(scores.chance, abs=1e-12)
        monkeypatch.undo()


@pytest.mark.parametrize("name", IN_SQUARES)
def test_guessing_scores_about_chance(lm, monkeypatch, name):
    random_ = random.Random(0)
    answering(monkeypatch, lambda *_: random_.gauss(-3, 1))
    scores = IN_SQUARES[name](lm, limit=400)
    assert scores.interval.low < scores.chance < scores.interval.high
    assert scores.interval.n < len(scores.items["score"])  # squares, not questions


def test_right_is_what_most_speaks_for_beyond_what_speaks_for_it_everywhere(lm, monkeypatch):
    # "a" is likelier after both questions; after the second it is less so.
    table = {("A", " a"): -1.0, ("A", " b"): -4.0, ("B", " a"): -2.0, ("B", " b"): -4.0}
    answering(monkeypatch, lambda context, answer: table[context, answer])
    found = square_scores(lm, "m", [choice(["A", "B"], ["a", "b"], "x", "g")], "s")
    assert found.items["correct"] == (1.0, 1.0)
    assert found.items["margin"] == pytest.approx((0.5, 0.5))
    assert found.details == {"g": 1.0, "as they come": 0.5}
    assert found.chance == 0.5


def test_answers_are_read_as_far_as_they_differ():
    lm = load(tiny("llama").model, tokenizer=tokenizer())
    square = choice(["w5 w6", "w7"], ["w8 w9 w10", "w8 w11", "w12 w13"], "x")
    square = Square((*square.asked, square.asked[0]), "x")
    (value_NN,), _ = evidence(lm, [square])
    for row_N, ids in zip(value_NN, ([1, 5, 6], [1, 7]), strict=False):
        for place, answer in enumerate(([8, 9], [8, 11], [12])):
            with torch.no_grad():
                log_p_TV = lm.model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
            own = sum(float(log_p_TV[len(ids) - 1 + i, token]) for i, token in enumerate(answer))
            assert row_N[place] == pytest.approx(own, abs=1e-4)


# --- facts ------------------------------------------------------------------------------------------------------------

KNOWN = {(subject, obj) for relation in relations()[1] for subject, obj in relation.facts}


def knows(context, answer):
    """From memory alone: only the last sentence is looked at."""
    question = context.removesuffix("\nThis statement is").removesuffix(".").rpartition(". ")[2]
    if answer in (" true", " false"):
        return float(answer == " true" and any(s in question and question.endswith(" " + o) for s, o in KNOWN))
    return float(any(subject in question and answer.strip() == obj for subject, obj in KNOWN))


def reads(context, answer):
    """From the prompt alone."""
    *said, question = context.split(". ")
    return float(f"{question}{answer}" in said)


def test_who_knows_the_facts_and_cannot_read_scores_on_memory_alone(lm, monkeypatch):
    answering(monkeypatch, knows)
    assert facts(lm).value > 0.99
    assert yes_no(lm).value > 0.99
    assert facts_parametric_matched(lm, limit=400).value > 0.99
    assert facts_in_context(lm, limit=400).value == 1 / 4


def test_who_reads_and_knows_nothing_scores_on_context_alone(lm, monkeypatch):
    answering(monkeypatch, reads)
    for count in (2, 3, 4, 8):
        assert facts_in_context(lm, count, limit=160).value == 1.0
        assert facts_parametric_matched(lm, count, limit=160).value == pytest.approx(1 / count)
    assert facts(lm, limit=100).value == 1 / 4


@pytest.mark.parametrize("copied", ["any", "the first", "the last"])
def test_who_copies_whatever_the_prompt_states_gains_nothing_on_either_side(lm, monkeypatch, copied):
    """The lure: an answer that stands in one version's prompt and not in the other's would be found here."""

    def rule(context, answer):
        stated = [part for part in context.split(". ")[:-1] if part.endswith(answer)]
        place = {"any": 0, "the first": -context.find(answer + "."), "the last": context.rfind(answer + ".")}[copied]
        return 1e4 * len(stated) + place

    answering(monkeypatch, rule)
    for count in (2, 3, 4):
        context, memory = (of(lm, count, limit=240) for of in (facts_in_context, facts_parametric_matched))
        assert context.value == memory.value == pytest.approx(1 / count)
        assert context.items["margin"] == memory.items["margin"]


@pytest.mark.parametrize("count", [2, 3, 4, 6])
def test_what_stands_in_the_prompt_is_the_same_in_both_versions(count):
    """Every answer once, right and wrong alike, and nothing apart from the name that is asked for."""
    questions, first = 0, [0] * count
    for seed in range(5):
        for context, memory in matched_squares(count, "built-in", 400, seed)[1]:
            answers = [continuation for _, continuation in context.asked[0]]
            assert len(set(answers)) == count
            names = []
            for row, (read, known) in enumerate(zip(context.asked, memory.asked, strict=True)):
                assert [said for _, said in read] == [said for _, said in known] == answers
                # What is stated ends behind the last answer; subjects may hold full stops of their own.
                end = max(read[0][0].rindex(f"{answer}. ") + len(answer) + 2 for answer in answers)
                told, asked, asked_too = read[0][0][:end], read[0][0][end:], known[0][0][end:]
                assert known[0][0][:end] == told
                places = [told.index(f"{answer}. ") for answer in answers]
                assert [told.count(f"{answer}. ") for answer in answers] == [1] * count
                assert f"{asked}{answers[row]}. " in told  # the right one, of the invented name
                assert f" {asked_too}" not in f" {told}"
                assert not any(answer.strip() in text.split() for answer in answers for text in (asked, asked_too))
                first[sorted(places).index(places[row])] += 1
                names += [asked, asked_too]
                questions += 1
            assert len(set(names)) == 2 * count
    assert questions > 1000
    assert len(set(first)) == 1  # the right answer stands as often in each place


def test_facts_of_a_square_are_apart_and_no_name_gives_its_answer_away():
    for size in (2, 4):
        _, drawn = draw_facts("built-in", size, 10_000, 0)
        assert len(drawn) > 100
        for some in drawn:
            right = [some.relation.objects_of(subject) for subject, _ in some.facts]
            assert [[answer in of for answer in some.answers] for of in right] == np.eye(size, dtype=bool).tolist()
            assert not any(answer.lower() in subject.lower() for subject, _ in some.facts for answer in some.answers)
        for relation in {some.relation.name for some in drawn}:
            once = [some for some in drawn if some.relation.name == relation]
            subjects = [subject for some in once[: len(once) // 3] for subject, _ in some.facts]
            assert len(set(subjects)) == len(subjects)  # no fact twice before all other wordings


# --- what only the prompt says ----------------------------------------------------------------------------------------


def test_who_finds_the_rule_goes_on_rightly_and_no_answer_stands_in_the_prompt(lm, monkeypatch):
    def numbers(context, answer):
        row = [int(part) for part in context.removeprefix("Go on: ").removesuffix(",").split(", ")]
        return float(int(answer) == 2 * row[-1] - row[-2])

    def words(context, answer):
        *examples, last = (line.split(" -> ") for line in context.removesuffix(" ->").split("\n"))
        return float(any(answer == f" {rule(last[0])}" for rule in _RULES if all(rule(a) == b for a, b in examples)))

    for kind, rule in (("numbers", numbers), ("words", words)):
        answering(monkeypatch, rule)
        assert in_context(lm, kind, limit=400).value == 1.0
        monkeypatch.undo()
        for number in range(200):
            square = _KINDS[kind](number, random.Random(number))
            assert len({tuple(answer for _, answer in row) for row in square.asked}) == 1
            assert not any(
                answer.strip() in prompt.replace(",", "").split(" ") for row in square.asked for prompt, answer in row
            )


def test_who_finds_the_name_looks_up_its_code(lm, monkeypatch):
    answering(monkeypatch, lambda context, answer: float(f"\n{context.splitlines()[-1]}{answer}\n" in context))
    scores = lookup(lm, "2,4,8", limit=140)
    assert scores.value == 1.0
    assert scores.chance == pytest.approx(1 / (14 / 3))
    assert len(scores.items["score"]) == 140


def test_passkeys_take_as_many_tokens_of_every_length(lm):
    scores = passkey(lm, "256,512,1024", limit=14)
    assert scores.details.keys() == {
        "logprob",
        *(f"length {n}" for n in (256, 512, 1024)),
        *(f"depth {depth}" for depth in ("0", "0.25", "0.5", "0.75", "1")),
    }
    assert (scores.value, scores.chance) == (0.0, 1e-5)


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
    answering(monkeypatch, lambda context, answer: float(f"{answer}." in context))
    assert knowledge_conflict.knowledge_conflict(lm, limit=90).value == 1.0
    answering(monkeypatch, knows)
    knower = knowledge_conflict.knowledge_conflict(lm, limit=90)
    assert knower.value < 0.01
    assert knower.details["known without the statement"] > 0.99


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
    for ids in induction.repeated(lm, 12, 3, 0):
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
    for ids in induction.repeated(lm, 5, 3, 0):
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
