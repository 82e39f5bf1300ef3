"""What is wrong with a matrix: the pattern of the difference between what it was and what it is.

Rounding leaves a difference that is small, without a mean, and alike over rows and columns. What breaks a checkpoint
does not: a wrong scale multiplies, a wrong zero point shifts, a wrong file is unrelated, a lost number is alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

_UNRELATED = 0.5
"""Cosine below which two matrices are not the same one: rounded to 2 bits a Gaussian matrix keeps 0.9."""
_OFF = 0.1
"""A factor nearer to 1 is what rounding with a searched range may leave."""
_EXPLAINED = 0.5
"""A factor explains a difference if it leaves no more than this share of it."""
_OUTLIER, _LARGER = 8.0, 2.5
"""A row or column stands out whose log error lies so many deviations off (by the median), and so many times larger."""
_GAP, _APART = 1.5, 3.0
"""Or a column that is so many times as large as the next smaller one, and so many deviations off. Rows that hold one
large number stand apart so when all is well."""
_BLOCKS = (32, 64, 128)
_CHUNK = 32
"""Columns that any common block of a row holds whole."""
_SHIFTED = 0.6
"""Mean over root mean square of the difference within a block: about 0.14 of rounding, 0.96 of zero points one off."""
_LOST = 0.5
"""Of the largest numbers rounding leaves more than half; clipping to 0.6 of a range, too."""
_ALONE = 16.0
"""A lost number's error over the root mean square of all: where GPTQ makes up for other errors, up to 11 was seen."""
_LARGEST = 16


@dataclass(frozen=True)
class Pattern:
    """A difference between two matrices, in a kind and in words.

    Attributes:
        kind: "not finite", "zeroed", "scaled", "row scales", "column scales", "permuted rows", "permuted columns",
            "unrelated", "shifted", "rows", "columns", "numbers", or "rounding" of what breaks nothing.
        words: the same with its places and sizes.
        error: relative, the norm of the difference over that of what was there.
        rows, cols: where, if it is somewhere.
    """

    kind: str
    words: str
    error: float
    rows: tuple[int, ...] = ()
    cols: tuple[int, ...] = ()

    @property
    def breaks(self) -> bool:
        """Whether rounding does not do this."""
        return self.kind not in ("rounding", "column scales")


def pattern_of(was_RC: torch.Tensor, is_RC: torch.Tensor) -> Pattern | None:
    """The pattern of the difference between two matrices (out, in), any float dtype; None if there is none.

    A vector counts as a matrix of one column. Columns that were multiplied, as AWQ and SmoothQuant do (the inverse goes
    into what is before), are compared as they were before.
    """
    was, now = (one.detach().float().reshape(one.shape[0], -1) for one in (was_RC, is_RC))
    if torch.equal(was, now):
        return None
    if not torch.isfinite(now).all():
        bad = (~torch.isfinite(now)).nonzero()[0].tolist()
        return Pattern("not finite", f"it holds NaN or infinity, first at {bad}", float("inf"), (bad[0],), (bad[1],))
    error = float((now - was).norm() / was.norm().clamp_min(1e-30))
    if was.any() and not now.any():
        return Pattern("zeroed", "all its numbers are 0", error)
    for test in (_zeroed_rows, _multiplied, _elsewhere):
        found = test(was, now, error)
        if found is not None:
            return found
    factor_C = line_factors(was, now, 0)
    explained = (now - was * factor_C).norm() < _EXPLAINED * (now - was).norm()
    scaled = bool(explained) and float((factor_C - 1).abs().median()) > 0.01
    if scaled and was.shape[1] > 1:
        now = now / torch.where(factor_C.abs() > 1e-6, factor_C, 1.0)
    for test in (_shifted, _numbers, _lines):
        found = test(was, now, error)
        if found is not None:
            return found
    if scaled and was.shape[1] > 1:
        return Pattern("column scales", "its columns were multiplied, as AWQ and SmoothQuant do", error)
    return Pattern("rounding", f"rounded: {error:.2%} of its size", error)


def line_factors(was_RC: torch.Tensor, is_RC: torch.Tensor, dim: int) -> torch.Tensor:
    """By which factor each column (dim 0 summed) or row (dim 1 summed) was multiplied, least squares. The largest
    number of each does not count: if that alone is lost, the others are not multiplied."""
    was = was_RC
    if was.shape[dim] >= 8:
        size = was.abs()
        was = was.masked_fill(size == size.amax(dim, keepdim=True), 0)
    return (was * is_RC).sum(dim, keepdim=True) / was.square().sum(dim, keepdim=True).clamp_min(1e-30)


