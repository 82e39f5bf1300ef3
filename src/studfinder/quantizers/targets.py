"""Which matrices of a model are quantised, and which of them a serving engine fuses into one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from studfinder.edits import Weights
from studfinder.errors import StudfinderError
from studfinder.models import LM, Layer, MatrixRef, Writer
from studfinder.quantizers.experts import Slice, slices_of


@dataclass(frozen=True)
class Target:
    """One matrix to quantise.

    Attributes:
        ref: the live parameter that it is, or is a part of.
        layer: its block; the first, if layers share it.
        fused: a name shared by the matrices that must share a format when served: decisions are taken for all of them.
        reads: a name shared by the matrices that are given the same input.
        also: other names of the same parameter.
        part: of an expert in a fused parameter: which part of it this is.
    """

    ref: MatrixRef
    layer: int
    fused: str
    reads: str
    also: tuple[str, ...] = ()
    part: Slice | None = None

    @property
    def name(self) -> str:
        """What it is called in a checkpoint that keeps all matrices apart: the parameter's name, but for experts."""
        return self.ref.parameter if self.part is None else self.part.name

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that hold it, if they are kept apart."""
        return tuple(name.rpartition(".")[0] for name in (self.name, *self.also))

    @property
    def index(self) -> tuple:
        """Where in the parameter it is."""
        part = self.part
        return () if part is None else (part.expert, slice(part.first, part.first + part.rows))

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """Of a tensor with the parameter's layout, what this matrix has there, as (out, in): a view."""
        found = parameter[self.index]
        return found.T if self.ref.transposed else found

    def weight(self, lm: LM) -> torch.Tensor:
        """The live matrix as (out, in), a view of the parameter."""
        return self.of(lm.model.get_parameter(self.ref.parameter).detach())

    def entries(self, lm: LM) -> Weights:
        """All of it, to be edited; the null edit of rounding it is `null(zero(target.entries(lm)))`."""
        axes = (None,) * lm.model.get_parameter(self.ref.parameter).dim()
        part = self.part
        rows = (
            [axes] if part is None else [(part.expert, row, None) for row in range(part.first, part.first + part.rows)]
        )
        return Weights(parameter=self.ref.parameter, entries=tuple(rows))


def targets(lm: LM, *, offloaded: bool = False) -> tuple[Target, ...]:
    """Every matrix with a module of its own inside the blocks, in order, and those of experts in a fused parameter that
    transformers loads from matrices kept apart. Embeddings, the head and routers are left alone.

    Args:
        offloaded: whether matrices without numbers in memory count too.

    Raises:
        StudfinderError: weights that are quantised already, or offloaded ones.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in lm.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found: dict[str, Target] = {}
    apart = slices_of(lm, [name for layer in lm.anatomy.layers for name in _fused_parameters(layer)])
    for number, layer in enumerate(lm.anatomy.layers):
        matrices = matrices_of(lm, number)
        fused = {module: _shared_name(group) for group in layer.fused for module in group}
        for name, module in lm.model.get_submodule(layer.block).named_modules(prefix=layer.block):
            _refuse(lm, name, module, offloaded)
            ref = matrices.get(name)
            if ref is None or ref.parameter in layer.routers:
                continue
            same = names[id(lm.model.get_parameter(ref.parameter))]
            if same[0] == ref.parameter:
                group = fused.get(name, name)
                found[ref.parameter] = Target(ref, number, group, group, tuple(same[1:]))
        found |= {target.name: target for target in _experts(number, layer, apart)}
    return tuple(found.values())


def matrices_of(lm: LM, layer: int) -> dict[str, MatrixRef]:
    """The matrix of every module of a block that has one of its own, routers included, by the module's name."""
    part = lm.anatomy.layers[layer]
    known = {ref.module: ref for ref in _refs(part) if ref.parameter == f"{ref.module}.weight"}
    own = {name for name in known if type(lm.model.get_submodule(name)).__module__.startswith("studfinder.")}
    known = {  # the parts of attention variants are small, and read more than one tensor
        name: ref for name, ref in known.items() if name not in own and lm.model.get_parameter(ref.parameter).dim() == 2
    }
    modules = lm.model.get_submodule(part.block).named_modules(prefix=part.block)
    linear = {name: MatrixRef(f"{name}.weight") for name, module in modules if isinstance(module, nn.Linear)}
    return {**linear, **known}


