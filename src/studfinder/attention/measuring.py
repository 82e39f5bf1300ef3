"""The places of a live model: what its attention modules do is seen as it runs on a few tokens."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from studfinder.attention.places import GROUPS, AttentionPlace, Heads, Pairs, hidden_in
from studfinder.attention.variant import AttentionShape
from studfinder.errors import StudfinderError
from studfinder.models.anatomy import HeadRows, Layer, Mixer
from studfinder.models.interface import attention_function, watch_attention
from studfinder.models.trace import TOKENS, configs_of
from studfinder.patches import Journal

_LOUD = 8.0
"""Queries are this much larger where attention is held against a softmax: a cap on logits shows then."""
_NEAR = 1e-3


@torch.no_grad()
def places_of(model: Any, layers: Iterable[Layer]) -> dict[str, AttentionPlace]:
    """The places of a live plain model, by module; it is run on a few tokens.

    Raises:
        StudfinderError: it has no attention, or one that is not reached through transformers' AttentionInterface.
    """
    kind = model.config.model_type
    mixers = {m.module: m for layer in layers for m in layer.mixers if m.kind == "softmax"}
    if not mixers:
        raise StudfinderError(f"{kind!r} models have no softmax attention", expected="a model with attention")
    outside = next((name for name, mixer in mixers.items() if not mixer.interface), None)
    if outside is not None:
        raise StudfinderError(
            f"attention of {kind!r} models cannot be converted: it does not go through transformers' AttentionInterface"
            f" ({outside})",
            expected="one whose queries, keys and values reach the interface",
        )
    with torch.device("cpu"), Journal(model) as journal:  # wherever it is called: a model may be in the making on meta
        for config in configs_of(model):
            if str(getattr(config, "_attn_implementation", None)).startswith(("flash", "flex")):
                journal.set(config, "_attn_implementation_internal", "eager")
        seen = {name: _Seen(model.get_submodule(name), mixer) for name, mixer in mixers.items()}
        for one in seen.values():
            one.watch(journal)
        _run(model)
        places = {name: one.place() for name, one in seen.items()}
        for one in seen.values():
            one.silent = True
        _run(model)
    return {name: seen[name].confirmed(place) for name, place in places.items()}


@torch.no_grad()
def runs_doubled(model: Any, places: Mapping[str, AttentionPlace]) -> bool:
    """Whether a model runs with every query head twice, and gives what it did when one of each is taken out again: then
    its attention counts heads by what it is given."""

    def twice(heads: Heads, _module: Any, _args: tuple, output: torch.Tensor) -> torch.Tensor:
        return output.unflatten(-1, (-1, heads.width)).repeat_interleave(2, dim=-2).flatten(-2)

    def once(dims: int, _module: Any, args: tuple) -> tuple:
        return (args[0].unflatten(-1, (-1, 2, dims)).select(-2, 0).flatten(-2),)

    plain = _run(model)
    with Journal(model) as journal:
        for name, place in places.items():
            module = model.get_submodule(name)
            if place.query is None or place.output is None:
                return False
            journal.hook(module.get_submodule(place.query.projection), partial(twice, place.query))
            output = module.get_submodule(place.output)
            journal.hook(output, partial(once, place.shape.value_dim), before=True, prepend=True)
            if hasattr(module, GROUPS):
                journal.set(module, GROUPS, 2 * getattr(module, GROUPS))
        try:
            doubled = _run(model)
        except (RuntimeError, ValueError, IndexError):  # torch's, of shapes that do not fit
            return False
    return torch.allclose(doubled, plain, rtol=_NEAR, atol=_NEAR * float(plain.abs().max()))


def _run(model: Any) -> torch.Tensor:
    """Logits of a few tokens of two texts, the end of one of which is padding."""
    embedding = model.get_input_embeddings().weight
    ids_BT = torch.randint(0, embedding.shape[0], (2, TOKENS), generator=torch.Generator().manual_seed(0))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1, -3:] = 0
    positions_BT = torch.arange(TOKENS).repeat(len(ids_BT), 1)  # given, because some models work them out from the mask
    given = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": positions_BT}
    known = inspect.signature(model.forward).parameters
    given = {name: one.to(embedding.device) for name, one in given.items() if name in known}
    return model(**given, use_cache=False).logits


def given_to(module: Any, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a module's forward pass, by name."""
    return dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | dict(kwargs)


