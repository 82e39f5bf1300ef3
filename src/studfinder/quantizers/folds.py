"""Where a factor for each input channel of a matrix can go: into the norm or the matrix that makes the channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM, MatrixRef
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.ffn import find_ffn, rows_of
from studfinder.quantizers.finite import finite_weight
from studfinder.quantizers.targets import matrices_of
from studfinder.quantizers.walk import Block
from studfinder.sites import Journal


@dataclass(frozen=True)
class Fold:
    """Matrices that read the same channels, and what makes those channels.

    Attributes:
        kind: "norm", "value" (the value projection makes what attention's output projection reads) or "up" (the up
            projection makes what the down projection reads).
        source: the module that makes the channels.
        row_C: which of the source's rows each input channel comes from: a value head is read by all its query heads.
        reads: the matrices.
        offset: 1 for norms that multiply by 1 + weight, as Gemma's.
        inspected: the module whose output shows what rounding the matrices does.
    """

    kind: str
    source: str
    row_C: torch.Tensor
    reads: tuple[MatrixRef, ...]
    offset: float
    inspected: str

    def scaled(self, lm: LM, scale_C: torch.Tensor) -> dict[str, torch.Tensor]:
        """Every parameter that changes when input channels are divided by `scale_C` and columns multiplied by it:
        by name, in its own dtype and layout.

        `scale_C` must be one number for all channels of a row of the source.
        """
        made, model = {}, lm.model
        for ref in self.reads:
            parameter = model.get_parameter(ref.parameter).detach()
            scale = scale_C[:, None] if ref.transposed else scale_C
            made[ref.parameter] = (parameter.float() * scale).to(parameter.dtype)
        source = model.get_submodule(self.source)
        rows = source.weight.shape[0]
        by_row = torch.ones(rows).index_copy_(0, self.row_C, scale_C)
        for leaf, parameter in source.named_parameters(recurse=False):
            old = parameter.detach()
            if leaf == "weight" and old.dim() == 1:
                new = (old.float() + self.offset) / by_row - self.offset
            else:
                new = old.float() / (by_row[:, None] if old.dim() == 2 else by_row)
            made[f"{self.source}.{leaf}"] = new.to(old.dtype)
        return made

    def apply(self, bench: Workbench, scale_C: torch.Tensor) -> None:
        """Write the change into the model on the bench."""
        for name, value in self.scaled(bench.lm, scale_C).items():
            bench.journal.write(name, value)

    def shared(self, statistic_C: torch.Tensor, combine: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A statistic of each input channel with channels of one source row combined, (in,)."""
        if len(self.row_C.unique()) == len(self.row_C):
            return statistic_C
        return torch.stack([combine(statistic_C[self.row_C == row]) for row in self.row_C])


def norm_folds(lm: LM, block: Block) -> list[Fold]:
    """The folds of a block's norms: those whose output nothing reads but matrices.

    Which matrices read a norm is seen by running the block over one window. A norm without numbers of its own, and
    one that something else reads too, has no fold.
    """
    layer = lm.anatomy.layers[block.layer]
    matrices = matrices_of(lm, block.layer)
    readers = readers_of(lm, [norm.module for norm in layer.norms], partial(block.run, first=1), layer.block)
    found = []
    for norm in layer.norms:
        names = readers[norm.module]
        own = dict(lm.model.get_submodule(norm.module).named_parameters(recurse=False))
        refs = tuple(matrices[reader] for reader in names if reader in matrices)
        if refs and len(refs) == len(names) and "weight" in own and own.keys() <= {"weight", "bias"}:
            row_C = torch.arange(len(own["weight"]))
            found.append(Fold("norm", norm.module, row_C, refs, norm.offset, _common(names, layer.block)))
    return found


