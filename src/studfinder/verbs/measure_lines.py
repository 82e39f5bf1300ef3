"""The lines of a scorecard."""

from __future__ import annotations

from studfinder.errors import NotApplicable
from studfinder.measures import MEASURES, Scores, compare
from studfinder.measures.registry import Kind
from studfinder.records import Measured
from studfinder.studies import GridScores


def measured_line(scored: GridScores, name: str) -> Measured:
    """A measure's score, the baseline on the same items, and the paired change."""
    kind = _kind(name)
    if name in scored.missing:
        return Measured(measure=name, kind=kind, what="not measured", score=None, why_not=scored.missing[name])
    first, *rest = (scored.scores[label][name] for label in scored.labels)
    score, change, why_not = (*rest, first)[0], None, ""
    if rest:
        try:
            change = compare(first, score)
        except NotApplicable:
            why_not = "the two models were asked different tokens, so items cannot be paired"
    return Measured(
        measure=name,
        kind=kind,
        what=f"{score.measure}, {score.text}",
        score=score.interval,
        baseline=first.interval if rest else None,
        change=change,
        why_not=why_not,
        chance=score.chance,
        better=score.better,
        headroom=_headroom(first),
        details=dict(score.details),
        seconds=sum(seconds[name] for seconds in scored.seconds.values()),
    )


def _kind(name: str) -> Kind:
    plain, _, argument = name.partition(":")
    if plain == "tasks":
        from studfinder.measures.tasks import TASKS

        return TASKS[argument.partition(":")[0].partition("@")[0]].kind
    return MEASURES[plain].kind


def _headroom(scores: Scores) -> bool | None:
    """Whether a model is above chance; a measure that says so itself (a task with a majority class) is believed."""
    if "headroom" in scores.details:
        return bool(scores.details["headroom"])
    return None if scores.chance is None else scores.interval.low > scores.chance
