"""AWQ: scale up the weights of channels with large inputs before rounding (Lin et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.clip import Clip
from studfinder.quantizers.finite import finite_inputs, finite_weight, of_range
from studfinder.quantizers.folds import Fold, exact_folds, no_fold, swapped, up_fold, value_fold
from studfinder.quantizers.grid import quantize_weight, ranges
from studfinder.quantizers.massive import row_weights
from studfinder.quantizers.scheme import Scheme, tile
from studfinder.quantizers.walk import Block, gathered, second_moments, squared, walk
from studfinder.records.config import Config, option
from studfinder.sites import Journal


@dataclass(frozen=True, kw_only=True)
class AWQ(Config):
    """Multiply column j by s_j and divide what makes the channel by it; s = x^alpha, x the mean |input| of the channel,
    alpha with the smallest error of the module's output after rounding (arXiv 2306.00978, §3.2).

    Defaults are llm-compressor's: 20 candidates, s = x^alpha / w^(1 - alpha) with w the mean weight relative to its
    block's largest (AutoAWQ's "duo scaling"), no clip search. The reference (mit-han-lab `auto_scale.py`) has
    duo=False, alpha = 0, 1/20, ... 19/20 and the clip search; here alpha reaches 1. What is searched together: q/k/v
    by the output of attention, gate/up by that of the network, o_proj and down_proj by their own.

    Attributes:
        scheme: how weights are stored.
        candidates: of the search.
        duo: whether weights have a say in the factors; "both" tries half of the candidates either way.
        clip: search each block's range by the error of its output (except in q and k, as the reference; with an
            integer zero point both ends shrink by one factor, where the reference clamps to +-absmax times it).
        shared_values: fold factors of o_proj into v_proj where query heads share values too; the reference skips those.
        massive_values: profile.safetensors of a scan, or None: weigh the error of each row of q_proj by the size of the
            keys it meets, and the other way round, in place of the output of attention. See `row_weights`.
    """

    calibrated: ClassVar[bool] = True

    scheme: Scheme = field(default_factory=lambda: Scheme(zero="integer"))
    candidates: int = option(20, least=4)
    duo: bool | Literal["both"] = True
    clip: Clip | None = None
    shared_values: bool = False
    massive_values: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.duo not in (True, False, "both"):
            raise StudfinderError(f"duo={self.duo!r}", expected="True, False or 'both'")
        if self.duo and self.scheme.block == "tensor":
            raise StudfinderError("duo scaling with one range a matrix", do="Use duo=False, or smaller blocks")
        if self.clip is not None and not isinstance(self.scheme.block, int) and self.scheme.block != "channel":
            raise StudfinderError("a clip search in blocks of several rows", expected="groups or channels")

    def run(self, bench: Workbench) -> None:
        weights = {} if self.massive_values is None else row_weights(bench.lm, self.massive_values)
        clips: dict[str, torch.Tensor] = {}
        chosen: list[float] = []
        for block in walk(bench):
            values = value_fold(bench.lm, block.layer, shared=self.shared_values)
            for fold in exact_folds(bench.lm, block, values, up_fold(bench.lm, block.layer)):
                alpha, scale_C = self.search(bench, block, fold, weights)
                fold.apply(bench, scale_C)
                chosen.append(alpha)
            if self.clip is not None:
                clips.update(self._clips(bench, block, self.clip))
        if not chosen:
            raise no_fold(bench.lm)
        for target in bench.targets:
            weight_RC = finite_weight(target, bench.lm)
            held, clip = bench.held.get(target.name), clips.get(target.name)
            bench.put(target, quantize_weight(weight_RC, bench.scheme_of(target.name), held_RC=held, clip=clip))
        middle = sorted(chosen)[len(chosen) // 2]
        bench.notes.append(f"{len(chosen)} sets of columns scaled, median alpha {middle:.2f} (exact up to rounding)")

    def search(
        self, bench: Workbench, block: Block, fold: Fold, weights: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[float, torch.Tensor]:
        """The best alpha, and the factor of each input channel, (in,).

        Raises:
            StudfinderError: no candidate gives a finite error.
        """
        first = fold.reads[0].parameter
        size_C = fold.shared(_mean_size(block, first), torch.mean)
        share_C = fold.shared(self._shares(bench, fold), torch.mean)
        error = _error(bench.lm, block, fold, weights or {})
        best: tuple[float, float, torch.Tensor] | None = None
        for alpha, duo in self._grid():
            scale_C = size_C.pow(alpha) / (share_C.pow(1 - alpha) + 1e-4) if duo else size_C.pow(alpha)
            scale_C = scale_C.clamp(min=1e-4)
            scale_C = (scale_C / (scale_C.max() * scale_C.min()).sqrt()).nan_to_num(1.0, 1.0, 1.0)
            found = error(self._rounded(bench, fold, scale_C))
            if found < (best[0] if best else float("inf")):
                best = found, alpha, scale_C
        if best is None:
            raise StudfinderError(
                f"no factor gives a finite error at {fold.inspected} on the calibration text",
                do=of_range(bench.lm.dtype),
            )
        return best[1], best[2]

    def _grid(self) -> list[tuple[float, bool]]:
        """Candidates as llm-compressor's: alpha, and whether weights have a say. No scaling is among them."""
        if self.duo == "both":
            half = self.candidates // 2
            return [(i / (half - 1), duo) for i in range(half) for duo in (False, True)]
        if self.duo:
            return [(0.0, False), *((i / (self.candidates - 2), True) for i in range(self.candidates - 1))]
        return [(i / (self.candidates - 1), False) for i in range(self.candidates)]

    def _shares(self, bench: Workbench, fold: Fold) -> torch.Tensor:
        """Mean over all rows that are to be quantised of |w| relative to the largest of its block, (in,)."""
        sums, rows = [], 0
        read = {ref.parameter for ref in fold.reads}
        for target in bench.targets:
            if target.name not in read:
                continue
            size_RC = target.weight(bench.lm).float().abs()
            scheme = bench.scheme_of(target.name)
            high = ranges(size_RC, scheme)[1]
            height, width = tile(size_RC.shape, scheme)
            high = high.repeat_interleave(height, 0).repeat_interleave(width, 1)[: len(size_RC), : size_RC.shape[1]]
            sums.append((size_RC / (high + 1e-6)).sum(dim=0))
            rows += len(size_RC)
        return torch.stack(sums).sum(dim=0) / rows

    def _rounded(self, bench: Workbench, fold: Fold, scale_C: torch.Tensor) -> dict[str, torch.Tensor]:
        """The matrices of a fold that are to be quantised, scaled, rounded and scaled back: by name, (out, in) fp32."""
        chosen = {target.name: target for target in bench.targets}
        made = {}
        for ref in fold.reads:
            if ref.parameter in chosen:
                scaled_RC = chosen[ref.parameter].weight(bench.lm).float() * scale_C
                scheme = bench.scheme_of(ref.parameter)
                found = quantize_weight(scaled_RC, scheme, held_RC=bench.held.get(ref.parameter))
                made[ref.parameter] = found.dequantized() / scale_C
        return made

    def _clips(self, bench: Workbench, block: Block, clip: Clip) -> dict[str, torch.Tensor]:
        """The factor of each block's range, (out, groups), by parameter name."""
        mixer = bench.lm.anatomy.layers[block.layer].mixer
        scores = () if mixer is None else (mixer.query, mixer.key)
        left = {rows.ref for rows in scores if rows is not None}
        if mixer is not None and mixer.value is not None:  # which may be in one matrix with them
            left.discard(mixer.value.ref)
        wanted = [target for target in block.targets if target.ref not in left]
        moments = second_moments(block, [target.name for target in wanted])
        return {
            target.name: _best_clip(
                target.weight(bench.lm).float(),
                moments[target.name],
                bench.scheme_of(target.name),
                clip,
                bench.held.get(target.name),
            )
            for target in wanted
            if target.name in moments
        }


