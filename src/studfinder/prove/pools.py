"""What was not measured one by one, measured in pools: all numbers of a pool at zero at once.

A number is hidden in a pool only if the others undo what it does. So a pool that carries no more than a threshold holds
no number that does, and some thousand pools, each of so many numbers that what is predicted of them all stays below
it, hold a whole model. The numbers of a layer are cut into pools at random, and of each layer's the same share is
measured at least: then every number had that chance of being in the sample (`stats.most_unseen`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch

from studfinder.detectors.census import Census, Spot
from studfinder.edits import Weights, stream_of, zero
from studfinder.measures import effects_of
from studfinder.models import LM
from studfinder.models.kinds import kinds_of
from studfinder.passes import Stream
from studfinder.records.numbers import VOCABULARY
from studfinder.runs import Progress
from studfinder.sites import Journal

FULL = 0.6
"""What is predicted of a pool, over the threshold that it is held against: more would be loud by themselves."""
_TOGETHER = 16
MISSED = "looking for what was missed"
"""A step, as it is told to progress."""
"""Pools measured in one pass."""


@dataclass(frozen=True)
class Pool:
    """One of the pools that the numbers of some parameters are cut into; `halves` says which half of it, and of that.

    Attributes:
        parameters: whose numbers: those of a layer, or one outside the layers.
        number, of: which pool, of how many.
        seed: of the cut.
    """

    parameters: tuple[str, ...]
    number: int
    of: int
    seed: int = 0
    halves: tuple[int, ...] = ()

    def masks(self, lm: LM, listed: Collection[Spot]) -> dict[str, torch.Tensor]:
        """Where its numbers are: booleans in the parameters' shapes. What is listed is in no pool."""
        shapes = {name: lm.model.get_parameter(name).shape for name in self.parameters}
        generator = torch.Generator().manual_seed(self.seed)
        found = {
            name: torch.randint(self.of, shape, generator=generator, dtype=torch.int16) == self.number
            for name, shape in shapes.items()
        }
        if self.halves:  # each number has as many coins as it may be halved
            side = sum(half << depth for depth, half in enumerate(self.halves))
            generator, within = torch.Generator().manual_seed(self.seed + 1), (1 << len(self.halves)) - 1
            for mask in found.values():
                coins = torch.randint(1 << 62, (int(mask.sum()),), generator=generator)
                mask[mask.clone()] = coins & within == side
        for name, index in listed:
            if name in found:
                found[name][index] = False
        return found

    def split(self) -> tuple[Pool, Pool]:
        return replace(self, halves=(*self.halves, 0)), replace(self, halves=(*self.halves, 1))


@dataclass(frozen=True)
class Pooled:
    """What pools said.

    Attributes:
        tested, of: how many were measured, of how many.
        chance: the smallest chance of any number to be in one of them.
        loud: how many carried more than the threshold.
        found: the single numbers in them that do.
    """

    tested: int
    of: int
    chance: float
    loud: int
    found: list[Spot]


PoolMeasure = Callable[[int, Sequence[Pool]], Sequence[float]]
"""From the round of halving, from 0, and pools, the KL of each in nats per token."""


def cut(lm: LM, totals: Mapping[str, float], wholes: Mapping[str, float], most: float) -> dict[tuple[str, ...], int]:
    """Into how many pools the parameters of each layer, and each parameter outside, are cut so that no more than `most`
    nats are predicted of any.

    Args:
        totals: by parameter, the sum of its numbers' predicted KL, those that are listed left out.
        wholes: by parameter outside the layers and by layer ("layers.3"), predicted KL of taking all of it out, G. Of a
            sum S a share f then carries f S + f^2 (G - S).
    """
    places: dict[str, list[str]] = {}
    blocks = {layer.block + ".": f"layers.{number}" for number, layer in enumerate(lm.anatomy.layers)}
    for name in totals:
        places.setdefault(next((at for block, at in blocks.items() if name.startswith(block)), name), []).append(name)
    counts = {}
    for place, names in places.items():
        total = sum(totals[name] for name in names)
        more = max(wholes[place] - total, 0.0)
        share = (math.sqrt(total**2 + 4 * more * most) - total) / (2 * more) if more else most / max(total, most)
        counts[tuple(names)] = min(max(1, math.ceil(1 / share)), 1 << 14)
    return counts


def drawn_pools(counts: Mapping[tuple[str, ...], int], most: int, seed: int) -> tuple[list[Pool], float]:
    """About `most` pools, the same share of each place's (at least one), and the smallest share."""
    share = min(1.0, most / sum(counts.values()))
    pools = []
    for place, (names, count) in enumerate(counts.items()):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed + place)).tolist()
        pools += [Pool(names, number, count, seed) for number in order[: math.ceil(share * count)]]
    return pools, min(math.ceil(share * count) / count for count in counts.values())


