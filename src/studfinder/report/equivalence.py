"""An equivalent checkpoint as tables, and as its card."""

from __future__ import annotations

from studfinder.records import Cell, Comparison, Equivalence, Table
from studfinder.report.cells import markdown
from studfinder.report.escaped import code, for_markdown
from studfinder.report.result import Sheet


def equivalence_sheet(made: Equivalence) -> Sheet:
    """What a person reads of it."""
    return Sheet(
        title=f"An equivalent form of {made.model.id}",
        lead=made.verdict,
        models=(made.model,),
        run=made.run,
        record=made,
        tables=equivalence_tables(made),
        notes=made.notes,
    )


def equivalence_tables(made: Equivalence) -> list[Table]:
    """What was changed, that it is the same, and what it gains."""
    tables = []
    if made.changes:
        rows: list[tuple[Cell, ...]] = [
            (one.kind, one.words, "yes" if one.exact else "bounded" if one.bound is not None else "no", one.bound)
            for one in made.changes
        ]
        note = (
            f"Chosen on {made.text}. Bound: nats by which attention of one query may differ, up to {made.context:,} "
            "tokens."
        )
        heads = ("kind", "what was done", "exact", "bound")
        tables.append(Table(title="What is changed", columns=heads, rows=tuple(rows), note=note))
    if made.checks:
        rows = [(one.tokens, one.windows, one.kl, one.largest, "yes" if one.equal else "no") for one in made.checks]
        heads5 = ("tokens of context", "windows", "KL, nats per token", "worst window", "every logit the same")
        note = f"KL(original || changed) on {made.judged_on}, which chose nothing."
        tables.append(Table(title="The same model?", columns=heads5, rows=tuple(rows), note=note))
    if made.gains:
        rows = [
            (one.stored_as, one.before, one.after, Comparison(kind="difference", interval=one.less))
            for one in made.gains
        ]
        note = "KL from the unrounded original when everything is rounded to nearest (KV: when the cache is), paired."
        heads4 = ("format", "before", "after", "gain")
        tables.append(Table(title="What rounding costs", columns=heads4, rows=tuple(rows), note=note))
    return tables


def equivalence_card(made: Equivalence) -> str:
    """The checkpoint's README.md."""
    head = ["---", f"base_model: {made.model.id}", "tags: [studfinder]", "---", ""]
    lines = [
        f"# {for_markdown(made.model.id)}, equalised",
        "",
        for_markdown(made.verdict[0].upper() + made.verdict[1:]),
        "",
    ]
    lines += [
        "It is a plain checkpoint of the same architecture, for any quantiser and engine. Weights of the original: "
        f"{code(made.model.content_hash)}.",
        "",
    ]
    return "\n".join([*head, *lines, *(markdown(table) for table in equivalence_tables(made))]).rstrip() + "\n"
