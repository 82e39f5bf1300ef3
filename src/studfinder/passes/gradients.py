"""The backward pass, block by block: each block is run again from its stored input, differentiated, and let go.

Memory holds the streams that enter the blocks (windows x layers x T x C) and the graph of one block. Blocks that cannot
be called by themselves (see `Blocks.direct`) are differentiated all at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.passes.blocks import Blocks, Given, State
from studfinder.passes.graphs import (
    Found,
    Wanted,
    depending,
    differentiable,
    from_head,
    full,
    holders,
    pulled,
    reached,
    summed,
)
from studfinder.passes.head import before_head
from studfinder.passes.objectives import Objective
from studfinder.passes.spool import Spool
from studfinder.patches import Journal
from studfinder.texts import Batch


@dataclass(frozen=True)
class Gradients:
    """Gradients of the sum over one batch.

    Attributes:
        layer: the block; the number of layers for what comes after the blocks, -1 for what comes before.
        batch: the windows.
        draw: which of the objective's numbers.
        parameters: by name, in fp32 (fp64 if the model is); zeros where nothing depends on a parameter.
        stream: of the residual stream that enters there, (B,T,C) or as the model shapes it; None at -1. That is the
            site `embedding` for layer 0, and `residual[layer - 1]` for the others.
    """

    layer: int
    batch: Batch
    draw: int
    parameters: dict[str, torch.Tensor]
    stream: torch.Tensor | None


def gradients(
    lm: LM, batches: Sequence[Batch], of: Objective, *, parameters: Sequence[str] | None = None
) -> Iterator[Gradients]:
    """Gradients of an objective, summed over the tokens of each batch, from the head down to the embedding.

    Every parameter comes once a batch and draw: with the lowest layer that uses it, summed over all places that do (a
    tied embedding comes last, with what its lookup and the head add). All batches of a layer come before the layer
    below; where `Blocks.direct` is False, all layers of a batch before the next batch, and all parameters outside the
    blocks at -1. They are computed in the model's dtype; what several places or slices add is summed in fp32. The model
    is left as it was, and is so whenever the caller holds a result. Readers of taps see each block twice.

    Args:
        batches: windows, padded on the right; padding takes no part.
        of: what is differentiated, e.g. `likelihood()` or `sampled_likelihood(draws=4)`.
        parameters: names; by default all of floating-point numbers. None of them for gradients of the stream only.

    Raises:
        StudfinderError: no such parameter, or one that is quantised or offloaded.
    """
    wanted = _wanted(lm, parameters)
    blocks = Blocks(lm)
    if blocks.direct:
        return _Descent(blocks, batches, of, wanted).run()
    return _at_once(blocks, batches, of, wanted)


def _wanted(lm: LM, names: Sequence[str] | None) -> Wanted:
    known = dict(lm.model.named_parameters())
    if names is None:
        names = [name for name, one in known.items() if one.is_floating_point()]
    for name in names:
        if name not in known:
            raise StudfinderError(
                f"there is no parameter {name!r} in this model", do="Call a tied one by its first name"
            )
        if known[name].is_meta:
            raise StudfinderError(f"{name} is offloaded, so it has no gradient", do="Load the model without offloading")
        if known[name].is_inference():
            raise StudfinderError(f"{name} was made in inference mode", do="Load the model outside it")
        if not known[name].is_floating_point():
            raise StudfinderError(f"{name} is quantised ({known[name].dtype})", do="Load a dequantised copy")
    return {name: known[name] for name in names}


# --- block by block -------------------------------------------------------------------------------------------------


class _Descent:
    """Places are the blocks by number, their number for what comes after them, and -1 for what comes before."""

    def __init__(self, blocks: Blocks, batches: Sequence[Batch], of: Objective, wanted: Wanted) -> None:
        self.blocks, self.batches, self.of, self.wanted = blocks, batches, of, wanted
        held = holders(blocks.modules)
        self.uses = {name: set(held.get(id(parameter), ())) for name, parameter in wanted.items()}
        """The places where a parameter counts: blocks that hold it, and what depends on it in the first batch."""
        self.given: list[Given] = []
        self.ends: list[Any] = []
        self.entering: dict[tuple[int, int], torch.Tensor] = {}
        """By place and batch: the stream that enters."""
        self.slopes: dict[tuple[int, int], Found] = {}
        """By place and batch: for each draw, the gradient of the stream that leaves."""
        self.beside: list[list[torch.Tensor]] = []
        """By batch: what blocks are given besides the stream and depends on parameters, as leaves of their graphs."""
        self.beside_slopes: list[dict[int, Found]] = []
        """By batch and draw: the gradients of those."""

    def run(self) -> Iterator[Gradients]:
        for batch in self.batches:
            self._begin(batch)
        self._forward()
        for place in range(self.blocks.depth, -2, -1):
            with self.blocks.weights.near(place) if 0 <= place < self.blocks.depth else nullcontext():
                for number, batch in enumerate(self.batches):
                    for draw, (found, stream) in enumerate(self._backward(place, number)):
                        yield Gradients(place, batch, draw, found, stream)
            self._forget(place)

    def _begin(self, batch: Batch) -> None:
        with differentiable(self.blocks.lm, self.wanted):
            given = self.blocks.begin(batch)
            found = depending(given)
        if not self.given:
            self._watch(-1, found)
        leaves = {id(one): one.detach().requires_grad_() for one in found}
        calls = tree_map_only(torch.Tensor, lambda one: leaves.get(id(one), one), given.calls)
        self.given.append(replace(given, calls=calls))
        self.beside.append(list(leaves.values()))
        self.beside_slopes.append({})

    def _forward(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            spool = Spool(self.blocks.lm)
            states: list[State] = [(self.blocks.entry(given).detach(),) for given in self.given]
            for step in range(self.blocks.depth):
                with self.blocks.weights.at_hand(step):
                    for number, given in enumerate(self.given):
                        self.entering[step, number] = self.blocks.stream(states[number])
                        states[number] = spool.keep(self.blocks.run(step, given, states[number]))
            for number, state in enumerate(states):
                self.entering[self.blocks.depth, number] = self.blocks.stream(state)
                self.ends.append(state[-1])

    def _backward(self, place: int, number: int) -> list[tuple[dict[str, torch.Tensor], torch.Tensor | None]]:
        """For every draw, gradients of the parameters that count here and nowhere below, and of what enters."""
        with differentiable(self.blocks.lm, self.wanted):
            outputs, inputs = self._graph(place, number)
            if not number and place >= 0:
                self._watch(place, outputs)
            own = [name for name, places in self.uses.items() if min(places, default=-1) == place]
            totals: list[dict[str, torch.Tensor]] = []
            for found in self._pulled(place, number, outputs, inputs, own):
                if place >= 0:
                    self.slopes.setdefault((place - 1, number), []).append(found[0])
                    sums = self.beside_slopes[number].setdefault(len(totals), [None] * (len(inputs) - 1))
                    sums[:] = map(summed, sums, found[1 : len(inputs)])
                totals.append(
                    {name: full(one, self.wanted[name]) for name, one in zip(own, found[len(inputs) :], strict=True)}
                )
            for other in sorted({one for name in own for one in self.uses[name]} - {place}):
                shared = [name for name in own if other in self.uses[name]]
                outputs, inputs = self._graph(other, number)
                for total, found in zip(totals, self._pulled(other, number, outputs, inputs, shared), strict=True):
                    for name, one in zip(shared, found[len(inputs) :], strict=True):
                        if one is not None:
                            total[name] = total[name] + one  # not in place: it may be the very tensor of another
        streams = self.slopes[place - 1, number] if place >= 0 else [None] * len(totals)
        return list(zip(totals, streams, strict=True))

    def _graph(self, place: int, number: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """What a place gives, and the leaves that it depends on besides parameters: what enters, first."""
        if place < 0:
            given = self.blocks.begin(self.batches[number])
            return [self.blocks.entry(given), *depending(given)], []
        stream = self.entering[place, number].detach().requires_grad_()
        inputs = [stream, *self.beside[number]]
        if place < self.blocks.depth:
            return [self.blocks.stream(self.blocks.run(place, self.given[number], (stream,)))], inputs
        end = self.ends[number]
        end = stream if isinstance(end, torch.Tensor) else (stream, *end[1:])
        return [self.blocks.last(self.given[number], (end,))], inputs

    def _pulled(
        self, place: int, number: int, outputs: list[torch.Tensor], inputs: list[torch.Tensor], names: list[str]
    ) -> Iterator[Found]:
        """For every draw, gradients of the inputs and of some parameters, in this order."""
        parameters = [self.wanted[name] for name in names]
        if place == self.blocks.depth:
            yield from from_head(self.blocks, outputs[0], self.batches[number], self.of, inputs, parameters)
            return
        slopes: list[Found] = [[slope] for slope in self.slopes[place, number]]
        if place < 0:
            slopes = [[*one, *self.beside_slopes[number][draw]] for draw, one in enumerate(slopes)]
        for draw, of_outputs in enumerate(slopes):
            yield pulled(outputs, of_outputs, [*inputs, *parameters], more=draw < len(slopes) - 1)

    def _watch(self, place: int, outputs: Sequence[torch.Tensor]) -> None:
        """See what some outputs depend on."""
        if place == self.blocks.depth:
            outputs = [self.blocks.logits(outputs[0][0, :1])]
        leaves = reached(outputs)
        for name, parameter in self.wanted.items():
            if id(parameter) in leaves:
                assert place < 0 or min(self.uses[name], default=place) <= place, f"{name} is used by block {place} too"
                self.uses[name].add(place)

    def _forget(self, place: int) -> None:
        """Let go of what was stored for a place, unless a parameter that counts there counts below, too."""
        if any(place in places and min(places) < place for places in self.uses.values()):
            return
        for number in range(len(self.batches)):
            self.entering.pop((place, number), None)
            self.slopes.pop((place, number), None)


# --- all at once ----------------------------------------------------------------------------------------------------


def _at_once(blocks: Blocks, batches: Sequence[Batch], of: Objective, wanted: Wanted) -> Iterator[Gradients]:
    lm, depth = blocks.lm, blocks.depth
    by_layer = [lm.model.get_submodule(layer.block) for layer in lm.anatomy.layers]
    held = holders(by_layer)
    place_of = {name: min(held.get(id(parameter), {-1})) for name, parameter in wanted.items()}
    # The embedding takes gradients even if nobody wants them: else the stream that enters would not.
    taking = {**wanted, "": lm.model.get_input_embeddings().weight}
    for batch in batches:
        with differentiable(lm, taking), _streams(by_layer) as streams:
            options = blocks.begin(batch).options

            def run(options: dict[str, Any] = options) -> Any:
                return lm.model(**options)

            last = run().logits if blocks.head is None else before_head(lm, run)
            uses = [(place, one) for place, found in streams.items() for one in found if one.requires_grad]
            inputs = [one for _, one in uses]
            drawn = list(from_head(blocks, last, batch, of, inputs, list(wanted.values())))
        for place in range(depth, -2, -1):
            for draw, found in enumerate(drawn):
                entering = [one for (at, _), one in zip(uses, found, strict=False) if at == place and one is not None]
                named = zip(wanted.items(), found[len(inputs) :], strict=True)
                own = {name: full(one, weight) for (name, weight), one in named if place_of[name] == place}
                yield Gradients(place, batch, draw, own, sum(entering[1:], entering[0]) if entering else None)


@contextmanager
def _streams(blocks: Sequence[nn.Module]) -> Iterator[dict[int, list[torch.Tensor]]]:
    """The streams that enter each block and what comes after, of every time it runs."""
    found: dict[int, list[torch.Tensor]] = {place: [] for place in range(len(blocks) + 1)}
    serves = {block: [layer for layer, one in enumerate(blocks) if one is block] for block in blocks}
    times: Counter[nn.Module] = Counter()

    def before(_block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not times.total():
            found[0].append(args[0] if args else kwargs["hidden_states"])

    def after(block: nn.Module, _args: tuple, output: Any) -> None:
        found[serves[block][times[block] % len(serves[block])] + 1].append(
            output if isinstance(output, torch.Tensor) else output[0]
        )
        times[block] += 1

    with Journal() as journal:
        for block in serves:
            journal.hook(block, before, before=True, with_kwargs=True)
            journal.hook(block, after)
        yield found
