"""GPTQ: round column after column, and let the columns to come make up for the error (Frantar et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

import torch

from studfinder.errors import StudfinderError
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.clip import Clip, search
from studfinder.quantizers.finite import finite_inputs, finite_weight
from studfinder.quantizers.grid import Quantized, RoundingGrid, codes, fit_grid, kept_entries, nearest
from studfinder.quantizers.scheme import Scheme, tile
from studfinder.quantizers.targets import Target, by_input
from studfinder.quantizers.walk import second_moments, walk
from studfinder.records.config import Config, option


@dataclass(frozen=True, kw_only=True)
class GPTQ(Config):
    """Minimise the error of each matrix's output on calibration text (arXiv 2210.17323, §3.3 and appendix).

    Defaults are llm-compressor's. The reference (IST-DASLab `gptq.py`) takes order="stored" and groups="dynamic";
    GPTQModel damping=0.05. Two things differ from both: the update of columns to come is split recursively instead of
    in blocks of 128, which gives the same numbers up to rounding; and a column whose input is always zero is rounded
    to nearest, not set to zero, because other text may reach it.

    Attributes:
        scheme: how weights are stored.
        damping: added to the diagonal of the Hessian, as a share of its mean.
        order: "activation": columns with the largest inputs first; "stored": as they come.
        groups: "static": ranges of the blocks from the weights before any is rounded; "dynamic": each from what its
            columns have become when it is reached. With order="activation" dynamic blocks are runs in that order.
        clip: search each block's range, errors weighed by the mean square of what comes in; None takes min and max.
        sequential: measure a matrix's inputs anew after those before it in its block are rounded.
    """

    calibrated: ClassVar[bool] = True

    scheme: Scheme = field(default_factory=lambda: Scheme(zero="integer"))
    damping: float = option(0.01, above=0)  # without any the Hessian may have no inverse
    order: Literal["activation", "stored"] = "activation"
    groups: Literal["static", "dynamic"] = "static"
    clip: Clip | None = None
    sequential: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups == "dynamic" and self.scheme.scale == "e4m3":
            raise StudfinderError("dynamic groups with one scale for the whole tensor", do="Use static groups")
        if self.groups == "dynamic" and self.order == "activation" and isinstance(self.scheme.block, tuple):
            raise StudfinderError(
                "dynamic 2-D blocks in the order of activations", do="Use static groups, or order='stored'"
            )

    def run(self, bench: Workbench) -> None:
        for block in walk(bench):
            moments = second_moments(block)
            for number, (read, own, group) in enumerate(self._alike(bench, block.targets)):
                names = [target.name for target in group]
                if self.sequential and number:
                    moments.update(second_moments(block, names))
                finite_inputs({name: moments[name] for name in names if name in moments})
                weights = [finite_weight(target, bench.lm) for target in group]
                if names[0] not in moments:
                    bench.notes.append(f"{read}: no calibration token came here; rounded to nearest")
                moment_CC = moments.get(names[0], torch.eye(weights[0].shape[1]))
                found, damping = gptq(weights, moment_CC, own, [bench.held.get(name) for name in names])
                if damping > self.damping:
                    bench.notes.append(f"{read}: the Hessian was singular; damped by {damping:g}")
                for target, one in zip(group, found, strict=True):
                    bench.put(target, one)
            del moments, moment_CC  # before those of the next block are measured

    def _alike(self, bench: Workbench, found: Sequence[Target]) -> Iterator[tuple[str, GPTQ, list[Target]]]:
        """Matrices that are given the same input and stored in the same way: what they read, and these settings."""
        for read, group in by_input(found).items():
            for scheme in dict.fromkeys(bench.scheme_of(target.name) for target in group):
                part = [target for target in group if bench.scheme_of(target.name) == scheme]
                yield read, bench.own(self, part[0].name), part


def gptq(
    weights: Sequence[torch.Tensor],
    moment_CC: torch.Tensor,
    config: GPTQ,
    held: Sequence[torch.Tensor | None] | None = None,
) -> tuple[list[Quantized], float]:
    """Quantise matrices that see the same input.

    Args:
        weights: (out, in) each, fp32; all with one `in`.
        moment_CC: mean of x x^T over the calibration tokens; any multiple of it gives the same.
        held: masks (out, in) of entries that keep their value; the other columns make up for the difference between
            that and what they had become.

    Returns:
        The quantised matrices, and the damping that was used: more than was asked for if the Hessian was singular.
    """
    factor_CC, order_C, damping = inverse_factor(moment_CC, config)
    held = [None] * len(weights) if held is None else held
    solver = _Solver(weights, held, config, order_C, moment_CC.diagonal()[order_C], factor_CC)
    solver.solve(0, len(order_C))
    return solver.results(), damping


def inverse_factor(moment_CC: torch.Tensor, config: GPTQ) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The upper Cholesky factor of the damped Hessian's inverse, in the order of columns that comes with it.

    Raises:
        StudfinderError: no damping up to the mean of the diagonal makes it positive definite.
    """
    diagonal_C = moment_CC.diagonal().float().clone()
    alive = diagonal_C > 0
    mean = float(diagonal_C[alive].mean()) if alive.any() else 1.0
    diagonal_C[~alive] = mean
    activation = config.order == "activation"
    order_C = diagonal_C.argsort(descending=True, stable=True) if activation else torch.arange(len(diagonal_C))
    damping = config.damping
    while damping <= max(1.0, config.damping):
        # One name: each of these may be larger than all the rest of the block, and two at a time are enough.
        matrix_CC = moment_CC[order_C][:, order_C].float()
        matrix_CC.diagonal().copy_(diagonal_C[order_C] + damping * mean)
        matrix_CC, failed = torch.linalg.cholesky_ex(matrix_CC)
        if not failed:
            matrix_CC = torch.cholesky_inverse(matrix_CC)
            matrix_CC, failed = torch.linalg.cholesky_ex(matrix_CC, upper=True)
            if not failed:
                return matrix_CC, order_C, damping
        damping *= 10
    raise StudfinderError("the Hessian of the calibration text has no inverse", do="Use more calibration windows")


