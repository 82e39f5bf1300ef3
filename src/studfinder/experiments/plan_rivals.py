"""Cheap scores of what rounding a fused group costs: ours, and those that other tools spend bits by.

All come from one pass of gradients and one of inputs over the same windows, in fp32; d is the rounding error of a
matrix, g the gradient of the log-likelihood of labels that the model draws, F = E[g^2] the diagonal of the Fisher.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch

from studfinder.models import LM
from studfinder.passes import gradients, likelihood, sampled_likelihood
from studfinder.quantizers import Target
from studfinder.quantizers.finite import finite_weight
from studfinder.quantizers.formats import fits_all
from studfinder.quantizers.importance import Sums, importance_sums
from studfinder.quantizers.sensitivity import rounding_error
from studfinder.quantizers.targets import by_fused
from studfinder.records import Format
from studfinder.texts import Batch, batches

DIAGONAL, DIRECTION = "gradient, diagonal", "gradient, own direction"
FISHER_SCORES = (DIAGONAL, DIRECTION)
"""1/2 sum F d^2 and 1/2 E[(g . d)^2]: what `plan` predicts with, in nats per token."""
DELTA_LOSS = "DeltaLoss"
"""E sum |g d|: AutoRound's form."""
DOT = "dot product"
"""|E[g] . d| a number, with the text's own next tokens for labels: mlx-lm's form, at the unrounded model."""
TRACE = "Hessian trace"
"""mean F times sum d^2: HAWQ-V2's."""
IMPORTANCE = "importance"
"""sum over inputs c of E[x_c^2] sum_r d_rc^2: what an imatrix weighs errors with."""
SQUARED = "squared error"
"""sum d^2."""
KURTOSIS = "kurtosis"
"""of the weights, times sum d^2 / sum w^2, which is that of the format."""
SCORES = (*FISHER_SCORES, DELTA_LOSS, DOT, TRACE, IMPORTANCE, SQUARED, KURTOSIS)

ByFormat = dict[str, dict[str, dict[str, float]]]
"""A number by score, group and format."""


def rival_scores(
    lm: LM,
    windows: Sequence[Sequence[int]],
    formats: Sequence[Format],
    found: Sequence[Target],
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ByFormat:
    """Every score of every group, in the formats that fit it.

    Args:
        windows: token ids, of equal worth.
        formats: that round weights and keep none.
        found: matrices, whole fused groups.
        progress: told how many blocks are done, of how many.
    """
    groups = by_fused(found)
    fitting = {
        target.name: [one for one in formats if fits_all(one, (other.weight(lm).shape for other in group))]
        for group in groups.values()
        for target in group
    }
    tokens = sum(map(len, windows))
    inputs = importance_sums(lm, tuple(found), windows, apart=False)
    table: ByFormat = {score: {group: {} for group in groups} for score in SCORES}
    for own in _layers(lm, windows, found, fitting, seed, progress):
        for fused, matrices in own.items():
            for format in dict.fromkeys(one.name for target, _ in matrices for one in fitting[target.name]):
                for score, value in _scores(matrices, format, tokens, inputs).items():
                    table[score][fused][format] = value
    return table


class _Matrix:
    """What is summed of a matrix, over windows."""

    def __init__(self, lm: LM, target: Target, formats: Sequence[Format]) -> None:
        weight_RC = finite_weight(target, lm).float()
        self.errors = {one.name: rounding_error(weight_RC, one) for one in formats}
        self.size, self.energy = weight_RC.numel(), float(weight_RC.square().sum())
        centred = weight_RC - weight_RC.mean()
        self.kurtosis = float(centred.pow(4).mean() / centred.square().mean().square().clamp_min(1e-30))
        self.squares_RC = torch.zeros_like(weight_RC)
        self.mean_RC = torch.zeros_like(weight_RC)
        self.along: dict[str, list[float]] = {name: [] for name in self.errors}
        """By format, g . d of each window."""
        self.absolute = dict.fromkeys(self.errors, 0.0)

    def add(self, gradient_RC: torch.Tensor, *, drawn: bool) -> None:
        """Take in a window's gradient, of drawn labels or of the text's own."""
        if not drawn:
            self.mean_RC += gradient_RC
            return
        self.squares_RC += gradient_RC.square()
        for name, error_RC in self.errors.items():
            product_RC = gradient_RC * error_RC
            self.along[name].append(float(product_RC.sum(dtype=torch.float64)))
            self.absolute[name] += float(product_RC.abs_().sum(dtype=torch.float64))


def _scores(
    matrices: Sequence[tuple[Target, _Matrix]], format: str, tokens: int, inputs: Mapping[str, Sums]
) -> dict[str, float]:
    """Every score of a group in a format."""
    diagonal = dot = absolute = trace = importance = squared = kurtosis = 0.0
    for target, own in matrices:
        square_RC = own.errors[format].square()
        whole = float(square_RC.sum(dtype=torch.float64))
        diagonal += float((square_RC * own.squares_RC).sum(dtype=torch.float64))
        dot += float((own.errors[format] * own.mean_RC).sum(dtype=torch.float64))
        absolute += own.absolute[format]
        trace += float(own.squares_RC.mean()) / tokens * whole
        if target.name in inputs:
            sum_C, count = inputs[target.name]
            importance += float(square_RC.sum(dim=0).double().cpu() @ (sum_C.double() / max(count, 1)))
        squared += whole
        kurtosis += own.kurtosis * whole / max(own.energy, 1e-30)
    along = [sum(window) for window in zip(*(own.along[format] for _, own in matrices), strict=True)]
    size = sum(own.size for _, own in matrices)
    return {
        DIAGONAL: diagonal / (2 * tokens),
        DIRECTION: sum(one**2 for one in along) / (2 * tokens),
        DELTA_LOSS: absolute / tokens,
        DOT: abs(dot) / tokens / size,
        TRACE: trace,
        IMPORTANCE: importance,
        SQUARED: squared,
        KURTOSIS: kurtosis,
    }


def _layers(
    lm: LM,
    windows: Sequence[Sequence[int]],
    found: Sequence[Target],
    fitting: Mapping[str, Sequence[Format]],
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[dict[str, list[tuple[Target, _Matrix]]]]:
    """By fused group the sums of its matrices, of one block after the other."""
    owners: dict[str, list[Target]] = {}
    for target in found:
        owners.setdefault(target.ref.parameter, []).append(target)
    drawn, own = sampled_likelihood(1, seed), likelihood()

    def both(logits_NV: torch.Tensor, batch: Batch, row_N: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
        return torch.cat([one(logits_NV, batch, row_N, place_N) for one in (drawn, own)])

    held: dict[int, dict[str, tuple[Target, _Matrix]]] = {}
    seen: dict[int, int] = {}
    given, done = list(batches(windows)), 0
    for piece in gradients(lm, given, both, parameters=list(owners)):
        if not piece.parameters:
            continue
        block = held.setdefault(piece.layer, {})
        for name, gradient in piece.parameters.items():
            for target in owners[name]:
                if target.name not in block:
                    block[target.name] = target, _Matrix(lm, target, fitting[target.name])
                block[target.name][1].add(target.of(gradient).float(), drawn=piece.draw == 0)
        seen[piece.layer] = seen.get(piece.layer, 0) + 1
        if seen[piece.layer] < 2 * len(given):
            continue
        groups: dict[str, list[tuple[Target, _Matrix]]] = {}
        for target, matrix in held.pop(piece.layer).values():
            groups.setdefault(target.fused, []).append((target, matrix))
        yield groups
        done += 1
        if progress is not None:
            progress(done, len(lm.anatomy.layers))
