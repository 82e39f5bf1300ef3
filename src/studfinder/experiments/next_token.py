"""What a model says next after a prompt, where one word is right."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from studfinder.models import LM
from studfinder.texts import Text, encode


@dataclass(frozen=True)
class Asked:
    """A prompt and its right answer.

    Attributes:
        text, ids: what the model reads.
        target: the first token of the answer.
    """

    text: str
    ids: list[int]
    target: int


def asked(lm: LM, pairs: Sequence[tuple[str, str]]) -> list[Asked]:
    """Prompts with their answers, (text, " answer") each, as tokens. One whose answer changes how the end of its prompt
    is cut into tokens is left out: there no token is the right one."""
    prompts = encode(lm, [Text(f"prompt {n}", text) for n, (text, _) in enumerate(pairs)])[0]
    wholes = encode(lm, [Text(f"prompt {n}", text + answer) for n, (text, answer) in enumerate(pairs)])[0]
    return [
        Asked(text, ids, whole[len(ids)])
        for (text, _), ids, whole in zip(pairs, prompts, wholes, strict=True)
        if len(whole) > len(ids) and whole[: len(ids)] == ids
    ]


def next_probabilities(lm: LM, ids: list[int]) -> torch.Tensor:
    """Of every token of the vocabulary, shape (V,), in double precision. No measure has them: a forward pass."""
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        options["logits_to_keep"] = 1
    with torch.no_grad():
        logits_V = lm.model(input_ids=torch.tensor([ids], device=lm.device), **options).logits[0, -1]
    return logits_V.double().softmax(dim=-1).cpu()[: lm.anatomy.vocabulary]
