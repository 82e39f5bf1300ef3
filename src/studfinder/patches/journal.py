"""The patch journal: the one place that changes a model and takes it back.

    with Journal(lm.model) as journal:
        journal.write("model.layers.0.mlp.down_proj.weight", 0, (3, 5))   # a number, or a whole tensor
        journal.replace("lm_head.weight", tensor)                        # another tensor in its place
        journal.set(lm.model.config, "use_cache", False)                 # an attribute
        journal.hook(module, function)

Whatever ends the block, all of it is undone in reverse, bit by bit: an exception, a signal at any moment, an undo step
that fails (the others are still taken, then it is raised). Journals of one model may end in any order: what the later
ones changed in the same places is lifted off and laid on again. Another thread than the one that has a journal of the
model open is refused, because both would run each other's changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.patches.interrupts import Open, held

_MISSING: Any = object()
_OPEN: list[Journal] = []
_SHARED: dict[tuple[int, Hashable], tuple[list[Journal], Journal]] = {}
_Places = set[Hashable]
_TABLES = ("_parameters", "_buffers", "_modules")


def any_open() -> bool:
    """Whether any model is changed now."""
    return bool(_OPEN)


class Journal:
    """What is changed in a model, and what was there before.

    A journal that is not entered keeps no watch for signals and other threads; `close` undoes it all the same.

    Args:
        model: names of parameters and buffers are those of this module; None for a journal of hooks and attributes.

    Raises:
        StudfinderError: on entry, another thread has changed the model and not left yet, or this journal is open
            already; on leaving, what was changed here was replaced by somebody else (it is put back all the same).
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._model = model
        self._records: list[_Write | _Item | _Call] = []
        self._whole: set[int] = set()
        self._thread = threading.current_thread()
        self._home: list[Open] = []
        self._ended: BaseException | None = None
        self._gradients = True

    def __enter__(self) -> Journal:
        with held:
            self._check_entry()
            self._thread, self._home, self._ended = threading.current_thread(), held.open, None
            self._gradients = torch.is_grad_enabled()
            self._home.append(self)
            _OPEN.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        problems = self.close()
        if error is not None and not isinstance(error, GeneratorExit):
            _note(error, problems)
        elif problems:
            _note(problems[0], problems[1:])
            raise problems[0]
        elif error is None and self._ended is not None:
            # Somebody swallowed the interrupt (Python itself does in a callback of the garbage collector): what came
            # after it ran without the changes, so the block must not end as if nothing had been.
            raise self._ended

    def close(self) -> list[BaseException]:
        """Undo everything; gives what went wrong. Nothing happens if it is undone already."""
        with held:
            later = self._later()
            problems = [problem for journal in reversed(later) for problem in journal._swap(reversed)]
            while self._records:
                problems += _tried(self._records.pop().undo)
            problems += [problem for journal in later for problem in journal._swap(iter)]
            self._whole.clear()
            if self in _OPEN:
                _OPEN.remove(self)
                self._home.remove(self)
        return problems

    def end(self, error: BaseException) -> None:
        """Undo everything because of an interrupt, which the block's end raises again if somebody swallows it."""
        with held:
            self._ended = error
            _note(error, self.close())
            torch.set_grad_enabled(self._gradients)  # torch's own contexts do not hold signals back

    # --- what can be changed -----------------------------------------------------------------------------------------

    def write(self, name: str, value: torch.Tensor | float, index: tuple = ()) -> None:
        """Write into a parameter or buffer, in its own layout, with the bits that were there kept.

        Raises:
            StudfinderError: there is none of this name, or it is offloaded: what is written there would be lost.
        """
        with held:
            owner, key = self._find(name)
            table = _table(owner, key)
            tensor = table.get(key)
            if not isinstance(tensor, torch.Tensor):
                raise StudfinderError(f"there is no parameter {name!r} in this model")
            if tensor.is_meta:
                raise StudfinderError(
                    f"{name} is offloaded, so a change of it would be lost",
                    do="Load the model by its name: then it is mapped from its files",
                )
            with _writing(tensor):
                if id(tensor) not in self._whole:
                    self._records.append(_Write(name, table, key, tensor, index, tensor[index].clone()))
                if not index:
                    self._whole.add(id(tensor))
                tensor[index] = value

    @property
    def written(self) -> tuple[str, ...]:
        """The parameters and buffers that were written to, each once."""
        return tuple(dict.fromkeys(record.what for record in self._records if isinstance(record, _Write)))

    def replace(self, name: str, value: torch.Tensor) -> None:
        """Put another tensor in the place of a parameter, of whatever shape; what was tied to it no longer is."""
        owner, key = self._find(name)
        self.set(owner, key, nn.Parameter(value.detach(), requires_grad=False))

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or config; a registered parameter, buffer or module stays registered."""
        name = getattr(type(owner), "attribute_map", {}).get(name, name)  # configs have other names for some
        self.put(_table(owner, name), name, value, f"{type(owner).__name__}.{name}")

    def put(self, table: MutableMapping, key: Any, value: Any, what: str = "") -> None:
        """Set an item of a mapping: a registry, the globals of a file."""
        with held:
            self._records.append(_Item(what or str(key), table, key, value, table.get(key, _MISSING)))
            table[key] = value

    def share(self, table: MutableMapping, key: Any, make: Callable[[], Any]) -> None:
        """Set an item that all models share (a registry of functions): made for the first who wants it there, and
        taken away after the last."""
        with held:
            place = (id(table), key)
            if place not in _SHARED:
                own = Journal()
                own.put(table, key, make())
                _SHARED[place] = ([], own)
            _SHARED[place][0].append(self)
            self.then(partial(_leave_shared, place, self))

    def hook(self, module: nn.Module, function: Callable[..., Any], *, before: bool = False, **options: Any) -> None:
        """Register a forward hook, or one `before` the forward pass; options are torch's."""
        with held:
            register: Any = module.register_forward_pre_hook if before else module.register_forward_hook
            self.then(register(function, **options).remove)

    def then(self, undo: Callable[[], Any]) -> None:
        """Call this on the way back."""
        with held:
            self._records.append(_Call(undo))

    # --- in any order, from any thread -------------------------------------------------------------------------------

    def _check_entry(self) -> None:
        if self in _OPEN:
            raise StudfinderError("these changes are in force already", do="Make another context of them")
        for other in _OPEN:
            if (
                other._model is self._model
                and other._thread is not threading.current_thread()
                and other._thread.is_alive()
            ):
                raise StudfinderError(
                    f"this model is being changed or read in another thread ({other._thread.name})",
                    expected="one thread at a time",
                    do="Wait until it has left, or load the model a second time",
                )

    def _later(self) -> list[Journal]:
        """Journals opened after this one that changed the same places, or what those changed."""
        above = _OPEN[_OPEN.index(self) + 1 :] if self in _OPEN else []
        places, found = self._places if above else set(), []
        for journal in above:
            if places & journal._places:
                places |= journal._places
                found.append(journal)
        return found

    @property
    def _places(self) -> _Places:
        return {place for record in self._records for place in record.places}

    def _swap(self, order: Callable[[list], Iterable[Any]]) -> list[BaseException]:
        return [problem for record in order(self._records) for problem in _tried(record.swap)]

    def _find(self, name: str) -> tuple[nn.Module, str]:
        path, _, key = name.rpartition(".")
        assert self._model is not None
        try:
            return self._model.get_submodule(path), key
        except AttributeError:
            raise StudfinderError(f"there is no parameter {name!r} in this model") from None


