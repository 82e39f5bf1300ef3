"""Tokenizers of every habit, made on the spot, each with the texts it is tried on and the ids that are meant."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [f"{a}{b}" for a in ("ka", "lo", "mi", "ru", "te") for b in ("ba", "do", "fi", "gu", "shen")]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "[CLS]", "[SEP]"]
ROWS = 512

HABITS: dict[str, tuple[list[str], list[str]]] = {
    "nothing": ([], []),
    "BOS": (["<s>"], []),
    "EOS": ([], ["</s>"]),
    "both": (["<s>"], ["</s>"]),
    "cls and sep": (["[CLS]"], ["[SEP]"]),
    "two at each end": (["[CLS]", "<s>"], ["[SEP]", "</s>"]),
}
"""What is put before and after a text."""


def _words() -> tuple[models.Model, Callable[[Tokenizer], None]]:
    model = models.WordLevel(_ids([*SPECIAL, *WORDS]), unk_token="<unk>")

    def finish(backend: Tokenizer) -> None:
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()

    return model, finish


def _metaspace(scheme: str) -> tuple[models.Model, Callable[[Tokenizer], None]]:
    letters = sorted(set("".join(WORDS)))
    pieces = [*SPECIAL, "▁", *letters, *(f"▁{word}" for word in WORDS)]
    scores = [0.0] * len(SPECIAL) + [-5.0] * (1 + len(letters)) + [-2.0] * len(WORDS)
    model = models.Unigram(list(zip(pieces, scores, strict=True)), SPECIAL.index("<unk>"))

    def finish(backend: Tokenizer) -> None:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
        backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)

    return model, finish


def _prepended() -> tuple[models.Model, Callable[[Tokenizer], None]]:
    """As Llama 2 does it: a normalizer writes the first space."""
    model, _ = _metaspace("never")

    def finish(backend: Tokenizer) -> None:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")

    return model, finish


def _bytes(prefix: bool) -> tuple[models.Model, Callable[[Tokenizer], None]]:
    """Bytes, and merges of the words with their space, as GPT-2's."""
    vocabulary, merges = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())], []
    for word in WORDS:
        piece = "Ġ"
        for letter in word:
            if piece + letter not in vocabulary:
                vocabulary.append(piece + letter)
                merges.append((piece, letter))
            piece += letter
    model = models.BPE(_ids(vocabulary), merges)

    def finish(backend: Tokenizer) -> None:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        backend.decoder = decoders.ByteLevel()

    return model, finish


KINDS: dict[str, Callable[[], tuple[models.Model, Callable[[Tokenizer], None]]]] = {
    "words": _words,
    "metaspace first": lambda: _metaspace("first"),
    "metaspace always": lambda: _metaspace("always"),
    "prepended": _prepended,
    "bytes": lambda: _bytes(False),
    "bytes after a space": lambda: _bytes(True),
}


@dataclass(frozen=True)
class Drawn:
    """A tokenizer, what it adds, and a context with its continuation."""

    kind: str
    habit: str
    tokenizer: Any
    bare: Any
    start: list[int]
    end: list[int]
    context: str
    continuation: str

    @property
    def meant(self) -> tuple[list[int], list[int]]:
        """By offsets: a token belongs to the continuation if it ends behind the context."""
        encoding = self.bare.encode(self.context + self.continuation, add_special_tokens=False)
        inside = [stop <= len(self.context) for _, stop in encoding.offsets]
        cut = inside.index(False)
        return [*self.start, *encoding.ids[:cut]], encoding.ids[cut:]


def drawn(count: int, seed: int = 0) -> Iterator[Drawn]:
    """So many instances; every kind of tokenizer with every habit takes its turn."""
    generator = random.Random(seed)
    pairs = [(kind, habit) for kind in KINDS for habit in HABITS]
    for number in range(count):
        kind, habit = pairs[number % len(pairs)]
        before, after = HABITS[habit]
        tokenizer, bare = _tokenizer(kind, before, after, generator)
        words = [generator.choice(WORDS) for _ in range(generator.randint(2, 9))]
        cut = generator.randint(1, len(words) - 1)
        context, rest = " ".join(words[:cut]), " " + " ".join(words[cut:])
        start, end = ([SPECIAL.index(name) for name in names] for names in (before, after))
        yield Drawn(kind, habit, tokenizer, bare, start, end, context, rest)


def _tokenizer(kind: str, before: list[str], after: list[str], generator: random.Random) -> tuple[Any, Tokenizer]:
    model, finish = KINDS[kind]()
    backend, bare = Tokenizer(model), Tokenizer(model)
    for one in (backend, bare):
        finish(one)
        one.add_special_tokens(SPECIAL)
    ids = [(name, SPECIAL.index(name)) for name in {*before, *after}]
    if before or after:
        template = processors.TemplateProcessing(single=" ".join([*before, "$A", *after]), special_tokens=ids)
        offsets = processors.ByteLevel(trim_offsets=False)  # Llama 3's way: a sequence of two
        backend.post_processor = processors.Sequence([offsets, template]) if generator.random() < 0.5 else template
    known = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if "[CLS]" in before:
        known |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **known), bare


def _ids(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(pieces)}
