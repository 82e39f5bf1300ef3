"""What was not measured one by one, measured in pools: all numbers of a pool at zero at once.

A number is hidden in a pool only if the others undo what it does. So a pool that carries no more than a threshold holds
no number that does, and a few hundred pools, each of so many numbers that what is predicted of them together stays far
below it, hold a whole model. Every parameter is cut into pools at random, and of each the same share is measured at
least: then every number had that chance of being in the sample (`stats.most_unseen`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch

from studfinder.edits import Weights, stream_of, zero
from studfinder.experiments.census_rankings import Spot
from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.sites import Journal


@dataclass(frozen=True)
class Pool:
    """One of the pools that the numbers of a parameter are cut into; `halves` says which half of it, and of that.

    Attributes:
        parameter: whose numbers.
        number, of: which pool, of how many.
        seed: of the cut.
    """

    parameter: str
    number: int
    of: int
    seed: int = 0
    halves: tuple[int, ...] = ()

    def mask(self, lm: LM, listed: Collection[Spot]) -> torch.Tensor:
        """Where its numbers are: booleans in the parameter's shape. What is listed is in no pool."""
        shape = lm.model.get_parameter(self.parameter).shape
        found = self._drawn(shape, self.of, self.seed) == self.number
        for depth, half in enumerate(self.halves):
            found &= self._drawn(shape, 2, self.seed + 1 + depth) == half
        for parameter, index in listed:
            if parameter == self.parameter:
                found[index] = False
        return found

    def _drawn(self, shape: torch.Size, most: int, seed: int) -> torch.Tensor:
        return torch.randint(most, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int16)

    def split(self) -> tuple[Pool, Pool]:
        return replace(self, halves=(*self.halves, 0)), replace(self, halves=(*self.halves, 1))


@dataclass
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
    loud: int = 0
    found: list[Spot] = field(default_factory=list)


def pool_counts(totals: Mapping[str, float], wholes: Mapping[str, float], most: float) -> dict[str, int]:
    """How many pools each parameter is cut into, so that no more than `most` nats are predicted of any.

    Args:
        totals: by parameter, the sum of its numbers' predicted KL, S.
        wholes: predicted KL of taking all of it out at once, G: a share f of them carries f S + f^2 (G - S).
    """
    counts = {}
    for name, total in totals.items():
        more = max(wholes[name] - total, 0.0)
        share = most / total if not more else (math.sqrt(total**2 + 4 * more * most) - total) / (2 * more)
        counts[name] = min(max(1, math.ceil(1 / share)), 1 << 14) if total else 1
    return counts


def drawn_pools(counts: Mapping[str, int], most: int, seed: int) -> tuple[list[Pool], float]:
    """About `most` pools, the same share of each parameter's (at least one), and the smallest share."""
    share = min(1.0, most / sum(counts.values()))
    pools = []
    for name, count in counts.items():
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        pools += [Pool(name, number, count, seed) for number in order[: math.ceil(share * count)]]
    return pools, min(math.ceil(share * count) / count for count in counts.values())


def pool_stream(lm: LM, pool: Pool, listed: Collection[Spot]) -> Stream:
    """The model without the numbers of a pool."""
    shape = lm.model.get_parameter(pool.parameter).shape
    of_any = stream_of(lm, zero(Weights(parameter=pool.parameter, entries=((0,) * len(shape),))))
    parameter = lm.model.get_parameter(pool.parameter)
    blocks = [lm.model.get_submodule(layer.block) for layer in lm.anatomy.layers]
    without = {place for place, block in enumerate(blocks) if all(one is not parameter for one in block.parameters())}

    @contextmanager
    def emptied() -> Iterator[None]:
        with Journal(lm.model) as journal:
            mask = pool.mask(lm, listed).to(parameter.device)
            journal.write(pool.parameter, parameter.detach().masked_fill(mask, 0))
            yield

    # A mask takes time to draw: blocks between an embedding and its head, which do not hold it, are spared it.
    return replace(of_any, enter=lambda layer: nullcontext() if layer in without else emptied())
