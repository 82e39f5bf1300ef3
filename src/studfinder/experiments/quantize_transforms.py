"""Exact changes before rounding: which help?

What it asks: a model can be changed so that it computes the same with other numbers; which of these changes make it
lose less when they are rounded? How: rounding to nearest as it is, and after each change. Rebalancing: the column of a
down projection that holds a super weight times 2, 4 or 8, and the row of the up projection that makes its input divided
by as much, and the other way round; the super weights' neurons split in two; the feed-forward neurons sorted by the
largest weight they write; the residual stream rotated, with weights alone rounded and with inputs too. Keys of a 4-bit
cache with the rotary pairs of K and Q rescaled. On request AWQ, errors of Q and K weighed by the map of massive values.
Controls: as many other columns of the same matrices; the map with its dims shuffled. What to look at: each change
against the same scheme without it, both directions of a rebalancing against their control, and that a change does
nothing while nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError, WriteFailed
from studfinder.experiments.quantize_keeps import other_neurons
from studfinder.experiments.weights import load_findings, scan_of
from studfinder.models import LM
from studfinder.quantizers import (
    AWQ,
    RTN,
    SCHEMES,
    ActivationScheme,
    KVCache,
    Permute,
    Rebalance,
    RotaryPairs,
    Rotate,
    Scheme,
    Split,
    WithActivations,
    neurons_of,
    quantized,
    quantized_cache,
)
from studfinder.quantizers import Workbench as Workbench
from studfinder.records import Chart, Interval, Plot, Series, SuperWeight, Table, point, scheme_named, to_plain
from studfinder.records.config import option
from studfinder.runs import write_bytes
from studfinder.studies import KL, PAIRED, GridScores, ModelVariant
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, CalibratedConfig, Rounding, keeping_notes, kept_pairs


@dataclass(frozen=True, kw_only=True)
class TransformsConfig(CalibratedConfig):
    """Which schemes."""

    text: str = option("wikitext2", help="The text of the perplexity.")
    schemes: tuple[str, ...] = option("w4-g64,w4-channel", help="Schemes by name.", commas=True)
    inputs: tuple[str, ...] = option(
        "w8-channel:int8,w4-g64:int8,w4-g64:int4", help="SCHEME:ELEMENT, weights and inputs rounded.", commas=True
    )
    awq: bool = option(False, help="AWQ too, which takes long.")


EXPERIMENT = Experiment(
    name="quantize/transforms",
    paper="2411.07191",
    shows="ours",
    summary="Exact changes before rounding (rebalanced, sorted, split, rotated): which help?",
    needs="about 18 minutes and 2 GB with smollm2 on two cores (estimated; plus a scan; AWQ takes more)",
    presets={"cpu": TransformsConfig()},
    spread=True,
)
_POWERS = (1, 2, 3)
_SUPER, _OTHERS = "the super weights", "as many other columns"
GROWN, SHRUNK = "grown and their inputs shrunk", "shrunk and their inputs grown"
SORTED = "neurons sorted by the largest weight they write"
ROTATED, _PAIRS = "the residual stream rotated", "rotary pairs of K and Q rescaled"
_MASSIVE = "errors of Q and K weighed by massive values"
SHUFFLED = "errors of Q and K weighed by shuffled massive values"


@dataclass(frozen=True, kw_only=True)
class Unrounded:
    """A method that rounds nothing, for `quantized` with a transform alone."""

    scheme: Scheme = field(default_factory=lambda: Scheme(block="channel"))
    calibrated: bool = False

    def run(self, bench: Workbench) -> None:
        """Leave every matrix as it stands, with the bits that it has."""
        for target in bench.targets:
            weight = target.weight(bench.lm)
            bench.sizes[target.name] = weight.numel(), 8.0 * weight.element_size()


@dataclass(frozen=True)
class Change:
    """An exact change; `kept` says in words what changes of several factors have in common."""

    label: str
    transform: Any
    kept: str = ""


def run(bench: Bench, lm: LM) -> Outcome:
    """Every scheme with every change; and every change alone."""
    for name in (*bench.config.schemes, *(p.partition(":")[0] for p in bench.config.inputs)):
        scheme_named(name)  # before a model is scanned for nothing
    rounding, proven = Rounding(bench, lm), load_findings(bench, lm).proven
    alone = [*_changes(rounding, proven, rounding.scheme(SCHEMES["w4-g64"])), Change(_PAIRS, RotaryPairs())]
    exact = [bench.once(f"unrounded {one}", partial(_unrounded, rounding, one)) for one in alone]
    scored = rounding.scored(list(_variants(rounding, proven)), [f"perplexity:{bench.config.text}"])
    pairs = [(one.label, one.label, plain.label) for one, plain in kept_pairs(scored)]
    tables = [
        scored.scores_table(
            "scores",
            "Rounded to nearest, no clip. x 4, inputs / 4: a column of the down projection four times, the row of the "
            "up projection that makes its input a quarter. Inputs: one scale a token. A rotation unties the head. "
            + CAVEAT,
            bits="bits per weight (of a cache: per number)",
            first="recipe",
        ),
        scored.changes_table(
            "against the same scheme as it is", f"{PAIRED} {_worst_rebalancing(alone, exact)} {CAVEAT}", pairs=pairs
        ),
        _alone_table(alone, exact),
    ]
    notes = keeping_notes(scored, [KL], "schemes and factors", "having") + _against_controls(scored)
    if not proven:
        notes.append("no super weight is proven, so none was rebalanced or split.")
    return Outcome(tables, [*notes, *scored.notes()], _charts(scored), remarks=[CAVEAT])


def _changes(rounding: Rounding, proven: Sequence[SuperWeight], scheme: Scheme) -> Iterator[Change]:
    seed = rounding.bench.config.seed
    others = tuple((layer, col) for layer, col, _ in other_neurons(rounding.lm, proven, seed=seed))
    for what, neurons in ((_SUPER, neurons_of(proven)), (_OTHERS, others)) if proven else ():
        for power in (*_POWERS, *(-power for power in _POWERS)):
            weights, inputs = ("x", "/") if power > 0 else ("/", "x")
            factor = 2 ** abs(power)
            yield Change(
                f"{what} {weights} {factor}, their inputs {inputs} {factor}",
                Rebalance(neurons=neurons, power=power),
                f"{what} {GROWN if power > 0 else SHRUNK}",
            )
        multiple = scheme.block if isinstance(scheme.block, int) else 64
        yield Change(f"{what} split in two", Split(neurons=neurons, multiple=multiple))
    yield Change(SORTED, Permute())
    yield Change(ROTATED, Rotate(seed=seed))


def _variants(rounding: Rounding, proven: Sequence[SuperWeight]) -> Iterator[ModelVariant]:
    own = rounding.bench.config
    for name in own.schemes:
        scheme = rounding.scheme(scheme_named(name))
        yield from _family(rounding, name, RTN(scheme=scheme), list(_changes(rounding, proven, scheme)))
        if own.awq:
            yield from _awq(rounding, name, scheme)
    rotated = Change(ROTATED, Rotate(seed=own.seed), f"{ROTATED}, inputs rounded too,")
    for pair in own.inputs:
        name, _, element = pair.partition(":")
        rounded = ActivationScheme(element=element)
        method = WithActivations(weights=RTN(scheme=rounding.scheme(scheme_named(name))), activations=rounded)
        yield from _family(rounding, f"{name}, inputs {element}", method, [rotated])
    for keys in ("token", "channel"):
        for kept in ("", _PAIRS):
            yield _cache(rounding, f"cache int4, keys per {keys}", KVCache(element="int4", keys=keys), kept)


def _family(rounding: Rounding, name: str, method: Any, changed: Sequence[Change]) -> Iterator[ModelVariant]:
    yield rounding.variant(name, method)
    for one in changed:
        label, kept = f"{name}, {one.label}", one.kept or one.label
        yield rounding.variant(label, method, transforms=(one.transform,), kept=kept, family=name)


def _awq(rounding: Rounding, name: str, scheme: Scheme) -> Iterator[ModelVariant]:
    bench = rounding.bench
    profile = scan_of(bench, rounding.lm)[1] / "profile.safetensors"
    maps: dict[str, Path | None] = {"": None, _MASSIVE: profile}
    if profile.is_file():
        maps[SHUFFLED] = _shuffled(profile, bench.folder / "shuffled.safetensors", bench.config.seed)
    for kept, path in maps.items():
        method = AWQ(scheme=scheme, massive_values=None if path is None else str(path))
        label = f"AWQ {name}" + (f", {kept}" if kept else "")
        yield rounding.variant(label, method, kept=kept, family=f"AWQ {name}")


def _shuffled(profile: Path, out: Path, seed: int) -> Path:
    """The map with the dims of each head in another order."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    maps = {key: value for key, value in load_file(profile).items() if key.startswith(("norm.query", "norm.key"))}
    for key in sorted(key for key in maps if not key.endswith(".layers")):
        maps[key] = maps[key].gather(-1, torch.rand(maps[key].shape, generator=generator).argsort(dim=-1))
    write_bytes(out, partial(save_file, maps))  # whole at every moment: workers write the same and read it
    return out


