"""Kinds of tokens by which a loss is told apart: numbers, punctuation, words that begin and what goes on in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from studfinder.records.diagnosis import KindDiagnosis

_SPACES = ("▁", "Ġ", " ")  # as sentencepiece and byte-level BPE write a space before a word


def kind_of_token(token: str) -> str:
    """Of a token as a vocabulary writes it."""
    body = token.lstrip("".join(_SPACES))
    if not body or body.startswith(("Ċ", "ĉ", "\n", "\t", "<0x0A>")):
        return "white space"
    if any(character.isdigit() for character in body):
        return "a number"
    if not any(character.isalpha() for character in body):
        return "punctuation"
    return "a word begins" if token.startswith(_SPACES) else "a word goes on"


def loss_by_kind(tokenizer: Any, windows: Sequence[Sequence[int]], kl_WT: np.ndarray) -> tuple[KindDiagnosis, ...]:
    """The mean KL where a token of a kind comes next, the worst kind first; empty without a tokenizer.

    Args:
        kl_WT: nats, (windows, positions), at the token before.
    """
    if tokenizer is None:
        return ()
    special = set(tokenizer.all_special_ids)
    found: dict[str, list[float]] = {}
    for ids, kl_T in zip(windows, kl_WT, strict=True):
        for token, name, kl in zip(ids[1:], tokenizer.convert_ids_to_tokens(ids[1:]), kl_T, strict=False):
            kind = "a special token" if token in special else kind_of_token(name)
            found.setdefault(kind, []).append(float(kl))
    means = (KindDiagnosis(kind, len(each), float(np.mean(each))) for kind, each in found.items())
    return tuple(sorted(means, key=lambda one: -one.kl))