def _mean_size(block: Block, name: str) -> torch.Tensor:
    """Mean |input| of each channel, (in,)."""
    found = gathered(
        block,
        [name],
        lambda _, x_NC: ([x_NC.abs().float().sum(dim=0)], len(x_NC)),
        lambda one, other: (one[0] + other[0], one[1] + other[1]),
    )
    sums, tokens = found.get(name, ([], 0))
    if not tokens:
        raise StudfinderError(f"no calibration token enters {name}", do="Use more calibration windows")
    mean_C = torch.stack(sums).sum(dim=0) / tokens
    finite_inputs({name: mean_C})
    return mean_C


Error = Callable[[Mapping[str, torch.Tensor]], float]


def _error(lm: LM, block: Block, fold: Fold, weights: Mapping[str, torch.Tensor]) -> Error:
    """What other numbers in the matrices of a fold, (out, in) by name, do to the output that is inspected."""
    names = [ref.parameter for ref in fold.reads]
    if any(name in weights for name in names):
        return _by_rows(lm, block, fold, weights)
    if [f"{fold.inspected}.weight"] == names:
        return _by_rows(lm, block, fold, {})
    return _by_output(lm, block, fold)


def _by_rows(lm: LM, block: Block, fold: Fold, weights: Mapping[str, torch.Tensor]) -> Error:
    """By the output of the matrices themselves: sum over rows of weight * mean (delta_r x)^2; a matrix without weights
    counts with 1 / (mean square of its output)."""
    name = fold.reads[0].parameter
    moment_CC = gathered(block, [name], lambda _, x_NC: squared(x_NC), torch.Tensor.add_)[name]
    old = {ref.parameter: ref.view(lm.model.get_parameter(ref.parameter)).detach().float() for ref in fold.reads}

    def squares(matrix_RC: torch.Tensor) -> torch.Tensor:
        return ((matrix_RC @ moment_CC) * matrix_RC).sum(dim=1, dtype=torch.float64)

    def share(one: str) -> torch.Tensor:
        by_row = weights.get(one, torch.ones(len(old[one]))).double()
        size = (by_row * squares(old[one])).sum()
        return by_row / size if size > 0 else by_row  # a matrix that puts out nothing: its error is zero as it is

    shares = {one: share(one) for one in old}
    return lambda new: float(sum((shares[one] * squares(made - old[one])).sum() for one, made in new.items()))


