"""What the quantisers' experiments share: recipes, each carried out once, and measured while it stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from studfinder.errors import StudfinderError, WriteFailed
from studfinder.experiments.experiment import Bench
from studfinder.experiments.fidelity import Original, kl_scores, proof_windows
from studfinder.experiments.quantize_preserved import Preserved
from studfinder.experiments.w8a8 import Windows
from studfinder.measures import Scores, measure_named
from studfinder.models import LM
from studfinder.quantizers import Scheme, calibration_windows, quantized, targets
from studfinder.quantizers.grid import fits
from studfinder.records import from_json, to_plain

CAVEAT = (
    "The built-in model's weights come from 4-bit blocks of 32, so its neighbourhoods are already rounded: judge on "
    "groups of 64 and more."
)
ORIGINAL = "original"
NAMES = {"rtn": "RTN", "gptq": "GPTQ", "awq": "AWQ", "smoothquant": "SmoothQuant", "clip-restore": "CLIP-restore"}
KL = "KL"
"""The measure that is taken here and not by name: KL(original || changed) on our proof text."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to quantise a model.

    Attributes:
        label: as a row of a table calls it; unique.
        method: a method's record; None is the model as it is.
        keep, transforms: what must survive, and changes before; see `studfinder.quantizers.quantized`.
        kept: that in words; "" if nothing.
        family: what belongs together in a figure.
        enter: where there is no method: a context manager of the changed model, which gives the true bits. It is told
            the model and how to get calibration windows.
        settings: what `enter` does, so that other settings under the same label are not taken for it.
    """

    label: str
    method: Any = None
    keep: Any = None
    transforms: tuple[Any, ...] = ()
    kept: str = ""
    family: str = ""
    enter: Callable[[LM, Callable[[], Windows]], AbstractContextManager[float | None]] | None = None
    settings: str = ""

    @property
    def key(self) -> str:
        """What tells it from others of the same label."""
        return hashlib.sha256(repr((self.method, self.keep, self.settings, *self.transforms)).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Made:
    """A recipe that was carried out.

    Attributes:
        recipe: which.
        bits: true bits a weight (or a number of the cache) of what it made; None of the original.
        scores: by measure.
        notes: what the method reports of itself.
        refused: why it could not be carried out; "" if it could.
    """

    recipe: Recipe
    bits: float | None
    scores: Mapping[str, Scores]
    notes: tuple[str, ...] = ()
    refused: str = ""


@dataclass(kw_only=True)
class RecipeWork:
    """What recipes are carried out with: the model, calibration text and the original's distributions, made once and
    only where they are needed.

    Attributes:
        bench, lm: the experiment's.
        measures: names as on the command line, and KL.
        limits: at most so many items, by the measure's name before the colon.
        extras: what else is measured.
        missing: measures that could not be taken, with the reason.
    """

    bench: Bench
    lm: LM
    measures: Sequence[str]
    limits: Mapping[str, int | None] = field(default_factory=dict)
    extras: Preserved | None = None
    missing: dict[str, str] = field(default_factory=dict)
    _windows: list[list[int]] | None = None
    _original: Original | None = None

    @property
    def windows(self) -> list[list[int]]:
        """Calibration token ids, as the settings `calibration`, `calibration_windows` and `length` say."""
        if self._windows is None:
            own = self.bench.settings
            count, length = own["calibration_windows"], own["length"]
            self._windows = calibration_windows(self.lm, own["calibration"], count=count, length=length)[1]
        return self._windows

    @property
    def original(self) -> Original:
        """The model as it is, on our proof text."""
        if self._original is None:
            self._original = Original(self.lm, proof_windows(self.lm, self.limits.get(KL)))
        return self._original

    def carried_out(self, recipes: Sequence[Recipe]) -> list[Made]:
        """The original, and every recipe, measured; a step each. A measure that the original cannot be given is left
        out, and a recipe that does not fit this model says why.

        Raises:
            StudfinderError: no measure can be taken.
        """
        made = []
        for number, recipe in enumerate([Recipe(label=ORIGINAL), *recipes]):
            self.bench.progress(recipe.label, number, len(recipes) + 1)
            step = f"{recipe.label} {recipe.key} | {','.join(self.measures)}"
            plain = self.bench.once(step, partial(self._done, recipe))
            scores = {name: from_json(Scores, json.dumps(one)) for name, one in plain["scores"].items()}
            made.append(
                Made(
                    recipe=recipe,
                    bits=plain["bits"],
                    scores=scores,
                    notes=tuple(plain["notes"]),
                    refused=plain["refused"],
                )
            )
            if not number:
                self.missing.update(plain["missing"])
                if not scores:
                    raise StudfinderError("none of the measures can be taken: " + " ".join(self.missing.values()))
        self.bench.progress("measured", len(recipes) + 1, len(recipes) + 1)
        return made

    def _done(self, recipe: Recipe) -> dict[str, Any]:
        found: dict[str, Any] = {"bits": None, "notes": [], "scores": {}, "missing": {}, "refused": ""}
        wanted = [name for name in self.measures if name not in self.missing]
        if recipe.method is None and recipe.enter is None:
            self._take(wanted, found, strict=False)
            return found
        self._see(wanted)
        try:
            self._changed(recipe, wanted, found)
        except WriteFailed:
            raise
        except StudfinderError as error:
            found["refused"], found["scores"] = str(error), {}
        return found

    def _changed(self, recipe: Recipe, wanted: Sequence[str], found: dict[str, Any]) -> None:
        if recipe.method is None:
            assert recipe.enter is not None
            with recipe.enter(self.lm, lambda: self.windows) as bits:
                found["bits"] = bits
                self._take(wanted, found, strict=True)
            return
        windows = self.windows if recipe.method.calibrated else ()
        with quantized(
            self.lm, recipe.method, keep=recipe.keep, transforms=recipe.transforms, windows=windows
        ) as bench:
            found["bits"], found["notes"] = bench.bits, list(bench.notes)
            self._take(wanted, found, strict=True)

    def _take(self, wanted: Sequence[str], found: dict[str, Any], *, strict: bool) -> None:
        for name in wanted:
            try:
                found["scores"][name] = to_plain(self._score(name))
            except WriteFailed:
                raise
            except StudfinderError as error:
                if strict:
                    raise
                found["missing"][name] = str(error)
        if self.extras is not None:
            self.extras.see(self.lm)  # the first time, the model is the original
            found["scores"].update({name: to_plain(one) for name, one in self.extras.scores(self.lm).items()})

    def _see(self, wanted: Sequence[str]) -> None:
        """Read what changed models are held against, before anything is changed."""
        if KL in wanted:
            _ = self.original
        if self.extras is not None:
            self.extras.see(self.lm)

    def _score(self, name: str) -> Scores:
        if name == KL:
            return kl_scores(self.original.kl(self.lm))
        limit = self.limits.get(name.partition(":")[0])
        return measure_named(name)(self.lm, limit=limit, seed=self.bench.settings["seed"])


def limits_of(bench: Bench) -> dict[str, int | None]:
    """Windows of perplexity and pieces of the proof text, as the settings say."""
    return {"perplexity": bench.settings["limit"], KL: bench.settings["pieces"]}


def fitted(lm: LM, scheme: Scheme) -> Scheme:
    """The scheme, with a smaller last block if its blocks do not divide every matrix of the model."""
    loose = replace(scheme, remainder="block")
    return scheme if all(fits(target.weight(lm).shape, loose) for target in targets(lm)) else loose


def listed(text: str) -> list[str]:
    """The parts of a setting that holds several."""
    return [part.strip() for part in str(text).split(",") if part.strip()]


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
