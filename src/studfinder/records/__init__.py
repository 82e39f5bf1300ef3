"""Plain data, JSON in and out; no torch."""

from studfinder.records.findings import (
    AttentionSink,
    Continuation,
    Effect,
    Findings,
    MassiveActivation,
    MassiveValue,
    MassiveValueSummary,
    Proof,
    PublishedWeight,
    Summary,
    SuperWeight,
    Thresholds,
)
from studfinder.records.interval import Comparison, Interval
from studfinder.records.json import from_json, read_record, schema, to_json, to_plain
from studfinder.records.quantization import Quantization
from studfinder.records.result import Cell, Measured, Result, Scorecard, Table
from studfinder.records.run import ModelCard, PromptCard, RunCard
from studfinder.records.training import Training

__all__ = [
    "AttentionSink",
    "Cell",
    "Comparison",
    "Continuation",
    "Effect",
    "Findings",
    "Interval",
    "MassiveActivation",
    "MassiveValue",
    "MassiveValueSummary",
    "Measured",
    "ModelCard",
    "PromptCard",
    "Proof",
    "PublishedWeight",
    "Quantization",
    "Result",
    "RunCard",
    "Scorecard",
    "Summary",
    "SuperWeight",
    "Table",
    "Thresholds",
    "Training",
    "from_json",
    "read_record",
    "schema",
    "to_json",
    "to_plain",
]
