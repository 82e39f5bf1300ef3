"""The super weights that an experiment works on: found and proved once, by one scan that all experiments share."""

from __future__ import annotations

from pathlib import Path

from studfinder.errors import StudfinderError
from studfinder.experiments.experiment import Bench
from studfinder.models import LM, cached_content_hash, check_findings
from studfinder.records import Findings, SuperWeight, read_record
from studfinder.runs import record_file
from studfinder.texts import default_prompts, encode
from studfinder.verbs.scan import plan_scan, run_scan, scan_run


def load_findings(bench: Bench, lm: LM, *, prove: bool = True) -> Findings:
    """The findings of a model just loaded; see `scan_of`."""
    findings = read_record(Findings, record_file(scan_of(bench, lm, prove=prove), "findings.json"))
    check_findings(lm, findings)
    return findings


def scan_of(bench: Bench, lm: LM, *, prove: bool = True) -> Path:
    """The folder of a model's scan.

    An earlier one with the same settings in ./runs is used, so that all experiments on a model share one. Otherwise a
    scan is made now: there, or inside the folder that --out names.
    """
    plan = plan_scan(lm, prove=prove, hash_of=cached_content_hash)
    found = scan_run(plan).finished()
    if found is not None:
        return found
    command = f"studfinder scan {plan.model.id}"
    _, folder = run_scan(plan, write=True, root=bench.scans, progress=bench.progress, command=command)
    assert folder is not None
    return folder


def super_weights_of(bench: Bench, lm: LM) -> tuple[tuple[SuperWeight, ...], list[list[int]]]:
    """The proven super weights, the one with the largest effect first, and the prompts' token ids.

    Raises:
        StudfinderError: none is proven.
    """
    findings = load_findings(bench, lm)
    found = sorted(findings.proven, key=lambda weight: -weight.effect.kl.value if weight.effect else 0.0)
    if not found:
        raise StudfinderError(
            f"no super weight is proven in {lm.source.id}, so there is nothing to take away",
            do="See studfinder scan for its candidates, or choose another model",
        )
    return tuple(found), encode(lm, default_prompts())[0]


def super_weight_of(bench: Bench, lm: LM) -> tuple[SuperWeight, list[list[int]]]:
    """The proven super weight with the largest effect, and the prompts' token ids. Raises as `super_weights_of`."""
    weights, encoded = super_weights_of(bench, lm)
    return weights[0], encoded
