"""Hooks on attention: Q, K and V as the model's own attention function receives them."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.sites.active import Active
from studfinder.sites.events import AttentionCall
from studfinder.patches import Journal
from studfinder.sites.site import Site

_KINDS = ("query", "key", "value", "query.pre_rope", "key.pre_rope")


def attention_hooks(lm: LM, active: Active, journal: Journal) -> None:
    """Install what is needed to see attention."""
    if not active.wants(AttentionCall) and not active.replaces(*_KINDS):
        return
    modules = {
        layer: lm.model.get_submodule(part.attention)
        for layer, part in enumerate(lm.anatomy.layers)
        if part.attention is not None
    }
    if lm.anatomy.split is not None:
        for layer, module in modules.items():
            _split_hook(lm, layer, module, lm.anatomy.split, active, journal)
        return
    rotary = _RotaryInputs(active) if active.pre_rope and lm.anatomy.stage == "post-RoPE" else None
    shared: dict[nn.Module, list[tuple[int, None]]] = {}
    for layer, module in modules.items():
        shared.setdefault(module, []).append((layer, None))
    for module, owners in shared.items():
        if rotary is not None:
            rotary.watch(owners, module, journal)
        journal.put(_HANDLERS, module, _Handler(lm, owners, active, rotary, module))
        registry, name = _registry_and_name(module)
        journal.share(registry._local_mapping, name, partial(_dispatcher, registry.get(name)))


# --- the attention interface ------------------------------------------------------------------------------------

_HANDLERS: WeakKeyDictionary[nn.Module, _Handler] = WeakKeyDictionary()


def _registry_and_name(module: Any) -> tuple[Any, str]:
    """The registry the module's own file looks attention up in (most share one, a file may have its own)."""
    registry = _globals_of(module).get("ALL_ATTENTION_FUNCTIONS")
    if registry is None:
        raise StudfinderError(
            f"{type(module).__name__} does not use transformers' attention interface",
            do="Its family needs a `split` method in studfinder/models/anatomy.py",
        )
    return registry, module.config._attn_implementation or "eager"


