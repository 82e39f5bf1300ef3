"""A findings file alone is enough: everything in it is found again, it fits its schema, and version 1 is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from proving import provable
from studfinder.detectors import DETECTORS, every_detector, observe
from studfinder.edits import matched_controls
from studfinder.errors import StudfinderError
from studfinder.prove import prove
from studfinder.records import Findings, Scorecard, Thresholds, from_json, read_record, to_json, to_plain
from studfinder.runs import write_text
from studfinder.sites import capture
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.continuations import continuations
from studfinder.verbs.report import report
from studfinder.verbs.scan import plan_scan, run_scan, scan

VERSION_1 = Path(__file__).parent / "data" / "version1"
SCHEMA = json.loads((Path(__file__).parent.parent / "docs/schema/findings.schema.json").read_text())
LOW = Thresholds(activation=5.0, activation_ratio=30.0, lam=1.9, sink=0.05)
PROMPTS = ["The quick brown fox.", "A list: 1, 2 and 3!"]


def read_again(findings: Findings, folder: Path) -> Findings:
    (folder / "findings.json").write_text(to_json(findings, indent=1))
    return read_record(Findings, folder / "findings.json")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "qwen2"])
def test_a_file_alone_locates_everything_again(architecture: str, tmp_path: Path) -> None:
    lm, _ = provable(architecture, planted=True)
    findings = read_again(scan(lm, prompts=PROMPTS, thresholds=LOW, prove=False), tmp_path)
    assert all(getattr(findings, name) for name in DETECTORS)
    at = findings.summary.thresholds
    thresholds = Thresholds(**{name: type(value)(at[name]) for name, value in vars(LOW).items()})
    again = every_detector(lm, thresholds)
    observe(lm, findings.prompts.token_ids, again.values())
    for name in DETECTORS:
        assert tuple(again[name].found()) == getattr(findings, name)
    for entry in findings.massive_activations:
        site = f"residual[{entry.layer}]"
        hidden_BTC = capture(lm, torch.tensor([findings.ids_of(entry)]), [site])[site]
        assert float(hidden_BTC[0, entry.position, entry.dim]) == entry.value


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_a_proof_needs_nothing_but_the_findings(architecture: str, tmp_path: Path) -> None:
    lm, index = provable(architecture, planted=True)
    guessed = scan(lm, prompts=PROMPTS, prove=False)
    proved = prove(lm, read_again(guessed, tmp_path))
    assert [weight.index for weight in proved.proven] == [index]
    assert replace(proved, super_weights=guessed.super_weights, proof=None) == guessed


# --- the schema ------------------------------------------------------------------------------------------------------


def misfits(value: Any, schema: Any, at: str = "findings") -> list[str]:
    """Where a value does not fit a JSON Schema of the few words that ours use."""
    if "$ref" in schema:
        return misfits(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], at)
    if "anyOf" in schema:
        return min((misfits(value, one, at) for one in schema["anyOf"]), key=len)
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    if schema.get("type") == "number":
        fits = isinstance(value, (int, float)) or value in ("Infinity", "-Infinity", "NaN")
    else:
        fits = isinstance(value, kinds.get(schema.get("type"), object))
    fits = fits and value in schema.get("enum", [value]) and schema.get("const", value) == value
    if not fits or (isinstance(value, bool) and schema.get("type") in ("integer", "number")):
        return [f"{at}: {value!r}"]
    found = []
    if isinstance(value, dict):
        named, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        found = [f"{at}.{name} is missing" for name in schema.get("required", ()) if name not in value]
        inner = {f"{at}.{name}": (one, named.get(name, other)) for name, one in value.items()}
    else:
        inner = {
            f"{at}[{n}]": (one, schema.get("items", True))
            for n, one in enumerate(value if isinstance(value, list) else ())
        }
    for place, (one, of) in inner.items():
        found += [f"{place} is not known"] if of is False else [] if of is True else misfits(one, of, place)
    return found


def test_what_a_scan_writes_fits_the_published_schema_and_comes_back() -> None:
    findings = scan(provable("llama", planted=True)[0], prompts=PROMPTS, thresholds=LOW)
    findings = replace(findings, others={"loud": ({"at": [1, 2], "size": 1.5, "why": None},)})
    plain = to_plain(findings)
    assert misfits(plain, SCHEMA) == []
    assert from_json(Findings, json.dumps(plain)) == findings
    assert misfits({**plain, "version": 1}, SCHEMA)
    assert misfits({**plain, "surprise": 1}, SCHEMA)
    assert misfits({**plain, "prompts": {**plain["prompts"], "token_ids": [["x"]]}}, SCHEMA)


# --- version 1 -------------------------------------------------------------------------------------------------------


def as_version_1(findings: Findings) -> str:
    """What the version before wrote for this."""
    plain = to_plain(findings)
    del plain["others"], plain["other_numbers"], plain["census"], plain["prompts"]["token_ids"]
    for weight in (*plain["super_weights"], plain["summary"]["nearest_super_weight"]):
        if weight:
            del weight["predicted"]
    for name in ("experts", "unseen_experts", "without_attention", "pictured"):
        del plain["summary"][name]
    proof = plain["proof"] or {}
    for effect in (proof.get("joint"), *(weight["effect"] for weight in plain["super_weights"])):
        for name in ("null_kl", "net_kl") if effect else ():
            del effect[name]
    proof.pop("looks", None)
    return json.dumps({**plain, "version": 1})


def test_version_1_is_read_as_version_2_without_what_it_does_not_know() -> None:
    folder = VERSION_1 / "scan"
    old, findings = json.loads((folder / "findings.json").read_text()), read_record(Findings, folder / "findings.json")
    assert (old["version"], findings.version) == (1, 2)
    assert (findings.prompts.token_ids, findings.others) == ((), {})
    assert as_version_1(findings) == json.dumps(old)
    assert from_json(Findings, to_json(findings)) == findings
    assert findings.proven
    assert all(getattr(findings, name) for name in DETECTORS)
    assert read_record(Scorecard, VERSION_1 / "scorecard.json").measured


def test_a_page_is_drawn_of_version_1(tmp_path: Path, undrawn) -> None:
    runs, page = report(VERSION_1 / "scan", out=tmp_path / "r")
    assert runs[0].findings.version == 2
    assert page is not None
    assert page.is_file()


def test_what_needs_token_ids_says_in_one_line_what_to_do() -> None:
    lm, _ = provable("llama", planted=True)
    findings = from_json(Findings, as_version_1(scan(lm, prompts=PROMPTS, prove=False)))
    for needs in (
        lambda: findings.ids_of(findings.super_weights[0]),
        lambda: matched_controls(lm, findings.super_weights[0], findings),
        lambda: continuations(lm, findings),
        lambda: prove(lm, findings),
    ):
        with pytest.raises(StudfinderError, match=r"do not know their prompts' token ids.*Scan it again") as raised:
            needs()
        assert "\n" not in str(raised.value)


def test_a_finished_run_of_version_1_is_shown_with_the_ids_of_the_prompts_asked_for(tmp_path: Path, undrawn) -> None:
    lm, _ = provable("llama", planted=True)
    plan = plan_scan(lm, ScanConfig(prompts=PROMPTS, prove=False, out=tmp_path / "s"))
    findings, folder = run_scan(plan)
    assert folder is not None
    write_text(folder / "findings.json", as_version_1(findings))
    again = run_scan(plan)[0]
    unpictured = replace(findings.summary, pictured=again.summary.pictured)  # which version 1 does not know
    assert again == replace(findings, summary=unpictured)
    assert continuations(lm, again)
