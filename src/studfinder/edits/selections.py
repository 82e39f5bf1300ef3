"""Which entries of a site: small frozen records. What they pick is worked out on the fly, in `choose`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from studfinder.errors import StudfinderError


@dataclass(frozen=True)
class Coordinates:
    """Named dims.

    Attributes:
        dims: which (channels of the residual stream, dims of a head, ...).
        head: which head (KV head, for keys and values); None is every one. Sites without heads have head 0.
        positions: which tokens, counted from 0 over a row's real tokens, so that padding moves nothing; None is all.
    """

    dims: tuple[int, ...]
    head: int | None = None
    positions: tuple[int, ...] | None = None
    kind: Literal["coordinates"] = field(default="coordinates", kw_only=True)


@dataclass(frozen=True)
class TopDims:
    """The k dims of largest M[h,d] = sqrt(sum of squares over the row's real tokens), head by head and row by row of
    the batch (Jin et al. 2025); with largest=False the k smallest, the paper's own control."""

    k: int = 1
    largest: bool = True
    kind: Literal["top"] = field(default="top", kw_only=True)


@dataclass(frozen=True)
class AboveLambda:
    """The dims with M[h,d] above lam times their head's mean: the massive values. A head may hold none."""

    lam: float = 5.0
    kind: Literal["above"] = field(default="above", kw_only=True)


@dataclass(frozen=True)
class RandomDims:
    """k random dims of each head, the same for every row, and never one of the head's k largest."""

    k: int = 1
    seed: int = 0
    kind: Literal["random"] = field(default="random", kw_only=True)


@dataclass(frozen=True)
class MatchedDims:
    """A control for TopDims(k): k other dims of the same head that could have mattered as much.

    Attributes:
        by: "norm" takes those nearest in M (the next largest, which are massive themselves where a head has more than k
            massive dims); "band" takes, for each of the k largest, a random dim
            whose rotary pair is at most a sixteenth of all pairs away, never one of the k largest or its pair's other
            half.
    """

    k: int = 1
    by: Literal["norm", "band"] = "norm"
    seed: int = 0
    kind: Literal["matched"] = field(default="matched", kw_only=True)


@dataclass(frozen=True)
class LargestEntry:
    """In each row the one entry of largest |value| among the call's real tokens, in the named dims or all."""

    dims: tuple[int, ...] | None = None
    kind: Literal["largest"] = field(default="largest", kw_only=True)


@dataclass(frozen=True)
class Everything:
    """All entries of all real tokens."""

    kind: Literal["everything"] = field(default="everything", kw_only=True)


Entries = Coordinates | TopDims | AboveLambda | RandomDims | MatchedDims | LargestEntry | Everything
Ranked = TopDims | AboveLambda | RandomDims | MatchedDims
"""Selections that look at M: they need a prefill to look at."""


def check_selection(select: Entries, heads: int, dims: int, site: str) -> None:
    """Raise StudfinderError if the selection can never fit a site of so many heads and dims."""
    if isinstance(select, Coordinates | LargestEntry):
        wanted = select.dims
        if wanted is not None and (not wanted or not all(0 <= dim < dims for dim in wanted)):
            raise StudfinderError(f"dims {list(wanted)} of {site}", expected=f"at least one, from 0 to {dims - 1}")
    if isinstance(select, Coordinates):
        if select.head is not None and not 0 <= select.head < heads:
            raise StudfinderError(f"head {select.head} of {site}", expected=f"0 to {heads - 1}")
        if select.positions is not None and (not select.positions or min(select.positions) < 0):
            raise StudfinderError(
                f"positions {list(select.positions)} of {site}", expected="at least one; the first token is 0"
            )
    if isinstance(select, AboveLambda) and not select.lam > 0:
        raise StudfinderError(f"lambda {select.lam}", expected="a number above 0")
    if isinstance(select, TopDims | RandomDims | MatchedDims):
        most = dims if isinstance(select, TopDims) else dims // 2
        if not 1 <= select.k <= most:
            raise StudfinderError(f"k = {select.k} dims of {site}", expected=f"1 to {most}")
