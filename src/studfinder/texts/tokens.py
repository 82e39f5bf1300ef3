"""What kind of token something is."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

from studfinder.records.findings import TokenClass


class Tokenized(Protocol):
    """What texts need of a language model: its tokenizer, its sizes and its name. An LM has all three."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def anatomy(self) -> Any: ...

    @property
    def source(self) -> Any: ...


@cache
def _low_semantic() -> frozenset[str]:
    """Function words: tokens that carry little meaning of their own, as bare digits do (Sun et al. 2024, section 2.3,
    name "and", "from", "of" and "2" as carriers of massive activations)."""
    return frozenset(files("studfinder.texts").joinpath("data/low_semantic.txt").read_text("utf-8").split())


def token_text(lm: Tokenized, token_id: int) -> str:
    """A token as text, e.g. " the" or "\\n"."""
    if lm.tokenizer is None:
        return str(token_id)
    text = as_text(lm.tokenizer, [token_id], clean_up_tokenization_spaces=False)
    # SentencePiece's decoders take the space from what they believe to be a text's first word.
    marked = getattr(lm.tokenizer, "convert_ids_to_tokens", lambda _: None)(token_id)
    return f" {text}" if isinstance(marked, str) and marked.startswith("\u2581") and not text.startswith(" ") else text


def as_text(tokenizer: Any, ids: Sequence[int], **options: bool) -> str:
    """Token ids as text. Those past the tokenizer, where the embedding has more rows than it has tokens, are none."""
    try:
        return str(tokenizer.decode(ids, **options))
    except (IndexError, KeyError):  # how tokenizers in Python answer those; the others pass over them
        return str(tokenizer.decode([token for token in ids if token < len(tokenizer)], **options))


def token_class(text: str, position: int, before: str = " ", after: str = " ") -> TokenClass:
    """The class of a token by its text, its position in its prompt and the tokens beside it.

    A weak word is a whole word: the "a" of "M|a|c" is none. A delimiter is punctuation or white space; symbols ("$",
    "+", an emoji) and bytes that are only a part of a character are "other".
    """
    if position == 0:
        return "first"
    bare = text.strip()
    if all(unicodedata.category(character)[0] in "PZC" for character in bare):
        return "delimiter"
    begins = not (text[0].isalnum() and before[-1:].isalnum())
    ends = not (text[-1].isalnum() and after[:1].isalnum())
    weak = bare.lower() in _low_semantic() or (bare.isdigit() and len(bare) == 1)
    return "low-semantic" if weak and begins and ends else "other"
