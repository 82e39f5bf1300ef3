"""The parts of a model that a diagnosis tells apart: what engines fuse, and every other parameter by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from studfinder.diagnosis.folded import FoldedOriginal
from studfinder.diagnosis.patterns import Pattern, pattern_of
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.targets import Target, targets


@dataclass
class DiffersPart:
    """A part that differs.

    Attributes:
        name: of the fused group, or the parameter.
        layer: the block; None outside the blocks.
        parameters: live ones, by name, that hold it.
        worst: the pattern that breaks most, and the matrix it was found in.
    """

    name: str
    layer: int | None
    parameters: list[str] = field(default_factory=list)
    worst: tuple[Pattern, str] | None = None

    def take(self, pattern: Pattern, name: str) -> None:
        """Keep the worse of two patterns: what breaks before what does not, then the larger error."""
        own = None if self.worst is None else (self.worst[0].breaks, self.worst[0].error)
        if own is None or (pattern.breaks, pattern.error) > own:
            self.worst = pattern, name


def parts_that_differ(
    original: LM, made: LM, *, advance: Callable[[float], Any] = lambda share: None
) -> tuple[list[DiffersPart], FoldedOriginal]:
    """Every part in which a model's weights are not the original's, but for factors that were moved; and those weights.

    Raises:
        StudfinderError: the two are not of one shape.
    """
    every = targets(original)
    folded = FoldedOriginal(original, made, every, lambda share: advance(share / 2))
    was, now = folded.was, folded.now
    for name, tensor in was.items():
        if name in now and now[name].shape != tensor.shape:
            raise StudfinderError(
                f"{name} is {tuple(now[name].shape)} in {made.source.id} and {tuple(tensor.shape)} in "
                f"{original.source.id}",
                expected="a checkpoint that was made from the original",
            )
    if not was.keys() & now.keys():
        raise StudfinderError("the two models share no parameter", expected="a checkpoint made from the original")
    found: dict[str, DiffersPart] = {}
    matrices = _matrices(every)
    own = {name for name, _ in made.model.named_parameters()}  # of one that is tied, the first of its names
    shared = [name for name in was if name in own]
    for name in shared:
        before, after = folded.tensor(name), now[name].detach()
        if not _same(before, after, exact=name not in folded.moved):
            for target in matrices.get(name, [None]):
                _one(found, name, target, before, after, original)
        advance(1 / len(shared) / 2)
    return [part for part in found.values() if part.worst is not None], folded


def _same(before: torch.Tensor, after: torch.Tensor, *, exact: bool) -> bool:
    """Bit by bit; of what factors were moved in, as far as they are known."""
    if exact:
        return torch.equal(before.to(after.dtype), after)
    return bool(torch.allclose(before.float(), after.float(), rtol=1e-3, atol=1e-6))


def _one(
    found: dict[str, DiffersPart],
    name: str,
    target: Target | None,
    was: torch.Tensor,
    now: torch.Tensor,
    lm: LM,
) -> None:
    layer: int | None
    if target is not None:
        called, layer, label = target.fused, target.layer, target.name
        was, now = target.of(was), target.of(now)
    else:
        called = label = name
        layer = next((n for n, one in enumerate(lm.anatomy.layers) if name.startswith(one.block + ".")), None)
    for row, (one, other) in enumerate(_flattened(was, now)):
        pattern = pattern_of(one, other)
        if pattern is None:
            continue
        part = found.setdefault(called, DiffersPart(called, layer))
        if name not in part.parameters:
            part.parameters.append(name)
        part.take(pattern, label if was.dim() < 3 else f"{label}[{row}]")


def _flattened(was: torch.Tensor, now: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Matrices as they are, vectors as one column; of experts in one parameter each by itself."""
    if was.dim() < 3:
        yield was.reshape(len(was), -1), now.reshape(len(now), -1)
    else:
        yield from zip(was, now, strict=True)


def _matrices(every: Iterable[Target]) -> dict[str, list[Target | None]]:
    found: dict[str, list[Target | None]] = {}
    for target in every:
        found.setdefault(target.ref.parameter, []).append(target)
    return found
