"""Calibration windows: text that is not what the model is judged on."""

from __future__ import annotations

from pathlib import Path

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.texts import WHOLE, Text, corpus, encode


def calibration_windows(
    lm: LM, text: str | Path = "wikipedia", *, count: int = 128, length: int = 512
) -> tuple[str, list[list[int]]]:
    """Windows of token ids that follow each other in a text, and where the text came from.

    Each window begins with BOS where the tokenizer puts one before a text. WikiText-2 is refused: its test set is what
    perplexity is measured on.

    Raises:
        StudfinderError: the text is too short for so many windows, or is a test set.
    """
    if str(text).partition("@")[0] == "wikitext2":
        raise StudfinderError("wikitext2 is test text", expected="text that the model is not judged on: wikipedia")
    name, documents = corpus(text)
    joined = "\n\n".join(documents)
    encoded, begins = encode(lm, [Text(name, joined)], limit=WHOLE)
    ids = encoded[0][1:] if begins else encoded[0]
    first = encoded[0][:1] if begins else []
    own = length - len(first)
    if count < 1 or own < 1:
        raise StudfinderError(f"{count} windows of {length} tokens", expected="at least one of at least two tokens")
    if len(ids) < count * own:
        raise StudfinderError(
            f"{name} has {len(ids):,} tokens, too few for {count} calibration windows of {length}",
            do="Use fewer or shorter windows, or a longer text",
        )
    return name, [first + ids[start * own : (start + 1) * own] for start in range(count)]
