"""What differs between two models besides their weights, and what each setting does alone.

Whether a setting changes what is computed is tried, not told by its name: the original's weights are put into a model
that is built with that one setting of the checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from studfinder.diagnosis.losses import losses_of
from studfinder.diagnosis.words import words_that_differ
from studfinder.models import LM
from studfinder.records.diagnosis import SettingDiagnosis

_BOOKS = (
    "architectures",
    "attn_implementation",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "name_or_path",
    "problem_type",
    "quantization_config",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""Settings that are about files and loading; whatever else differs is tried."""
_TOKENS = ("bos_token_id", "eos_token_id", "decoder_start_token_id")
"""Settings that say where texts begin and end."""
_ABOUT = {
    "rope": "the rotation of Q and K",
    "rotary": "the rotation of Q and K",
    "eps": "the epsilon of its norms",
    "act": "its activation function",
    "sliding": "which tokens attention sees",
    "window": "which tokens attention sees",
    "layer_types": "which tokens attention sees",
    "softcap": "how scores are capped",
    "scal": "how scores or states are scaled",
    "multiplier": "how states are scaled",
    "experts": "which experts are used",
}
"""What a setting is about, by a part of its name, in print only."""
_MOST = 16
"""Settings that are tried."""
HEAD = "output matrix"


def settings_that_differ(original: LM, made: LM, windows: Sequence[Sequence[int]]) -> list[SettingDiagnosis]:
    """What differs, what costs most first."""
    found = [*_config(original, made, windows), *_buffers(original, made)]
    found.sort(key=lambda one: -(one.kl.value if one.kl else 0.0))
    return [*found, *_tied(original, made), *words_that_differ(original.tokenizer, made.tokenizer)]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: one for part, own in value.items() for key, one in _flat(own, f"{name}.{part}".strip(".")).items()}
    return {name: value}


def _config(original: LM, made: LM, windows: Sequence[Sequence[int]]) -> Iterator[SettingDiagnosis]:
    was, now = (_flat(lm.model.config.get_text_config(decoder=True).to_dict()) for lm in (original, made))
    names = [
        name
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
        and not name.startswith((*_BOOKS, "_"))
        and name not in ("pad_token_id", "tie_word_embeddings")  # padding is not read; tied heads see `_tied`
    ]
    for number, name in enumerate(names):
        tokens = name in _TOKENS
        kl = None if tokens or number >= _MOST else _alone(original, name, now.get(name), windows)
        about = next((words for part, words in _ABOUT.items() if part in name), "")
        if tokens:
            about = "where texts begin and end"
        elif not about:
            about = "not tried" if kl is None else "what is computed" if kl.value else "nothing that is computed"
        yield SettingDiagnosis(
            name=name,
            was=_brief(was.get(name)),
            is_now=_brief(now.get(name)),
            about=about,
            computes=not tokens and (kl is None or kl.value > 0),
            counts=tokens or kl is None or kl.value > 0,
            kl=kl,
        )


def _alone(original: LM, name: str, value: Any, windows: Sequence[Sequence[int]]) -> Any:
    """The KL of the original with one setting changed, an Interval; None where no such model can be built or run."""
    try:
        other = _with_setting(original, name, value)
        found = losses_of(original, other, windows)
    except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError):
        return None  # e.g. a size: what other sizes there are is said of the weights
    return found.per_token(found.kl_WT)


def _with_setting(lm: LM, name: str, value: Any) -> LM:
    """A model of a config that differs in one setting, around the same tensors; its own are what the config makes."""
    config = copy.deepcopy(lm.model.config)
    holder: Any = config.get_text_config(decoder=True)
    first, *inner = name.split(".")
    if inner:
        whole = copy.deepcopy(getattr(holder, first)) or {}
        place = whole
        for part in inner[:-1]:
            place = place.setdefault(part, {})
        place[inner[-1]] = value
        value = whole
    holder.update({first: value})
    with torch.device("meta"):
        made = type(lm.model)._from_config(
            config, dtype=lm.model.dtype, attn_implementation=config._attn_implementation
        )
    kept = {key for key, _ in lm.model.named_buffers()} & set(lm.model.state_dict())
    for key, parameter in lm.model.named_parameters(remove_duplicate=False):
        own: Any = nn.Parameter(parameter.detach(), requires_grad=False)
        own._is_hf_initialized = True  # so that transformers leaves it alone
        owner, _, leaf = key.rpartition(".")
        made.get_submodule(owner).register_parameter(leaf, own)
    for key, buffer in list(made.named_buffers()):
        owner, _, leaf = key.rpartition(".")
        saved = key in made.state_dict()
        made.get_submodule(owner).register_buffer(leaf, torch.empty_like(buffer, device=lm.device), persistent=saved)
    made.init_weights()
    for key in kept:
        made.get_buffer(key).copy_(lm.model.get_buffer(key))
    return LM(made.eval(), lm.tokenizer, lm.anatomy, replace(lm.source), None)


def _buffers(original: LM, made: LM) -> Iterator[SettingDiagnosis]:
    """Saved tensors that are no parameters, e.g. what corrects the scores of experts."""
    was, now = (
        {name: one for name, one in lm.model.named_buffers() if name in lm.model.state_dict()}
        for lm in (original, made)
    )
    for name in was.keys() & now.keys():
        if was[name].shape != now[name].shape or not torch.equal(was[name].to(now[name].dtype), now[name]):
            yield SettingDiagnosis(
                name=name,
                was=_brief(was[name].flatten()[:3].tolist()),
                is_now=_brief(now[name].flatten()[:3].tolist()),
                about="a saved tensor that is no weight",
                computes=True,
            )


def _tied(original: LM, made: LM) -> Iterator[SettingDiagnosis]:
    def tied(lm: LM) -> bool:
        head, embedding = lm.model.get_output_embeddings(), lm.model.get_input_embeddings()
        return head is not None and getattr(head, "weight", None) is embedding.weight

    if tied(original) != tied(made):
        words = {True: "the embedding itself", False: "a matrix of its own"}
        came = "a tied head came apart" if tied(original) else "a head of its own was tied"
        was, now = words[tied(original)], words[tied(made)]
        apart = tied(original)  # then what it is now is compared with the other weights
        yield SettingDiagnosis(name=HEAD, was=was, is_now=now, about=came, computes=False, counts=not apart)


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
