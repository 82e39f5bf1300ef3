"""scan: which numbers of this model stand out, and where."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from studfinder.detectors import observe
from studfinder.detectors.attention_sinks import AttentionSinks
from studfinder.detectors.iterative import iterative_search
from studfinder.detectors.massive_activations import MassiveActivations
from studfinder.detectors.massive_values import MassiveValues
from studfinder.detectors.published import published_for
from studfinder.detectors.super_weights import SuperWeights
from studfinder.errors import StudfinderError
from studfinder.models import LM, cached_content_hash, config_hash, content_hash, model_card
from studfinder.prove import prove as prove_candidates
from studfinder.records import Findings, ModelCard, PromptCard, RunCard, read_record, to_json
from studfinder.records.config import identity, takes
from studfinder.runs import SCORING, Run, key_of, now, run_of, versions, write_bytes, write_text
from studfinder.sites import bidirectional
from studfinder.texts import Text, default_prompts, encode
from studfinder.texts.prompts import DEFAULT_PROMPTS, read_prompts
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.continuations import PROMPT, continuations
from studfinder.verbs.load import load_as
from studfinder.verbs.observation import Observation, Thresholds, findings_of, profile_of


@dataclass(frozen=True)
class ScanPlan:
    """Everything that determines a scan's result, worked out before it starts."""

    lm: LM
    model: ModelCard
    prompts: PromptCard
    encoded: list[list[int]]
    thresholds: Thresholds
    prove: bool
    config: ScanConfig
    settings: dict[str, Any] = field(default_factory=dict)


def plan_scan(model: Any, config: ScanConfig, hash_of: Callable[[LM], str] | None = None) -> ScanPlan:
    """Load the model where it is a name, encode the prompts and fix the settings.

    Args:
        hash_of: how the weights' hash is found; the default remembers that of a model it has just loaded.

    Raises:
        StudfinderError: an empty prompt, no prompts, or what `load` raises.
    """
    thresholds = config.thresholds or Thresholds()
    if config.lam is not None:
        thresholds = replace(thresholds, lam=config.lam)
    texts = _texts(config)
    hash_of = hash_of or (content_hash if isinstance(model, LM) else cached_content_hash)
    lm = load_as(model, config)
    encoded, begins = encode(lm, texts, bos=config.bos)
    prompts = PromptCard(
        id=DEFAULT_PROMPTS if config.prompts is None and not config.prompt else "given",
        hash=hashlib.sha256(repr(encoded).encode()).hexdigest(),
        names=tuple(text.name for text in texts),
        tokens=tuple(len(ids) for ids in encoded),
        bos=begins,
    )
    card = model_card(lm, hash_of(lm), config.train_length)
    prove = config.prove and not bidirectional(lm)  # a proof is a likelihood, which such a model has not
    settings = {
        **identity(config),
        "model": card.id,
        "model_hash": card.content_hash,
        "dtype": card.dtype,
        "config": config_hash(lm),
        "device": lm.device.type,
        "prompts": prompts.id,
        "prompts_hash": prompts.hash,
        "bos": prompts.bos,
        "train_length": card.train_length,
        "prove": prove,
        **{f"threshold_{name}": value for name, value in vars(thresholds).items()},
        "scoring": SCORING,
    }
    return ScanPlan(lm, card, prompts, encoded, thresholds, prove, config, settings)


@takes(ScanConfig)
def scan(model: LM | str | os.PathLike[str], config: ScanConfig) -> Findings:
    """Find the super-weight candidates, massive activations, massive values and attention sinks of a model.

    One forward pass per prompt feeds every detector. The candidates are then proved: the model runs without each of
    them on our proof text, against matched controls (studfinder/prove.py), and is left bit for bit as it was.

    Args:
        model: from `sf.load`, or what it takes.
        config: how; or its fields as keywords. With `out`, findings.json and profile.safetensors are written there.
            Results do not depend on `batch_size` beyond rounding.

    Raises:
        StudfinderError: an empty prompt, no tokenizer, `out` holds another run.
    """
    return run_scan(plan_scan(model, config), command="sf.scan(lm)")[0]


