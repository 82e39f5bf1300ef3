"""Matched controls: weights that could have mattered as much as a candidate, and mostly do not."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch

from studfinder.edits.edit import Weights
from studfinder.errors import StudfinderError
from studfinder.models import LM, MatrixRef, matrix
from studfinder.records import Findings, SuperWeight
from studfinder.sites import Site, capture


def matched_controls(
    lm: LM,
    candidate: SuperWeight,
    findings: Findings,
    *,
    count: int = 20,
    exclude: Collection[tuple[int, ...]] = (),
) -> tuple[Weights, ...]:
    """Single weights of the candidate's own matrix: half nearest in |w|, half nearest in contribution |x_k w_jk|.

    Args:
        candidate: one of `findings`, which know the token where it was seen: contributions are taken there.
        count: how many.
        exclude: indices into the parameter that must not serve (the other candidates).

    Raises:
        StudfinderError: the matrix has too few other entries, or the findings do not know their prompts' token ids.
    """
    ref, writer = _ref_of(lm, candidate)
    inputs_F = _inputs(lm, candidate, writer, findings.ids_of(candidate))
    with matrix(lm, ref) as weight_CF:
        if weight_CF is None:
            raise StudfinderError(f"{ref.parameter} is quantised", do="Prove on the unquantised model")
        size_CF = weight_CF.abs().float().cpu()
    taken = torch.zeros(size_CF.shape, dtype=torch.bool)
    for index in {candidate.index, *exclude}:
        row, col = _row_col(ref, index)
        taken[row, col] = True
    if int((~taken).sum()) < count:
        raise StudfinderError(f"{ref.parameter} has too few entries for {count} controls")
    chosen: list[tuple[int, int]] = []
    contribution_CF = size_CF * inputs_F.abs()[None, :]
    for values_CF, half in ((size_CF, count - count // 2), (contribution_CF, count // 2)):
        target = values_CF[candidate.row, candidate.col]
        distance = (values_CF - target).abs().masked_fill(taken, float("inf"))
        for flat in distance.flatten().topk(half, largest=False).indices.tolist():
            row, col = divmod(flat, values_CF.shape[1])
            taken[row, col] = True
            chosen.append((row, col))
    return tuple(Weights(parameter=ref.parameter, entries=(ref.index(row, col),)) for row, col in chosen)


def controls_by_prediction(
    lm: LM,
    number: Weights,
    predicted: Mapping[tuple[int, ...], float],
    *,
    count: int = 20,
    exclude: Collection[tuple[int, ...]] = (),
) -> tuple[Weights, ...]:
    """Controls of any number: others of its own matrix (of its own expert) or vector, half nearest in |w|, half nearest
    in what is predicted of them, by its logarithm.

    Args:
        number: one entry of a parameter.
        predicted: of entries of that parameter, the number's own among them, the predicted KL of taking them out (see
            `detectors.census`). Where it knows too few, those nearest in |w| stand in.
        count: how many; fewer where the matrix or vector has no more.
        exclude: indices into the parameter that must not serve: other candidates.

    Raises:
        StudfinderError: the parameter is quantised.
    """
    (index,) = number.entries
    own = tuple(at for at in index if at is not None)
    parameter = lm.model.get_parameter(number.parameter).detach()
    if not parameter.is_floating_point():
        raise StudfinderError(f"{number.parameter} is quantised", do="Prove on the unquantised model")
    matrix_of = own[:-2]
    size = parameter[matrix_of].abs().float().cpu()
    distance = (size - size[own[len(matrix_of) :]]).abs()
    taken = {own, *exclude}
    there = [one[len(matrix_of) :] for one in taken if one[: len(matrix_of)] == matrix_of]
    count = min(count, distance.numel() - len(set(there)))
    near = [one for one in predicted if one[: len(matrix_of)] == matrix_of and one not in taken and predicted[one] > 0]
    near = near if predicted.get(own) else []
    near.sort(key=lambda one: abs(math.log(predicted[one] / predicted[own])))
    chosen = near[: count // 2]
    for one in (*there, *(one[len(matrix_of) :] for one in chosen)):
        distance[one] = math.inf
    flat = distance.flatten().topk(count - len(chosen), largest=False).indices
    places = zip(*(axis.tolist() for axis in torch.unravel_index(flat, distance.shape)), strict=True)
    chosen += [(*matrix_of, *place) for place in places]
    return tuple(Weights(parameter=number.parameter, entries=(one,)) for one in chosen)


def _ref_of(lm: LM, candidate: SuperWeight) -> tuple[MatrixRef, int]:
    for writer, ref in enumerate(lm.anatomy.layers[candidate.layer].writers):
        if ref.parameter == candidate.parameter and ref.expert == candidate.expert:
            return ref, writer
    raise StudfinderError(f"{candidate} is not in this model", do="Was it found in another one?")


def _row_col(ref: MatrixRef, index: tuple[int, ...]) -> tuple[int, int]:
    first, second = index[-2:]
    return (second, first) if ref.transposed else (first, second)


def _inputs(lm: LM, candidate: SuperWeight, writer: int, prompt_ids: Sequence[int]) -> torch.Tensor:
    """The matrix's input at the candidate's token, shape (F,)."""
    site = Site("down_proj.input", candidate.layer, writer)
    inputs_NF = capture(lm, torch.tensor([list(prompt_ids)]), [site])[str(site)].float().cpu()
    # Of a fused expert only the tokens it was given are seen; its spike is its largest input in that channel.
    position = candidate.position
    if inputs_NF.shape[0] != len(prompt_ids):
        position = int(inputs_NF[:, candidate.col].abs().argmax())
    return inputs_NF[position]