def value_fold(lm: LM, layer: int, *, shared: bool = False) -> Fold | None:
    """The value and the output projection of a block's attention; None where values share their matrix with something
    else or their rows are unknown, or where query heads share values and `shared` is False: then heads that share a
    value must share its factors."""
    mixer = lm.anatomy.layers[layer].mixer
    if mixer is None or mixer.value is None or mixer.output is None or mixer.value.ref.transposed:
        return None
    first_G = torch.tensor(mixer.value.first)
    heads = torch.arange(mixer.heads) // max(1, mixer.heads // len(first_G))
    rows = lm.model.get_parameter(mixer.value.ref.parameter).shape[0]
    cols = mixer.output.view(lm.model.get_parameter(mixer.output.parameter)).shape[1]
    if rows != len(first_G) * mixer.value.width or cols != len(heads) * mixer.value.width:
        return None
    if cols != rows and not shared:
        return None
    row_C = (first_G[heads][:, None] + torch.arange(mixer.value.width)).flatten()
    return Fold("value", mixer.value.ref.module, row_C, (mixer.output,), 0.0, mixer.output.module)


def up_fold(lm: LM, layer: int) -> Fold | None:
    """The up and the down projection of a gated feed-forward network; None if there is none."""
    down = find_ffn(lm, layer)
    if down is None or down.up is None:
        return None
    row_C = rows_of(down.up, torch.arange(lm.model.get_parameter(down.parameter).shape[1]))
    return Fold("up", down.up.ref.module, row_C, (down,), 0.0, down.module)


def exact_folds(lm: LM, block: Block, *more: Fold | None) -> list[Fold]:
    """The folds of a block's norms, and `more`, that scale a matrix to quantise and leave the block what it computes.

    Raises:
        StudfinderError: a weight is not finite.
    """
    for target in block.targets:
        finite_weight(target, lm)
    chosen = {target.name for target in block.targets}
    found = [fold for fold in (*norm_folds(lm, block), *more) if fold is not None]
    found = [fold for fold in found if any(ref.parameter in chosen for ref in fold.reads)]
    return [fold for fold in found if check_exact(lm, block, fold)]


def no_fold(lm: LM) -> StudfinderError:
    """That a model has no fold at all."""
    return StudfinderError(
        f"nothing in this {lm.anatomy.architecture} model can take a factor",
        expected="norms with weights of their own, read by matrices only",
    )


@torch.no_grad()
def check_exact(lm: LM, block: Block, fold: Fold, tolerance: float = 0.02) -> bool:
    """Whether the block computes the same with factors of 1/2, 1 and 2 folded: something else may read the channels.

    Told by one window; a fold that is not exact is off by the size of the output itself.
    """
    generator = torch.Generator().manual_seed(0)
    powers = torch.exp2(torch.randint(-1, 2, (int(fold.row_C.max()) + 1,), generator=generator).float())
    before = block.run(first=1)[0].float()
    with swapped(lm, fold.scaled(lm, powers[fold.row_C])):
        after = block.run(first=1)[0].float()
    return bool((after - before).norm() <= tolerance * before.norm())


@contextmanager
def swapped(lm: LM, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Other parameters in the place of some while the context lasts; the ones that were there are not written to."""
    with Journal(lm.model) as journal:
        for name, value in values.items():
            journal.replace(name, value.to(lm.model.get_parameter(name)))
        yield


def readers_of(lm: LM, makers: Iterable[str], run: Callable[[], object], inside: str) -> dict[str, list[str]]:
    """Which modules without parts of their own are given the output of each of some others, as it is.

    Args:
        makers: their names.
        run: runs what they are in.
        inside: the module that the readers are in.
    """
    readers: dict[str, list[str]] = {name: [] for name in makers}
    made: dict[int, str] = {}
    kept: list[torch.Tensor] = []  # alive, so that no other tensor takes its address

    def after(name: str, _module: nn.Module, _args: tuple, output: torch.Tensor) -> None:
        made[id(output)] = name
        kept.append(output)

    def before(name: str, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        for value in (*args, *kwargs.values()):
            if id(value) in made:
                readers[made[id(value)]].append(name)

    with Journal(lm.model) as journal:
        for name in readers:
            journal.hook(lm.model.get_submodule(name), partial(after, name))
        for name, module in lm.model.get_submodule(inside).named_modules(prefix=inside):
            if not list(module.children()):
                journal.hook(module, partial(before, name), before=True, with_kwargs=True)
        run()
    return readers


def _common(names: list[str], block: str) -> str:
    """The smallest module that holds all of them."""
    parts = [name.split(".") for name in names]
    if len(parts) == 1:
        return names[0].rpartition(".")[0] if names[0].rpartition(".")[0] != block else names[0]
    common = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)
