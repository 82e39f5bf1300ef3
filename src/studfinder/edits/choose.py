"""Selections worked out on a running model: which entries of a (B,H,T,D) tensor."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from studfinder.edits.selections import (
    AboveLambda,
    Coordinates,
    Entries,
    Everything,
    LargestEntry,
    MatchedDims,
    RandomDims,
    Ranked,
    TopDims,
)
from studfinder.errors import StudfinderError
from studfinder.models import Rotary


@dataclass(frozen=True)
class Statistics:
    """Of one site in one call, over each row's real tokens.

    Attributes:
        mean_BHD: the mean.
        norm_BHD: M, the root of the sum of squares.
        tokens_B: real tokens.
    """

    mean_BHD: torch.Tensor
    norm_BHD: torch.Tensor
    tokens_B: torch.Tensor

    @classmethod
    def of(cls, x_BHTD: torch.Tensor, real_BT: torch.Tensor) -> Statistics:
        """Computed in at least fp32; padding is left out, whatever it holds."""
        wide = x_BHTD.double() if x_BHTD.dtype == torch.float64 else x_BHTD.float()
        values = torch.where(real_BT[:, None, :, None], wide, torch.zeros_like(wide))
        tokens_B = real_BT.sum(dim=1)
        count = tokens_B.clamp_min(1)[:, None, None]
        return cls(values.sum(dim=2) / count, values.square().sum(dim=2).sqrt(), tokens_B)

    @property
    def rms_BHD(self) -> torch.Tensor:
        """The root mean square."""
        return self.norm_BHD / self.tokens_B.clamp_min(1)[:, None, None].sqrt()


def generator(seed: int, *about: object) -> torch.Generator:
    """Random numbers that depend on the seed and what they are for, not on what was drawn before."""
    digest = hashlib.sha256(repr((seed, *about)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def chosen_dims(select: Ranked, norm_BHD: torch.Tensor, rotary: Rotary | None, site: str) -> torch.Tensor:
    """Which dims of each row and head: booleans (B,H,D).

    Raises:
        StudfinderError: a rotary band is asked for where there is no RoPE, or it has no other dim.
    """
    if isinstance(select, TopDims):
        return _top(norm_BHD, select.k, largest=select.largest)
    if isinstance(select, AboveLambda):
        return norm_BHD > select.lam * norm_BHD.mean(dim=-1, keepdim=True)
    top_BHD = _top(norm_BHD, select.k)
    if isinstance(select, MatchedDims) and select.by == "norm":
        # Every other dim is smaller, so those nearest in norm to the k largest are the next k.
        return _top(norm_BHD, 2 * select.k) & ~top_BHD
    order_HD = torch.rand(norm_BHD.shape[1:], generator=generator(select.seed, site, select.kind))
    order_BHD = order_HD.to(norm_BHD.device).expand_as(norm_BHD)
    if isinstance(select, RandomDims):
        return _top(order_BHD.masked_fill(top_BHD, -1), select.k)
    return _same_band(norm_BHD, order_BHD, top_BHD, select.k, rotary, site)


def _top(values_BHD: torch.Tensor, k: int, *, largest: bool = True) -> torch.Tensor:
    picked = values_BHD.topk(k, dim=-1, largest=largest).indices
    return torch.zeros_like(values_BHD, dtype=torch.bool).scatter_(
        -1, picked, torch.ones_like(picked, dtype=torch.bool)
    )


def _same_band(
    norm_BHD: torch.Tensor,
    order_BHD: torch.Tensor,
    top_BHD: torch.Tensor,
    k: int,
    rotary: Rotary | None,
    site: str,
) -> torch.Tensor:
    if rotary is None:
        raise StudfinderError(f"{site} has no rotary bands: this model has no RoPE", expected='by="norm"')
    pairs = len(rotary.inv_freq)
    # Dims that a partial RoPE passes by are a band of their own, far from every pair and each its own pair.
    numbers = [rotary.pair_of(dim) for dim in range(norm_BHD.shape[-1])]
    pair_D = torch.tensor([4 * pairs if pair is None else pair for pair in numbers], device=norm_BHD.device)
    same_DD = pair_D[:, None] == pair_D[None, :]
    passed_D = pair_D == 4 * pairs
    same_DD &= ~(passed_D[:, None] & passed_D[None, :])
    same_DD |= torch.eye(len(pair_D), dtype=torch.bool, device=norm_BHD.device)
    near_DD = (pair_D[:, None] - pair_D[None, :]).abs() <= max(1, pairs // 16)
    taken_BHD = (top_BHD[..., None] & same_DD).any(dim=-2)
    found_BHD = torch.zeros_like(top_BHD)
    for one_BHk in norm_BHD.topk(k, dim=-1).indices.split(1, dim=-1):
        free_BHD = near_DD[one_BHk[..., 0]] & ~taken_BHD
        if not bool(free_BHD.any(dim=-1).all()):
            raise StudfinderError(f"{site} has no other dim in the rotary band of its largest", expected='by="norm"')
        pick = order_BHD.masked_fill(~free_BHD, -1).argmax(dim=-1, keepdim=True)
        found_BHD = found_BHD.scatter(-1, pick, value=True)
        taken_BHD = taken_BHD | found_BHD
    return found_BHD


def chosen_entries(
    select: Entries,
    x_BHTD: torch.Tensor,
    real_BT: torch.Tensor,
    position_BT: torch.Tensor,
    dims_BHD: torch.Tensor | None,
) -> torch.Tensor:
    """Which entries: booleans that broadcast to (B,H,T,D), never true for padding.

    Args:
        dims_BHD: the dims that `chosen_dims` found, for selections that rank.
    """
    heads, dims = x_BHTD.shape[1], x_BHTD.shape[3]
    real_B1T1 = real_BT[:, None, :, None]
    if dims_BHD is not None:
        return dims_BHD[:, :, None, :] & real_B1T1
    if isinstance(select, Coordinates):
        where_HD = torch.zeros(heads, dims, dtype=torch.bool, device=x_BHTD.device)
        where_HD[slice(None) if select.head is None else select.head, list(select.dims)] = True
        if select.positions is not None:
            named = torch.tensor(select.positions, device=position_BT.device)
            real_B1T1 = real_B1T1 & torch.isin(position_BT, named)[:, None, :, None]
        return where_HD[None, :, None, :] & real_B1T1
    if isinstance(select, LargestEntry):
        return _largest(select, x_BHTD, real_B1T1)
    assert isinstance(select, Everything)
    return real_B1T1


def _largest(select: LargestEntry, x_BHTD: torch.Tensor, real_B1T1: torch.Tensor) -> torch.Tensor:
    size = x_BHTD.detach().abs().float().masked_fill(~real_B1T1, -1)
    if select.dims is not None:
        outside = torch.ones(x_BHTD.shape[3], dtype=torch.bool, device=x_BHTD.device)
        outside[list(select.dims)] = False
        size = size.masked_fill(outside, -1)
    flat = size.flatten(1)
    best = torch.zeros_like(flat, dtype=torch.bool)
    best[torch.arange(len(flat)), flat.argmax(dim=1)] = True
    return best.view_as(size) & (size >= 0)