def _cache(rounding: Rounding, family: str, config: KVCache, kept: str) -> ModelVariant:
    lm, length = rounding.lm, rounding.bench.config.length

    @contextmanager
    def enter() -> Iterator[float]:
        with quantized(lm, Unrounded(), transforms=RotaryPairs() if kept else ()), quantized_cache(lm, config):
            yield config.bits(lm.anatomy.head_dim, length)

    label = family + (f", {kept}" if kept else "")
    return rounding.entered(label, enter, repr((config, kept, length)), family=family, kept=kept)


# --- what a change does by itself: nothing, if it is exact ------------------------------------------------------------


def _unrounded(rounding: Rounding, one: Change) -> dict[str, Any]:
    """In which windows logits are bit-equal, and the KL; or why the change could not be made."""
    original, lm = rounding.original, rounding.lm
    original.see(lm)
    try:
        with quantized(lm, Unrounded(), transforms=one.transform):
            return {"equal": original.equal(lm), "kl": to_plain(original.kl(lm).interval()), "refused": ""}
    except WriteFailed:
        raise
    except StudfinderError as error:
        return {"equal": [], "kl": None, "refused": str(error)}


def _worst_rebalancing(changes: Sequence[Change], exact: Sequence[dict[str, Any]]) -> str:
    """How exact the least exact rebalancing is, as measured."""
    both = [(one.transform, seen) for one, seen in zip(changes, exact, strict=True) if not seen["refused"]]
    counts = [(sum(seen["equal"]), len(seen["equal"])) for made, seen in both if isinstance(made, Rebalance)]
    if not counts:
        return ""
    equal, windows = min(counts)
    return (
        f"Rebalancing is {'' if equal == windows else 'not '}exact: with nothing rounded the logits are bit-equal in "
        f"{equal} of {windows} windows, in the worst of {len(counts)} cases."
    )


