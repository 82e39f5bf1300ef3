"""What a running model shows to readers. Tensors are the live ones: readers must not write to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from studfinder.models.anatomy import MatrixRef, Stage


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


@dataclass(frozen=True)
class WriterCall:
    """One use of a matrix that writes from the FFN to the residual stream.

    Attributes:
        layer: block.
        writer: position in the block's list of writers.
        ref: the matrix.
        input_NF, output_NC: its input and its output, bias included, before any routing weight or norm.
        token_N: which flat token (b * T + t) each row is; None means all, in order.
    """

    layer: int
    writer: int
    ref: MatrixRef
    input_NF: torch.Tensor
    output_NC: torch.Tensor
    token_N: torch.Tensor | None