def left_experts(lm: LM, found: Iterable[Target]) -> int:
    """How many matrices of experts are no targets: transformers loads them as one parameter only."""
    taken = {target.ref.parameter for target in found}
    refs = {
        (ref.parameter, ref.expert) for layer in lm.anatomy.layers for ref in _refs(layer) if ref.expert is not None
    }
    return sum(parameter not in taken for parameter, _ in refs)


def by_fused(found: Iterable[Target]) -> dict[str, list[Target]]:
    """Matrices by the name that they share with those that they are fused with."""
    return _grouped(found, "fused")


def by_input(found: Iterable[Target]) -> dict[str, list[Target]]:
    """Matrices by the name that they share with those that are given the same input."""
    return _grouped(found, "reads")


def _grouped(found: Iterable[Target], by: str) -> dict[str, list[Target]]:
    groups: dict[str, list[Target]] = {}
    for target in found:
        groups.setdefault(getattr(target, by), []).append(target)
    return groups


def _experts(number: int, layer: Layer, apart: Iterable[Slice]) -> Iterator[Target]:
    down = {writer.parameter for writer in layer.writers}
    own = set(_fused_parameters(layer))
    for part in apart:
        if part.parameter in own:
            group = f"{layer.block}.experts" if layer.experts is None else layer.experts
            read = part.parameter if part.parameter in down else group  # gate and up are given the same
            yield Target(MatrixRef(part.parameter), number, group, f"{read}[{part.expert}]", part=part)


def _fused_parameters(layer: Layer) -> list[str]:
    """Where the feed-forward networks of experts are."""
    refs = [ref for writer in layer.writers if writer.expert is not None for ref in (writer, *_inner(writer))]
    return list(dict.fromkeys(ref.parameter for ref in refs if not ref.transposed and not ref.stacked))


def _refs(layer: Layer) -> Iterator[MatrixRef]:
    """Every matrix whose role is known."""
    for mixer in layer.mixers:
        yield from (rows.ref for rows in (mixer.query, mixer.key, mixer.value, mixer.gate) if rows is not None)
        yield from () if mixer.output is None else (mixer.output,)
    for writer in layer.writers:
        yield from (writer, *_inner(writer))


def _inner(writer: Writer) -> Iterator[MatrixRef]:
    yield from (rows.ref for rows in (writer.up, writer.gate) if rows is not None)


def _shared_name(modules: Collection[str]) -> str:
    parents = [module.rpartition(".") for module in modules]
    return f"{parents[0][0]}.{'+'.join(leaf for _, _, leaf in parents)}"


def other_matrices(models: Iterable[nn.Module], chosen: Collection[str]) -> list[str]:
    """Modules that hold a matrix and are not quantised: every Linear that is not chosen, in whichever class of the
    model it appears, and routers and the like, which engines build as a Linear of their own.

    Args:
        models: the classes that the checkpoint is loaded as; their names for a module may differ.
        chosen: names of the modules that are quantised.
    """
    found: dict[str, None] = {}
    quantised = set(chosen)
    for model in models:
        modules = list(model.named_modules(remove_duplicate=False))  # a module may be used twice
        same = {id(module) for name, module in modules if name in quantised}
        for name, module in modules:
            if id(module) not in same and _matrix(module):
                found[name] = None
    return list(found)


def _matrix(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return False
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) or (isinstance(weight, torch.Tensor) and weight.dim() == 2)


def _refuse(lm: LM, name: str, module: nn.Module, offloaded: bool) -> None:
    for leaf, parameter in module.named_parameters(recurse=False):
        if parameter.dim() >= 2 and parameter.device.type == "meta" and not offloaded:
            raise StudfinderError(f"{name}.{leaf} is offloaded", do="Load the model without offloading to disk")
    quantised = isinstance(module, nn.Linear) and not module.weight.is_floating_point()
    if quantised or hasattr(module, "qweight") or hasattr(module, "weight_packed"):
        raise StudfinderError(f"{name} of {lm.source.id} is quantised already", do="Start from the full model")