def _alone_table(changes: Sequence[Change], exact: Sequence[dict[str, Any]]) -> Table:
    rows = tuple(
        (one.label, "does not fit", None)
        if seen["refused"]
        else (one.label, f"{sum(seen['equal'])} of {len(seen['equal'])}", Interval(**seen["kl"]))
        for one, seen in zip(changes, exact, strict=True)
    )
    return Table(
        title="the changes alone, nothing rounded",
        columns=("change", "windows with bit-equal logits", "KL, nats per token"),
        rows=rows,
        note="Our proof text. Sorting and splitting change the order of a sum; a rotation stores other numbers in the "
        "model's own type.",
    )


# --- what is said of it -----------------------------------------------------------------------------------------------


def _control(text: str) -> str:
    """The same of the control."""
    return text.replace(_SUPER, _OTHERS).replace(_MASSIVE, SHUFFLED)


def _against_controls(scored: GridScores) -> list[str]:
    labels, notes = {one.label for one in scored.tried()}, []
    for kept in dict.fromkeys(one.kept for one, _ in kept_pairs(scored) if _control(one.kept) != one.kept):
        own = [one.label for one in scored.tried() if one.kept == kept and _control(one.label) in labels]
        says = scored.tally([(label, _control(label)) for label in own], KL)
        notes += [f"having {kept}, against {_control(kept)}, {says}, over schemes and factors."] if says else []
    return notes


def _charts(scored: GridScores) -> list[Chart]:
    """KL over that as it is, by the factor of a rebalancing, a plot a scheme: on one axis, so that schemes compare. The
    ends are those of the paired difference."""
    found: dict[str, dict[str, dict[float, Any]]] = {}
    for one, plain in kept_pairs(scored):
        difference = scored.change(KL, one.label, plain.label)
        (transform,) = one.detail.transforms or (None,)
        if isinstance(transform, Rebalance) and difference is not None:
            base = scored.scores[plain.label][KL].value
            lines = found.setdefault(one.family, {name: {1.0: point(1.0)} for name in (_OTHERS, _SUPER)})
            ends = tuple(1 + end / base for end in point(difference))
            lines[_SUPER if _SUPER in one.label else _OTHERS][2.0**transform.power] = ends
    plots = tuple(
        Plot(
            kind="lines",
            title=family,
            x="weights times this, their inputs divided by it",
            y="KL, times that as it is",
            log_x=True,
            log=True,
            none=1.0,
            series=tuple(
                Series(name=name, x=tuple(sorted(at)), points=tuple(at[x] for x in sorted(at)), quiet=name == _OTHERS)
                for name, at in lines.items()
            ),
        )
        for family, lines in found.items()
    )
    return [Chart(name="rebalanced", plots=plots)] if plots else []
