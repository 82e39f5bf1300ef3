"""Auto: for each fused group, the cheapest means that keeps its measured error below a budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from studfinder.errors import StudfinderError
from studfinder.quantizers.grid import Quantized, quantize_weight
from studfinder.quantizers.walk import output_error, second_moments, walk

if TYPE_CHECKING:
    from studfinder.quantizers.bench import Bench
    from studfinder.quantizers.targets import Target


@dataclass(frozen=True, kw_only=True)
class Auto:
    """Decide for each fused group, on calibration text: as it is, hold out what is asked to be kept, hold out a
    fraction besides, or skip it; the cheapest in bits whose error is within the budget.

    The error is that of the output, relative to the output's own size: sum |dW x|^2 / sum |W x|^2 over the group's
    matrices, rounded to nearest in the method's scheme, with everything before it unquantised. A method that rounds
    better than to nearest will lose less. A format without a place for single numbers has only the choice to skip.

    Attributes:
        budget: the largest relative error of a group.
        fractions: shares to try to hold out, the largest weights by magnitude.
    """

    budget: float = 0.02
    fractions: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01)

    def __post_init__(self) -> None:
        if self.budget <= 0 or any(not 0 < fraction < 1 for fraction in self.fractions):
            raise StudfinderError(
                f"budget {self.budget}, fractions {self.fractions}", expected="a budget above 0, fractions in (0, 1)"
            )

    @property
    def calibrated(self) -> bool:
        return True

    def apply(self, bench: Bench) -> None:
        chosen: dict[str, int] = {}
        skipped = []
        for block in walk(bench):
            moments = second_moments(block)
            for fused in dict.fromkeys(target.fused for target in block.targets):
                group = [target for target in block.targets if target.fused == fused]
                label, masks = self._choice(bench, group, moments)
                chosen[label] = chosen.get(label, 0) + 1
                if masks is None:
                    skipped.append(fused)
                for target in group:
                    bench.held.pop(target.name, None)
                    if masks is not None and masks[target.name].any():
                        bench.held[target.name] = masks[target.name]
        if len({target.fused for target in bench.targets}) == len(skipped):
            raise StudfinderError(
                f"no group keeps its error within {self.budget}", do="Choose a larger budget, or more bits"
            )
        bench.skip(skipped)
        counts = ", ".join(f"{label}: {count}" for label, count in chosen.items())
        bench.notes.append(f"chosen to keep the error of each fused group within {self.budget:g}: {counts}")

    def _choice(
        self, bench: Bench, group: list[Target], moments: dict[str, torch.Tensor]
    ) -> tuple[str, dict[str, torch.Tensor] | None]:
        """What is cheapest within the budget: its name, and the masks of what is held out; None to skip."""
        weights = {target.name: target.weight(bench.lm).float() for target in group}
        size = sum(output_error(weight, moments[name]) for name, weight in weights.items())
        asked = {name: bench.held.get(name, torch.zeros_like(w, dtype=torch.bool)) for name, w in weights.items()}
        options = [("as it is", {name: torch.zeros_like(mask) for name, mask in asked.items()})]
        if bench.numbers:
            options += [("held out as asked", asked)] if any(mask.any() for mask in asked.values()) else []
            options += [
                (f"{fraction:.1%} held out", {n: asked[n] | _largest(w, fraction) for n, w in weights.items()})
                for fraction in sorted(self.fractions)
            ]
        for label, masks in options:
            error = sum(
                output_error(_rounded(bench, w, masks[name]).dequantized() - w, moments[name])
                for name, w in weights.items()
            )
            if error <= self.budget * size:
                return label, masks
        return "skipped", None


def _rounded(bench: Bench, weight_RC: torch.Tensor, held_RC: torch.Tensor) -> Quantized:
    return quantize_weight(weight_RC, bench.scheme, held_RC=held_RC if held_RC.any() else None)


def _largest(weight_RC: torch.Tensor, fraction: float) -> torch.Tensor:
    mask = torch.zeros_like(weight_RC, dtype=torch.bool)
    places = weight_RC.abs().reshape(-1).topk(max(1, int(fraction * weight_RC.numel()))).indices
    mask.view(-1)[places] = True
    return mask
