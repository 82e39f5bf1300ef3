"""scan: which numbers of this model stand out, and where."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
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
from studfinder.models import LM, config_hash, content_hash, model_card
from studfinder.prove import prove as prove_candidates
from studfinder.records import Findings, ModelCard, PromptCard, RunCard, read_record, to_json
from studfinder.runs import SCORING, Progress, Run, key_of, now, run_of, versions, write_bytes, write_text
from studfinder.sites import bidirectional
from studfinder.texts import Text, default_prompts, encode
from studfinder.texts.prompts import DEFAULT_PROMPTS
from studfinder.verbs.continuations import PROMPT, continuations
from studfinder.verbs.observation import Observation, Thresholds, findings_of, profile_of


@dataclass(frozen=True)
class ScanPlan:
    """Everything that determines a scan's result, worked out before it starts."""

    lm: LM
    model: ModelCard
    prompts: PromptCard
    encoded: list[list[int]]
    thresholds: Thresholds
    bos: bool | None
    prove: bool
    iterative: bool
    settings: dict[str, Any] = field(default_factory=dict)


def plan_scan(
    lm: LM,
    *,
    prompts: Sequence[Text | str] | None = None,
    bos: bool | None = None,
    thresholds: Thresholds | None = None,
    train_length: int | None = None,
    prove: bool = True,
    iterative: bool = False,
    hash_of: Callable[[LM], str] = content_hash,
) -> ScanPlan:
    """Encode the prompts and fix the settings. Raises StudfinderError for an empty prompt or no prompts."""
    thresholds = thresholds or Thresholds()
    texts = _texts(prompts)
    prove = prove and not bidirectional(lm)  # a proof is a likelihood, which such a model has not
    encoded, begins = encode(lm, texts, bos=bos)
    card = PromptCard(
        id=DEFAULT_PROMPTS if prompts is None else "given",
        hash=hashlib.sha256(repr(encoded).encode()).hexdigest(),
        names=tuple(text.name for text in texts),
        tokens=tuple(len(ids) for ids in encoded),
        bos=begins,
    )
    model = model_card(lm, hash_of(lm), train_length)
    settings = {
        "model": model.id,
        "model_hash": model.content_hash,
        "dtype": model.dtype,
        "config": config_hash(lm),
        "device": lm.device.type,
        "prompts": card.id,
        "prompts_hash": card.hash,
        "bos": card.bos,
        "train_length": model.train_length,
        "prove": prove,
        "iterative": iterative,
        **{f"threshold_{name}": value for name, value in vars(thresholds).items()},
        "scoring": SCORING,
    }
    return ScanPlan(lm, model, card, encoded, thresholds, bos, prove, iterative, settings)


