"""What the experiment remembers of a model's census: orders, what is predicted, a sample by decade and kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors import safe_open

from studfinder.detectors.census import LEAST_DECADE, Census, Spot, census
from studfinder.detectors.census_findings import in_turn
from studfinder.experiments.census_rankings import (
    by_contribution,
    by_impact,
    by_magnitude,
    by_spikes,
    rounded_to,
)
from studfinder.models import LM
from studfinder.models.kinds import kinds_of
from studfinder.quantizers import Scheme
from studfinder.records import Findings
from studfinder.records.numbers import NumberKind
from studfinder.runs import Progress
from studfinder.texts import default_prompts, encode

CENSUS, SPIKES, WANDA, COMBINED = "census", "spikes", "|w| x input", "the three in turn"
_SIZE, _CHERRY, _ROUNDED = "|w|", "impact", "impact x rounding error"
_SCHEME = Scheme(element="int4", block=64, zero="integer", remainder="block")
"""Of the rounding errors."""
_FLOOR = -8
"""The lowest decade of predicted KL that is sampled: what fp32 rounds away is about 1e-6."""


def counted(
    lm: LM, findings: Findings, draws: int, most: int, sample: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """The census on our prompts and the first numbers of all orders, as plain data.

    Args:
        findings: whose candidates are the spikes.
        draws: of labels.
        most: how many of each order.
        sample: how many numbers of each kind and decade are drawn.
    """
    prompts = encode(lm, default_prompts())[0]
    rankings = {
        SPIKES: by_spikes(findings),
        _SIZE: by_magnitude(lm, most),
        WANDA: by_contribution(lm, prompts, most),
    }
    with TemporaryDirectory() as folder:
        place = Path(folder) / "map.safetensors"
        found = census(lm, prompts, draws=draws, map=place, seed=seed, progress=progress)
        rankings[CENSUS] = [(one.parameter, one.index) for one in found.top[:most]]
        rankings[_CHERRY] = by_impact(lm, place, most)
        rankings[_ROUNDED] = by_impact(lm, place, most, rounded_to(_SCHEME))
        drawn = _sampled(lm, found, sample, seed)
        every = [*drawn, *(one for spots in rankings.values() for one in spots)]
        predicted = _looked_up(place, every) | {(one.parameter, one.index): one.kl for one in found.top}
    return {
        "tokens": found.tokens,
        "decades": found.decades,
        "totals": found.totals,
        "wholes": {of: float(kl) for (of, kind), kl in found.groups.items() if kind in ("whole", "layer")},
        "top": [[one.parameter, one.index, one.kl, one.most] for one in found.top],
        "nonfinite": found.nonfinite,
        "rankings": rankings,
        "sample": drawn,
        "predicted": list(predicted.items()),
    }


def combined(
    lm: LM, top: Sequence[Sequence[Any]], rankings: Mapping[str, Sequence[Spot]], bias: Mapping[NumberKind, float]
) -> list[Spot]:
    """The census, spikes, and |w| x input in turn: the last two see what fills its vector, where a norm holds the slope
    at 0.

    Args:
        top: parameter, index, predicted KL, and the largest that is predicted of its edits.
        bias: by kind, what predictions are multiplied with.
    """
    kinds = kinds_of(lm)
    expected = {spot_of(one): one[3] * bias.get(kinds[one[0]], 1.0) for one in top}
    return in_turn(sorted(expected, key=lambda spot: -expected[spot]), rankings[SPIKES], rankings[WANDA])


def spot_of(plain: Sequence[Any]) -> Spot:
    """A number as a step remembers it."""
    return plain[0], tuple(plain[1])


def _sampled(lm: LM, found: Census, each: int, seed: int) -> list[Spot]:
    """So many numbers of each kind and decade, every number of them with the same chance."""
    draws, kinds = np.random.default_rng(seed), kinds_of(lm)
    chosen: list[Spot] = []
    for kind in sorted(set(kinds.values())):
        names = [name for name in found.decades if kinds[name] == kind]
        for decade in range(_FLOOR - LEAST_DECADE + 1, len(found.decades[names[0]]) if names else 0):
            sizes = np.array([found.decades[name][decade] for name in names])
            if not sizes.sum():
                continue
            for name in draws.choice(names, each, p=sizes / sizes.sum()):
                drawn = found.drawn[name]
                flat = int(draws.choice(drawn.flat_N[drawn.decade_N == decade].numpy()))
                shape = tuple(lm.model.get_parameter(name).shape)
                chosen.append((str(name), tuple(int(at) for at in np.unravel_index(flat, shape))))
    return list(dict.fromkeys(chosen))


def _looked_up(place: Path, spots: Sequence[Spot]) -> dict[Spot, float]:
    """What is predicted of some numbers, from the map of all."""
    by_name: dict[str, list[Spot]] = defaultdict(list)
    for spot in spots:
        by_name[spot[0]].append(spot)
    found: dict[Spot, float] = {}
    with safe_open(place, framework="pt") as file:
        for name, own in by_name.items():
            kl = file.get_tensor(name)
            found |= {spot: float(kl[spot[1]]) for spot in own}
    return found
