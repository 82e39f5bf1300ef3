"""Every variant on models of every structure: it works, with all its laws, or is refused with the reason."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import Cache

import studfinder.attention as sa
from architected import PARTS, TYPES, built
from studfinder.errors import StudfinderError
from studfinder.models import LM, anatomy_of

REFUSED: dict[str, dict[str, list[str]]] = json.loads((Path(__file__).parent / "refused.json").read_text())
"""By reason and variant: the types. "every variant" stands for all."""
CHANGING = {
    "kv_shift": (sa.KVShift(), "paper"),
    "gated": (sa.Gated(kind="elementwise"), "fresh"),
    "differential": (sa.Differential(), "fresh"),
    "clipped_softmax": (sa.ClippedSoftmax(gamma=-0.02), "fresh"),
    "softpick": (sa.Softpick(), "fresh"),
    "softmax_one": (sa.SoftmaxOne(), "fresh"),
    "sink_logit": (sa.SinkLogit(), "fresh"),
    "attention_bias": (sa.AttentionBias(), "fresh"),
    "rope": (sa.RoPE(fraction=0.5), "fresh"),
    "nope": (sa.NoPE(), "fresh"),
    "alibi": (sa.ALiBi(), "fresh"),
}
IDENTITY = [sa.KVShift(), sa.Gated(), sa.Differential(init="copy")]
WHOLE = ("kv_shift", "gated", "differential", "clipped_softmax", "attention_bias", "rope")
"""Those that are also saved and run step by step everywhere; the others differ from one of them in arithmetic alone."""

UNSAVED = {
    "glmga",
    "internlm3",
    "iquestcoder",
    "pp_chart2table",
}  # its class is another type's, which transformers itself loads by this type's config

STRUCTURES = [
    "bloom",  # outside the interface
    "cohere2",  # parallel blocks, sliding layers, layers without positions, neighbouring pairs
    "deepseek_v3",  # latent attention, a mixture
    "gemma2",  # a cap on logits, sliding layers
    "gpt2",  # one fused matrix, transposed; learned positions
    "gpt_neox",  # a fused matrix, head by head
    "gpt_oss",  # sinks, biases, a mixture
    "llama4",  # complex positions
    "llava",  # a language model within another
    "mamba",  # no attention
    "mixtral",  # experts that a checkpoint names otherwise
    "olmo2",  # a norm over all heads of the queries
    "phi3",  # fused rows of q, k and v, one after another
    "qwen3_next",  # queries fused with a gate; layers of another kind
    "zamba2",  # attention that layers share
]


def reason_of(error: StudfinderError) -> str:
    """Without the names of the variant, the type and the module."""
    found = re.search(r"model: (.*?)(?: \([\w.]+\))?$", error.what) or re.search(r"models (.*?)(?: \(.*)?$", error.what)
    assert found is not None, error
    return found[1]


def reason_in_table(kind: str, name: str) -> str | None:
    for reason, by_variant in REFUSED.items():
        if kind in [*by_variant.get(name, []), *by_variant.get("every variant", [])]:
            return reason
    return None


def put_in(lm: LM, variant: sa.Variant, init: str | None) -> LM | str:
    """A converted copy, or the reason why there is none."""
    torch.manual_seed(1)
    made = LM(copy.deepcopy(lm.model), None, lm.anatomy)
    weights = [parameter.clone() for parameter in made.model.parameters()]
    try:
        return sa.convert(made, variant, init=init)
    except StudfinderError as error:
        assert all(map(torch.equal, weights, made.model.parameters()))
        return reason_of(error)


def logits(model, ids: torch.Tensor, **options: object) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False, **options).logits


def in_steps(model, ids: torch.Tensor) -> torch.Tensor:
    past: Cache | None = None
    found = []
    for first, last in ((0, 5), (5, 6), (6, 7), (7, ids.shape[1])):
        output = model(input_ids=ids[:, first:last], past_key_values=past, use_cache=True)
        past = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, dim=1)


def far(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def keeps_steps(model, ids: torch.Tensor) -> bool:
    """Whether a plain model's steps give what one pass does."""
    try:
        return far(in_steps(model, ids), logits(model, ids)) < 1e-4
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return False


def again(model, kind: str, folder: Path):
    """Saved and loaded; its weights at aligned addresses, because sums over mapped ones may round otherwise."""
    model.save_pretrained(folder)
    loaded = getattr(transformers, PARTS[kind]["auto"]).from_pretrained(folder).eval()
    for parameter in loaded.parameters():
        parameter.data = parameter.data.clone()
    return loaded


def keeps_weights(model, kind: str, ids: torch.Tensor, folder: Path) -> bool:
    """Whether a plain model, saved and loaded, gives what it did."""
    try:
        return torch.equal(logits(again(model, kind, folder), ids), logits(model, ids))
    except (NotImplementedError, RuntimeError):
        return False


def check(kind: str, tmp_path: Path) -> None:
    lm = LM(built(kind), None, anatomy_of(built(kind)))  # of another: some keep what they saw on themselves
    rows = lm.model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(0, rows, (2, 13), generator=torch.Generator().manual_seed(3))
    refused = {}
    with torch.no_grad():
        plain = logits(lm.model, ids)
        steps, saves = keeps_steps(lm.model, ids), keeps_weights(lm.model, kind, ids, tmp_path / "plain")
        for variant in IDENTITY:
            made = put_in(lm, variant, None)
            if isinstance(made, LM):
                assert torch.equal(logits(made.model, ids), plain), variant.name
        for name, (variant, init) in CHANGING.items():
            made = put_in(lm, variant, init)
            if isinstance(made, str):
                refused[name] = made
                continue
            got = logits(made.model, ids)
            assert got.isfinite().all(), name
            assert not torch.equal(got, plain), name
            if name not in WHOLE:
                continue
            if steps:
                assert far(in_steps(made.model, ids), got) < 1e-4, name
            if kind in UNSAVED:
                with pytest.raises(StudfinderError, match="could not be loaded again"):
                    made.model.save_pretrained(tmp_path / name)
                continue
            if not saves:
                continue
            loaded = again(made.model, kind, tmp_path / name)
            assert type(loaded) is type(made.model), name
            assert torch.equal(logits(loaded, ids), got), name
    assert refused == {name: reason for name in CHANGING if (reason := reason_in_table(kind, name))}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_structures(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in STRUCTURES])
def test_every_type(kind: str, tmp_path: Path) -> None:
    check(kind, tmp_path)
