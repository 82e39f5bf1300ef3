"""The super weights that an experiment works on: found and proved once, by one scan that all experiments share."""

from __future__ import annotations

from pathlib import Path

from studfinder.errors import StudfinderError
from studfinder.experiments.experiment import Bench, Progress
from studfinder.models import LM, cached_content_hash
from studfinder.records import Findings, SuperWeight, read_record
from studfinder.runs import find_findings, open_run
from studfinder.texts import default_prompts, encode
from studfinder.verbs.scan import plan_scan, run_scan


def findings_of(lm: LM, *, prove: bool = True, progress: Progress | None = None) -> Findings:
    """The findings of a model just loaded: from the run folder of an earlier scan with the same settings if there is
    one, else from a scan that is written there, so that all experiments on a model share one."""
    plan = plan_scan(lm, prove=prove, hash_of=cached_content_hash)
    folder = open_run("scan", plan.model.id, plan.settings, result="findings.json")
    if folder.complete:
        return read_record(Findings, find_findings(folder.path))
    return run_scan(plan, write=True, progress=progress, command=f"studfinder scan {plan.model.id}")[0]


def profile_of(lm: LM) -> Path:
    """Where the scan of `findings_of` writes its maps."""
    plan = plan_scan(lm, hash_of=cached_content_hash)
    return open_run("scan", plan.model.id, plan.settings, result="findings.json").path / "profile.safetensors"


def super_weights_of(bench: Bench, lm: LM) -> tuple[tuple[SuperWeight, ...], list[list[int]]]:
    """The proven super weights, the one with the largest effect first, and the prompts' token ids.

    Raises:
        StudfinderError: none is proven.
    """
    findings = findings_of(lm, progress=bench.progress)
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
