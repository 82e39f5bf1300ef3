"""Hooks on attention: Q, K and V as the model's own attention function receives them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from studfinder.models import LM, HeadRows, Mixer
from studfinder.models.interface import watch_attention
from studfinder.patches import Journal
from studfinder.sites.active import Active
from studfinder.sites.events import AttentionCall
from studfinder.sites.rotary_inputs import RotaryInputs
from studfinder.sites.site import Site

_KINDS = ("query", "key", "value", "query.pre_rope", "key.pre_rope")


def attention_hooks(lm: LM, active: Active, journal: Journal) -> None:
    """Install what is needed to see attention."""
    if not active.wants(AttentionCall) and not active.replaces(*_KINDS):
        return
    rotary = RotaryInputs(active) if active.pre_rope else None
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
        rotary: RotaryInputs | None,
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
                query_pre, key_pre = self.rotary.take(query, key)
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
