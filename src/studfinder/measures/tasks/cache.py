"""Scores of tasks, kept on disk so that a clean model is measured once.

A kept score is only ever given back for the same model in the same state: every byte of its weights and buffers, its
settings, its code, and the edits that the measure itself applies. Where the state cannot be known (a hook that is live
already), nothing is kept and nothing is given back.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from studfinder.edits import Edit, edits_hash
from studfinder.errors import StudfinderError
from studfinder.measures.scores import Scores
from studfinder.models import LM, cache_folder, content_hash
from studfinder.runs import versions, write_text
from studfinder.sites.tap import _ACTIVE


def remembered(key: str | None, measure: Callable[[], Scores]) -> Scores:
    """The scores kept under a key, or those that `measure` gives, which are then kept. None as the key: neither."""
    if key is None:
        return measure()
    path = cache_folder() / "tasks" / f"{key}.json"
    found = _read(path)
    if found is not None:
        return found
    scores = measure()
    _write(path, scores)
    return scores


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
    parts = {"state": state, "edits": edits_hash(edits), "task": task, "code": _own_code(), **versions()}
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
        "buffers": {name: _bytes_hash(buffer) for name, buffer in lm.model.named_buffers()},
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
    if lm.model in _ACTIVE:  # those of attention are no hooks of modules
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


def _bytes_hash(tensor: torch.Tensor) -> str:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{tensor.dtype} {tuple(tensor.shape)} {hashlib.sha256(flat.numpy().data).hexdigest()}"


def _tokenizer_hash(lm: LM) -> str:
    tokenizer = lm.tokenizer
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256((text + special).encode()).hexdigest()


def _own_code() -> str:
    """A hash of the code that scores, so that a repaired error does not live on in old entries."""
    from studfinder.measures import likelihood
    from studfinder.measures.tasks import adapter, run
    from studfinder.texts import encoding, pairs

    parts = (likelihood, adapter, run, encoding, pairs)
    return hashlib.sha256("".join(inspect.getsource(part) for part in parts).encode()).hexdigest()


# --- on disk --------------------------------------------------------------------------------------------------------

_SCORES = TypeAdapter(Scores)


def _read(path: Path) -> Scores | None:
    try:
        text = path.read_text("utf-8")
        entry = json.loads(text)
        body = json.dumps(entry["scores"], sort_keys=True)
        if hashlib.sha256(body.encode()).hexdigest() != entry["sha256"]:
            raise ValueError("its checksum is wrong")
        return _SCORES.validate_json(body)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
        warnings.warn(f"kept scores {path} are damaged ({reason}) and are measured again", stacklevel=3)
        return None


def _write(path: Path, scores: Scores) -> None:
    body = json.dumps(asdict(scores), sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"sha256": digest, "scores": json.loads(body)}))
    except (OSError, StudfinderError):
        pass  # only a convenience: the next run measures again
