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

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studfinder.errors import StudfinderError
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.quantize_keeps import other_neurons
from studfinder.experiments.quantize_recipes import (
    CAVEAT,
    KL,
    Made,
    Recipe,
    RecipeWork,
    Windows,
    fitted,
    limits_of,
    listed,
)
from studfinder.experiments.quantize_tables import (
    change,
    changes_table,
    keeping_notes,
    kept_pairs,
    refusals,
    scores_table,
    tally,
)
from studfinder.experiments.quantize_unrounded import Alone, Unrounded, alone_table, made_alone, worst_rebalancing
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
from studfinder.records import Result, SuperWeight
from studfinder.report.style import GREY, MUTED, VERMILLION, log_ticks, new_figure

EXPERIMENT = Experiment(
    name="quantize/transforms",
    paper="2411.07191",
    shows="ours",
    summary="Exact changes before rounding (rebalanced, sorted, split, rotated): which help?",
    needs="about 18 minutes and 2 GB with smollm2 on two cores (estimated; plus a scan; AWQ takes more)",
    presets={
        "cpu": {
            "limit": 16,
            "pieces": 16,
            "text": "wikitext2",
            "schemes": "w4-g64,w4-channel",
            "inputs": "w8-channel:int8,w4-g64:int8,w4-g64:int4",
            "awq": False,
            "calibration": "wikipedia",
            "calibration_windows": 16,
            "length": 512,
        }
    },
)
_POWERS = (1, 2, 3)
_SUPER, _OTHERS = "the super weights", "as many other columns"
GROWN, SHRUNK = "grown and their inputs shrunk", "shrunk and their inputs grown"
SORTED = "neurons sorted by the largest weight they write"
ROTATED, _PAIRS = "the residual stream rotated", "rotary pairs of K and Q rescaled"
_MASSIVE = "errors of Q and K weighed by massive values"
SHUFFLED = "errors of Q and K weighed by shuffled massive values"


def run(bench: Bench) -> Outcome:
    """Every scheme with every change; and every change alone."""
    outcome = Outcome([])
    measures = [f"perplexity:{bench.settings['text']}", KL]
    for scheme in (
        *listed(bench.settings["schemes"]),
        *(p.partition(":")[0] for p in listed(bench.settings["inputs"])),
    ):
        _check_scheme(scheme)  # before a model is scanned for nothing
    for name in bench.models:
        with bench.model(name) as lm:
            proven = load_findings(bench, lm).proven
            work = RecipeWork(bench=bench, lm=lm, measures=measures, limits=limits_of(bench))
            alone = [*_changes(bench, lm, proven, _scheme(lm, "w4-g64")), _change(_PAIRS, RotaryPairs())]
            recipes = list(_recipes(bench, lm, proven))
            exact = made_alone(work, alone)
            made = work.carried_out(recipes)
        _add(outcome, name, made, exact, measures)
        if not proven:
            outcome.notes.append(f"{name}: no super weight is proven, so none was rebalanced or split.")
    outcome.notes.append(CAVEAT)
    return outcome


def _changes(bench: Bench, lm: LM, proven: Sequence[SuperWeight], scheme: Scheme) -> Iterator[Recipe]:
    seed = bench.settings["seed"]
    others = [(layer, col) for layer, col, _ in other_neurons(lm, proven, seed=seed)]
    for what, neurons in ((_SUPER, neurons_of(proven)), (_OTHERS, tuple(others))) if proven else ():
        for power in (*_POWERS, *(-power for power in _POWERS)):
            weights, inputs = ("x", "/") if power > 0 else ("/", "x")
            factor = 2 ** abs(power)
            yield Recipe(
                label=f"{what} {weights} {factor}, their inputs {inputs} {factor}",
                transforms=(Rebalance(neurons=neurons, power=power),),
                kept=f"{what} {GROWN if power > 0 else SHRUNK}",
            )
        multiple = scheme.block if isinstance(scheme.block, int) else 64
        yield _change(f"{what} split in two", Split(neurons=neurons, multiple=multiple))
    yield _change(SORTED, Permute())
    yield _change(ROTATED, Rotate(seed=seed))


