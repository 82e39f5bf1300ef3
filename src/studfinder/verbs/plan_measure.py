"""KLs of many roundings of one model, several to a reading, remembered as steps of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from studfinder.edits import replaced_stream
from studfinder.measures import effects_of
from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.quantizers.method import Method
from studfinder.quantizers.mixed import NEAREST, KeptPlaces, mixed_bench, mixed_stream, written_by
from studfinder.quantizers.targets import Target
from studfinder.records import Format, Interval
from studfinder.runs import Progress, Steps
from studfinder.stats import crossed, ratio_interval

_TOGETHER = 24


@dataclass(frozen=True)
class Bed:
    """What roundings are made and measured on.

    Attributes:
        found: the matrices that are planned.
        formats: by name.
        kept: see `KeptPlaces`.
        method: how groups are rounded to their formats.
        windows: token ids that it is calibrated on; none of a method that needs none.
    """

    lm: LM
    found: Sequence[Target]
    formats: Mapping[str, Format]
    kept: KeptPlaces
    steps: Steps
    progress: Progress
    method: Method = NEAREST
    windows: Sequence[Sequence[int]] = ()

    @property
    def together(self) -> int:
        """Changed models that share a reading of the original, and are one step: of a calibrated method all that it
        changes is held in memory."""
        return 2 if self.windows else _TOGETHER

    def stream(self, chosen: Mapping[str, str]) -> Stream:
        """The model with some groups in formats, and the others left as they are."""
        formats = {group: self.formats[name] for group, name in chosen.items()}
        if not self.windows:
            return mixed_stream(self.lm, formats, self.kept, self.found)
        bench = mixed_bench(self.lm, formats, self.kept, self.found, self.method, self.windows)
        return replaced_stream(self.lm, written_by(bench, self.method))


@dataclass(frozen=True)
class Judged:
    """KLs by changed model and window, summed over a window's positions.

    Attributes:
        sums: by name, (windows,).
        tokens: scored positions, (windows,).
    """

    sums: dict[str, np.ndarray]
    tokens: np.ndarray

    def kl(self, name: str, minus: str | None = None) -> Interval:
        """Nats per token, windows resampled; or by how much it exceeds another's."""
        return ratio_interval(self.sums[name] - (0 if minus is None else self.sums[minus]), self.tokens)

    def mean(self, names: Sequence[str], minus: str | None = None) -> Interval:
        """The same of several draws, draws and windows resampled."""
        drawn = np.stack([self.sums[name] - (0 if minus is None else self.sums[minus]) for name in names])
        sums = {"kl": drawn, "tokens": self.tokens[None].astype(float)}
        return crossed(lambda mean: mean["kl"] / mean["tokens"], sums, what="windows")


def kls_of(
    bed: Bed,
    what: str,
    windows: Sequence[Sequence[int]],
    variants: Mapping[str, Mapping[str, str]],
    others: Mapping[str, Callable[[], Stream]] | None = None,
) -> Judged:
    """KLs from the model as it is, of roundings and of other streams; each reading is a step of the run.

    Args:
        what: in words, for the line of progress.
        windows: token ids.
        variants: by name, formats by group; groups that are not there are left as they are.
        others: by name, what makes another changed model.
    """
    makers: dict[str, Callable[[], Stream]] = {name: _maker(bed, one) for name, one in variants.items()}
    makers |= others or {}
    keys = {name: _key(variants.get(name, name)) for name in makers}
    sums: dict[str, np.ndarray] = {}
    done = 0.0
    every = list(makers)
    for start in range(0, len(every), bed.together):
        names = every[start : start + bed.together]
        step = f"{what} {_key([keys[name] for name in names])} {_key(windows)}"
        if bed.windows:
            step += f" {_key((bed.method, bed.windows))}"

        def advance(share: float) -> None:
            nonlocal done
            done += share * len(names)  # noqa: B023
            bed.progress(what, int(done), len(makers))

        def read() -> Any:
            return effects_of(bed.lm, windows, [makers[name]() for name in names], advance=advance).kl.tolist()  # noqa: B023

        sums |= zip(names, map(np.array, bed.steps.once(step, read)), strict=True)
    return Judged(sums, np.array([len(ids) - 1 for ids in windows]))


def _maker(bed: Bed, chosen: Mapping[str, str]) -> Callable[[], Stream]:
    return lambda: bed.stream(chosen)


def _key(of: Any) -> str:
    plain = sorted(of.items()) if isinstance(of, Mapping) else of
    return hashlib.sha256(repr(plain).encode()).hexdigest()[:12]
