"""Statistics: cut a stream anywhere, merge the parts, and get what the whole stream gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studfinder.stats import INF, AbsHistogram, SumOfSquares, TopK, magnitude_bits, student_t, to_bits

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
    cut = data.draw(st.integers(0, len(stream)))
    parts = [SumOfSquares(), SumOfSquares()]
    for i, matrix in enumerate(stream):
        parts[i >= cut].add(matrix.double().square().sum(dim=0))
    parts[0].merge(parts[1])
    torch.testing.assert_close(parts[0].root, torch.cat(stream).double().norm(dim=0))


def test_the_root_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="nothing was added"):
        _ = SumOfSquares().root


@pytest.mark.parametrize(
    ("freedom", "level", "table"),
    [(1, 0.95, 12.7062), (2, 0.95, 4.30265), (10, 0.95, 2.22814), (30, 0.95, 2.04227), (4, 0.99, 4.60409)],
)
def test_students_t_is_the_tables(freedom, level, table):
    assert student_t(freedom, level) == pytest.approx(table, rel=2e-6)


def test_students_t_ends_at_the_normal_distribution():
    assert student_t(10_000) == pytest.approx(1.959964, rel=2e-4)
    assert student_t(10_000) > 1.959964
    with pytest.raises(ValueError, match="0 degrees"):
        student_t(0)
