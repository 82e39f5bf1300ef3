"""The one place where a tokenizer reads text.

What a tokenizer puts after a text (EOS, SEP) says that the text is over. Nothing here is ever over: a prompt is to be
continued, an answer is scored as the prompt's continuation, and windows are cut from the middle of a text. So the end
is taken off again, and what stands at the beginning stays as the tokenizer puts it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.texts.tokens import Tokenized

WHOLE = sys.maxsize
"""A limit that cuts nothing: characters are no bound on tokens, since one may be several bytes."""

_PROBES = 12


def as_user_says(tokenizer: Any, text: str) -> str:
    """A text as what a user says, in the tokenizer's chat template, ready for the answer."""
    return conversation(tokenizer, [{"role": "user", "content": text}])


def conversation(tokenizer: Any, said: Sequence[Mapping[str, str]]) -> str:
    """Turns of a conversation, each with role and content, in the tokenizer's chat template, ready for the answer."""
    return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))


def token_ids(tokenizer: Any, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
    """Ids of each text, without what the tokenizer puts at the end.

    Args:
        special: begin each text as the tokenizer does (BOS, say; never a second one where the text has its own);
            without it, with the text's first token.
    """
    if not texts:
        return []
    end = _end(tokenizer, special)
    found = [ids[: -len(end)] if end and ids[-len(end) :] == end else ids for ids in _read(tokenizer, texts, special)]
    first, name = tokenizer.bos_token_id, tokenizer.bos_token
    if special and first is not None and name:
        doubled = [first, first]
        found = [
            ids[1:] if ids[:2] == doubled and text.startswith(name) else ids
            for ids, text in zip(found, texts, strict=True)
        ]
    return found


def first_token(tokenizer: Any) -> int | None:
    """What the first token of a text is conditioned on: BOS, or EOS where there is no BOS."""
    return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id


def added_before(tokenizer: Any) -> int:
    """How many ids the tokenizer puts before a text."""
    return len(token_ids(tokenizer, ["a"])[0]) - len(token_ids(tokenizer, ["a"], special=False)[0])


def check_ids(lm: Tokenized, encoded: Sequence[Sequence[int]], what: str = "the tokens") -> None:
    """Raise StudfinderError if an id has no row in the embedding, which would end in an index error, or worse."""
    rows = lm.anatomy.vocabulary
    low = min((min(ids) for ids in encoded if ids), default=0)
    high = max((max(ids) for ids in encoded if ids), default=0)
    if low < 0 or high >= rows:
        raise StudfinderError(
            f"{what}: id {high if high >= rows else low} is not in the embedding of {lm.source.id}",
            expected=f"ids from 0 to {rows - 1}",
            do="Use the tokenizer that belongs to the model",
        )


def tokenizer_of(lm: Tokenized) -> Any:
    """The tokenizer. Raises StudfinderError if there is none, or why it could not be loaded."""
    if lm.tokenizer is None:
        why = getattr(lm.source, "no_tokenizer", None)
        if why is not None:
            raise why
        raise StudfinderError(f"{lm.source.id} has no tokenizer", do="Give one: sf.load(model, tokenizer=...)")
    return lm.tokenizer


def _read(tokenizer: Any, texts: Sequence[str], special: bool) -> list[list[int]]:
    read = tokenizer(list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False)
    return [list(ids) for ids in read["input_ids"]]


def _end(tokenizer: Any, special: bool) -> list[int]:
    """The ids that the tokenizer puts after every text: what the ids of quite different texts end in alike.

    So it does not matter which mechanism puts them there (a template, a flag, code of the tokenizer's own), nor whether
    they are declared special. Looked at each time, as settings of a live tokenizer may change; it takes half a
    millisecond.
    """
    size, special_ids = len(tokenizer), set(tokenizer.all_special_ids)
    spread = dict.fromkeys(size * (2 * i + 1) // (2 * _PROBES) for i in range(_PROBES))
    words = [tokenizer.decode([token]) for token in spread if token not in special_ids]
    first, *others = _read(tokenizer, list(dict.fromkeys(["a", "7", ".", *words])), special)
    length = 0
    while length < len(first) and all(ids[-length - 1 : len(ids) - length] == [first[-length - 1]] for ids in others):
        length += 1
    return first[len(first) - length :]
