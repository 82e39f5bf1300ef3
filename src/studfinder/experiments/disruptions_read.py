"""What disruptions did: tables, sentences and a figure from scores by item."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studfinder.records import Cell, Comparison, Interval, Table
from studfinder.report.style import BLUE, MUTED, RULE, VERMILLION, new_figure
from studfinder.stats import crossed

CONTEXT, MEMORY = "facts-in-context", "facts-parametric-matched"


@dataclass
class DisruptionScores:
    """Scores of the clean model and of each disruption.

    Attributes:
        clean: {"measures": {measure: {"score", "margin", "clusters", "chance"}}}, lists over items.
        scores: by name, one such record a draw, with "kl", "nll" and "tokens" over windows of neutral text.
        against: (disruption, the noise that was tuned to its damage).
    """

    clean: dict[str, Any]
    scores: dict[str, list[dict[str, Any]]]
    against: list[tuple[str, str]]

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {"clean": self.clean, "scores": self.scores, "against": [list(pair) for pair in self.against]}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> DisruptionScores:
        """From JSON."""
        return cls(plain["clean"], plain["scores"], [(a, b) for a, b in plain["against"]])

    def measure(self, base: str) -> str:
        """The full name of a measure, with its argument."""
        return next(name for name in self.clean["measures"] if name.partition(":")[0] == base)

    def items(self, name: str | None, measure: str, what: str = "score") -> np.ndarray:
        """(draws, items); of the clean model for None."""
        draws = [self.clean] if name is None else self.scores[name]
        return np.array([draw["measures"][measure][what] for draw in draws], dtype=float)

    def clusters(self, measure: str) -> list[str] | None:
        """What hangs together."""
        return self.clean["measures"][measure]["clusters"]

    def score(self, name: str | None, measure: str) -> Interval:
        """Mean over items and draws."""
        scores = {"x": self.items(name, measure)}
        return crossed(lambda mean: mean["x"], scores, self.clusters(measure))

    def neutral(self, name: str, what: str) -> Interval:
        """KL a token ("kl"), or the perplexity ratio ("nll"), on neutral text."""
        draws = self.scores[name]
        arrays = {key: np.array([draw[key] for draw in draws], dtype=float) for key in (what, "tokens")}

        def statistic(mean: Any) -> np.ndarray:
            with np.errstate(over="ignore"):
                return mean[what] / mean["tokens"] if what == "kl" else np.exp(mean[what] / mean["tokens"])

        return crossed(statistic, arrays, what="windows")

    # --- context against memory ---------------------------------------------------------------------------------------

    def _pairs(self, names: Mapping[str, str | None], what: str) -> tuple[dict[str, np.ndarray], list[str] | None]:
        context, memory = self.measure(CONTEXT), self.measure(MEMORY)
        arrays = {}
        for letter, name in {"0": None, **names}.items():
            arrays[f"context{letter}"] = self.items(name, context, what)
            arrays[f"memory{letter}"] = self.items(name, memory, what)
        return arrays, self.clusters(context)

    def change(self, name: str, which: str) -> Interval:
        """Change of chance-corrected accuracy, "context" or "memory", edited minus clean."""
        arrays, clusters = self._pairs({"1": name}, "score")
        headroom = 1 - self.clean["measures"][self.measure(CONTEXT)]["chance"]
        return crossed(lambda m: (m[f"{which}1"] - m[f"{which}0"]) / headroom, arrays, clusters, what="subjects")

    def kept(self, name: str, which: str) -> Interval | None:
        """The share of its skill above chance that is left; None if the clean model has none for sure."""
        measure = self.measure(CONTEXT if which == "context" else MEMORY)
        chance = self.clean["measures"][measure]["chance"]
        if self.score(None, measure).low <= chance:
            return None
        arrays, clusters = self._pairs({"1": name}, "score")

        def share(m: Any) -> np.ndarray:
            return (m[f"{which}1"] - chance) / np.maximum(m[f"{which}0"] - chance, 1e-9)

        return crossed(share, arrays, clusters, what="subjects")

    def contrast(self, name: str, minus: str | None = None, what: str = "score") -> Interval:
        """Change from context less change from memory (below 0: context suffered more); with `minus`, less the same of
        another disruption. Accuracies are corrected for chance; margins ("margin") are nats a token."""
        arrays, clusters = self._pairs({"1": name} | ({"2": minus} if minus else {}), what)
        headroom = 1 - self.clean["measures"][self.measure(CONTEXT)]["chance"] if what == "score" else 1.0

        def difference(m: Any) -> np.ndarray:
            start = m["context0"] - m["memory0"]
            own = m["context1"] - m["memory1"] - start
            return (own - (m["context2"] - m["memory2"] - start) if minus else own) / headroom

        return crossed(difference, arrays, clusters, what="subjects")


# --- tables ---------------------------------------------------------------------------------------------------------


def disruption_table(name: str, rows: DisruptionScores) -> Table:
    """All measures, clean and disrupted."""
    measures = list(rows.clean["measures"])
    lines: list[tuple[Cell, ...]] = [("as it is", None, None, *(rows.score(None, measure) for measure in measures))]
    for row in rows.scores:
        scores = [rows.score(row, measure) for measure in measures]
        lines.append((row, rows.neutral(row, "kl"), rows.neutral(row, "nll"), *scores))
    chances = ", ".join(f"{measure} {rows.clean['measures'][measure]['chance']:.3g}" for measure in measures)
    return Table(
        title=f"{name}: massive values and controls, disrupted in the prompt",
        columns=("disrupted", "KL, neutral text (nats)", "perplexity x", *measures),
        rows=tuple(lines),
        note=f"Accuracy; chance: {chances}. Intervals: items (subjects, windows) and draws resampled. The paper, "
        "Llama3-8B, clean / smallest dims / massive: passkey of 128 tokens 100 / 100 / 9 %, IMDB 95.4 / 95.4 / 11 %, "
        "cities (yes or no, floor 50 %) 99.4 / 99.4 / 88.2 %.",
    )


def comparisons_table(name: str, rows: DisruptionScores) -> Table:
    """Context against memory, and against equal damage elsewhere."""
    others: dict[str, list[str]] = {}
    for row, other in rows.against:
        others.setdefault(row, []).append(other)
    compared = [row for row in rows.scores if row.startswith("massive") or row in others]
    alone: list[str | None] = [None]
    lines = [_comparison(rows, row, other) for row in compared for other in others.get(row) or alone]
    return Table(
        title=f"{name}: the same questions from context and from memory",
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


def _comparison(rows: DisruptionScores, row: str, other: str | None) -> tuple[Cell, ...]:
    own = (
        row,
        rows.kept(row, "context"),
        rows.kept(row, "memory"),
        _difference(rows.contrast(row)),
        _difference(rows.contrast(row, what="margin")),
    )
    if other is None:
        return *own, None, None, None, None
    return (
        *own,
        _place(other),
        _difference(rows.contrast(other)),
        _difference(rows.contrast(row, other)),
        _difference(rows.contrast(row, other, "margin")),
    )


def _place(other: str) -> str:
    """The short name of noise that was tuned to another row's damage."""
    return other.split(", as harmful")[0]


