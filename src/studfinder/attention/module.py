"""The attention module of a converted model: its base's own steps, with the variants' parts between them.

    project -> mix keys and values -> norm -> rotate -> cache -> attention function -> gate -> W_o

It subclasses the base's attention class and adds no parameter of its own, so a model in which every part is
at an identity start computes what the base computes, bit for bit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from studfinder.attention.bases import Base
from studfinder.attention.kv_shift.cache import shifted_layer
from studfinder.attention.kv_shift.visible import previous_visible


class VariantAttention:
    """Mixed into a base's attention class. `parts` maps a role to the name of the submodule that plays it."""

    base: Base
    parts: dict[str, str]

    def part(self, role: str) -> Any:
        """The part that plays a role, or None."""
        modules: Any = self._modules  # type: ignore[attr-defined]
        return modules.get(self.parts.get(role))

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As the base's forward; hidden_states (B, T, C)."""
        module: Any = self
        base = self.base
        implementation = module.config._attn_implementation  # once: a config's attributes are slow to read
        query, key, value = base.project(self, hidden_states)
        second = self.part("queries")
        if second is not None:
            query = second.queries(query, hidden_states)
        shift = self.part("keys and values")
        if shift is not None:
            key, value = self._shift(shift, key, value, attention_mask, past_key_values, kwargs, implementation)
        if "q_norm" in module._modules:  # hasattr is slow where the answer is no
            query, key = module.q_norm(query), module.k_norm(key)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        query, key = self._rotate(query, key, position_embeddings)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, module.layer_idx)
        # Asked for at every call: whoever wraps the active implementation must find it here.
        function = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, base.modeling.eager_attention_forward)
        mixed, weights = function(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=base.dropout(self) if module.training else 0.0,
            scaling=base.scaling(self),
            **base.extras(self),
            **kwargs,
        )
        if second is not None:
            mixed = second.subtract(mixed, hidden_states)
        gate = self.part("output")
        if gate is not None:
            mixed = gate(mixed, hidden_states)
        out = getattr(self, base.output)(mixed.reshape(*hidden_states.shape[:-1], -1).contiguous())
        if "resid_dropout" in module._modules:
            out = module.resid_dropout(out)
        return out, weights

    def _shift(
        self,
        shift: Any,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Any,
        past: Any,
        kwargs: dict[str, Any],
        implementation: str | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layer: Any = None if past is None else shifted_layer(past, self.layer_idx)  # type: ignore[attr-defined]
        seen, offset = 0, 0
        if layer is not None and mask is not None:
            seen, offset = layer.get_seq_length(), layer.get_mask_sizes(key.shape[1])[1]
        flash = "flash" in (implementation or "")
        visible = previous_visible(mask, key.shape[1], seen, offset, kwargs.get("position_ids"), flash)
        return shift(key, value, None if layer is None else layer.push(key, value), visible)

    def _rotate(
        self, query: torch.Tensor, key: torch.Tensor, position_embeddings: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if position_embeddings is None:
            return query, key
        positions = self.part("positions")
        if positions is not None:
            position_embeddings = positions.embeddings(*position_embeddings)
            if position_embeddings is None:
                return query, key
        return self.base.modeling.apply_rotary_pos_emb(query, key, *position_embeddings)


@cache
def attention_class(base: Base) -> type[Any]:
    """The converted attention class of a base."""
    name = f"Studfinder{base.attention_class.__name__}"
    return type(name, (VariantAttention, base.attention_class), {"base": base, "__module__": __name__})
