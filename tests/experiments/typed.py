"""Experiments at their smallest settings, on tiny models of types that are made unlike each other."""

from __future__ import annotations

import functools
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from architected import built
from proving import ROW
from studfinder.experiments import EXPERIMENTS, experiment_named, plan_experiment, run_experiment
from studfinder.experiments.weights import scan_of
from studfinder.models import LM, load
from studfinder.records import Findings, Result
from studfinder.records.config import settings_of
from studfinder.sites import capture
from studfinder.studies.experiment import Bench, StudyConfig
from studfinder.texts import default_prompts, encode, proof_text

TYPES = (
    "llama",  # dense
    "gemma3_text",  # norms behind each part, two kinds of rotary angles, windows
    "qwen3_moe",  # experts in one tensor
    "deepseek_v3",  # latent attention, and experts
    "falcon_h1",  # attention and a state-space model side by side
    "zamba2",  # blocks that share one attention
    "phi3",  # Q, K, V in one matrix; gate and up too
    "gpt_neox",  # parts side by side, Q, K, V interleaved, some dims turned
    "gpt2",  # positions that are learned, matrices transposed
    "mamba",  # no attention, no feed-forward part
)
NAMED = tuple(name for name in EXPERIMENTS if not experiment_named(name).EXPERIMENT.trains)
_POSITIONS = 2048
_GROUPS = ("block", "smaller")
_LENGTHS = ("window", "length", "tokens", "repeat")


def smallest(config: StudyConfig) -> dict[str, Any]:
    """Of each count four (or the least that it may be), of each length 32, of each list the first or two."""
    found = {}
    for one in settings_of(config):
        value = getattr(config, one.name)
        if one.many:
            found[one.name] = value[: 1 if one.kind is str or one.option.bounds else 2]
        elif one.kind is int and value is not None and one.name not in _GROUPS:
            found[one.name] = max(int(one.option.least or 0), min(value, 32 if one.name in _LENGTHS else 4))
        elif one.name == "passing":  # untrained as they are, they pass no prompt
            found[one.name] = False
    return found


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Of 290 pieces, two characters or so each: prompts of a length in tokens hold words."""
    tokens = Tokenizer(models.BPE(unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+| "), "isolated")
    letters = ["?", "\n", *map(chr, range(32, 127))]
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["?", "<end>"], initial_alphabet=letters, show_progress=False
    )
    tokens.train_from_iterator((piece.text for piece in proof_text()), trainer)
    tokens.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="?", eos_token="<end>")


@functools.cache
def model(kind: str) -> LM:
    """A random model of a type with a tokenizer, and a planted weight where something writes."""
    model = built(kind, **({"n_positions": _POSITIONS} if kind == "gpt2" else {}))
    if hasattr(model.config, "max_position_embeddings"):
        model.config.max_position_embeddings = _POSITIONS  # of angles, which need no table
    lm = load(model, tokenizer())
    ids = torch.tensor([encode(lm, default_prompts()[:1])[0][0][:64]])
    for place, layer in enumerate(lm.anatomy.layers):
        for ref in layer.writers[:1] if place else ():
            site = f"down_proj.input[{place}]"
            loud = int(capture(lm, ids, [site])[site].abs().flatten(0, -2).mean(0).argmax())
            with torch.no_grad():
                lm.model.get_parameter(ref.parameter)[ref.index(ROW, loud)] = 5000.0
            return lm
    return lm


def excerpts(data: Path, folder: Path) -> Path:
    """The evaluation texts, the beginning of each."""
    for file in data.rglob("*"):
        if file.suffix in (".jsonl", ".txt", ".raw"):
            short = folder / file.relative_to(data)
            short.parent.mkdir(parents=True, exist_ok=True)
            with file.open(encoding="utf-8") as lines:
                short.write_text("".join(lines.readlines(60_000)), encoding="utf-8")
        elif file.suffix == ".json":
            shutil.copy(file, folder)
    return folder


def tried(name: str, kind: str) -> Result:
    """The result of an experiment at its smallest on a type; what it refuses, it raises.

    A weight that stands out counts as proven, whether it carries its model or not.
    """

    def scan(bench: Bench, lm: LM, *, prove: bool = True) -> tuple[Findings, Path]:
        findings, folder = scan_of(bench, lm, prove=prove)
        if prove and not findings.proven:
            first = tuple(replace(weight, verdict="proven") for weight in findings.super_weights[:1])
            findings = replace(findings, super_weights=first)
        return findings, folder

    plan = plan_experiment(name, [kind], settings=smallest(experiment_named(name).EXPERIMENT.settings("cpu")))
    with patch("studfinder.experiments.weights.scan_of", scan):
        return run_experiment(plan, loader=lambda _: model(kind))[0]
