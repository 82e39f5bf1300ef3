"""What the quantisers' experiments say of recipes that were carried out: tables, and sentences made from intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from studfinder.experiments.quantize_frontier import FEWEST
from studfinder.experiments.quantize_recipes import CAVEAT, KL, Made
from studfinder.measures import compare
from studfinder.records import Comparison, Interval, Table


def change(made: Made, against: Made, measure: str, level: float = 0.95) -> Comparison | None:
    """What a measure changed by, paired; None where one of the two lacks it."""
    if measure not in made.scores or measure not in against.scores:
        return None
    return compare(against.scores[measure], made.scores[measure], level)


def score(made: Made, measure: str) -> Interval | str | None:
    """A measure's interval, or the reason why there is none."""
    if made.refused:
        return "does not fit"
    found = made.scores.get(measure)
    return None if found is None else found.interval


def refusals(name: str, made: Sequence[Made]) -> list[str]:
    """A note for every recipe that did not fit the model."""
    return [f"{name}: {one.recipe.label} was left out. {one.refused}" for one in made if one.refused]


def tally(pairs: Sequence[tuple[Made, Made]], measure: str) -> str | None:
    """In how many pairs of recipes (changed, plain) a measure fell or rose, the intervals corrected for their number
    (Bonferroni), in words; None if there is no pair."""
    level = 1 - 0.05 / max(1, len(pairs))
    found = [comparison for pair in pairs if (comparison := change(*pair, measure, level)) is not None]
    if not found:
        return None
    ratio = found[0].kind == "ratio"
    none, what = (1.0, "factor") if ratio else (0.0, "difference")
    lower, higher = (sum(c.interval.high < none for c in found), sum(c.interval.low > none for c in found))
    middle = float(np.median([c.interval.value for c in found]))
    few = "" if found[0].interval.n >= FEWEST else f" ({found[0].interval.n} items are too few for an interval)"
    return (
        f"lowers {spoken(measure)} in {lower} of {len(found)} and raises it in {higher} (intervals that exclude "
        f"{none:g}, corrected for their number; median {what} {middle:.4g}){few}"
    )


def spoken(measure: str) -> str:
    """A measure as a sentence calls it."""
    kind, _, argument = measure.partition(":")
    return "KL from the original" if measure == KL else f"{kind} on {argument}" if argument else kind


def head(measure: str) -> str:
    """A measure as a column calls it."""
    return "KL, nats per token" if measure == KL else measure.replace(":", " ")


def scores_table(name: str, made: Sequence[Made], measures: Sequence[str], note: str, bits: str) -> Table:
    """Every recipe's scores, the original first.

    Args:
        bits: the heading of the column of bits.
    """
    measures = [measure for measure in measures if measure in made[0].scores]
    rows = [(one.recipe.label, one.bits, *(score(one, measure) for measure in measures)) for one in made]
    taken = "; ".join(dict.fromkeys(made[0].scores[measure].text for measure in measures))
    return Table(
        title=f"{name}: scores",
        columns=("recipe", bits, *(head(measure) for measure in measures)),
        rows=tuple(rows),
        note=f"{note} Taken on: {taken}. {CAVEAT}".strip(),
    )


def changes_table(title: str, pairs: Sequence[tuple[str, Made, Made]], measures: Sequence[str], note: str) -> Table:
    """What every (label, changed, plain) differs by, paired: perplexity as a factor, the rest as a difference."""
    measures = [m for m in measures if any(m in a.scores and m in b.scores for _, a, b in pairs)]
    rows = [(label, *(change(a, b, measure) for measure in measures)) for label, a, b in pairs]
    return Table(title=title, columns=("pair", *(head(measure) for measure in measures)), rows=tuple(rows), note=note)


def kept_pairs(made: Sequence[Made]) -> list[tuple[Made, Made]]:
    """Every recipe that keeps something, beside the one of its family that keeps nothing."""
    plain = {one.recipe.family: one for one in made[1:] if not one.recipe.kept and not one.refused}
    return [
        (one, plain[one.recipe.family])
        for one in made[1:]
        if one.recipe.kept and not one.refused and one.recipe.family in plain
    ]


def keeping_notes(
    name: str, pairs: Sequence[tuple[Made, Made]], measures: Sequence[str], over: str, verb: str = "keeping"
) -> list[str]:
    """What keeping each kind of numbers (or whatever else `verb` says) does to each measure, over families."""
    notes = []
    for kept in dict.fromkeys(one.recipe.kept for one, _ in pairs):
        for measure in measures:
            says = tally([pair for pair in pairs if pair[0].recipe.kept == kept], measure)
            notes += [f"{name}: {verb} {kept} {says}, over {over}."] if says else []
    return notes
