"""A number of each kind of parameter of a tiny model made large, until it truly carries more than all others where it
can, and where the orders of candidates put it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file

from architected import built
from carried import numbered
from studfinder.detectors.census import Spot, census
from studfinder.edits import Weights, zero
from studfinder.experiments.census_rankings import by_contribution
from studfinder.measures import effects_of
from studfinder.models import LM, load
from studfinder.models.kinds import kinds_of
from tried import found, tokens

FIRST, FAR = 3, 1000
"""Places that are meant by the first, and how many numbers of a census are looked at."""
OFTEN = 5
"""A token that is every third of the texts: what is planted in an embedding is planted in its row."""
FACTORS = (2, 3, 5, 10, 20, 30, 50, 100, 200, 300)
CARRIES, LITTLE = 0.05, 0.005
"""Nats per token from which a number is said to carry something, and below which it is not planted at all."""
LOUDER = 1.5
"""How many times the loudest other number a planted one carries."""


@dataclass(frozen=True)
class Plant:
    """What was planted and where it is found.

    Attributes:
        kind: the parameter's name without numbers.
        factor: how many times as large as the largest beside it.
        loudest: the most that any of the first ten carries in the model without it, in nats per token.
        kl: what it carries, on text that ranks nothing.
        predicted: by the census.
        places: from 1, in each order that holds it: "census" (among embeddings only, if it is in one), "spikes",
            "|w| x input", "|w| / median" of its parameter; "own kind" is that in the census among parameters of the
            same name but for numbers.
    """

    kind: str
    factor: int
    loudest: float
    kl: float
    predicted: float
    places: dict[str, int]

    @property
    def carries_most(self) -> bool:
        return self.kl >= max(CARRIES, LOUDER * self.loudest)

    @property
    def best(self) -> int:
        """Its best place by census or spikes; in the census among its kind too, where others carry more."""
        counting = ("census", "spikes") if self.carries_most else ("census", "spikes", "own kind")
        return min(self.places.get(order, FAR) for order in counting)


def loud(kind: str) -> LM:
    """A random model of a type whose logits are neither flat nor certain, and in which no parameter is all zeros: of
    those nothing is predicted."""
    model = built(kind)
    generator = torch.Generator().manual_seed(0)
    ends = {id(one.weight): one.weight for one in (model.get_input_embeddings(), model.get_output_embeddings()) if one}
    with torch.no_grad():
        for weight in ends.values():
            weight.mul_(0.4)
        for one in model.parameters():
            if one.is_floating_point() and not one.any():
                one.copy_(torch.randn(one.shape, generator=generator) * 0.02)
    return load(model)


def text(lm: LM, rows: int, length: int, seed: int) -> list[list[int]]:
    rowwise = tokens(lm, rows, length, seed)
    return [[OFTEN if place % 3 == 1 else token for place, token in enumerate(row)] for row in rowwise]


def carried(lm: LM, spots: Sequence[Spot]) -> list[float]:
    """What numbers carry, measured on text that ranks nothing."""
    edits = [zero(Weights(parameter=name, entries=(index,))) for name, index in spots]
    effects = effects_of(lm, text(lm, 8, 24, 2), edits)
    return (effects.kl.sum(axis=1) / effects.tokens.sum()).tolist()


def plants(kind: str) -> Iterator[Plant]:
    """One number of each kind of parameter, planted in the middle of the depth by the smallest factor with which it
    carries most, or by that with which it carries most; none where it carries less than CARRIES."""
    lm = loud(kind)
    ranking, kinds = text(lm, 3, 64, 1), kinds_of(lm)
    with TemporaryDirectory() as folder:
        clean = census(lm, ranking, draws=2, top=10, sample=0, map=Path(folder) / "map")
        predicted = load_file(Path(folder) / "map")
    loudest = max(carried(lm, [(one.parameter, one.index) for one in clean.top]))
    alike: dict[str, list[str]] = {}
    for name in numbered(lm):
        if clean.totals[name] > 0:
            alike.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    for pattern, names in alike.items():
        name = names[len(names) // 2]
        parameter = lm.model.get_parameter(name).detach()
        index = _drawn(predicted[name], random.Random(f"{kind} {pattern}"), kinds[name] == "embedding")
        before, largest = parameter[index].clone(), float(parameter.abs().max()) or 0.1
        tried: dict[int, float] = {}
        for factor in FACTORS:
            parameter[index] = factor * largest * (-1 if before < 0 else 1)
            tried[factor] = float(np.nan_to_num(carried(lm, [(name, index)])[0]))
            if tried[factor] >= max(CARRIES, LOUDER * loudest):
                break
        most = max(tried.values())
        if most >= LITTLE:
            enough = most if most >= max(CARRIES, LOUDER * loudest) else most / 2
            factor = next(one for one, kl in tried.items() if kl >= enough)
            parameter[index] = factor * largest * (-1 if before < 0 else 1)
            own, places = _placed(lm, (name, index), names, ranking)
            yield Plant(pattern, factor, loudest, tried[factor], own, places)
        parameter[index] = before


def _drawn(predicted: torch.Tensor, chance: random.Random, row: bool) -> tuple[int, ...]:
    """Any number that the text reaches; of an embedding, one of the row of what comes often."""
    reached = predicted.flatten() >= predicted.median()
    places = [one for one in np.ndindex(*predicted.shape) if one[0] == OFTEN] if row else []
    flat = chance.choice(reached.nonzero()[:, 0].tolist())
    return chance.choice(places) if row else tuple(map(int, np.unravel_index(flat, tuple(predicted.shape))))


def _placed(lm: LM, spot: Spot, alike: Sequence[str], ranking: list[list[int]]) -> tuple[float, dict[str, int]]:
    """What is predicted of a number, and its places."""
    kinds = kinds_of(lm)
    with TemporaryDirectory() as folder:
        counted = census(lm, ranking, draws=2, top=FAR, sample=0, also=[spot], map=Path(folder) / "map")
        predicted = load_file(Path(folder) / "map")
    own, embedding = counted.also[spot].most, kinds[spot[0]] == "embedding"
    orders = {
        "census": [(o.parameter, o.index) for o in counted.top if (kinds[o.parameter] == "embedding") == embedding],
        "spikes": [(one.parameter, one.index) for one in found(lm, ranking)],
        "|w| x input": by_contribution(lm, ranking, 20),
    }
    places = {name: order.index(spot) + 1 for name, order in orders.items() if spot in order}
    at = float(predicted[spot[0]][spot[1]])
    places["|w| / median"] = outlying(lm, spot)
    return own, places | {"own kind": 1 + sum(int((predicted[name] > at).sum()) for name in alike)}


def outlying(lm: LM, spot: Spot) -> int:
    """The place of a number by its size beside the median of its parameter."""
    sizes = {name: lm.model.get_parameter(name).detach().abs() for name in numbered(lm)}
    sizes = {name: size / size.median().clamp_min(1e-9) for name, size in sizes.items()}
    own = sizes[spot[0]][spot[1]]
    return 1 + sum(int((size > own).sum()) for size in sizes.values())
