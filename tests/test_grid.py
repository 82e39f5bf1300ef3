"""The grid: what is measured, what is left out and why, and that nothing is done twice."""

from __future__ import annotations

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from proving import provable
from studfinder.edits import Weights, zero
from studfinder.errors import NotApplicable, StudfinderError, Unavailable
from studfinder.measures import scored
from studfinder.runs import Steps, here
from studfinder.studies import Grid, ModelVariant, Original, with_edits

LM = provable("llama", planted=False)[0]


class Counting:
    """A watch whose scores are how often it was asked; it fails where it is told to."""

    def __init__(self, name: str = "counted", fails: dict[int, Exception] | None = None) -> None:
        self.name, self.asked, self.seen, self.fails = name, 0, 0, fails or {}

    def see(self, lm):
        self.seen += 1

    def scores(self, lm):
        self.asked += 1
        if self.asked in self.fails:
            raise self.fails[self.asked]
        return {self.name: scored(self.name, [float(self.asked)] * 3, text="none")}


def made(bits: float, entered: list[str], label: str) -> ModelVariant:
    @contextmanager
    def change():
        entered.append(label)
        yield SimpleNamespace(bits=bits, notes=["so"])

    return ModelVariant(label, change)


def variants(entered: list[str]) -> list[ModelVariant]:
    return [ModelVariant("original"), made(4.0, entered, "a"), made(3.0, entered, "b")]


def test_cells_are_taken_once(tmp_path):
    entered: list[str] = []
    watch, steps = Counting(), Steps(tmp_path / "steps.jsonl", "r", "v")
    found = Grid(run=steps, lm=LM, variants=variants(entered), measures=[watch]).scored()
    assert entered == ["a", "b"]
    assert [found.scores[label]["counted"].value for label in found.labels] == [1, 2, 3]
    assert (found.bits("a"), found.bits("b"), found.bits("original")) == (4.0, 3.0, None)
    assert found.change("counted", "b").interval.value == 2
    again = Grid(run=Steps(tmp_path / "steps.jsonl", "r", "v"), lm=LM, variants=variants(entered), measures=[watch])
    assert again.scored().scores == found.scores
    assert (entered, watch.asked) == (["a", "b"], 3)


def test_a_refused_variant_keeps_its_bits_and_is_not_tried_again(tmp_path):
    entered: list[str] = []
    first, second = Counting("one"), Counting("two", {2: NotApplicable("it does not fit")})
    for _ in range(2):
        steps = Steps(tmp_path / "steps.jsonl", "r", "v")
        grid = Grid(run=steps, lm=LM, variants=variants(entered), measures=[first, second], lenient=True)
        found = grid.scored()
        assert found.refused("a") == "it does not fit."
        assert found.bits("a") == 4.0
        assert found.scores["a"] == {}
        assert [one.label for one in found.tried()] == ["b"]
        row = found.scores_table("t", bits="bits").rows[1]
        assert row == ("a", 4.0, "does not fit", "does not fit")
        assert found.notes() == ["a was left out. it does not fit."]
    assert entered == ["a", "b"]


@pytest.mark.parametrize("kind", [NotApplicable, Unavailable])
@pytest.mark.parametrize("at", [1, 2])
def test_a_measure_that_is_not_here_is_left_out_of_all(kind, at):
    watch = Counting("gone", {at: kind("no data")})
    found = Grid(run=Steps(None), lm=LM, variants=variants([]), measures=[Counting(), watch]).scored()
    assert found.missing == {"gone": "no data."}
    assert found.measures == ["counted"]
    assert found.scores_table("t").columns == ("model", "counted", "gone")
    assert {row[2] for row in found.scores_table("t").rows} == {"not here"}


def test_a_mistake_ends_it_and_one_measure_says_why_itself():
    with pytest.raises(StudfinderError, match="wrong"):
        mistaken = Counting("bad", {1: StudfinderError("wrong")})
        Grid(run=Steps(None), lm=LM, variants=variants([]), measures=[Counting(), mistaken]).scored()
    with pytest.raises(NotApplicable, match="no data"):
        Grid(
            run=Steps(None), lm=LM, variants=variants([]), measures=[Counting("x", {1: NotApplicable("no data")})]
        ).scored()


def test_an_executor_is_given_shares_and_puts_plain_json():
    told = []

    def elsewhere(shares, put):
        def passed(step, value):
            told.append(step)
            put(step, json.loads(json.dumps(value)))

        here(dict(reversed(shares.items())), passed)  # in any order

    options = {"lm": LM, "variants": variants([]), "measures": ["perplexity", Original(2)], "limits": {"perplexity": 2}}
    serial = Grid(run=Steps(None), **options).scored()
    steps = Steps(None)
    steps.executor = elsewhere
    spread = Grid(run=steps, **options).scored()
    assert spread.labels == serial.labels
    assert spread.scores == serial.scores
    assert len(told) == 9


def test_watches_look_before_anything_is_changed():
    original = Original(2)
    whole = Weights(parameter="model.layers.1.mlp.down_proj.weight", entries=((None, None),))
    edit = with_edits(LM, "without", zero([whole]))
    found = Grid(run=Steps(None), lm=LM, variants=[edit, ModelVariant("clean")], measures=[original]).scored()
    assert found.scores["clean"]["KL"].value == 0
    assert found.scores["without"]["KL"].value > 0
