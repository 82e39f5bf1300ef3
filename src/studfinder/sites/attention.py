"""Hooks on attention: Q, K and V as the model's own attention function receives them."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM, HeadRows, Mixer
from studfinder.models.interface import globals_of, watch_attention
from studfinder.patches import Journal
from studfinder.sites.active import Active
from studfinder.sites.events import AttentionCall
from studfinder.sites.site import Site

_KINDS = ("query", "key", "value", "query.pre_rope", "key.pre_rope")


def attention_hooks(lm: LM, active: Active, journal: Journal) -> None:
    """Install what is needed to see attention."""
    if not active.wants(AttentionCall) and not active.replaces(*_KINDS):
        return
    rotary = _RotaryInputs(active) if active.pre_rope else None
    shared: dict[nn.Module, list[tuple[int, Mixer]]] = {}
    for layer, part in enumerate(lm.anatomy.layers):
        for mixer in part.mixers:
            if mixer.kind == "softmax":
                shared.setdefault(lm.model.get_submodule(mixer.module), []).append((layer, mixer))
                break
    for module, owners in shared.items():
        if not owners[0][1].interface:
            _own_hooks(lm, owners, module, active, journal)
            continue
        if rotary is not None and any(mixer.stage == "post-RoPE" for _, mixer in owners):
            rotary.watch(owners, module, journal)
        watch_attention(module, _Handler(owners, active, rotary, module), journal)


# --- the attention interface ------------------------------------------------------------------------------------


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
        owners: Sequence[tuple[int, Mixer]],
        active: Active,
        rotary: _RotaryInputs | None,
        module: nn.Module,
    ) -> None:
        self.owners, self.active, self.rotary = owners, active, rotary
        self.softmax, self.causal = _is_softmax(module), bool(getattr(module, "is_causal", True))

    def __call__(
        self, _module: nn.Module, query: Any, key: Any, value: Any, mask: Any, kwargs: dict
    ) -> tuple[Any, Any, Any]:
        layer, mixer = self.active.uses.owner(self.owners)
        if self.active.replacing:
            sites = (Site(kind, layer) for kind in ("query", "key", "value"))
            query, key, value = map(self.active.replaced, sites, (query, key, value))
        if self.active.wants(AttentionCall):
            query_pre, key_pre = None, None
            if self.rotary is not None and mixer.stage == "post-RoPE":
                query_pre, key_pre = self.rotary.take(layer, mixer, query, key)
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
                    mixer.stage,
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

    def watch(self, owners: Sequence[tuple[int, Mixer]], module: nn.Module, journal: Journal) -> None:
        names = globals_of(module)
        steps = [name for name in _STEPS if name in names]
        if not steps or next(iter(inspect.signature(names[steps[0]]).parameters)) != "q":
            raise StudfinderError(
                f"{type(module).__name__} hides its rotary step, so Q and K before RoPE cannot be seen"
            )

        def entering(_module: nn.Module, _args: tuple) -> None:
            self.layer, _ = self.active.uses.owner(owners)
            _RUNNING.rotary = self

        journal.hook(module, entering, before=True)
        for name in steps:
            journal.share(names, name, partial(_rotate, names[name]))

    def show(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Replace Q and K on their way into RoPE, and remember them."""
        assert self.layer is not None
        query = self.active.replaced(Site("query.pre_rope", self.layer), query)
        key = self.active.replaced(Site("key.pre_rope", self.layer), key)
        self.seen[self.layer] = (query, key)
        return query, key

    def take(
        self, layer: int, mixer: Mixer, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Q and K of this call before RoPE. Dims that a partial RoPE passes by are the same before and after."""
        self.layer = _RUNNING.rotary = None
        if layer not in self.seen:
            raise StudfinderError(f"layer {layer} ran attention without the rotary step of its own file")
        query_pre, key_pre = self.seen.pop(layer)
        return _placed(query, query_pre, mixer.turned), _placed(
            key[..., -key_pre.shape[-2] :, :], key_pre, mixer.turned
        )


def _placed(whole_BHTD: torch.Tensor, part: torch.Tensor, first: int) -> torch.Tensor:
    """The same with the dims from `first` on exchanged; a part that all heads share, as MLA's keys do, for each."""
    turned = slice(first, first + part.shape[-1])
    if part.shape == whole_BHTD.shape:
        return part
    placed = whole_BHTD.clone()
    placed[..., turned] = part
    return placed


_STEPS = ("apply_rotary_pos_emb", "apply_rotary_pos_emb_interleave")
"""What transformers calls the function, of Q and K together, in the files of its models."""


class _Running(threading.local):
    """Whose attention module this thread is in, between its entry and its attention call."""

    rotary: _RotaryInputs | None = None


_RUNNING = _Running()


def _rotate(original: Any) -> Any:
    """What stands in front of a file's rotary step: models of one architecture share the file."""

    @functools.wraps(original)
    def rotate(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if _RUNNING.rotary is not None:
            query, key = _RUNNING.rotary.show(query, key)
        return original(query, key, *args, **kwargs)

    return rotate


# --- attention outside the interface ------------------------------------------------------------------------------


def _own_hooks(
    lm: LM, owners: Sequence[tuple[int, Mixer]], module: nn.Module, active: Active, journal: Journal
) -> None:
    """Read Q, K and V where their matrices give them, before RoPE: attention of its own shows them nowhere else."""
    _, mixer = owners[0]
    rows = {"query": mixer.query, "key": mixer.key, "value": mixer.value}
    turned = mixer.stage == "pre-RoPE"
    gathered: dict[str, torch.Tensor] = {}
    by_module: dict[nn.Module, dict[str, HeadRows]] = {}
    for kind, found in rows.items():
        if found is None:  # whoever asks for it by its site's name is refused
            return
        by_module.setdefault(lm.model.get_submodule(found.ref.module), {})[kind] = found

    def after(
        parts: dict[str, HeadRows], _module: nn.Module, _args: tuple, output: torch.Tensor
    ) -> torch.Tensor | None:
        layer, _ = active.uses.owner(owners)
        changed = None
        for kind, found in parts.items():
            channels_HD = torch.tensor(found.first)[:, None] + torch.arange(found.width)
            own = output[..., channels_HD.to(output.device)].transpose(1, 2)
            new = active.replaced(Site(f"{kind}.pre_rope" if turned and kind != "value" else kind, layer), own)
            if new is not own:
                changed = output.clone() if changed is None else changed
                changed[..., channels_HD.to(output.device)] = new.transpose(1, 2)
            gathered[kind] = new
        if len(gathered) == len(rows) and active.wants(AttentionCall):
            query, key, value = (gathered[kind] for kind in rows)
            before = (query, key) if turned else (None, None)
            active.show(
                AttentionCall(layer, query, key, value, None, None, None, None, None, mixer.stage, False, *before)
            )
        if len(gathered) == len(rows):
            gathered.clear()
        return changed

    def entering(_module: nn.Module, _args: tuple) -> None:
        gathered.clear()  # of a forward pass that ended in an exception

    journal.hook(module, entering, before=True)
    for owner, parts in by_module.items():
        journal.hook(owner, partial(after, parts))
