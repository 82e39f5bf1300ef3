"""Perplexity, by protocols that are named and never confused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Literal

import numpy as np

from studfinder.errors import NotApplicable, StudfinderError
from studfinder.measures.asked import Advance, check_window
from studfinder.measures.likelihood import log_likelihoods
from studfinder.measures.scores import Scores
from studfinder.models import LM
from studfinder.stats import ratio_interval
from studfinder.texts import WHOLE, Text, added_before, corpus, encode, proof_text, tokenizer_of
from studfinder.texts.encoding import first_token

Protocol = Literal["windows", "gptq", "word"]


def perplexity(
    lm: LM,
    text: str | Path | list[str] = "proof",
    *,
    protocol: Protocol = "windows",
    window: int = 512,
    stride: int | None = None,
    limit: int | None = None,
    level: float = 0.95,
    progress: Advance | None = None,
) -> Scores:
    """Perplexity of a text.

    Args:
        text: "proof" (our own), what `texts.documents` takes ("wikitext2", "c4", a file, a folder, a data set of the
            hub), or a list of texts.
        protocol: "windows" cuts the token stream into windows of `window` tokens, `stride` apart (the default is
            `window`; a smaller one scores only the tokens that are new to each window); "gptq" is GPTQ's: documents
            joined by blank lines, whole windows of 2,048 tokens only; "word" is lm-evaluation-harness's word
            perplexity: the likelihood of each document, conditioned on BOS (EOS where there is none) and read `window`
            tokens at a time (there it is the model's whole context), spread over white-space separated words. A plain
            file is one document; .jsonl holds several.
        limit: at most so many windows (documents, for "word").
        level: of the interval, a bootstrap over windows (documents, for "word").

    Raises:
        StudfinderError: the text is not there, or shorter than one window, or the window is longer than the context.
    """
    name, documents = documents_of(text)
    if protocol == "gptq":
        window, stride = 2048, None
    stride = stride or window
    if window < 2 or not 0 < stride <= window:
        raise StudfinderError(f"window {window} with stride {stride}", expected="2 <= window and 0 < stride <= window")
    if protocol == "word":
        texts = [document for document in documents if document.strip()][:limit]
        cut = [_rolling(ids, window, first) for ids, first in (_prefixed(lm, document) for document in texts)]
        spans = [span for found in cut for span in found]
        owners = np.repeat(np.arange(len(texts)), [len(found) for found in cut])
    else:
        spans = _joined(lm, name, documents, window, stride, whole=protocol == "gptq")[:limit]
        owners = np.arange(len(spans))
    if not spans:
        raise NotApplicable(f"{name} is shorter than one window of {window} tokens", do="Use a longer text")
    check_window(lm, "perplexity", window)
    found = log_likelihoods(lm, [(ids[:first], ids[first:]) for ids, first in spans], progress=progress)
    nll = np.bincount(owners, weights=[-one.logprob for one in found])
    tokens = np.bincount(owners, weights=[one.tokens for one in found])
    weights = np.array([len(re.split(r"\s+", text)) for text in texts], float) if protocol == "word" else tokens
    interval = ratio_interval(nll, weights, level=level, exponential=True)
    digest = hashlib.sha256(repr([ids for ids, _ in spans]).encode()).hexdigest()[:12]
    return Scores(
        measure=f"perplexity ({protocol}, window {window}, stride {stride})",
        value=interval.value,
        interval=interval,
        items={"nll": tuple(nll.tolist()), "tokens": tuple(weights.tolist())},
        text=f"{name} {digest}",
        better="lower",
    )


def perplexity_of(
    lm: LM, text: str = "proof", *, limit: int | None = None, seed: int = 0, progress: Advance | None = None
) -> Scores:
    """Perplexity as a scorecard takes it: windows of 512 tokens (256 for our proof text, which is short; no longer than
    the model's context), at most `limit` of them; nothing is drawn at random, so `seed` changes nothing."""
    window = min(256 if text == "proof" else 512, lm.anatomy.max_positions or 512)
    return perplexity(lm, text, window=window, limit=limit, progress=progress)


def windows_of(
    lm: LM, text: str | Path | list[str] = "proof", *, window: int = 512, limit: int | None = None
) -> tuple[str, list[list[int]]]:
    """A text's name and its windows of token ids, as `perplexity` takes them. Raises as that."""
    name, documents = documents_of(text)
    return name, [ids for ids, _ in _joined(lm, name, documents, window, window, whole=False)][:limit]


def _joined(lm: LM, name: str, documents: list[str], window: int, stride: int, *, whole: bool) -> list[_Span]:
    """Windows of the documents as one text."""
    ids = encode(lm, [Text(name, "\n\n".join(documents))], limit=WHOLE)[0][0]
    return _spans(ids, window, stride, max(1, added_before(tokenizer_of(lm))), whole=whole)


def documents_of(text: str | Path | list[str]) -> tuple[str, list[str]]:
    """A text's name and its documents: "proof" (our own), a corpus, a file, or texts that are given."""
    if isinstance(text, list):
        return "given", text
    if str(text) == "proof":
        return "studfinder-proof-1", [piece.text for piece in proof_text()]
    return corpus(text)


_Span = tuple[list[int], int]
"""Token ids, and from which position on they are scored."""


def _spans(ids: list[int], window: int, stride: int, first: int, *, whole: bool) -> list[_Span]:
    """Windows of a text whose first `first` ids are not the text's own, or have nothing before them."""
    spans: list[_Span] = []
    end = first
    for start in range(0, len(ids), stride):
        piece = ids[start : start + window]
        if len(piece) < 2 or (whole and len(piece) < window):
            break
        spans.append((piece, max(1, end - start)))
        end = start + len(piece)
        if end >= len(ids):
            break
    return spans


def _prefixed(lm: LM, document: str) -> tuple[list[int], int]:
    """Token ids with something before the text's first to condition it on, and how many that is: what the tokenizer
    puts there, or else BOS, or EOS where there is no BOS."""
    ids = encode(lm, [Text("document", document)], limit=WHOLE)[0][0]
    tokenizer = tokenizer_of(lm)
    prefix, before = first_token(tokenizer), added_before(tokenizer)
    if before or prefix is None or ids[0] == prefix:
        return ids, max(1, before)
    return [prefix, *ids], 1


def _rolling(ids: list[int], window: int, first: int = 1) -> list[_Span]:
    """Windows that score each token from the `first` on exactly once, the last with as much context as it can read."""
    spans: list[_Span] = []
    scored, total = first - 1, len(ids) - 1
    while scored < total:
        count = min(window, total - scored)
        scored += count
        piece = ids[max(0, scored - window) : scored + 1]
        spans.append((piece, len(piece) - count))
    return spans
