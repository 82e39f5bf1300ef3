"""Activations: what enters each matrix is rounded too, with or without the super activations held out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from studfinder.edits import meant
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.finite import finite_inputs
from studfinder.quantizers.grid import RoundingGrid, grid_of, nearest
from studfinder.quantizers.method import Method
from studfinder.quantizers.rtn import RTN
from studfinder.quantizers.scheme import Scheme
from studfinder.quantizers.targets import Target, targets
from studfinder.quantizers.walk import Extremes, gathered, walk, wider
from studfinder.records import Findings, SuperWeight
from studfinder.records.config import Config, option
from studfinder.sites import Journal


@dataclass(frozen=True, kw_only=True)
class Restore(Config):
    """REPLACE-quantise-RESTORE (Yu et al. 2024, arXiv 2411.07191, §4.1): a super activation is replaced by a median
    before the range is taken, and keeps its value.

    The paper says neither which matrices' inputs it means, nor the median of what; here both are explicit.

    Attributes:
        places: (parameter, channels) of the inputs that may hold one; see `super_channels`.
        ratio: a number there is one if it is more than so many times the median magnitude of its token's channels.
        median: of all channels of its "token", of its "channel" over the tokens of the call, or of the whole "tensor"
            of the call. The last two depend on what is in the batch.
    """

    places: tuple[tuple[str, tuple[int, ...]], ...]
    ratio: float = option(20.0, above=0)
    median: Literal["token", "tensor", "channel"] = "token"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.places:
            raise StudfinderError("there are no super activations to restore", expected="at least one place")


@dataclass(frozen=True, kw_only=True)
class ActivationScheme(Config):
    """How the inputs of matrices are rounded. Ranges and steps are fp32; the result is in the model's dtype.

    Attributes:
        element: int2 to int8, or fp8.
        scope: what shares a scale: a "token", or the whole "tensor" of a call, with pad tokens in it.
        range: "dynamic": of the numbers at hand; "static": one range a matrix from calibration text, whole tensor.
        zero: "none": symmetric, absmax / (2^(b-1) - 1) as SmoothQuant; "float": from minimum to maximum in 2^b - 1
            steps, as the super-weight paper's code (its printed formula has 2^(b-1) - 1).
        restore: super activations that are held out.
    """

    element: Literal["int2", "int3", "int4", "int5", "int6", "int7", "int8", "fp8"] = "int8"
    scope: Literal["token", "tensor"] = "token"
    range: Literal["dynamic", "static"] = "dynamic"
    zero: Literal["none", "float"] = "none"
    restore: Restore | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.range == "static" and self.scope == "token":
            raise StudfinderError("a static range for each token", expected="scope='tensor' with a static range")
        _ = self.scheme  # checks the rest

    @property
    def scheme(self) -> Scheme:
        """The same as a scheme for a matrix (tokens, channels)."""
        narrow = self.zero == "none" and self.element.startswith("int")
        block: Literal["channel", "tensor"] = "channel" if self.scope == "token" else "tensor"
        return Scheme(element=self.element, block=block, zero=self.zero, scale="float32", narrow=narrow)

    def arguments(self) -> dict[str, Any]:
        """As compressed-tensors' QuantizationArgs. Raises StudfinderError where that has no place for it."""
        if self.restore is not None or self.zero != "none" or self.range == "static":
            raise StudfinderError(
                "studfinder writes only symmetric dynamic activations to compressed-tensors, with none restored",
                do="Use --format dense, or ActivationScheme() without range, zero and restore",
            )
        kind = "int" if self.element.startswith("int") else "float"
        bits = self.scheme.bits
        return {"num_bits": bits, "type": kind, "symmetric": True, "dynamic": True, "strategy": self.scope}


