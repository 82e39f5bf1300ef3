"""Experiments at their smallest settings, on tiny models of types that are made unlike each other."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from architected import FOLDER, built
from proving import ROW
from studfinder.experiments import EXPERIMENTS, experiment_named, plan_experiment, run_experiment
from studfinder.models import LM, load
from studfinder.records.config import settings_of
from studfinder.studies.experiment import StudyConfig
from studfinder.texts import proof_text

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
    return found


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Of 290 pieces, two characters or so each: prompts of a length in tokens hold words."""
    tokens = Tokenizer(models.BPE(unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+| "), "isolated")
    letters = ["?", "\n", *map(chr, range(32, 127))]
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["?", "<end>"], initial_alphabet=letters, show_progress=False)
    tokens.train_from_iterator((piece.text for piece in proof_text()), trainer)
    tokens.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="?", eos_token="<end>")


@functools.cache
def model(kind: str) -> LM:
    """A random model of a type with a tokenizer, and a planted weight where something writes."""
    config = json.loads((FOLDER / f"{kind}.json").read_text())
    longer = {name: _POSITIONS for name in ("max_position_embeddings", "n_positions") if name in config}
    lm = load(built(kind, **longer), tokenizer())
    ref = next((ref for layer in lm.anatomy.layers[1:] for ref in layer.writers), None)
    if ref is not None:
        with torch.no_grad():
            lm.model.get_parameter(ref.parameter)[ref.index(ROW, 7)] = 2000.0
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


def tried(name: str, kind: str) -> Any:
    """The result of an experiment at its smallest on a type; what it refuses, it raises."""
    settings = smallest(experiment_named(name).EXPERIMENT.settings("cpu"))
    plan = plan_experiment(name, [kind], settings=settings)
    return run_experiment(plan, loader=lambda _: model(kind))[0]
