"""The workbench: what a method gets to work with, and the one place where quantising writes to a live model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.models.carried import is_carried
from studfinder.passes import on_disk
from studfinder.quantizers.grid import Quantized
from studfinder.quantizers.scheme import Scheme, bits_per_weight
from studfinder.quantizers.targets import Target
from studfinder.runs import Progress
from studfinder.sites import Journal

M = TypeVar("M")


@dataclass
class Workbench:
    """A live model under the knife.

    A method calls `put` for each target, layer by layer; the dequantised matrix stands in the live model from then
    on, so that later layers see what earlier ones lost. What else it changes (norms, scales folded into a neighbour,
    parameters of another shape, settings, hooks) goes through `journal`. `restore` undoes all of it, bit by bit.

    Attributes:
        journal: everything that is changed in the model.
        lm: the model.
        targets: what to quantise, skipped ones left out.
        windows: calibration token ids, for methods that need them.
        held: by parameter name, a bool mask (out, in), True for entries to hold out.
        skipped, left: fused groups that stay as they are, and their matrices.
        instead: those of them that are skipped because there is no place for the numbers to hold out in them.
        scheme: how the method will store weights.
        schemes: of matrices that are stored in another way, by parameter name.
        inputs: of matrices whose inputs are rounded besides, how, by parameter name.
        numbers: whether what is made has a place for single numbers; otherwise `skip_held` comes before the method.
        size: weights of all matrices before any of them was widened.
        transforms: exact changes that are made before the method runs.
        progress: see `Progress`.
        done: what was put, by parameter name.
        sizes: of what was put, by parameter name: its weights, and true bits a weight.
        notes: what methods and transforms report of themselves, for the card.
    """

    lm: LM
    targets: tuple[Target, ...]
    windows: Sequence[Sequence[int]] = ()
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    left: tuple[Target, ...] = ()
    instead: tuple[str, ...] = ()
    scheme: Scheme = field(default_factory=Scheme)
    schemes: Mapping[str, Scheme] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    numbers: bool = True
    size: int = 0
    transforms: tuple[Any, ...] = ()
    progress: Progress = lambda what, done, total: None
    done: dict[str, Quantized] = field(default_factory=dict)
    sizes: dict[str, tuple[int, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._replaced: set[str] = set()
        self.journal = Journal(self.lm.model)

    def scheme_of(self, name: str) -> Scheme:
        """How a matrix will be stored."""
        return self.schemes.get(name, self.scheme)

    def own(self, method: M, name: str) -> M:
        """A method's settings (a dataclass with a field `scheme`) for one matrix."""
        return replace(method, scheme=self.schemes[name]) if name in self.schemes else method  # type: ignore[type-var]

    def put(self, target: Target, quantized: Quantized) -> None:
        """Record a quantised matrix and write what it stands for into the model."""
        weight = target.weight(self.lm)
        if quantized.codes_RC.shape != weight.shape:
            raise ValueError(f"{target.name}: {tuple(quantized.codes_RC.shape)} for {tuple(weight.shape)}")
        made = quantized.dequantized()
        made = made.T if target.ref.transposed else made
        if (self.lm.memory is not None and self.lm.memory.streamed) or is_carried(self.lm.model):
            quantized = self._put_on_disk(target, quantized, made)
        else:
            self.journal.write(target.ref.parameter, made, target.index)
        self.done[target.name] = quantized
        self.sizes[target.name] = quantized.codes_RC.numel(), quantized.bits
        self.progress("quantise", len(self.done), len(self.targets))

    def _put_on_disk(self, target: Target, quantized: Quantized, made: torch.Tensor) -> Quantized:
        """Of a model larger than memory, where what is written would stay, and so would what stood there; and of one
        that is stored in a narrower dtype, to whose numbers it would be rounded."""
        name = target.ref.parameter
        if name not in self._replaced:
            self._replaced.add(name)
            path, _, leaf = name.rpartition(".")
            parameter = nn.Parameter(on_disk(self.lm.model.get_parameter(name).detach(), self.lm.dtype), False)
            self.journal.set(self.lm.model.get_submodule(path), leaf, parameter)
        self.lm.model.get_parameter(name)[target.index] = made.to(self.lm.dtype)
        return replace(quantized, codes_RC=on_disk(quantized.codes_RC))

    def skip_held(self) -> None:
        """Skip what has entries to hold out, with all that is fused with it: for formats without a place for them."""
        groups = {target.fused for target in self.targets if target.name in self.held}
        if all(target.fused in groups for target in self.targets):
            raise StudfinderError(
                "every matrix has numbers to hold out, and the format has no place for them", do="Use --format dense"
            )
        self.held = {}
        self.instead = tuple(sorted(groups))
        self.skip(groups)

    def skip(self, groups: Collection[str]) -> None:
        """Leave fused groups as they are."""
        self.left += tuple(target for target in self.targets if target.fused in groups)
        self.targets = tuple(target for target in self.targets if target.fused not in groups)
        self.skipped = tuple(sorted({*self.skipped, *groups}))

    @property
    def bits(self) -> float:
        """True bits a weight over all matrices; skipped ones count with their 16 (or 32) bits, and what a split added
        counts as a cost of the weights that were there before."""
        if not self.sizes:
            raise StudfinderError("nothing was quantised", expected="at least one matrix")
        return self._over_all(list(self.sizes.values()))

    @property
    def planned(self) -> float:
        """The bits a weight that the scheme comes to, before a method has run; see `bits`."""
        sizes = []
        for target in self.targets:
            shape, held = target.weight(self.lm).shape, self.held.get(target.name)
            kept = 0 if held is None else int(held.sum())
            sizes.append((shape.numel(), bits_per_weight(shape, self.scheme_of(target.name), kept)))
        return self._over_all(sizes)

    def _over_all(self, sizes: list[tuple[int, float]]) -> float:
        weights = [target.weight(self.lm) for target in self.left]
        sizes = [*sizes, *((weight.numel(), 8.0 * weight.element_size()) for weight in weights)]
        return sum(size * bits for size, bits in sizes) / (self.size or sum(size for size, _ in sizes))

    def restore(self) -> None:
        """Put every number back and remove every hook."""
        for problem in self.journal.close():
            raise problem
