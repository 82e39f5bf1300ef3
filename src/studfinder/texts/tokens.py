"""What kind of token something is."""

from __future__ import annotations

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


# Function words and bare digits: tokens that carry little meaning of their own (Sun et al. 2024, section 2.3, name
# "and", "from", "of" and "2" as carriers of massive activations).
_LOW_SEMANTIC = frozenset(
    [
        "a",
        "an",
        "the",
        "and",
        "or",
        "but",
        "nor",
        "so",
        "yet",
        "of",
        "to",
        "in",
        "on",
        "at",
        "by",
        "for",
        "from",
        "with",
        "into",
        "onto",
        "over",
        "under",
        "as",
        "if",
        "than",
        "then",
        "that",
        "this",
        "these",
        "those",
        "it",
        "its",
        "is",
        "are",
        "was",
        "were",
        "be",
        "been",
        "being",
        "am",
        "do",
        "does",
        "did",
        "has",
        "have",
        "had",
        "will",
        "would",
        "shall",
        "should",
        "can",
        "could",
        "may",
        "might",
        "must",
        "not",
        "no",
        "he",
        "she",
        "they",
        "we",
        "you",
        "i",
        "him",
        "her",
        "them",
        "us",
        "me",
        "his",
        "their",
        "our",
        "your",
        "my",
        "who",
        "whom",
        "which",
        "what",
        "when",
        "where",
        "why",
        "how",
        "there",
        "here",
        "all",
        "any",
        "some",
        "each",
        "s",
        "t",
        "de",
        "la",
        "le",
        "les",
        "des",
        "du",
        "un",
        "une",
        "et",
        "en",
        "que",
        "qui",
        "dans",
        "pour",
        "sur",
        "au",
        "aux",
        "ce",
        "il",
        "elle",
        "der",
        "die",
        "das",
        "den",
        "dem",
        "des",
        "ein",
        "eine",
        "und",
        "in",
        "zu",
        "von",
        "mit",
        "auf",
        "im",
        "ist",
    ]
)


def token_text(lm: Tokenized, token_id: int) -> str:
    """A token as text, e.g. " the" or "\\n"."""
    if lm.tokenizer is None:
        return str(token_id)
    return str(lm.tokenizer.decode([token_id], clean_up_tokenization_spaces=False))


def token_class(text: str, position: int) -> TokenClass:
    """The class of a token by its text and its position in its prompt."""
    if position == 0:
        return "first"
    bare = text.strip()
    if not bare or not any(character.isalnum() for character in bare):
        return "delimiter"
    if bare.lower() in _LOW_SEMANTIC or (bare.isdigit() and len(bare) == 1):
        return "low-semantic"
    return "other"
