"""What disruptions did: tables, sentences and a chart from scores by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from studfinder.measures import Effects
from studfinder.records import Cell, Chart, Comparison, Interval, Plot, Series, Table, point
from studfinder.stats import crossed
from studfinder.studies import FEWEST, GridScores, head

Means = Mapping[str, np.ndarray]
UNLIKE, SAME = ("context", "memory"), ("asked", "known")
"""The two sides of both comparisons: tasks of each kind; the same questions, asked of an invented and a known name."""


@dataclass(frozen=True)
class DisruptionScores:
    """Scores of the model as it is and of each disruption, a family of draws.

    Attributes:
        scored: of all.
        keys: of some, the one measure being the passkey; None where it cannot be asked.
        effects: of all but the model as it is, on neutral text.
        against: by disruption, the noise that was tuned to its damage.
        sides: measures by side of UNLIKE and SAME.
    """

    scored: GridScores
    keys: GridScores | None
    effects: Effects
    against: Mapping[str, str]
    sides: Mapping[str, list[str]]

    def neutral(self, name: str, what: str) -> Interval:
        """KL a token ("kl"), or the perplexity ratio ("nll"), on neutral text."""
        own = [place for place, variant in enumerate(self.scored.variants[1:]) if variant.family == name]
        sums = self.effects.kl[own] if what == "kl" else self.effects.nll[own] - self.effects.clean_nll
        tokens = np.stack([self.effects.tokens.astype(float)] * len(own))

        def statistic(mean: Means) -> np.ndarray:
            a_token = mean["sums"] / mean["tokens"]
            with np.errstate(over="ignore"):
                return a_token if what == "kl" else np.exp(a_token)

        return crossed(statistic, {"sums": sums, "tokens": tokens}, what="windows")

    def chance(self, measure: str) -> float:
        """What guessing scores."""
        return self.scored.scores[self.scored.original][measure].chance or 0.0

    @cached_property
    def can_show(self) -> dict[str, list[str]]:
        """By side those of its measures in which the model as it is has skill for sure (of one square one never is)."""
        clean = {name: self.scored.mean(self.scored.original, name) for names in self.sides.values() for name in names}
        skilled = [name for name, found in clean.items() if found.low > self.chance(name) and found.n >= FEWEST]
        return {side: [name for name in names if name in skilled] for side, names in self.sides.items()}

    def kept(self, name: str, side: str) -> Interval | None:
        """The share of its skill above chance, averaged over measures, that is left; None if it has none for sure."""
        if not self.can_show[side]:
            return None
        return self._over(lambda mean: self._share(mean, side, name), (side,), (name,))

    def beyond(self, name: str, sides: tuple[str, str], other: str = "") -> Comparison | None:
        """The share lost of the first side's skill less that of the second's: above 0, the first suffered more. With
        another disruption, less the same of that. None if a side has no skill."""
        if not all(self.can_show[side] for side in sides):
            return None

        names = (name, other) if other else (name,)

        def difference(mean: Means) -> np.ndarray:
            lost = [self._share(mean, sides[1], row) - self._share(mean, sides[0], row) for row in names]
            return lost[0] - lost[1] if other else lost[0]

        return Comparison(kind="difference", interval=self._over(difference, sides, names))

    def more_kept(self, name: str, side: str, than: float) -> Interval | None:
        """The share that is kept, less a number."""
        if not self.can_show[side]:
            return None
        return self._over(lambda mean: self._share(mean, side, name) - than, (side,), (name,))

    def _share(self, mean: Means, side: str, name: str) -> np.ndarray:
        skill, clean = (
            np.mean(
                [
                    (mean[f"{measure}|{row}"] - self.chance(measure)) / (1 - self.chance(measure))
                    for measure in self.can_show[side]
                ],
                axis=0,
            )
            for row in (name, self.scored.original)
        )
        return skill / np.maximum(clean, 1e-9)

    def _over(
        self, statistic: Callable[[Means], np.ndarray], sides: tuple[str, ...], names: tuple[str, ...]
    ) -> Interval:
        """A statistic of means by "measure|row"; the squares of every set of questions are resampled by themselves."""
        scored, clean = self.scored, self.scored.original
        measures = [name for side in sides for name in self.can_show[side]]
        arrays = {f"{measure}|{row}": scored.drawn(row, measure) for measure in measures for row in (clean, *names)}
        clusters = {name: scored.scores[clean][name.partition("|")[0]].clusters for name in arrays}
        return crossed(statistic, arrays, clusters, what="squares of questions")


# --- tables ---------------------------------------------------------------------------------------------------------


PAPER_READS = (
    "Passkeys: the share found whole, asked of the first count and its noise. The paper, Llama3-8B, clean / smallest "
    "dims / massive: passkey of 128 tokens 100 / 100 / 9 %, of 256 and 1,024 tokens 100 / 100 / 0 %, GSM8K 76.9 / "
    "77.4 / 4.0 %, AQuA 53.5 / 53.9 / 9.7 %."
)
PAPER_KNOWS = (
    "The paper, Llama3-8B, yes or no (floor 50 %), clean / smallest dims / massive: cities 99.4 / 99.4 / 88.2 %, "
    "sports 95 / 94.5 / 74.5 %, art 93.5 / 93 / 64 %, technology 92.5 / 92.5 / 74.9 %, celebrities 95 / 95.5 / 73 %."
)


def scores_tables(rows: DisruptionScores) -> list[Table]:
    """All measures, clean and disrupted: what is read, and what is known."""
    keys = rows.keys
    read = [*rows.sides["asked"], *rows.sides["known"], *rows.sides["context"]]

    def found(name: str) -> Interval | None:
        asked = keys is not None and name in (*keys.labels, *keys.families)
        return keys.mean(name, keys.measures[0], what="passkeys") if keys is not None and asked else None

    tables = [_scores(rows, "what is read in the prompt", read, PAPER_READS, {"passkey": found} if keys else {})]
    if rows.sides["memory"]:
        tables.append(_scores(rows, "what is known", rows.sides["memory"], PAPER_KNOWS, {}))
    return tables


def _scores(
    rows: DisruptionScores,
    title: str,
    measures: Sequence[str],
    paper: str,
    more: Mapping[str, Callable[[str], Interval | None]],
) -> Table:
    lines: list[tuple[Cell, ...]] = []
    for name in (rows.scored.original, *rows.scored.families):
        damage = [rows.neutral(name, what) if lines else None for what in ("kl", "nll")]
        scores = [rows.scored.mean(name, measure, what="squares") for measure in measures]
        lines.append((name, *damage, *scores, *(of(name) for of in more.values())))
    chances = ", ".join(f"{head(measure)} {rows.chance(measure):.3g}" for measure in measures)
    return Table(
        title=title,
        columns=("disrupted", "KL, neutral text (nats)", "perplexity x", *map(head, measures), *more),
        rows=tuple(lines),
        note=f"Accuracy; chance: {chances}. Intervals: squares of questions (windows) and draws resampled. {paper}",
    )


def comparisons_table(rows: DisruptionScores) -> Table:
    """Context against memory, and against equal damage elsewhere."""
    lines: list[tuple[Cell, ...]] = []
    for what, sides in (("tasks", UNLIKE), ("same questions", SAME)):
        for name in rows.scored.families:
            other = rows.against.get(name, "")
            equal = (rows.beyond(other, sides), rows.beyond(name, sides, other)) if other else (None, None)
            own = (*(rows.kept(name, side) for side in sides), rows.beyond(name, sides))
            lines.append((what, name, *own, *equal))
    return Table(
        title="context against memory",
        columns=("of", "disrupted", "context kept", "memory kept", "context lost more by", "noise", "beyond noise"),
        rows=tuple(lines),
        note="Kept: share of the skill above chance, (accuracy - chance) / (1 - chance), averaged over the measures in "
        "which the model has any; passkeys are not among them. Context lost more by: share lost of what is read less "
        "that of what is known. Noise: the same under noise in the other dims that costs as much KL on neutral text. "
        "Beyond noise: the difference. Same questions: one prompt that states every answer once, asked of an invented "
        "name (context) or of a real one (memory). Intervals are of 95 % each, not corrected for the number of rows.",
    )


# --- sentences and a chart ------------------------------------------------------------------------------------------


def disruption_notes(rows: DisruptionScores) -> list[str]:
    """What the numbers say."""
    notes = []
    for side in (*UNLIKE, *SAME):
        floor = [head(name) for name in rows.sides[side] if name not in rows.can_show[side]]
        if floor:
            notes.append(f"at chance on the model as it is, and not averaged: {', '.join(floor)}.")
    for what, sides in (("tasks", UNLIKE), ("the same questions", SAME)):
        for name, other in rows.against.items():
            left = [rows.kept(name, side) for side in sides]
            alone, beyond = rows.beyond(name, sides), rows.beyond(name, sides, other)
            if alone is None or beyond is None:
                continue
            notes.append(
                f"{name}, {what}: {left[0]:.2f} of the skill is kept from context and {left[1]:.2f} from memory: "
                f"{_verdict(alone.interval)} by {alone:+.2f}; beyond noise of equal damage "
                f"(KL {rows.neutral(name, 'kl').value:.2f} and {rows.neutral(other, 'kl').value:.2f} on text that "
                f"nothing was tuned on) {_verdict(beyond.interval)}: {beyond:+.2f}."
            )
    return notes


def _verdict(difference: Interval) -> str:
    if difference.low > 0:
        return "context lost more"
    return "memory lost more" if difference.high < 0 else "neither is shown to lose more"


def kept_chart(rows: DisruptionScores) -> Chart:
    """The share that is left of the skill from context and from memory, a row a disruption."""
    names = tuple(rows.scored.families)
    plots = tuple(
        Plot(
            kind="dots",
            rows=names,
            series=tuple(
                Series(name=f"from {called}", points=tuple(point(rows.kept(name, side)) for name in names))
                for called, side in zip(UNLIKE, sides, strict=True)
            ),
            x=f"share of skill kept, {what}",
            none=1.0,
        )
        for what, sides in (("tasks", UNLIKE), ("same questions", SAME))
    )
    return Chart(name="disrupt", plots=plots)
