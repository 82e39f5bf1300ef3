"""What the paper claims of where massive activations are, and what windows say of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from studfinder.records import Claim, ClaimResult, Interval
from studfinder.report.words import count
from studfinder.stats import ratio_interval, share_interval
from studfinder.studies import judged
from studfinder.texts import default_prompts

SeenWindows = Sequence[dict[str, Any]]
"""By window what was read of it, our prompts first: "massive" entries as [layer, dim, position, value], and "kinds" and
texts of its "tokens"."""
PROMPTS = len(default_prompts())
_EXIST = Claim(
    key="massive-activations/exist",
    says="Activations above 100 and above 1,000 times the median stand in the residual stream of most texts.",
    decides="share of windows that hold one, minus that in the model with shuffled input channels, minus one half",
    published="LLaMA2-7B 2622 at a median of 0.2, LLaMA2-13B 1264 at 0.4, and so in all models that it shows",
)
_DIMS = Claim(
    key="massive-activations/fixed-dims",
    says="They sit in a few fixed dims, whatever the text.",
    decides="share of the corpus windows all of whose massive entries lie in the dims that our prompts name, minus the "
    "share of all dims that those are, minus one half",
    published="LLaMA2-7B: dims 1415 and 2533 in all texts",
    paper_effect=0.5,
)
_FEW = Claim(
    key="massive-activations/few-tokens",
    says="They stand at very few tokens, unlike outlier features, which are dims that are large at most tokens.",
    decides="share of tokens that hold one, minus one in ten",
    kind="less",
    published="a few entries of the tens of thousands in a layer; LLaMA2-7B: two tokens of a text",
)
_FIRST = Claim(
    key="massive-activations/first-token",
    says="They sit at the first token.",
    decides="share of first tokens that hold one in a dim that is not massive at most tokens, minus that of tokens "
    "which are neither first nor delimiters nor weak words",
    published="at the first token in every language model shown, in some of them nowhere else",
    paper_effect=1.0,
)
_WEAK = Claim(
    key="massive-activations/delimiters",
    says="In some models they sit at delimiters and weak words, too.",
    decides="share of windows that hold one at a delimiter or weak word, in a dim that is not massive at most tokens, "
    "minus share that hold one at any other token but the first",
    published="LLaMA2-7B: the first full stop or new line; LLaMA2-70B and Mixtral: also and, from, of, 2; LLaMA2-13B "
    "and MPT-7B: the first token alone",
    paper_effect=1.0,
)
WHERE_CLAIMS = (_EXIST, _DIMS, _FEW, _FIRST, _WEAK)
TOKEN_KINDS = ("first", "delimiter", "low-semantic", "other")


def dims_of(windows: SeenWindows) -> Counter[int]:
    """In how many windows each dim is massive."""
    return Counter(dim for window in windows for dim in {entry[1] for entry in window["massive"]})


def spike_dims(windows: SeenWindows) -> list[int]:
    """The dims that are massive at some tokens, but not at most."""
    tokens = sum(len(window["kinds"]) for window in windows)
    return [dim for dim in dims_of(windows) if 2 * tokens_holding(windows, TOKEN_KINDS, [dim])[0].sum() < tokens]


def tokens_holding(
    windows: SeenWindows, kinds: Sequence[str], dims: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """By window, how many tokens of these kinds hold a massive activation (in one of these dims), and how many there
    are."""
    held, there = [], []
    for window in windows:
        places = {entry[2] for entry in window["massive"] if dims is None or entry[1] in dims}
        held.append(sum(window["kinds"][place] in kinds for place in places))
        there.append(sum(kind in kinds for kind in window["kinds"]))
    return np.array(held, dtype=float), np.array(there, dtype=float)


def share_of(held: np.ndarray, there: np.ndarray) -> Interval | None:
    """Of all tokens: the wider of the exact interval over tokens and the bootstrap over windows."""
    some = there > 0
    if not some.any():
        return None
    exact = share_interval(int(held.sum()), int(there.sum()), what="tokens")
    drawn = ratio_interval(held[some], there[some], what="windows")
    low, high = min(exact.low, drawn.low), max(exact.high, drawn.high)
    return replace(drawn, low=low, high=high, method="wider of exact over tokens and bootstrap over windows")


def _apart(one: Interval | None, other: Interval | None) -> Interval | None:
    """The difference of two shares, from the ends of both intervals: rather wider than need be."""
    if one is None or other is None:
        return None
    ends = (one.low - other.high, one.high - other.low)
    return replace(one, value=one.value - other.value, low=ends[0], high=ends[1], method="from the ends of both shares")


def where_claims(seen: Mapping[str, SeenWindows], control: Mapping[str, int], hidden: int) -> list[ClaimResult]:
    """Judged with the tokenizer's own habit, which comes first in `seen`; the other one is said beside it.

    Args:
        control: how many "windows" the model with shuffled weights read, and in how many anything was massive.
        hidden: dims of the residual stream.
    """
    every = [_numbers(windows, control, hidden) for windows in seen.values()]
    results = []
    for claim in WHERE_CLAIMS:
        number, effect, against = every[0][claim.key]
        why = f"Judged {next(iter(seen))}." if number else "no window holds a massive activation that is a spike"
        if number and len(every) > 1 and (other := every[1][claim.key][0]) is not None:
            why += f" The same {list(seen)[1]}: {other:.3g}."
        items = count(number.n, "window") if number else ""
        cost = "--limit 200 and --set shuffled=64, in four times the time"
        results.append(judged(claim, number, effect=effect, control=against, items=items, why=why, cost=cost))
    return results


def _numbers(
    windows: SeenWindows, control: Mapping[str, int], hidden: int
) -> dict[str, tuple[Interval | None, Interval | None, Interval | float | None]]:
    """For each claim the number that decides, and what it contrasts."""
    named = set(dims_of(windows[:PROMPTS]))
    holding = [window for window in windows[PROMPTS:] if window["massive"]]
    kept = sum({entry[1] for entry in window["massive"]} <= named for window in holding)
    chance, fixed = len(named) / hidden, _exact(kept, len(holding))
    n, having = len(windows), sum(bool(window["massive"]) for window in windows)
    few = spike_dims(windows)
    weak, other = (
        int((tokens_holding(windows, kinds, few)[0] > 0).sum()) for kinds in (["delimiter", "low-semantic"], ["other"])
    )
    pairs = {
        _EXIST: (_exact(having, n), _exact(control["having"], control["windows"])),
        _FIRST: (
            share_of(*tokens_holding(windows, ["first"], few)),
            share_of(*tokens_holding(windows, ["other"], few)),
        ),
        _WEAK: (_exact(weak, n), _exact(other, n)),
    }
    if not few:  # nothing that could sit at some kind of token
        pairs |= {_FIRST: (None, None), _WEAK: (None, None)}
    every = share_of(*tokens_holding(windows, TOKEN_KINDS)) if having else None
    found = {claim.key: (_apart(*both), *both) for claim, both in pairs.items()}
    return {
        **found,
        _EXIST.key: (_less(found[_EXIST.key][0], 0.5), *found[_EXIST.key][1:]),
        _DIMS.key: (_less(fixed, chance + 0.5), fixed, chance),
        _FEW.key: (_less(every, 0.1), every, 0.1),
    }


def _exact(hits: int, of: int) -> Interval | None:
    return share_interval(hits, of, what="windows") if of else None


def _less(share: Interval | None, by: float) -> Interval | None:
    return share and replace(share, value=share.value - by, low=share.low - by, high=share.high - by)
