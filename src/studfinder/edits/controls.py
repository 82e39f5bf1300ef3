"""Matched controls: weights that could have mattered as much as a candidate, and mostly do not."""

from __future__ import annotations

from collections.abc import Collection, Sequence

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
