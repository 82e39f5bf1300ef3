"""A context and what may follow it, as token ids."""

from __future__ import annotations

from collections.abc import Sequence

from studfinder.errors import StudfinderError
from studfinder.texts.encoding import check_ids, first_token, token_ids, tokenizer_of
from studfinder.texts.tokens import Tokenized


def encode_pairs(lm: Tokenized, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Token ids of contexts and continuations, encoded together: the continuation is every token from the first one on
    that the context by itself does not begin with.

    A tokenizer never sees a continuation without what is before it, and neither ends in what a tokenizer puts after a
    text. lm-evaluation-harness cuts after as many tokens as the context by itself has, which is the same place unless
    the last word of the context and the continuation become one token: such a token is scored here, and lost there.
    Spaces at the end of a context are moved to the continuation, as there. BOS is left to the tokenizer; where no token
    is left to condition on, it is BOS, or EOS where there is no BOS.

    Raises:
        StudfinderError: no tokenizer, a continuation of no tokens, or ids beyond the embedding.
    """
    tokenizer = tokenizer_of(lm)
    parted = [_parted(context, continuation) for context, continuation in pairs]
    texts = list(dict.fromkeys(text for context, whole in parted for text in (context, whole)))
    ids = dict(zip(texts, token_ids(tokenizer, texts), strict=True))
    check_ids(lm, list(ids.values()), "the tokenizer's answer")
    first = first_token(tokenizer)
    found = []
    for number, (context, whole) in enumerate(parted):
        cut = common(ids[context], ids[whole])
        if cut == len(ids[whole]):
            raise StudfinderError(
                f"continuation {number}, {whole[len(context) :]!r}, adds no token", expected="some text to score"
            )
        start = ids[whole][:cut] if cut or first is None else [first]
        found.append((start, ids[whole][cut:]))
    return found


def _parted(context: str, continuation: str) -> tuple[str, str]:
    """The context without spaces at its end, and the whole text."""
    return context.rstrip(), context + continuation


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
