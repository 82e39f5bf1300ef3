"""Texts to observe a model on: our own prompts and proof text, or the user's files."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from studfinder.errors import StudfinderError
from studfinder.records.outside import json_lines, read_text
from studfinder.texts.encoding import WHOLE, check_ids, token_ids, tokenizer_of
from studfinder.texts.tokens import Tokenized

DEFAULT_PROMPTS = "studfinder-prompts-1"
PROOF_TEXT = "studfinder-proof-1"


@dataclass(frozen=True)
class Text:
    """A named piece of text."""

    name: str
    text: str


def default_prompts() -> tuple[Text, ...]:
    """Our twelve prompts: prose with delimiters, code, a list, numbers, French, German, a dialogue, one sentence."""
    content = json.loads(files("studfinder.texts").joinpath("data/prompts.json").read_text("utf-8"))
    return tuple(Text(entry["name"], entry["text"]) for entry in content)


def proof_text() -> tuple[Text, ...]:
    """Our proof text: about 4,000 tokens of prose in sixteen pieces. Verdicts are always reached on it, so that they
    compare across models."""
    content = files("studfinder.texts").joinpath("data/proof.txt").read_text("utf-8").strip()
    pieces = [piece for piece in content.split("\n\n") if piece.strip()]
    return tuple(Text(piece.split("\n", 1)[0], piece) for piece in pieces)


def read_prompts(path: Path) -> tuple[Text, ...]:
    """Prompts from a file: .jsonl with a "text" field a line, or plain text as one prompt.

    Raises:
        StudfinderError: the file is missing, unreadable or holds no text.
    """
    if path.suffix != ".jsonl":
        texts = [Text(path.stem, read_text(path, name="prompts file"))]
    else:
        texts = []
        for number, row in json_lines(path, name="prompts file"):
            if not isinstance(row.get("text"), str):
                raise StudfinderError(
                    f"{path} line {number} is not a prompt", expected='a JSON object with a "text" field'
                )
            texts.append(Text(f"{path.stem}:{number}", row["text"]))
    if not any(text.text.strip() for text in texts):
        raise StudfinderError(f"prompts file {path} holds no text", expected="at least one non-empty prompt")
    return tuple(texts)


def encode(
    lm: Tokenized, texts: Sequence[Text], *, bos: bool | None = None, limit: int | None = None
) -> tuple[list[list[int]], bool]:
    """Token ids of each text, without what the tokenizer puts at its end, and whether they begin with BOS.

    Args:
        bos: None leaves it to the tokenizer, True and False put BOS there or take it away.
        limit: longest allowed; longer texts are cut. The default is the model's context; `WHOLE` cuts nothing.

    Raises:
        StudfinderError: no tokenizer, an empty text, BOS asked for where the tokenizer has none, or ids beyond the
            model's embedding.
    """
    tokenizer = tokenizer_of(lm)
    first = tokenizer.bos_token_id
    if bos and first is None:
        raise StudfinderError(f"the tokenizer of {lm.source.id} has no BOS token", do="Leave BOS to the tokenizer")
    limit = limit or lm.anatomy.max_positions or 2048
    for text in texts:
        if not text.text.strip():
            raise StudfinderError(f"prompt {text.name!r} is empty", expected="some text")
    encoded = []
    for text, ids in zip(texts, token_ids(tokenizer, [text.text for text in texts]), strict=True):
        if bos is not None and first is not None:
            ids = ids[1:] if ids and ids[0] == first else ids
            ids = [first, *ids] if bos else ids
        if not ids:
            raise StudfinderError(
                f"the tokenizer gives no tokens for {text.name!r}", do="Is it this model's tokenizer?"
            )
        check_ids(lm, [ids], repr(text.name))
        encoded.append(ids[:limit])
    begins = first is not None and all(ids[0] == first for ids in encoded)
    return encoded, begins


def proof_windows(lm: Tokenized, *, bos: bool | None = None, count: int = 16) -> list[list[int]]:
    """The proof text as windows of equal length, spread over all of it, each beginning as the tokenizer begins a text.

    Their order is random, and always the same: the first few are a random sample of all. A tokenizer that makes fewer
    tokens of the text than would fill them gives fewer windows. Shorter ones are no cheaper way to the same numbers:
    a weight that carries what a text begins with does twice as much a token in 62 tokens as in 250.

    Args:
        bos, raises: as in `encode`.
        count: how many.
    """
    (probe,), _ = encode(lm, [Text("probe", "a")], bos=bos)
    begin = probe[: max(0, len(probe) - len(token_ids(tokenizer_of(lm), ["a"], special=False)[0]))]
    pieces, _ = encode(lm, proof_text(), bos=bos, limit=WHOLE)
    ids = [token for piece in pieces for token in piece[len(begin) :]]
    apart = max(2, len(ids) // count)
    length = min(apart, (lm.anatomy.max_positions or 2048) - len(begin))
    windows = [[*begin, *ids[start : start + length]] for start in range(0, len(ids) - apart + 1, apart)][:count]
    draw = random.Random(0)
    return sorted(windows or [[*begin, *ids]], key=lambda _: draw.random())
