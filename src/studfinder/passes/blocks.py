"""The blocks of a model run one at a time, each on states that the caller holds, exactly as the model runs them.

What a block is given besides the residual stream (positions, masks, embeddings it reads again) comes from the model's
own forward pass with its blocks passed by. For nearly every architecture that is the same for whatever the stream
holds, and is asked for once a batch; whether it is, is tried on a few tokens. Where it is not, the model's own code is
run up to the block each time. Either way the logits are bit-equal to a plain forward pass of the same shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.models.carried import at_hand
from studfinder.passes.head import Head, before_head, head_of
from studfinder.patches import Journal
from studfinder.sites import ModelCall, entering, quiet, replacing, uncompiled
from studfinder.texts import Batch

State = tuple[Any, ...]
"""What the blocks so far gave: the last one alone where that is all that the next is given, or all of them. Empty in
front of the first block."""

_Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Given:
    """A batch of windows, ready to be carried through the blocks.

    Attributes:
        batch: the windows.
        options: what the model is called with.
        calls: what each block is given; None where that depends on what other blocks gave.
        call: what taps are told of it.
    """

    batch: Batch
    options: dict[str, Any]
    calls: tuple[_Call, ...] | None
    call: ModelCall


class Blocks:
    """The blocks of one model.

    Attributes:
        layers: which layer each step is: they run in order, in a few models several times over.
        modules: the module of each step; one may serve several layers.
        head: what turns what the output matrix is given into logits, or None if that is not understood; see `head_of`.
        direct: whether blocks can be called with nothing else than what the model's own code gives any of them.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        by_layer = [lm.model.get_submodule(layer.block) for layer in lm.anatomy.layers]
        known = _KNOWN.get(lm.model)
        key = (id(lm.model.get_output_embeddings()), *map(id, by_layer))
        if known is None or known[0] != key:
            with quiet(lm), uncompiled(), torch.inference_mode(False), torch.no_grad(), Journal(lm.model) as journal:
                for module in lm.model.modules():  # a few keep something of the last pass in their attributes
                    journal.then(partial(_put_back, module, dict(vars(module))))
                known = _KNOWN[lm.model] = (key, head_of(lm), *_rehearsed(lm, by_layer))
        _, self.head, self.layers, self._interface = known
        self.modules = [by_layer[layer] for layer in self.layers]

    @property
    def direct(self) -> bool:
        return self._interface is not None

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.lm.anatomy.layers)

    def at_hand(self, step: int) -> AbstractContextManager[Any]:
        """A block's weights where it runs and in the dtype that it computes in, while the context lasts."""
        return at_hand(self.modules[step])

    def begin(self, batch: Batch, *, masked: bool | None = None) -> Given:
        """What the model's own code makes of a batch before its blocks.

        Args:
            batch: windows, padded on the right, where a causal model's real tokens see nothing of it.
            masked: hand the model a mask that tells padding from tokens, for changes that look at all tokens, and for
                models that are not causal. By default where something is being replaced. There is none where no token
                is padding.
        """
        mask = batch.mask_BT if (replacing(self.lm) if masked is None else masked) else None
        ids_BT = batch.input_ids_BT.to(self.lm.device, copy=True)  # gradients cannot take what is of inference mode
        mask = None if mask is None else mask.long().to(self.lm.device)
        options = {"input_ids": ids_BT, "attention_mask": mask, "use_cache": False}
        told = None if batch.mask_BT is None else batch.mask_BT.long().to(self.lm.device)
        rows, tokens = ids_BT.shape
        call = ModelCall(rows, tokens, 0, told, False, None, ids_BT)
        if self._interface is None:
            return Given(batch, options, None, call)
        with quiet(self.lm):
            return Given(batch, options, _asked(self.lm.model, self.modules, options, self._interface), call)

    def arguments(self, step: int, given: Given, state: State) -> _Call:
        """What a block is called with when the blocks before it gave `state`."""
        if self._interface is not None:
            assert given.calls is not None
            if not state:
                return self._interface.unspoilt(given.calls[step])
            return self._interface.with_stream(given.calls[step], _stream(state[-1]))
        calls: list[_Call] = []

        def stub(number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
            if number < step:
                return state[number].again(args, kwargs)
            calls.append((args, kwargs))
            raise _Enough

        with quiet(self.lm):
            _passed_by(self.lm.model, self.modules, stub, lambda: self.lm.model(**given.options))
        if not calls:
            raise _skipping(step, self.modules)
        return calls[0]

    def run(self, step: int, given: Given, state: State) -> State:
        """Run a block; taps see it as they see it in a forward pass."""
        args, kwargs = self.arguments(step, given, state)
        entering(self.lm, given.call, self.layers[step])
        with uncompiled():
            output = self.modules[step](*args, **kwargs)
        return (output,) if self.direct else (*state, _Left(output, [dict(one) for one in _shared(args, kwargs)]))

    def entry(self, given: Given) -> torch.Tensor:
        """The residual stream that enters the first block, where blocks are called directly."""
        assert given.calls is not None
        assert self._interface is not None
        stream: torch.Tensor = self._interface.stream_in(given.calls[0])
        return stream

    def stream(self, state: State) -> torch.Tensor:
        """The residual stream in a state."""
        return _stream(state[-1] if self.direct else state[-1].output)

    def last(self, given: Given, state: State) -> torch.Tensor:
        """What the model makes of the last block's output: what its output matrix is given (B,T,C), or the logits
        (B,T,V) of a model whose `head` is None."""
        depth, interface = len(self.modules), self._interface

        def stub(number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
            if interface is None:
                return state[number].again(args, kwargs)
            if number < depth - 1:
                return interface.placeholder(number, (args, kwargs))
            return state[-1]

        def run() -> Any:
            return _passed_by(self.lm.model, self.modules, stub, lambda: self.lm.model(**given.options))

        with quiet(self.lm):
            return run().logits if self.head is None else before_head(self.lm, run)

    def logits(self, last_NX: torch.Tensor) -> torch.Tensor:
        """Logits (...,V) of some of what `last` gave (...,X)."""
        return last_NX if self.head is None else self.head(last_NX)

    def pieces(self, last_NX: torch.Tensor) -> Iterable[torch.Tensor]:
        """The same, of some words of the vocabulary (...,W) after the others."""
        return [last_NX] if self.head is None else self.head.pieces(last_NX)


# --- how blocks are called -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Interface:
    """How a model hands the stream to its blocks and takes it back.

    Attributes:
        where: position or keyword of the stream among a block's arguments.
        forms: by layer, what a block gives: None for the stream alone, else a tuple of so many with the stream first.
        spoils: whether a block writes into the stream that it is given.
    """

    where: int | str
    forms: tuple[int | None, ...]
    spoils: bool

    def stream_in(self, call: _Call) -> Any:
        args, kwargs = call
        if isinstance(self.where, str):
            return kwargs[self.where]
        return args[self.where]

    def with_stream(self, call: _Call, stream: torch.Tensor) -> _Call:
        args, kwargs = call
        stream = stream.clone() if self.spoils else stream
        if isinstance(self.where, str):
            return args, {**kwargs, self.where: stream}
        return (*args[: self.where], stream, *args[self.where + 1 :]), kwargs

    def unspoilt(self, call: _Call) -> _Call:
        return self.with_stream(call, self.stream_in(call)) if self.spoils else call

    def placeholder(self, layer: int, call: _Call) -> Any:
        """What stands for the output of a block that is passed by."""
        form = self.forms[layer]
        return self.stream_in(call) if form is None else (self.stream_in(call), *[None] * (form - 1))


_Known = tuple[tuple[int, ...], Head | None, list[int], _Interface | None]
_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Left:
    """What a block gave, and what was in the mappings that blocks share when it was done."""

    output: Any
    shared: list[dict[Any, Any]]

    def again(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        for mapping, left in zip(_shared(args, kwargs), self.shared, strict=True):
            mapping.update(left)
        return _copied(self.output)


def _shared(args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    """Keys and values that later blocks read again, say."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, MutableMapping)]


def _put_back(module: nn.Module, attributes: dict[str, Any]) -> None:
    now = vars(module)
    if now.keys() != attributes.keys() or any(now[name] is not one for name, one in attributes.items()):
        now.clear()
        now.update(attributes)


class _Enough(Exception):
    """What was wanted of the pass is there."""


def _stream(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def _copied(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.clone()
    return type(output)(map(_copied, output)) if type(output) in (tuple, list) else output


def _passed_by(
    model: nn.Module,
    modules: Sequence[nn.Module],
    stub: Callable[[int, tuple, dict[str, Any]], Any],
    run: Callable[[], Any],
) -> Any:
    """Run with `stub` in place of every block: it is given how many came before, and the block's arguments. None if it
    ends the pass by _Enough."""
    calls = 0

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return stub(calls - 1, args, kwargs)

    with uncompiled(), Journal(model) as journal:
        for module in dict.fromkeys(modules):
            journal.set(module, "forward", forward)
        try:
            return run()
        except _Enough:
            return None


def _asked(
    root: nn.Module, modules: Sequence[nn.Module], options: dict[str, Any], interface: _Interface
) -> tuple[_Call, ...]:
    """What the model's own code hands each block, apart from the stream."""
    calls: list[_Call] = []

    def stub(number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        calls.append((args, kwargs))
        if len(calls) == len(modules):
            raise _Enough
        return interface.placeholder(number, (args, kwargs))

    _passed_by(root, modules, stub, lambda: root(**options))
    if len(calls) != len(modules):
        raise _skipping(len(calls), modules)
    return tuple(calls)


def _skipping(run: int, modules: Sequence[nn.Module]) -> StudfinderError:
    return StudfinderError(
        f"this model runs {run} of its {len(modules)} blocks on this text", expected="as many on any text"
    )


# --- whether they can be called by themselves ------------------------------------------------------------------------


def _rehearsed(lm: LM, modules: Sequence[nn.Module]) -> tuple[list[int], _Interface | None]:
    """Which layers run, in order, and how they are called if the stream is all that changes between them: read off a
    pass over a few tokens, and proven by carrying those through the blocks by hand. None if it is not all."""
    ids_BT = (torch.arange(24, device=lm.device) % lm.anatomy.vocabulary).view(2, 12)
    options = {"input_ids": ids_BT, "attention_mask": None, "use_cache": False}
    with _watching(dict.fromkeys(modules)) as (calls, outputs):
        own = lm.model(**options).logits
    layers = _in_order(calls, modules)
    interface = _interface(calls, outputs) if layers == list(range(len(modules))) else None
    return layers, interface if interface and _proven(lm, modules, options, interface, calls, own) else None


def _in_order(calls: Sequence[Any], modules: Sequence[nn.Module]) -> list[int]:
    serves: dict[nn.Module, list[int]] = {}
    for layer, module in enumerate(modules):
        serves.setdefault(module, []).append(layer)
    times: Counter[nn.Module] = Counter()
    order = []
    for module, _, _ in calls:
        order.append(serves[module][times[module] % len(serves[module])])
        times[module] += 1
    return order


def _proven(
    lm: LM,
    modules: Sequence[nn.Module],
    options: dict[str, Any],
    interface: _Interface,
    calls: Sequence[Any],
    own: torch.Tensor,
) -> bool:
    """Whether the blocks by themselves give the model's own logits, bit by bit."""
    try:
        given = _asked(lm.model, modules, options, interface)
        if not all(_same(a, b, interface) for a, b in zip(given, calls, strict=True)):
            return False
        stream = interface.stream_in(given[0])
        for module, call in zip(modules, given, strict=True):
            args, kwargs = interface.with_stream(call, stream)
            output = module(*args, **kwargs)
            stream = _stream(output)
        last = output

        def stub(number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
            return last if number == len(modules) - 1 else interface.placeholder(number, (args, kwargs))

        ours = _passed_by(lm.model, modules, stub, lambda: lm.model(**options)).logits
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
        return False  # its code does not take what we hand it: it is to run itself
    return torch.equal(ours.nan_to_num(), own.nan_to_num())


@contextmanager
def _watching(modules: Iterable[nn.Module]) -> Iterator[tuple[list[tuple[nn.Module, _Call, int]], list[Any]]]:
    """The calls of blocks, with the version of the stream before, and what they gave."""
    calls: list[Any] = []
    outputs: list[Any] = []

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append((module, (args, kwargs), {id(x): x._version for x in _tensors((args, kwargs))}))

    def after(_module: nn.Module, _args: tuple, output: Any) -> None:
        outputs.append(output)

    with Journal() as journal:
        for module in modules:
            journal.hook(module, before, before=True, with_kwargs=True)
            journal.hook(module, after)
        yield calls, outputs


def _interface(calls: Sequence[Any], outputs: Sequence[Any]) -> _Interface | None:
    forms: list[int | None] = []
    for output in outputs:
        if type(output) not in (tuple, torch.Tensor) or not isinstance(_stream(output), torch.Tensor):
            return None
        forms.append(len(output) if isinstance(output, tuple) else None)
    where: set[int | str] = set()
    for (_, (args, kwargs), _), output in zip(calls[1:], outputs, strict=False):
        places = [*enumerate(args), *kwargs.items()]
        found = [place for place, value in places if value is _stream(output)]
        if len(found) != 1:
            return None
        where.update(found)
    if not where:  # one block: its stream is what comes first
        where = {0 if calls[0][1][0] else "hidden_states"}
    if len(where) > 1:
        return None
    interface = _Interface(where.pop(), tuple(forms), False)
    spoils = False
    for _, call, versions in calls:
        args, kwargs = call
        if isinstance(interface.where, int) and interface.where >= len(args):
            return None
        if isinstance(interface.where, str) and interface.where not in kwargs:
            return None
        stream = interface.stream_in(call)
        for tensor in _tensors(call):
            if tensor._version != versions[id(tensor)]:
                if tensor is not stream:
                    return None
                spoils = True
    return _Interface(interface.where, interface.forms, spoils)


def _same(given: _Call, seen: Any, interface: _Interface) -> bool:
    """Whether a block was given the same besides the stream."""
    nothing = torch.zeros(())
    one, other = (interface.with_stream(call, nothing) for call in (given, seen[1]))
    return _equal(one[0], other[0]) and _equal(one[1], other[1])


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    # Another object may carry something from block to block.
    return isinstance(one, _PLAIN) and bool(one == other)


_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for one in value for tensor in _tensors(one)] if isinstance(value, tuple | list) else []