@dataclass(eq=False)
class _Write:
    """Numbers in a tensor: `other` are those that do not stand there now."""

    what: str
    table: MutableMapping
    key: str
    tensor: torch.Tensor
    index: tuple
    other: torch.Tensor
    bound: bool = True

    @property
    def places(self) -> _Places:
        return {(id(self.table), self.key), ("storage", self.tensor.untyped_storage().data_ptr())}

    def undo(self) -> None:
        with _writing(self.tensor):
            self.tensor[self.index] = self.other
        if self.table.get(self.key) is not self.tensor:
            if self.bound:
                self.table[self.key] = self.tensor
            raise _replaced(self.what)

    def swap(self) -> None:
        with _writing(self.tensor):
            now = self.tensor[self.index].clone()
            self.tensor[self.index] = self.other
        self.other = now
        # A journal below may just have taken the tensor away: then it is not this one's to bring back.
        self.bound = self.table.get(self.key) is self.tensor


@dataclass(eq=False)
class _Item:
    """An item of a mapping: `other` is what does not stand there now."""

    what: str
    table: MutableMapping
    key: Any
    mine: Any
    other: Any

    @property
    def places(self) -> _Places:
        return {(id(self.table), self.key)}

    def undo(self) -> None:
        now = self._set()
        if now is not self.mine:
            raise _replaced(self.what)

    def swap(self) -> None:
        self.other = self._set()

    def _set(self) -> Any:
        now = self.table.get(self.key, _MISSING)
        if self.other is _MISSING:
            self.table.pop(self.key, None)
        else:
            self.table[self.key] = self.other
        return now


@dataclass(eq=False)
class _Call:
    """A way back that does not depend on its order."""

    undo: Callable[[], Any]
    places: _Places = field(default_factory=set)

    def swap(self) -> None:
        pass


def _table(owner: Any, name: str) -> MutableMapping:
    """The mapping that holds an object's attribute, or would."""
    own = vars(owner)
    return next((own[table] for table in _TABLES if name in own.get(table, ())), own)


def _writing(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    return torch.inference_mode() if tensor.is_inference() else torch.no_grad()


def _leave_shared(place: tuple[int, Hashable], journal: Journal) -> None:
    users, own = _SHARED[place]
    users.remove(journal)
    if not users:
        del _SHARED[place]
        for problem in own.close():
            raise problem


def _tried(step: Callable[[], Any]) -> list[BaseException]:
    try:
        step()
    except BaseException as problem:
        return [problem]
    return []


def _replaced(what: str) -> StudfinderError:
    return StudfinderError(
        f"{what} was replaced by somebody else while it was changed; it is as it was before the change",
        do="Replace it before or after",
    )


def _note(error: BaseException, problems: Iterable[BaseException]) -> None:
    for problem in problems:
        error.add_note(f"while undoing changes of the model: {problem}")
