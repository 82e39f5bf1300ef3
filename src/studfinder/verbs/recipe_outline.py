"""The matrices of a model by the names that tools have for them, from its config and the index of its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from studfinder.models import LM, anatomy_of
from studfinder.models.loading import destinations
from studfinder.models.places import source_named
from studfinder.models.shell import shell_of
from studfinder.quantizers.targets import Target, by_fused, other_matrices, targets
from studfinder.recipes import NamedMatrix, gguf_names
from studfinder.records.loading import SourceConfig
from studfinder.verbs.load import load_as

_SHARDS = {
    ("q_proj", "k_proj", "v_proj"): "qkv_proj",
    ("gate_proj", "up_proj"): "gate_up_proj",
    ("w1", "w3"): "w13",
    ("in_proj_qkv", "in_proj_z"): "in_proj_qkvz",
    ("in_proj_b", "in_proj_a"): "in_proj_ba",
}
"""What vLLM calls the matrix of these (its models' packed_modules_mapping)."""
_PACKED = ("weight_packed", "qweight", "weight_scale", "weight_zero_point", "qzeros", "scales", "g_idx", "weight_shape")


@dataclass(frozen=True)
class Outline:
    """A model's matrices.

    Attributes:
        lm: the model; without its numbers where its config was enough.
        groups: those that may be quantised, by their fused group.
        matrices: all, in order.
    """

    lm: LM
    groups: dict[str, list[Target]]
    matrices: tuple[NamedMatrix, ...]

    @property
    def left(self) -> tuple[NamedMatrix, ...]:
        """Matrices that are in no group."""
        return tuple(matrix for matrix in self.matrices if not matrix.group)


def outline_of(model: str | LM, config: SourceConfig) -> Outline:
    """The matrices of a model, of which only config and index are read where it is a folder or a hub id.

    Raises:
        StudfinderError: as `shell_of`, or `load` for a GGUF file.
    """
    if isinstance(model, LM):
        return _outline(model, ())
    source = source_named(model, config.revision)
    if source.folder is not None and source.folder.is_file():
        return _outline(load_as(model, config), ())
    shell, names = shell_of(source, trust_remote_code=config.trust_remote_code)
    return _outline(LM(shell, None, anatomy_of(shell), source), names)


def _outline(lm: LM, names: Iterable[str]) -> Outline:
    groups = by_fused(targets(lm, offloaded=True))
    stored = _stored_names(lm.model, names)
    modules = dict(lm.model.named_modules(remove_duplicate=False))
    found = [
        _of(group, target, module, lm, modules, stored)
        for group, each in groups.items()
        for target in each
        for module in target.modules
    ]
    chosen = [matrix.module for matrix in found]
    left = other_matrices([lm.model], chosen)
    left += [name for name, module in modules.items() if isinstance(module, nn.Embedding) and name not in left]
    blocks = {layer.block: number for number, layer in enumerate(lm.anatomy.layers)}
    found += [
        NamedMatrix(name, checkpoint=stored.get(name, ""), kinds=_kinds(modules[name]), layer=_within(name, blocks))
        for name in left
    ]
    ggufs = gguf_names(lm.anatomy.architecture, len(lm.anatomy.layers), [matrix.module for matrix in found])
    return Outline(lm, groups, tuple(_with_gguf(matrix, ggufs) for matrix in found))


def _with_gguf(matrix: NamedMatrix, names: dict[str, str]) -> NamedMatrix:
    from dataclasses import replace

    return replace(matrix, gguf=names[matrix.module])


def _of(
    group: str, target: Target, module: str, lm: LM, modules: dict[str, Any], stored: dict[str, str]
) -> NamedMatrix:
    live = modules.get(module)
    rows, cols = target.weight(lm).shape
    return NamedMatrix(
        module,
        stacked="" if target.part is None else target.ref.module,
        checkpoint=stored.get(module, ""),
        fused=_fused(group, target, module),
        group=group,
        kinds=("Linear",) if live is None else _kinds(live),
        layer=target.layer,
        shape=(rows, cols),
    )


def _kinds(module: nn.Module) -> tuple[str, ...]:
    return tuple(kind.__name__ for kind in type(module).__mro__ if issubclass(kind, nn.Module))


def _within(name: str, blocks: dict[str, int]) -> int | None:
    return next((number for block, number in blocks.items() if name.startswith(f"{block}.")), None)


def _fused(group: str, target: Target, module: str) -> str:
    """What vLLM calls the matrix that a member of a group is a part of."""
    parent, _, leaves = group.rpartition(".")
    if target.part is not None:
        return group  # an expert: all of a layer are one module
    parts = tuple(leaves.split("+"))
    if len(parts) == 1:
        return module
    known = next((name for shards, name in _SHARDS.items() if set(shards) == set(parts)), leaves)
    return f"{parent}.{known}"


def _stored_names(model: Any, names: Iterable[str]) -> dict[str, str]:
    """By module: what its weight's owner is called in the files, where transformers renames it or stacks it."""
    plain = {}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        plain[f"{owner}.weight" if leaf in _PACKED else name] = owner
    found: dict[str, str] = {}
    for name, (target, step) in destinations(model, plain).items():
        if step is None and target.endswith(".weight"):
            found[target.removesuffix(".weight")] = plain[name]
    return found


def members_of(group: Iterable[Target]) -> Iterator[tuple[str, Target]]:
    """The modules of a group's matrices, each with its matrix; a matrix that several share has several."""
    for target in group:
        for module in target.modules:
            yield module, target
