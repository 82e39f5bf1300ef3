"""with edited(lm, edits): change exactly those numbers, and leave no bit behind."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
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
    offloaded is not written to: its edited output rows are computed again in every pass. Others of them can be edited
    in a pass that brings them in block by block (see `stream_of`), which all measures of KL and likelihood are.

    All of it is undone bit by bit, whatever ends the block, a Ctrl-C at any moment included (see `Journal`).

    Args:
        edits: an edit, what `zero`, `mean` and so on return, a line of text as `parse_edits` reads it, or a list of
            those.

    Warns:
        TiedWeightsWarning: a parameter is tied to another (a head to its embedding), which is edited with it.

    Raises:
        StudfinderError: nothing to edit, something that is no edit, no such parameter, index, site, head or dim, or a
            weight that is quantised; on entering, one that is offloaded and no down projection; on leaving, an edit
            that changed nothing though the model ran.
    """

    def __init__(self, lm: LM, edits: GivenEdits) -> None:
        self.edits = edits_of(lm, edits)
        self._lm = lm
        self._plan: dict[int, tuple[WeightEdit | NullEdit, list[Indices]]] = {}
        for number, edit in enumerate(self.edits):
            if not isinstance(edit, SiteEdit):
                self._plan[number] = edit, _places(lm, edit)
                _check(lm, edit.target.parameter)
        for note in tied_notes(lm, self.edits):
            warnings.warn(visible(note), TiedWeightsWarning, stacklevel=2)
        at_sites = [edit for edit in self.edits if isinstance(edit, SiteEdit)]
        self._sites = SiteEdits(lm, at_sites) if at_sites else None
        self._context: AbstractContextManager[None] | None = None

    def __enter__(self) -> edited:
        if self._context is not None:
            raise StudfinderError("these edits are in force already", do="Make another edited(...) of them")
        self._context = self._applied_to_all()
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

    def _applied_to_all(self) -> AbstractContextManager[None]:
        """For passes that bring offloaded weights in for each use and let them go: what is written there is lost."""
        recomputed: dict[Site, list[WeightEdit | NullEdit]] = {}
        here = []
        for edit, places in self._plan.values():
            site = offloaded_writer(self._lm, edit.target.parameter)
            if site is None:
                here.append((edit, places))
            else:
                recomputed.setdefault(site, []).append(edit)
        if recomputed:
            at_sites = [edit for edit in self.edits if isinstance(edit, SiteEdit)]
            rows = [RecomputedRows(self._lm, site, edits) for site, edits in recomputed.items()]
            self._sites = SiteEdits(self._lm, at_sites, rows)
        return self._changed(here)

    def applied(self, wanted: Callable[[int], bool]) -> AbstractContextManager[None]:
        """The same for a part of a forward pass whose weights are at hand: nobody asks yet whether everything has
        changed something.

        Args:
            wanted: whether the edit of this number changes a weight that is used there.
        """
        return self._changed([self._plan[number] for number in self._plan if wanted(number)])

    @contextmanager
    def _changed(self, plan: list[tuple[WeightEdit | NullEdit, list[Indices]]]) -> Iterator[None]:
        with Journal(self._lm.model) as journal:
            for edit, places in plan:
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
