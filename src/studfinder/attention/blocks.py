"""Attention with other weights than softmax, in memory that grows linearly in T, forward and backward.

A block of queries is scored against all its keys at once, so a row's sum is at hand and nothing of size T x T
ever exists; the backward pass scores each block again. Blocks are small enough to stay in a CPU's cache,
where the element-wise passes that a fused kernel would save cost little. On a GPU all heads go together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from studfinder.errors import StudfinderError

# Scores held at once. 2**17 fp32 numbers are half a megabyte: a core's second-level cache, and small enough
# for the allocator to hand the same pages out again (with 2**20 page faults made the backward pass ten times
# slower).
CPU_BLOCK, GPU_BLOCK = 2**17, 2**26
_FEWEST_ROWS = 16


class WeightFunction(Protocol):
    """A weight function on blocks of scores (..., S), -inf where `blocked`. It may overwrite them.

    The attention weights are `factor * weights`, the factor per row (..., 1) or one number; it is applied to
    the (much smaller) output instead. `state` is what `backward` needs.
    """

    def forward(self, scores: torch.Tensor, blocked: torch.Tensor | None, rows: RowRange) -> tuple[Any, Any, Any]:
        """(weights, factor, state)."""

    def backward(self, grad: torch.Tensor, state: Any) -> torch.Tensor:
        """The gradient of the scores from that of `weights` (which it may overwrite)."""


WEIGHT_FUNCTIONS: dict[str, Callable[..., WeightFunction]] = {}
"""By name, for an operator takes no objects; a variant's own file puts its function here."""


