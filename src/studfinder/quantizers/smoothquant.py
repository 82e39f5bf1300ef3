"""SmoothQuant: take size from the channels of activations and give it to the weights (Xiao et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.activations import ActivationScheme, enter_rounding
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.finite import finite_inputs, finite_weight
from studfinder.quantizers.folds import Fold, check_exact, norm_folds, up_fold, value_fold
from studfinder.quantizers.grid import quantize_weight
from studfinder.quantizers.scheme import Scheme
from studfinder.quantizers.walk import Block, walk
from studfinder.records.config import Config


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Config):
    """Divide each input channel by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), multiply the columns that read it, and
    round both (arXiv 2211.10438, eq. 4).

    Defaults are the reference's (mit-han-lab `smooth.py`): norms in front of q/k/v and gate/up only, alpha 0.5 (its
    README takes 0.85 for Llama, 0.8 for Mistral), weights and activations symmetric int8, per channel and per token.

    Attributes:
        scheme: how weights are stored.
        activations: how inputs are rounded; None leaves them.
        alpha: how much goes to the weights.
        size: "absmax" of a channel, or its "range" as llm-compressor, which doubles max|W| too.
        values, neurons: smooth the inputs of o_proj and of down_proj as well, by v_proj and up_proj; the reference
            never does. Query heads that share a value share its factors.
    """

    scheme: Scheme = field(default_factory=lambda: Scheme(element="int8", block="channel", narrow=True))
    activations: ActivationScheme | None = field(default_factory=ActivationScheme)
    alpha: float = 0.5
    size: Literal["absmax", "range"] = "absmax"
    values: bool = False
    neurons: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise StudfinderError(f"alpha {self.alpha}", expected="alpha from 0 to 1")

    @property
    def calibrated(self) -> bool:
        return True

    @property
    def activation_arguments(self) -> dict[str, Any] | None:
        """For config.json of an exported checkpoint."""
        return None if self.activations is None else self.activations.arguments()

    @property
    def weights_only(self) -> SmoothQuant:
        """The same without rounding inputs, for a checkpoint that cannot say so."""
        return replace(self, activations=None)

    def run(self, bench: Workbench) -> None:
        self.smooth(bench)
        for target in bench.targets:
            weight_RC = finite_weight(target, bench.lm)
            bench.put(target, quantize_weight(weight_RC, self.scheme, held_RC=bench.held.get(target.name)))
        if self.activations is not None:
            enter_rounding(bench, self.activations)

    def smooth(self, bench: Workbench) -> None:
        """The exact part: fold the factors, round nothing. Raises StudfinderError if there is nowhere to fold them."""
        done = 0
        for block in walk(bench):
            for target in block.targets:
                finite_weight(target, bench.lm)
            folds = [fold for fold in self._folds(bench.lm, block) if check_exact(bench.lm, block, fold)]
            sizes = channel_sizes(block, folds, self.size)
            for fold in folds:
                fold.apply(bench, self.factors(bench.lm, fold, sizes[fold.reads[0].parameter]))
            done += len(folds)
        if not done:
            raise StudfinderError(
                f"no norm of this {bench.lm.anatomy.architecture} model can take a factor",
                expected="norms with weights of their own, read by matrices only",
            )
        bench.notes.append(f"{done} sets of input channels smoothed, alpha {self.alpha:g} (exact up to rounding)")

    def factors(self, lm: LM, fold: Fold, size_C: torch.Tensor) -> torch.Tensor:
        """What the channels of a fold are divided by, (in,)."""
        size_C = fold.shared(size_C, torch.max)
        peak_C = torch.stack([ref.view(lm.model.get_parameter(ref.parameter)).abs().amax(0) for ref in fold.reads])
        peak_C = fold.shared(peak_C.detach().float().amax(dim=0), torch.max)
        if self.size == "range":
            peak_C = 2 * peak_C
        scale_C = size_C.pow(self.alpha) / peak_C.clamp(min=1e-5).pow(1 - self.alpha)
        # A channel that is always 0 on the calibration text says nothing of its size (the reference gives it 1e-5).
        return torch.where(size_C > 0, scale_C.clamp(min=1e-5), 1.0)

    def _folds(self, lm: LM, block: Block) -> list[Fold]:
        chosen = {target.name for target in block.targets}
        found: list[Fold | None] = list(norm_folds(lm, block))
        if self.values:
            found.append(value_fold(lm, block.layer, shared=True))
        if self.neurons:
            found.append(up_fold(lm, block.layer))
        return [fold for fold in found if fold is not None and any(ref.parameter in chosen for ref in fold.reads)]


def channel_sizes(block: Block, folds: list[Fold], size: Literal["absmax", "range"]) -> dict[str, torch.Tensor]:
    """How large each input channel gets on the calibration text, (in,), by the name of a fold's first matrix."""
    lows: dict[str, torch.Tensor] = {}
    highs: dict[str, torch.Tensor] = {}

    def reader(name: str) -> Any:
        def read(x_NC: torch.Tensor) -> None:
            low, high = x_NC.float().amin(dim=0), x_NC.float().amax(dim=0)
            lows[name] = torch.minimum(lows[name], low) if name in lows else low
            highs[name] = torch.maximum(highs[name], high) if name in highs else high

        return read

    names = [fold.reads[0].parameter for fold in folds]
    block.read({name: reader(name) for name in names})
    finite_inputs(lows)
    finite_inputs(highs)
    if size == "range":
        return {name: highs[name] - lows[name] for name in names}
    return {name: torch.maximum(lows[name].abs(), highs[name].abs()) for name in names}