@dataclass(frozen=True, kw_only=True)
class WithActivations:
    """A method for weights, and rounded activations besides; by default naive W8A8, weights per tensor.

    Attributes:
        weights: any method.
        activations: what is done to the inputs of the same matrices.
    """

    weights: Method = field(default_factory=lambda: RTN(scheme=Scheme(element="int8", block="tensor", narrow=True)))
    activations: ActivationScheme = field(default_factory=ActivationScheme)

    @property
    def scheme(self) -> Scheme:
        return self.weights.scheme

    @property
    def calibrated(self) -> bool:
        return self.weights.calibrated or self.activations.range == "static"

    @property
    def weights_only(self) -> Method:
        """The same without rounding inputs, for a checkpoint that cannot say so."""
        return self.weights

    def run(self, bench: Workbench) -> None:
        self.weights.run(bench)
        enter_rounding(bench, self.activations)


def enter_rounding(bench: Workbench, config: ActivationScheme, names: Collection[str] | None = None) -> None:
    """Round what enters the matrices on the bench, or those of these names, until the model is restored; static ranges
    are measured first, with the weights as they are now."""
    ranges = input_ranges(bench, config.restore) if config.range == "static" else None
    wanted = [target for target in bench.targets if names is None or target.name in names]
    chosen = [target for target in wanted if target.part is None]
    round_inputs(bench.journal, bench.lm, config, chosen, ranges)
    if len(chosen) < len(wanted):
        bench.notes.append("inputs of experts in a fused parameter are not rounded, as plain transformers does not")
    what = f"{config.element}, per {config.scope}, {config.range}"
    held = "" if config.restore is None else ", super activations held out"
    bench.notes.append(f"inputs of the quantised matrices rounded: {what}{held}")


def round_inputs(
    journal: Journal,
    lm: LM,
    config: ActivationScheme,
    chosen: Sequence[Target],
    ranges: Mapping[str, Extremes] | None = None,
    first: int = 0,
) -> None:
    """Round what enters matrices until the journal is closed.

    Args:
        chosen: the matrices.
        ranges: smallest and largest input by parameter name, for static ranges; see `input_ranges`.
        first: so many first positions stay as they are, and set no range.

    Raises:
        StudfinderError: static ranges are wanted and missing for a matrix, or a place to restore is not among them.
    """
    names = {target.name for target in chosen}
    places = dict(config.restore.places) if config.restore is not None else {}
    unknown = sorted(places.keys() - names)
    if unknown:
        raise StudfinderError(f"the input of {unknown[0]} is not rounded", expected="places among the chosen matrices")
    for target in chosen:
        channels, size = None, target.weight(lm).shape[1]
        if target.name in places:
            channels = torch.tensor(places[target.name])
            if not 0 <= int(channels.min()) <= int(channels.max()) < size:
                wrong = f"{target.name} has no input channel {int(channels.max())}"
                raise StudfinderError(wrong, expected=f"0 to {size - 1}")
        grid = None
        if config.range == "static":
            if ranges is None or target.name not in ranges:
                raise StudfinderError(f"no range is known for the input of {target.name}", do="Calibrate it")
            low, high = ranges[target.name]
            grid = grid_of(low.reshape(1, 1), high.reshape(1, 1), config.scheme)
        module = lm.model.get_submodule(target.ref.module)
        journal.hook(module, partial(_round_input, config, first, channels, grid), before=True)


def fake_quantized(
    x_NC: torch.Tensor, config: ActivationScheme, channels: torch.Tensor | None = None, grid: RoundingGrid | None = None
) -> torch.Tensor:
    """Activations (tokens, channels) rounded and back, in their own dtype.

    Args:
        channels: where super activations may be; they are held out as `config.restore` says.
        grid: a static one; None fits it to what is here.
    """
    x, held_NC = _replaced(x_NC.float(), channels, config.restore)
    if grid is None:
        by_token = x if config.scope == "token" else x.reshape(1, -1)
        grid = grid_of(by_token.amin(1, keepdim=True), by_token.amax(1, keepdim=True), config.scheme)
    made = nearest(x, grid.step, grid.zero, config.scheme).to(x_NC.dtype)
    return made if held_NC is None else torch.where(held_NC, x_NC, made)


