"""Streams: changed copies of one model, carried through its blocks side by side, each from where it first differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from studfinder.models import LM
from studfinder.passes.blocks import Blocks, Given, State
from studfinder.passes.forks import part_run, recorded, replayed
from studfinder.passes.spool import STATES_AT_ONCE, Spool
from studfinder.sites import watched
from studfinder.texts import Batch


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What one changed copy of a model is.

    Attributes:
        enter: the change in force in a block, as a context manager, given the layer: -1 for what comes before the
            blocks, their number for what comes after.
        first, last: the layers in which it is to be entered; before `first` nothing differs.
        touches: names of modules in block `first`: none of its others is changed. None if that is not known.
        masked: whether the change asks which tokens are padding.
        done: called when all text has been read, e.g. to say that a change has changed nothing.
    """

    enter: Callable[[int], AbstractContextManager[Any]]
    first: int
    last: int
    touches: tuple[str, ...] | None = None
    masked: bool = False
    done: Callable[[], None] = lambda: None

    def at(self, layer: int) -> AbstractContextManager[Any]:
        """The change in a layer, if there is one."""
        return self.enter(layer) if self.first <= layer <= self.last else nullcontext()


@dataclass(frozen=True)
class Ends:
    """What a batch of windows became: of the model as it is, and of every stream.

    Attributes:
        batch: the windows.
        clean: the decoder's last hidden states (B,T,C), or what else `Blocks.last` gives.
        changed: the same of each stream.
    """

    batch: Batch
    clean: torch.Tensor
    changed: tuple[torch.Tensor, ...]
    blocks: Blocks
    streams: tuple[Stream, ...]

    @torch.no_grad()
    def logits(self, rows: Any, stream: int | None = None) -> torch.Tensor:
        """Logits of some positions, e.g. rows (0, slice(0, 7)); of the clean model without a stream's number."""
        if stream is None:
            return self.blocks.logits(self.clean[rows])
        with self.streams[stream].at(self.blocks.depth):
            return self.blocks.logits(self.changed[stream][rows])

    @torch.no_grad()
    def pieces(self, rows: Any, stream: int | None = None) -> Iterator[torch.Tensor]:
        """The same, of some words of the vocabulary after the others; see `Head.pieces`."""
        if stream is None:
            yield from self.blocks.pieces(self.clean[rows])
            return
        with self.streams[stream].at(self.blocks.depth):
            yield from self.blocks.pieces(self.changed[stream][rows])


@dataclass
class BlockRuns:
    """What a pass did.

    Attributes:
        blocks: runs of blocks over the whole text, those of the clean stream included; one that forks inside a block
            counts by the share of its numbers that were used.
    """

    blocks: float = 0.0


@torch.inference_mode(False)
@torch.no_grad()
def carry(
    lm: LM,
    batches: Sequence[Batch],
    streams: Sequence[Stream] = (),
    *,
    advance: Callable[[float], Any] = lambda done: None,
    work: BlockRuns | None = None,
) -> Iterator[Ends]:
    """Carry windows through a model and through changed copies of it, block by block.

    Every block's weights are touched once for all windows and streams that fit into memory together, and no stream runs
    what it shares with the clean one. Each gives what its own forward pass would: bit for bit at equal batch shape.

    Args:
        batches: windows, padded on the right.
        advance: told what share of all the work has been done since it was last told.
        work: counts what is done.
    """
    blocks, streams, work = Blocks(lm), tuple(streams), work or BlockRuns()
    for part in in_parts(blocks, batches, streams):
        yield from _Part(blocks, part, streams, work, advance, _size(part) / _size(batches)).run()
    for stream in streams:
        stream.done()


def _size(batches: Sequence[Batch]) -> int:
    return sum(batch.input_ids_BT.numel() for batch in batches)


def in_parts(blocks: Blocks, batches: Sequence[Batch], streams: Sequence[Stream] = ()) -> Iterator[list[Batch]]:
    """Batches whose states, of all streams, fit into memory together; all of them where writing to disk what is more
    costs less than reading the weights once more for every part."""
    plan, anatomy = blocks.lm.memory, blocks.lm.anatomy
    limit = STATES_AT_ONCE if plan is None else plan.states
    per_token = (len(streams) + 2) * anatomy.hidden * (1 if blocks.direct else len(blocks.modules))
    if any(stream.touches is not None for stream in streams):  # what parts of a block gave, where they fork inside one
        per_token += 8 * anatomy.hidden + 4 * anatomy.intermediate
    per_token *= blocks.lm.dtype.itemsize
    more = _size(batches) * per_token - limit
    if plan is not None and plan.streamed and 2 * len(blocks.layers) * more < more // limit * plan.weights:
        yield list(batches)
        return
    part: list[Batch] = []
    for batch in batches:
        if part and _size([*part, batch]) * per_token > limit:
            yield part
            part = []
        part.append(batch)
    if part:
        yield part


