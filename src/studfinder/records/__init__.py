"""Plain data, JSON in and out; no torch."""

from studfinder.records.chart import Chart, Plot, Point, Series, line, point
from studfinder.records.claims import Claim, ClaimResult, Decision
from studfinder.records.diagnosis import Diagnosis
from studfinder.records.equivalence import EqualChange, EqualCheck, EqualGain, Equivalence
from studfinder.records.findings import (
    AttentionSink,
    Continuation,
    Findings,
    MassiveActivation,
    MassiveValue,
    MassiveValueSummary,
    Proof,
    PublishedWeight,
    Summary,
    Thresholds,
)
from studfinder.records.interval import Comparison, Interval
from studfinder.records.json import from_json, read_record, schema, to_json, to_plain
from studfinder.records.numbers import CensusCard, CensusPlace, Effect, OtherNumber, SuperWeight
from studfinder.records.plan import FormatCost, GroupCosts, Plan, PlannedGroup, Rival, Sensitivity, Solution
from studfinder.records.quantization import Quantization
from studfinder.records.recipe import LeftOut, Recipe, RecipeGroup
from studfinder.records.result import Cell, Measured, Result, Scorecard, Table
from studfinder.records.run import ModelCard, PromptCard, RunCard
from studfinder.records.scheme import SCHEMES, UNTOUCHED, Format, Inputs, Scheme, format_named, scheme_named
from studfinder.records.training import Training

__all__ = [
    "SCHEMES",
    "UNTOUCHED",
    "AttentionSink",
    "Cell",
    "CensusCard",
    "CensusPlace",
    "Chart",
    "Claim",
    "ClaimResult",
    "Comparison",
    "Continuation",
    "Decision",
    "Diagnosis",
    "Effect",
    "EqualChange",
    "EqualCheck",
    "EqualGain",
    "Equivalence",
    "Findings",
    "Format",
    "FormatCost",
    "GroupCosts",
    "Inputs",
    "Interval",
    "LeftOut",
    "MassiveActivation",
    "MassiveValue",
    "MassiveValueSummary",
    "Measured",
    "ModelCard",
    "OtherNumber",
    "Plan",
    "PlannedGroup",
    "Plot",
    "Point",
    "PromptCard",
    "Proof",
    "PublishedWeight",
    "Quantization",
    "Recipe",
    "RecipeGroup",
    "Result",
    "Rival",
    "RunCard",
    "Scheme",
    "Scorecard",
    "Sensitivity",
    "Series",
    "Solution",
    "Summary",
    "SuperWeight",
    "Table",
    "Thresholds",
    "Training",
    "format_named",
    "from_json",
    "line",
    "point",
    "read_record",
    "schema",
    "scheme_named",
    "to_json",
    "to_plain",
]
