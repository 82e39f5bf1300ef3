"""A plan as tables and figures: what each group gets and why, and what it was judged beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from studfinder.records import (
    Cell,
    Chart,
    Comparison,
    GroupCosts,
    Plan,
    PlannedGroup,
    Plot,
    Rival,
    Sensitivity,
    Series,
    Solution,
    Table,
    point,
)
from studfinder.report.charts import draw_chart
from studfinder.report.result import Drawing, Paste, Sheet, drawing
from studfinder.report.skyline import Tower, draw_skyline, said_of_skyline
from studfinder.report.style import CATEGORIES, MARKERS, new_figure

_MOST = 12
"""Groups that a table shows."""


def plan_sheet(plan: Plan, costs: Sensitivity, recipes: Mapping[str, str]) -> Sheet:
    """What a person reads of a plan; `recipes` are the files of its tools, by a title."""
    tables = [table for one in plan.solutions for table in plan_tables(one, every=True)]
    lead = (
        f"Which matrices of {plan.model.id} get which format at {plan.budget}, so that the model changes least. "
        "KL is how far its next-token distributions move, in nats per token: 0.01 is hardly felt, 0.1 is, 1 is another "
        "model."
    )
    notes = [line for one in plan.solutions for line in plan_notes(plan, one)]
    return Sheet(
        title=f"A plan for {plan.model.id}",
        lead=lead,
        models=(plan.model,),
        run=plan.run,
        record=plan,
        tables=tables,
        notes=(*notes, *plan.notes),
        charts=dict(_charts(plan, costs)),
        pastes=[Paste(title=title, text=text) for title, text in recipes.items()],
    )


def plan_notes(plan: Plan, one: Solution) -> list[str]:
    """What a solution comes to, in sentences."""
    counts = Counter(group.stored_as for group in one.groups)
    mix = ", ".join(f"{count} in {name}" for name, count in counts.most_common())
    tool = f"for {one.tool}: " if one.tool else ""
    size = f"{one.size / 1e9:.3g} GB" if one.size >= 1e9 else f"{one.size / 1e6:.0f} MB"
    said = [f"{tool}{one.bits:.4g} bits a weight, {size} in all; of {len(one.groups)} fused groups {mix}."]
    if one.kl is not None:
        said.append(f"{tool}KL {one.kl} nats per token on {plan.judged_on}; {one.predicted:.3g} was expected.")
        said.append(tool + one.verdict)
    else:
        said.append(f"{tool}{one.predicted:.3g} nats per token are expected; nothing was judged.")
    return said + [tool + note for note in one.notes]


def plan_tables(one: Solution, *, every: bool = False) -> list[Table]:
    """What a solution was judged beside, and the groups that decide."""
    of = f", for {one.tool}" if one.tool else ""
    tables = []
    if one.kl is not None:
        rows: list[tuple[Cell, ...]] = [("the plan", one.bits, one.kl, None)]
        rows += [
            (
                rival.name,
                rival.bits,
                rival.kl,
                None if rival.kind == "null" else _difference(rival),
            )
            for rival in sorted(one.rivals, key=lambda rival: rival.kl.value)
        ]
        tables.append(
            Table(
                title=f"The plan beside others{of}",
                columns=("formats", "bits a weight", "KL, nats per token", "minus the plan's"),
                rows=tuple(rows),
                note="On text that chose nothing; intervals of 95 %, windows resampled, differences paired. The null "
                "edit moves every number to the next one of its dtype.",
            )
        )
    ranked = sorted(one.groups, key=lambda group: -group.kl)
    shown = ranked if every else ranked[:_MOST]
    tables.append(
        Table(
            title=f"Groups by what they still cost{of}" + ("" if every else f", the first {len(shown)}"),
            columns=("group", "format", "bits a weight", "KL alone", "by", "where"),
            rows=tuple(map(_row, shown)),
            note="Predicted from one backward pass, corrected where that was measured.",
        )
    )
    return tables


def _difference(rival: Rival) -> Comparison:
    return Comparison(kind="difference", interval=rival.less)


def _row(group: PlannedGroup) -> tuple[Cell, ...]:
    return short(group), group.stored_as, group.bits, group.kl, group.basis, group.why


def short(group: PlannedGroup | GroupCosts) -> str:
    """A group in print: its layer, and what it is called there."""
    return f"L{group.layer} {group.name.rpartition('.')[2]}"


def _charts(plan: Plan, costs: Sensitivity) -> Iterator[tuple[str, Drawing]]:
    name, towers = _towers(costs)
    drawn: dict[str, tuple[Callable[[float], Figure | None], str]] = {}
    if towers:
        y = f"KL alone in {name}, nats per token"
        words = said_of_skyline(towers, f"What rounding each group alone to {name} costs")
        drawn["skyline"] = partial(draw_skyline, towers, y=y), words
    drawn["beside"] = partial(_beside, plan.solutions), "KL of the plan and of others, with intervals."
    drawn["bits"] = (
        partial(_by_bits, plan.solutions),
        "KL of the plan and of others over the bits a weight that they take.",
    )
    for called, (draw, words) in drawn.items():
        made = drawing(called, draw, words)
        if made is not None:
            yield called, made


def _towers(costs: Sensitivity) -> tuple[str, list[Tower]]:
    """In the format that most groups have as their first, the one that is dearest; measured where it was."""
    names = Counter(one.costs[0].stored_as for one in costs.groups if one.costs)
    if not names:
        return "", []
    name = max(names, key=lambda one: names[one])
    return name, [
        Tower(
            layer=group.layer,
            kind=group.name.rpartition(".")[2],
            kl=cost.nats,
            why=group.why,
        )
        for group in costs.groups
        for cost in group.costs
        if cost.stored_as == name
    ]


def _beside(solutions: Sequence[Solution], width: float) -> Figure | None:
    plots = []
    for one in solutions:
        if one.kl is None:
            continue
        rivals = sorted((rival for rival in one.rivals if rival.kind != "null"), key=lambda rival: rival.kl.value)
        rows = ("the plan", *(f"{rival.name} ({rival.bits:.3g} bits)" for rival in rivals))
        points = tuple(map(point, (one.kl, *(rival.kl for rival in rivals))))
        series = (Series(name="KL", points=points),)
        plots.append(Plot(kind="dots", rows=rows, series=series, title=one.tool, x="KL, nats per token"))
    return draw_chart(Chart(name="beside", plots=tuple(plots)), width) if plots else None


_KINDS = {"uniform": "one format for all", "rule": "rules", "random": "random groups"}


def _by_bits(solutions: Sequence[Solution], width: float) -> Figure | None:
    """One pair of axes a tool, a mark for each choice of formats with its interval."""
    judged = [one for one in solutions if one.kl is not None]
    if not judged:
        return None
    wide = width > 600
    figure = new_figure(width, (340 if wide else 300) * len(judged))
    for place, one in enumerate(judged):
        axes = figure.add_subplot(len(judged), 1, place + 1)
        marks = [("the plan", one.bits, one.kl)]
        marks += [(_KINDS[rival.kind], rival.bits, rival.kl) for rival in one.rivals if rival.kind in _KINDS]
        for number, label in enumerate(("the plan", *_KINDS.values())):
            own = [(bits, kl) for name, bits, kl in marks if name == label and kl is not None]
            if not own:
                continue
            x, y = [bits for bits, _ in own], np.array([kl.value for _, kl in own])
            ends = np.abs(np.array([[kl.low, kl.high] for _, kl in own]).T - y)
            look: dict[str, Any] = {
                "color": CATEGORIES[number],
                "marker": MARKERS[number],
                "label": label if place == 0 else None,
            }
            axes.errorbar(x, y, yerr=ends, linestyle="none", capsize=3, markersize=7, **look)
        axes.set(title=one.tool, xlabel="bits a weight, scales and kept numbers included", ylabel="KL, nats per token")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.1)
        axes.grid(axis="y")
    figure.legend(loc="outside upper left", ncols=4 if wide else 2, borderaxespad=0.2)
    return figure
