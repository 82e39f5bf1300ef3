"""Which layer hurts, if only it is quantised?

What it asks: of all that a quantiser rounds, what does the damage, and does leaving that alone help? How: rounding to
nearest, one layer at a time, one kind of matrix at a time, and one matrix (with what is fused with it when served) at a
time, the rest in full precision; KL from the original on our proof text. Blocks before the change are not run again.
Then everything is rounded but the worst few matrices, beside everything but as many others of the same kinds, drawn at
random; the worst are chosen on every second window and judged on the others. Last, of the matrices that hold proven
super weights: what in them must be kept, the weights themselves, or the columns that meet their inputs? Control: as
many other columns. What to look at: whether the worst stand out beyond the phase null (the same groups begun at another
column), whether the parts add up to the whole, whether skipping the worst beats skipping others, and whether a super
weight's column makes its matrix as harmless as the median one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.errors import StudfinderError
from studfinder.experiments.dots import dots, point
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.fidelity import Divergence, Original, over_draws, proof_windows
from studfinder.experiments.quantize_kept_columns import KeptPart, add_kept, keeps_of
from studfinder.experiments.quantize_phase import Shifted
from studfinder.experiments.quantize_recipes import CAVEAT, block_of, fitted
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers import RTN, HoldOut, Scheme, Target, quantized, skip, targets
from studfinder.records import Comparison, Interval, Result, SuperWeight, Table
from studfinder.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILLION, log_ticks, new_figure

EXPERIMENT = Experiment(
    name="quantize/which-layer",
    paper="2411.07191",
    shows="ours",
    summary="Which layer or matrix hurts most when it is quantised, and does leaving it alone help?",
    needs="about 8 minutes and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={"cpu": {"limit": 16, "element": "int4", "block": "64", "zero": "integer", "worst": 3, "draws": 5}},
)
_COLOURS = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE, GREY)


@dataclass(frozen=True)
class _Part:
    """Fused groups that are quantised together: a layer, a kind of matrix, or one group."""

    label: str
    groups: tuple[str, ...]
    layer: int
    kind: str = ""


def run(bench: Bench) -> Outcome:
    """Every part by itself; then all but some."""
    if bench.settings["limit"] < 2:
        raise StudfinderError("one window cannot both choose the worst and judge them", expected="--limit 2 or more")
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            seen = _Measured(bench, lm)
            layers, kinds, groups = parts(targets(lm))
            found = {part.label: seen.only(part) for part in (*layers, *kinds, *groups)}
            worst = sorted(groups, key=lambda part: -_chosen_by(found[part.label]))[: bench.settings["worst"]]
            shifted = {part.label: seen.only(part, shift=True) for part in worst}
            skips = dict(seen.without(worst, groups))
            kept = list(seen.kept(load_findings(bench, lm).proven, groups))
        _add(outcome, name, (layers, kinds, groups), found, shifted, skips, worst)
        median = float(np.median([found[part.label].value for part in groups]))
        add_kept(outcome, name, kept, found, skips["everything"], median)
    outcome.notes.append(CAVEAT)
    return outcome


def parts(found: Sequence[Target]) -> tuple[list[_Part], list[_Part], list[_Part]]:
    """The layers, the kinds of matrices, and the fused groups of a model."""
    groups: dict[str, _Part] = {}
    for target in found:
        kind = target.fused.rpartition(".")[2]
        groups.setdefault(target.fused, _Part(f"L{target.layer} {kind}", (target.fused,), target.layer, kind))
    every = list(groups.values())
    layers = [
        _Part(f"L{layer}", tuple(g.groups[0] for g in every if g.layer == layer), layer)
        for layer in sorted({g.layer for g in every})
    ]
    kinds = [
        _Part(kind, tuple(g.groups[0] for g in every if g.kind == kind), min(g.layer for g in every if g.kind == kind))
        for kind in dict.fromkeys(g.kind for g in every)
    ]
    return layers, kinds, every


class _Measured:
    """KL of the model with some groups quantised; each a step."""

    def __init__(self, bench: Bench, lm: LM) -> None:
        self.bench, self.lm, self.targets = bench, lm, targets(lm)
        own = bench.settings
        self.scheme = fitted(lm, Scheme(element=own["element"], block=block_of(own["block"]), zero=own["zero"]))
        self.total = len({t.fused for t in self.targets})
        self.windows = proof_windows(lm, own["limit"])
        self._original: Original | None = None
        self._done = 0

    def only(self, part: _Part, *, shift: bool = False) -> Divergence:
        """Nothing but this part quantised."""
        rest = sorted({target.ref.module for target in self.targets if target.fused not in part.groups})
        return self._kl(f"only {part.label}" + (", shifted" if shift else ""), rest, part.layer, shift)

    def without(self, worst: Sequence[_Part], groups: Sequence[_Part]) -> Iterator[tuple[str, Divergence]]:
        """Everything quantised; everything but the worst; everything but as many others of the same kinds."""
        yield "everything", self._kl("everything", [], 0)
        yield "all but the worst", self._kl("all but the worst", self._modules(worst), 0)
        random = np.random.default_rng(self.bench.settings["seed"])
        for draw in range(self.bench.settings["draws"]):
            others: list[_Part] = []
            for part in worst:
                free = [g for g in groups if g.kind == part.kind and g not in worst and g not in others]
                others += [free[int(random.integers(len(free)))]] if free else []
            if others:
                label = f"all but others, draw {draw + 1}"
                yield label, self._kl(label, self._modules(others), 0)

    def kept(self, proven: Sequence[SuperWeight], groups: Sequence[_Part]) -> Iterator[KeptPart]:
        """Each matrix with proven super weights, and everything, quantised with something of the former kept."""
        if not proven:
            return
        homes = {target.name: target.fused for target in self.targets}
        parts = [part for part in groups if part.groups[0] in {homes.get(weight.parameter) for weight in proven}]
        for part in parts:
            own = [weight for weight in proven if homes.get(weight.parameter) in part.groups]
            rest = sorted({target.ref.module for target in self.targets if target.fused not in part.groups})
            yield from self._keeps(part.label, own, rest, part.layer)
        yield from self._keeps("everything", proven, [], 0)

    def _keeps(self, label: str, weights: Sequence[SuperWeight], rest: list[str], start: int) -> Iterator[KeptPart]:
        keeps = keeps_of(self.lm, weights, draws=self.bench.settings["draws"], seed=self.bench.settings["seed"])
        for what, keep in keeps.items():
            yield KeptPart(label, what, self._kl(f"only {label}, keep {what}", rest, start, keep=keep))

    def _modules(self, chosen: Sequence[_Part]) -> list[str]:
        groups = {group for part in chosen for group in part.groups}
        return [target.ref.module for target in self.targets if target.fused in groups]

    def _kl(
        self, step: str, skipped: list[str], start: int, shift: bool = False, keep: HoldOut | None = None
    ) -> Divergence:
        self._done += 1
        self.bench.progress(step, self._done, self.total + 80)
        sums = self.bench.once(step, partial(self._measure, skipped, start, shift, keep))
        return Divergence(np.array(sums), np.array([len(ids) - 1 for ids in self.windows]))

    def _measure(self, skipped: list[str], start: int, shift: bool, keep: HoldOut | None) -> list[float]:
        if self._original is None:
            self._original = Original(self.lm, self.windows, layers=True)
        method: Any = RTN(scheme=self.scheme)
        if shift and isinstance(self.scheme.block, int):
            method = Shifted(rtn=method, shift=self.scheme.block // 2)
        with quantized(self.lm, method, keep=[*([skip(*skipped)] if skipped else []), *([keep] if keep else [])]):
            return self._original.kl(self.lm, start).sums.tolist()


def _chosen_by(kl: Divergence) -> float:
    """What the worst are chosen by: every second window."""
    return kl[::2].value


def _judged(kl: Divergence) -> Interval:
    """By the windows that chose nothing."""
    return kl[1::2].interval()


def _add(
    outcome: Outcome,
    name: str,
    all_parts: tuple[list[_Part], list[_Part], list[_Part]],
    found: dict[str, Divergence],
    shifted: dict[str, Divergence],
    skips: dict[str, Divergence],
    worst: list[_Part],
) -> None:
    layers, kinds, groups = all_parts
    titles = (
        "one layer at a time",
        "one kind of matrix at a time",
        "one matrix (with what is fused with it) at a time",
    )
    for title, some in zip(titles, (layers, kinds, groups), strict=True):
        ranked = sorted(some, key=lambda part: -found[part.label].value)
        rows = tuple((part.label, found[part.label].interval()) for part in ranked)
        note = f"KL(original || quantised), nats per token, our proof text, pieces resampled. {CAVEAT}"
        outcome.tables.append(Table(title=f"{name}: {title}", columns=("quantised", "KL"), rows=rows, note=note))
    skipped = tuple(
        (
            label,
            _judged(kl),
            None
            if label == "everything"
            else Comparison(kind="difference", interval=_judged(kl - skips["everything"])),
        )
        for label, kl in skips.items()
    )
    outcome.tables.append(
        Table(
            title=f"{name}: everything but a few",
            columns=("quantised", "KL", "- everything"),
            rows=skipped,
            note="The worst: " + ", ".join(part.label for part in worst) + ", chosen on every second window; the "
            "numbers are of the rest. Others: drawn from matrices of the same kinds, so that they cost as many bits.",
        )
    )
    outcome.notes += _notes(name, layers, groups, found, shifted, skips, worst)
    outcome.data.setdefault("models", {})[name] = {
        "groups": [[part.layer, part.kind, found[part.label].value] for part in groups],
        "layers": [[part.layer, point(found[part.label].interval())] for part in layers],
        "skips": [[label, point(_judged(kl))] for label, kl in skips.items()],
    }


def _notes(
    name: str,
    layers: list[_Part],
    groups: list[_Part],
    found: dict[str, Divergence],
    shifted: dict[str, Divergence],
    skips: dict[str, Divergence],
    worst: list[_Part],
) -> list[str]:
    whole = skips["everything"].value
    by_layer = sum(found[part.label].value for part in layers)
    ranked = sorted(groups, key=lambda part: -_chosen_by(found[part.label]))
    notes = [
        f"{name}: quantising everything costs {whole:.3g} nats per token; layer by layer the costs add up to "
        f"{by_layer:.3g}, {by_layer / whole:.0%} of that."
    ]
    if len(ranked) > 1:
        lead = _judged(found[ranked[0].label] - found[ranked[1].label])
        says = "clearly more than" if lead.low > 0 else "not clearly more than"
        notes.append(
            f"{name}: {ranked[0].label} alone costs {_judged(found[ranked[0].label])} on the windows that did not "
            f"choose it, {says} the next, {ranked[1].label} (difference {lead}); the median matrix costs "
            f"{float(np.median([found[part.label].value for part in groups])):.3g}."
        )
    for part in worst:
        here, there = found[part.label].value, shifted[part.label].value
        notes.append(
            f"{name}: with its groups begun half a group away, {part.label} costs {there:.3g} instead of {here:.3g}."
        )
    others = [kl for label, kl in skips.items() if label.startswith("all but others")]
    if others:
        gain = _judged(over_draws(others) - skips["all but the worst"])
        says = (
            "helps more than"
            if gain.low > 0
            else "helps less than"
            if gain.high < 0
            else "helps no more, clearly, than"
        )
        notes.append(
            f"{name}: leaving the worst {len(worst)} in full precision {says} leaving {len(worst)} others of their "
            f"kinds (mean of {len(others)} draws; difference {gain} nats per token)."
        )
    return notes


def draw(result: Result, width: float) -> dict[str, Figure]:
    """KL by layer, a line a kind of matrix; and what skipping does."""
    figures = {}
    for place, (name, seen) in enumerate(result.data["models"].items()):
        suffix = f"-{place + 1}" if place else ""
        figures[f"which-layer{suffix}"] = _lines(name, seen, width)
        figures[f"all-but{suffix}"] = _skips(name, seen, width)
    return figures


def _lines(name: str, seen: dict[str, Any], width: float) -> Figure:
    wide = width > 600
    figure = new_figure(width, 400 if wide else 420)
    axes = figure.subplots()
    layers = np.array([[layer, value] for layer, (value, _, _) in seen["layers"]])
    axes.plot(*layers.T, color=INK, linewidth=2, label="the whole layer")
    kinds = list(dict.fromkeys(kind for _, kind, _ in seen["groups"]))
    for kind, colour in zip(kinds, _COLOURS * len(kinds), strict=False):
        own = np.array([[layer, value] for layer, of, value in seen["groups"] if of == kind])
        axes.plot(*own.T, ".-", color=colour, linewidth=1.2, markersize=4, label=kind.replace("_proj", ""))
    axes.set_yscale("log")
    log_ticks(axes.yaxis, most=6)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("layer (alone quantised)")
    axes.set_ylabel("KL, nats per token")
    axes.set_title(name)
    axes.grid(axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=5 if wide else 2)
    return figure


def _skips(name: str, seen: dict[str, Any], width: float) -> Figure:
    figure = new_figure(width, 80 + 30 * len(seen["skips"]))
    axes = figure.subplots()
    dots(axes, [label for label, _ in seen["skips"]], {"KL": [points for _, points in seen["skips"]]})
    axes.set_xlabel(f"KL, nats per token ({name})" if width > 600 else "KL, nats per token")
    return figure
