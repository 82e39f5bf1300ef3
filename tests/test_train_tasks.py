"""Toy tasks: what is scored is exactly what can be known."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from studfinder.errors import StudfinderError
from studfinder.training import TOY_TASKS, TaskSource, task_from
from studfinder.training.tasks import Backcopy, HopK, Induction, NGram, Recall
from studfinder.training.tasks.task import IGNORED

SMALL = {
    "induction": Induction(vocabulary=64, length=32),
    "n-gram": NGram(vocabulary=32, length=48, rules=20),
    "hop-k": HopK(length=40, hops=4),
    "recall": Recall(vocabulary=32, length=32, pairs=3),
    "backcopy": Backcopy(vocabulary=20, length=32),
}


def examples(task, count=50, seed=0):
    return [task.example(np.random.default_rng((seed, i))) for i in range(count)]


@pytest.mark.parametrize("name", TOY_TASKS)
def test_every_task_is_a_stream(name):
    task = SMALL[name]
    source = TaskSource(task)
    for example in examples(task):
        assert example.tokens_T.shape == example.labels_T.shape == example.scored_T.shape == (task.length,)
        assert example.tokens_T.min() >= 0
        assert example.tokens_T.max() < task.vocabulary
        assert example.scored_T[1:].any()
        assert (example.labels_T[example.scored_T] != IGNORED).all()
    again = [source.row("train", 3, 7) for _ in range(2)]
    assert (again[0]["input_ids"] == again[1]["input_ids"]).all()
    assert (source.row("train", 4, 7)["input_ids"] != again[0]["input_ids"]).any()
    assert (source.row("train", 3, 8)["input_ids"] != again[0]["input_ids"]).any()
    assert (source.row("test", 3, 7)["input_ids"] == source.row("test", 4, 7)["input_ids"]).all()
    assert (source.row("test", 0, 7)["input_ids"] != source.row("train", 0, 7)["input_ids"]).any()


@pytest.mark.parametrize("seed", range(3))
def test_induction_says_the_successor_recorded_last(seed):
    for example in examples(SMALL["induction"], seed=seed):
        successor: dict[int, int] = {}
        tokens, scored = example.tokens_T.tolist(), example.scored_T.tolist()
        place = 0
        while place < len(tokens):
            word = tokens[place]
            if word in successor and place + 1 < len(tokens):
                assert scored[place + 1]
                assert tokens[place + 1] == successor[word]
                place += 2
                continue
            assert word not in successor or place + 1 == len(tokens)
            if place and word not in successor:
                successor[tokens[place - 1]] = word
            place += 1
        drawn = [(a, b) for a, b, asked in zip(tokens, tokens[1:], scored[1:], strict=False) if not asked]
        assert all(a != b for a, b in drawn)


def test_induction_scores_the_first_repeat_alone_if_asked():
    first = Induction(vocabulary=64, length=32, score="first")
    for all_repeats, one in zip(examples(SMALL["induction"]), examples(first), strict=True):
        assert (all_repeats.tokens_T == one.tokens_T).all()
        assert one.scored_T.sum() == 1
        place = int(one.scored_T.argmax())
        assert place == int(all_repeats.scored_T.argmax())
        # Before the first repeat its token stood exactly once, so that there is one answer.
        before = one.tokens_T[: place - 1].tolist()
        assert Counter(before)[one.tokens_T[place - 1]] == 1
        assert one.tokens_T[place] == before[before.index(one.tokens_T[place - 1]) + 1]


def test_n_gram_answers_follow_the_table():
    task = SMALL["n-gram"]
    assert len(task.answers) == task.rules
    assert task.answers == NGram(vocabulary=32, length=48, rules=20).answers
    share = 0.0
    for example in examples(task):
        for place in np.flatnonzero(example.scored_T):
            assert example.tokens_T[place] == task.answers[tuple(example.tokens_T[place - 2 : place].tolist())]
        share += example.scored_T.mean() / 50
    assert 0.15 < share < 0.35


def test_hops_are_those_of_the_definition():
    def find(words, place):  # max j <= place with words[j - 1] == words[place]
        return max((j for j in range(1, place + 1) if words[j - 1] == words[place]), default=None)

    for example in examples(SMALL["hop-k"], count=20):
        hops, words = int(example.tokens_T[0]) - 4 + 1, example.tokens_T[1:].tolist()
        assert 1 <= hops <= 4
        assert all(a != b for a, b in itertools.pairwise(words))
        for place in range(len(words) - 1):
            there = place
            for _ in range(hops):
                there = None if there is None else find(words, there)
            expected = IGNORED if there is None else words[there]
            assert example.labels_T[place + 2] == expected
    assert {int(e.tokens_T[0]) for e in examples(HopK(length=40, hops=4, exact=1))} == {7}


def test_recall_has_one_answer():
    for example in examples(SMALL["recall"]):
        *body, ask, key, value = example.tokens_T.tolist()
        assert ask == 1
        places = [i for i, token in enumerate(body) if token == 0]
        assert len(places) == 3
        pairs = {body[i + 1]: body[i + 2] for i in places}
        assert len(pairs) == 3
        assert pairs[key] == value
        assert Counter(body)[key] == 1
        assert example.scored_T.tolist() == [False] * 31 + [True]


def test_backcopy_copies_after_triggers_and_follows_its_chain_elsewhere():
    task = SMALL["backcopy"]
    followed: dict[int, Counter] = {}
    for example in examples(task, count=600):
        tokens = example.tokens_T.tolist()
        assert tokens[0] == 0
        for place in range(1, len(tokens)):
            last = tokens[place - 1]
            assert example.scored_T[place] == (1 <= last <= 3)
            if example.scored_T[place]:
                assert tokens[place] == tokens[place - 2]
            else:
                followed.setdefault(last, Counter())[tokens[place]] += 1
    for last, counts in followed.items():
        total = sum(counts.values())
        if total > 300:
            seen = np.array([counts[i] / total for i in range(task.vocabulary)])
            assert np.abs(seen - task.chain_VV[last]).max() < 0.1
    assert np.allclose(task.chain_VV[4:].sum(axis=1), 1)


def test_backcopy_entropy_is_that_of_its_sequences():
    task = Backcopy(vocabulary=12, length=200)
    nats, tokens = 0.0, 0
    for example in examples(task, count=100):
        for a, b, copied in zip(
            example.tokens_T[20:], example.tokens_T[21:], example.scored_T[21:], strict=False
        ):  # past the start
            nats -= 0.0 if copied else np.log(task.chain_VV[a, b])
            tokens += 1
    assert nats / tokens == pytest.approx(task.entropy, rel=0.03)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("inductoin", "no task"),
        ("induction:lenght=3", "no setting 'lenght'"),
        ("induction:length=long", "a whole number"),
        ("induction:length=64,vocabulary=64", "too small"),
        ("induction:score=last", "unknown"),
        ("n-gram:rules=0", "do not fit"),
        ("n-gram:share=2", "out of range"),
        ("hop-k:vocabulary=99", "follows from"),
        ("recall:pairs=40", "do not fit"),
        ("backcopy:triggers=0", "0 triggers"),
        ("recall:train_on=none", "unknown"),
        ("recall:length=2", "too short"),
    ],
)
def test_settings_that_cannot_be(text, said):
    with pytest.raises(StudfinderError, match=said):
        task_from(text)


def test_a_task_from_the_command_line():
    assert task_from("induction:length=64,vocabulary=256,score=first") == Induction(
        length=64, vocabulary=256, score="first"
    )