def _zeroed_rows(was: torch.Tensor, now: torch.Tensor, error: float) -> Pattern | None:
    """Rows or columns of zeros; not those that are no larger than what rounding does to the others."""
    if was.shape[1] == 1:
        return None
    off = (now - was).square()
    for what, dim in (("rows", 1), ("columns", 0)):
        zero = was.any(dim) & ~now.any(dim)
        if not zero.any():
            continue
        size, others = was.square().mean(dim).sqrt(), off.mean(dim)[~zero]
        usual = float(others.mean().sqrt()) if len(others) else 0.0
        places = (zero & (size > _LARGER * usual)).nonzero()[:, 0].tolist()
        if places:
            rows, cols = (tuple(places), ()) if what == "rows" else ((), tuple(places))
            return Pattern("zeroed", f"{_are(what, places)} 0", error, rows, cols)
    return None


def _multiplied(was: torch.Tensor, now: torch.Tensor, error: float) -> Pattern | None:
    """One factor for all numbers, or one for each row."""
    # Of another tensor that is smaller, hardly anything is left when it is taken to be 0 times this one.
    limit = _EXPLAINED * min((now - was).norm(), now.norm())
    factor = float((was * now).sum() / was.square().sum().clamp_min(1e-30))
    if abs(factor - 1) > _OFF and (now - factor * was).norm() < limit:
        return Pattern("scaled", f"its numbers are {factor:.3g} times what they were", error)
    if was.shape[1] == 1:
        return _some_multiplied(was[:, 0], now[:, 0], error)
    factor_R = line_factors(was, now, 1)
    wrong = ((factor_R - 1).abs() > _OFF)[:, 0]
    if wrong.any() and (now - factor_R * was).norm() < limit:
        rows = wrong.nonzero()[:, 0].tolist()
        usual = float(factor_R[wrong].median())
        words = f"{_are('rows', rows)} multiplied (median factor {usual:.3g})"
        return Pattern("row scales", words, error, tuple(rows))
    return None


def _some_multiplied(was_N: torch.Tensor, is_N: torch.Tensor, error: float) -> Pattern | None:
    """Some numbers of a vector by one factor."""
    places = (was_N != is_N).nonzero()[:, 0]
    factor_N = is_N[places] / was_N[places]
    factor = float(factor_N.median())
    if len(places) < 2 or not bool(((factor_N - factor).abs() < 0.02 * abs(factor)).all()) or abs(factor - 1) <= _OFF:
        return None
    words = f"{_are('numbers', places.tolist())} {factor:.3g} times what they were"
    return Pattern("row scales", words, error, tuple(places.tolist()))


def _elsewhere(was: torch.Tensor, now: torch.Tensor, error: float) -> Pattern | None:
    """Rows or columns of another place, or of another matrix."""
    if was.shape[1] == 1:
        cosine = float(torch.cosine_similarity(was[:, 0], now[:, 0], dim=0))
        return Pattern("unrelated", _other(cosine), error) if cosine < _UNRELATED else None
    for what, one, other in (("rows", was, now), ("columns", was.T, now.T)):
        own = torch.cosine_similarity(one, other, dim=1)
        moved = (own < _UNRELATED).nonzero()[:, 0]
        if not len(moved):
            continue
        some = moved[torch.linspace(0, len(moved) - 1, min(len(moved), 64)).long()]
        unit = torch.nn.functional.normalize(one, dim=1)
        best = (torch.nn.functional.normalize(other[some], dim=1) @ unit.T).max(dim=1)
        if float((best.values > 0.8).float().mean()) > 0.5 and one.shape[1] >= 8:
            places = tuple(moved.tolist())
            words = f"{_named(what, list(places))} hold what belongs to others of its {what}"
            rows, cols = (places, ()) if what == "rows" else ((), places)
            return Pattern(f"permuted {what}", words, error, rows, cols)
    if was.numel() > 8 * _LARGEST:  # a number that outweighs all others may be lost
        largest = was.abs().flatten().topk(_LARGEST).indices
        was, now = (one.flatten().index_fill(0, largest, 0.0) for one in (was, now))
    cosine = float((was * now).sum() / (was.norm() * now.norm()).clamp_min(1e-30))
    return Pattern("unrelated", _other(cosine), error) if cosine < _UNRELATED else None


def _other(cosine: float) -> str:
    return f"it is another tensor (cosine {cosine:.2f} with what was there)"


def _shifted(was: torch.Tensor, now: torch.Tensor, error: float) -> Pattern | None:
    """A constant in each block: zero points that are off."""
    width = was.shape[1] // _CHUNK * _CHUNK
    if not width:
        return None
    off = (now - was)[:, :width].reshape(len(was), -1, _CHUNK)
    ratio = off.mean(2).abs() / off.square().mean(2).sqrt().clamp_min(1e-30)
    if float(ratio.median()) < _SHIFTED:
        return None
    return Pattern("shifted", "within blocks its numbers are off by a constant, as with wrong zero points", error)


