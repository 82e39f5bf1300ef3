"""What must a cache of keys and values in few bits keep?

What it asks: keys hold massive values, which are mostly the same at every token, and the first token's keys and values
are unlike all others; which of the known means against that are worth their bits? How: keys and values rounded where
attention reads them, in int8, int4 and fp8, one scale a token and head; then one thing changed at a time: keys per
channel, keys stored before rotation, the first token kept in 16 bits, keys centred by a constant from calibration text
(added back, or dropped, which a softmax does not see), the massive dims of K kept. Control: as many other dims of K.
What to look at: each change against the plain cache of the same element, and its true bits.

Scales and minima are fp16 and counted; runs of 32 tokens share a scale where it is per channel, and a run that is not
full stays in 16 bits. Bits are of a cache of one window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure

from studfinder.errors import StudfinderError
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.quantize_draw import draw_ratios, ratios_data
from studfinder.experiments.quantize_recipes import CAVEAT, KL, Made, Recipe, RecipeWork, Windows, limits_of, listed
from studfinder.experiments.quantize_tables import (
    changes_table,
    keeping_notes,
    kept_pairs,
    refusals,
    scores_table,
    tally,
)
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers.kv_cache import KVCache, held_dims, quantized_cache
from studfinder.records import Findings, Result

EXPERIMENT = Experiment(
    name="quantize/kv-cache",
    paper="2502.01563",
    shows="ours",
    summary="What must a cache of keys and values in few bits keep?",
    needs="about 15 minutes and 2 GB with smollm2 on two cores (estimated; plus a scan)",
    presets={
        "cpu": {
            "limit": 16,
            "pieces": 16,
            "text": "wikitext2",
            "elements": "int8,int4,fp8",
            "passkeys": 40,
            "passkey": "128,256,512",
            "calibration": "wikipedia",
            "calibration_windows": 16,
            "length": 512,
        }
    },
)
_MASSIVE, _OTHERS = "the massive dims of K kept", "as many other dims of K kept"
_CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    "keys per channel": {"keys": "channel"},
    "keys before RoPE": {"rope": "pre"},
    "keys before RoPE, per channel": {"rope": "pre", "keys": "channel"},
    "the first token kept": {"first": 1},
    "keys centred": {"centre": "added"},
    "keys centred, the constant dropped": {"centre": "dropped"},
    "the first token kept, keys centred": {"first": 1, "centre": "added"},
}


def run(bench: Bench) -> Outcome:
    """Every element with every change."""
    outcome = Outcome([])
    own = bench.settings
    measures = [f"perplexity:{own['text']}", KL, *([f"passkey:{own['passkey']}"] if own["passkey"] else [])]
    limits = {**limits_of(bench), "passkey": own["passkeys"]}
    for name in bench.models:
        with bench.model(name) as lm:
            findings = load_findings(bench, lm, prove=False)
            work = RecipeWork(bench=bench, lm=lm, measures=measures, limits=limits)
            made = work.carried_out(list(_recipes(bench, lm, findings)))
        _add(outcome, name, made, work)
    outcome.notes.append(CAVEAT)
    return outcome


def _recipes(bench: Bench, lm: LM, findings: Findings) -> Iterator[Recipe]:
    keeps = _keeps(lm, findings, bench.settings["seed"])
    for element in listed(bench.settings["elements"]):
        zero: Any = "none" if element == "fp8" else "float"
        plain = KVCache(element=element, zero=zero)  # type: ignore[arg-type]
        for label, options in _CHANGES.items():
            yield _recipe(element, label, replace(plain, **options), None, bench.settings["length"])
        for label, keep in keeps.items():
            yield _recipe(element, label, plain, keep, bench.settings["length"])


def _recipe(element: str, label: str, config: KVCache, keep: Findings | None, length: int) -> Recipe:
    return Recipe(
        label=element + (f", {label}" if label else ""),
        kept=label,
        family=element,
        enter=_entered(config, keep, length),
        settings=repr((config, [] if keep is None else keep.massive_values, length)),
    )


def _entered(config: KVCache, keep: Findings | None, length: int) -> Callable[..., Any]:
    @contextmanager
    def enter(lm: LM, windows: Callable[[], Windows]) -> Iterator[float]:
        held = 0 if keep is None else sum(int(mask.sum()) for mask in held_dims(lm, keep).values())
        heads = sum(layer.attention is not None for layer in lm.anatomy.layers) * lm.anatomy.kv_heads
        with quantized_cache(lm, config, keep=keep, windows=() if config.centre == "none" else windows()):
            yield config.bits(lm.anatomy.head_dim, length, held=held / heads)  # type: ignore[arg-type]

    return enter


def _keeps(lm: LM, findings: Findings, seed: int) -> dict[str, Findings]:
    """The findings, and the same with other dims in place of the massive ones of K."""
    try:
        held = held_dims(lm, findings)
    except StudfinderError:
        return {}
    generator = torch.Generator().manual_seed(seed)
    massive = [value for value in findings.massive_values if value.tensor == "key"]
    others = []
    for value in massive:
        mask = held[value.layer][value.head]
        free = (~mask).nonzero().flatten().tolist()
        if free:
            dim = free[int(torch.randint(len(free), (1,), generator=generator))]
            mask[dim] = True  # not drawn twice
            others.append(replace(value, dim=dim))
    return {_MASSIVE: findings, _OTHERS: replace(findings, massive_values=tuple(others))}


def _add(outcome: Outcome, name: str, made: list[Made], work: RecipeWork) -> None:
    measures = [measure for measure in work.measures if measure in made[0].scores]
    pairs = kept_pairs(made)
    outcome.tables += [
        scores_table(
            name,
            made,
            measures,
            "The plain cache: one scale and minimum (none for fp8) a token and head, keys after RoPE.",
            "bits a number of the cache",
        ),
        changes_table(
            f"{name}: against the plain cache of the same element",
            [(one.recipe.label, one, plain) for one, plain in pairs],
            measures,
            f"Paired; perplexity as a factor, the rest as a difference. {CAVEAT}",
        ),
    ]
    outcome.notes += keeping_notes(name, pairs, measures[:1], "elements", "the cache with")
    by_label = {one.recipe.label: one for one in made if not one.refused}
    against = [
        (one, by_label[f"{one.recipe.family}, {_OTHERS}"])
        for one, _ in pairs
        if one.recipe.kept == _MASSIVE and f"{one.recipe.family}, {_OTHERS}" in by_label
    ]
    says = tally(against, measures[0])
    outcome.notes += [f"{name}: {_MASSIVE}, against {_OTHERS}, {says}, over elements."] if says else []
    if not against:
        outcome.notes.append(f"{name}: no massive values of K were found, so none could be kept.")
    outcome.notes += [f"{name}: {measure} was not measured. {why}" for measure, why in work.missing.items()]
    outcome.notes += refusals(name, made)
    outcome.data.setdefault("models", {})[name] = ratios_data(made, measures[0])


def draw(result: Result, width: float) -> dict[str, Figure]:
    """Perplexity over the original's, a row a change and a colour an element."""
    turned = {}
    for name, seen in result.data["models"].items():
        kinds = list(seen["series"])
        series = {
            element: [seen["series"][kind][place] for kind in kinds] for place, element in enumerate(seen["rows"])
        }
        rows = ["plain" if kind == "nothing" else kind for kind in kinds]
        turned[name] = {"rows": rows, "series": series, "measure": seen["measure"]}
    return draw_ratios(replace(result, data={"models": turned}), width, "kv-cache")