def _change(label: str, transform: Any) -> Recipe:
    return Recipe(label=label, transforms=(transform,), kept=label)


def _recipes(bench: Bench, lm: LM, proven: Sequence[SuperWeight]) -> Iterator[Recipe]:
    for name in listed(bench.settings["schemes"]):
        scheme = _scheme(lm, name)
        yield from _family(name, RTN(scheme=scheme), list(_changes(bench, lm, proven, scheme)))
        if bench.settings["awq"]:
            yield from _awq(bench, lm, name, scheme)
    rotated = Recipe(
        label=ROTATED, transforms=(Rotate(seed=bench.settings["seed"]),), kept=f"{ROTATED}, inputs rounded too,"
    )
    for pair in listed(bench.settings["inputs"]):
        name, _, element = pair.partition(":")
        rounded = ActivationScheme(element=element)  # type: ignore[arg-type]  # it checks
        yield from _family(
            f"{name}, inputs {element}",
            WithActivations(weights=RTN(scheme=_scheme(lm, name)), activations=rounded),
            [rotated],
        )
    for keys in ("token", "channel"):
        config = KVCache(element="int4", keys=keys)
        for kept in ("", _PAIRS):
            yield Recipe(
                label=f"cache int4, keys per {keys}" + (f", {kept}" if kept else ""),
                kept=kept,
                family=f"cache int4, keys per {keys}",
                enter=_cache(config, bool(kept), bench.settings["length"]),
                settings=repr((config, kept, bench.settings["length"])),
            )


def _family(name: str, method: Any, changed: Sequence[Recipe]) -> Iterator[Recipe]:
    yield Recipe(label=name, method=method, family=name)
    for one in changed:
        yield replace(one, label=f"{name}, {one.label}", method=method, family=name)


def _awq(bench: Bench, lm: LM, name: str, scheme: Scheme) -> Iterator[Recipe]:
    profile = scan_of(bench, lm)[1] / "profile.safetensors"
    maps: dict[str, Path | None] = {"": None, _MASSIVE: profile}
    if profile.is_file():
        maps[SHUFFLED] = _shuffled(profile, bench.folder / "shuffled.safetensors", bench.settings["seed"])
    for kept, path in maps.items():
        method = AWQ(scheme=scheme, massive_values=None if path is None else str(path))
        yield Recipe(
            label=f"AWQ {name}" + (f", {kept}" if kept else ""), method=method, kept=kept, family=f"AWQ {name}"
        )


