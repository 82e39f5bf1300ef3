"""Is a super weight always the same weight (Yu et al. 2024, arXiv 2411.07191, section 3.1 and table 2)?

The paper finds a super weight with one prompt, as the place where a down projection's largest input (its column) and
largest output (its row) cross, and says that another prompt gives the same place, and that an instruct model has the
place of its base. Here the same is read on many prompts: in each layer that holds a proven super weight, do the largest
input and output cross at it? And again in versions of the model: rounded to eight and four bits, and trained on for a
few steps. Several models given together, a base and its instruct model say, are held against each other.

Controls: the other layers, where the commonest place of the untouched model is asked for alike. A place that any layer
keeps says nothing of super weights. In each version the weight is also set to zero, beside the weight nearest in size
that shares no row or column with it, since a place may stay and no longer matter.

Look at: the share of prompts in the layers of super weights beside that of the other layers.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.experiments.held_weights import WeightPlaces, without
from studfinder.experiments.super_weight_coordinates_tables import (
    AS_IS,
    OVER_PROMPTS,
    VERSIONS,
    Crossing,
    SeenVersion,
    commonest,
    coordinates_chart,
    coordinates_note,
    judged_shares,
    layer_table,
    shares_of,
    version_table,
)
from studfinder.experiments.weights import SuperWeightConfig, controls_of, named, super_weights_of
from studfinder.models import LM, load
from studfinder.quantizers import AWQ, GPTQ, RTN, Method, Scheme, calibration_windows, quantized
from studfinder.records import Cell, Table
from studfinder.records.config import option
from studfinder.sites import WriterCall, tapped
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.texts import encode, proof_text
from studfinder.training import TrainingRecipe, fit, tokenized
from studfinder.training.trainable import check_trainable


@dataclass(frozen=True, kw_only=True)
class CoordinatesConfig(SuperWeightConfig):
    """On how many prompts, and in which versions of the model."""

    limit: int = option(64, help="Prompts.", least=2)
    length: int = option(64, help="Tokens of each.", least=2)
    text: str = option("wikipedia", help="The text that they are cut from, that calibrates, and that is trained on.")
    versions: tuple[str, ...] = option(
        "rtn8,rtn4,gptq8,gptq4,tuned", help="rtn, gptq or awq with its bits; tuned: trained on.", commas=True
    )
    block: int = option(64, help="Inputs that share a scale.", least=1)
    steps: int = option(60, help="Steps of training on.", least=1)
    lr: float = option(1e-4, help="Its learning rate.", above=0)
    pieces: int = option(8, help="Pieces of our proof text, for what the weights do.", least=1)


EXPERIMENT = Experiment(
    name="super-weight/coordinates",
    paper="2411.07191",
    shows="table 2",
    summary="Is the super weight the same weight over prompts and over versions of the model?",
    needs="about 8 minutes and 4 GB with smollm2 on one core (plus the scan that finds the weights)",
    presets={"cpu": CoordinatesConfig()},
    claims=(OVER_PROMPTS, VERSIONS),
)
_METHODS: dict[str, Callable[[Scheme], Method]] = {
    "rtn": lambda scheme: RTN(scheme=scheme),
    "gptq": lambda scheme: GPTQ(scheme=scheme),
    "awq": lambda scheme: AWQ(scheme=scheme),
}


def run(bench: Bench, lm: LM) -> Outcome:
    """Read where inputs and outputs cross, in the model and in each version of it."""
    own = bench.config
    weights, findings = super_weights_of(bench, lm)
    first, control = weights[0], controls_of(lm, weights[:1], findings)[0]
    groups: dict[str, WeightPlaces] = {
        "super": [(first.parameter, first.index)],
        "control": [(control.parameter, [at for at in control.entries[0] if at is not None])],
    }
    prompts = calibration_windows(lm, own.text, count=own.limit, length=own.length)[1]
    versions: dict[str, _Enter] = {AS_IS: lambda: nullcontext(lm), **_versions(bench, lm, prompts)}
    seen: dict[str, SeenVersion] = {}
    for number, (name, enter) in enumerate(versions.items()):
        bench.progress(name, number, len(versions))
        seen[name] = bench.once(f"version {name}", partial(_read, enter, prompts, groups, own.pieces))
    places: dict[int, list[Crossing]] = {}
    for weight in weights:
        writers = [(ref.parameter, ref.expert) for ref in lm.anatomy.layers[weight.layer].writers]
        place = [writers.index((weight.parameter, weight.expert)), weight.row, weight.col]
        places.setdefault(weight.layer, []).append(place)
    common = [commonest(column) for column in zip(*seen[AS_IS]["places"], strict=True)]
    shares = {name: shares_of(one["places"], places, common) for name, one in seen.items()}
    data = {"super weights": places, "commonest": common, "layers": len(common)}
    tables = [layer_table(places, seen[AS_IS]["places"], named(weights)), version_table(seen, shares)]
    claims = [
        judged_shares(OVER_PROMPTS, [shares[AS_IS]]),
        judged_shares(VERSIONS, [shares[name] for name in list(versions)[1:]]),
    ]
    return Outcome(tables, [coordinates_note(shares)], [coordinates_chart(shares)], data, claims=claims)


def _read(enter: _Enter, prompts: Any, groups: Mapping[str, WeightPlaces], pieces: int) -> SeenVersion:
    """What is seen of one version."""
    with enter() as lm:
        places = [_crossings(lm, ids) for ids in prompts]
        return {"places": places, **without(lm, encode(lm, proof_text()[:pieces])[0], groups)}


def _crossings(lm: LM, ids: Sequence[int]) -> list[Crossing | None]:
    """By layer, where its largest input and its largest output cross; in a mixture, those of the expert whose output is
    largest."""
    peaks: list[tuple[float, Crossing | None]] = [(0.0, None)] * len(lm.anatomy.layers)

    def look(event: WriterCall) -> None:
        if event.output_NC.numel():
            out_C, in_F = (tensor.abs().amax(dim=0) for tensor in (event.output_NC, event.input_NF))
            peak = float(out_C.max())
            if peak > peaks[event.layer][0]:
                peaks[event.layer] = (peak, [event.writer, int(out_C.argmax()), int(in_F.argmax())])

    with tapped(lm, read={WriterCall: [look]}), torch.no_grad():
        lm.model(input_ids=torch.tensor([list(ids)], device=lm.device), use_cache=False)
    return [place for _, place in peaks]


_Enter = Callable[[], AbstractContextManager[LM]]


def _versions(bench: Bench, lm: LM, prompts: Sequence[Sequence[int]]) -> dict[str, _Enter]:
    """By name, how each version is entered."""
    own = bench.config
    found: dict[str, _Enter] = {}
    for name in own.versions:
        parsed = re.fullmatch(r"(rtn|gptq|awq)([2-8])", name)
        if name == "tuned":
            check_trainable(lm, own.length)
            found[f"trained on, {own.steps} steps"] = partial(_tuned, bench, lm)
        elif parsed is not None:
            method, bits = parsed.groups()
            element: Any = f"int{bits}"
            scheme = Scheme(element=element, block=own.block, zero="integer", remainder="block")
            found[f"{method.upper()}, {element}"] = partial(_rounded, lm, _METHODS[method](scheme), prompts)
        else:
            raise StudfinderError(f"versions={name}", expected="rtn, gptq or awq with 2 to 8 bits, as rtn4; or tuned")
    return found


@contextmanager
def _rounded(lm: LM, method: Method, windows: Sequence[Sequence[int]]) -> Iterator[LM]:
    """The model itself, rounded for as long."""
    with quantized(lm, method, windows=windows):
        yield lm


@contextmanager
def _tuned(bench: Bench, lm: LM) -> Iterator[LM]:
    """A copy that is trained on, on the same text."""
    own = bench.config
    source, _ = tokenized(own.text, own.length, None, lm=lm, limit=(2 * own.steps + 40) * own.length)
    recipe = TrainingRecipe(
        steps=own.steps, batch=1, lr=own.lr, warmup=min(10, own.steps), look_every=own.steps, test=1, precision="fp32"
    )
    fitted = fit(copy.deepcopy(lm.model).float(), source, recipe)
    if fitted.stopped:
        raise StudfinderError(f"training on {fitted.stopped}", do="Take a smaller lr")
    yield load(fitted.model.eval(), lm.tokenizer)


def across(data: Mapping[str, Any]) -> Outcome:
    """Of each model's super weights, how many are where another one's inputs and outputs commonly cross."""
    rows: list[tuple[Cell, ...]] = []
    for model, own in data.items():
        for other, there in data.items():
            if model != other:
                pairs = [(int(layer), place) for layer, found in own["super weights"].items() for place in found]
                fits = own["layers"] == there["layers"]
                hits = [place for layer, place in pairs if fits and there["commonest"][layer] == place]
                rows.append((model, other, len(pairs), len(hits) if fits else "another number of layers"))
    if not rows:
        return Outcome()
    columns = ("super weights of", "looked for in", "how many", "commonest place of their layer there")
    return Outcome([Table(title="the same weights in other models", columns=columns, rows=tuple(rows))])
