"""Numbers that calibrated methods work with, refused by name where they are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.targets import Target


def finite_weight(target: Target, lm: LM) -> torch.Tensor:
    """The matrix (out, in) in fp32. Raises StudfinderError, naming it, if a weight is NaN or infinite."""
    return finite(target.name, target.weight(lm).float())


def finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself. Raises StudfinderError, naming it, if a number of it is NaN or infinite."""
    # The smallest and the largest are one fast pass, and NaN is both.
    plain = tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor
    if tensor.is_floating_point() and tensor.numel() and not all(map(torch.isfinite, plain.aminmax())):
        raise StudfinderError(f"{name}: a weight is NaN or infinite", expected="finite weights")
    return tensor


def finite_inputs(seen: Mapping[str, torch.Tensor]) -> None:
    """Raise StudfinderError if what was measured at the input of a matrix, by parameter name, is not finite."""
    for name, statistic in seen.items():
        if not torch.isfinite(statistic).all():
            raise StudfinderError(
                f"what enters {name} on the calibration text is NaN or infinite",
                expected="a model whose activations are finite",
                do="If it is in float16, load it in bfloat16 (--dtype); else a weight in an earlier layer is damaged",
            )


def of_range(dtype: torch.dtype) -> str:
    """What to do about numbers that stop being finite in a model of this dtype."""
    if dtype is torch.float16:  # the one whose range is short
        return "float16 ends at 65,504: load the model in bfloat16 or float32 (--dtype)"
    return "Look for a damaged or enormous weight in an earlier layer, or use --method rtn, which reads no text"
