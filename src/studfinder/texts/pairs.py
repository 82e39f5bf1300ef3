"""A context and what may follow it, as token ids."""

from __future__ import annotations

from collections.abc import Sequence

from studfinder.texts.prompts import Text, encode
from studfinder.texts.tokens import Tokenized


def encode_pairs(lm: Tokenized, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Token ids of contexts and continuations, encoded together and cut where the context by itself would end.

    So does lm-evaluation-harness: a tokenizer never sees a continuation without what is before it. BOS is left to
    the tokenizer. The continuation should begin with the space before its first word.

    Raises:
        StudfinderError: no tokenizer, or an empty text.
    """
    limit = max((len(context) + len(continuation) for context, continuation in pairs), default=0) + 8
    contexts = list(dict.fromkeys(context for context, _ in pairs))
    encoded = encode(lm, [Text(f"context {i}", text) for i, text in enumerate(contexts)], limit=limit)[0]
    lengths = {context: len(ids) for context, ids in zip(contexts, encoded, strict=True)}
    texts = [Text(f"continuation {i}", context + continuation) for i, (context, continuation) in enumerate(pairs)]
    whole = encode(lm, texts, limit=limit)[0]
    return [(ids[: lengths[context]], ids[lengths[context] :]) for ids, (context, _) in zip(whole, pairs, strict=True)]
