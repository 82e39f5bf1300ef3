"""with quantized(lm, method): the model as it would be after quantising, and bit-identical again afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.bench import Bench, Progress
from studfinder.quantizers.keep import Keep, resolve
from studfinder.quantizers.method import Method
from studfinder.quantizers.targets import targets


class quantized:
    """Quantise a live model while the context lasts.

    The dequantised weights stand in the model, so that every measure runs on it as on any other. Every parameter that
    is written is saved first and put back bit by bit: after the block, through an exception, and through Ctrl-C at any
    moment (the interrupt handler itself puts them back, as in `edited`).

    Args:
        method: its settings, e.g. RTN(...).
        keep: what must survive: findings, a fraction, skips (see `keep`); several are combined.
        windows: calibration token ids, for methods that need them.
        progress: told what is being done, how many are done, of how many.

    Raises:
        StudfinderError: a matrix that the scheme does not fit, no calibration windows where the method needs them,
            findings of another model.
    """

    def __init__(
        self,
        lm: LM,
        method: Method,
        *,
        keep: Keep | Sequence[Keep] | Any = None,
        windows: Sequence[Sequence[int]] = (),
        progress: Progress = lambda what, done, total: None,
    ) -> None:
        self.bench = bench_for(lm, method, keep=keep, windows=windows, progress=progress)
        self.method = method
        self._previous: Any = None
        self._guarded = False

    def __enter__(self) -> Bench:
        try:
            self._guard()
            self.method.run(self.bench)
        except BaseException:
            self._leave()
            raise
        return self.bench

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        self.bench.restore()
        if self._guarded:
            self._guarded = False
            signal.signal(signal.SIGINT, self._previous)

    def _guard(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.getsignal(signal.SIGINT)
            if callable(self._previous):
                signal.signal(signal.SIGINT, self._interrupted)
                self._guarded = True

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        self._leave()
        self._previous(number, frame)


def bench_for(
    lm: LM,
    method: Method,
    *,
    keep: Any = None,
    windows: Sequence[Sequence[int]] = (),
    progress: Progress = lambda what, done, total: None,
    originals: bool = True,
) -> Bench:
    """Check that a method can do its work on a model, and lay out what it needs. Raises as `quantized`."""
    found = targets(lm)
    if method.calibrated and not windows:
        raise StudfinderError(
            f"{type(method).__name__} needs calibration text", do="Give windows=sf.calibration_windows(lm)"
        )
    held, skipped = resolve(lm, found, keep, method.scheme)
    kept = tuple(target for target in found if target.fused not in skipped)
    if not kept:
        raise StudfinderError("everything is skipped", expected="at least one matrix to quantise")
    check_fits(lm, method, kept)
    return Bench(
        lm, kept, windows=windows, held=held, skipped=tuple(sorted(skipped)), progress=progress, originals=originals
    )


def check_fits(lm: LM, method: Method, found: Sequence[Any]) -> None:
    """Raise StudfinderError, naming the matrix, if the scheme's blocks do not fit one of them."""
    from studfinder.quantizers.scheme import tile

    for target in found:
        try:
            tile(target.weight(lm).shape, method.scheme)
        except StudfinderError as error:
            raise StudfinderError(f"{target.name}: {error.what}", expected=error.expected, do=error.do) from None
