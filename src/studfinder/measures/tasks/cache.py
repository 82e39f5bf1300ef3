"""Scores of tasks, kept on disk so that a clean model is measured once.

A kept score is only ever given back for the same model in the same state: every byte of its weights and buffers, its
settings, its code, and the edits that the measure itself applies; and only as long as the libraries and what studfinder
scores (`SCORING`) are of the same version. Where the state cannot be known (a hook that is live
already), nothing is kept and nothing is given back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch

from studfinder.edits import Edit, edits_hash
from studfinder.errors import StudfinderError, WriteFailed
from studfinder.measures.scores import Scores
from studfinder.models import LM, content_hash, keep_private, private_folder
from studfinder.models.fingerprint import tensor_hash
from studfinder.records import from_json, to_plain
from studfinder.runs import SCORING, Steps, scored_with
from studfinder.sites.active import ACTIVE


def remembered(key: str | None, measure: Callable[[], Scores]) -> Scores:
    """The scores kept under a key, or those that `measure` gives, which are then kept. None as the key: neither."""
    if key is None:
        return measure()
    try:
        path = private_folder("tasks") / f"{key}.jsonl"
        if path.exists():
            keep_private(path)
    except OSError:
        return measure()  # only a convenience: the next run measures again
    made: list[Scores] = []

    def step() -> Any:
        made.append(measure())
        return to_plain(made[0])

    try:
        return from_json(Scores, json.dumps(Steps(path, key, scored_with()).once("scores", step)), name=str(path))
    except WriteFailed:
        return made[0]


def score_key(lm: LM, task: str, edits: Sequence[Edit] = ()) -> str | None:
    """The name under which a task's scores are kept; None where they must not be.

    Args:
        lm: the model before `edits` are applied.
        task: what determines the task's items and how they are scored, as a hash.
        edits: those that will be applied for the measure.
    """
    state = model_state(lm)
    if state is None:
        return None
    parts = {"state": state, "edits": edits_hash(edits), "task": task, "scoring": SCORING}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def model_state(lm: LM) -> str | None:
    """A hash of everything about a live model that its output depends on; None if that cannot be known.

    Edits of weights change the weights' bytes. Edits of activations do not: they live in hooks, and what a hook does
    cannot be told from outside, so a model with any hook has no known state.
    """
    if lm.model.training or _hooked(lm):
        return None
    try:
        weights = content_hash(lm)
    except StudfinderError:  # offloaded: there are no bytes to read
        return None
    parts = {
        "weights": weights,
        "buffers": {
            name: f"{buffer.dtype} {tuple(buffer.shape)} {tensor_hash(buffer).hex()}"
            for name, buffer in lm.model.named_buffers()
        },
        "config": lm.model.config.to_dict(),
        "generation": lm.model.generation_config.to_dict() if lm.model.generation_config else None,
        "modules": {name: _settings(module) for name, module in lm.model.named_modules()},
        "attention": _attention(lm),
        "tokenizer": _tokenizer_hash(lm),
        "device": str(lm.device),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _hooked(lm: LM) -> bool:
    """Whether anything runs inside the model's forward pass that is not its own code."""
    if lm.model in ACTIVE:  # those of attention are no hooks of modules
        return True
    for module in lm.model.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            return True
        if getattr(module, "parametrizations", None):
            return True
    return False


def _attention(lm: LM) -> str:
    """The function that attention goes through, by name: a wrapped one has another."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    name = lm.model.config._attn_implementation or "eager"
    function = ALL_ATTENTION_FUNCTIONS.get(name)
    return f"{name} {getattr(function, '__module__', '')}.{getattr(function, '__qualname__', function)}"


def _settings(module: torch.nn.Module) -> dict[str, Any]:
    """A module's class and its plain settings, e.g. the scaling of an attention layer."""
    plain = {
        name: repr(value)
        for name, value in vars(module).items()
        if isinstance(value, bool | int | float | str) or is_dataclass(value)
    }
    return {"class": f"{type(module).__module__}.{type(module).__qualname__}", **plain}


def _tokenizer_hash(lm: LM) -> str:
    tokenizer = lm.tokenizer
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256((text + special).encode()).hexdigest()
