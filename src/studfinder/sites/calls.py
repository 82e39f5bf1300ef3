"""Hooks that see a call of the model before anything else of it: how many rows and tokens, and which are padding."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from studfinder.models import LM
from studfinder.patches import Journal
from studfinder.sites.active import Active
from studfinder.sites.events import ModelCall


def call_hooks(lm: LM, active: Active, journal: Journal) -> None:
    """Install them on the model and on its decoder, which may be called by itself.

    A call of the model is shown once, as the model was called: wrappers hand their decoder masks that no longer say
    which tokens are padding.
    """
    if not active.wants(ModelCall):
        return
    inside = [False]

    def left(_module: nn.Module, _args: tuple, _output: Any) -> None:
        inside[0] = False

    def show(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module is lm.model:
            inside[0] = True
        elif inside[0]:
            return
        call = _call_of(lm, module, args, kwargs)
        if call is not None:
            active.show(call)

    journal.hook(lm.model, left, always_call=True)
    for module in dict.fromkeys((lm.model, lm.model.get_submodule(lm.anatomy.decoder))):
        journal.hook(module, show, before=True, with_kwargs=True)


def _call_of(lm: LM, module: nn.Module, args: tuple, kwargs: dict) -> ModelCall | None:
    signature = inspect.signature(module.forward)
    given = signature.bind_partial(*args, **kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given.update(given.pop(name, {}))
    ids, past = given.get("input_ids"), given.get("past_key_values")
    first = ids if ids is not None else given.get("inputs_embeds")
    if first is None:
        return None  # the model itself will say what is missing
    caching = given.get("use_cache")
    if caching is None:
        caching = getattr(lm.model.config.get_text_config(decoder=True), "use_cache", True)
    return ModelCall(
        batch=first.shape[0],
        tokens=first.shape[1],
        past=int(past.get_seq_length()) if past is not None else 0,
        attention_mask=given.get("attention_mask"),
        caching=bool(caching) or past is not None,
        cache=past,
        input_ids_BT=ids,
    )
