"""What disruptions did: tables, sentences and a chart from scores by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from studfinder.measures import Effects
from studfinder.records import Cell, Chart, Comparison, Interval, Plot, Series, Table, point
from studfinder.stats import crossed
from studfinder.studies import GridScores

CONTEXT, MEMORY = "facts-in-context", "facts-parametric-matched"
SIDES = ("context", "memory")


@dataclass(frozen=True)
class DisruptionScores:
    """Scores of the model as it is and of each disruption, a family of draws.

    Attributes:
        scored: of all; the first two measures are CONTEXT and MEMORY, with their arguments.
        effects: of all but the model as it is, on neutral text.
        against: (disruption, the noise that was tuned to its damage).
    """

    scored: GridScores
    effects: Effects
    against: list[tuple[str, str]]

    @property
    def chance(self) -> dict[str, float]:
        """By measure."""
        return {name: found.chance or 0.0 for name, found in self.scored.scores[self.scored.original].items()}

    def neutral(self, name: str, what: str) -> Interval:
        """KL a token ("kl"), or the perplexity ratio ("nll"), on neutral text."""
        own = [place for place, variant in enumerate(self.scored.variants[1:]) if variant.family == name]
        sums = self.effects.kl[own] if what == "kl" else self.effects.nll[own] - self.effects.clean_nll
        tokens = np.stack([self.effects.tokens.astype(float)] * len(own))

        def statistic(mean: Mapping[str, np.ndarray]) -> np.ndarray:
            a_token = mean["sums"] / mean["tokens"]
            with np.errstate(over="ignore"):
                return a_token if what == "kl" else np.exp(a_token)

        return crossed(statistic, {"sums": sums, "tokens": tokens}, what="windows")

    # --- context against memory ---

    def change(self, name: str, side: str) -> Interval:
        """Change of chance-corrected accuracy, "context" or "memory", disrupted minus clean."""
        headroom = 1 - self._chance("context")
        return self._over(lambda mean: (mean[f"{side}1"] - mean[f"{side}0"]) / headroom, name)

    def kept(self, name: str, side: str) -> Interval | None:
        """The share of its skill above chance that is left; None if the clean model has none for sure."""
        if self.at_chance(side):
            return None
        chance = self._chance(side)
        return self._over(lambda mean: (mean[f"{side}1"] - chance) / np.maximum(mean[f"{side}0"] - chance, 1e-9), name)

    def contrast(self, name: str, *minus: str, what: str = "score") -> Comparison:
        """Change from context less change from memory (below 0: context suffered more); with `minus`, less the same of
        another disruption. Accuracies are corrected for chance; margins ("margin") are nats a token."""
        headroom = 1 - self._chance("context") if what == "score" else 1.0

        def difference(mean: Mapping[str, np.ndarray]) -> np.ndarray:
            start = mean["context0"] - mean["memory0"]
            own, *others = (mean[f"context{row}"] - mean[f"memory{row}"] - start for row in range(1, 2 + len(minus)))
            return (own - others[0] if others else own) / headroom

        return Comparison(kind="difference", interval=self._over(difference, name, *minus, what=what))

    def at_chance(self, side: str) -> str:
        """That the clean model has no skill for sure, in words; "" if it has."""
        measure = self._measure(side)
        clean = self.scored.mean(self.scored.original, measure)
        here = f"{measure} is at chance ({clean.value:.0%}) on the clean model"
        return "" if clean.low > self._chance(side) else f"{here}: context against memory can show nothing here."

    def _measure(self, side: str) -> str:
        return self.scored.measures[SIDES.index(side)]

    def _chance(self, side: str) -> float:
        return self.chance[self._measure(side)]

    def _over(
        self, statistic: Callable[[Mapping[str, np.ndarray]], np.ndarray], *names: str, what: str = "score"
    ) -> Interval:
        """A statistic of means of the clean model ("context0", "memory0") and of some rows ("context1", ...), whole
        subjects resampled. Items count to four digits."""
        scored, both = self.scored, {side: self._measure(side) for side in SIDES}
        rows = list(enumerate((scored.original, *names)))
        arrays = {f"{side}{n}": scored.drawn(row, both[side], what).round(4) for n, row in rows for side in SIDES}
        clusters = scored.scores[scored.original][both["context"]].clusters or None
        return crossed(statistic, arrays, clusters, what="subjects")


# --- tables ---------------------------------------------------------------------------------------------------------


def disruption_table(rows: DisruptionScores) -> Table:
    """All measures, clean and disrupted."""
    measures = rows.scored.measures
    lines: list[tuple[Cell, ...]] = []
    for name in (rows.scored.original, *rows.scored.families):
        damage = [rows.neutral(name, what) if lines else None for what in ("kl", "nll")]
        lines.append((name, *damage, *(rows.scored.mean(name, measure) for measure in measures)))
    chances = ", ".join(f"{measure} {chance:.3g}" for measure, chance in rows.chance.items())
    return Table(
        title="massive values and controls, disrupted in the prompt",
        columns=("disrupted", "KL, neutral text (nats)", "perplexity x", *measures),
        rows=tuple(lines),
        note=f"Accuracy; chance: {chances}. Intervals: items (subjects, windows) and draws resampled. The paper, "
        "Llama3-8B, clean / smallest dims / massive: passkey of 128 tokens 100 / 100 / 9 %, IMDB 95.4 / 95.4 / 11 %, "
        "cities (yes or no, floor 50 %) 99.4 / 99.4 / 88.2 %.",
    )


def comparisons_table(rows: DisruptionScores) -> Table:
    """Context against memory, and against equal damage elsewhere."""
    lines: list[tuple[Cell, ...]] = []
    for name in rows.scored.families:
        others = [other for row, other in rows.against if row == name]
        own = (*(rows.kept(name, side) for side in SIDES), rows.contrast(name), rows.contrast(name, what="margin"))
        for other in others:
            both = (rows.contrast(other), rows.contrast(name, other), rows.contrast(name, other, what="margin"))
            lines.append((name, *own, _place(other), *both))
        if not others and name.startswith("massive"):
            lines.append((name, *own, None, None, None, None))
    return Table(
        title="the same questions from context and from memory",
        columns=(
            "disrupted",
            "context kept",
            "memory kept",
            "context - memory",
            "in margins (nats)",
            "equal damage by",
            "its context - memory",
            "difference",
            "in margins (nats)",
        ),
        rows=tuple(lines),
        note="Kept: share of the accuracy above chance. Context - memory: difference of the two changes of "
        "chance-corrected accuracy; below 0, context suffered more. Difference: less the same under noise elsewhere "
        "that costs as much KL on neutral text; below 0, these dims serve context more than such damage explains. "
        "Where nothing is left of either, context - memory only says where they started. Intervals are of 95 % each, "
        "not corrected for the number of rows.",
    )


def _place(other: str) -> str:
    """The short name of noise that was tuned to another row's damage."""
    return other.split(", as harmful")[0]


