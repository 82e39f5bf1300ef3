"""What every method has in common: a config record and a function that works on a bench."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, runtime_checkable

from studfinder.errors import unknown
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.scheme import Scheme

METHODS = {
    "rtn": "studfinder.quantizers.rtn:RTN",
    "gptq": "studfinder.quantizers.gptq:GPTQ",
    "awq": "studfinder.quantizers.awq:AWQ",
    "smoothquant": "studfinder.quantizers.smoothquant:SmoothQuant",
    "clip-restore": "studfinder.quantizers.clip_restore:ClipRestore",
}
"""Every method, as module:class. A new one is one new file and one line here."""


@runtime_checkable
class Method(Protocol):
    """A frozen keyword-only record of a method's settings that knows how to run.

    `run` takes each of `bench.targets` in order and calls `bench.put(target, quantized)`; `bench.held.get(name)` says
    what it must hold out. It reads matrices with `target.weight(bench.lm)`, (out, in) whatever the architecture.
    """

    @property
    def scheme(self) -> Scheme:
        """How weights are stored."""
        ...

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration windows."""
        ...

    def run(self, bench: Workbench) -> None:
        """Quantise everything on the bench."""
        ...


def method_class(name: str) -> type:
    """The config record of a method by name. Raises StudfinderError for an unknown one."""
    if name not in METHODS:
        raise unknown("there is no method", name, METHODS)
    module, _, attribute = METHODS[name].partition(":")
    return getattr(import_module(module), attribute)
