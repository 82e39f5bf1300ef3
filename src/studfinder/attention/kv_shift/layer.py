"""KV shifting as it runs: the mixture, its settings and its four scalars per key/value head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from studfinder.attention.variant import Part, Role, Variant


class KVShiftPart(Part):
    """The scalars of one layer, (G,) each: key_current a1, key_previous a2, value_current b1, value_previous
    b2.

    With `gated` there are key_logit and value_logit instead.
    """

    @property
    def sides(self) -> list[str]:
        """Which of "key" and "value" are mixed."""
        return [side for side in ("key", "value") if getattr(self.settings, f"{side}s")]

    def sizes(self) -> dict[str, tuple[int, ...]]:
        names = ("logit",) if self.settings.gated else ("current", "previous")
        return {f"{side}_{name}": (self.shape.kv_heads,) for side in self.sides for name in names}

    @torch.no_grad()
    def reset(self) -> None:
        for side in self.sides:
            uniform = torch.rand_like(next(self.parameters()))
            if self.settings.gated:
                getattr(self, f"{side}_logit").copy_(torch.logit(uniform, eps=1e-6))
                continue
            current = torch.ones_like(uniform) if self.settings.init == "identity" else uniform
            getattr(self, f"{side}_current").copy_(current)
            getattr(self, f"{side}_previous").copy_(1 - current)

    def scalars(self, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """(current, previous), (G,) each."""
        if self.settings.gated:
            current = torch.sigmoid(getattr(self, f"{side}_logit"))
            return current, 1 - current
        return getattr(self, f"{side}_current"), getattr(self, f"{side}_previous")

    def forward(
        self,
        key_BTGD: torch.Tensor,
        value_BTGD: torch.Tensor,
        row: tuple[torch.Tensor, torch.Tensor] | None = None,
        visible_BT: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mixed keys and values.

        Args:
            key_BTGD: keys as projected; the same for values.
            row: the raw key and value (B, 1, G, D) of the token before these, or None at the start.
            visible_BT: whether a token may look at the one before it (False at the start of a document or
                after padding); None where all may.
        """
        key_row, value_row = row if row is not None else (None, None)
        if self.settings.keys:
            key_BTGD = mix_with_previous(key_BTGD, *self.scalars("key"), key_row, visible_BT)
        if self.settings.values:
            value_BTGD = mix_with_previous(value_BTGD, *self.scalars("value"), value_row, visible_BT)
        return key_BTGD, value_BTGD


@dataclass(frozen=True, kw_only=True)
class KVShift(Variant):
    """K' = a1 K + a2 shift(K), V' = b1 V + b2 shift(V), four scalars per key/value head (arXiv 2411.19574).

    The mixture is taken right after the projections: before a QK-norm where the model has one, and before
    RoPE, so that key i is rotated as position i though half of it is token i-1.

    Attributes:
        init: "identity" is (1, 0) for every head: the outputs stay as they are, bit for bit, and the gradient
            is not zero. "paper" draws a1, b1 ~ U(0, 1) and sets a2 = 1 - a1, b2 = 1 - b1.
        keys: mix the keys.
        values: mix the values. The paper finds K alone and V alone both worse than the two together.
        gated: the paper's ablation a1 = sigmoid(logit), a2 = 1 - a1. It has no exact start ((1, 0) would need
            an infinite logit, which has no gradient).
    """

    name: ClassVar[str] = "kv_shift"
    role: ClassVar[Role] = "keys and values"
    inits: ClassVar[tuple[str, ...]] = ("identity", "paper")
    part_type: ClassVar[type[Part]] = KVShiftPart

    keys: bool = True
    values: bool = True
    gated: bool = False

    def rules(self) -> Iterator[tuple[bool, str, str]]:
        yield from super().rules()
        yield not (self.keys or self.values), "KVShift(keys=False, values=False) shifts nothing", "keys or values"
        no_start = "KVShift(gated=True) has no identity start: a gate of exactly 1 has no gradient"
        yield self.gated and self.init == "identity", no_start, "init='paper'"

    @property
    def identity(self) -> str | None:  # type: ignore[override]
        return None if self.gated else "identity"


def mix_with_previous(
    x_BTGD: torch.Tensor,
    current_G: torch.Tensor,
    previous_G: torch.Tensor,
    row_B1GD: torch.Tensor | None,
    visible_BT: torch.Tensor | None,
) -> torch.Tensor:
    """current * x + previous * (x one token earlier)."""
    earlier = torch.zeros_like(x_BTGD[:, :1]) if row_B1GD is None else row_B1GD
    if x_BTGD.shape[1] > 1:
        earlier = torch.cat([earlier, x_BTGD[:, :-1]], dim=1)
    if visible_BT is not None:
        # where, not a product: what padding holds may be inf or NaN.
        earlier = torch.where(visible_BT[:, :, None, None], earlier, 0)
    return torch.addcmul(x_BTGD * current_G.unsqueeze(-1), previous_G.unsqueeze(-1), earlier)
