"""Whether a trained model can go on training: its matrices are numbers that a gradient can move, and it is causal."""

from __future__ import annotations

from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.sites import check_causal
from studfinder.texts.encoding import tokenizer_of

_MOVABLE = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
_CODES = frozenset({torch.int8, torch.uint8, torch.int16, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2})
"""What quantised matrices are held in."""


def check_trainable(lm: LM, length: int, *, dequantised: bool = False) -> None:
    """Whether a trained model can go on with windows of text of this length.

    Args:
        dequantised: it is known that its checkpoint is quantised, and was asked to be taken back.

    Raises:
        StudfinderError: it is quantised or a matrix is frozen, it is not causal, it has no tokenizer, or the windows
            are longer than its context. Learned positions end there; rotary ones go on, but to angles that the model
            never saw.
    """
    _check_matrices(lm, dequantised)  # first: some kinds of packed weights unpack themselves when the model runs
    check_causal(lm, "training on the next token")
    tokenizer_of(lm)
    most = lm.anatomy.max_positions
    if most is not None and length > most:
        raise StudfinderError(
            f"windows of {length:,} tokens",
            expected=f"at most {most:,}, the context of {lm.source.id}",
            do="Choose a smaller --length",
        )


def trainable_note(lm: LM) -> str:
    """What share of the parameters trains, and how many ids of the tokenizer have no row in the embedding."""
    moved, held = _counts(lm)
    text = f"{moved / held:.0%} of {held / 1e6:,.3g} M parameters train"
    known, rows = len(lm.tokenizer) if lm.tokenizer is not None else 0, lm.anatomy.vocabulary
    if known > rows:
        text += (
            f"; the tokenizer has {known:,} ids, the embedding {rows:,} rows: text with one of the others is refused"
        )
    return text


def dequantized_model(lm: LM) -> LM:
    """A model that was read as a dequantised copy. Raises StudfinderError if its checkpoint is not quantised."""
    if not _method(lm):
        raise StudfinderError(f"{lm.source.id} is not quantised", do="Leave --dequantize out")
    return lm


def _check_matrices(lm: LM, dequantised: bool) -> None:
    moved, held = _counts(lm)
    method = _method(lm)
    if method and not dequantised:
        raise StudfinderError(
            f"{lm.source.id} is quantised ({method}): a dequantised copy of it would train",
            expected="a full model",
            do="Start from the full model, or say --dequantize to train that copy",
        )
    frozen = [
        name for name, tensor in (*lm.model.named_parameters(), *lm.model.named_buffers()) if _frozen_matrix(tensor)
    ]
    if frozen:
        raise StudfinderError(
            f"{lm.source.id}: {frozen[0]} cannot train (one of {len(frozen)}; {moved / held:.0%} of the model can)",
            expected="matrices in floating point that take a gradient",
            do="Start from the full model",
        )


def _method(lm: LM) -> str | None:
    """What the model or its checkpoint is quantised by, e.g. "compressed-tensors"; None if neither is."""
    quantizer = getattr(lm.model, "hf_quantizer", None)
    if quantizer is None:
        return lm.source.quantised
    found: Any = getattr(quantizer.quantization_config, "quant_method", type(quantizer).__name__)
    return str(getattr(found, "value", found))


def _frozen_matrix(tensor: torch.Tensor) -> bool:
    if tensor.dim() < 2:
        return False
    if isinstance(tensor, torch.nn.Parameter):
        return tensor.dtype not in _MOVABLE or not tensor.requires_grad
    return tensor.dtype in _CODES


def _counts(lm: LM) -> tuple[int, int]:
    """Numbers that train, and all that are held in parameters or as codes."""
    parameters = list(lm.model.parameters())
    codes = [buffer for buffer in lm.model.buffers() if _frozen_matrix(buffer)]
    moved = sum(p.numel() for p in parameters if p.dtype in _MOVABLE and p.requires_grad)
    return moved, sum(tensor.numel() for tensor in (*parameters, *codes))
