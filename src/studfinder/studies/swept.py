"""Many edits over one text, each against the clean model, in one reading (see `measures.effects`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from studfinder.edits import Edit, edits_hash
from studfinder.measures import Effects, effects_of
from studfinder.models import LM
from studfinder.records import Comparison, Plot, Series, Table, point
from studfinder.runs import Progress, silent
from studfinder.studies.grid import Remembers


def swept(
    run: Remembers,
    lm: LM,
    what: str,
    windows: Sequence[Sequence[int]],
    variants: Sequence[Sequence[Edit]],
    tell: Progress = silent,
) -> Effects:
    """What each set of edits does to each window; one step of a run, done again for other edits.

    Args:
        what: in words, for the line of progress.
        windows: token ids.
        tell: told (what, how many are done, of how many).
    """
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        done += share
        tell(what, round(done * len(variants)), len(variants))

    def measure() -> dict[str, Any]:
        effects = effects_of(lm, windows, variants, advance=advance)
        return {name: getattr(effects, name).tolist() for name in ("kl", "nll", "clean_nll", "tokens")}

    found = run.once(f"{what} {edits_hash([edit for edits in variants for edit in edits])[:12]}", measure)
    return Effects(**{name: np.array(values) for name, values in found.items()})


def effects_table(title: str, labels: Sequence[str], effects: Effects, note: str = "", first: str = "edit") -> Table:
    """A row an edit: its KL and what becomes of the perplexity."""
    rows = tuple((label, effects.kl_interval(i), effects.perplexity_ratio(i)) for i, label in enumerate(labels))
    return Table(title=title, columns=(first, "KL in nats per token", "perplexity / original"), rows=rows, note=note)


def effects_plot(labels: Sequence[str], effects: Effects, x: str = "perplexity / original") -> Plot:
    """Points in rows; a label that begins with a space is that of a control."""
    nothing = point(None)
    found = [point(effects.perplexity_ratio(place)) for place in range(len(labels))]
    controls = [label.startswith(" ") for label in labels]
    pairs = list(zip(found, controls, strict=True))
    series = (
        Series(name="edit", points=tuple(nothing if control else at for at, control in pairs)),
        Series(name="its control", points=tuple(at if control else nothing for at, control in pairs), quiet=True),
    )
    rows = tuple(label.strip() for label in labels)
    return Plot(kind="dots", rows=rows, series=series if any(controls) else series[:1], x=x, none=1.0, log=True)


def ratio(effects: Effects, place: int) -> Comparison:
    """Perplexity with an edit over perplexity without, as a cell of a table."""
    return Comparison(kind="ratio", interval=effects.perplexity_ratio(place))
