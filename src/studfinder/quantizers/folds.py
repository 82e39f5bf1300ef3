"""Where a factor for each input channel of a matrix can go: into the norm or the matrix that makes the channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM, MatrixRef
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.ffn import find_ffn
from studfinder.quantizers.finite import finite_weight
from studfinder.quantizers.targets import matrix_of
from studfinder.quantizers.walk import Block
from studfinder.sites import Journal

_NORMS = (
    "input_layernorm",
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "ln_1",
    "ln_2",
    "self_attn_layer_norm",
    "final_layer_norm",
    "operator_norm",
    "ffn_norm",
)
"""What a block calls the norms in front of its matrices; which matrices read one is seen in a forward pass."""


@dataclass(frozen=True)
class Fold:
    """Matrices that read the same channels, and what makes those channels.

    Attributes:
        kind: "norm", "value" (v_proj makes what o_proj reads) or "up" (up_proj what down_proj reads).
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
        rows = source.weight.shape[-1] if type(source).__name__ == "Conv1D" else source.weight.shape[0]
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
    path = lm.anatomy.layers[block.layer].block
    owner = lm.model.get_submodule(path)
    norms = {f"{path}.{name}": getattr(owner, name) for name in _NORMS if hasattr(owner, name)}
    norms = {name: norm for name, norm in norms.items() if getattr(norm, "weight", None) is not None}
    readers = _readers(lm, block, path, norms)
    found = []
    for name, norm in norms.items():
        seen = [matrix_of(reader, lm.model.get_submodule(reader)) for reader in readers[name]]
        refs = tuple(ref for ref in seen if ref is not None)
        if refs and len(refs) == len(seen):
            row_C = torch.arange(norm.weight.shape[0])
            found.append(Fold("norm", name, row_C, refs, _offset(norm), _common(readers[name], path)))
    return found


def value_fold(lm: LM, layer: int, *, shared: bool = False) -> Fold | None:
    """v_proj and o_proj of a block; None where they are not apart, or where query heads share values and `shared` is
    False: then heads that share a value must share its factors."""
    attention = lm.anatomy.layers[layer].attention
    module = None if attention is None else lm.model.get_submodule(attention)
    value, output = (getattr(module, name, None) for name in ("v_proj", "o_proj"))
    if not isinstance(value, nn.Linear) or not isinstance(output, nn.Linear):
        return None
    cols, rows = output.in_features, value.out_features
    if cols != rows and (not shared or cols % rows):
        return None
    dim = lm.anatomy.head_dim
    heads = torch.arange(cols // dim) // (cols // rows)
    row_C = (heads[:, None] * dim + torch.arange(dim)).flatten()
    ref = MatrixRef(f"{attention}.o_proj.weight")
    return Fold("value", f"{attention}.v_proj", row_C, (ref,), 0.0, ref.module)


def up_fold(lm: LM, layer: int) -> Fold | None:
    """up_proj and down_proj of a gated feed-forward network; None if there is none."""
    ffn = find_ffn(lm, layer)
    if ffn is None:
        return None
    cols = lm.model.get_parameter(ffn.down).shape[1]
    ref = MatrixRef(ffn.down)
    row_C = torch.arange(cols) + ffn.up_first
    return Fold("up", ffn.up.removesuffix(".weight"), row_C, (ref,), 0.0, ref.module)


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


def _readers(lm: LM, block: Block, path: str, norms: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Which modules of a block are given the output of each norm, seen by running it over one window."""
    readers: dict[str, list[str]] = {name: [] for name in norms}
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
        for name, norm in norms.items():
            journal.hook(norm, partial(after, name))
        for name, module in lm.model.get_submodule(path).named_modules(prefix=path):
            if not list(module.children()):
                journal.hook(module, partial(before, name), before=True, with_kwargs=True)
        block.run(first=1)
    return readers


@torch.no_grad()
def _offset(norm: nn.Module) -> float:
    """1 if the norm multiplies by 1 + weight: with a weight of 0 it still lets its input through."""
    weight = norm.get_parameter("weight")
    probe = torch.randn(1, weight.shape[0], generator=torch.Generator().manual_seed(0)).to(weight)
    zero = {name: torch.zeros_like(value) for name, value in norm.named_parameters()}
    return float(torch.func.functional_call(norm, zero, (probe,)).abs().max() > 0)


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
