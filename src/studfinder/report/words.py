"""Findings in words: shared by the terminal and the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from studfinder.records import Findings, Interval, SuperWeight


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
"""Perplexity, times as large, from which a model is said to stand on a weight."""


def verdict_sentence(findings: Findings) -> str:
    """What this scan says, in one sentence."""
    proven = findings.strongest
    if proven and proven[0].effect is not None:
        ratio = proven[0].effect.perplexity_ratio
        more = proven[1:]
        rest = f" ({count(len(more), 'more weight')} proven, with smaller effects)" if more else ""
        # A model may notice that a weight is gone without standing on it.
        says = "One weight holds this model up" if ratio.low >= _STANDS else "One weight matters more than its like"
        return (
            f"{says}: without {proven[0]} its perplexity is {ratio.value:.2f} times as large "
            f"[{ratio.low:.2f}, {ratio.high:.2f}]{rest}."
        )
    found = []
    if findings.super_weights:
        tested = any(weight.effect for weight in findings.super_weights)
        kind = "tested super-weight candidate" if tested else "super-weight candidate"
        found.append(count(len(findings.super_weights), kind) + (" (none proven)" if tested else " (not proven yet)"))
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


def brief(weight: SuperWeight) -> str:
    """'L11 [507, 1229]', for the rows of a figure."""
    expert = "" if weight.expert is None else f"e{weight.expert} "
    return f"L{weight.layer} {expert}[{weight.row}, {weight.col}]"


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