class _Solver:
    """The columns of several matrices side by side, in working order, columns first (in, rows of all).

    Halves of a run are solved one after the other, and in between the error of the first half is spread over the
    second, as one product of matrices.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        held: Sequence[torch.Tensor | None],
        config: GPTQ,
        order_C: torch.Tensor,
        energy_C: torch.Tensor,
        factor_CC: torch.Tensor,
    ) -> None:
        self.weights, self.held, self.config, self.order_C = weights, held, config, order_C
        self.energy_C, self.factor_CC = energy_C, factor_CC
        self.diagonal = factor_CC.diagonal().tolist()
        self.ends = torch.tensor([0, *(len(weight) for weight in weights)]).cumsum(0).tolist()
        self.work_CR = torch.cat([weight[:, order_C].T for weight in weights], dim=1).contiguous()
        self.error_CR = torch.empty_like(self.work_CR)
        self.held_CR = None
        if any(mask is not None and mask.any() for mask in held):
            masks = [
                torch.zeros_like(w, dtype=torch.bool) if m is None else m for w, m in zip(weights, held, strict=True)
            ]
            self.held_CR = torch.cat([mask[:, order_C].T for mask in masks], dim=1).contiguous()
            self.whole_CR = self.work_CR.clone()
        cols = len(order_C)
        self.width = tile(weights[0].shape, config.scheme)[1]
        self.dynamic = config.groups == "dynamic" and self.width < cols
        self.block_P = ((torch.arange(cols) if self.dynamic else order_C) // self.width).tolist()
        self.grids: list[list[RoundingGrid]] = [[] for _ in weights]
        self.step_GR: list[torch.Tensor] = []
        self.zero_GR: list[torch.Tensor] = []
        if not self.dynamic:
            self._fit(weights, held, energy_C[order_C.argsort()])

    def solve(self, first: int, end: int) -> None:
        """Round columns first to end - 1; what those before them did to them has been added already."""
        if self.dynamic and end - first <= self.width and first == len(self.step_GR) * self.width:
            self._fit_run(slice(first, min(first + self.width, len(self.order_C))))
        if end - first == 1:
            self._column(first)
            return
        middle = (first + end) // 2
        if self.dynamic and end - first > self.width:  # a block is fitted when all its columns are up to date
            middle = first + -(-(middle - first) // self.width) * self.width
        self.solve(first, middle)
        spread_CC = self.factor_CC[first:middle, middle:end].T
        self.work_CR[middle:end].addmm_(spread_CC, self.error_CR[first:middle], alpha=-1)
        self.solve(middle, end)

    def _column(self, place: int) -> None:
        column_R = self.work_CR[place]
        block = self.block_P[place]
        zero_R = self.zero_GR[block] if self.zero_GR else None
        value_R = nearest(column_R, self.step_GR[block], zero_R, self.config.scheme)
        if self.held_CR is not None:
            value_R = torch.where(self.held_CR[place], self.whole_CR[place], value_R)
        torch.sub(column_R, value_R, out=self.error_CR[place]).div_(self.diagonal[place])
        column_R.copy_(value_R)

    def _fit_run(self, run: slice) -> None:
        """Fit the blocks of a run of columns as they are now."""
        parts = [self.work_CR[run, start:end].T for start, end in pairwise(self.ends)]
        masks = [None if self.held_CR is None else self.held_CR[run, start:end].T for start, end in pairwise(self.ends)]
        self._fit(parts, masks, self.energy_C[run])

    def _fit(self, parts: Sequence[torch.Tensor], held: Sequence[torch.Tensor | None], energy_C: torch.Tensor) -> None:
        scheme, clip = self.config.scheme, self.config.clip
        found = []
        for part_RC, mask_RC in zip(parts, held, strict=True):
            best = None if clip is None else search(part_RC, scheme, clip, held_RC=mask_RC, importance_C=energy_C)
            found.append(fit_grid(part_RC, scheme, held_RC=mask_RC, clip=best))
        for grids, grid in zip(self.grids, found, strict=True):
            grids.append(grid)
        heights = [tile(part_RC.shape, scheme)[0] for part_RC in parts]
        rows = [len(part_RC) for part_RC in parts]
        self.step_GR += _by_row([grid.step for grid in found], heights, rows)
        zeros = [grid.zero for grid in found if grid.zero is not None]
        if zeros:
            self.zero_GR += _by_row(zeros, heights, rows)

    def results(self) -> list[Quantized]:
        """The quantised matrices, columns as they are stored."""
        back_C, scheme = self.order_C.argsort(), self.config.scheme
        made = []
        for number, (start, end) in enumerate(pairwise(self.ends)):
            value_RC = self.work_CR[:, start:end].T[:, back_C].contiguous()
            grid = _side_by_side(self.grids[number])
            group_C = torch.tensor(self.block_P)[back_C] if self.dynamic and self.config.order == "activation" else None
            kept = kept_entries(self.weights[number], self.held[number])
            made.append(Quantized(codes(value_RC, grid, scheme, group_C=group_C), grid, scheme, kept, group_C))
        return made


def _by_row(blocks: Sequence[torch.Tensor], heights: Sequence[int], rows: Sequence[int]) -> torch.Tensor:
    """What is said of each block, (row blocks, col blocks) a matrix, for each row: (col blocks, rows of all)."""
    spread = [b.repeat_interleave(h, dim=0)[:r] for b, h, r in zip(blocks, heights, rows, strict=True)]
    return torch.cat(spread).T.contiguous()


def _side_by_side(grids: Sequence[RoundingGrid]) -> RoundingGrid:
    if len(grids) == 1:
        return grids[0]
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    return RoundingGrid(torch.cat([grid.scale for grid in grids], dim=1), torch.cat(zeros, dim=1) if zeros else None)
