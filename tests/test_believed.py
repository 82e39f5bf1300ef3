"""Findings are held against the model before anything is done with them: none with one thing changed gets through."""

from __future__ import annotations

import copy
import json
import random

import pytest

from scanned import a_scan, findings_for
from studfinder.edits.spec import parse_edits
from studfinder.errors import StudfinderError
from studfinder.models import check_findings
from studfinder.quantizers import RTN, Scheme, quantized
from studfinder.records import Findings, from_json, to_json
from tiny import CONFIGS, tiny

DOWN = "model.layers.{}.mlp.down_proj.weight"
NAN = {"value": "NaN", "low": "NaN", "high": "NaN"}


@pytest.fixture(scope="module")
def lm():
    return tiny("llama")


def whole(lm):
    places = [(DOWN.format(layer), (3 + layer, 5), "proven") for layer in range(2)]
    plain = json.loads(to_json(findings_for(lm, places)))
    other = json.loads(to_json(a_scan()[0]))
    for name in ("massive_activations", "massive_values", "attention_sinks"):
        entry = copy.deepcopy(other[name][0])
        plain[name] = [{**entry, **{at: 0 for at in ("layer", "dim", "head") if at in entry}}]
    return plain


def tampered(plain, kind, chance):
    """A copy with one thing changed."""
    plain = copy.deepcopy(plain)
    weight = chance.choice(plain["super_weights"])
    rows, cols = CONFIGS["llama"]["hidden_size"], CONFIGS["llama"]["intermediate_size"]
    whole_hash = plain["model"]["content_hash"]
    no_index = [[], [5], [-1, 5], [weight["row"], -1], [1, 2, 3], [[3, 5]], "35", [rows, 5], [3, cols]]
    few = {
        "hash": lambda: plain["model"].update(content_hash=chance.choice(["", "0" * 64, "a", whole_hash[1:]])),
        "version": lambda: plain.update(version=chance.choice([True, 0, 1.5, "1", None, [1]])),
        "index": lambda: weight.update(index=chance.choice(no_index)),
        "row": lambda: weight.update(row=weight["row"] + chance.choice([1, -1, 10**6])),
        "col": lambda: weight.update(col=weight["col"] + chance.choice([1, -1, 10**6])),
        "both": lambda: weight.update(row=(r := rows + chance.randrange(9)), index=[r, weight["col"]]),
        "other place": lambda: weight.update(row=(r := chance.randrange(8, rows)), index=[r, weight["col"]]),
        "expert": lambda: weight.update(expert=chance.randrange(4)),
        "layer": lambda: weight.update(layer=chance.choice([-1, 3, 99])),
        "parameter": lambda: weight.update(parameter=chance.choice(["", "x", DOWN.format(9), "model.norm.weight"])),
        "value": lambda: weight.update(value=chance.choice([weight["value"] * 1.01, -weight["value"], 0.0, "NaN"])),
        "effect": lambda: weight["effect"]["kl"].update({(key := chance.choice(["value", "low", "high"])): NAN[key]}),
        "no effect": lambda: weight.update(effect=None),
        "activation": lambda: plain["massive_activations"][0].update(
            {chance.choice(["layer", "dim"]): chance.choice([-1, 10**4, True])}
        ),
        "massive value": lambda: plain["massive_values"][0].update(
            {chance.choice(["layer", "head", "dim"]): chance.choice([-1, "x"])}
        ),
        "prompt": lambda: plain["massive_activations"][0].update(prompt=chance.choice([-1, 2, 10**6, "x"])),
        "position": lambda: weight.update(position=chance.choice([-1, 100, 10**6, None])),
        "token ids": lambda: chance.choice(plain["prompts"]["token_ids"]).__setitem__(chance.randrange(50), 1000),
        "sink": lambda: plain["attention_sinks"][0].update({chance.choice(["layer", "head"]): chance.choice([-1, 99])}),
    }
    few[kind]()
    return plain


KINDS = ["hash", "version", "index", "row", "col", "both", "other place", "expert", "layer", "parameter", "value"]
KINDS += ["effect", "no effect", "activation", "massive value", "prompt", "position", "token ids", "sink"]


def test_findings_as_they_were_written_are_believed(lm, tmp_path):
    (tmp_path / "findings.json").write_text(json.dumps(whole(lm)))
    assert parse_edits(lm, f"zero:{tmp_path}")


def test_findings_with_one_thing_changed_are_refused(lm, tmp_path):
    chance, plain, through, said = random.Random(0), whole(lm), [], []
    for number in range(len(KINDS) * 20):
        kind = KINDS[number % len(KINDS)]
        changed = tampered(plain, kind, chance)
        try:
            check_findings(lm, from_json(Findings, json.dumps(changed)))
            through.append(kind)
        except StudfinderError as error:
            said.append(str(error))
    assert not through
    assert not [line for line in said if "\n" in line]


@pytest.mark.parametrize("kind", KINDS)
def test_wherever_findings_are_given(lm, tmp_path, kind):
    path = tmp_path / "findings.json"
    path.write_text(json.dumps(tampered(whole(lm), kind, random.Random(kind))))
    with pytest.raises(StudfinderError):
        parse_edits(lm, f"zero:{tmp_path}")
    with pytest.raises(StudfinderError):
        keep = from_json(Findings, path.read_text())
        quantized(lm, RTN(scheme=Scheme(element="int4", block="channel", scale="float32")), keep=keep).__enter__()
