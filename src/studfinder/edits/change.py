"""What the selected entries become: from a value record and a running model's tensor to new numbers."""

from __future__ import annotations

import torch

from studfinder.edits.choose import Statistics, generator
from studfinder.edits.selections import Coordinates, Entries
from studfinder.edits.values import Deviation, Mean, Noise, Scale, SetTo, Shuffle, Value
from studfinder.errors import StudfinderError

_BLOCK = 256
"""Noise is drawn for so many positions at a time, so that a position's noise does not depend on the row's length."""


def new_entries(
    value: Value,
    select: Entries,
    x_BHTD: torch.Tensor,
    chosen: torch.Tensor,
    real_BT: torch.Tensor,
    position_BT: torch.Tensor,
    statistics: Statistics | None,
    site: str,
) -> torch.Tensor:
    """The numbers to put in place of the chosen entries; broadcasts to (B,H,T,D), and means nothing elsewhere.

    Args:
        chosen: booleans that broadcast to (B,H,T,D).
        statistics: of this call, or of the last prefill; values that need none get None.
    """
    if isinstance(value, Scale):
        return torch.zeros_like(x_BHTD) if value.factor == 0 else x_BHTD * value.factor
    if isinstance(value, SetTo):
        return _given(value, select, x_BHTD, site).to(x_BHTD)
    if isinstance(value, Shuffle):
        return _shuffled(value, x_BHTD, real_BT, site)
    assert statistics is not None
    if isinstance(value, Mean):
        mean_BHD = statistics.mean_BHD
        if value.pooled:
            picked_BHD = chosen.any(dim=2).expand_as(mean_BHD)
            count = picked_BHD.sum(dim=-1, keepdim=True).clamp_min(1)
            mean_BHD = (mean_BHD * picked_BHD).sum(dim=-1, keepdim=True) / count
        return mean_BHD[:, :, None, :].to(x_BHTD.dtype)
    if isinstance(value, Deviation):
        return (x_BHTD - statistics.mean_BHD[:, :, None, :]).to(x_BHTD.dtype)
    assert isinstance(value, Noise)
    noise_BHTD = _noise(value, x_BHTD, position_BT, site)
    return (x_BHTD + value.std * statistics.rms_BHD[:, :, None, :] * noise_BHTD).to(x_BHTD.dtype)


def _given(value: SetTo, select: Entries, x_BHTD: torch.Tensor, site: str) -> torch.Tensor:
    heads, dims = x_BHTD.shape[1], x_BHTD.shape[3]
    given = value.tensor()
    if given.numel() == 1:
        return given.reshape(1, 1, 1, 1)
    if isinstance(select, Coordinates) and given.shape == (len(select.dims),):
        map_D = torch.zeros(dims, dtype=given.dtype)
        map_D[list(select.dims)] = given
        return map_D
    if given.shape not in ((dims,), (heads, dims)):
        raise StudfinderError(
            f"values of shape {tuple(given.shape)} at {site}",
            expected=f"one number, one for each named dim, ({dims},) or ({heads}, {dims})",
        )
    return given.reshape(-1, 1, dims)


def _shuffled(value: Shuffle, x_BHTD: torch.Tensor, real_BT: torch.Tensor, site: str) -> torch.Tensor:
    source_BT = torch.arange(x_BHTD.shape[2]).repeat(len(x_BHTD), 1)
    for row, real_T in enumerate(real_BT.cpu()):
        places = real_T.nonzero()[:, 0]
        order = torch.randperm(len(places), generator=generator(value.seed, site, "shuffle", len(places)))
        source_BT[row, places] = places[order]
    index = source_BT.to(x_BHTD.device)[:, None, :, None].expand_as(x_BHTD)
    return x_BHTD.gather(2, index)


def _noise(value: Noise, x_BHTD: torch.Tensor, position_BT: torch.Tensor, site: str) -> torch.Tensor:
    _, heads, _, dims = x_BHTD.shape
    position_BT = position_BT.clamp_min(0).cpu()  # padding in front of a row has no position
    blocks = torch.unique(position_BT // _BLOCK)
    drawn = torch.stack(
        [
            torch.randn(_BLOCK, heads, dims, generator=generator(value.seed, site, "noise", int(block)))
            for block in blocks
        ]
    )
    which_BT = torch.searchsorted(blocks, position_BT // _BLOCK)
    return drawn[which_BT, position_BT % _BLOCK].transpose(1, 2).to(x_BHTD.device)
