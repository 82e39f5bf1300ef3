"""Records: what was written reads back, and nothing else is accepted."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from studfinder.errors import StudfinderError
from studfinder.records import (
    AttentionSink,
    Effect,
    Findings,
    Interval,
    MassiveActivation,
    MassiveValue,
    ModelCard,
    PromptCard,
    RunCard,
    Summary,
    SuperWeight,
    from_json,
    read_record,
    to_json,
    to_plain,
)

CARD = ModelCard(
    id="m",
    origin="a local folder",
    architecture="llama",
    content_hash="ab" * 32,
    dtype="float32",
    layers=3,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    intermediate=48,
    vocabulary=96,
    parameters=1234,
    train_length=128,
    train_length_source="given",
)
INTERVAL = Interval(value=1.0, low=0.5, high=float("inf"), level=0.95, n=16, method="paired bootstrap over windows")
WEIGHT = SuperWeight(
    layer=1,
    parameter="model.layers.1.mlp.experts.down_proj",
    index=(2, 9, 7),
    checkpoint_tensor=None,
    checkpoint_index=None,
    expert=2,
    row=9,
    col=7,
    value=-2.5,
    input_spike=1e30,
    output_spike=float("-inf"),
    share=float("nan"),
    score=float("inf"),
    prompt=0,
    position=2,
    token=' "\n',
    effect=Effect(kl=INTERVAL, perplexity_ratio=INTERVAL, control_kls=(0.1, 0.2)),
    verdict="proven-jointly",
)
ACTIVATION = MassiveActivation(
    layer=0, dim=5, prompt=1, position=0, token="ü", token_class="first", value=-1e4, median=0.0, ratio=float("inf")
)
FINDINGS = Findings(
    model=CARD,
    run=RunCard(verb="scan", key="k", settings={"a": None, "b": True, "c": 1, "d": 0.5, "e": "x"}),
    prompts=PromptCard.of("p", ("a", "b"), ((1, 7, 9), (1, 2, 3, 4)), bos=True),
    summary=Summary(thresholds={"lam": 5.0}, nearest_super_weight=WEIGHT),
    nonfinite=("residual[3]",),
    super_weights=(WEIGHT,),
    massive_activations=(ACTIVATION,),
    massive_values=(MassiveValue(layer=0, tensor="query", head=1, dim=2, norm=3.0, ratio=6.0),),
    attention_sinks=(AttentionSink(layer=0, head=1, strength=0.9),),
    others={"loud_tokens": ({"layer": 0, "size": "Infinity", "places": [1, 2]},), "none": ()},
)


def same(a, b) -> bool:
    """Equality in which NaN equals itself."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if dataclasses.is_dataclass(a):
        return type(a) is type(b) and all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.mark.parametrize("indent", [None, 1])
def test_findings_survive_the_round_trip_with_inf_and_nan(indent):
    text = to_json(FINDINGS, indent=indent)
    assert same(from_json(Findings, text), FINDINGS)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@given(st.builds(Interval, value=st.floats(), low=st.floats(), high=st.floats(), level=st.floats(0, 1)))
@settings(deadline=None, max_examples=60)
def test_every_float_survives(interval):
    assert same(from_json(Interval, to_json(interval)), interval)


def test_to_plain_is_what_json_dumps_takes():
    plain = to_plain(FINDINGS)
    assert same(from_json(Findings, json.dumps(plain)), FINDINGS)
    assert (plain["format"], plain["version"]) == ("studfinder.findings", 2)


_CARD = to_plain(FINDINGS.prompts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 3}, "version 3; expected 1 or 2"),
        ({"version": "1"}, "version '1'"),
        ({"format": "other"}, "format 'other'"),
        ({"surprise": 1}, "surprise"),
        ({"super_weights": [{"layer": 1}]}, r"super_weights\.0"),
        ({"summary": {"thresholds": {"lam": "much"}}}, "lam"),
        ({"model": None}, "model"),
        ({"prompts": {**_CARD, "token_ids": [[1, 7, 9], [1, 2, 3]]}}, "prompts.*not as many as the tokens"),
        ({"prompts": {**_CARD, "token_ids": [[1, 7, 9], [1, 2, 3, 5]]}}, "prompts.*not those of the hash"),
        ({"prompts": {**_CARD, "token_ids": [], "tokens": [2, 4]}}, "no position 2 in prompt 0"),
        ({"prompts": {**_CARD, "token_ids": [], "tokens": [3]}}, "no position 0 in prompt 1"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, words):
    with pytest.raises(StudfinderError, match=words):
        from_json(Findings, json.dumps({**to_plain(FINDINGS), **change}))


@pytest.mark.parametrize("missing", ["version", "format", "model", "run"])
def test_a_missing_field_is_refused(missing):
    plain = to_plain(FINDINGS)
    del plain[missing]
    with pytest.raises(StudfinderError, match=missing):
        from_json(Findings, json.dumps(plain))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", to_json(FINDINGS)[:-40]])
def test_what_is_no_record_is_refused(text):
    with pytest.raises(StudfinderError, match="this text"):
        from_json(Findings, text)


def test_reading_a_file_names_it(tmp_path):
    path = tmp_path / "findings.json"
    with pytest.raises(StudfinderError, match=r"findings\.json cannot be read"):
        read_record(Findings, path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(StudfinderError, match=r"findings\.json"):
        read_record(Findings, path)
    path.write_text(to_json(FINDINGS))
    assert same(read_record(Findings, path), FINDINGS)


def test_a_json_schema_can_be_made():
    schema = TypeAdapter(Findings).json_schema()
    assert set(schema["properties"]) == {field.name for field in dataclasses.fields(Findings)}
    assert "SuperWeight" in schema["$defs"]


def test_records_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FINDINGS.nonfinite = ()
    with pytest.raises(TypeError):
        AttentionSink(0, 1, 0.5)


def test_proven_are_those_that_were_shown_to_matter():
    weights = tuple(dataclasses.replace(WEIGHT, verdict=v) for v in ("candidate", "proven", "inert", "proven-jointly"))
    found = dataclasses.replace(FINDINGS, super_weights=weights)
    assert [w.verdict for w in found.proven] == ["proven", "proven-jointly"]
    assert str(WEIGHT) == "layers.1.experts.2 down_proj[9, 7]"
