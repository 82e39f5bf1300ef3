"""What a running model shows to readers. Tensors are the live ones: readers must not write to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models.anatomy import MatrixRef, Stage


@dataclass(frozen=True)
class ModelCall:
    """One call of the model, shown before anything else of it.

    Attributes:
        batch, tokens: rows, and new tokens of each (B and T of this call's other events).
        past: tokens of each row that the cache holds already, padding included.
        attention_mask: as the caller gave it: (B, past + T), 1 for real tokens; None when all are.
        caching: whether this call writes a cache.
        cache: the cache it was given; None if it was given none (a model that caches then makes its own).
        input_ids_BT: None if the call was given embeddings.
    """

    batch: int
    tokens: int
    past: int
    attention_mask: torch.Tensor | None
    caching: bool
    cache: Any = None
    input_ids_BT: torch.Tensor | None = None

    @cached_property
    def real_BT(self) -> torch.Tensor:
        """True for the new tokens that are no padding. Raises StudfinderError if the mask does not say."""
        if self.attention_mask is None:
            return torch.ones(self.batch, self.tokens, dtype=torch.bool)
        return self._mask_BS()[:, self.past :]

    @cached_property
    def position_BT(self) -> torch.Tensor:
        """Each new token's place among its row's real tokens, from 0; meaningless where there is padding."""
        if self.attention_mask is None:
            return torch.arange(self.past, self.past + self.tokens).expand(self.batch, -1)
        return (self._mask_BS().long().cumsum(dim=1) - 1)[:, self.past :]

    def _mask_BS(self) -> torch.Tensor:
        mask, shape = self.attention_mask, (self.batch, self.past + self.tokens)
        if not isinstance(mask, torch.Tensor) or tuple(mask.shape) != shape:
            found = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise StudfinderError(
                f"the attention mask ({found}) does not say which tokens are padding",
                expected=f"one of shape {shape}, 1 for real tokens",
            )
        return mask.bool()


@dataclass(frozen=True)
class BlockOutput:
    """The residual stream after a block. `layer` is -1 for the embedding: what enters block 0.

    Attributes:
        hidden_BTC: the residual stream.
    """

    layer: int
    hidden_BTC: torch.Tensor


@dataclass(frozen=True)
class AttentionCall:
    """One attention computation.

    Attributes:
        layer: block.
        query_BHTD, key_BGSD, value_BGSD: as attention receives them: after RoPE and after the cache where `stage`
            says so, key and value heads not repeated.
        mask: additive or boolean mask that broadcasts to (B,H,T,S); None when causality alone applies.
        scaling: multiplies q.k; None is 1/sqrt(D).
        softcap, sinks: score soft cap and learned sink logits, where the model has them.
        window: sliding window in tokens, where the layer has one and the mask does not already say so.
        stage: "post-RoPE", "pre-RoPE" or "no RoPE".
        comparable: whether scores computed from these Q, K and mask are the model's own scores.
        query_pre_BHTD, key_pre_BGTD: before RoPE; only if a reader asked for them.
        causal: whether no query sees later keys where no mask says so.
    """

    layer: int
    query_BHTD: torch.Tensor
    key_BGSD: torch.Tensor
    value_BGSD: torch.Tensor
    mask: torch.Tensor | None
    scaling: float | None
    softcap: float | None
    sinks: torch.Tensor | None
    window: int | None
    stage: Stage
    comparable: bool
    query_pre_BHTD: torch.Tensor | None = None
    key_pre_BGTD: torch.Tensor | None = None
    causal: bool = True


@dataclass(frozen=True)
class WriterCall:
    """One use of a matrix that writes from the FFN to the residual stream.

    Attributes:
        layer: block.
        writer: position in the block's list of writers.
        ref: the matrix.
        input_NF, output_NC: its input and its output, bias included, before any routing weight or norm.
        token_N: which flat token (b * T + t) each row is; None means all, in order.
        call: which use of the module in this forward pass, from 1, whichever layer it was for.
    """

    layer: int
    writer: int
    ref: MatrixRef
    input_NF: torch.Tensor
    output_NC: torch.Tensor
    token_N: torch.Tensor | None
    call: int = 1
