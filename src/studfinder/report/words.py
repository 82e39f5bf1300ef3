"""Findings in words: shared by the terminal and the page."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from studfinder.records import Findings, Interval, OtherNumber, SuperWeight
from studfinder.records.numbers import NumberKind


def count(n: int, one: str, many: str | None = None) -> str:
    """'1 prompt', '12 prompts'."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def listed(text: str) -> list[str]:
    """The parts of a setting that holds several."""
    return [part.strip() for part in str(text).split(",") if part.strip()]


def token(text: str) -> str:
    """A token in quotes, with its white space made visible."""
    return repr(text)


def shorten(text: str, width: int = 120) -> str:
    """Cut in the middle, if need be."""
    return text if len(text) <= width else text[: width // 2 - 1] + "..." + text[-(width // 2 - 2) :]


def dims_in_words(values: Iterable[int], k: int = 4) -> str:
    """The most frequent dims, e.g. '507, 247 and 3 more'."""
    ranked = [dim for dim, _ in Counter(values).most_common()]
    text = ", ".join(map(str, ranked[:k]))
    return text + (f" and {len(ranked) - k} more" if len(ranked) > k else "")


_STANDS = 1.5
"""Perplexity, times as large, from which a model is said to stand on a number."""
_NOUNS = {
    "gain": ("gain of a norm", "gains"),
    "bias": ("bias", "biases"),
    "embedding": ("entry of the embedding", "entries of the embedding"),
    "head": ("entry of the output head", "entries of the output head"),
}
"""Of a kind of number, one and many; all others are weights."""


def number_kind(number: SuperWeight | OtherNumber) -> NumberKind:
    """What its parameter is."""
    return number.kind if isinstance(number, OtherNumber) else "down projection"


def one_more(number: SuperWeight | OtherNumber) -> bool:
    """Whether it is a gain that multiplies by 1 + w: with w at zero its factor is 1."""
    return isinstance(number, OtherNumber) and (number.predicted_off is not None or number.effect_off is not None)


def verdict_sentence(findings: Findings) -> str:
    """What this scan says, in one sentence or two: the proven number with the largest effect, and the first super
    weight."""

    def effect(number: SuperWeight | OtherNumber) -> float:
        return number.effect.kl.value if number.effect else 0.0

    proven = sorted(findings.proven_numbers, key=effect, reverse=True)
    if not proven:
        return _nothing_proven(findings)
    led = list(dict.fromkeys([*findings.strongest[:1], proven[0]]))
    held = [number for number in led if number.effect and number.effect.perplexity_ratio.low >= _STANDS]
    if len(held) == len(led):
        said = f"One {_noun(led[0])} holds this model up: {_without(led[0])} its perplexity is {_as_large(led[0])}"
        if len(led) > 1:
            one = "another weight" if _noun(led[1]) == "weight" else _a(_noun(led[1]))
            said += f"; so does {one}: {_without(led[1])} it is {_as_large(led[1])}"
    else:  # a model may notice that a number is gone without standing on it
        said = ". ".join(
            f"One {_noun(number)} {'holds this model up' if number in held else 'matters more than its like'}: "
            f"{_without(number)} its perplexity is {_as_large(number)}"
            for number in sorted(led, key=effect, reverse=True)
        )
    named = {_nouns(number) for number in led}
    others = Counter(_nouns(number) for number in findings.proven_numbers if number not in led)
    more = [f"{n:,} {'more ' * (nouns in named)}{nouns[n > 1]}" for nouns, n in others.items()]
    return said + (f" ({' and '.join(more)} proven, with smaller effects)." if more else ".")


def _nouns(number: SuperWeight | OtherNumber) -> tuple[str, str]:
    return _NOUNS.get(number_kind(number), ("weight", "weights"))


def _noun(number: SuperWeight | OtherNumber) -> str:
    return _nouns(number)[0]


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _without(number: SuperWeight | OtherNumber) -> str:
    factor = f"with the factor of {number} brought from {1 + number.value:.3g} to 1"
    return factor if one_more(number) else f"without {number}"


def _as_large(number: SuperWeight | OtherNumber) -> str:
    assert number.effect is not None  # it is proven
    ratio = number.effect.perplexity_ratio
    return f"{ratio.value:.2f} times as large [{ratio.low:.2f}, {ratio.high:.2f}]"


def _nothing_proven(findings: Findings) -> str:
    """What stands out all the same."""
    found = []
    if findings.super_weights:
        tested = any(weight.effect for weight in findings.super_weights)
        kind = "tested super-weight candidate" if tested else "super-weight candidate"
        found.append(count(len(findings.super_weights), kind) + (" (none proven)" if tested else " (not proven yet)"))
    if findings.other_numbers:
        tested = any(number.effect for number in findings.other_numbers)
        found.append(
            count(len(findings.other_numbers), "other number")
            + (", of which none of those tested is proven" if tested else " by prediction (none tested)")
        )
    if findings.massive_activations:
        found.append(f"massive activations in dim {dims_in_words((a.dim for a in findings.massive_activations), 2)}")
    tensors = [s.tensor[0].upper() for s in findings.summary.massive_values if s.entries and s.tensor != "value"]
    if tensors:
        found.append(f"massive values of {' and '.join(tensors)}")
    for name, entries in other_lists(findings):
        if entries:
            found.append(f"{name} ({len(entries):,})")
    if not found:
        return "None of the three was found: no super weight, no massive activation, no massive value of Q or K."
    return "What stands out: " + "; ".join(found) + "."


def census_sentence(findings: Findings) -> str:
    """How many of all numbers carry something, and how many more may; empty without a census."""
    card = findings.census
    if card is None:
        return ""
    most = f"more than {card.threshold:g} nats per token"
    if card.heavy is None:
        # Predictions are counted by decade: the first one that lies above the threshold as a whole.
        decade = math.ceil(math.log10(card.threshold))
        counts: Counter[str] = Counter()
        for place in card.places:
            counts[place.kind] += sum(place.decades[max(0, decade - card.least_decade) + 1 :])
        said = _carry(counts.total(), f"more than {10.0**decade:g} nats per token")
        large = counts["embedding"]
        but = f" ({large:,} of them in the embedding, where predictions are too large)" if large else ""
        return f"Of {card.numbers:,} numbers {said} by prediction{but}; none was tested."
    if card.unseen is None:
        tested = sum(one.effect is not None for of in (findings.super_weights, findings.other_numbers) for one in of)
        return (
            f"Of {card.numbers:,} numbers {count(tested, 'was', 'were')} tested: {_carry(card.heavy, most)}. How many "
            "of the others do was not measured."
        )
    outside = " outside the embedding and the output matrix" if card.bounded < card.numbers else ""
    listed = f"; {'it is' if card.heavy == 1 else 'all are'} listed" if card.heavy else ""
    others = f"at most {card.unseen:,} {'other does' if card.unseen == 1 else 'others do'}"
    return (
        f"Of {card.bounded:,} numbers{outside} {_carry(card.heavy, most)}{listed}. With 95% confidence "
        f"{others if card.unseen else 'no other does'}."
    )


def _carry(n: int, what: str) -> str:
    return f"{n:,} {'carries' if n == 1 else 'carry'} {what}" if n else f"none carries {what}"


def other_lists(findings: Findings) -> list[tuple[str, tuple[dict[str, Any], ...]]]:
    """The lists of detectors that nothing here knows by name, as (name in words, entries)."""
    return [(name.replace("_", " "), entries) for name, entries in findings.others.items()]


def layers_and_experts(findings: Findings) -> list[tuple[str, str]]:
    """What else to know of a mixture, or of a model whose layers do not all attend: (subject, a sentence or two)."""
    summary, found = findings.summary, []
    held: dict[str, list[SuperWeight]] = {}
    for weight in findings.super_weights:
        if weight.expert is not None and weight.verdict != "inert":
            held.setdefault(f"layers.{weight.layer} expert {weight.expert}", []).append(weight)
    if held:
        names = ", ".join(f"{name} ({count(len(weights), 'weight')})" for name, weights in held.items())
        found.append(("super experts", f"{names}. Never prune these."))
    if summary.unseen_experts:
        names = ", ".join(summary.unseen_experts[:4]) + (", ..." if len(summary.unseen_experts) > 4 else "")
        found.append(
            (
                "unseen experts",
                f"{len(summary.unseen_experts):,} of {summary.experts:,} no prompt reached, so nothing is known "
                f"of them: {names}",
            )
        )
    if summary.without_attention:
        found.append(
            (
                "no attention",
                f"{len(summary.without_attention)} of {findings.model.layers} layers mix tokens without softmax, "
                "not at all, or in a way that is unknown: no Q, K or sink is read there.",
            )
        )
    return found


def brief(number: SuperWeight | OtherNumber) -> str:
    """'L11 [507, 1229]', 'L29 post_attention_layernorm[17]', for the rows of a figure."""
    if isinstance(number, OtherNumber):
        return re.sub(r"^layers\.(\d+) ", r"L\1 ", number.name)
    expert = "" if number.expert is None else f"e{number.expert} "
    return f"L{number.layer} {expert}[{number.row}, {number.col}]"


def number(value: float | None, digits: int = 3) -> str:
    """A number to read: 21,624, 0.0123, 5.88."""
    if value is None:
        return "–"
    if value != value or abs(value) == float("inf"):
        return str(value)
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def times(interval: Interval) -> str:
    """'5.08 times [4.47, 5.78]'"""
    return f"{number(interval.value)} times [{number(interval.low)}, {number(interval.high)}]"


def percent(value: float | None) -> str:
    """73%"""
    return "–" if value is None else f"{value:.0%}"


def bidirectional_sentence(findings: Findings) -> str:
    """That a later token moves an earlier output in this model, and what follows."""
    return (
        f"{findings.summary.bidirectional}: a later token moves an earlier output, so nothing can be proven by "
        "likelihood, and what stands out at a token depends on the text after it too"
    )
