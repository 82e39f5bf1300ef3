"""Token ids as padded batches that know which tokens are real."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from studfinder.errors import StudfinderError


@dataclass(frozen=True)
class Batch:
    """Right-padded prompts.

    Attributes:
        input_ids_BT: token ids.
        lengths: real tokens of each row.
        prompts: which prompt each row is.
    """

    input_ids_BT: torch.Tensor
    lengths: tuple[int, ...]
    prompts: tuple[int, ...]

    @cached_property
    def mask_BT(self) -> torch.Tensor | None:
        """True for real tokens; None when all are."""
        width = self.input_ids_BT.shape[1]
        if min(self.lengths) == width:
            return None
        return torch.arange(width) < torch.tensor(self.lengths)[:, None]

    @cached_property
    def real_N(self) -> torch.Tensor | None:
        """Flat indices (b * T + t) of the real tokens; None when all are."""
        return None if self.mask_BT is None else self.mask_BT.flatten().nonzero()[:, 0]

    @cached_property
    def places_N2(self) -> torch.Tensor:
        """(prompt, position) of the real tokens."""
        return self.where(torch.arange(self.input_ids_BT.numel()) if self.real_N is None else self.real_N)

    def real(self, tensor_NX: torch.Tensor) -> torch.Tensor:
        """The rows of the real tokens, of a tensor with one for each token."""
        return tensor_NX if self.real_N is None else tensor_NX[self.real_N.to(tensor_NX.device)]

    @property
    def ids(self) -> dict[int, list[int]]:
        """The real token ids of each prompt."""
        rows = zip(self.prompts, self.input_ids_BT.tolist(), self.lengths, strict=True)
        return {prompt: row[:length] for prompt, row, length in rows}

    def where(self, flat_N: torch.Tensor) -> torch.Tensor:
        """(prompt, position) of flat token indices, shape (N, 2)."""
        width = self.input_ids_BT.shape[1]
        prompt = torch.tensor(self.prompts)[flat_N // width]
        return torch.stack([prompt, flat_N % width], dim=1)


def batches(encoded: Sequence[Sequence[int]], size: int = 1, pad: int = 0) -> Iterator[Batch]:
    """Cut encoded prompts into batches, in order. Raises StudfinderError for a size below 1."""
    if size < 1:
        raise StudfinderError(f"batch size {size}", expected="1 or more")
    for start in range(0, len(encoded), size):
        chunk = encoded[start : start + size]
        lengths = tuple(len(ids) for ids in chunk)
        ids = torch.full((len(chunk), max(lengths)), pad, dtype=torch.long)
        for row, prompt in enumerate(chunk):
            ids[row, : lengths[row]] = torch.tensor(prompt)
        yield Batch(ids, lengths, tuple(range(start, start + len(chunk))))
