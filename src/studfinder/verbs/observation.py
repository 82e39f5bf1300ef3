"""What one pass over the prompts showed, as findings and as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from studfinder.detectors import Detector
from studfinder.detectors.attention_sinks import AttentionSinks
from studfinder.detectors.massive_activations import MassiveActivations
from studfinder.detectors.massive_values import (
    MassiveValues,
    agreement,
    concentration,
    concentration_null,
    rotary_share,
)
from studfinder.detectors.super_weights import SuperWeights
from studfinder.errors import StudfinderError
from studfinder.models import LM, rotary_of
from studfinder.records import Findings, MassiveValueSummary, ModelCard, PromptCard, RunCard, Summary
from studfinder.records.findings import QKV
from studfinder.sites import bidirectional


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """When a number stands out. The defaults are the papers', or calibrated as the detectors' files say.

    Attributes:
        activation, activation_ratio: a massive activation exceeds both |a| and |a| / median (Sun et al. 2024).
        lam: a massive value exceeds this times its head's mean (Jin et al. 2025).
        score, share: a super-weight candidate's |x w| / median |y|, and its share of y.
        sink, sink_tokens: mean attention to the first token, over that many tokens (Gu et al. 2024).

    Raises:
        StudfinderError: a threshold that is not above 0, or not finite.
    """

    activation: float = 100.0
    activation_ratio: float = 1000.0
    lam: float = 5.0
    score: float = 50.0
    share: float = 0.5
    sink: float = 0.3
    sink_tokens: int = 64

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            most = 1.0 if name in ("share", "sink") else 1e9  # a share, or far above all that a model can show
            if not 0 < value <= most:
                raise StudfinderError(f"threshold {name}={value}", expected=f"a number above 0, at most {most:,g}")


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


def findings_of(
    seen: Observation, *, model: ModelCard, prompts: PromptCard, thresholds: Thresholds, run: RunCard
) -> Findings:
    """Statistics to records."""
    activations = seen.activations.found(seen.encoded)
    layers = [entry.layer for entry in activations]
    heads = sum(total.numel() for total in seen.sinks.totals.values())
    nonfinite = [
        *(site for detector in seen.detectors for site in detector.nonfinite()),  # type: ignore[attr-defined]
        *(() if seen.finite_logits else ("logits",)),
    ]
    summary = Summary(
        thresholds={name: float(value) for name, value in vars(thresholds).items()},
        enters=min(layers, default=None),
        leaves=max(layers) + 1 if layers else None,
        nearest_super_weight=seen.super_weights.nearest(seen.encoded),
        nearest_massive_activation=seen.activations.nearest(seen.encoded),
        nearest_massive_value=seen.values.nearest(),
        massive_values=tuple(_value_summary(seen, model, tensor) for tensor in QKV if seen.values.layers(tensor)),
        sink_heads=heads,
        bidirectional=bidirectional(seen.lm),
        unreadable=tuple(sorted(seen.super_weights.unreadable)),
    )
    return Findings(
        model=model,
        run=run,
        prompts=prompts,
        summary=summary,
        nonfinite=tuple(nonfinite),
        super_weights=seen.super_weights.found(seen.encoded),
        massive_activations=activations,
        massive_values=seen.values.found(),
        attention_sinks=seen.sinks.found(),
    )


def _value_summary(seen: Observation, model: ModelCard, tensor: str) -> MassiveValueSummary:
    values = seen.values
    layers = values.layers(tensor)
    entries = [entry for entry in values.found() if entry.tensor == tensor]
    maps = [values.norm_HD(tensor, layer) for layer in layers]
    agreements = [found for found in map(agreement, maps) if found is not None]
    overlaps = torch.tensor([found.overlap for found in agreements])
    slow = rotary_share(seen.lm, entries, model.train_length) if tensor != "value" else None
    stage = seen.lm.anatomy.stage
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
    for tensor in QKV:
        layers = seen.values.layers(tensor)
        if layers:
            profile[f"norm.{tensor}"] = _stacked([seen.values.norm_HD(tensor, layer) for layer in layers])
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
        profile["sink"] = _stacked([sinks[layer] for layer in sorted(sinks)])
        profile["sink.layers"] = torch.tensor(sorted(sinks))
    return {name: tensor.contiguous() for name, tensor in profile.items()}


def _stacked(layers: list[torch.Tensor]) -> torch.Tensor:
    """Layers as one array in fp32. Heads that were pruned from some of them are 0 there, as silent heads are."""
    sizes = [max(layer.shape[axis] for layer in layers) for axis in range(layers[0].dim())]
    stacked = torch.zeros(len(layers), *sizes)
    for row, layer in zip(stacked, layers, strict=True):
        row[tuple(slice(size) for size in layer.shape)] = layer
    return stacked
