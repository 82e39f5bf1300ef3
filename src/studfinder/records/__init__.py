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
)
from studfinder.records.interval import Comparison, Interval
from studfinder.records.json import from_json, read_record, schema, to_json, to_plain
from studfinder.records.run import ModelCard, PromptCard, RunCard

__all__ = [
    "AttentionSink",
    "Comparison",
    "Continuation",
    "Effect",
    "Findings",
    "Interval",
    "MassiveActivation",
    "MassiveValue",
    "MassiveValueSummary",
    "ModelCard",
    "PromptCard",
    "Proof",
    "PublishedWeight",
    "RunCard",
    "Summary",
    "SuperWeight",
    "from_json",
    "read_record",
    "schema",
    "to_json",
    "to_plain",
]
