"""Walk through a model block by block: what enters each matrix, with everything before it already quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from studfinder.models import LM
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.targets import Target
from studfinder.sites import Journal, kept_outputs, resumed
from studfinder.texts import Batch, batches

Ends = tuple[torch.Tensor, torch.Tensor]
InputReader = Callable[[torch.Tensor], Any]
"""Told the inputs of a matrix, (tokens, in), one batch after the other; pad tokens are left out."""


@dataclass(frozen=True)
class Block:
    """One block on the walk.

    Attributes:
        layer: which.
        targets: its matrices that are on the bench, in order.
        lm: the model.
        windows: calibration windows in batches, and what enters the block of each.
    """

    layer: int
    targets: tuple[Target, ...]
    lm: LM
    windows: Sequence[tuple[Batch, Any]]

    def run(self, readers: Mapping[str, InputReader] | None = None, *, first: int | None = None) -> list[torch.Tensor]:
        """Run the block as it is now; what it gives for each batch of windows, or the `first` of them, (B, T, C).
        `readers` by parameter name see what enters. See also `gathered`."""
        outputs = []
        for batch, entering in self.windows[:first]:
            with _reading(self.lm, readers or {}, batch):
                outputs.append(hidden(_one_block(self.lm, batch, self.layer, entering)))
        return outputs


def walk(bench: Workbench, batch_size: int = 1) -> Iterator[Block]:
    """The blocks that have targets, in order.

    A block's inputs come from the blocks before it as they stand when the walk reaches it: quantised, if the caller
    has `put` them (as GPTQ does). What is kept is one residual stream of all windows, so the memory is that of one
    layer. Positions and masks are made by the model's own forward pass.
    """
    lm = bench.lm
    windows: list[tuple[Batch, Any]] = [(batch, None) for batch in batches(bench.windows, batch_size)]
    for layer in range(len(lm.anatomy.layers)):
        own = tuple(target for target in bench.targets if target.layer == layer)
        if own:
            yield Block(layer, own, lm, windows)
        if not any(target.layer > layer for target in bench.targets):
            return
        for number, (batch, entering) in enumerate(windows):
            windows[number] = batch, _one_block(lm, batch, layer, entering)


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


def wider(one: Ends, other: Ends) -> Ends:
    """The smaller of two smallest numbers and the larger of two largest."""
    return torch.minimum(one[0], other[0]), torch.maximum(one[1], other[1])


def second_moments(block: Block, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Mean of x x^T over the calibration tokens for each target, by parameter name, (in, in) fp32.

    Matrices that see the same input (q/k/v) share one tensor.
    """
    wanted = [t for t in block.targets if names is None or t.name in names]
    first = {target.fused: target.name for target in reversed(wanted)}
    sums = gathered(
        block, first.values(), lambda _, x_NC: (squared(x_NC), len(x_NC)), lambda a, b: (a[0].add_(b[0]), a[1] + b[1])
    )
    means = {name: total / count for name, (total, count) in sums.items()}
    return {target.name: means[first[target.fused]] for target in wanted if first[target.fused] in means}


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


class _Enough(Exception):
    """The block has run; what comes after it is not needed."""


@torch.no_grad()
def _one_block(lm: LM, batch: Batch, layer: int, entering: Any) -> Any:
    def stop(_module: Any, _args: Any, _output: Any) -> None:
        raise _Enough

    with resumed(lm, layer, entering), kept_outputs(lm, [layer]) as kept, Journal(lm.model) as journal:
        # After the hook that keeps the output, so that it has been kept when this one ends the pass.
        journal.hook(lm.model.get_submodule(lm.anatomy.layers[layer].block), stop)
        mask = batch.mask_BT
        with suppress(_Enough):
            lm.model(
                input_ids=batch.input_ids_BT.to(lm.device),
                attention_mask=None if mask is None else mask.to(lm.device).long(),
                use_cache=False,
            )
    return kept[layer]


@contextmanager
def _reading(lm: LM, readers: Mapping[str, InputReader], batch: Batch) -> Iterator[None]:
    with Journal(lm.model) as journal:
        for name, reader in readers.items():

            def before(_module: Any, args: tuple, reader: InputReader = reader) -> None:
                x_NC = args[0].reshape(-1, args[0].shape[-1])
                real = batch.real_N
                # A mixture sends each expert only some tokens, in an order of its own: those are taken as they are.
                if real is None or x_NC.shape[0] != batch.input_ids_BT.numel():
                    reader(x_NC)
                else:
                    reader(x_NC[real.to(x_NC.device)])

            journal.hook(lm.model.get_submodule(name.rpartition(".")[0]), before, before=True)
        yield


def hidden(output: Any) -> torch.Tensor:
    """The hidden states among what a module gives."""
    return output if isinstance(output, torch.Tensor) else output[0]