class _Seen:
    """What one attention module does in a forward pass."""

    def __init__(self, module: Any, mixer: Mixer) -> None:
        self.module, self.mixer, self.function = module, mixer, attention_function(module)
        self.given: dict[str, Any] = {}
        self.projected: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.running = self.silent = False
        self.more: str | None = None
        self.mask, self.runs = True, 0
        self.alike: dict[str, bool] = {}

    def watch(self, journal: Journal) -> None:
        journal.hook(self.module, self.begin, before=True, with_kwargs=True)
        journal.hook(self.module, self.end)
        refs = [rows.ref for rows in (self.mixer.query, self.mixer.key, self.mixer.value) if rows is not None]
        for ref in {*refs, *([self.mixer.output] if self.mixer.output else [])}:
            if ref.parameter.startswith(f"{self.mixer.module}.") and ref.parameter.endswith(".weight"):
                path = ref.module[len(self.mixer.module) + 1 :]
                journal.hook(self.module.get_submodule(path), partial(self.project, path))
        watch_attention(self.module, self.attend, journal)

    def begin(self, module: Any, args: tuple, kwargs: dict) -> None:
        self.running, self.given = True, given_to(module, args, kwargs)
        self.runs += 1

    def end(self, _module: Any, _args: tuple, _output: Any) -> None:
        self.running = False

    def project(self, path: str, _module: Any, args: tuple, output: Any) -> torch.Tensor | None:
        if self.silent:
            return torch.zeros_like(output)
        if self.running and len(args) == 1 and isinstance(output, torch.Tensor):
            self.projected[path] = args[0], output
        return None

    def attend(self, module: Any, query: Any, key: Any, value: Any, mask: Any, keywords: dict) -> Any:
        if self.silent:
            named = (("query", query), ("key", key), ("value", value))
            self.alike = {name: torch.equal(one[0], one[1]) for name, one in named}
            return query, key, value
        handed = self.given.get("attention_mask")
        places = [one.data_ptr() if isinstance(one, torch.Tensor) else one for one in (handed, mask)]
        self.mask &= places[0] == places[1]
        plain = {name: keywords[name] for name in ("scaling", "is_causal") if name in keywords}
        given = [_LOUD * query.float(), key.float(), value.float()]
        mask = mask.float() if isinstance(mask, torch.Tensor) and mask.is_floating_point() else mask
        wide = {
            k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in keywords.items()
        }
        own = self.function(module, *given, mask, **{**wide, "dropout": 0.0})[0]
        softmax = sdpa_attention_forward(module, *given, mask, **plain)[0]
        if not torch.allclose(own, softmax, rtol=_NEAR, atol=_NEAR * float(softmax.abs().max())):
            known = {*plain, "dropout", "position_ids"}
            extra = [n for n, v in keywords.items() if n not in known and isinstance(v, torch.Tensor | float)]
            self.more = ", ".join(sorted(extra)) or "something else"
        return query, key, value

    def place(self) -> AttentionPlace:
        mixer, hidden = self.mixer, hidden_in(self.given)
        key = self.heads(mixer.key, mixer.head_dim)
        rotary, pairs, turned = self.rotary(hidden.shape[-2])
        output = None if mixer.output is None else mixer.output.module[len(mixer.module) + 1 :]
        read = self.projected.get(output) if output is not None else None
        query = self.heads(mixer.query, mixer.head_dim)
        if query is not None and self.projected[query.projection][0] is not hidden:
            query = None
        return AttentionPlace(
            shape=AttentionShape(
                heads=mixer.heads,
                kv_heads=mixer.kv_heads if key is None else len(key.first),
                head_dim=mixer.head_dim,
                hidden=hidden.shape[-1],
                values=mixer.value_dim if mixer.value_dim != mixer.head_dim else 0,
                turned=turned,
            ),
            query=query,
            key=key,
            value=self.heads(mixer.value, mixer.value_dim),
            output=output if read is not None and read[0].shape[-1] == mixer.heads * mixer.value_dim else None,
            turns=mixer.stage != "no RoPE",
            rotary=rotary,
            pairs=pairs,
            more=self.more,
            mask=self.mask,
            once=self.runs == 1 or "layer_idx" in self.given,
        )

    def confirmed(self, place: AttentionPlace) -> AttentionPlace:
        """Without heads that still tell two texts apart when their projection gives nothing: more goes into them."""
        more = [name for name, alike in self.alike.items() if not alike]
        return dataclasses.replace(place, **dict.fromkeys(more))  # type: ignore[arg-type]

    def heads(self, rows: HeadRows | None, dims: int) -> Heads | None:
        """The heads of a projection that makes every dim of them."""
        path = None if rows is None else rows.ref.module[len(self.mixer.module) + 1 :]
        if rows is None or path not in self.projected or rows.width != dims:
            return None
        first = tuple(dict.fromkeys(rows.first))  # a head may be repeated for the queries that share it
        channels = self.projected[path][1].shape[-1]
        return Heads(projection=path, first=first, width=dims, channels=channels, transposed=rows.ref.transposed)

    def rotary(self, tokens: int) -> tuple[str | None, Pairs | None, int]:
        """The argument that holds cosines and sines, how they lie, and how many dims they turn."""
        if self.mixer.stage == "no RoPE":
            return None, None, 0
        for name, value in self.given.items():
            if isinstance(value, torch.Tensor) and value.is_complex() and value.shape[-2] == tokens:
                return name, "once", 2 * value.shape[-1]
            if isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, torch.Tensor) for one in value):
                cos = value[0]
                if cos.dim() < 2 or tokens not in cos.shape[:-1]:
                    continue
                half = cos.shape[-1] // 2
                if torch.equal(cos[..., :half], cos[..., half:]):
                    return name, "halves", 2 * half
                if torch.equal(cos[..., ::2], cos[..., 1::2]):
                    return name, "neighbours", 2 * half
                return name, "once", 4 * half
        return None, None, 0
