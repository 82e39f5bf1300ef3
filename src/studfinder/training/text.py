"""Text to train on as tokens: a tokenizer trained on the documents, and windows of packed tokens."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.runs import write_bytes, write_text
from studfinder.texts import check_ids, documents, texts_in, token_ids
from studfinder.training.spans import with_repeat
from studfinder.training.streams import _generator, _Split

END = "<|endoftext|>"
"""Between documents, and the first token of a text."""
HELD_OUT = 0.05
"""Share of the windows, at the end of the text, that is kept for evaluation."""


def train_tokenizer(texts: Iterable[str], vocabulary: int | None) -> Any:
    """A byte-level tokenizer trained in place: BPE of `vocabulary` tokens, or plain bytes if that is None (257)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary is not None and vocabulary < len(alphabet) + 1:
        raise StudfinderError(f"a vocabulary of {vocabulary} is too small", expected="257 (bytes) or more")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary or len(alphabet) + 1,
        special_tokens=[END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)


@dataclass(frozen=True)
class TextSource:
    """Windows of packed tokens: documents one after the other, END before each, cut every `length` tokens.

    The last 5 % of the windows are the test split; the others are shuffled anew each epoch, by the run's seed.

    Attributes:
        tokens_N: all token ids.
        length: of a window.
        vocabulary: token ids of the tokenizer.
        name: of the text, for the record.
        end: the id of END.
        apart: keep packed documents from seeing each other: positions start anew at each, which KV shift and most of
            transformers' masks take as the border of a document (`training.apart.keeps_apart` tells).
        repeat: begin each window with END, which then stands nowhere else, and copy a span of so many to twice as many
            tokens over a later one.
        tests: the text that test rows come from instead, in an order that is always the same.
    """

    tokens_N: np.ndarray
    length: int
    vocabulary: int
    name: str
    end: int = 0
    apart: bool = False
    repeat: int = 0
    tests: TextSource | None = None

    def __post_init__(self) -> None:
        if 4 * self.repeat >= self.length:
            raise StudfinderError(
                f"windows of {self.length} tokens in which {2 * self.repeat} come twice",
                expected=f"windows of {4 * self.repeat + 1} or more",
                do="Give a smaller --repeat, or a larger --length",
            )
        if self.windows < 2:
            raise StudfinderError(
                f"text {self.name!r} has {len(self.tokens_N):,} tokens, too few for windows of {self.length}",
                expected=f"{2 * self.length:,} or more",
                do="Give it more text, or a smaller --length",
            )

    @property
    def windows(self) -> int:
        """Whole windows in the text."""
        return len(self.tokens_N) // self._read

    @property
    def _read(self) -> int:
        """Tokens of the text in a window."""
        return self.length - bool(self.repeat)

    @property
    def test_rows(self) -> int:
        """Windows kept for evaluation."""
        return max(1, round(HELD_OUT * self.windows)) if self.tests is None else self.tests.train_windows

    @property
    def train_windows(self) -> int:
        """Windows of an epoch."""
        return self.windows - (self.test_rows if self.tests is None else 0)

    def row(self, split: _Split, seed: int, index: int) -> dict[str, np.ndarray]:
        if split == "test" and self.tests is not None:
            return self.tests.row("train", 0, index % self.tests.train_windows)
        place = self._place(split, seed, index) * self._read
        tokens_T = np.array(self.tokens_N[place : place + self._read], dtype=np.int64)
        if self.repeat:
            copied_T = with_repeat(tokens_T, self.repeat, _generator(split, seed, index))
            tokens_T = np.concatenate([[self.end], copied_T])
        if not self.apart:
            return {"input_ids": tokens_T, "labels": tokens_T}
        begins_T = tokens_T == self.end
        counts_T = np.arange(self.length)
        since_T = np.maximum.accumulate(np.where(begins_T, counts_T, 0))
        labels_T = np.where(begins_T, -100, tokens_T)  # nobody can know that a document is over
        return {"input_ids": tokens_T, "labels": labels_T, "position_ids": counts_T - since_T}

    def _place(self, split: _Split, seed: int, index: int) -> int:
        if split == "test":
            return self.train_windows + index % self.test_rows
        epoch, within = divmod(index, self.train_windows)
        return int(_order(self.train_windows, seed, epoch)[within])

    def settings(self) -> dict[str, Any]:
        return {
            "text": self.name,
            "text_tokens": len(self.tokens_N),
            "text_hash": hashlib.sha256(np.ascontiguousarray(self.tokens_N).data).hexdigest()[:16],
            "length": self.length,
            "vocabulary": self.vocabulary,
            "apart": self.apart,
            **({"repeat": self.repeat} if self.repeat else {}),
            **({} if self.tests is None else {"tests": self.tests.settings()}),
        }


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(windows: int, seed: int, epoch: int) -> np.ndarray:
    """The windows of an epoch, shuffled."""
    key = (windows, seed, epoch)
    if key not in _orders:
        _orders.clear()
        _orders[key] = np.random.default_rng((seed, epoch)).permutation(windows)
    return _orders[key]


