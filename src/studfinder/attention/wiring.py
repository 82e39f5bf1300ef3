"""The parts of variants in a live attention module: around its own forward pass, and hooked into its projections.

    project -> [keys and values: mixed] [queries: doubled] -> norm, rotate, cache, attention function
            -> [queries: subtracted] [output: gated] -> W_o

The forward pass stays the architecture's own, so a model in which every part is at an identity start computes what the
plain one computes, bit for bit.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from typing import Any

import torch
from transformers import Cache

from studfinder.attention.kv_shift.cache import RawRows, shifted_layer
from studfinder.attention.kv_shift.visible import previous_visible
from studfinder.attention.places import AttentionPlace, hidden_in
from studfinder.errors import StudfinderError

_NOW = threading.local()
"""`call`: the attention that runs in this thread."""


@dataclass(eq=False)
class _Call:
    """One run of an attention module: what it was given, and how many of its hooks have run."""

    wiring: Wiring
    hidden: torch.Tensor
    given: dict[str, Any]
    earlier: _Call | None
    hooks: int = 0
    layer: Any = None
    visible: list[torch.Tensor | None] = field(default_factory=list)


class Wiring:
    """What is hooked into one attention module. `parts` maps a role to the name of the submodule that plays it."""

    def __init__(self, module: Any, place: AttentionPlace) -> None:
        self.module, self.place = module, place
        self.parts: dict[str, str] = {}
        self.names = list(inspect.signature(module.forward).parameters)
        self.hooked: list[str] = []
        self.tables: dict[Any, torch.Tensor] = {}
        module.__class__ = _wired(type(module))  # type: ignore[arg-type]

    def part(self, role: str) -> Any:
        """The part that plays a role, or None."""
        return self.module._modules.get(self.parts.get(role))

    def add(self, role: str, name: str) -> None:
        """Hook in the part of this name."""
        self.parts[role] = name
        place = self.place
        if role == "keys and values":
            settings = self.part(role).settings
            sides = {"key": place.key if settings.keys else None, "value": place.value if settings.values else None}
            for path in dict.fromkeys(heads.projection for heads in sides.values() if heads is not None):
                here = {side: heads for side, heads in sides.items() if heads and heads.projection == path}
                self.hook(path, partial(self.shift, path, here))
        if role == "queries":
            self.hook(place.query.projection, self.double)  # type: ignore[union-attr]
        if role in ("queries", "output") and f"into {place.output}" not in self.hooked:
            self.hooked.append(f"into {place.output}")
            self.module.get_submodule(place.output).register_forward_pre_hook(self.finish)

    def hook(self, path: str, function: Any) -> None:
        self.hooked.append(f"from {path}")
        self.module.get_submodule(path).register_forward_hook(function)

    # --- while it runs -----------------------------------------------------------------------------------------------

    def run(self, forward: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The module's own forward pass, with its parts."""
        given = dict(zip(self.names, args, strict=False)) | kwargs if args else kwargs
        _NOW.call = call = _Call(self, hidden_in(given), given, getattr(_NOW, "call", None))
        positions, rotary = self.part("positions"), self.place.rotary
        if positions is not None and rotary is not None and given.get(rotary) is not None:
            changed = positions.embeddings(given[rotary], self.place.pairs)
            if rotary in kwargs:
                kwargs = {**kwargs, rotary: changed}
            else:
                at = self.names.index(rotary)
                args = (*args[:at], changed, *args[at + 1 :])
        try:
            output = forward(self.module, *args, **kwargs)
        finally:
            _NOW.call = call.earlier
        if call.hooks != len(self.hooked):
            raise StudfinderError(
                f"a projection of {type(self.module).__name__} did not run, or was replaced, so that its variant "
                f"({', '.join(self.parts.values())}) would do nothing",
                expected="the modules that the variant was put into",
            )
        return output

    def call(self) -> _Call | None:
        """The run that a hook belongs to; None where somebody calls a projection alone."""
        call: _Call | None = getattr(_NOW, "call", None)
        if call is None or call.wiring is not self:
            return None
        call.hooks += 1
        return call

    def shift(self, path: str, sides: dict[str, Any], _module: Any, _args: tuple, output: Any) -> torch.Tensor | None:
        call = self.call()
        if call is None:
            return None
        (side, heads), *others = sides.items()
        part = self.part("keys and values")
        whole = heads.whole and not others
        x = output.view(*call.hidden.shape[:2], *((-1, heads.width) if whole else (-1,)))
        if whole:
            current, previous = (scalar.unsqueeze(-1) for scalar in part.scalars(side))
        else:
            current, previous = part.by_channel(self.table(sides, x.device), tuple(sides))
        visible, layer = self.before(call)
        row = None if layer is None else layer.push(path, x)
        return part.mixed(x, current, previous, row, visible).view(output.shape)

    def table(self, sides: dict[str, Any], device: torch.device) -> torch.Tensor:
        """For each output channel 0, or the number of its head, counted from 1 through all sides."""
        key = (*sides, device)
        if key not in self.tables:
            table_O = torch.zeros(next(iter(sides.values())).channels, dtype=torch.long)
            number = 0
            for heads in sides.values():
                for first in heads.first:
                    number += 1
                    table_O[first : first + heads.width] = number
            self.tables[key] = table_O.to(device)
        return self.tables[key]

    def before(self, call: _Call) -> tuple[torch.Tensor | None, RawRows | None]:
        """Which tokens may see the one before them, and where the rows of those before these lie."""
        if not call.visible:
            given, mask = call.given, call.given.get("attention_mask")
            past = next((value for value in given.values() if isinstance(value, Cache)), None)
            seen, offset, tokens = 0, 0, call.hidden.shape[1]
            if past is not None:
                call.layer = shifted_layer(past, given.get("layer_idx", getattr(self.module, "layer_idx", 0)))
                if mask is not None:
                    seen, offset = call.layer.get_seq_length(), call.layer.get_mask_sizes(tokens)[1]
            # Past the config's own way, which is slow: this is asked for every token.
            flash = "flash" in (vars(self.module.config).get("_attn_implementation_internal") or "")
            call.visible.append(previous_visible(mask, tokens, seen, offset, given.get("position_ids"), flash))
        return call.visible[0], call.layer

    def double(self, _module: Any, _args: tuple, output: torch.Tensor) -> torch.Tensor | None:
        call = self.call()
        if call is None:
            return None
        query = output.unflatten(-1, (-1, self.place.shape.head_dim))
        return self.part("queries").queries(query, call.hidden).flatten(-2)

    def finish(self, _module: Any, args: tuple) -> tuple | None:
        """What W_o reads: subtracted, gated."""
        call = self.call()
        if call is None:
            return None
        (mixed,) = args
        x = mixed.view(*call.hidden.shape[:2], -1, self.place.shape.value_dim)
        for role, change in (("queries", "subtract"), ("output", "forward")):
            part = self.part(role)
            if part is not None:
                x = getattr(part, change)(x, call.hidden)
        return (x.reshape(*mixed.shape[:-1], -1),)


@cache
def _wired(base: Any) -> type[Any]:
    """The class of an attention module with parts: a subclass, because hooks around it would cost more a token."""
    forward = base.forward

    @wraps(forward)  # whoever asks where the forward pass is written finds the base's file
    def wired(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.wiring.run(forward, args, kwargs)

    return type(f"Studfinder{base.__name__}", (base,), {"forward": wired, "__module__": __name__})
