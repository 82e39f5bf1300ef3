"""Many edits over one text, each against the clean model, in one reading (see `measures.effects`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from studfinder.edits import Edit, SiteEdit, edits_hash, null, stream_of
from studfinder.errors import StudfinderError
from studfinder.measures import Effects, effects_of
from studfinder.measures.effects import batched
from studfinder.models import LM
from studfinder.records import Comparison, Interval, Plot, Series, Table, point
from studfinder.runs import Progress, silent
from studfinder.studies.grid import Remembers, several

_SMALL, _DRAWS = 0.01, 8
NULL_NOTE = (
    f"Where the KL is below {_SMALL}, that of the null edit is beside it: each entry that the edit changes moved to a "
    f"random neighbour in its dtype instead ({_DRAWS} draws)."
)


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
        return _plain(effects_of(lm, windows, variants, advance=advance))

    def part(some: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Of some windows; an edit may change nothing in those, but not in all."""
        idle: dict[int, str] = {}

        def ended(place: int, check: Callable[[], None]) -> None:
            try:
                check()
            except StudfinderError as error:
                idle[place] = str(error)

        streams = [stream_of(lm, edits) for edits in variants]
        streams = [replace(one, done=partial(ended, place, one.done)) for place, one in enumerate(streams)]
        return {**_plain(effects_of(lm, some, streams)), "idle": [idle.get(place) for place in range(len(streams))]}

    def spread() -> dict[str, Any]:
        cut = [(batch.prompts[0], batch.prompts[-1] + 1) for batch in batched(windows)]
        parts = several(run, {f"{name}, windows {a + 1} to {b}": partial(part, windows[a:b]) for a, b in cut})
        for reasons in zip(*(part["idle"] for part in parts), strict=True):
            if all(reasons):
                raise StudfinderError(reasons[0])
        return {field: np.concatenate([part[field] for part in parts], axis=-1).tolist() for field in _FIELDS}

    name = f"{what} {edits_hash([edit for edits in variants for edit in edits])[:12]}"
    found = run.once(name, spread if run.spread and windows else measure)
    return Effects(**{field: np.array(values) for field, values in found.items()})


_FIELDS = ("kl", "nll", "clean_nll", "tokens")


def _plain(effects: Effects) -> dict[str, Any]:
    return {name: getattr(effects, name).tolist() for name in _FIELDS}


def nulled(
    run: Remembers,
    lm: LM,
    what: str,
    windows: Sequence[Sequence[int]],
    variants: Sequence[Sequence[Edit]],
    effects: Effects,
    tell: Progress = silent,
) -> dict[int, tuple[Interval, Interval]]:
    """Of the small ones among the effects that `swept` gave, by their places: the KL of the null edit, and by how much
    the edit's exceeds it. Edits of activations have none."""
    small = [
        place
        for place, edits in enumerate(variants)
        if effects.kl_interval(place).value < _SMALL and not any(isinstance(edit, SiteEdit) for edit in edits)
    ]
    if not small:
        return {}
    nulls = [null(variants[place], seed) for place in small for seed in range(_DRAWS)]
    found = swept(run, lm, f"{what}: null edits", windows, nulls, tell)
    both = replace(effects, kl=np.concatenate([effects.kl, found.kl]), nll=np.concatenate([effects.nll, found.nll]))
    rows = {place: range(start, start + _DRAWS) for place, start in zip(small, count(len(variants), _DRAWS))}
    return {place: (both.null_interval(draws), both.null_interval(draws, of=place)) for place, draws in rows.items()}


def effects_table(
    title: str,
    labels: Sequence[str],
    effects: Effects,
    note: str = "",
    first: str = "edit",
    nulls: Mapping[int, tuple[Interval, Interval]] | None = None,
) -> Table:
    """A row an edit: its KL and what becomes of the perplexity; with `nulls`, what `nulled` says of the small ones."""
    columns = [
        first,
        "KL in nats per token",
        *(["its null edit's", "beyond that"] if nulls else []),
        "perplexity / original",
    ]
    rows = tuple(
        (
            label,
            effects.kl_interval(place),
            *(nulls.get(place, (None, None)) if nulls else ()),
            effects.perplexity_ratio(place),
        )
        for place, label in enumerate(labels)
    )
    if nulls:
        note += f" {NULL_NOTE}"
    return Table(title=title, columns=tuple(columns), rows=rows, note=note.strip())


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