@dataclass(frozen=True)
class RowRange:
    """The rows of a block: absolute index of the first and past-the-last query, number of keys scored."""

    first: int
    last: int
    keys: int
    causal: bool

    def visible(self, blocked: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """How many keys each row may look at, (..., rows, 1), at least 1."""
        if self.causal:
            return torch.arange(self.first + 1, self.last + 1, device=like.device, dtype=like.dtype)[:, None]
        if blocked is None:
            return torch.full((1, 1), self.keys, device=like.device, dtype=like.dtype)
        return (~blocked).sum(dim=-1, keepdim=True).clamp(min=1).to(like.dtype)


@dataclass(frozen=True)
class _Problem:
    """Heads as (B, G, R, T, D) queries and (B, G, S, D) keys and values; the arithmetic is at least fp32."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    causal: bool
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.query.dtype, torch.float32)

    def blocks(self) -> Iterator[tuple[slice, slice, slice, int]]:
        """(batch, groups, queries, keys) of every block."""
        batch, groups, repeats, tokens, _ = self.query.shape
        keys = self.key.shape[2]
        small = self.query.shape[:-1].numel() * keys <= CPU_BLOCK  # decoding, above all
        together = small or self.query.device.type != "cpu"
        heads = batch * groups * repeats if together else repeats
        budget = (GPU_BLOCK if together else CPU_BLOCK) // heads
        whole = [(slice(0, batch), slice(0, groups))]
        each = [(slice(b, b + 1), slice(g, g + 1)) for b in range(batch) for g in range(groups)]
        for b, g in whole if together else each:
            first = 0
            while first < tokens:
                rows = budget // keys
                if self.causal:  # the block's last row sees the most keys: rows * (first + rows) = budget
                    rows = max(rows, (math.isqrt(first * first + 4 * budget) - first) // 2)
                last = min(tokens, first + max(_FEWEST_ROWS, rows))
                yield b, g, slice(first, last), (last if self.causal else keys)
                first = last

    def scores(self, b: slice, g: slice, t: slice, keys: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]:
        """(scores (n, R, rows, S), scaled queries (n, R * rows, D), keys (n, S, D), blocked or None)."""
        part = self.query[b, g, :, t]
        repeats, rows = part.shape[2], part.shape[3]
        query = part.reshape(-1, repeats * rows, part.shape[-1]).to(self.dtype) * self.scale
        key = self.key[b, g, :keys].flatten(0, 1).to(self.dtype)
        scores = torch.bmm(query, key.transpose(1, 2)).view(*part.shape[:2], repeats, rows, keys)
        blocked = None
        if self.causal:
            corner = scores[..., t.start :]
            future = torch.ones(rows, keys - t.start, dtype=torch.bool, device=scores.device).triu_(1)
            corner.masked_fill_(future, -torch.inf)
        elif self.mask is not None:
            mask = self.mask[b, g if self.mask.shape[1] > 1 else slice(None), :, t, :keys]
            blocked = ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2
            if mask.dtype != torch.bool:
                scores.add_(mask)
            scores.masked_fill_(blocked, -torch.inf)
        return scores, query, key, blocked


def _problem(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
) -> _Problem:
    groups = key.shape[1]
    if mask is not None:
        mask = mask.unflatten(1, (groups, -1)) if mask.shape[1] > 1 else mask[:, :, None]
        mask = mask.expand(query.shape[0], *mask.shape[1:])
    return _Problem(query.unflatten(1, (groups, -1)), key, value, mask, causal, scale)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    kind: str,
    numbers: list[float],
) -> torch.Tensor:
    weights, problem = _weights(kind, numbers), _problem(query, key, value, mask, causal, scale)
    out = problem.query.new_empty(*problem.query.shape[:-1], problem.value.shape[-1])
    for b, g, t, keys in problem.blocks():
        scores, _, _, blocked = problem.scores(b, g, t, keys)
        rows = RowRange(t.start, t.stop, keys, problem.causal)
        w, factor, _ = weights.forward(scores, blocked, rows)
        values = problem.value[b, g, :keys].flatten(0, 1).to(problem.dtype)
        mixed = torch.bmm(w.reshape(values.shape[0], -1, keys), values)
        out[b, g, :, t] = (mixed.view(*w.shape[:-1], -1) * factor).to(out.dtype)
    return out.flatten(1, 2)


@torch.library.custom_op("studfinder::attend_in_blocks_backward", mutates_args=())
def _gradients(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float,
    kind: str,
    numbers: list[float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of query, key and value."""
    weights, problem = _weights(kind, numbers), _problem(query, key, value, mask, causal, scale)
    grad = grad.unflatten(1, (problem.key.shape[1], -1))
    d_query = torch.empty_like(problem.query, memory_format=torch.contiguous_format)
    d_key = torch.zeros(problem.key.shape, dtype=problem.dtype, device=grad.device)
    d_value = torch.zeros(problem.value.shape, dtype=problem.dtype, device=grad.device)
    for b, g, t, keys in problem.blocks():
        scores, queries, part, blocked = problem.scores(b, g, t, keys)
        shape = scores.shape
        w, factor, state = weights.forward(scores, blocked, RowRange(t.start, t.stop, keys, problem.causal))
        values = problem.value[b, g, :keys].flatten(0, 1).to(problem.dtype)
        n = values.shape[0]
        d_out = (grad[b, g, :, t].to(problem.dtype) * factor).reshape(n, -1, grad.shape[-1])
        _add(d_value, b, g, keys, w.reshape(n, -1, keys).transpose(1, 2), d_out)
        d_weights = torch.bmm(d_out, values.transpose(1, 2)).view(shape)
        d_scores = weights.backward(d_weights, state).reshape(n, -1, keys)
        _add(d_key, b, g, keys, d_scores.transpose(1, 2), queries)
        d_query[b, g, :, t] = (torch.bmm(d_scores, part) * problem.scale).view(*shape[:-1], -1).to(d_query.dtype)
    return d_query.flatten(1, 2), d_key.to(key.dtype), d_value.to(value.dtype)


def _add(total: torch.Tensor, b: slice, g: slice, keys: int, left: torch.Tensor, right: torch.Tensor) -> None:
    part = total[b, g, :keys]
    part.add_(torch.bmm(left, right).view_as(part))


def _weights(kind: str, numbers: list[float]) -> WeightFunction:
    if kind not in WEIGHT_FUNCTIONS:
        raise StudfinderError(f"weight function {kind!r} is unknown", expected=" or ".join(WEIGHT_FUNCTIONS))
    return WEIGHT_FUNCTIONS[kind](*numbers)


# Custom operators rather than an autograd.Function: torch.compile then keeps the loop as one opaque step.
_operator = torch.library.custom_op("studfinder::attend_in_blocks", _attend, mutates_args=())


def attend_in_blocks(query: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Attention with another weight function than softmax, differentiable.

    Args:
        query: (B, H, T, D).
        rest: key and value (B, G, S, D), mask (B, 1|H, T, S) bool or additive or None, causal, scale, the name
            of the weight function (see WEIGHT_FUNCTIONS) and its numbers.

    Returns:
        (B, H, T, D).
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _operator(query, *rest)
    return _attend(query, *rest)  # past the dispatcher: in decoding its cost would show


@_operator.register_fake
def _(query, key, value, mask, causal, scale, kind, numbers):
    return query.new_empty(*query.shape[:-1], value.shape[-1])


@_gradients.register_fake
def _(grad, query, key, value, mask, causal, scale, kind, numbers):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    query, key, value, mask, *rest = inputs
    ctx.save_for_backward(query, key, value, mask)
    ctx.rest = rest


def _backward(ctx: Any, grad: torch.Tensor) -> Any:
    return *_gradients(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_keep)
