"""The super weights that an experiment works on: found and proved once, by one scan that all experiments share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studfinder.edits import Weights, matched_controls
from studfinder.errors import StudfinderError
from studfinder.models import LM, cached_content_hash, check_findings
from studfinder.records import Findings, SuperWeight
from studfinder.studies.experiment import Bench
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.scan import plan_scan, run_scan, scan_run


def load_findings(bench: Bench, lm: LM, *, prove: bool = True) -> Findings:
    """The findings of a model just loaded; see `scan_of`."""
    findings, _ = scan_of(bench, lm, prove=prove)
    check_findings(lm, findings)
    return findings


def scan_of(bench: Bench, lm: LM, *, prove: bool = True) -> tuple[Findings, Path]:
    """A model's scan, and its folder.

    An earlier one with the same settings in ./runs is used, so that all experiments on a model share one. Otherwise a
    scan is made now: there, or inside the folder that --out names.
    """
    wanted = [ScanConfig(prove=how, progress=bench.progress) for how in dict.fromkeys((True, prove))]
    plans = [plan_scan(lm, config, cached_content_hash) for config in wanted]
    plan = next((one for one in plans if scan_run(one).finished()), plans[-1])  # one that proves holds all of the other
    root = bench.scans if scan_run(plan).finished() is None else Path("runs")
    command = f"studfinder scan {plan.model.id}"
    findings, folder = run_scan(plan, write=True, root=root, command=command)
    assert folder is not None
    return findings, folder


def super_weights_of(bench: Bench, lm: LM) -> tuple[tuple[SuperWeight, ...], Findings]:
    """The proven super weights, the one with the largest effect first, and the findings that they are from.

    Raises:
        StudfinderError: none is proven.
    """
    findings = load_findings(bench, lm)
    if not findings.proven:
        raise StudfinderError(
            f"no super weight is proven in {lm.source.id}, so there is nothing to take away",
            do="See studfinder scan for its candidates, or choose another model",
        )
    return findings.strongest, findings


def controls_of(lm: LM, weights: Sequence[SuperWeight], findings: Findings) -> list[Weights]:
    """For each weight another one, the nearest in size in the same matrix."""
    taken = [weight.index for weight in weights]
    return [matched_controls(lm, weight, findings, count=1, exclude=taken)[0] for weight in weights]