@dataclass
class _Part:
    """A pass over some batches."""

    blocks: Blocks
    batches: Sequence[Batch]
    streams: Sequence[Stream]
    work: BlockRuns
    advance: Callable[[float], Any]
    weight: float
    given: list[Given] = field(default_factory=list)
    own: dict[int, list[Given]] = field(default_factory=dict)
    states: dict[int, list[State]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.spool = Spool(self.blocks.lm)

    def run(self) -> Iterator[Ends]:
        with self.blocks.weights.outside():
            yield from self._run()

    def _run(self) -> Iterator[Ends]:
        masked = any(stream.masked for stream in self.streams) or None
        self.given = [self.blocks.begin(batch, masked=masked) for batch in self.batches]
        clean: list[State] = [()] * len(self.given)
        for number, stream in enumerate(self.streams):
            if stream.first < 0:
                with stream.at(-1):
                    self.own[number] = [self.blocks.begin(batch, masked=masked) for batch in self.batches]
                self.states[number] = list(clean)
        layers = self.blocks.layers
        total = sum(len(layers) - self._begins(stream) for stream in self.streams) + len(layers)
        for step in range(len(layers)):
            with self.blocks.weights.at_hand(step):
                clean = self._block(step, clean, total)
        for place, batch in enumerate(self.batches):
            yield self._ends(place, batch, clean[place])

    def _begins(self, stream: Stream) -> int:
        """The step at which a stream forks; their number if it does so behind the blocks."""
        layers = self.blocks.layers
        return next((step for step, layer in enumerate(layers) if stream.first <= layer <= stream.last), len(layers))

    def _block(self, step: int, clean: list[State], total: int) -> list[State]:
        """Every stream through one block; gives what the clean one became."""
        layer = self.blocks.layers[step]
        forking = [
            number
            for number, stream in enumerate(self.streams)
            if number not in self.states and self._begins(stream) == step
        ]
        # Whoever watches sees every part of a block in every stream; what is not direct may leave something for others.
        inside = self.blocks.direct and not watched(self.blocks.lm)
        inside = inside and any(self.streams[number].touches is not None for number in forking)
        module = self.blocks.modules[step]
        after, records = [], []
        for given, state in zip(self.given, clean, strict=True):
            with recorded(module) if inside else nullcontext() as record:
                after.append(self.spool.keep(self.blocks.run(step, given, state)))
            records.append(record)
        self._count(1.0, total)
        for number in (*self.states, *forking):
            stream = self.streams[number]
            entering = self.states.get(number, clean)
            forks = inside and number in forking and stream.touches is not None
            made = []
            with stream.at(layer):
                for place, (given, state) in enumerate(zip(self._given(number), entering, strict=True)):
                    with ExitStack() as stack:
                        record = records[place]
                        if forks and record is not None:
                            stack.enter_context(
                                replayed(self.blocks.lm.model, module, record, self._names(layer, stream))
                            )
                        made.append(self.spool.keep(self.blocks.run(step, given, state)))
            self.states[number] = made
            record = records[0] if forks else None
            self._count(1.0 if record is None else part_run(module, record, self._names(layer, stream)), total)
        return after

    def _count(self, blocks: float, total: int) -> None:
        self.work.blocks += blocks * self.weight
        self.advance(self.weight / total)

    def _given(self, number: int) -> list[Given]:
        return self.own.get(number, self.given)

    def _names(self, layer: int, stream: Stream) -> list[str]:
        """What a stream touches, by name within the block."""
        path = self.blocks.lm.anatomy.layers[layer].block + "."
        return [name.removeprefix(path) for name in stream.touches or ()]

    def _ends(self, place: int, batch: Batch, clean: State) -> Ends:
        depth = self.blocks.depth
        changed = []
        for number, stream in enumerate(self.streams):
            state = self.states[number][place] if number in self.states else clean
            with stream.at(depth):
                changed.append(self.blocks.last(self._given(number)[place], state))
        whole = self.blocks.last(self.given[place], clean)
        return Ends(batch, whole, tuple(changed), self.blocks, tuple(self.streams))
