"""How a model is loaded: the fields that every verb which loads one shares.

They are no part of a run's identity by themselves: what they come to is (the content of the weights, the dtype, the
config, the kind of device).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from studfinder.records.config import Config, option


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Config):
    """What may be loaded."""

    revision: str | None = option(None, help="Branch, tag or commit of a hub repository.", identity=False)
    trust_remote_code: bool = option(False, help="Run code that comes with the model.", identity=False)
    allow_pickle: bool = option(False, help="Read pickle weights, which can run code.", identity=False)
    allow_missing: bool = option(
        False, help="Load although tensors are missing (random) or left over; recorded.", identity=False
    )
    merge_adapter: bool = option(
        False, help="Merge an adapter's folder into its base model (needs peft).", identity=False
    )


@dataclass(frozen=True, kw_only=True)
class LoadConfig(SourceConfig):
    """What may be loaded, in which dtype, where to, and into how much memory."""

    dtype: Any = option(
        "auto", line=str, help="auto (the checkpoint's own), float32, bfloat16, float16 or float64.", identity=False
    )
    device: Any = option(None, line=str, help="Where to run, e.g. cuda.", otherwise="cpu", identity=False)
    memory: Any = option(
        None,
        line=str,
        help="Memory to take at most, e.g. 8GB; a larger model is read from its files block by block.",
        otherwise="what is free",
        identity=False,
    )


@dataclass(frozen=True, kw_only=True)
class ReadConfig(LoadConfig):
    """As LoadConfig, of a model that is only read: it may lie on several devices, and attend in another way."""

    device_map: Any = option(None, line=str, help="Handed to transformers, e.g. auto.", identity=False)
    attention: str | None = option(None, help="transformers' attn_implementation, e.g. eager.", identity=False)