# --- sentences and a chart ------------------------------------------------------------------------------------------

UNFAIR = (
    "Context against memory is no fair comparison here, and its sizes are not to be used: the memory prompt states a "
    "wrong answer of the relation that is among the choices, the context prompt the right one beside it, so that "
    "copying any stated answer of the relation is often right from context and never from memory."
)


def disruption_notes(rows: DisruptionScores) -> list[str]:
    """What the numbers say."""
    nothing = [rows.at_chance(side) for side in SIDES if rows.at_chance(side)]
    if nothing:
        return nothing
    notes = [] if rows.scored.measures[0].endswith(":1") else [UNFAIR]
    notes += [_only_context(rows, row) for row in rows.scored.families if row.startswith("massive")]
    return notes + [_specific(rows, row, other) for row, other in rows.against]


def _only_context(rows: DisruptionScores, row: str) -> str:
    changes = [rows.change(row, side) for side in SIDES]
    says = {
        (True, True): "both suffer",
        (True, False): "context is shown to suffer, memory is not",
        (False, True): "memory is shown to suffer, context is not",
        (False, False): "neither is shown to suffer",
    }[changes[0].high < 0, changes[1].high < 0]
    left = [rows.kept(row, side) for side in SIDES]
    if all(kept is not None and kept.low <= 0 for kept in left):
        says += "; nothing may be left of either, and then their difference only says where they started"
    return f"{row}: skill from context changes by {changes[0]:+.2f}, from memory by {changes[1]:+.2f}: {says}."


def _specific(rows: DisruptionScores, row: str, other: str) -> str:
    kl, own = rows.neutral(other, "kl"), rows.neutral(row, "kl")
    accuracy, margin = (
        f"{found:+.2f} {unit} ({_verdict(found.interval)})"
        for unit, found in (
            ("apart in accuracy", rows.contrast(row, other)),
            ("nats apart in margin", rows.contrast(row, other, what="margin")),
        )
    )
    return (
        f"{row}, against {_place(other)} of equal damage (KL {own.value:.2f} and {kl.value:.2f} on text that nothing "
        f"was tuned on): context less memory comes out {accuracy} and {margin}."
    )


def _verdict(difference: Interval) -> str:
    if difference.high < 0:
        return "lower than by equal damage elsewhere"
    return "higher than by equal damage elsewhere" if difference.low > 0 else "not distinguishable"


def contrast_chart(rows: DisruptionScores) -> Chart:
    """What becomes of the skill from context and from memory, a row a disruption."""
    series = tuple(
        Series(name=f"from {side}", points=tuple(point(rows.change(name, side)) for name in rows.scored.families))
        for side in SIDES
    )
    plot = Plot(
        kind="dots", rows=tuple(rows.scored.families), series=series, x="change of accuracy above chance", none=0.0
    )
    return Chart(name="disrupt", plots=(plot,))
