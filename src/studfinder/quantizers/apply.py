"""with quantized(lm, method): the model as it would be after quantising, and bit-identical again afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.activations import ActivationScheme, enter_rounding
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.fused_scales import share
from studfinder.quantizers.keep import resolve, unkept
from studfinder.quantizers.method import Method
from studfinder.quantizers.scheme import Scheme, tile
from studfinder.quantizers.targets import Target, targets
from studfinder.quantizers.transforms import transforms_of
from studfinder.runs import Progress

T = TypeVar("T")


def quantized(
    lm: LM,
    method: Method,
    *,
    keep: Any = None,
    transforms: Any = (),
    windows: Sequence[Sequence[int]] = (),
    schemes: Mapping[str, Scheme] | None = None,
    inputs: Mapping[str, ActivationScheme] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> AbstractContextManager[Workbench]:
    """Quantise a live model while the context lasts; gives the Workbench.

    The dequantised weights stand in the model, so that every measure runs on it as on any other. Every parameter that
    is written is saved first and put back bit by bit: after the block, through an exception, and through Ctrl-C at any
    moment (see `Journal`).

    Args:
        method: its settings, e.g. RTN(...).
        keep: what must survive: findings, hold_out(...), skip(...); several are combined.
        transforms: changes before rounding, in order: Rebalance(...), Rotate(...).
        windows: calibration token ids, for methods that need them.
        schemes: of matrices that are stored in another way than the method says, by parameter name.
        inputs: how what enters a matrix is rounded, by parameter name; dynamic ranges only.
        progress: told what is being done, how many are done, of how many.

    Raises:
        StudfinderError: a matrix that the scheme does not fit, no calibration windows where the method needs them,
            findings of another model.
    """
    bench = bench_for(
        lm,
        method,
        keep=keep,
        transforms=transforms,
        windows=windows,
        schemes=schemes,
        inputs=inputs,
        progress=progress,
    )
    return running(bench, method)


@contextmanager
def running(bench: Workbench, method: Method) -> Iterator[Workbench]:
    """Run a method on a bench, and restore the model at the end of the context, whatever ends it."""
    with prepared(bench):
        method.run(bench)
        for config in dict.fromkeys(bench.inputs.values()):
            enter_rounding(bench, config, [name for name, own in bench.inputs.items() if own == config])
        share(bench)
        yield bench


@contextmanager
def prepared(bench: Workbench) -> Iterator[Workbench]:
    """The bench as a method finds it: exact changes made, and skipped what has numbers that there is no place for."""
    with bench.journal:
        for transform in bench.transforms:
            transform.apply(bench)
        if bench.held and not bench.numbers:
            bench.skip_held()
        yield bench


def bench_for(
    lm: LM,
    method: Method,
    found: Sequence[Target] | None = None,
    *,
    keep: Any = None,
    transforms: Any = (),
    windows: Sequence[Sequence[int]] = (),
    schemes: Mapping[str, Scheme] | None = None,
    inputs: Mapping[str, ActivationScheme] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Workbench:
    """Check that a method can do its work on a model, and lay out what it needs: `found` is every matrix that may be
    rounded, None all of `targets`. Raises as `quantized`."""
    found = targets(lm) if found is None else found
    changes = transforms_of(lm, transforms)
    for part in (method, *changes):
        if getattr(part, "calibrated", False) and not windows:
            raise StudfinderError(
                f"{type(part).__name__} needs calibration text", do="Give windows from calibration_windows(lm)"
            )
    held, skipped = resolve(lm, found, keep)
    kept = tuple(target for target in found if target.fused not in skipped)
    if not kept:
        raise StudfinderError("everything is skipped", expected="at least one matrix to quantise")
    bench = Workbench(
        lm,
        kept,
        windows=windows,
        held={name: mask for name, mask in held.items() if name in {target.name for target in kept}},
        skipped=tuple(sorted(skipped)),
        left=tuple(target for target in found if target.fused in skipped),
        transforms=changes,
        progress=progress,
        scheme=method.scheme,
        schemes=_of_targets(schemes, found),
        inputs=_of_targets(inputs, found),
        notes=unkept(keep),
        size=sum(target.weight(lm).numel() for target in found),
    )
    for target in kept:
        if target.name in bench.schemes:
            bench.own(method, target.name)  # which checks that they go together
        check_fits(target.name, target.weight(lm).shape, bench.scheme_of(target.name))
    return bench


def _of_targets(given: Mapping[str, T] | None, found: Sequence[Target]) -> dict[str, T]:
    wrong = sorted((given or {}).keys() - {target.name for target in found})
    if wrong:
        raise StudfinderError(f"{wrong[0]} is not among what is quantised", expected="names of quantised matrices")
    return dict(given or {})


def check_fits(name: str, shape: Any, scheme: Scheme) -> None:
    """Raise StudfinderError, naming the matrix, if the scheme's blocks do not fit it."""
    try:
        tile(shape, scheme)
    except StudfinderError as error:
        raise StudfinderError(f"{name}: {error.what}", expected=error.expected, do=error.do) from None
