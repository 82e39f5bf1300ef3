"""A quantised model as a stream of the engine: a block's matrices are rounded when a pass comes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from studfinder.passes import Stream
from studfinder.quantizers.apply import running
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.method import Method
from studfinder.quantizers.targets import Target


def quantized_stream(bench: Workbench, method: Method) -> Stream:
    """What a method makes of what is on a bench, as a stream; the bench's `bits` are known once it has been carried.

    Args:
        bench: from `bench_for`; nothing on it is transformed.
        method: one that needs no calibration, and takes each fused group by itself.
    """
    lm = bench.lm
    blocks = [layer.block + "." for layer in lm.anatomy.layers]

    def named(target: Target, layer: int) -> list[str]:
        return [name for name in (target.ref.parameter, *target.also) if name.startswith(blocks[layer])]

    own = {layer: tuple(t for t in bench.targets if named(t, layer)) for layer in range(len(blocks))}
    layers = [layer for layer, found in own.items() if found]

    @contextmanager
    def enter(layer: int) -> Iterator[None]:
        if not own.get(layer):
            yield
            return
        with running(replace(bench, targets=own[layer], done={}), method):
            yield

    touched = {name.rpartition(".")[0] for target in own[layers[0]] for name in named(target, layers[0])}
    return Stream(enter=enter, first=layers[0], last=layers[-1], touches=tuple(sorted(touched)))
