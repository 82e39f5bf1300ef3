"""Census: what each number of a model carries, predicted from one backward pass a window.

Labels are drawn from the model's own distribution, so that the mean squared gradient of their log-likelihood is the
Fisher information: what positions have in common cancels in expectation.

The KL of taking number i out is, to second order, 1/2 w_i^2 F_ii in nats per token: the saliency of optimal brain
damage (LeCun et al. 1989) with the Fisher information for the Hessian. Large effects are underestimated (the second
order does not see what collapses), entries of an embedding overestimated; whoever says that a number matters measures
it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from studfinder.edits import Weights
from studfinder.models import LM
from studfinder.models.kinds import gain_offsets
from studfinder.passes import gradients, sampled_likelihood
from studfinder.runs import Progress, silent
from studfinder.texts import batches

LEAST_DECADE, MOST_DECADE = -16, 2
"""Decades of predicted KL that are told apart: what lies below or above counts to the first or the last."""

Spot = tuple[str, tuple[int, ...]]
"""Of a number: its parameter's name and its index."""
Groups = Callable[[str, torch.Tensor, torch.Tensor], Mapping[tuple[str, str], torch.Tensor]]
"""From a parameter's name, its numbers w and their gradients g to sums of g w over groups of them, by (whose, which
kind); sums under one key are added up over all parameters of a block. Half the mean of their squares is the predicted
KL of taking a whole group out. A rounding error may stand in place of w."""


@dataclass(frozen=True, kw_only=True)
class PredictedNumber:
    """A number in the order of what is predicted of it.

    Attributes:
        parameter, index: which; tied parameters have the name that the model lists first.
        value: what it is.
        kl: predicted KL of setting it to zero, in nats per token.
        error: the standard error of `kl`, from the windows.
        off: where it is the w of a gain 1 + w: predicted KL of taking the whole factor to zero; else None. Zeroing w
            leaves the factor 1.
    """

    parameter: str
    index: tuple[int, ...]
    value: float
    kl: float
    error: float
    off: float | None = None

    @property
    def most(self) -> float:
        """The larger of what is predicted of its edits."""
        return max(self.kl, self.off or 0.0)

    @property
    def weights(self) -> Weights:
        return Weights(parameter=self.parameter, entries=(self.index,))


@dataclass(frozen=True)
class DrawnNumbers:
    """Numbers of one parameter drawn at random, up to so many from each decade of predicted KL, each with the same
    chance.

    Attributes:
        flat_N: flat indices, int64.
        kl_N: predicted KL of each.
        decade_N: decade of each.
    """

    flat_N: torch.Tensor
    kl_N: torch.Tensor
    decade_N: torch.Tensor


@dataclass
class Census:
    """What was predicted of every number of a model, of which the largest, sums and a sample are kept.

    Attributes:
        tokens: of the windows.
        top: the numbers of largest `PredictedNumber.most`, the largest first.
        also: the numbers that were asked for, however small.
        decades: by parameter, how many of its numbers have a predicted KL of exactly 0 (w is 0, or no gradient reached
            it), and then how many lie in each decade from `LEAST_DECADE` to `MOST_DECADE`.
        totals: by parameter, the sum of its predicted KL.
        drawn: by parameter, a sample.
        groups: by (whose, which kind), predicted KL of taking whole groups out.
        nonfinite: parameters whose gradients held inf or NaN; what is so counts as 0.
    """

    tokens: int
    top: list[PredictedNumber] = field(default_factory=list)
    also: dict[Spot, PredictedNumber] = field(default_factory=dict)
    decades: dict[str, list[int]] = field(default_factory=dict)
    totals: dict[str, float] = field(default_factory=dict)
    drawn: dict[str, DrawnNumbers] = field(default_factory=dict)
    groups: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    nonfinite: list[str] = field(default_factory=list)

    @property
    def numbers(self) -> int:
        """How many numbers there are."""
        return sum(map(sum, self.decades.values()))

    def predictions(self, parameter: str, shape: Sequence[int]) -> dict[tuple[int, ...], float]:
        """What is known of a parameter: the sample and those at the top, by index."""
        drawn = self.drawn[parameter]
        places = np.stack(np.unravel_index(drawn.flat_N.numpy(), tuple(shape)), axis=-1).tolist()
        found = dict(zip(map(tuple, places), drawn.kl_N.tolist(), strict=True))
        return found | {one.index: one.kl for one in self.top if one.parameter == parameter}