def _dispatcher(original: Any) -> Any:
    """What stands in front of a registered attention function, under the same name, so that config, mask and kernel
    choice stay the model's own. Modules without a handler pass straight through.

    Args:
        original: None for eager: each file has its own function.
    """

    def dispatcher(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        function = original or _globals_of(module)["eager_attention_forward"]
        handler = _HANDLERS.get(module)
        if handler is not None:
            query, key, value = handler(query, key, value, mask, kwargs)
        return function(module, query, key, value, mask, *args, **kwargs)

    return dispatcher


def _globals_of(module: nn.Module) -> dict[str, Any]:
    """The globals of the file whose `forward` this module runs."""
    return inspect.unwrap(type(module).forward).__globals__


def _dense(mask: Any, query_BHTD: torch.Tensor, key_BGSD: torch.Tensor) -> torch.Tensor | None:
    """The mask as a tensor: flex attention keeps a rule (`BlockMask`) in its place."""
    rule = getattr(mask, "mask_mod", None)
    if rule is None:
        return mask
    from torch.nn.attention.flex_attention import create_mask

    rows, _, queries, _ = query_BHTD.shape
    return create_mask(rule, rows, None, queries, key_BGSD.shape[2], device=str(query_BHTD.device))


def _is_softmax(module: Any) -> bool:
    """Whether the active implementation is a plain softmax, so that scores from Q and K say what it attends to."""
    name = module.config._attn_implementation or "eager"
    return name in ("eager", "sdpa", "flex_attention") or name.startswith("flash_attention")


class _Handler:
    """What happens at one layer's attention call."""

    def __init__(
        self,
        lm: LM,
        owners: Sequence[tuple[int, None]],
        active: Active,
        rotary: _RotaryInputs | None,
        module: nn.Module,
    ) -> None:
        self.lm, self.owners, self.active, self.rotary = lm, owners, active, rotary
        self.softmax, self.causal = _is_softmax(module), bool(getattr(module, "is_causal", True))

    def __call__(self, query: Any, key: Any, value: Any, mask: Any, kwargs: dict) -> tuple[Any, Any, Any]:
        layer, _ = self.active.uses.owner(self.owners)
        if self.active.replacing:
            sites = (Site(kind, layer) for kind in ("query", "key", "value"))
            query, key, value = map(self.active.replaced, sites, (query, key, value))
        if self.active.wants(AttentionCall):
            query_pre, key_pre = self.rotary.take(layer, query, key) if self.rotary else (None, None)
            self.active.show(
                AttentionCall(
                    layer,
                    query,
                    key,
                    value,
                    _dense(mask, query, key),
                    kwargs.get("scaling"),
                    kwargs.get("softcap"),
                    kwargs.get("s_aux"),
                    kwargs.get("sliding_window"),
                    self.lm.anatomy.stage,
                    self.softmax and kwargs.get("position_bias") is None,
                    query_pre,
                    key_pre,
                    self.causal if kwargs.get("is_causal") is None else kwargs["is_causal"],
                )
            )
        return query, key, value


# --- Q and K before RoPE ----------------------------------------------------------------------------------------


class _RotaryInputs:
    """Sees what goes into `apply_rotary_pos_emb` of the model's own file, and which layer is running it."""

    def __init__(self, active: Active) -> None:
        self.layer: int | None = None
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.active = active

    def watch(self, owners: Sequence[tuple[int, None]], module: nn.Module, journal: Journal) -> None:
        names = _globals_of(module)
        if "apply_rotary_pos_emb" not in names:
            raise StudfinderError(
                f"{type(module).__name__} hides its rotary step, so Q and K before RoPE cannot be seen"
            )

        def entering(_module: nn.Module, _args: tuple) -> None:
            self.layer, _ = self.active.uses.owner(owners)
            _RUNNING.rotary = self

        journal.hook(module, entering, before=True)
        journal.share(names, "apply_rotary_pos_emb", partial(_rotate, names["apply_rotary_pos_emb"]))

    def show(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace Q and K on their way into RoPE, and remember them."""
        assert self.layer is not None
        query = self.active.replaced(Site("query.pre_rope", self.layer), query)
        key = self.active.replaced(Site("key.pre_rope", self.layer), key)
        self.seen[self.layer] = (query, key)
        return query, key

    def take(self, layer: int, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Q and K of this call before RoPE. Dims that a partial RoPE passes by are the same before and after."""
        self.layer = _RUNNING.rotary = None
        if layer not in self.seen:
            raise StudfinderError(f"layer {layer} ran attention without the rotary step of its own file")
        query_pre, key_pre = self.seen.pop(layer)
        new = key_pre.shape[-2]
        return (
            torch.cat([query_pre, query[..., query_pre.shape[-1] :]], dim=-1),
            torch.cat([key_pre, key[..., -new:, key_pre.shape[-1] :]], dim=-1),
        )


class _Running(threading.local):
    """Whose attention module this thread is in, between its entry and its attention call."""

    rotary: _RotaryInputs | None = None


_RUNNING = _Running()


def _rotate(original: Any) -> Any:
    """What stands in front of a file's rotary step: models of one architecture share the file."""

    def rotate(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if _RUNNING.rotary is not None:
            query, key = _RUNNING.rotary.show(query, key)
        return original(query, key, *args, **kwargs)

    return rotate


# --- attention outside the interface ------------------------------------------------------------------------------


def _split_hook(lm: LM, layer: int, module: Any, method: str, active: Active, journal: Journal) -> None:
    """Stand in front of the method that splits projections into heads (falcon, bloom, gpt_neo)."""
    original = getattr(module, method)
    rope = lm.anatomy.stage == "pre-RoPE"
    sites = [Site(f"{kind}.pre_rope" if rope else kind, layer) for kind in ("query", "key")] + [Site("value", layer)]
    heads_last = lm.anatomy.architecture == "falcon"  # (B,T,H,D) there, (B,H,T,D) elsewhere
    gathered: list[torch.Tensor] = []

    def turn(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(1, 2) if heads_last else tensor

    def split(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        together = isinstance(result, tuple)  # gpt_neo splits Q, K and V in three calls, in this order
        parts = []
        for part in result if together else (result,):
            parts.append(turn(active.replaced(sites[len(gathered)], turn(part))))
            gathered.append(turn(parts[-1]))
        if len(gathered) == 3:
            query, key, value = gathered
            gathered.clear()
            if active.wants(AttentionCall):
                before = (query, key) if rope else (None, None)
                stage = lm.anatomy.stage
                active.show(
                    AttentionCall(layer, query, key, value, None, None, None, None, None, stage, False, *before)
                )
        return tuple(parts) if together else parts[0]

    def entering(_module: nn.Module, _args: tuple) -> None:
        gathered.clear()  # of a forward pass that ended in an exception

    journal.hook(module, entering, before=True)
    journal.set(module, method, split)
