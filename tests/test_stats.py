"""Statistics: cut a stream anywhere, merge the parts, and get what the whole stream gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studfinder.stats import (
    INF,
    AbsHistogram,
    SumOfSquares,
    TopK,
    averaged,
    bootstrap,
    crossed,
    magnitude_bits,
    mean_interval,
    ratio_interval,
    to_bits,
)

settings.register_profile("quiet", deadline=None, max_examples=60)
settings.load_profile("quiet")

# Few distinct magnitudes, so that ties are common; both signs; what must be passed over.
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 1.5, -2.0, 2.0, 3e-5, 7e4, float("inf"), float("-inf"), float("nan")])
ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)


def matrices(numbers=NUMBERS):
    """Streams: matrices of five columns."""
    rows = st.lists(st.lists(numbers, min_size=5, max_size=5), min_size=1, max_size=6)
    return st.lists(rows.map(lambda rows: torch.tensor(rows, dtype=torch.float32)), min_size=1, max_size=5)


def topk(stream: list[torch.Tensor], k: int, start: int = 0) -> TopK:
    found = TopK(k)
    for matrix in stream:
        rows = torch.arange(start, start + len(matrix))
        found.add(matrix, torch.stack([rows // 3, rows % 3], dim=1))
        start += len(matrix)
    return found


@given(matrices(), st.integers(1, 8), st.data())
def test_topk_of_merged_parts_is_that_of_the_whole_ties_included(stream, k, data):
    """Law 5: merge(stats(A), stats(B)) = stats(A + B)."""
    cut = data.draw(st.integers(0, len(stream)))
    first = topk(stream[:cut], k)
    second = topk(stream[cut:], k, start=sum(map(len, stream[:cut])))
    whole = topk(stream, k).entries
    second_first = TopK(k, list(second.entries))
    second_first.merge(first)
    first.merge(second)
    assert first.entries == second_first.entries == whole


@given(matrices(ANY), st.integers(1, 8))
def test_topk_is_a_sort_by_magnitude_then_coordinates(stream, k):
    # Numbers that differ by less than bf16 can tell are candidates alike, but are ordered by their own magnitude.
    values = torch.cat(stream)
    everything = [
        (float(value), (row // 3, row % 3, column))
        for row, line in enumerate(values)
        for column, value in enumerate(line)
        if magnitude_bits(value) > 0 and magnitude_bits(value) < INF
    ]
    expected = sorted(everything, key=lambda entry: (-abs(entry[0]), entry[1]))[:k]
    assert topk(stream, k).entries == expected


@given(matrices(), st.data())
def test_histograms_of_parts_merge_exactly(stream, data):
    """Law 5."""
    cut = data.draw(st.integers(0, len(stream)))
    parts = [AbsHistogram(), AbsHistogram(), AbsHistogram()]
    for i, matrix in enumerate(stream):
        parts[0 if i < cut else 1].add(matrix)
        parts[2].add(matrix)
    first, second, whole = parts
    first.merge(second)
    assert first.counts.tolist() == whole.counts.tolist()
    assert (first.n, first.nonfinite, first.median) == (whole.n, whole.nonfinite, whole.median)


@given(
    st.lists(st.floats(-(2.0**126), 2.0**126, width=32), min_size=1, max_size=60),
    st.sampled_from([0.01, 0.25, 0.5, 0.9, 1]),
)
def test_quantiles_of_bf16_numbers_are_exact(numbers, q):
    values = torch.tensor(numbers).to(torch.bfloat16)
    histogram = AbsHistogram()
    histogram.add(values)
    magnitudes = values.float().abs()
    assert histogram.median == float(magnitudes.median())  # torch's median is the lower one too
    rank = next(r for r in range(1, len(numbers) + 1) if r / len(numbers) >= q)
    assert histogram.quantile(q) == float(magnitudes.sort().values[rank - 1])


@given(st.lists(st.floats(2**-100, 2**100, width=32), min_size=1, max_size=60))
def test_medians_of_wider_numbers_are_within_bf16(numbers):
    histogram = AbsHistogram()
    histogram.add(torch.tensor(numbers))
    assert histogram.median == pytest.approx(float(torch.tensor(numbers).median()), rel=2**-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nonfinite_numbers_are_counted_apart(dtype):
    histogram = AbsHistogram()
    histogram.add(torch.tensor([1, -2, float("inf"), float("-inf"), float("nan"), -float("nan"), 0], dtype=dtype))
    assert (histogram.n, histogram.nonfinite, histogram.median) == (3, 4, 1.0)


def test_an_empty_histogram_has_median_zero():
    assert (AbsHistogram().n, AbsHistogram().median) == (0, 0.0)


@given(st.lists(ANY, min_size=2, max_size=40))
def test_bits_order_like_magnitudes(numbers):
    values = torch.tensor(numbers).to(torch.bfloat16)
    values = values[~values.isnan()]
    by_bits = magnitude_bits(values).argsort(stable=True)
    assert values.float().abs()[by_bits].tolist() == sorted(values.float().abs().tolist())
    assert all(to_bits(float(value)) == int(bits) for value, bits in zip(values, magnitude_bits(values), strict=True))


@given(matrices(st.floats(-(2.0**33), 2.0**33, width=32)), st.data())
def test_sums_of_parts_merge_up_to_rounding(stream, data):
    """Law 5."""
    cut = data.draw(st.integers(0, len(stream)))
    parts = [SumOfSquares(), SumOfSquares()]
    for i, matrix in enumerate(stream):
        parts[i >= cut].add(matrix.double().square().sum(dim=0))
    parts[0].merge(parts[1])
    torch.testing.assert_close(parts[0].root, torch.cat(stream).double().norm(dim=0))


def test_the_root_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing was added"):
        _ = SumOfSquares().root


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def naive(sums, weights):
    """Items are drawn one by one and looked up."""
    picks = np.random.default_rng(0).integers(0, len(sums), (10_000, len(sums)))
    with np.errstate(invalid="ignore"):
        return np.quantile(sums[picks].sum(axis=1) / weights[picks].sum(axis=1), [0.025, 0.975])


@pytest.mark.parametrize("n", [1, 2, 16, 300])
def test_drawing_counts_is_drawing_items(n):
    sums, weights = np.random.default_rng(1).normal(size=n), np.arange(1.0, n + 1)
    found = ratio_interval(sums, weights)
    assert found.value == pytest.approx(sums.sum() / weights.sum())
    assert [found.low, found.high] == pytest.approx(naive(sums, weights))
    assert found.ordered
    assert found.n == n


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_counts_where_it_is_drawn(value):
    sums = np.array([value, *np.arange(1.0, 4)])
    found = ratio_interval(sums, np.ones(4))
    np.testing.assert_equal([found.low, found.high], naive(sums, np.ones(4)))
    np.testing.assert_equal(found.value, value)


def test_items_that_are_alike_have_no_width():
    found = ratio_interval(np.full(7, 0.1) * np.arange(1, 8), np.arange(1.0, 8))
    assert found.low == found.value == found.high


def test_tasks_are_drawn_each_by_itself():
    one, other = np.random.default_rng(1).normal(size=(2, 200))
    both = averaged([one, other])
    assert both.value == pytest.approx((one.mean() + other.mean()) / 2)
    # The variance of a mean of two independent means; drawn together, it would be that of their mean item by item.
    apart = np.hypot(one.std(), other.std()) / 2
    assert (both.high - both.low) / 2 == pytest.approx(1.96 * apart / 200**0.5, rel=0.03)
    alike = averaged([one, one])
    assert alike.high - alike.low < 0.8 * (mean_interval(one).high - mean_interval(one).low)
    share = averaged([one * 3, other * 3], [one, other])
    assert (share.value, share.low, share.high) == pytest.approx((3, 3, 3))


def test_items_and_draws_are_crossed():
    scores = np.add.outer([-1.0, 0.0, 1.0, 2.0], np.random.default_rng(1).normal(size=400))
    found = crossed(lambda mean: mean["x"], {"x": scores})
    # Of a sum of two independent effects: items, of which there are many, and draws, of which there are four.
    spread = np.hypot(scores[0].std() / 400**0.5, scores[:, 0].std() / 4**0.5)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    assert found.method == "paired bootstrap over items and 4 draws"


def test_the_parts_that_draws_come_in_change_nothing(monkeypatch):
    values = np.random.default_rng(1).normal(size=(9, 5))
    found = []
    for chunk in (1, 1000, 1 << 20):
        monkeypatch.setattr("studfinder.stats.resampling._CHUNK", chunk)
        found.append(bootstrap(lambda *times: sum(t @ values[: t.shape[1]] for t in times), [9, 4]))
    assert found[0].shape == (3, 5)
    np.testing.assert_allclose(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2])
