"""Scores compare pairwise, by item."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from studfinder.errors import StudfinderError
from studfinder.measures import compare, measure_named, scored
from studfinder.stats import mcnemar, mean_interval


def _scores(correct, text="items 1", **more):
    return scored("recall", correct, text=text, chance=0.25, correct=correct, **more)


def test_a_paired_difference_is_sharper_than_two_separate_intervals():
    random = np.random.default_rng(1)
    before = random.normal(size=200)
    after = before - 0.1 + 0.01 * random.normal(size=200)
    change = compare(scored("loss", before, text="a"), scored("loss", after, text="a"))
    assert change.changed
    assert change.interval.high - change.interval.low < 0.02
    assert change.p is None


def test_no_change_is_no_change():
    same = _scores([1, 0, 1, 1])
    change = compare(same, same)
    assert change.interval.value == 0
    assert not change.changed
    assert change.p == 1.0


def test_other_items_are_refused():
    with pytest.raises(StudfinderError, match="cannot be compared"):
        compare(_scores([1, 0]), _scores([1, 0], text="items 2"))


def test_no_items_is_an_error():
    with pytest.raises(StudfinderError, match="no items"):
        scored("recall", [], text="none")


def test_clusters_are_resampled_together():
    values = np.repeat([0.0, 1.0], 50)
    alone = mean_interval(values)
    together = mean_interval(values, ["a"] * 50 + ["b"] * 50)
    assert together.n == 2
    assert together.high - together.low == 1.0
    assert alone.high - alone.low < 0.3


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_exact_binomial(lost, won):
    before = [1] * lost + [0] * won + [1, 0]
    after = [0] * lost + [1] * won + [1, 0]
    n = lost + won
    exact = min(1.0, 2 * sum(comb(n, k) for k in range(min(lost, won) + 1)) / 2**n) if n else 1.0
    assert mcnemar(before, after) == pytest.approx(exact)


def test_mcnemar_of_thousands_agrees_with_its_formula_for_few():
    before, after = [1] * 620 + [0] * 500, [0] * 620 + [1] * 500
    exact = 2 * sum(comb(1120, k) for k in range(501)) / 2**1120
    assert mcnemar(before, after) == pytest.approx(exact, rel=1e-6)


def test_an_unknown_measure_is_named():
    with pytest.raises(StudfinderError, match="no measure 'recal'"):
        measure_named("recal")
