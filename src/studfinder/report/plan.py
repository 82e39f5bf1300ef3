"""A plan as tables and figures: what each group gets and why, and what it was judged beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

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
from studfinder.report.result import Drawing, Sheet, drawing

_MOST = 12
"""Groups that a table shows."""


def plan_sheet(plan: Plan, costs: Sensitivity) -> Sheet:
    """What a person reads of a plan."""
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
        tables=tables,
        notes=(*notes, *plan.notes),
        charts=dict(_charts(plan, costs)),
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
    drawn = {
        "skyline": (partial(_skyline, costs), "What rounding each group alone is predicted to cost, by layer."),
        "beside": (partial(_beside, plan.solutions), "KL of the plan and of others, with intervals."),
    }
    for name, (draw, words) in drawn.items():
        made = drawing(name, draw, words)
        if made is not None:
            yield name, made


def _skyline(costs: Sensitivity, width: float) -> Figure | None:
    """In the format that most groups have as their first, the one that is dearest."""
    names = Counter(one.costs[0].stored_as for one in costs.groups if one.costs)
    if not names:
        return None
    name = max(names, key=lambda one: names[one])
    kinds: dict[str, list[GroupCosts]] = {}
    for group in costs.groups:
        if any(one.stored_as == name and one.kl > 0 for one in group.costs):
            kinds.setdefault(group.name.rpartition(".")[2], []).append(group)
    if not kinds:
        return None
    series = tuple(
        Series(
            name=kind,
            x=tuple(float(group.layer) for group in own),
            points=tuple(point(group.cost(name).kl) for group in own),
        )
        for kind, own in kinds.items()
    )
    plot = Plot(kind="lines", series=series, x=f"layer (alone in {name})", y="predicted KL, nats per token", log=True)
    return draw_chart(Chart(name="skyline", plots=(plot,)), width)


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
