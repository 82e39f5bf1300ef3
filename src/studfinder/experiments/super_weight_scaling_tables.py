"""What super-weight/scaling says: gains that are judged on windows and items that did not choose the factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from studfinder.edits import Editable
from studfinder.records import Cell, Chart, Claim, ClaimResult, Comparison, Interval, Plot, Series, Table, point
from studfinder.report.words import count
from studfinder.stats import averaged, mean_interval
from studfinder.studies import GridScores, cost_of, judged

ACCURACY = Claim(
    key="super-weight/scale-accuracy",
    says="A larger super weight makes a model more accurate.",
    decides="accuracy gained on average at the best factor for the first super weight alone, chosen on other items, "
    "less what scaling its control gains",
    published="gains of 0.04 to 0.39 points on average, chosen and judged on the same items, without intervals",
    paper_effect=0.0039,
)
PERPLEXITY = Claim(
    key="super-weight/scale-perplexity",
    says="A larger super weight lowers perplexity.",
    decides="nats per token gained at the best factor for the first super weight alone, chosen on other windows, less "
    "what scaling its control gains",
    published="said of accuracy only",
)


@dataclass
class Scaled:
    """Weights that are scaled together, and what that does to perplexity.

    Attributes:
        label: what tables call them; that of a control begins with a space.
        ratios: perplexity over that at factor 1, by factor.
        gains: nats per token gained in each window, by factor.
    """

    label: str
    target: Editable
    ratios: list[Comparison] = field(default_factory=list)
    gains: list[np.ndarray] = field(default_factory=list)


def held_out_gain(gains: Sequence[Sequence[np.ndarray]]) -> tuple[list[int], list[np.ndarray]]:
    """Each item's gain under the factor that the other half of the items chose.

    Args:
        gains: by factor and task, an array of each item's score minus its score at factor 1. Factor 1 itself is not
            among them, so that something is always judged: where no factor gains, the one that loses least is chosen.

    Returns:
        which factor each half chose, and by task the gains of all items.
    """
    chosen = [
        int(np.argmax([np.mean([array[half::2].mean() for array in by_task]) for by_task in gains])) for half in (0, 1)
    ]
    found = [np.array(array, dtype=float) for array in gains[chosen[1]]]  # the second half judges the first
    for task, array in enumerate(gains[chosen[0]]):
        found[task][1::2] = array[1::2]
    return chosen, found


def _held(kind: Scaled) -> tuple[list[int], np.ndarray]:
    """The factors that the halves of the windows chose, and what each window gains at that of the other half."""
    chosen, judged_windows = held_out_gain([[gain] for gain in kind.gains])
    return chosen, judged_windows[0]


def _named(chosen: Sequence[int], factors: Sequence[float]) -> str:
    return " and ".join(dict.fromkeys(f"{factors[at]:g}" for at in chosen))


def perplexities(kinds: Sequence[Scaled], factors: Sequence[float], source: str) -> Table:
    """Perplexity of everything that is scaled, at every factor."""
    return Table(
        title="perplexity by factor",
        columns=("scaled", *(f"x {factor:g}" for factor in factors)),
        rows=tuple((kind.label, *kind.ratios) for kind in kinds),
        note=f"Perplexity over that at factor 1, on {source}. A control is scaled alike.",
    )


def perplexity_gains(kinds: Sequence[Scaled], factors: Sequence[float]) -> Table:
    """What each gains at the factor that other windows chose, beside its control."""
    rows: list[tuple[Cell, ...]] = []
    for kind, control in zip(kinds[::2], kinds[1::2], strict=True):
        (chosen, own), (_, other) = _held(kind), _held(control)
        gains = (mean_interval(each, what="windows") for each in (own, other, own - other))
        rows.append((kind.label, _named(chosen, factors), *map(_difference, gains)))
    return Table(
        title="what scaling gains, nats per token",
        columns=("scaled", "factor", "gain", "its control's", "beyond the control"),
        rows=tuple(rows),
        note="Each window at the factor other than 1 that the other half of the windows chose; positive is better.",
    )


Gains = Mapping[str, Sequence[Sequence[np.ndarray]]]
"""By what is scaled, by factor and task: one difference an item."""


def accuracies(scored: GridScores, accuracy: Gains, amplified: Sequence[float]) -> Table:
    """What each factor does to the average over tasks."""
    first, control = accuracy.values()
    names = ", ".join(task.partition(":")[2] for task in scored.tasks)
    return Table(
        title="average accuracy by factor, against factor 1",
        columns=("factor", *(label.strip() for label in accuracy)),
        rows=tuple(
            (f"{factor:g}", _difference(averaged(a)), _difference(averaged(b)))
            for factor, a, b in zip(amplified, first, control, strict=True)
        ),
        note=f"Paired within items; the mean of {names}.",
    )


def accuracy_gains(
    accuracy: Gains, held: Mapping[str, tuple[list[int], list[np.ndarray]]], amplified: Sequence[float]
) -> Table:
    """What the best factor gains, chosen on other items and on the same."""
    rows: list[tuple[Cell, ...]] = []
    for label, gains in accuracy.items():
        averages, (chosen, judged_items) = [averaged(by_task) for by_task in gains], held[label]
        best = int(np.argmax([gain.value for gain in averages]))
        rows.append(
            (
                label,
                _named(chosen, amplified),
                _difference(averaged(judged_items)),
                f"{amplified[best]:g}",
                _difference(averages[best]),
            )
        )
    return Table(
        title="gain of the best factor in average accuracy",
        columns=("scaled", "factor", "chosen on other items", "best factor", "chosen and judged on the same items"),
        rows=tuple(rows),
        note="The paper (same items, no intervals): Llama-7B 70.12 to 70.51, 13B 72.39 to 72.49, 30B 75.27 to "
        "75.33, Mistral-7B 74.05 to 74.09.",
    )


def _difference(interval: Interval) -> Comparison:
    return Comparison(kind="difference", interval=interval)


def judged_accuracy(scored: GridScores, judged_items: Sequence[Sequence[np.ndarray]], limit: int) -> ClaimResult:
    """The first weight's gain in accuracy less its control's."""
    own, control = judged_items
    number = averaged([a - b for a, b in zip(own, control, strict=True)])
    seconds = sum(sum(of.values()) for of in scored.seconds.values())
    cost = cost_of(ACCURACY, number, "--limit ", limit, seconds)
    same = not any(array.any() for array in (*own, *control))
    return judged(
        ACCURACY,
        None if same else number,
        effect=_difference(averaged(own)),
        control=_difference(averaged(control)),
        items=f"{number.n} items of {count(len(own), 'task')}",
        why=f"none of {number.n} items came out otherwise" if same else "",
        cost=cost or f"`--limit {10 * limit}`",
    )


def judged_perplexity(kinds: Sequence[Scaled], windows: int) -> ClaimResult:
    """The first weight's gain in perplexity less its control's."""
    own, control = (_held(kind)[1] for kind in kinds[:2])
    number = mean_interval(own - control, what="windows")
    return judged(
        PERPLEXITY,
        number,
        effect=_difference(mean_interval(own, what="windows")),
        control=_difference(mean_interval(control, what="windows")),
        items=f"{number.n} windows",
        cost=f"`--set windows={8 * windows}`",
    )


def scaling_notes(kinds: Sequence[Scaled], factors: Sequence[float]) -> list[str]:
    """At which factors perplexity moves."""

    def where(kind: Scaled, higher: bool) -> str:
        found = zip(factors, kind.ratios, strict=True)
        return ", ".join(f"{f:g}" for f, r in found if r.changed and (r.interval.low > 1) == higher) or "no factor"

    notes = [
        f"{kind.label}: perplexity is lower than at factor 1 at {where(kind, False)}, higher at {where(kind, True)} "
        f"(its control: lower at {where(control, False)}, higher at {where(control, True)})."
        for kind, control in zip(kinds[::2], kinds[1::2], strict=True)
    ]
    return [*notes, "each factor has an interval of its own at 95 %; of many, one may miss by chance."]


def scaling_chart(
    kinds: Sequence[Scaled], factors: Sequence[float], accuracy: Gains, amplified: Sequence[float]
) -> Chart:
    """Perplexity and accuracy against the factor."""

    def line(name: str, at: Sequence[float], found: Sequence[Comparison | Interval], none: float) -> Series:
        x, points = zip(*sorted([*zip(at, map(point, found), strict=True), (1.0, (none,) * 3)]), strict=True)
        quiet = name.startswith(" ")
        return Series(name=name.strip(), x=x, points=points, quiet=quiet, dotted=quiet)

    x = "the weights times ..."
    ratios = tuple(line(kind.label, factors, kind.ratios, 1.0) for kind in kinds)
    lines = tuple(line(label, amplified, [averaged(one) for one in gains], 0.0) for label, gains in accuracy.items())
    return Chart(
        name="scaling",
        plots=(
            Plot(kind="lines", series=ratios, x=x, y="perplexity / factor 1", none=1.0, log=True),
            Plot(kind="lines", series=lines, x=x, y="accuracy minus factor 1", none=0.0, percent=True),
        ),
    )
