"""SmoothQuant: take size from the channels of activations and give it to the weights (Xiao et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch

from studfinder.models import LM
from studfinder.quantizers.activations import ActivationScheme, enter_rounding
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.finite import finite_inputs
from studfinder.quantizers.folds import Fold, exact_folds, no_fold, up_fold, value_fold
from studfinder.quantizers.rtn import RTN
from studfinder.quantizers.scheme import Scheme
from studfinder.quantizers.walk import Block, gathered, walk, wider
from studfinder.records.config import Config, option


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

    calibrated: ClassVar[bool] = True

    scheme: Scheme = field(default_factory=lambda: Scheme(element="int8", block="channel", narrow=True))
    activations: ActivationScheme | None = field(default_factory=ActivationScheme)
    alpha: float = option(0.5, least=0, most=1)
    size: Literal["absmax", "range"] = "absmax"
    values: bool = False
    neurons: bool = False

    @property
    def weights_only(self) -> SmoothQuant:
        """The same without rounding inputs, for a checkpoint that cannot say so."""
        return replace(self, activations=None)

    def run(self, bench: Workbench) -> None:
        self.smooth(bench)
        RTN(scheme=self.scheme).run(bench)
        if self.activations is not None:
            enter_rounding(bench, self.activations)

    def smooth(self, bench: Workbench) -> None:
        """The exact part: fold the factors, round nothing. Raises StudfinderError if there is nowhere to fold them."""
        done = 0
        for block in walk(bench):
            values = value_fold(bench.lm, block.layer, shared=True) if self.values else None
            neurons = up_fold(bench.lm, block.layer) if self.neurons else None
            folds = exact_folds(bench.lm, block, values, neurons)
            sizes = channel_sizes(block, folds, self.size)
            for fold in folds:
                fold.apply(bench, self.factors(bench.lm, fold, sizes[fold.reads[0].parameter]))
            done += len(folds)
        if not done:
            raise no_fold(bench.lm)
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


def channel_sizes(block: Block, folds: list[Fold], size: Literal["absmax", "range"]) -> dict[str, torch.Tensor]:
    """How large each input channel gets on the calibration text, (in,), by the name of a fold's first matrix."""
    names = [fold.reads[0].parameter for fold in folds]
    found = gathered(block, names, lambda _, x_NC: tuple(x_NC.float().aminmax(dim=0)), wider)
    finite_inputs({name: torch.stack(ends) for name, ends in found.items()})
    if size == "range":
        return {name: high - low for name, (low, high) in found.items()}
    return {name: torch.maximum(low.abs(), high.abs()) for name, (low, high) in found.items()}
