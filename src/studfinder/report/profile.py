"""The arrays beside the findings, as the page needs them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np

from studfinder.records.findings import QKV

Profile = Mapping[str, np.ndarray]
"""`profile.safetensors` as arrays."""

_BUDGET = 800_000
"""Bytes of maps that a page carries, before base64."""


def head_ratios(norm_LHD: np.ndarray) -> np.ndarray:
    """M over its head's mean, (L, H, D); 0 where a head is silent."""
    mean = norm_LHD.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # infinite over infinite
        return np.divide(norm_LHD, mean, out=np.zeros_like(norm_LHD), where=mean > 0)


def layers_of(profile: Profile, tensor: str) -> list[int]:
    """Which layers the rows of a map are."""
    return [int(layer) for layer in profile[f"norm.{tensor}.layers"]]


def magnitude(values: np.ndarray) -> np.ndarray:
    """|a| as float64, with what a log axis cannot show (0, inf, NaN) as NaN."""
    size = np.abs(np.asarray(values, dtype=np.float64))
    return np.where(np.isfinite(size) & (size > 0), size, np.nan)


def pack_profile(profile: Profile) -> dict[str, Any]:
    """Maps, rotary band and sinks as base64 in plain JSON.

    Ratios are float16 (they never exceed the head dim), a head's mean float32, so that norm = ratio * mean. Where a
    large model would not fit, ratios become uint8 on a log scale; and if even that is too much, every n-th layer is
    kept.
    """
    present = [tensor for tensor in QKV if f"norm.{tensor}" in profile]
    cells = sum(profile[f"norm.{tensor}"].size for tensor in present)
    code = "f16" if 2 * cells <= _BUDGET else "u8"
    step = max(1, -(-cells // _BUDGET))
    maps = []
    for tensor in present:
        norm = np.nan_to_num(profile[f"norm.{tensor}"][::step].astype(np.float32), posinf=0.0)
        ratio = head_ratios(norm)
        maps.append(
            {
                "name": tensor,
                "layers": layers_of(profile, tensor)[::step],
                "heads": norm.shape[1],
                "dims": norm.shape[2],
                "ratio": _base64(ratio.astype("<f2") if code == "f16" else _log_codes(ratio)),
                "mean": _base64(norm.mean(axis=-1).astype("<f4")),
            }
        )
    packed: dict[str, Any] = {"code": code, "step": step, "maps": maps, "never": None, "sinks": None}
    if "rotary.never_turns" in profile:
        never = profile["rotary.never_turns"][::step]
        packed["never"] = {"dims": never.shape[1], "flags": _base64(never.astype(np.uint8))}
    if "sink" in profile:
        sink = profile["sink"]
        packed["sinks"] = {
            "layers": [int(layer) for layer in profile["sink.layers"]],
            "heads": sink.shape[1],
            "strength": _base64(np.nan_to_num(sink, posinf=0.0).astype("<f2")),
        }
    return packed


def _log_codes(ratio: np.ndarray) -> np.ndarray:
    """0 for 0; 1 to 255 for 2^-8 to 2^8 in steps of 4 %. page.js undoes it."""
    exponent = np.log2(np.maximum(ratio, 2.0**-8))
    return np.where(ratio > 0, np.clip(np.rint(exponent * 15.875 + 128), 1, 255), 0).astype(np.uint8)


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