def _by_output(lm: LM, block: Block, fold: Fold) -> Error:
    """By the mean square change of the inspected module's output, all windows."""
    module = lm.model.get_submodule(fold.inspected)
    calls: list[tuple[tuple, dict[str, Any]]] = []

    def see(_module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        calls.append((args, dict(kwargs)))

    with Journal(lm.model) as journal:
        journal.hook(module, see, before=True, with_kwargs=True)
        block.run()
    before = [_first(module, call) for call in calls]
    stored = {ref.parameter: ref for ref in fold.reads}

    def error(new: Mapping[str, torch.Tensor]) -> float:
        total = 0.0
        with swapped(lm, {name: made.T if stored[name].transposed else made for name, made in new.items()}):
            for call, old in zip(calls, before, strict=True):
                total += float((_first(module, call) - old).float().square().sum(dtype=torch.float64))
        return total / sum(old.numel() for old in before)

    return error


@torch.no_grad()
def _first(module: torch.nn.Module, call: tuple[tuple, dict[str, Any]]) -> torch.Tensor:
    output = module(*call[0], **call[1])
    return output if isinstance(output, torch.Tensor) else output[0]


def _best_clip(
    weight_RC: torch.Tensor, moment_CC: torch.Tensor, scheme: Scheme, clip: Clip, held_RC: torch.Tensor | None
) -> torch.Tensor:
    """The factor of each group's range with the smallest error of the group's share of the output."""
    width = tile(weight_RC.shape, scheme)[1]
    groups = -(-weight_RC.shape[1] // width)
    runs = [slice(g * width, (g + 1) * width) for g in range(groups)]
    factors = torch.linspace(1.0, clip.lowest, clip.steps)
    errors = []
    for factor in factors.tolist():
        made = quantize_weight(weight_RC, scheme, held_RC=held_RC, clip=factor)
        delta_RC = made.dequantized() - weight_RC
        errors.append(torch.stack([((delta_RC[:, r] @ moment_CC[r, r]) * delta_RC[:, r]).sum(1) for r in runs], dim=1))
    return factors[torch.stack(errors).argmin(dim=0)]