def run_scan(
    plan: ScanPlan, *, write: bool = False, command: str = "", root: Path = Path("runs")
) -> tuple[Findings, Path | None]:
    """Carry out a planned scan, or read it where it is finished; returns the findings, and the run folder if any.

    Args:
        write: write a run folder even without `out`, at its default place.
        root: where default places are.
    """
    config = plan.config
    if config.out is None and not write:
        return _scanned(plan, command)[0], None
    run = scan_run(plan, root)
    found = None if config.overwrite else run.finished()
    if found is not None:
        return read_record(Findings, found / run.result), found
    # The folder is claimed first, so that a mistake in --out costs no time.
    with run.work(overwrite=config.overwrite, sources=[plan.lm.source.folder]) as work:
        findings, seen = _scanned(plan, command)
        _write(work.path, run.path, findings, profile_of(seen, plan.model.train_length))
    return findings, run.path


def scan_run(plan: ScanPlan, root: Path = Path("runs")) -> Run:
    """The run of a planned scan; nothing is written."""
    before = {name: value for name, value in plan.settings.items() if name not in ("config", "device", "scoring")}
    out = plan.config.folder
    return run_of("scan", plan.model.id, plan.settings, result="findings.json", out=out, root=root, before=before)


def _scanned(plan: ScanPlan, command: str) -> tuple[Findings, Observation]:
    started, clock = now(), time.monotonic()
    observation = observe_model(plan)
    tested = _tested(plan, observation)
    run = RunCard(
        verb="scan",
        key=key_of(plan.settings),
        settings=plan.settings,
        command=command,
        started=started,
        seconds=time.monotonic() - clock,
        device=str(plan.lm.device),
        versions=versions(),
    )
    found = findings_of(observation, model=plan.model, prompts=plan.prompts, thresholds=plan.thresholds, run=run)
    return replace(found, **tested), observation


def _tested(plan: ScanPlan, seen: Observation) -> dict[str, Any]:
    """The super weights with their verdicts, how they were reached, the continuations and the published coordinates."""
    progress, bos = plan.config.progress, plan.config.bos
    weights = seen.super_weights.found(plan.encoded)
    if plan.config.iterative:

        def rounds(number: int) -> None:
            progress("the paper's loop", number, number)

        weights = iterative_search(plan.lm, plan.encoded, progress=rounds)
    fields: dict[str, Any] = {"super_weights": weights, "published": published_for(plan.model, weights)}
    if not plan.prove:
        return fields
    proved, proof = prove_candidates(plan.lm, weights, plan.encoded, bos=bos, progress=progress)
    fields.update(super_weights=proved, proof=proof, published=published_for(plan.model, proved))
    if proof.tested:
        fields["continuation_prompt"] = PROMPT
        fields["continuations"] = continuations(plan.lm, proved[0], plan.encoded, bos=bos)
    return fields


def observe_model(plan: ScanPlan) -> Observation:
    """One forward pass over the prompts with every detector reading."""
    lm, at, progress = plan.lm, plan.thresholds, plan.config.progress
    observation = Observation(
        lm,
        plan.encoded,
        SuperWeights(lm, min_score=at.score, min_share=at.share),
        MassiveActivations(lm, absolute=at.activation, relative=at.activation_ratio),
        MassiveValues(lm, lam=at.lam),
        AttentionSinks(lm, threshold=at.sink, tokens=at.sink_tokens),
    )
    done = 0

    def advance(prompts: int) -> None:
        nonlocal done
        done += prompts
        progress("observing", done, len(plan.encoded))

    observation.finite_logits = observe(
        lm, plan.encoded, observation.detectors, batch_size=plan.config.batch_size, progress=advance
    )
    return observation


def _write(folder: Path, place: Path, findings: Findings, profile: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    from studfinder.verbs.report import write_report

    write_bytes(folder / "profile.safetensors", lambda path: save_file(profile, path))
    write_text(folder / "findings.json", to_json(findings, indent=1))  # before it is drawn, which may fail
    write_report(folder, findings, {name: tensor.numpy() for name, tensor in profile.items()}, run=place)


def _texts(config: ScanConfig) -> tuple[Text, ...]:
    """The prompts given, or our own."""
    given: list[Text | str] = list(config.prompt)
    if isinstance(config.prompts, Path):
        given += read_prompts(config.prompts)
    elif config.prompts is not None:
        given += [config.prompts] if isinstance(config.prompts, str) else config.prompts
    elif not given:
        return default_prompts()
    if not given:
        raise StudfinderError("there are no prompts", expected="at least one text")
    return tuple(one if isinstance(one, Text) else Text(f"prompt {number}", one) for number, one in enumerate(given))
