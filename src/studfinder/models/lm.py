"""LM: a live Hugging Face model with its tokenizer and the map of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from studfinder.errors import StudfinderError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from studfinder.models.anatomy import Anatomy
    from studfinder.models.memory import MemoryPlan


@dataclass(frozen=True)
class Source:
    """Where a model came from.

    Attributes:
        id: the name or path it was asked for by; "live" for an object handed over.
        origin: in words, for print.
        folder: the checkpoint's folder, where there is one.
        revision: of the hub repository, where there is one: the commit once it is loaded, before that what was asked.
        notes: what the files hold that is not in memory and need not be, and what was cast.
        allowed: what is missing or was left out because the caller allowed it.
        merged: the adapter that was merged into the weights.
        quantised: the method by which its files are quantised: a dequantised copy of them is in memory.
        stored: the dtype of its files, where they were cast to a wider one: the content hash is theirs all the same.
        no_tokenizer: why its tokenizer could not be loaded, where it has one.
    """

    id: str
    origin: str
    folder: Path | None = None
    revision: str | None = None
    notes: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    merged: str | None = None
    quantised: str | None = None
    stored: torch.dtype | None = None
    no_tokenizer: StudfinderError | None = None


@dataclass(frozen=True)
class LM:
    """A causal language model as studfinder works on it. The weights are the live model's own, never processed.

    Attributes:
        model: the Hugging Face model, in eval mode.
        tokenizer: its tokenizer, or None for models that are fed token ids.
        anatomy: where its parts are.
        source: where it came from.
        memory: how it is held in memory; None for a live object, which is held as it is.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    anatomy: Anatomy
    source: Source = field(default_factory=lambda: Source("live", "a live model object"))
    memory: MemoryPlan | None = None

    @property
    def device(self) -> torch.device:
        """Where token ids go in; of an embedding that is offloaded, where it is computed with."""
        embedding = self.model.get_input_embeddings()
        device: torch.device = embedding.weight.device
        if device.type != "meta":
            return device
        return torch.device(getattr(getattr(embedding, "_hf_hook", None), "execution_device", None) or "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.model.dtype

    def __repr__(self) -> str:
        return f"LM({self.source.id!r}, {self.anatomy.architecture}, {self.dtype}, {self.device})"