def scan(
    lm: LM,
    *,
    prompts: Sequence[Text | str] | None = None,
    bos: bool | None = None,
    thresholds: Thresholds | None = None,
    train_length: int | None = None,
    prove: bool = True,
    iterative: bool = False,
    batch_size: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Findings:
    """Find the super-weight candidates, massive activations, massive values and attention sinks of a model.

    One forward pass per prompt feeds every detector. The candidates are then proved: the model runs without each of
    them on our proof text, against matched controls (studfinder/prove.py), and is left bit for bit as it was.

    Args:
        lm: from `sf.load`.
        prompts: texts to observe; the default is our own twelve.
        bos: None leaves BOS to the tokenizer; True and False put it there or take it away.
        thresholds: when a number stands out.
        train_length: the training context for rotary facts; the default is `max_position_embeddings`.
        prove: test the candidates; without it, and in a model that is not causal, they stay candidates.
        iterative: take the candidates from the paper's own loop (zero, look again) instead of from the terms.
        batch_size: prompts a forward pass; results do not depend on it beyond rounding.
        out: a folder to write findings.json and profile.safetensors to. A finished scan with these settings that is
            there already is read, not made again.
        overwrite: make it anew, and replace what is in `out`.
        progress: told what is being done.

    Raises:
        StudfinderError: an empty prompt, no tokenizer, `out` holds another run.
    """
    plan = plan_scan(
        lm,
        prompts=prompts,
        bos=bos,
        thresholds=thresholds,
        train_length=train_length,
        prove=prove,
        iterative=iterative,
    )
    return run_scan(
        plan,
        batch_size=batch_size,
        out=None if out is None else Path(out),
        overwrite=overwrite,
        progress=progress,
        command="sf.scan(lm)",
    )[0]


def run_scan(
    plan: ScanPlan,
    *,
    batch_size: int = 1,
    out: Path | None = None,
    write: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    command: str = "",
    root: Path = Path("runs"),
) -> tuple[Findings, Path | None]:
    """Carry out a planned scan, or read it where it is finished; returns the findings, and the run folder if any.

    Args:
        write: write a run folder even without `out`, at its default place.
        root: where default places are.
    """
    if out is None and not write:
        return _scanned(plan, batch_size, progress, command)[0], None
    run = scan_run(plan, out, root)
    found = None if overwrite else run.finished()
    if found is not None:
        return read_record(Findings, found / run.result), found
    # The folder is claimed first, so that a mistake in --out costs no time.
    with run.work(overwrite=overwrite, sources=[plan.lm.source.folder]) as work:
        findings, seen = _scanned(plan, batch_size, progress, command)
        _write(work.path, run.path, findings, profile_of(seen, plan.model.train_length))
    return findings, run.path


def scan_run(plan: ScanPlan, out: Path | None = None, root: Path = Path("runs")) -> Run:
    """The run of a planned scan; nothing is written."""
    before = {name: value for name, value in plan.settings.items() if name not in ("config", "device", "scoring")}
    return run_of("scan", plan.model.id, plan.settings, result="findings.json", out=out, root=root, before=before)


def _scanned(plan: ScanPlan, batch_size: int, progress: Progress | None, command: str) -> tuple[Findings, Observation]:
    started, clock = now(), time.monotonic()
    observation = observe_model(plan, batch_size=batch_size, progress=progress)
    tested = _tested(plan, observation, progress)
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


def _tested(plan: ScanPlan, seen: Observation, progress: Progress | None) -> dict[str, Any]:
    """The super weights with their verdicts, how they were reached, the continuations and the published coordinates."""
    weights = seen.super_weights.found(plan.encoded)
    if plan.iterative:

        def rounds(number: int) -> None:
            if progress is not None:
                progress("the paper's loop", number, number)

        weights = iterative_search(plan.lm, plan.encoded, progress=rounds)
    fields: dict[str, Any] = {"super_weights": weights, "published": published_for(plan.model, weights)}
    if not plan.prove:
        return fields
    proved, proof = prove_candidates(plan.lm, weights, plan.encoded, bos=plan.bos, progress=progress)
    fields.update(super_weights=proved, proof=proof, published=published_for(plan.model, proved))
    if proof.tested:
        fields["continuation_prompt"] = PROMPT
        fields["continuations"] = continuations(plan.lm, proved[0], plan.encoded, bos=plan.bos)
    return fields


def observe_model(plan: ScanPlan, *, batch_size: int = 1, progress: Progress | None = None) -> Observation:
    """One forward pass over the prompts with every detector reading."""
    lm, at = plan.lm, plan.thresholds
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
        if progress is not None:
            progress("observing", done, len(plan.encoded))

    observation.finite_logits = observe(
        lm, plan.encoded, observation.detectors, batch_size=batch_size, progress=advance
    )
    return observation


def _write(folder: Path, place: Path, findings: Findings, profile: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    from studfinder.verbs.report import write_report

    write_bytes(folder / "profile.safetensors", lambda path: save_file(profile, path))
    write_text(folder / "findings.json", to_json(findings, indent=1))  # before it is drawn, which may fail
    write_report(folder, findings, {name: tensor.numpy() for name, tensor in profile.items()}, run=place)


def _texts(prompts: Sequence[Text | str] | None) -> tuple[Text, ...]:
    from studfinder.errors import StudfinderError

    if prompts is None:
        return default_prompts()
    if isinstance(prompts, str):
        prompts = [prompts]
    if not prompts:
        raise StudfinderError("there are no prompts", expected="at least one text")
    return tuple(
        text if isinstance(text, Text) else Text(f"prompt {number}", text) for number, text in enumerate(prompts)
    )
