"""A diagnosis as tables."""

from __future__ import annotations

from studfinder.records import Cell, Diagnosis, Table
from studfinder.report.result import Sheet

_SHOWN = 12


def diagnosis_sheet(found: Diagnosis) -> Sheet:
    """What a person reads of a diagnosis."""
    return Sheet(
        title=f"What is wrong with {found.model.id}" if found.ill else f"{found.model.id} beside {found.original.id}",
        lead=found.verdict,
        models=(found.model, found.original),
        run=found.run,
        record=found,
        tables=diagnosis_tables(found),
        notes=tuple(filter(None, (found.mend,))),
    )


def diagnosis_tables(found: Diagnosis) -> list[Table]:
    """The loss, where it comes from, and what differs."""
    losses: list[tuple[Cell, ...]] = [
        ("KL(original || model), nats per token", found.kl),
        ("KL(model || original)", found.back),
        ("share of positions with the same likeliest token", found.agreement),
        ("perplexity / original's", found.perplexity),
    ]
    if found.settings_kl is not None:
        losses.append(("KL with all weights put back (what settings do)", found.settings_kl))
    tables = [Table(title="What is lost", columns=("", "value"), rows=tuple(losses), note=f"On {found.text}.")]
    if found.settings:
        rows = tuple((one.name, one.was, one.is_now, one.about, one.kl) for one in found.settings)
        heads: tuple[str, ...] = ("setting", "was", "is", "about", "KL of it alone")
        tables.append(Table(title="Settings that differ", columns=heads, rows=rows))
    if found.engine is not None:
        one = found.engine
        begins = "nowhere" if one.begins is None else f"position {one.begins}"
        row = (one.prompts, one.tokens, one.off, one.far, _yes(one.agrees), begins)
        heads = ("prompts", "tokens", "median, nats", "95th percentile", "agree", "differs from")
        tables.append(Table(title="The engine beside the weights", columns=heads, rows=(row,)))
    if found.parts:
        more = len(found.parts) - _SHOWN
        tables.append(
            Table(
                title="Where the loss comes from",
                columns=("part", "won when put back", "share of the KL", "predicted", "what is wrong with it"),
                rows=tuple(
                    (
                        part.name,
                        part.won,
                        None if part.share is None else f"{part.share:.0%}",
                        part.predicted,
                        part.words,
                    )
                    for part in found.parts[:_SHOWN]
                ),
                note="Each alone; damages need not add up. Predicted: to second order, good for small errors."
                + (f" {more} more in diagnosis.json." if more > 0 else ""),
            )
        )
    if found.stored:
        more = len(found.stored) - _SHOWN
        tables.append(
            Table(
                title="How it is stored",
                columns=("what", "where", "about"),
                rows=tuple((one.what, one.where, one.about) for one in found.stored[:_SHOWN]),
                note="Unlike others of its kind, as recipes may want; scales that are zero, not finite or saturated."
                + (f" {more} more in diagnosis.json." if more > 0 else ""),
            )
        )
    if found.carriers:
        tables.append(
            Table(
                title="What carries the original",
                columns=("what", "where", "was", "is", "intact"),
                rows=tuple((one.kind, one.place, one.was, one.is_now, _yes(one.intact)) for one in found.carriers),
                note="Intact is what changed by a quarter at most.",
            )
        )
    if found.blocks:
        first = sorted(found.blocks, key=lambda block: -block.injected)[:_SHOWN]
        tables.append(
            Table(
                title="Blocks that inject most",
                columns=("layer", "injected here", "leaves it in all"),
                rows=tuple((one.layer, one.injected, one.total) for one in first),
                note="Norm of the difference over that of the residual stream, mean over tokens.",
            )
        )
    if found.by_position:
        stretches = tuple((f"from {first}", kl) for first, kl in found.by_position)
        tables.append(Table(title="By position", columns=("positions", "KL"), rows=stretches))
    if found.by_kind:
        kinds = tuple((one.kind, one.tokens, one.kl) for one in found.by_kind)
        tables.append(Table(title="By kind of token", columns=("what comes next", "tokens", "KL"), rows=kinds))
    if found.worst:
        worst_rows = tuple((one.context, one.token, one.kl) for one in found.worst)
        tables.append(Table(title="Tokens that differ most", columns=("after", "token", "KL, nats"), rows=worst_rows))
    return tables


def _yes(which: bool) -> str:
    return "yes" if which else "no"