def tokenized(
    name: str,
    length: int,
    vocabulary: int | None,
    *,
    folder: Path | None = None,
    apart: bool = False,
    lm: LM | None = None,
    limit: int | None = None,
    repeat: int = 0,
    test_text: str | None = None,
    sample: int = 50_000_000,
    progress: Callable[[int], Any] | None = None,
) -> tuple[TextSource, Any]:
    """Train a tokenizer on a text and tokenize it; both are kept in `folder` and found there again.

    Args:
        name: see `texts.documents`.
        vocabulary: of the BPE; None is plain bytes.
        lm: a trained model whose tokenizer is used instead.
        limit: stop after so many tokens of each text: what the run will see.
        repeat: see `TextSource`.
        test_text: the text of its `tests`.
        sample: characters that the tokenizer is trained on, from the start of the text.
        progress: told the tokens so far.

    Raises:
        StudfinderError: no such text, an empty one, one shorter than two windows, ids that the trained model's
            embedding lacks, or a full disk.
    """
    tokenizer = None if lm is None else lm.tokenizer
    ids = folder / "tokens.npy" if folder is not None else None
    kept = ids is not None and ids.is_file()
    if ids is not None and kept:
        tokenizer = tokenizer or _kept_tokenizer(ids.with_name("tokenizer.json"))
    trained = tokenizer is None
    tokenizer = tokenizer or train_tokenizer(_sample(documents(name)[1], sample), vocabulary)
    kind = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)

    def chunks(text: str) -> Iterator[np.ndarray]:
        for part in texts_in(text):
            found = _chunks(documents(part)[1], tokenizer, kind, limit, progress, marked=not repeat)
            yield from found if lm is None else _in_embedding(lm, found, part)

    if ids is None:
        tokens_N = _gathered(chunks(name), kind)
    else:
        if not kept or trained:
            write_bytes(ids, lambda path: _save(path, chunks(name), kind))
        tokens_N = np.load(ids, mmap_mode="r")
        if trained:
            write_text(ids.with_name("tokenizer.json"), tokenizer.backend_tokenizer.to_str())
    source = TextSource(tokens_N, length, len(tokenizer), name, tokenizer.eos_token_id, apart, repeat)
    if test_text is not None:
        tests = replace(source, tokens_N=_gathered(chunks(test_text), kind), name=test_text)
        source = replace(source, tests=tests)
    return source, tokenizer


def _kept_tokenizer(file: Path) -> Any:
    """The tokenizer that was trained here before, if it was."""
    from transformers import PreTrainedTokenizerFast

    if not file.is_file():
        return None
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=END, pad_token=END)


def _gathered(chunks: Iterable[np.ndarray], kind: np.dtype) -> np.ndarray:
    """Tokens in memory, two or four bytes each."""
    buffer = io.BytesIO()
    for chunk in chunks:
        buffer.write(chunk.data)
    return np.frombuffer(buffer.getbuffer(), kind)


def _save(path: Path, chunks: Iterable[np.ndarray], kind: np.dtype) -> None:
    """Tokens as an .npy file, written as they come. How many there are is filled in last."""
    count = 0
    with path.open("wb") as file:
        _npy_header(file, kind, count)
        for chunk in chunks:
            file.write(chunk.data)
            count += len(chunk)
        file.seek(0)
        _npy_header(file, kind, count)


def _npy_header(file: BinaryIO, kind: np.dtype, count: int) -> None:
    # numpy pads it, so that an array can grow in place: every count takes the same room.
    header = {"shape": (count,), "fortran_order": False, "descr": np.lib.format.dtype_to_descr(kind)}
    np.lib.format.write_array_header_1_0(file, header)


def _sample(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def _chunks(
    texts: Iterable[str],
    tokenizer: Any,
    kind: np.dtype,
    limit: int | None,
    progress: Callable[[int], Any] | None,
    marked: bool,
) -> Iterator[np.ndarray]:
    """The tokens of a few documents at a time, END before each if they are marked, up to the limit."""
    end = tokenizer.eos_token_id
    if end is None:
        raise StudfinderError("this tokenizer has no end-of-text token", expected="one to put between documents")
    total = 0
    for batch in _batched(texts):
        tokens = [np.array([end, *ids][not marked :], dtype=kind) for ids in token_ids(tokenizer, batch, special=False)]
        chunk = np.concatenate(tokens)[: None if limit is None else limit - total]
        total += len(chunk)
        yield chunk
        if progress is not None:
            progress(total)
        if limit is not None and total >= limit:
            break


def _in_embedding(lm: LM, chunks: Iterable[np.ndarray], name: str) -> Iterator[np.ndarray]:
    for chunk in chunks:
        check_ids(lm, [[int(chunk.min()), int(chunk.max())]], f"the tokens of {name!r}")
        yield chunk


def _batched(texts: Iterable[str], documents: int = 256, characters: int = 200_000) -> Iterator[list[str]]:
    """So many documents, or characters, at a time: a token is some 40 bytes before it is two."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if len(batch) == documents or size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
