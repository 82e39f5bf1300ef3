"""scan: which numbers of this model stand out, and where."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from studfinder.detectors import Detector, observe
from studfinder.detectors.attention_sinks import AttentionSinks
from studfinder.detectors.iterative import iterative_search
from studfinder.detectors.massive_activations import MassiveActivations
from studfinder.detectors.massive_values import (
    TENSORS,
    MassiveValues,
    agreement,
    concentration,
    concentration_null,
    rotary_share,
)
from studfinder.detectors.published import published_for
from studfinder.detectors.super_weights import SuperWeights
from studfinder.models import LM, content_hash, model_card, rotary_of
from studfinder.prove import prove as prove_candidates
from studfinder.records import Findings, MassiveValueSummary, ModelCard, PromptCard, RunCard, Summary, to_json
from studfinder.runs import key_of, now, open_run, versions, write_bytes, write_text
from studfinder.texts import Text, default_prompts, encode
from studfinder.texts.prompts import DEFAULT_PROMPTS
from studfinder.verbs.continuations import PROMPT, continuations

Progress = Callable[[str, int, int], Any]
"""Told (what is being done, how many are done, of how many)."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a number stands out. The defaults are the papers', or calibrated as the detectors' files say.

    Attributes:
        activation, activation_ratio: a massive activation exceeds both |a| and |a| / median (Sun et al. 2024).
        lam: a massive value exceeds this times its head's mean (Jin et al. 2025).
        score, share: a super-weight candidate's |x w| / median |y|, and its share of y.
        sink, sink_tokens: mean attention to the first token, over that many tokens (Gu et al. 2024).
    """

    activation: float = 100.0
    activation_ratio: float = 1000.0
    lam: float = 5.0
    score: float = 50.0
    share: float = 0.5
    sink: float = 0.3
    sink_tokens: int = 64


@dataclass
class Observation:
    """What the detectors saw in one pass over the prompts."""

    lm: LM
    encoded: list[list[int]]
    super_weights: SuperWeights
    activations: MassiveActivations
    values: MassiveValues
    sinks: AttentionSinks
    finite_logits: bool = True

    @property
    def detectors(self) -> tuple[Detector, ...]:
        return self.super_weights, self.activations, self.values, self.sinks


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
        "prompts": card.id,
        "prompts_hash": card.hash,
        "bos": card.bos,
        "train_length": model.train_length,
        "prove": prove,
        "iterative": iterative,
        **{f"threshold_{name}": value for name, value in vars(thresholds).items()},
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
        prove: test the candidates; without it they stay candidates.
        iterative: take the candidates from the paper's own loop (zero, look again) instead of from the terms.
        batch_size: prompts a forward pass; results do not depend on it beyond rounding.
        out: a folder to write findings.json and profile.safetensors to.
        overwrite: replace another run in `out`.
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
) -> tuple[Findings, Path | None]:
    """Carry out a planned scan; returns the findings and the run folder, if one was written.

    Args:
        write: write a run folder even without `out`, at its default place.
    """
    folder = None
    if out is not None or write:
        # The folder is claimed first, so that a mistake in --out costs no time.
        folder = open_run("scan", plan.model.id, plan.settings, result="findings.json", out=out, overwrite=overwrite)
    started, clock = now(), time.monotonic()
    observation = observe_model(plan, batch_size=batch_size, progress=progress)
    tested = _tested(plan, observation, progress)
    run = RunCard(
        verb="scan",
        key=folder.key if folder else key_of(plan.settings),
        settings=plan.settings,
        command=command,
        started=started,
        seconds=time.monotonic() - clock,
        device=str(plan.lm.device),
        versions=versions(),
    )
    findings = replace(findings_of(plan, observation, run), **tested)
    if folder is not None:
        _write(folder.path, findings, profile_of(observation, plan.model.train_length))
    return findings, folder.path if folder else None


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


def findings_of(plan: ScanPlan, seen: Observation, run: RunCard) -> Findings:
    """Statistics to records."""
    activations = seen.activations.found(plan.encoded)
    layers = [entry.layer for entry in activations]
    heads = sum(total.numel() for total in seen.sinks.totals.values())
    nonfinite = [
        *(site for detector in seen.detectors for site in detector.nonfinite()),  # type: ignore[attr-defined]
        *(() if seen.finite_logits else ("logits",)),
    ]
    summary = Summary(
        thresholds={name: float(value) for name, value in vars(plan.thresholds).items()},
        enters=min(layers, default=None),
        leaves=max(layers) + 1 if layers else None,
        nearest_super_weight=seen.super_weights.nearest(plan.encoded),
        nearest_massive_activation=seen.activations.nearest(plan.encoded),
        nearest_massive_value=seen.values.nearest(),
        massive_values=tuple(_value_summary(plan, seen, tensor) for tensor in TENSORS if seen.values.layers(tensor)),
        sink_heads=heads,
        unreadable=tuple(sorted(seen.super_weights.unreadable)),
    )
    return Findings(
        model=plan.model,
        run=run,
        prompts=plan.prompts,
        summary=summary,
        nonfinite=tuple(nonfinite),
        super_weights=seen.super_weights.found(plan.encoded),
        massive_activations=activations,
        massive_values=seen.values.found(),
        attention_sinks=seen.sinks.found(),
    )


def _value_summary(plan: ScanPlan, seen: Observation, tensor: str) -> MassiveValueSummary:
    values = seen.values
    layers = values.layers(tensor)
    entries = [entry for entry in values.found() if entry.tensor == tensor]
    maps = [values.norm_HD(tensor, layer) for layer in layers]
    agreements = [found for found in map(agreement, maps) if found is not None]
    overlaps = torch.tensor([found.overlap for found in agreements])
    slow = rotary_share(plan.lm, entries, plan.model.train_length) if tensor != "value" else None
    stage = plan.lm.anatomy.stage
    return MassiveValueSummary(
        tensor=tensor,
        stage="no RoPE" if tensor == "value" else stage,
        entries=len(entries),
        layers_with=len({entry.layer for entry in entries}),
        layers=len(layers),
        overlap=float(overlaps.median()) if len(overlaps) else None,
        agreeing_layers=sum(found.p < 0.05 for found in agreements),
        concentration=float(torch.cat([concentration(m) for m in maps]).median()),
        concentration_null=concentration_null(maps[0].shape[1]),
        slow_share=slow.share if slow else None,
        slow_base=slow.base_rate if slow else None,
    )


def profile_of(seen: Observation, train_length: int) -> dict[str, torch.Tensor]:
    """Arrays from which every figure can be redrawn, and which can weigh a quantiser.

    `norm.query` (L,H,D) and its kin hold M, with `norm.query.layers` naming the layers of models that have some
    without attention; `rotary.never_turns` (L,D) is 1 where a dim never completes a turn within `train_length` tokens
    and 2 in layers without RoPE; `residual.*` (L+1, ...) start at the embedding; `spike.*` (L,) are the FFN traces.
    """
    profile: dict[str, torch.Tensor] = {}
    for tensor in TENSORS:
        layers = seen.values.layers(tensor)
        if layers:
            profile[f"norm.{tensor}"] = torch.stack([seen.values.norm_HD(tensor, layer) for layer in layers]).float()
            profile[f"norm.{tensor}.layers"] = torch.tensor(layers)
    rotary = [rotary_of(seen.lm, layer) for layer in seen.values.layers("query")]
    if any(rotary):
        none = (2,) * seen.lm.anatomy.head_dim
        flags = [none if facts is None else facts.never_turns(train_length) for facts in rotary]
        profile["rotary.never_turns"] = torch.tensor(flags, dtype=torch.uint8)
    residual = [seen.activations.layers[layer] for layer in sorted(seen.activations.layers)]
    k = max(len(layer.top.entries) for layer in residual)
    values, where = torch.full((len(residual), k), float("nan")), torch.full((len(residual), k, 3), -1)
    for row, layer in enumerate(residual):
        for column, (value, coordinates) in enumerate(layer.top.entries):
            values[row, column] = value
            where[row, column] = torch.tensor(coordinates)
    profile["residual.top"] = values
    profile["residual.top.where"] = where  # prompt, position, dim
    profile["residual.median"] = torch.tensor([layer.magnitudes.median for layer in residual])
    for name, spikes in (
        ("input", seen.super_weights.input_spikes),
        ("output", seen.super_weights.output_spikes),
    ):
        profile[f"spike.{name}"] = torch.tensor([spike.value for spike in spikes])
        profile[f"spike.{name}.where"] = torch.tensor([(s.prompt, s.position, s.channel) for s in spikes])
    profile["spike.output.median"] = torch.tensor([h.median for h in seen.super_weights.magnitudes])
    sinks = {layer: strength for layer in seen.sinks.totals if (strength := seen.sinks.strength_H(layer)) is not None}
    if sinks:
        profile["sink"] = torch.stack([sinks[layer] for layer in sorted(sinks)]).float()
        profile["sink.layers"] = torch.tensor(sorted(sinks))
    return {name: tensor.contiguous() for name, tensor in profile.items()}


def _write(folder: Path, findings: Findings, profile: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    from studfinder.verbs.report import write_report

    write_bytes(folder / "profile.safetensors", lambda path: save_file(profile, path))
    write_report(folder, findings, {name: tensor.numpy() for name, tensor in profile.items()})
    write_text(folder / "findings.json", to_json(findings, indent=1))  # last: it marks the run as complete


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
