"""Walk through a model block by block: what enters each matrix, with everything before it already quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from studfinder.models.trace import Product, Products, experts_apart
from studfinder.passes import Blocks, Given, Spool, State
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.targets import Target
from studfinder.sites import Journal
from studfinder.texts import Batch, batches

Extremes = tuple[torch.Tensor, torch.Tensor]
InputReader = Callable[[torch.Tensor], Any]
"""Told the inputs of a matrix, (tokens, in), one batch after the other; pad tokens are left out."""


@dataclass(frozen=True)
class Block:
    """One block on the walk.

    Attributes:
        blocks: all of the model's, of which it is the one that runs as number `step`.
        step: see `Blocks`.
        targets: its matrices that are on the bench, in order.
        windows: calibration windows in batches, and what the blocks before it gave of each.
    """

    blocks: Blocks
    step: int
    targets: tuple[Target, ...]
    windows: Sequence[tuple[Given, State]]

    @property
    def layer(self) -> int:
        """Which layer it is."""
        return self.blocks.layers[self.step]

    @torch.no_grad()
    def run(self, readers: Mapping[str, InputReader] | None = None, *, first: int | None = None) -> list[torch.Tensor]:
        """Run the block as it is now; what it gives for each batch of windows, or the `first` of them, (B, T, C).
        `readers` by parameter name see what enters. See also `gathered`."""
        outputs = []
        with self.blocks.weights.cast(self.step):
            for given, state in self.windows[:first]:
                with _reading(self, readers or {}, given.batch):
                    outputs.append(self.blocks.stream(self.blocks.run(self.step, given, state)))
        return outputs


@torch.no_grad()
def walk(bench: Workbench, batch_size: int = 1) -> Iterator[Block]:
    """The blocks that have targets, in order; one that several layers share when it first runs.

    A block's inputs come from the blocks before it as they stand when the walk reaches it: quantised, if the caller
    has `put` them (as GPTQ does). What is kept is one residual stream of all windows.
    """
    blocks, spool = Blocks(bench.lm), Spool(bench.lm)
    cut = list(batches(bench.windows, batch_size))
    windows: list[tuple[Given, State]] = [(blocks.begin(batch, masked=True), ()) for batch in cut]
    left = {target.layer for target in bench.targets}
    for step, layer in enumerate(blocks.layers):
        with blocks.weights.near(step):
            if layer in left:
                yield Block(blocks, step, tuple(target for target in bench.targets if target.layer == layer), windows)
            left.discard(layer)
            if not left:
                return
            with blocks.weights.cast(step):
                for number, (given, state) in enumerate(windows):
                    windows[number] = given, spool.keep(blocks.run(step, given, state))


def gathered(
    block: Block, names: Iterable[str], statistic: Callable[[str, torch.Tensor], Any], join: Callable[[Any, Any], Any]
) -> dict[str, Any]:
    """What `statistic` makes of all that enters each matrix, by parameter name: (name, (tokens, in)) of one batch, and
    `join` of what it made of two. A matrix that no token enters is left out."""
    found: dict[str, Any] = {}

    def reader(name: str) -> InputReader:
        def read(x_NC: torch.Tensor) -> None:
            made = statistic(name, x_NC)
            found[name] = join(found[name], made) if name in found else made

        return read

    block.run({name: reader(name) for name in names})
    return found


def wider(one: Extremes, other: Extremes) -> Extremes:
    """The smaller of two smallest numbers and the larger of two largest."""
    return torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1])


def second_moments(block: Block, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Mean of x x^T over the calibration tokens for each target, by parameter name, (in, in) fp32.

    Matrices that see the same input (q/k/v) share one tensor.
    """
    wanted = [t for t in block.targets if names is None or t.name in names]
    first = {target.reads: target.name for target in reversed(wanted)}
    sums = gathered(
        block, first.values(), lambda _, x_NC: (squared(x_NC), len(x_NC)), lambda a, b: (a[0].add_(b[0]), a[1] + b[1])
    )
    means = {name: total.div_(count) for name, (total, count) in sums.items()}
    return {target.name: means[first[target.reads]] for target in wanted if first[target.reads] in means}


def squared(x_NC: torch.Tensor) -> torch.Tensor:
    """Sum of x x^T, (in, in) fp32."""
    x_NC = x_NC.float()
    return x_NC.T @ x_NC


def output_error(delta_RC: torch.Tensor, moment_CC: torch.Tensor) -> float:
    """Mean over the calibration tokens of |delta x|^2: what a change of a matrix does to its output.

    Args:
        delta_RC: the change, (out, in).
        moment_CC: mean of x x^T, from `second_moments`.
    """
    delta_RC = delta_RC.float()
    return float(((delta_RC @ moment_CC) * delta_RC).sum(dtype=torch.float64))


@contextmanager
def _reading(block: Block, readers: Mapping[str, InputReader], batch: Batch) -> Iterator[None]:
    experts: dict[tuple[str, int | None], InputReader] = {}
    of_experts = {target.name: target.part for target in block.targets if target.part is not None}
    with Journal(block.blocks.lm.model) as journal:
        for name, reader in readers.items():

            def before(_module: Any, args: tuple, reader: InputReader = reader) -> None:
                x_NC = args[0].reshape(-1, args[0].shape[-1])
                real = batch.real_N
                # A mixture sends each expert only some tokens, in an order of its own: those are taken as they are.
                if real is None or x_NC.shape[0] != batch.input_ids_BT.numel():
                    reader(x_NC)
                else:
                    reader(x_NC[real.to(x_NC.device)])

            part = of_experts.get(name)
            if part is not None:
                experts[part.parameter, part.expert] = reader
            else:
                journal.hook(block.blocks.lm.model.get_submodule(name.rpartition(".")[0]), before, before=True)
        with _experts_read(block, experts, journal) if experts else nullcontext():
            yield


def _experts_read(
    block: Block, readers: Mapping[tuple[str, int | None], InputReader], journal: Journal
) -> AbstractContextManager[Any]:
    """Readers of what enters experts in fused parameters, by parameter and expert: no module of their own is called."""
    lm = block.blocks.lm
    path = lm.anatomy.layers[block.layer].block
    module = lm.model.get_submodule(path)

    def seen(product: Product) -> None:
        apart = product.expert is not None or not product.experts
        whole = product.x[None] if apart else product.x.reshape(product.experts, -1, product.width)
        for number, x_NC in enumerate(whole):
            reader = readers.get((f"{path}.{product.parameter}", product.expert if apart else number))
            if reader is not None:
                reader(x_NC.reshape(-1, product.width))

    experts_apart(module, journal)
    return Products(module, seen)
