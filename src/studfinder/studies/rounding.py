"""What the quantisers' experiments share: ways to round a model, and what keeping something does over all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.quantizers import Scheme, Workbench, calibration_windows, quantized, targets
from studfinder.quantizers.apply import bench_for
from studfinder.quantizers.grid import fits
from studfinder.quantizers.streams import quantized_stream
from studfinder.records import Chart, Plot, Series, point
from studfinder.records.config import option
from studfinder.studies import KL, GridScores, ModelVariant, Original, Watch, spoken
from studfinder.studies.experiment import Bench, StudyConfig

CAVEAT = (
    "The built-in model's weights come from 4-bit blocks of 32, so its neighbourhoods are already rounded: judge on "
    "groups of 64 and more."
)
NAMES = {"rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ", "smoothquant": "SmoothQuant", "clip-restore": "CLIP-restore"}
ORIGINAL = ModelVariant("original", stream=lambda: (Stream(enter=lambda layer: nullcontext(), first=0, last=-1), None))


@dataclass(frozen=True, kw_only=True)
class RoundingConfig(StudyConfig):
    """On how much text rounded models are judged."""

    limit: int = option(16, help="Windows of a perplexity.", least=1)
    pieces: int = option(16, help="Pieces of our proof text, for the KL.", least=1)


@dataclass(frozen=True, kw_only=True)
class CalibratedConfig(RoundingConfig):
    """And by which text methods are calibrated."""

    calibration: str = option(
        "wikipedia", help="Calibration text: wikipedia, c4, a file, a folder or a data set of the hub."
    )
    calibration_windows: int = option(16, help="Windows of it.", least=1)
    length: int = option(512, help="Tokens of a window of it.", least=2)


@dataclass(frozen=True, kw_only=True)
class SchemeConfig(StudyConfig):
    """One scheme."""

    element: str = option("int4", help="What numbers are rounded to.")
    block: str = option("64", help="Inputs that share a scale, or channel, or tensor.")
    zero: str = option("integer", help="Zero point: integer, none or float.")


class Rounding:
    """A model with its calibration text and what it says before it is rounded, each made once, and only where needed.

    Attributes:
        original: measures the KL of changed models from this one, on our proof text.
    """

    def __init__(self, bench: Bench, lm: LM, *, pieces: int | None = None) -> None:
        self.bench, self.lm = bench, lm
        self.original = Original(pieces or bench.config.pieces)

    @cached_property
    def windows(self) -> list[list[int]]:
        """Calibration token ids, as the settings `calibration`, `calibration_windows` and `length` say."""
        own = self.bench.config
        return calibration_windows(self.lm, own.calibration, count=own.calibration_windows, length=own.length)[1]

    def scheme(self, scheme: Scheme | None = None) -> Scheme:
        """That of the settings `element`, `block` and `zero`, or another; with a smaller last block where its blocks do
        not divide every matrix of the model."""
        if scheme is None:
            own = self.bench.config
            scheme = Scheme(element=own.element, block=block_of(own.block), zero=own.zero)
        loose = replace(scheme, remainder="block")
        return scheme if all(fits(target.weight(self.lm).shape, loose) for target in targets(self.lm)) else loose

    def variant(
        self,
        label: str,
        method: Any,
        *,
        keep: Any = None,
        transforms: Sequence[Any] = (),
        kept: str = "",
        family: str = "",
    ) -> ModelVariant:
        """The model quantised by a method, with something kept.

        Args:
            transforms: exact changes that are made first.
            kept: in words, what.
        """
        parts = keep if isinstance(keep, list | tuple) else [keep]
        calibrated = any(getattr(part, "calibrated", False) for part in (method, *parts, *transforms))

        def change() -> AbstractContextManager[Workbench]:
            more = {"keep": keep, "transforms": transforms, "windows": self.windows if calibrated else ()}
            return quantized(self.lm, method, **more)

        def stream() -> tuple[Stream, Workbench]:
            bench = bench_for(self.lm, method, keep=keep)
            return quantized_stream(bench, method), bench

        return ModelVariant(
            label,
            change,
            _key(method, keep, transforms),
            family or label,
            kept,
            SimpleNamespace(method=method, transforms=transforms),
            stream=None if calibrated or transforms else stream,
        )

    def entered(
        self, label: str, enter: Callable[[], AbstractContextManager[float | None]], settings: str, **more: Any
    ) -> ModelVariant:
        """The model changed in another way, by a context manager that gives true bits; `settings` tells how."""

        @contextmanager
        def change() -> Iterator[Any]:
            with enter() as bits:
                yield SimpleNamespace(bits=bits)

        nothing = SimpleNamespace(method=None, transforms=())
        return ModelVariant(label, change, _key(settings), detail=nothing, **more)

    def scored(
        self,
        variants: Sequence[ModelVariant],
        measures: Sequence[str],
        *watches: Watch,
        limits: Mapping[str, int | None] | None = None,
    ) -> GridScores:
        """Every measure of the model as it is and of every variant; one that does not fit the model says why."""
        every: list[str | Watch] = [*measures, self.original, *watches]
        return self.bench.grid(self.lm, [ORIGINAL, *variants], every, limits=limits, lenient=True)


def _key(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def block_of(text: str) -> Any:
    """A block as a scheme has it: "tensor", "channel", "64" or "16x16"."""
    if text in ("tensor", "channel"):
        return text
    try:
        sizes = [int(part) for part in text.split("x")]
    except ValueError:
        sizes = []
    if len(sizes) not in (1, 2):
        raise StudfinderError(f"block {text!r}", expected="tensor, channel, a number such as 64, or tiles as 16x16")
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def kept_pairs(scored: GridScores) -> list[tuple[ModelVariant, ModelVariant]]:
    """Every variant that keeps something, beside the one of its family that keeps nothing."""
    plain = {one.family: one for one in scored.tried() if not one.kept}
    return [(one, plain[one.family]) for one in scored.tried() if one.kept and one.family in plain]


def keeping_notes(
    scored: GridScores,
    measures: Sequence[str],
    over: str,
    verb: str = "keeping",
    against: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """What keeping each kind of numbers (or whatever else `verb` says) does to each measure, over families.

    Args:
        over: what families are, in words.
        against: besides, of each pair (kept, its control) the first instead of the second.
    """
    pairs = kept_pairs(scored)
    beside = {(one.family, one.kept): one for one, _ in pairs}
    kinds = dict.fromkeys(one.kept for one, _ in pairs)
    told = [(f"{verb} {kept}", [pair for pair in pairs if pair[0].kept == kept]) for kept in kinds]
    for kept, control in against:
        both = [
            (one, beside[one.family, control])
            for one, _ in pairs
            if one.kept == kept and (one.family, control) in beside
        ]
        told.append((f"{verb} {kept} instead of {control}", both))
    notes = []
    for what, found in told:
        for measure in measures:
            says = scored.tally([(one.label, other.label) for one, other in found], measure)
            notes += [f"{what} {says}, over {over}."] if says else []
    return notes


def families_chart(scored: GridScores, name: str, *, turned: bool = False) -> Chart:
    """The first measure over the original's, by family (rows) and by what is kept (colours), or the other way round."""
    measure = scored.measures[0]
    found = {(v.family, v.kept or "nothing"): point(scored.change(measure, v.label)) for v in scored.tried()}
    families, kinds = (list(dict.fromkeys(key[side] for key in found)) for side in (0, 1))
    rows, colours = (kinds, families) if turned else (families, kinds)
    series = tuple(
        Series(
            name=colour,
            points=tuple(found.get((colour, row) if turned else (row, colour), point(None)) for row in rows),
            quiet=colour == "nothing",
        )
        for colour in colours
    )
    values = [value for value, *_ in found.values() if 0 < value < float("inf")]
    log = bool(values) and max([*values, 1.0]) / min([*values, 1.0]) > 3
    x = f"{spoken(measure)} / original"
    return Chart(name=name, plots=(Plot(kind="dots", rows=tuple(rows), series=series, x=x, none=1.0, log=log),))


__all__ = ["CAVEAT", "KL", "NAMES", "ORIGINAL", "Rounding", "block_of", "families_chart", "keeping_notes", "kept_pairs"]
