"""KV shifting as it runs: the mixture, its settings and its four scalars per key/value head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

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

    def by_channel(self, table_O: torch.Tensor, sides: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(current, previous) of every output channel of a projection that makes more than the heads of one side.

        Args:
            table_O: for each channel the number of its head, counted from 1 through `sides`; 0 for any other, which
                stays as it is.
        """
        scalars = [self.scalars(side) for side in sides]
        current, previous = (torch.cat(one) for one in zip(*scalars, strict=True))
        return F.pad(current, (1, 0), value=1.0)[table_O], F.pad(previous, (1, 0))[table_O]

    def mixed(
        self,
        x: torch.Tensor,
        current: torch.Tensor,
        previous: torch.Tensor,
        row: torch.Tensor | None = None,
        visible_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """current * x + previous * (x one token earlier), of what a projection gave.

        Args:
            x: (B, T, G, D), or (B, T, O) of all its channels.
            current, previous: (G, 1), or (O,).
            row: x of the token before these, or None at the start.
            visible_BT: whether a token may look at the one before it (False at the start of a document or
                after padding); None where all may.
        """
        earlier = torch.zeros_like(x[:, :1]) if row is None else row
        if x.shape[1] > 1:
            earlier = torch.cat([earlier, x[:, :-1]], dim=1)
        if visible_BT is not None:
            # where, not a product: what padding holds may be inf or NaN.
            earlier = torch.where(visible_BT.view(*visible_BT.shape, *(1,) * (x.dim() - 2)), earlier, 0)
        return torch.addcmul(x * current, previous, earlier)


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
