"""with edited(lm, edits): change exactly those numbers, and leave no bit behind."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

import torch
from torch import nn

from studfinder.edits.edit import Edit, EditList, NullEdit, SiteEdit, WeightEdit
from studfinder.edits.neighbours import Indices
from studfinder.edits.offloaded import RecomputedRows, offloaded_writer
from studfinder.edits.running import SiteEdits
from studfinder.edits.spec import edits_of
from studfinder.edits.tied import TiedWeightsWarning, tied_notes
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.sites import Journal, Site
from studfinder.visible import visible

GivenEdits = Edit | EditList | str | Iterable["GivenEdits"]
"""One edit, a line of text, or any list of those, e.g. [zero(a), mean(b), "noise=0.1:residual[3].all"]."""


class edited:
    """Apply edits while the context lasts: those of weights at once, those of sites in every forward pass, each kind in
    the order given. Contexts nest; an inner one's site edits come after the outer one's. A down projection that is
    offloaded is not written to: its edited output rows are computed again in every pass.

    All of it is undone bit by bit, whatever ends the block, a Ctrl-C at any moment included (see `Journal`).

    Args:
        edits: an edit, what `zero`, `mean` and so on return, a line of text as `parse_edits` reads it, or a list of
            those.

    Warns:
        TiedWeightsWarning: a parameter is tied to another (a head to its embedding), which is edited with it.

    Raises:
        StudfinderError: nothing to edit, something that is no edit, no such parameter, index, site, head or dim, or a
            weight that is offloaded or quantised; on leaving, an edit that changed nothing though the model ran.
    """

    def __init__(self, lm: LM, edits: GivenEdits) -> None:
        self.edits = edits_of(lm, edits)
        self._lm = lm
        self._plan: list[tuple[WeightEdit | NullEdit, list[Indices]]] = []
        recomputed: dict[Site, list[WeightEdit | NullEdit]] = {}
        for edit in self.edits:
            if not isinstance(edit, SiteEdit):
                places = _places(lm, edit)
                site = offloaded_writer(lm, edit.target.parameter)
                if site is None:
                    _check(lm, edit.target.parameter)
                    self._plan.append((edit, places))
                else:
                    recomputed.setdefault(site, []).append(edit)
        for note in tied_notes(lm, self.edits):
            warnings.warn(visible(note), TiedWeightsWarning, stacklevel=2)
        rows = [RecomputedRows(lm, site, edits) for site, edits in recomputed.items()]
        at_sites = [edit for edit in self.edits if isinstance(edit, SiteEdit)]
        self._sites = SiteEdits(lm, at_sites, rows) if at_sites or rows else None
        self._context: AbstractContextManager[None] | None = None

    def __enter__(self) -> edited:
        if self._context is not None:
            raise StudfinderError("these edits are in force already", do="Make another edited(...) of them")
        self._context = self.applied()
        try:
            self._context.__enter__()
        except BaseException:
            self._context = None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(kind, error, trace)
        if kind is None:
            self.check_done()

    def check_done(self) -> None:
        """Raise StudfinderError if the model ran and an edit changed nothing."""
        if self._sites is not None:
            self._sites.check_done()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The same for a part of a forward pass: nobody asks yet whether everything has changed something."""
        with Journal(self._lm.model) as journal:
            for edit, places in self._plan:
                parameter = self._lm.model.get_parameter(edit.target.parameter)
                stored = getattr(parameter, "stored_dtype", parameter.dtype)
                old = [parameter.detach()[place].to(stored) for place in places]
                new = [
                    edit.changed(*both).to(parameter.dtype) for both in zip(old, places, strict=True)
                ]  # they overlap
                for place, values in zip(places, new, strict=True):
                    journal.write(edit.target.parameter, values, place)
            if self._sites is None:
                yield
            else:
                with self._sites.replacing():
                    yield


def _named(lm: LM, name: str) -> nn.Parameter:
    try:
        return lm.model.get_parameter(name)
    except AttributeError:
        raise StudfinderError(f"there is no parameter {name!r} in this model") from None


def _check(lm: LM, name: str) -> None:
    parameter = _named(lm, name)
    if parameter.is_meta:
        raise StudfinderError(
            f"{name} is offloaded, so an edit of it would be lost",
            expected="a parameter in memory, or a down projection that is no fused expert",
            do="Load the model without offloading to disk",
        )
    if not parameter.is_floating_point():
        raise StudfinderError(f"{name} is quantised ({parameter.dtype})", do="Edit the unquantised model")


def _places(lm: LM, edit: WeightEdit | NullEdit) -> list[Indices]:
    """Where to write: single entries all at once, rows and columns one by one."""
    parameter = _named(lm, edit.target.parameter)
    single: list[tuple[int, ...]] = []
    places: list[Indices] = []
    for entry in edit.target.entries:
        if len(entry) != parameter.dim() or any(
            at is not None and not 0 <= at < size for at, size in zip(entry, parameter.shape, strict=False)
        ):
            raise StudfinderError(
                f"{list(entry)} is not an index into {edit.target.parameter}",
                expected=f"one within {tuple(parameter.shape)}",
            )
        if None in entry:
            places.append(tuple(slice(None) if at is None else at for at in entry))
        else:
            single.append(tuple(at for at in entry if at is not None))
    if single:
        places.append(tuple(torch.tensor(axis) for axis in zip(*single, strict=True)))
    if not places:
        raise StudfinderError(f"no entries of {edit.target.parameter} are selected", expected="at least one")
    return places
