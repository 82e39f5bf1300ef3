"""The workbench: what a method gets to work with, and the one place where quantising writes to a live model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.grid import Quantized
from studfinder.quantizers.targets import Target

Progress = Callable[[str, int, int], Any]
"""Told what is being done, how many are done, of how many."""


@dataclass
class Bench:
    """A live model under the knife.

    A method calls `put` for each target, layer by layer; the dequantised matrix stands in the live model from then
    on, so that later layers see what earlier ones lost. What else it changes exactly (norms, scales folded into a
    neighbour) goes through `write`; hooks go through `enter`. `restore` undoes all of it, bit by bit.

    Attributes:
        lm: the model.
        targets: what to quantise, skipped ones left out.
        windows: calibration token ids, for methods that need them.
        held: by parameter name, a bool mask (out, in), True for entries to hold out.
        skipped: fused groups that stay as they are.
        done: what was put, by parameter name.
        originals: whether old values are kept; without them `restore` is an error.
    """

    lm: LM
    targets: tuple[Target, ...]
    windows: Sequence[Sequence[int]] = ()
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    progress: Progress = lambda what, done, total: None
    originals: bool = True
    on_put: Callable[[Target, Quantized], None] | None = None
    done: dict[str, Quantized] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _saved: dict[str, torch.Tensor] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def put(self, target: Target, quantized: Quantized) -> None:
        """Record a quantised matrix and write what it stands for into the model."""
        weight = target.weight(self.lm)
        if quantized.codes_RC.shape != weight.shape:
            raise ValueError(f"{target.name}: {tuple(quantized.codes_RC.shape)} for {tuple(weight.shape)}")
        self._save(target.name)
        with torch.no_grad():
            weight.copy_(quantized.dequantized())
        self.done[target.name] = quantized
        if self.on_put is not None:
            self.on_put(target, quantized)
        self.progress("quantise", len(self.done), len(self.targets))

    def write(self, name: str, value: torch.Tensor) -> None:
        """Write a parameter that is changed but not quantised, in its own layout."""
        self._save(name)
        with torch.no_grad():
            self.lm.model.get_parameter(name).copy_(value)

    def enter(self, context: AbstractContextManager[Any]) -> Any:
        """Enter a context (a tap, a hook) that lasts until the model is restored."""
        return self._stack.enter_context(context)

    @property
    def changed(self) -> tuple[str, ...]:
        """Every parameter that was written."""
        return tuple(self._saved)

    @property
    def bits(self) -> float:
        """True bits a weight over what was quantised; skipped matrices count with their 16 (or 32) bits."""
        skipped = _skipped_parameters(self)
        total = sum(q.codes_RC.numel() for q in self.done.values()) + sum(p.numel() for p in skipped)
        if not total:
            raise StudfinderError("nothing was quantised", expected="at least one matrix")
        bits = sum(q.bits * q.codes_RC.numel() for q in self.done.values())
        return (bits + sum(p.numel() * 8 * p.element_size() for p in skipped)) / total

    def restore(self) -> None:
        """Put every number back and remove every hook. Safe to call again after an interrupt."""
        self._stack.close()
        with torch.no_grad():
            while self._saved:
                name = next(reversed(self._saved))
                # Written before it is forgotten: if this is interrupted and run again, it is only written twice.
                self.lm.model.get_parameter(name).copy_(self._saved[name])
                self._saved.pop(name, None)

    def _save(self, name: str) -> None:
        if name not in self._saved:
            parameter = self.lm.model.get_parameter(name)
            self._saved[name] = parameter.detach().clone() if self.originals else torch.empty(0)


def _skipped_parameters(bench: Bench) -> list[nn.Parameter]:
    from studfinder.quantizers.targets import targets

    left = [target for target in targets(bench.lm) if target.name not in {t.name for t in bench.targets}]
    return [bench.lm.model.get_parameter(target.name) for target in left]
