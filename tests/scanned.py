"""A made-up scan of a small model, for tests of what is done with findings. Nothing here was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from studfinder.models import LM, content_hash
from studfinder.records import (
    AttentionSink,
    Effect,
    Findings,
    Interval,
    MassiveActivation,
    MassiveValue,
    MassiveValueSummary,
    ModelCard,
    PromptCard,
    RunCard,
    Summary,
    SuperWeight,
)

L, H, G, D = 6, 4, 2, 16
_THRESHOLDS = {
    "activation": 100.0,
    "activation_ratio": 1000.0,
    "lam": 5.0,
    "score": 50.0,
    "share": 0.5,
    "sink": 0.3,
    "sink_tokens": 64.0,
}


def a_scan(*, found: bool = True) -> tuple[Findings, dict[str, np.ndarray]]:
    """Findings and profile; with `found=False` nothing passes a threshold."""
    activation = MassiveActivation(
        layer=2,
        dim=7,
        prompt=0,
        position=0,
        token="<s>",
        token_class="first",
        value=20_000.0 if found else 12.0,
        median=2.0,
        ratio=10_000.0 if found else 6.0,
    )
    value = MassiveValue(layer=1, tensor="query", head=0, dim=9, norm=80.0, ratio=8.0 if found else 3.0)
    weights = tuple(_weight(number) for number in range(15))
    summaries = tuple(
        MassiveValueSummary(
            tensor=tensor,
            stage="post-RoPE",
            entries=1 if found and tensor == "query" else 0,
            layers_with=1 if found and tensor == "query" else 0,
            layers=L,
            overlap=0.4,
            agreeing_layers=1,
            concentration=0.6,
            concentration_null=0.8,
            slow_share=1.0 if found and tensor == "query" else None,
            slow_base=0.4 if found and tensor == "query" else None,
        )
        for tensor in ("query", "key", "value")
    )
    findings = Findings(
        model=_MODEL,
        run=RunCard(verb="scan", key="0" * 10, command="studfinder scan a-model", settings={"bos": True}),
        prompts=PromptCard.of("some-prompts", ("one", "two"), (range(100), range(50)), bos=True),
        summary=Summary(
            thresholds=_THRESHOLDS,
            enters=2 if found else None,
            leaves=5 if found else None,
            nearest_super_weight=weights[-1],
            nearest_massive_activation=activation,
            nearest_massive_value=value,
            massive_values=summaries,
            sink_heads=L * H,
            pictured=("<s>", *(f" word{n}" for n in range(1, 12))),
        ),
        super_weights=weights if found else (),
        massive_activations=(activation,) if found else (),
        massive_values=(value,) if found else (),
        attention_sinks=(AttentionSink(layer=3, head=1, strength=0.8),) if found else (),
    )
    return findings, _profile(found)


_MODEL = ModelCard(
    id="a-model",
    origin="a local folder",
    architecture="llama",
    content_hash="2" * 64,
    dtype="float32",
    layers=L,
    hidden=64,
    heads=H,
    kv_heads=G,
    head_dim=D,
    intermediate=128,
    vocabulary=1000,
    parameters=1_000_000,
    train_length=2048,
    train_length_source="max_position_embeddings",
)


def _weight(number: int) -> SuperWeight:
    row, col = 7 + number, 30 + number
    return SuperWeight(
        layer=2,
        parameter="model.layers.2.mlp.down_proj.weight",
        index=(row, col),
        checkpoint_tensor=None,
        checkpoint_index=None,
        expert=None,
        row=row,
        col=col,
        value=5.0 / (1 + number),
        input_spike=3000.0,
        output_spike=20_000.0 / (1 + number),
        share=0.75,
        score=20_000.0 / (1 + number) ** 2,
        prompt=0,
        position=0,
        token="<s>",
    )


def _profile(found: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    profile: dict[str, np.ndarray] = {}
    for name, heads in (("query", H), ("key", G), ("value", G)):
        profile[f"norm.{name}"] = random.uniform(5, 15, (L, heads, D)).astype(np.float32)
        profile[f"norm.{name}.layers"] = np.arange(L)
    never = np.zeros((L, D), np.uint8)
    never[:, 5:8] = never[:, 13:16] = 1
    profile["rotary.never_turns"] = never
    top = np.sort(random.uniform(3, 30, (L + 1, 8)).astype(np.float32))[:, ::-1].copy()
    where = random.integers(0, 60, (L + 1, 8, 3))
    if found:
        profile["norm.query"][1, 0, 9] = 800.0
        top[3:6, 0] = 20_000.0
        where[3:6, 0] = (0, 0, 7)
    profile["residual.top"], profile["residual.top.where"] = top, where
    profile["residual.median"] = np.linspace(0.1, 2, L + 1).astype(np.float32)
    profile["residual.picture"] = random.normal(0, 1, (12, 64)).astype(np.float32)
    if found:
        profile["residual.picture"][0, 7] = 20_000.0
        profile["residual.picture"][0, 33] = -4_000.0
    profile["residual.picture.where"] = np.array([2, 0, 0])
    for name in ("input", "output"):
        spike = random.uniform(5, 50, L).astype(np.float32)
        spike[2] = -20_000.0 if found else 40.0
        profile[f"spike.{name}"] = spike
        profile[f"spike.{name}.where"] = random.integers(0, 60, (L, 3))
    profile["spike.output.median"] = np.full(L, 0.5, np.float32)
    profile["sink"] = random.uniform(0, 0.8 if found else 0.2, (L, H)).astype(np.float32)
    profile["sink.layers"] = np.arange(L)
    return profile


_INTERVAL = Interval(value=1.0, low=0.9, high=1.1, level=0.95, n=16, method="made up")
EFFECT = Effect(kl=_INTERVAL, perplexity_ratio=_INTERVAL)
"""What a proven weight has."""


def findings_for(lm: LM, places: Sequence[tuple[str, tuple[int, ...], str]]) -> Findings:
    """Findings of a live model that hold just these weights.

    Args:
        places: parameter, index and verdict; the layer is the number in the parameter's name.
    """
    findings, _ = a_scan()
    weights = tuple(
        replace(
            findings.super_weights[0],
            layer=next(int(part) for part in name.split(".") if part.isdigit()),
            parameter=name,
            index=index,
            row=index[-2],
            col=index[-1],
            expert=index[0] if len(index) == 3 else None,
            value=float(lm.model.get_parameter(name).detach()[index]),
            effect=EFFECT,
            verdict=verdict,
        )
        for name, index, verdict in places
    )
    card = replace(findings.model, id=lm.source.id, content_hash=content_hash(lm), dtype=str(lm.dtype).split(".")[1])
    empty = {"massive_activations": (), "massive_values": (), "attention_sinks": ()}
    return replace(findings, model=card, super_weights=weights, **empty)