def missed(
    lm: LM,
    census: Census,
    listed: Collection[Spot],
    windows: Sequence[Sequence[int]],
    most: int,
    threshold: float,
    progress: Progress,
) -> Pooled:
    """What `search_sample` finds on the windows.

    Args:
        census: of this model.
        threshold: KL in nats per token from which a number carries something.
    """
    known = {(one.parameter, one.index): one.kl for one in census.top} | {at: one.kl for at, one in census.also.items()}
    wholes = {of: float(kl) for (of, kind), kl in census.groups.items() if kind in ("whole", "layer")}

    def measure(turn: int, some: Sequence[Pool]) -> list[float]:
        what = MISSED if not turn else f"looking closer, round {turn}"
        found: list[float] = []
        for start in range(0, len(some), _TOGETHER):
            part = some[start : start + _TOGETHER]
            progress(what, start, len(some))
            found += pool_effects(lm, windows, part, listed)
        return found

    return search_sample(lm, census.totals, wholes, known, listed, most, threshold, 0, measure)


def search_sample(
    lm: LM,
    totals: Mapping[str, float],
    wholes: Mapping[str, float],
    known: Mapping[Spot, float],
    listed: Collection[Spot],
    most: int,
    threshold: float,
    seed: int,
    measure: PoolMeasure,
) -> Pooled:
    """About `most` pools of all numbers but the listed ones and those of the vocabulary (so many of these carry that no
    pool of them would be quiet), searched as `search_pools` says.

    Args:
        totals, wholes: see `cut`, with all numbers.
        known: predicted KL of single numbers, the listed ones among them.
        threshold: KL in nats per token from which a number carries something.
    """
    kinds = kinds_of(lm)
    rest = {name: total for name, total in totals.items() if kinds[name] not in VOCABULARY}
    for name, index in listed:
        if name in rest:
            rest[name] = max(0.0, rest[name] - known.get((name, index), 0.0))
    counts = cut(lm, rest, wholes, FULL * threshold)
    pools, chance = drawn_pools(counts, most, seed)
    loud, singles = search_pools(lm, pools, listed, measure, threshold)
    return Pooled(tested=len(pools), of=sum(counts.values()), chance=chance, loud=loud, found=singles)


def pool_effects(
    lm: LM, windows: Sequence[Sequence[int]], pools: Sequence[Pool], listed: Collection[Spot]
) -> list[float]:
    """The KL of each pool at zero, in nats per token."""
    effects = effects_of(lm, windows, [pool_stream(lm, pool, listed) for pool in pools])
    return (effects.kl.sum(axis=1) / effects.tokens.sum()).tolist()


def search_pools(
    lm: LM,
    pools: Sequence[Pool],
    listed: Collection[Spot],
    measure: PoolMeasure,
    threshold: float,
) -> tuple[int, list[Spot]]:
    """How many pools carry more than the threshold, and the single numbers in them that do: a loud pool is halved, and
    what is loud of it again, down to the number.

    Args:
        listed: numbers that are in no pool.
    """
    found: list[Spot] = []
    first, turn = 0, 0
    while pools:
        loud = [pool for pool, kl in zip(pools, measure(turn, pools), strict=True) if kl > threshold]
        first = first if turn else len(loud)
        halves: list[Pool] = []
        for pool in loud:
            numbers = singled(lm, pool, listed)
            if len(numbers) == 1:
                found += numbers
            elif numbers:
                halves += pool.split()
        pools, turn = halves, turn + 1
    return first, found


def pool_stream(lm: LM, pool: Pool, listed: Collection[Spot]) -> Stream:
    """The model without the numbers of a pool."""
    parameters = {name: lm.model.get_parameter(name) for name in pool.parameters}
    one_each = [Weights(parameter=name, entries=((0,) * one.dim(),)) for name, one in parameters.items()]
    blocks = [lm.model.get_submodule(layer.block) for layer in lm.anatomy.layers]
    own = {id(one) for one in parameters.values()}
    without = {place for place, block in enumerate(blocks) if not own & {id(one) for one in block.parameters()}}

    @contextmanager
    def emptied() -> Iterator[None]:
        with Journal(lm.model) as journal:
            for name, mask in pool.masks(lm, listed).items():
                journal.write(name, parameters[name].detach().masked_fill(mask.to(parameters[name].device), 0))
            yield

    # Masks take time to draw: blocks between an embedding and its head, which do not hold it, are spared that.
    return replace(stream_of(lm, zero(one_each)), enter=lambda at: nullcontext() if at in without else emptied())


def singled(lm: LM, pool: Pool, listed: Collection[Spot]) -> list[Spot]:
    """The numbers of a pool, two of them at most."""
    found: list[Spot] = []
    for name, mask in pool.masks(lm, listed).items():
        found += [(name, tuple(place)) for place in mask.nonzero()[:2].tolist()]
    return found[:2]