def _difference(interval: Interval) -> Comparison:
    return Comparison(kind="difference", interval=interval)


# --- sentences ------------------------------------------------------------------------------------------------------


def disruption_notes(rows: DisruptionScores) -> list[str]:
    """What the numbers say."""
    notes = []
    for base in (CONTEXT, MEMORY):
        measure = rows.measure(base)
        clean, chance = rows.score(None, measure), rows.clean["measures"][measure]["chance"]
        if clean.low <= chance:
            notes.append(
                f"{measure} is at chance ({clean.value:.0%}) on the clean model: context against memory can show "
                "nothing here."
            )
    if notes:
        return notes
    if not rows.measure(CONTEXT).endswith(":1"):
        notes.append(UNFAIR)
    notes += [_only_context(rows, row) for row in rows.scores if row.startswith("massive")]
    return notes + [_specific(rows, row, other) for row, other in rows.against]


UNFAIR = (
    "Context against memory is no fair comparison here, and its sizes are not to be used: the memory prompt states a "
    "wrong answer of the relation that is among the choices, the context prompt the right one beside it, so that "
    "copying any stated answer of the relation is often right from context and never from memory."
)


def _only_context(rows: DisruptionScores, row: str) -> str:
    context, memory = rows.change(row, "context"), rows.change(row, "memory")
    if context.high < 0 and memory.high < 0:
        says = "both suffer"
    elif context.high < 0:
        says = "context is shown to suffer, memory is not"
    elif memory.high < 0:
        says = "memory is shown to suffer, context is not"
    else:
        says = "neither is shown to suffer"
    left = [rows.kept(row, which) for which in ("context", "memory")]
    if all(kept is not None and kept.low <= 0 for kept in left):
        says += "; nothing may be left of either, and then their difference only says where they started"
    return f"{row}: skill from context changes by {_signed(context)}, from memory by {_signed(memory)}: {says}."


def _specific(rows: DisruptionScores, row: str, other: str) -> str:
    accuracy, margin = rows.contrast(row, other), rows.contrast(row, other, "margin")
    kl, own = rows.neutral(other, "kl"), rows.neutral(row, "kl")
    return (
        f"{row}, against {_place(other)} of equal damage (KL {own.value:.2f} and {kl.value:.2f} on text that nothing "
        f"was tuned on): context less memory comes out {_signed(accuracy)} apart in accuracy ({_verdict(accuracy)}) "
        f"and {_signed(margin)} nats apart in margin ({_verdict(margin)})."
    )


def _verdict(difference: Interval) -> str:
    if difference.high < 0:
        return "lower than by equal damage elsewhere"
    return "higher than by equal damage elsewhere" if difference.low > 0 else "not distinguishable"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


# --- figure ---------------------------------------------------------------------------------------------------------


def draw_contrast(name: str, rows: DisruptionScores, width: float) -> Figure:
    """A line a disruption: what is left of the skill from context and from memory, with intervals."""
    wide = width > 600
    shown = list(rows.scores)
    figure = new_figure(width, 110 + (30 if wide else 50) * len(shown))
    axes = figure.add_subplot()
    changes: tuple[tuple[str, str, str, float], ...] = (
        ("context", VERMILLION, "o", -0.15),
        ("memory", BLUE, "s", 0.15),
    )
    for which, colour, marker, offset in changes:
        found = [rows.change(row, which) for row in shown]
        place = np.arange(len(shown)) + offset
        axes.hlines(place, [i.low for i in found], [i.high for i in found], color=colour, linewidth=2)
        axes.plot([i.value for i in found], place, marker, color=colour, markersize=6, label=f"from {which}")
    axes.axvline(0, color=MUTED, linewidth=1)
    for line in range(1, len(shown)):
        axes.axhline(line - 0.5, color=RULE, linewidth=0.6)
    labels: Callable[[str], str] = (lambda row: row) if wide else _broken
    axes.set_yticks(range(len(shown)), [labels(row) for row in shown], fontsize=11 if wide else 9)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("change of accuracy above chance" if wide else "change of skill")
    figure.legend(loc="outside upper left", ncols=2, title=f"{name}: the same questions", alignment="left")
    return figure


def _broken(row: str) -> str:
    """A label in lines of about twenty letters."""
    lines = [""]
    for word in row.split():
        if lines[-1] and len(lines[-1]) + len(word) > 20:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
