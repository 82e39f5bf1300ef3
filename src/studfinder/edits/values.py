"""What is put in place of the selected entries: small frozen records."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from studfinder.errors import StudfinderError

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Scale:
    """The entry times a factor; 0 gives exactly 0, whatever was there."""

    factor: float
    kind: Literal["scale"] = field(default="scale", kw_only=True)


@dataclass(frozen=True)
class Mean:
    """The dim's mean over the row's real tokens: what is left of it is a constant.

    Attributes:
        pooled: one mean for all selected dims of a head together (Jin et al. 2025).
    """

    pooled: bool = False
    kind: Literal["mean"] = field(default="mean", kw_only=True)


@dataclass(frozen=True)
class Deviation:
    """The entry less the dim's mean over the row's real tokens: all but the constant."""

    kind: Literal["deviation"] = field(default="deviation", kw_only=True)


@dataclass(frozen=True)
class SetTo:
    """Given numbers: one for all; one for each of a Coordinates' dims; or a whole (D,) or (H,D) map, of which the
    selected dims are used (Sun et al. 2024 set massive activations to their means over other text).

    Attributes:
        values: the numbers, flat.
        shape: their shape; () for one number.
    """

    values: tuple[float, ...]
    shape: tuple[int, ...]
    kind: Literal["set"] = field(default="set", kw_only=True)

    def tensor(self) -> torch.Tensor:
        """The numbers as a tensor."""
        return torch.tensor(self.values, dtype=torch.float64).reshape(self.shape)


@dataclass(frozen=True)
class Recorded:
    """What the site held in another pass over the same tokens. On-the-fly selections look at the record, so that they
    pick what they would have picked in that pass.

    Attributes:
        dtype, shape: of the site's tensor as `capture` gave it.
        data: its bytes in base64.
    """

    dtype: str
    shape: tuple[int, ...]
    data: str = field(repr=False)
    kind: Literal["recorded"] = field(default="recorded", kw_only=True)

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Recorded:
        """A record of a tensor, bit by bit."""
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in _DTYPES:
            raise StudfinderError(f"a recorded activation in {name}", expected=" or ".join(_DTYPES))
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return cls(name, tuple(tensor.shape), base64.b64encode(raw).decode())

    def tensor(self) -> torch.Tensor:
        """The tensor again."""
        raw = torch.frombuffer(bytearray(base64.b64decode(self.data)), dtype=torch.uint8)
        return raw.view(_DTYPES[self.dtype]).reshape(self.shape)


@dataclass(frozen=True)
class CleanOutput:
    """In one output channel of a matrix, what it gives for its present input when the named weights are what they
    were: a super activation without its super weight (Yu et al. 2024, the "+SA" row).

    Attributes:
        row: output channel.
        cols: input channels of the weights.
        weights: their clean values.
    """

    row: int
    cols: tuple[int, ...]
    weights: tuple[float, ...]
    kind: Literal["clean output"] = field(default="clean output", kw_only=True)


@dataclass(frozen=True)
class Shuffle:
    """The entry of another token of the same row: one random order of the real tokens for all dims of a site. Rows of
    equal length get the same order."""

    seed: int = 0
    kind: Literal["shuffle"] = field(default="shuffle", kw_only=True)


@dataclass(frozen=True)
class Noise:
    """The entry plus Gaussian noise.

    Attributes:
        std: in units of the dim's own root mean square over the row's real tokens: at 1 the noise is as strong as what
            is there.
        seed: one draw a site, position, head and dim; the same in every row, however rows are batched.
    """

    std: float
    seed: int = 0
    kind: Literal["noise"] = field(default="noise", kw_only=True)


Value = Scale | Mean | Deviation | SetTo | Recorded | CleanOutput | Shuffle | Noise


def as_numbers(values: float | Sequence[float] | torch.Tensor) -> SetTo:
    """Given numbers as a record. Raises StudfinderError if there are none, or some are not finite."""
    tensor = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if not tensor.numel() or not torch.isfinite(tensor).all():
        raise StudfinderError("the values to set", expected="finite numbers, at least one")
    return SetTo(tuple(tensor.flatten().tolist()), tuple(tensor.shape))