def _shuffled(profile: Path, out: Path, seed: int) -> Path:
    """The map with the dims of each head in another order."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    maps = {key: value for key, value in load_file(profile).items() if key.startswith(("norm.query", "norm.key"))}
    for key in sorted(key for key in maps if not key.endswith(".layers")):
        maps[key] = maps[key].gather(-1, torch.rand(maps[key].shape, generator=generator).argsort(dim=-1))
    save_file(maps, out)
    return out


def _cache(config: KVCache, pairs: bool, length: int) -> Callable[..., Any]:
    @contextmanager
    def enter(lm: LM, windows: Callable[[], Windows]) -> Iterator[float]:
        with quantized(lm, Unrounded(), transforms=RotaryPairs() if pairs else ()), quantized_cache(lm, config):
            yield config.bits(lm.anatomy.head_dim, length)

    return enter


def _check_scheme(name: str) -> None:
    if name not in SCHEMES:
        raise StudfinderError(f"there is no scheme {name!r}", expected=", ".join(SCHEMES))


def _scheme(lm: LM, name: str) -> Scheme:
    return fitted(lm, SCHEMES[name])


def _add(outcome: Outcome, name: str, made: list[Made], exact: list[Alone], measures: list[str]) -> None:
    pairs = kept_pairs(made)
    note = f"Paired; perplexity as a factor, KL as a difference. {worst_rebalancing(exact)} {CAVEAT}"
    outcome.tables += [
        scores_table(
            name,
            made,
            measures,
            "Rounded to nearest, no clip. x 4, inputs / 4: a column of the down projection four times, the row of the "
            "up projection that makes its input a quarter. Inputs: one scale a token. A rotation unties the head.",
            "bits per weight (of a cache: per number)",
        ),
        changes_table(
            f"{name}: against the same scheme as it is",
            [(one.recipe.label, one, plain) for one, plain in pairs],
            measures,
            note,
        ),
        alone_table(name, exact),
    ]
    outcome.notes += keeping_notes(name, pairs, [KL], "schemes and factors", "having")
    by_label = {one.recipe.label: one for one in made if not one.refused}
    for kept in dict.fromkeys(one.recipe.kept for one, _ in pairs if _control(one.recipe.kept) != one.recipe.kept):
        own = [one for one, _ in pairs if one.recipe.kept == kept and _control(one.recipe.label) in by_label]
        against = [(one, by_label[_control(one.recipe.label)]) for one in own]
        says = tally(against, KL)
        text = f"{name}: having {kept}, against {_control(kept)}, {says}, over schemes and factors."
        outcome.notes += [text] if says else []
    outcome.notes += refusals(name, made)
    outcome.data.setdefault("models", {})[name] = _rebalanced(pairs)


def _control(text: str) -> str:
    """The same of the control."""
    return text.replace(_SUPER, _OTHERS).replace(_MASSIVE, SHUFFLED)


def _rebalanced(pairs: Sequence[tuple[Made, Made]]) -> dict[str, Any]:
    """For the figure, by scheme: the KL as it is, and of each series [power, KL, its ends]. The ends are those of the
    paired difference, laid on the KL as it is."""
    found: dict[str, Any] = {}
    for one, plain in pairs:
        difference = change(one, plain, KL)
        (transform,) = one.recipe.transforms or (None,)
        if not isinstance(transform, Rebalance) or difference is None:
            continue
        own = found.setdefault(one.recipe.family, {"plain": plain.scores[KL].value, _SUPER: [], _OTHERS: []})
        ends = [
            own["plain"] + end for end in (difference.interval.value, difference.interval.low, difference.interval.high)
        ]
        own[_SUPER if _SUPER in one.recipe.label else _OTHERS].append([transform.power, *ends])
    return found


def draw(result: Result, width: float) -> dict[str, Figure]:
    """KL by the factor of a rebalancing, a panel a scheme."""
    figures = {}
    for place, (name, seen) in enumerate(result.data["models"].items()):
        if seen:
            figures["rebalanced" + (f"-{place + 1}" if place else "")] = _panels(name, seen, width)
    return figures


def _panels(name: str, seen: dict[str, Any], width: float) -> Figure:
    wide = width > 600
    figure = new_figure(width, 380 if wide else 60 + 280 * len(seen))
    panels = figure.subplots(*((1, len(seen)) if wide else (len(seen), 1)), squeeze=False).flatten()
    for axes, (scheme, own) in zip(panels, seen.items(), strict=True):
        _panel(axes, own)
        axes.set_title(f"{scheme} ({name})")
    panels[0].set_ylabel("KL, nats per token")
    panels[-1].set_xlabel("weights times this, their inputs divided by it")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3 if wide else 1)
    return figure


def _panel(axes: Axes, own: dict[str, Any]) -> None:
    axes.axhline(own["plain"], color=MUTED, linewidth=1, linestyle=":", label="as it is")
    for place, (series, colour) in enumerate(((_OTHERS, GREY), (_SUPER, VERMILLION))):
        points = sorted([*own[series], [0, *[own["plain"]] * 3]])
        power, value, low, high = torch.tensor(points, dtype=torch.float64).T.numpy()
        at = power + 0.08 * (place - 0.5)
        axes.vlines(at, low, high, color=colour, linewidth=2)
        axes.plot(at, value, "o-", color=colour, linewidth=1.2, markersize=5, label=series)
    powers = [*(-power for power in reversed(_POWERS)), 0, *_POWERS]
    axes.set_xticks(powers, [f"1/{2**-power}" if power < 0 else f"{2**power}" for power in powers])
    seen = [value for series in (_SUPER, _OTHERS) for _, value, *_ in own[series]]
    if max(seen) > 3 * min(seen):
        axes.set_yscale("log")
        log_ticks(axes.yaxis, most=6)
    axes.grid(axis="y")
