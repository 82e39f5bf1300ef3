"""with edited(lm, edits): change exactly those numbers, and leave no bit behind."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn

from studfinder.edits.edit import Edit, SiteEdit, WeightEdit
from studfinder.edits.offloaded import RecomputedRows, offloaded_writer
from studfinder.edits.running import SiteEdits
from studfinder.edits.tied import TiedWeightsWarning, tied_notes
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.sites import Site


class edited:
    """Apply edits while the context lasts: those of weights at once, those of sites in every forward pass, each kind in
    the order given. Contexts nest; an inner one's site edits come after the outer one's. A down projection that is
    offloaded is not written to: its edited output rows are computed again in every pass.

    Every touched weight is saved before it is written and put back bit by bit, and every hook is taken out: after the
    block, through an exception, and through Ctrl-C at any moment. A KeyboardInterrupt can be raised between leaving the
    block and the first line of `__exit__`, where no `finally` would see it; so in the main thread the interrupt handler
    itself undoes everything before it lets the interrupt through (and waits with both while that is being set up).

    Warns:
        TiedWeightsWarning: a parameter is tied to another (a head to its embedding), which is edited with it.

    Raises:
        StudfinderError: nothing to edit, no such parameter, index, site, head or dim, or a weight that is offloaded or
            quantised; on leaving, an edit that changed nothing though the model ran.
    """

    def __init__(self, lm: LM, edits: Edit | Iterable[Edit]) -> None:
        self.edits = (edits,) if isinstance(edits, Edit) else tuple(edits)
        if not self.edits:
            raise StudfinderError("there are no edits", expected="at least one, e.g. sf.zero(finding)")
        self._plan: list[tuple[nn.Parameter, list[tuple], float]] = []
        recomputed: dict[Site, list[WeightEdit]] = {}
        for edit in self.edits:
            if isinstance(edit, WeightEdit):
                places = _index(lm, edit)
                site = offloaded_writer(lm, edit.target.parameter)
                if site is None:
                    self._plan.append((_parameter(lm, edit), places, edit.factor))
                else:
                    recomputed.setdefault(site, []).append(edit)
        for note in tied_notes(lm, self.edits):
            warnings.warn(note, TiedWeightsWarning, stacklevel=2)
        rows = [RecomputedRows(lm, site, edits) for site, edits in recomputed.items()]
        at_sites = [edit for edit in self.edits if isinstance(edit, SiteEdit)]
        self._sites = SiteEdits(lm, at_sites, rows) if at_sites or rows else None
        self._saved: list[tuple[nn.Parameter, list[tuple], list[torch.Tensor]]] = []
        self._previous: Any = None
        self._guarded = False
        self._busy = False
        self._pending: tuple[int, FrameType | None] | None = None
        self._ended = False

    def __enter__(self) -> edited:
        self._guard()
        try:
            self._busy = True
            self._apply()
            self._busy = False
        except BaseException:
            self._leave()
            raise
        if self._pending is not None:
            self._leave()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if kind is None and self._ended:
            # Somebody swallowed the interrupt (Python itself does in a callback of the garbage collector): what came
            # after it ran without the edits, so the block must not end as if nothing had been.
            raise KeyboardInterrupt
        if kind is None and self._sites is not None:
            self._sites.check_done()

    def _apply(self) -> None:
        with torch.no_grad():
            for parameter, places, factor in self._plan:
                old = [parameter[place].clone() for place in places]
                self._saved.append((parameter, places, old))
                for place, values in zip(places, old, strict=True):
                    parameter[place] = 0 if factor == 0 else values * factor
        if self._sites is not None:
            self._sites.enter()

    def _leave(self) -> None:
        """Undo everything, then let an interrupt through that had to wait."""
        self._busy = True
        if self._sites is not None:
            self._sites.leave()
        self._restore()
        self._busy = False
        self._unguard()
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._previous(*pending)

    def _restore(self) -> None:
        with torch.no_grad():
            while self._saved:
                # Written before it is forgotten: if this is interrupted and run again, it is only written twice.
                parameter, places, old = self._saved[-1]
                for place, values in reversed(list(zip(places, old, strict=True))):
                    parameter[place] = values
                if self._saved and self._saved[-1][2] is old:
                    self._saved.pop()

    def _guard(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            if callable(self._previous):
                self._guarded = True
                signal.signal(signal.SIGINT, self._interrupted)

    def _unguard(self) -> None:
        if self._guarded:
            self._guarded = False
            signal.signal(signal.SIGINT, self._previous)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self._pending = (number, frame)
        self._ended = True
        if not self._busy:
            self._leave()


def _named(lm: LM, name: str) -> nn.Parameter:
    try:
        return lm.model.get_parameter(name)
    except AttributeError:
        raise StudfinderError(f"there is no parameter {name!r} in this model") from None


def _parameter(lm: LM, edit: WeightEdit) -> nn.Parameter:
    name = edit.target.parameter
    parameter = _named(lm, name)
    if parameter.is_meta:
        raise StudfinderError(
            f"{name} is offloaded, so an edit of it would be lost",
            expected="a parameter in memory, or a down projection that is no fused expert",
            do="Load the model without offloading to disk",
        )
    if not parameter.is_floating_point():
        raise StudfinderError(f"{name} is quantised ({parameter.dtype})", do="Edit the unquantised model")
    return parameter


def _index(lm: LM, edit: WeightEdit) -> list[tuple]:
    parameter = _named(lm, edit.target.parameter)
    places = []
    for entry in edit.target.entries:
        if len(entry) != parameter.dim() or any(
            at is not None and not 0 <= at < size for at, size in zip(entry, parameter.shape, strict=False)
        ):
            raise StudfinderError(
                f"{list(entry)} is not an index into {edit.target.parameter}",
                expected=f"one within {tuple(parameter.shape)}",
            )
        places.append(tuple(slice(None) if at is None else at for at in entry))
    if not places:
        raise StudfinderError(f"no entries of {edit.target.parameter} are selected", expected="at least one")
    return places
