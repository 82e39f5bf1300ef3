"""How a model calls its blocks: asked of its own forward pass with the blocks passed by, and tried on a few tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.patches import Journal
from studfinder.sites import uncompiled

BlockCall = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class BlockInterface:
    """How a model hands the stream to its blocks and takes it back.

    Attributes:
        where: position or keyword of the stream among a block's arguments.
        forms: by layer, what a block gives: None for the stream alone, else a tuple of so many with the stream first.
        spoils: whether a block writes into the stream that it is given.
    """

    where: int | str
    forms: tuple[int | None, ...]
    spoils: bool

    def stream_in(self, call: BlockCall) -> Any:
        args, kwargs = call
        if isinstance(self.where, str):
            return kwargs[self.where]
        return args[self.where]

    def with_stream(self, call: BlockCall, stream: torch.Tensor) -> BlockCall:
        args, kwargs = call
        stream = stream.clone() if self.spoils else stream
        if isinstance(self.where, str):
            return args, {**kwargs, self.where: stream}
        return (*args[: self.where], stream, *args[self.where + 1 :]), kwargs

    def unspoilt(self, call: BlockCall) -> BlockCall:
        return self.with_stream(call, self.stream_in(call)) if self.spoils else call

    def placeholder(self, layer: int, call: BlockCall) -> Any:
        """What stands for the output of a block that is passed by."""
        form = self.forms[layer]
        return self.stream_in(call) if form is None else (self.stream_in(call), *[None] * (form - 1))


@dataclass(frozen=True)
class BlockLeft:
    """What a block gave, and what was in the mappings that blocks share when it was done."""

    output: Any
    shared: list[dict[Any, Any]]

    def again(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        for mapping, left in zip(shared_mappings(args, kwargs), self.shared, strict=True):
            mapping.update(left)
        return _copied(self.output)


def shared_mappings(args: tuple, kwargs: dict[str, Any]) -> list[Any]:
    """Keys and values that later blocks read again, say."""
    return [value for value in (*args, *kwargs.values()) if isinstance(value, MutableMapping)]


class EnoughBlocks(Exception):
    """What was wanted of the pass is there."""


def stream_of_output(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def _copied(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.clone()
    return type(output)(map(_copied, output)) if type(output) in (tuple, list) else output


def passed_by(
    model: nn.Module,
    modules: Sequence[nn.Module],
    stub: Callable[[int, tuple, dict[str, Any]], Any],
    run: Callable[[], Any],
) -> Any:
    """Run with `stub` in place of every block: it is given how many came before, and the block's arguments. None if it
    ends the pass by EnoughBlocks."""
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
        except EnoughBlocks:
            return None


def asked_calls(
    root: nn.Module, modules: Sequence[nn.Module], options: dict[str, Any], interface: BlockInterface
) -> tuple[BlockCall, ...]:
    """What the model's own code hands each block, apart from the stream."""
    calls: list[BlockCall] = []

    def stub(number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        calls.append((args, kwargs))
        if len(calls) == len(modules):
            raise EnoughBlocks
        return interface.placeholder(number, (args, kwargs))

    passed_by(root, modules, stub, lambda: root(**options))
    if len(calls) != len(modules):
        raise skipping(len(calls), modules)
    return tuple(calls)


def skipping(run: int, modules: Sequence[nn.Module]) -> StudfinderError:
    return StudfinderError(
        f"this model runs {run} of its {len(modules)} blocks on this text", expected="as many on any text"
    )


# --- whether they can be called by themselves ------------------------------------------------------------------------


def rehearsed(lm: LM, modules: Sequence[nn.Module]) -> tuple[list[int], BlockInterface | None, frozenset[str]]:
    """Which layers run, in order; how they are called if the stream is all that changes between them: read off a pass
    over a few tokens, and proven by carrying those through the blocks by hand, None if it is not all; and the names of
    the parameters that are used after the blocks only."""
    ids_BT = (torch.arange(24, device=lm.device) % lm.anatomy.vocabulary).view(2, 12)
    options = {"input_ids": ids_BT, "attention_mask": None, "use_cache": False}
    with _watching(dict.fromkeys(modules)) as (calls, outputs), _FirstUses(lm.model, outputs) as first:
        own = lm.model(**options).logits
    parameters = lm.model.named_parameters(remove_duplicate=False)
    after = frozenset(name for name, one in parameters if first.uses.get(one) == len(outputs))
    layers = _in_order(calls, modules)
    interface = _interface(calls, outputs) if layers == list(range(len(modules))) else None
    proven = interface is not None and _proven(lm, modules, options, interface, calls, own)
    return layers, interface if proven else None, after


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
    interface: BlockInterface,
    calls: Sequence[Any],
    own: torch.Tensor,
) -> bool:
    """Whether the blocks by themselves give the model's own logits, bit by bit."""
    try:
        given = asked_calls(lm.model, modules, options, interface)
        if not all(_same(a, b, interface) for a, b in zip(given, calls, strict=True)):
            return False
        stream = interface.stream_in(given[0])
        for module, call in zip(modules, given, strict=True):
            args, kwargs = interface.with_stream(call, stream)
            output = module(*args, **kwargs)
            stream = stream_of_output(output)
        last = output

        def stub(number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
            return last if number == len(modules) - 1 else interface.placeholder(number, (args, kwargs))

        ours = passed_by(lm.model, modules, stub, lambda: lm.model(**options)).logits
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
        return False  # its code does not take what we hand it: it is to run itself
    return torch.equal(ours.nan_to_num(), own.nan_to_num())


@contextmanager
def _watching(modules: Iterable[nn.Module]) -> Iterator[tuple[list[tuple[nn.Module, BlockCall, int]], list[Any]]]:
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


class _FirstUses(TorchFunctionMode):
    """How many blocks had run when each parameter was first used; one that nobody is seen to use is not there, nor one
    that is brought or cast for a single use: remembered, it would stay in memory."""

    def __init__(self, model: nn.Module, outputs: Sequence[Any]) -> None:
        super().__init__()
        self.own = {id(one) for one in model.parameters()}
        self.outputs = outputs
        self.uses: dict[torch.Tensor, int] = {}

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") != "__get__" or isinstance(result, torch.Tensor):  # not of a dtype, say
            for one in tree_leaves((args, kwargs)):
                if id(one) in self.own:
                    self.uses.setdefault(one, len(self.outputs))
        return result


def _interface(calls: Sequence[Any], outputs: Sequence[Any]) -> BlockInterface | None:
    forms: list[int | None] = []
    for output in outputs:
        if type(output) not in (tuple, torch.Tensor) or not isinstance(stream_of_output(output), torch.Tensor):
            return None
        forms.append(len(output) if isinstance(output, tuple) else None)
    where: set[int | str] = set()
    for (_, (args, kwargs), _), output in zip(calls[1:], outputs, strict=False):
        places = [*enumerate(args), *kwargs.items()]
        found = [place for place, value in places if value is stream_of_output(output)]
        if len(found) != 1:
            return None
        where.update(found)
    if not where:  # one block: its stream is what comes first
        where = {0 if calls[0][1][0] else "hidden_states"}
    if len(where) > 1:
        return None
    interface = BlockInterface(where.pop(), tuple(forms), False)
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
    return BlockInterface(interface.where, interface.forms, spoils)


def _same(given: BlockCall, seen: Any, interface: BlockInterface) -> bool:
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
