"""The record of a quantised checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from studfinder.records.public import OneLine


@dataclass(frozen=True, kw_only=True)
class Quantization(OneLine):
    """What was done to a checkpoint, as written to studfinder.json in it.

    Attributes:
        model, origin: the id it was asked for by, and where it came from.
        method, settings: the method's class and record.
        scheme: in words.
        engines: in which engines and versions this format was seen to load, or that it was not tried, in words.
        kernel: what earlier versions quoted from reading; not written any more.
        stored_as: the checkpoint's format; see `quantizers.export.FORMATS`.
        bits: true bits a weight over all matrices in the blocks: elements, scales, zero points, and what is left in
            full precision.
        quantized, skipped: how many matrices, and which fused groups stay as they are.
        kept: what was asked to be kept, in words.
        instead: fused groups that are skipped because the format has no place for the numbers to keep in them.
        notes: what methods and transforms report of themselves.
        calibration: the text and its size, or None.
        verified: how the written files were held against what was meant, in words.
        scores: by name, a line each, of this model beside the one it was made from.
        versions, made: of the packages; when.
    """

    format: Literal["studfinder.quantization"] = "studfinder.quantization"
    version: Literal[1] = 1
    model: str
    origin: str
    method: str
    settings: Mapping[str, Any]
    scheme: str
    engines: str = ""
    kernel: str | None = None
    stored_as: str
    bits: float
    quantized: int
    skipped: tuple[str, ...]
    kept: tuple[str, ...]
    instead: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibration: str | None = None
    scores: Mapping[str, str] = field(default_factory=dict)
    verified: str = "not verified"
    versions: Mapping[str, str]
    made: str