def _numbers(was: torch.Tensor, now: torch.Tensor, error: float) -> Pattern | None:
    """Of the largest numbers, those that are lost, or that were not there."""
    if was.shape[1] == 1 and len(was) < 4:
        return None
    off = (now - was).abs()
    usual = off.square().mean().sqrt()
    lost = []
    for one in (was, now):
        flat = one.abs().flatten()
        for place in flat.topk(min(_LARGEST, len(flat))).indices.tolist():
            row, col = divmod(place, was.shape[1])
            if off[row, col] > _LOST * flat[place] and off[row, col] > _ALONE * usual:
                lost.append((row, col))
    lost = sorted(set(lost), key=lambda at: -float(off[at]))
    if not lost:
        return None
    row, col = lost[0]
    more = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
    words = f"its number [{row}, {col}] was {float(was[row, col]):.4g} and is {float(now[row, col]):.4g}{more}"
    return Pattern("numbers", words, error, tuple(r for r, _ in lost), tuple(c for _, c in lost))


def _lines(was: torch.Tensor, now: torch.Tensor, error: float) -> Pattern | None:
    """Rows or columns that are rounded far more coarsely than the others."""
    if was.shape[1] == 1:
        changed = (now != was)[:, 0].nonzero()[:, 0].tolist()
        if len(changed) > len(was) // 2:
            return None
        words = f"{_named('numbers', changed)} differ"
        return Pattern("numbers", words, error, tuple(changed))
    off = (now - was).square()
    usual_R = off.mean(1, keepdim=True)
    # Of columns relative to the rows' errors: rows have scales of their own.
    by_column = (off / usual_R.clamp_min(1e-30)).mean(0).sqrt()
    by_row = min((usual_R[:, 0].sqrt() / size_R for size_R in _sizes(was)), key=_spread)
    for what, size in (("columns", by_column), ("rows", by_row)):
        places = list(_standing_out(size, apart=what == "columns"))
        if places:
            rest = size.clone()
            rest[places] = 0
            usual = float(rest[rest > 0].median()) if rest.any() else 0.0
            more = (
                f"{float(size[places].median()) / usual:.1f} times as wrong as the others" if usual else "alone wrong"
            )
            words = f"{_are(what, places)} {more}"
            rows, cols = (tuple(places), ()) if what == "rows" else ((), tuple(places))
            return Pattern(what, words, error, rows, cols)
    return None


def _sizes(was: torch.Tensor) -> Iterator[torch.Tensor]:
    """What the errors of rows may go with: nothing, as they share a scale; a row's size or its largest number, as each
    has one; or those of its blocks."""
    yield torch.ones(len(was))
    yield was.square().mean(1).sqrt().clamp_min(1e-30)
    yield was.abs().amax(1).clamp_min(1e-30)
    for block in _BLOCKS:
        if was.shape[1] % block == 0 and was.shape[1] > block:
            yield was.reshape(len(was), -1, block).abs().amax(2).square().mean(1).sqrt().clamp_min(1e-30)


def _standing_out(size_N: torch.Tensor, *, apart: bool) -> Iterator[int]:
    positive = size_N > 0
    if int(positive.sum()) * 2 <= len(size_N):  # the others are as they were
        yield from positive.nonzero()[:, 0].tolist()
        return
    if int(positive.sum()) < 8:
        return
    logs = size_N.clamp_min(1e-30).log()
    over = logs - logs[positive].median()
    larger = positive & (over > math.log(_LARGER))
    out = larger & (over > _OUTLIER * _spread(size_N))
    far, order = larger & (over > _APART * _spread(size_N)), logs.sort(descending=True)
    gaps = (order.values[:-1] - order.values[1:]) > math.log(_GAP)
    for count in (gaps[: len(logs) // 4].nonzero()[:, 0] + 1).tolist() if apart else ():
        if bool(far[order.indices[:count]].all()):  # well apart from all others
            out[order.indices[:count]] = True
    if int(out.sum()) <= len(size_N) // 2:
        yield from out.nonzero()[:, 0].tolist()


def _spread(size_N: torch.Tensor) -> float:
    """Of the logs of sizes, as a standard deviation, by the median."""
    logs = size_N[size_N > 0].log()
    return 0.01 if not len(logs) else 1.4826 * max(0.01, float((logs - logs.median()).abs().median()))


def _are(what: str, places: list[int]) -> str:
    return f"{_named(what, places)} {'is' if len(places) == 1 else 'are'}"


def _named(what: str, places: list[int]) -> str:
    """Places in words: a few by number, many by how many."""
    if len(places) == 1:
        return f"{what.removesuffix('s')} {places[0]}"
    if len(places) <= 4:
        return f"{what} {', '.join(map(str, places))}"
    return f"{len(places):,} {what} ({places[0]} to {places[-1]})"
