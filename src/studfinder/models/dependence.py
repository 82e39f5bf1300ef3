"""What depends on what inside one block: gradients over one look at it (trace.py), which no matrix leads through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from studfinder.models.anatomy import MatrixRef
from studfinder.models.trace import TOKENS, Call, Product

_TRIED = 4
"""How many channels are asked; all must answer."""
_CLEAR = 4.0
"""How many times as loud as the next one, in squares, a channel must answer."""


class BlockLook:
    """One look at a block.

    Attributes:
        model, call, level: the model, the block's call, and the call where every matrix gave the same for all tokens.
        output: the hidden states that the block handed on, (B,T,C) or with several streams.
        products, leaves: every product with a weight, and its result, a place that gradients can be asked of.
        hidden: the hidden states that went in; `width`: of the stream, C; `tokens`: how many went in.
        late, early: two tokens. What depends on the early one at the late one has seen it through a mixer.
    """

    def __init__(self, model: Any, call: Call, level: Call, output: torch.Tensor) -> None:
        self.model, self.call, self.level, self.output = model, call, level, output
        self.products = call.products
        self.leaves = [product.y for product in self.products]
        self.hidden = next(value for value in call.given if value.requires_grad and value.dim() > 2)
        self.width = output.shape[-1]
        axes = [size for size in output.shape[:-1] if size >= TOKENS]  # a prefix of the model's own may stand in front
        self.tokens = TOKENS if TOKENS in axes else axes[0]
        self.late = self.tokens - 2
        self.early = self.late - 2  # in any window
        self.generator = torch.Generator().manual_seed(0)

    def slopes(self, target: torch.Tensor, places: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """The gradient of a weighted sum of `target` at every place; None where nothing arrives."""
        if not target.requires_grad or not places:
            return [None] * len(places)
        weights = torch.randn(target.shape, generator=self.generator).to(target)
        return list(torch.autograd.grad((target * weights).sum(), places, retain_graph=True, allow_unused=True))

    def written(self, target: torch.Tensor) -> list[Product]:
        """The products whose every output channel is the target's channel of the same number."""
        width = target.shape[-1]
        channels = torch.randperm(width, generator=self.generator)[:_TRIED].tolist()
        found = [product for product in self.products if product.rows == width]
        for channel in channels:
            slopes = self.slopes(target[..., channel], [product.y for product in found])
            found = [one for one, slope in zip(found, slopes, strict=True) if loudest(slope) == [channel]]
        return found

    def mixes(self, product: Product) -> bool:
        """Whether what it reads at a late token depends on tokens before the one before it (a shift reads that)."""
        if product.x.shape[:-1].numel() % self.tokens:
            return False
        row = self.late_row(product)
        for slope in self.slopes(row, [self.hidden, *self.leaves]):
            by_token = None if slope is None else self.by_token(slope)
            if by_token is not None and bool(by_token[: self.late - 1].any()):
                return True
        return False

    def late_row(self, product: Product) -> torch.Tensor:
        """What a product reads at a late token, (F,) or several where it reads several things at each."""
        x = self.by_token(product.x)
        return (product.x.reshape(self.tokens, -1) if x is None else x)[self.late]

    def by_token(self, slope: torch.Tensor) -> torch.Tensor | None:
        """With the tokens first; None if it has no axis of tokens."""
        axis = next((axis for axis, size in enumerate(slope.shape[:-1]) if size == self.tokens), None)
        return None if axis is None else slope.movedim(axis, 0)

    def at_token(self, slope: torch.Tensor | None, token: int, rows: int, signed: bool = False) -> torch.Tensor:
        """The slope by each of a product's rows at one token: its sum, or the sum of its squares."""
        by_token = None if slope is None else self.by_token(slope)
        if by_token is None:
            return torch.zeros(rows, dtype=torch.float64)
        found = by_token[token].reshape(-1, rows).double().cpu()
        return found.sum(0) if signed else found.square().sum(0)

    def chosen(self, width: int) -> list[int]:
        """A few channels of as many, in order."""
        return sorted(torch.randperm(width, generator=self.generator)[:_TRIED].tolist())

    def tokens_of(self, product: Product, heads: int) -> torch.Tensor | None:
        """What a product reads, (T,H,D); None if it does not read each token once, or not in so many pieces."""
        if not heads or product.width % heads or product.x.numel() != self.tokens * product.width:
            return None
        return product.x.reshape(self.tokens, heads, -1)

    def bends(self, target: torch.Tensor, product: Product, channel: int) -> tuple[bool, torch.Tensor | None]:
        """Whether the slope of `target` by a channel of a product depends on that channel; and the slope."""
        (slope,) = torch.autograd.grad(target.sum(), product.y, retain_graph=True, create_graph=True, allow_unused=True)
        if slope is None:
            return False, None
        more = None
        if slope.requires_grad:
            (more,) = torch.autograd.grad(slope[..., channel].sum(), product.y, retain_graph=True, allow_unused=True)
        return more is not None and bool(more[..., channel].any()), slope[..., channel]


def energy_of(slope: torch.Tensor | None, channels: int) -> torch.Tensor:
    """The sum of a slope's squares by channel, (O,)."""
    if slope is None:
        return torch.zeros(channels, dtype=torch.float64)
    return slope.flatten(0, -2).double().square().sum(0).cpu()


def loudest(slope: torch.Tensor | None, most: int = 1) -> list[int]:
    """The channels that stand out of a slope, in order; none if more than `most` do."""
    if slope is None:
        return []
    top = energy_of(slope, slope.shape[-1]).topk(min(most + 1, slope.shape[-1]))
    values = [*top.values.tolist(), *[0.0] * (most + 1 - len(top.values))]
    for count in range(most, 0, -1):
        if values[count - 1] > _CLEAR * values[count]:
            return sorted(top.indices[:count].tolist())
    return []


def clear(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Where one energy stands out from another."""
    return first > _CLEAR * second


def ref_of(product: Product) -> MatrixRef:
    """The matrix of a product."""
    return MatrixRef(product.parameter, product.expert, product.transposed)


def common_module(parameters: Sequence[str]) -> str:
    """The innermost module that holds all of some parameters, and more than the one that owns a single one."""
    owners = [name.split(".")[:-1] for name in parameters]
    shared = []
    for level in zip(*owners, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared[:-1] if len(parameters) == 1 else shared)
