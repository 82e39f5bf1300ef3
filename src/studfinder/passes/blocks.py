"""The blocks of a model run one at a time, each on states that the caller holds, exactly as the model runs them.

What a block is given besides the residual stream (positions, masks, embeddings it reads again) comes from the model's
own forward pass with its blocks passed by. For nearly every architecture that is the same for whatever the stream
holds, and is asked for once a batch; whether it is, is tried on a few tokens. Where it is not, the model's own code is
run up to the block each time. Either way the logits are bit-equal to a plain forward pass of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from studfinder.models import LM
from studfinder.passes.calls import (
    BlockCall,
    BlockInterface,
    BlockLeft,
    EnoughBlocks,
    asked_calls,
    passed_by,
    rehearsed,
    shared_mappings,
    skipping,
    stream_of_output,
)
from studfinder.passes.head import Head, before_head, head_of
from studfinder.passes.weights import BlockWeights
from studfinder.patches import Journal
from studfinder.sites import ModelCall, entering, quiet, replacing, uncompiled
from studfinder.texts import Batch

State = tuple[Any, ...]
"""What the blocks so far gave: the last one alone where that is all that the next is given, or all of them. Empty in
front of the first block."""


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
    calls: tuple[BlockCall, ...] | None
    call: ModelCall


class Blocks:
    """The blocks of one model.

    Attributes:
        layers: which layer each step is: they run in order, in a few models several times over.
        modules: the module of each step; one may serve several layers.
        head: what turns what the output matrix is given into logits, or None if that is not understood; see `head_of`.
        weights: theirs, brought to where they compute.
        after: names of the parameters that only what comes after the blocks uses.
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
                known = _KNOWN[lm.model] = (key, head_of(lm), *rehearsed(lm, by_layer))
        _, self.head, self.layers, self._interface, self.after = known
        self.modules = [by_layer[layer] for layer in self.layers]
        self.weights = BlockWeights(lm, self.modules)

    @property
    def direct(self) -> bool:
        return self._interface is not None

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return len(self.lm.anatomy.layers)

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
            return Given(batch, options, asked_calls(self.lm.model, self.modules, options, self._interface), call)

    def arguments(self, step: int, given: Given, state: State) -> BlockCall:
        """What a block is called with when the blocks before it gave `state`."""
        if self._interface is not None:
            assert given.calls is not None
            if not state:
                return self._interface.unspoilt(given.calls[step])
            return self._interface.with_stream(given.calls[step], stream_of_output(state[-1]))
        calls: list[BlockCall] = []

        def stub(number: int, args: tuple, kwargs: dict[str, Any]) -> Any:
            if number < step:
                return state[number].again(args, kwargs)
            calls.append((args, kwargs))
            raise EnoughBlocks

        with quiet(self.lm):
            passed_by(self.lm.model, self.modules, stub, lambda: self.lm.model(**given.options))
        if not calls:
            raise skipping(step, self.modules)
        return calls[0]

    def run(self, step: int, given: Given, state: State) -> State:
        """Run a block; taps see it as they see it in a forward pass."""
        args, kwargs = self.arguments(step, given, state)
        entering(self.lm, given.call, self.layers[step])
        with uncompiled():
            output = self.modules[step](*args, **kwargs)
        return (
            (output,)
            if self.direct
            else (*state, BlockLeft(output, [dict(one) for one in shared_mappings(args, kwargs)]))
        )

    def entry(self, given: Given) -> torch.Tensor:
        """The residual stream that enters the first block, where blocks are called directly."""
        assert given.calls is not None
        assert self._interface is not None
        stream: torch.Tensor = self._interface.stream_in(given.calls[0])
        return stream

    def stream(self, state: State) -> torch.Tensor:
        """The residual stream in a state."""
        return stream_of_output(state[-1] if self.direct else state[-1].output)

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
            return passed_by(self.lm.model, self.modules, stub, lambda: self.lm.model(**given.options))

        with quiet(self.lm):
            return run().logits if self.head is None else before_head(self.lm, run)

    def logits(self, last_NX: torch.Tensor) -> torch.Tensor:
        """Logits (...,V) of some of what `last` gave (...,X)."""
        return last_NX if self.head is None else self.head(last_NX)

    def pieces(self, last_NX: torch.Tensor) -> Iterable[torch.Tensor]:
        """The same, of some words of the vocabulary (...,W) after the others."""
        return [last_NX] if self.head is None else self.head.pieces(last_NX)


_Known = tuple[tuple[int, ...], Head | None, list[int], BlockInterface | None, frozenset[str]]
_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _put_back(module: nn.Module, attributes: dict[str, Any]) -> None:
    now = vars(module)
    if now.keys() != attributes.keys() or any(now[name] is not one for name, one in attributes.items()):
        now.clear()
        now.update(attributes)
