"""What rounding each fused group is predicted to cost, in every candidate format, from one backward pass a window.

Labels are drawn from the model's own distribution, so that the mean squared gradient of their log-likelihood is the
Fisher information F. With the rounding error d of a matrix, to second order, in nats per token:

* `kl` = 1/2 sum_i F_ii d_i^2, the diagonal: what errors cost that do not add up;
* `together` = 1/2 E[(sum_i g_i d_i)^2], the group's own direction: the same where they do, with the noise of few draws.

It is the saliency of optimal brain damage (LeCun et al. 1989) with a rounding error for the weight. Gradients are
wanted in fp32: in bf16 most of what small errors cost is noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from studfinder.models import LM
from studfinder.passes import gradients, sampled_likelihood
from studfinder.quantizers.finite import finite_weight
from studfinder.quantizers.formats import fits_all, kept_count
from studfinder.quantizers.grid import quantize_weight
from studfinder.quantizers.mixed import mask_of
from studfinder.quantizers.targets import Target, by_fused
from studfinder.records import Format
from studfinder.runs import Progress, silent
from studfinder.texts import batches


@dataclass(frozen=True, kw_only=True)
class PredictedCost:
    """What a group is predicted to cost in a format, in nats per token.

    Attributes:
        kl: by the diagonal.
        error: its standard error, from the windows.
        together: by the group's own direction; None where it was not asked for.
    """

    kl: float
    error: float
    together: float | None = None


@dataclass(frozen=True, kw_only=True)
class CostPlace:
    """Where in a matrix (out, in) a format's predicted cost lies.

    Attributes:
        matrix: its name.
        kl: of the whole matrix.
        column, row: the ones that cost most.
        column_share, row_share: of the matrix's cost.
    """

    matrix: str
    kl: float
    column: int
    column_share: float
    row: int
    row_share: float


@dataclass
class Sensitivities:
    """What one pass predicts.

    Attributes:
        tokens: of the windows.
        costs: by fused group and format; formats that do not fit a group are not there.
        kept: by format and matrix, flat indices into (out, in) of the numbers that it keeps, in ascending order.
        places: by fused group, where the cost of its first format that rounds lies, a matrix an entry.
        nonfinite: parameters whose gradients held inf or NaN; what is so counts as 0.
    """

    tokens: int
    costs: dict[str, dict[str, PredictedCost]] = field(default_factory=dict)
    kept: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    places: dict[str, list[CostPlace]] = field(default_factory=dict)
    nonfinite: list[str] = field(default_factory=list)


def sensitivities(
    lm: LM,
    windows: Sequence[Sequence[int]],
    formats: Sequence[Format],
    found: Sequence[Target],
    *,
    draws: int = 1,
    seed: int = 0,
    progress: Progress = silent,
) -> Sensitivities:
    """Predict the KL of rounding every fused group in every format.

    Memory holds, besides what `gradients` does, of one block: the sum of squared gradients, and the rounding errors of
    the formats whose direction is followed: all that keep nothing; of a model that is larger than memory, the first.

    Args:
        windows: token ids; never those on which a plan is judged.
        formats: candidates.
        found: matrices, whole fused groups.
        draws: of labels, for each window; each is a backward pass.

    Raises:
        StudfinderError: a weight that is not finite, or one that is offloaded.
    """
    made = Sensitivities(sum(map(len, windows)))
    owners: dict[str, list[Target]] = {}
    for target in found:
        owners.setdefault(target.ref.parameter, []).append(target)
    groups = by_fused(found)
    fitting = {
        name: [one for one in formats if fits_all(one, (target.weight(lm).shape for target in group))]
        for name, group in groups.items()
    }
    plain = [one for one in formats if one.weights is not None and not one.kept]
    followed = plain[:1] if lm.memory is not None and lm.memory.streamed else plain
    tallies: dict[int, _BlockTally] = {}
    total = (len(lm.anatomy.layers) + 2) * len(windows) * draws
    pieces = gradients(lm, list(batches(windows)), sampled_likelihood(draws, seed), parameters=list(owners))
    for done, piece in enumerate(pieces):
        progress("predicting", done, total)
        if not piece.parameters:
            continue
        own = [target for name in piece.parameters for target in owners[name]]
        if piece.layer not in tallies:
            tallies[piece.layer] = _BlockTally(lm, own, fitting, followed, draws)
        tally = tallies[piece.layer]
        tally.add(piece.parameters, last=piece.draw == draws - 1)
        if tally.windows == len(windows):
            tally.finish(made, len(windows))
            del tallies[piece.layer]
    progress("predicting", total, total)
    return made


class _BlockTally:
    """Sums over windows and draws of what concerns the matrices of one block."""

    def __init__(
        self,
        lm: LM,
        own: Sequence[Target],
        fitting: Mapping[str, Sequence[Format]],
        followed: Sequence[Format],
        draws: int,
    ) -> None:
        self.lm, self.own, self.fitting, self.draws = lm, own, fitting, draws
        self.windows = 0
        self.squares: dict[str, torch.Tensor] = {}
        self.nonfinite: dict[str, None] = {}
        self.names = {
            group: [one.name for one in followed if one in fitting[group]]
            for group in dict.fromkeys(target.fused for target in own)
        }
        self.errors = {target.name: self._errors(target, followed) for target in own}
        """By matrix, the flat rounding errors in each format that is followed, (formats, numbers)."""
        self.together = {group: torch.zeros(len(names), dtype=torch.float64) for group, names in self.names.items()}
        self.spread: dict[str, list[float]] = {group: [] for group in self.names}
        """By group and window, what the first format that is followed costs there by the diagonal."""
        self._first: dict[str, float] = {}

    def _errors(self, target: Target, followed: Sequence[Format]) -> torch.Tensor:
        weight_RC = finite_weight(target, self.lm)
        some = [one for one in followed if one in self.fitting[target.fused]]
        if not some:
            return torch.zeros(0, weight_RC.numel())
        return torch.stack([rounding_error(weight_RC, one).flatten() for one in some])

    def add(self, found: Mapping[str, torch.Tensor], *, last: bool) -> None:
        """Take in the gradients of a window and a draw; `last` of this window."""
        along = {group: torch.zeros(len(names)) for group, names in self.names.items()}
        for name, gradient in found.items():
            if not bool(gradient.isfinite().all()):
                self.nonfinite[name] = None
                gradient = gradient.nan_to_num(0, 0, 0)
            squares = gradient.square() / self.draws
            self.squares[name] = self.squares[name].add_(squares) if name in self.squares else squares.clone()
            for target in self.own:
                if target.ref.parameter != name or not self.names[target.fused]:
                    continue
                errors = self.errors[target.name]
                along[target.fused] += (errors @ target.of(gradient).reshape(-1)).cpu()
                cost = float(torch.dot(errors[0].square(), target.of(squares).reshape(-1)))
                self._first[target.fused] = self._first.get(target.fused, 0.0) + cost
        for group, one in along.items():
            self.together[group] += one.double().square() / self.draws
        if last:
            for group, cost in self._first.items():
                self.spread[group].append(cost)
            self._first = {}
            self.windows += 1

    def finish(self, made: Sensitivities, windows: int) -> None:
        """What is predicted of the block's groups; it is not held any longer."""
        self.errors.clear()
        made.nonfinite += self.nonfinite
        half = 1 / (2 * made.tokens)
        for group, followed in self.names.items():
            own = [target for target in self.own if target.fused == group]
            spread = self._relative(group, windows)
            first = next((one for one in self.fitting[group] if one.weights is not None), None)
            if first is not None:
                made.places[group] = [self._place(target, first, half) for target in own]
            for one in self.fitting[group]:
                kl = sum(half * self._cost(target, one, made) for target in own)
                place = followed.index(one.name) if one.name in followed else None
                together = None if place is None else half * float(self.together[group][place])
                made.costs.setdefault(group, {})[one.name] = PredictedCost(
                    kl=kl, error=kl * spread, together=0.0 if one.weights is None else together
                )

    def _relative(self, group: str, windows: int) -> float:
        """The standard error over the value, of the first format that is followed: as if windows were of one length."""
        costs = torch.tensor(self.spread[group], dtype=torch.float64)
        total = float(costs.sum())
        return float(costs.std() * windows**0.5) / total if windows > 1 and total else 0.0

    def _place(self, target: Target, chosen: Format, half: float) -> CostPlace:
        errors_RC = rounding_error(finite_weight(target, self.lm), chosen)
        costs_RC = errors_RC.square_().mul_(target.of(self.squares[target.ref.parameter]))
        columns, rows = costs_RC.sum(dim=0), costs_RC.sum(dim=1)
        total = max(float(columns.sum()), 1e-300)
        column, row = int(columns.argmax()), int(rows.argmax())
        return CostPlace(
            matrix=target.name,
            kl=half * total,
            column=column,
            column_share=float(columns[column]) / total,
            row=row,
            row_share=float(rows[row]) / total,
        )

    def _cost(self, target: Target, chosen: Format, made: Sensitivities) -> float:
        """Sum of F d^2 of a matrix; what the format keeps is added to what was made."""
        if chosen.weights is None:
            return 0.0
        weight_RC = finite_weight(target, self.lm)
        squares_RC = target.of(self.squares[target.ref.parameter])
        costs_RC = rounding_error(weight_RC, chosen).square_().mul_(squares_RC)
        if (count := kept_count(chosen, weight_RC.shape)) > 0:
            kept = costs_RC.flatten().topk(count).indices.sort().values
            made.kept[chosen.name, target.name] = kept.cpu()
            costs_RC = rounding_error(weight_RC, chosen, kept).square_().mul_(squares_RC)
        return float(costs_RC.sum(dtype=torch.float64))


def rounding_error(weight_RC: torch.Tensor, chosen: Format, kept: torch.Tensor | None = None) -> torch.Tensor:
    """What rounding to nearest adds to every number of a matrix (out, in), fp32; `kept` are flat indices of numbers
    that are held out."""
    assert chosen.weights is not None
    held_RC = None if kept is None else mask_of(weight_RC.shape, kept, weight_RC.device)
    return quantize_weight(weight_RC, chosen.weights, held_RC=held_RC).dequantized().sub_(weight_RC.float())


def worst_first(costs: Mapping[str, Mapping[str, PredictedCost]], format: str) -> Iterator[str]:
    """Groups by what they are predicted to cost in a format, the dearest first."""
    able = {group: own[format].kl for group, own in costs.items() if format in own}
    yield from sorted(able, key=lambda group: -able[group])
