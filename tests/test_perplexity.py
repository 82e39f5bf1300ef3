"""Perplexity by batches is that of one plain pass a window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from studfinder.errors import StudfinderError
from studfinder.measures import perplexity
from studfinder.measures.perplexity import _rolling
from tasked import worded, words


def _plain(lm, ids, first):
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    picked = logits[first - 1 : -1].log_softmax(-1)
    return -float(picked.gather(1, torch.tensor(ids[first:])[:, None]).sum())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_windows_are_scored_as_by_plain_passes(architecture):
    """Law 10 for perplexity."""
    lm = worded(architecture)
    text = words(np.random.default_rng(0), 400)
    ids = lm.tokenizer(text)["input_ids"]
    scores = perplexity(lm, [text], window=50)
    expected = [
        _plain(lm, ids[start : start + 50], 1) for start in range(0, 401, 50) if len(ids[start : start + 50]) > 1
    ]
    np.testing.assert_allclose(scores.items["nll"], expected, rtol=1e-5)
    assert scores.value == pytest.approx(np.exp(sum(expected) / sum(scores.items["tokens"])), rel=1e-5)


def test_overlapping_windows_score_only_what_is_new():
    lm = worded()
    text = words(np.random.default_rng(0), 130)
    ids = lm.tokenizer(text)["input_ids"]
    scores = perplexity(lm, [text], window=60, stride=20)
    assert sum(scores.items["tokens"]) == len(ids) - 1
    assert scores.items["nll"][1] == pytest.approx(_plain(lm, ids[20:80], 40), rel=1e-5)


@pytest.mark.parametrize("total", [2, 50, 51, 52, 100, 101, 137])
def test_rolling_windows_score_every_token_once(total):
    ids = list(range(total))
    spans = _rolling(ids, 50)
    assert [token for piece, first in spans for token in piece[first:]] == ids[1:]
    assert all(len(piece) - 1 == min(50, total - 1) for piece, _ in spans)


def test_word_perplexity_is_that_of_the_harness():
    pytest.importorskip("lm_eval", reason="the extra `evaluate` is not installed")
    from lm_eval.api.instance import Instance

    from studfinder.measures.tasks.adapter import LiveLM

    lm = worded()
    lm.tokenizer.backend_tokenizer.post_processor = None  # no BOS of its own, like SmolLM2's
    random = np.random.default_rng(3)
    documents = [words(random, count) for count in (4, 128, 200, 300)]
    scores = perplexity(lm, documents, protocol="word", window=128)
    theirs = LiveLM(lm).loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0) for text in documents])
    np.testing.assert_allclose(scores.items["nll"], [-value for value in theirs], rtol=1e-5)
    assert scores.items["tokens"] == (4, 128, 200, 300)


def test_a_plain_file_is_one_document_and_a_folder_its_files(tmp_path):
    lm, random = worded(), np.random.default_rng(3)
    texts = ["\n".join(words(random, 30) for _ in range(4)) for _ in range(3)]
    for place, text in enumerate(texts):
        (tmp_path / f"{place}.txt").write_text(text)
    for text, found in ((tmp_path / "0.txt", texts[:1]), (tmp_path, texts)):
        for protocol in ("windows", "word"):
            scores = perplexity(lm, text, protocol=protocol, window=50)
            assert scores.items == perplexity(lm, found, protocol=protocol, window=50).items
            assert protocol == "windows" or scores.interval.n == len(found)


def test_a_window_beyond_the_context_is_refused():
    with pytest.raises(StudfinderError, match="the model's window of"):
        perplexity(worded(), [words(np.random.default_rng(0), 600)], window=512)