def _replaced(
    x_NC: torch.Tensor, channels: torch.Tensor | None, restore: Restore | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Super activations replaced by a median, and where they were."""
    if channels is None or restore is None:
        return x_NC, None
    held_NC = super_activations(x_NC, channels, restore.ratio)
    if restore.median == "tensor":
        middle = x_NC.median()
    else:
        middle = x_NC.median(dim=1 if restore.median == "token" else 0, keepdim=True).values
    return torch.where(held_NC, middle, x_NC), held_NC


def super_activations(x_NC: torch.Tensor, channels: torch.Tensor, ratio: float) -> torch.Tensor:
    """Which entries are super activations: bool (tokens, channels)."""
    limit_N1 = ratio * x_NC.abs().median(dim=1, keepdim=True).values
    held = torch.zeros_like(x_NC, dtype=torch.bool)
    held[:, channels] = x_NC[:, channels].abs() > limit_N1
    return held


def super_channels(lm: LM, findings: Findings | Sequence[SuperWeight]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Where the activations that super weights make, and those that they read, enter a matrix: (parameter, channels).

    Channel `col` of the input of the super weight's own down projection; channel `row` of every matrix that reads the
    residual stream in later layers. Of findings, those of the proven super weights.

    Raises:
        StudfinderError: there are no super weights.
    """
    places: dict[str, set[int]] = {}
    for weight in meant(findings):
        places.setdefault(weight.parameter, set()).add(weight.col)
        for target in targets(lm):
            if target.layer > weight.layer and _reads_residual(lm, target):
                places.setdefault(target.name, set()).add(weight.row)
    return tuple((name, tuple(sorted(channels))) for name, channels in places.items())


def _reads_residual(lm: LM, target: Target) -> bool:
    """Whether a matrix reads the residual stream through a norm: it is as wide, and reads no other matrices' results.

    Raises:
        StudfinderError: of an attention it is unknown which matrix reads its result.
    """
    layer = lm.anatomy.layers[target.layer]
    for mixer in layer.mixers:
        if mixer.output is None and mixer.kind == "softmax":
            raise StudfinderError(f"which matrices of layer {target.layer} read the residual stream is unknown")
    inner = {mixer.output.parameter for mixer in layer.mixers if mixer.output is not None}
    inner |= {writer.parameter for writer in layer.writers}
    width = lm.anatomy.hidden // lm.anatomy.streams
    return target.part is None and target.name not in inner and target.weight(lm).shape[1] == width


def input_ranges(bench: Workbench, restore: Restore | None = None) -> dict[str, Extremes]:
    """The smallest and the largest number that enters each matrix on the calibration text, by parameter name.

    Super activations that will be held out do not count.
    """
    places = {} if restore is None else {name: torch.tensor(channels) for name, channels in restore.places}

    def extrema(name: str, x_NC: torch.Tensor) -> Extremes:
        low, high = _replaced(x_NC.float(), places.get(name), restore)[0].aminmax()
        return low, high

    found: dict[str, Extremes] = {}
    for block in walk(bench):
        found |= gathered(block, [target.name for target in block.targets], extrema, wider)
    finite_inputs({name: torch.stack(ends) for name, ends in found.items()})
    return found


def _round_input(
    config: ActivationScheme,
    first: int,
    channels: torch.Tensor | None,
    grid: RoundingGrid | None,
    _module: nn.Module,
    args: tuple,
) -> tuple:
    if not args[0].numel():  # an expert without a token
        return args
    return (rounded_after(args[0], first, config, channels, grid), *args[1:])


def rounded_after(
    x: torch.Tensor,
    first: int,
    config: ActivationScheme,
    channels: torch.Tensor | None = None,
    grid: RoundingGrid | None = None,
) -> torch.Tensor:
    """Activations (..., T, C) rounded, but for the first positions."""
    if first and x.dim() < 3:
        raise StudfinderError("a matrix is given tokens without their positions", expected="first=0")
    rest = x[..., first:, :]
    made = fake_quantized(rest.reshape(-1, x.shape[-1]), config, channels, grid).view(rest.shape)
    return torch.cat([x[..., :first, :], made], dim=-2) if first else made
