"""Edits of down projections that accelerate keeps on disk or in another memory.

Such a weight is on the meta device between two uses: writing to it would be lost without a word. So the edited output
rows are computed again in every pass, from the matrix's input and an edited copy of those rows. Subtracting the
weight's contribution from the output instead loses, in bf16, what a massive output has rounded away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from studfinder.edits.edit import NullEdit, WeightEdit
from studfinder.errors import StudfinderError
from studfinder.models import LM, MatrixRef, matrix
from studfinder.sites import ModelCall, Site


def offloaded_writer(lm: LM, parameter: str) -> Site | None:
    """The output site of a down projection that is offloaded, if this parameter is one; fused experts are none."""
    for layer, part in enumerate(lm.anatomy.layers):
        for writer, ref in enumerate(part.writers):
            if ref.parameter == parameter and ref.expert is None and lm.model.get_parameter(parameter).is_meta:
                return Site("down_proj.output", layer, writer)
    return None


class RecomputedRows:
    """The edited output rows of one offloaded matrix."""

    def __init__(self, lm: LM, site: Site, edits: Sequence[WeightEdit | NullEdit]) -> None:
        self.lm, self.site, self.edits = lm, site, edits
        self.ref: MatrixRef = lm.anatomy.layers[site.layer or 0].writers[site.writer]
        self._input: torch.Tensor | None = None
        with matrix(lm, self.ref) as weight_CF:
            if weight_CF is None:
                raise StudfinderError(f"{self.ref.parameter} is quantised", do="Edit the unquantised model")
            rows = weight_CF.shape[0]
        touched = [row for edit in edits for entry in edit.target.entries for row in [self._row_col(entry)[0]]]
        self.rows = list(range(rows)) if None in touched else sorted({row for row in touched if row is not None})

    def remember_input(self, tensor: torch.Tensor, _call: ModelCall) -> torch.Tensor:
        """Keep the matrix's input for its output's sake."""
        self._input = tensor
        return tensor

    def __call__(self, tensor: torch.Tensor, _call: ModelCall) -> torch.Tensor:
        assert self._input is not None
        owner = self.lm.model.get_submodule(self.ref.module)
        with matrix(self.lm, self.ref) as weight_CF:
            assert weight_CF is not None
            rows_RF = weight_CF[self.rows].detach().clone().to(self._input.device)
            bias = getattr(owner, "bias", None)
            bias_R = None if bias is None else bias.detach()[self.rows].to(self._input.device)
        own = rows_RF.T if self.ref.transposed else rows_RF  # as the parameter has them
        for edit in self.edits:
            for entry in edit.target.entries:
                place = tuple(slice(None) if at is None else at for at in entry)
                row, col = self._row_col(place)
                row = row if isinstance(row, slice) else self.rows.index(row)
                here = self._row_col((row, col))
                own[here] = edit.changed(own[here], place)
        new = tensor.clone()
        new[..., self.rows] = torch.nn.functional.linear(self._input, rows_RF, bias_R)
        return new

    def _row_col(self, entry: tuple[Any, ...]) -> tuple[Any, Any]:
        first, second = entry
        return (second, first) if self.ref.transposed else (first, second)