def census(
    lm: LM,
    windows: Sequence[Sequence[int]],
    *,
    draws: int = 2,
    top: int = 4096,
    also: Collection[Spot] = (),
    sample: int = 32,
    groups: Groups | None = None,
    map: Path | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Census:
    """Predict for every floating parameter of a model (matrices, gains, biases, embeddings, convolutions, tied ones
    once) the KL in nats per token of setting each of its numbers to zero.

    Args:
        windows: token ids, best of equal length; never those on which what is found is judged.
        draws: of labels, for each window; each is a backward pass.
        top: how many numbers are kept.
        also: numbers of which the prediction is kept however small it is.
        sample: how many numbers of each parameter and decade are drawn.
        groups: sums over groups of numbers; by default rows, columns, experts, parameters and layers (`group_sums`).
        map: where every prediction is written, as safetensors (fp32, in the parameters' shapes).
        progress: told (what, done, total).

    Raises:
        StudfinderError: a parameter is offloaded.
    """
    found = Census(sum(len(ids) for ids in windows))
    sums, offsets = groups or group_sums(lm), gain_offsets(lm)
    whole: dict[str, torch.Tensor] = {}
    tallies: dict[int, _Tally] = {}
    one_each = list(batches(windows))
    for done, piece in enumerate(gradients(lm, one_each, sampled_likelihood(draws, seed))):
        progress("census", done, (len(lm.anatomy.layers) + 2) * len(windows) * draws)
        tally = tallies.setdefault(piece.layer, _Tally(lm, sums, draws))
        tally.add(piece.parameters, last=piece.draw == draws - 1)
        if tally.windows < len(windows):
            continue
        for name in list(tally.first):
            kl = _taken(
                found, name, lm.model.get_parameter(name), tally.fisher(name), offsets.get(name, 0.0), top, also
            )
            found.drawn[name] = _drawn(kl.flatten(), sample, seed)
            if map is not None:
                whole[name] = kl.cpu()
        found.groups |= {key: square / (2 * draws * found.tokens) for key, square in tally.groups.items()}
        del tallies[piece.layer]
    if map is not None:
        from safetensors.torch import save_file

        save_file(whole, map)
    return found


def group_sums(lm: LM) -> Groups:
    """Rows, columns (of the last two axes), experts and whole parameters, and layers."""
    blocks = {layer.block + ".": f"layers.{number}" for number, layer in enumerate(lm.anatomy.layers)}

    def sums(name: str, w: torch.Tensor, g: torch.Tensor) -> dict[tuple[str, str], torch.Tensor]:
        terms = w * g
        found = {(name, "whole"): terms.sum()}
        if terms.dim() >= 2:
            found[name, "rows"], found[name, "columns"] = terms.sum(dim=-1), terms.sum(dim=-2)
        if terms.dim() >= 3:
            found[name, "slices"] = terms.flatten(1).sum(dim=1)
        layer = next((layer for block, layer in blocks.items() if name.startswith(block)), "outside the layers")
        return {**found, (layer, "layer"): found[name, "whole"]}

    return sums


class _Tally:
    """Sums over windows of the squared gradients of a block's parameters, and of their squares.

    Attributes:
        windows: how many were added up.
        groups: by group, the sum over windows and draws of the square of its sum.
    """

    def __init__(self, lm: LM, sums: Groups, draws: int) -> None:
        self.lm, self.sums, self.draws = lm, sums, draws
        self.windows = 0
        self.first: dict[str, torch.Tensor] = {}
        self.groups: dict[tuple[str, str], torch.Tensor] = {}
        self._second: dict[str, torch.Tensor] = {}
        self._window: dict[str, torch.Tensor] = {}

    def add(self, found: Mapping[str, torch.Tensor], *, last: bool) -> None:
        """Take in the gradients of a window and a draw; `last` of this window."""
        grouped: dict[tuple[str, str], torch.Tensor] = {}
        for name, gradient in found.items():
            g = gradient.float()
            for key, one in self.sums(name, self.lm.model.get_parameter(name).detach().float(), g).items():
                grouped[key] = grouped[key] + one if key in grouped else one
            squares = g.square() / self.draws
            self._window[name] = self._window[name].add_(squares) if name in self._window else squares
        for key, one in grouped.items():
            self.groups[key] = one.square().add_(self.groups.get(key, 0))
        if last:
            for name, squares in self._window.items():
                self.first[name] = self.first[name].add_(squares) if name in self.first else squares.clone()
                square = squares.square_()
                self._second[name] = self._second[name].add_(square) if name in self._second else square.clone()
            self._window.clear()
            self.windows += 1

    def fisher(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each number of a parameter the sum over windows of the mean squared gradient, and its standard error, as
        if windows were of one length (0 of a single one). It is not held any longer."""
        first, second = self.first.pop(name), self._second.pop(name)
        spread = (second - first.square() / self.windows).clamp_min_(0)
        return first, (spread * self.windows / max(self.windows - 1, 1)).sqrt_()


def _taken(
    found: Census,
    name: str,
    weight: torch.Tensor,
    fisher: tuple[torch.Tensor, torch.Tensor],
    offset: float,
    top: int,
    also: Collection[Spot],
) -> torch.Tensor:
    """Take a parameter in: its largest numbers, how many there are of each size. Gives what is predicted of each."""
    w = weight.detach().float()
    half, error = (one / (2 * found.tokens) for one in fisher)
    if not bool(half.isfinite().all()):
        found.nonfinite.append(name)
        half, error = half.nan_to_num(0, 0, 0), error.nan_to_num(0, 0, 0)
    kl = w.square() * half
    off = (1 + w).square() * half if offset else None
    size = kl if off is None else torch.maximum(kl, off)
    values, flat = size.flatten().topk(min(top, size.numel()))
    if len(found.top) == top:
        flat = flat[values > found.top[-1].most]

    def predicted(flat: torch.Tensor) -> Iterator[PredictedNumber]:
        columns = [flat, *(one.flatten()[flat] for one in (w, kl, error * w.square(), kl if off is None else off))]
        for place, value, own, spread, gone in zip(*(column.tolist() for column in columns), strict=True):
            index = tuple(int(at) for at in np.unravel_index(place, tuple(w.shape)))
            yield PredictedNumber(
                parameter=name, index=index, value=value, kl=own, error=spread, off=gone if offset else None
            )

    found.top += predicted(flat)
    asked = [int(np.ravel_multi_index(index, tuple(w.shape))) for parameter, index in also if parameter == name]
    found.also |= {(name, one.index): one for one in predicted(torch.tensor(asked, dtype=torch.int64, device=w.device))}
    found.top.sort(key=lambda one: -one.most)
    del found.top[top:]
    found.totals[name] = float(kl.sum(dtype=torch.float64))
    found.decades[name] = torch.bincount(_decade(kl.flatten()), minlength=MOST_DECADE - LEAST_DECADE + 2).tolist()
    return kl


def _decade(kl_N: torch.Tensor) -> torch.Tensor:
    """0 for what is 0, else 1 for the decade from 10^LEAST_DECADE (and all below it), and so on."""
    places = kl_N.log10().floor_().clamp_(LEAST_DECADE, MOST_DECADE)
    return torch.where(kl_N > 0, places - LEAST_DECADE + 1, 0).to(torch.int64)


def _drawn(kl_N: torch.Tensor, sample: int, seed: int) -> DrawnNumbers:
    """A sample of a parameter, by decade. Large strata are not listed: places are drawn until enough lie in them."""
    generator = torch.Generator().manual_seed(seed)
    decade_N = _decade(kl_N).cpu()
    chosen = []
    for decade, count in enumerate(torch.bincount(decade_N).tolist()):
        if count * 64 < len(decade_N) or count <= sample:
            places = (decade_N == decade).nonzero()[:, 0]
            chosen.append(places[torch.randperm(count, generator=generator)[:sample]])
            continue
        places = torch.randint(len(decade_N), (sample * 128,), generator=generator)
        places = places[decade_N[places] == decade].unique()
        chosen.append(places[torch.randperm(len(places), generator=generator)[:sample]])
    flat = torch.cat(chosen)
    return DrawnNumbers(flat, kl_N.cpu()[flat], decade_N[flat])
