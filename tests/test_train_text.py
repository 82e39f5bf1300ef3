"""Text to train on: tokenizers made in place, packed documents, windows, and what cannot be read."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from studfinder.errors import StudfinderError
from studfinder.texts import documents, fingerprint
from studfinder.training import PRESETS, ModelShape, TextSource, build_model, tokenized, variants_from
from studfinder.training.apart import keeps_apart
from studfinder.training.estimate import estimate, estimate_of
from studfinder.training.spans import with_repeat
from studfinder.training.streams import SequenceRows, collate
from studfinder.training.text import END, train_tokenizer
from tiny import tiny

STORY = "One day a fox met a crow. The crow had some cheese, and the fox said: sing to me! Größe, naïve, 你好.\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "stories.jsonl"
    path.write_text("\n".join(json.dumps({"text": STORY * (i + 1)}) for i in range(10)))
    return path


@pytest.mark.parametrize("vocabulary", [None, 300])
def test_tokenizers_are_made_in_place_and_lose_nothing(vocabulary):
    tokenizer = train_tokenizer([STORY] * 20, vocabulary)
    assert len(tokenizer) == (vocabulary or 257)
    ids = tokenizer(STORY)["input_ids"]
    assert tokenizer.decode(ids) == STORY
    assert tokenizer.eos_token_id == 0
    assert (len(ids) == len(STORY.encode())) == (vocabulary is None)


def test_rows_hold_the_documents_in_order(file):
    source, tokenizer = tokenized(str(file), 16, None)
    assert tokenizer.decode(source.tokens_N) == "".join(END + document for document in documents(file)[1])
    row = source.row("test", 0, 0)["input_ids"]
    start = source.train_windows * 16
    assert row.tolist() == source.tokens_N[start : start + 16].tolist()
    places = [source._place("train", 0, i) for i in range(source.train_windows)]
    assert sorted(places) == list(range(source.train_windows))
    again = [source._place("train", 0, source.train_windows + i) for i in range(source.train_windows)]
    assert sorted(again) == sorted(places)
    assert again != places
    assert [source._place("train", 1, i) for i in range(source.train_windows)] != places
    tests = {source._place("test", 0, i) for i in range(100)}
    assert tests.isdisjoint(places)
    assert len(tests) == source.test_rows


def test_no_window_is_tested_twice(file):
    source, _ = tokenized(str(file), 16, None)
    assert len(SequenceRows(source, "test", 0, 10_000)) == source.test_rows
    assert len(SequenceRows(source, "train", 0, 10_000)) == 10_000


def test_documents_kept_apart_do_not_see_each_other(file):
    source, _ = tokenized(str(file), 64, None, apart=True)
    rows = [source.row("train", 0, i) for i in range(source.train_windows)]
    chosen = [row for row in rows if (row["input_ids"][1:] == 0).any()][:3]
    for row in chosen:
        border = int(np.flatnonzero(row["input_ids"] == 0)[-1])
        assert row["position_ids"][border] == 0
        assert row["labels"][border] == -100
        model = build_model(
            ModelShape(layers=2, hidden=16, heads=2), variants_from(["kv_shift"]), vocabulary=257, length=64, seed=0
        )
        batch = collate([row])
        changed = batch["input_ids"].clone()
        changed[0, :border] = (changed[0, :border] + 1) % 257
        with torch.no_grad():
            one = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits[0, border:]
            other = model(input_ids=changed, position_ids=batch["position_ids"]).logits[0, border:]
            joined = model(input_ids=changed).logits[0, border:]
        assert torch.allclose(one, other, atol=1e-6)
        assert not torch.allclose(one, joined, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "apart"),
    [("llama", True), ("gemma3_text", True), ("gpt2", True), ("opt", False), ("falcon", False), ("lfm2", False)],
)
def test_which_architectures_keep_documents_apart(architecture, apart):
    model = tiny(architecture).model
    assert keeps_apart(model.train()) == apart
    assert model.training  # as it was


@pytest.mark.parametrize("attention", ["kv_shift", "gated", "softpick", "alibi"])
def test_attention_of_ours_keeps_them_apart_too(attention):
    shape = ModelShape(layers=2, hidden=16, heads=2)
    assert keeps_apart(build_model(shape, variants_from([attention]), vocabulary=257, length=16, seed=0))


def test_tokens_are_kept_in_the_folder_and_found_again(file, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    first, tokenizer = tokenized(str(file), 16, 300, folder=folder)
    file.unlink()
    second, again = tokenized(str(file), 16, 300, folder=folder)
    assert (first.tokens_N == second.tokens_N).all()
    assert again(STORY)["input_ids"] == tokenizer(STORY)["input_ids"]
    assert again.eos_token_id == tokenizer.eos_token_id == first.end


@pytest.mark.parametrize("kept", [False, True])
def test_a_limit_stops_early(file, tmp_path, kept):
    whole = tokenized(str(file), 16, None)[0].tokens_N
    for limit in (100, 107, len(whole), len(whole) + 1):
        folder = tmp_path / str(limit)
        folder.mkdir()
        cut = tokenized(str(file), 16, None, limit=limit, folder=folder if kept else None)[0].tokens_N
        assert cut.tolist() == whole[:limit].tolist()


def test_tokens_are_written_as_they_come(tmp_path):
    """However long the text is, no more of it is in memory than a batch of documents."""
    path = tmp_path / "long.jsonl"
    path.write_text((json.dumps({"text": STORY * 10}) + "\n") * 600)
    folder = tmp_path / "run"
    folder.mkdir()
    seen = []

    def on_progress(total):
        (growing,) = folder.glob(".tokens.npy.*")
        seen.append((total, growing.stat().st_size))

    source, _ = tokenized(str(path), 64, None, folder=folder, progress=on_progress)
    assert len(seen) == 3
    assert all(size > 2 * total - io.DEFAULT_BUFFER_SIZE for total, size in seen)
    assert seen[-1][0] == len(source.tokens_N) == 600 * (len((STORY * 10).encode()) + 1)
    assert isinstance(source.tokens_N, np.memmap)
    assert source.tokens_N.tolist() == tokenized(str(path), 64, None)[0].tokens_N.tolist()
    assert {child.name for child in folder.iterdir()} == {"tokens.npy", "tokenizer.json"}


def test_a_text_that_breaks_off_leaves_no_tokens(file, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    file.write_text(file.read_text() + "\n{broken")
    with pytest.raises(StudfinderError, match="line 11 is not valid JSON"):
        tokenized(str(file), 16, None, folder=folder, sample=10)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", "  \n", "is empty"),
        ("broken.jsonl", '{"text": ', "line 1 is not valid JSON"),
        ("other.jsonl", '{"words": "a"}', "cannot be read"),
        ("latin.txt", b"\xff\xfe\xfa", "cannot be read"),
        ("short.txt", "a few words", "too few for windows of 64"),
        (None, None, "there is no text"),
    ],
)
def test_text_that_cannot_be_used(tmp_path, name, content, said):
    path = tmp_path / (name or "missing.txt")
    if name:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(StudfinderError, match=said):
        tokenized(str(path), 64, None)


def test_a_vocabulary_smaller_than_bytes():
    with pytest.raises(StudfinderError, match="too small"):
        train_tokenizer([STORY], 100)


def test_a_span_comes_twice():
    window_T, spans = np.arange(64), set()
    for seed in range(300):
        made_T = with_repeat(window_T, 16, np.random.default_rng(seed))
        (changed,) = np.nonzero(made_T != window_T)
        there, span = int(changed[0]), len(changed)
        start = int(made_T[there])
        assert changed.tolist() == list(range(there, there + span))  # one run, and the rest is as it was
        assert made_T[there : there + span].tolist() == list(range(start, start + span))
        assert start + span <= there
        spans.add(span)
    assert spans == set(range(16, 33))


def test_windows_with_a_span_twice_begin_with_end_and_are_numbered(file):
    source, tokenizer = tokenized(str(file), 33, None, repeat=4)
    assert tokenizer.decode(source.tokens_N) == "".join(documents(file)[1])
    assert source.windows == len(source.tokens_N) // 32
    for split in ("train", "test"):
        row = source.row(split, 0, 1)
        assert row["input_ids"].shape == (33,)
        assert row["input_ids"][0] == source.end
        assert row["labels"].tolist() == row["input_ids"].tolist() == source.row(split, 0, 1)["input_ids"].tolist()
        place = source._place(split, 0, 1) * 32
        plain_T = source.tokens_N[place : place + 32]
        changed = np.count_nonzero(row["input_ids"][1:] != plain_T)
        assert 0 < changed <= 8
    with pytest.raises(StudfinderError, match="expected windows of 17 or more"):
        tokenized(str(file), 16, None, repeat=4)


@pytest.mark.parametrize("kept", [False, True])
def test_several_texts_and_another_to_test_on(file, tmp_path, kept):
    other = tmp_path / "other.txt"
    other.write_text("abc " * 100)
    test_text = tmp_path / "test.txt"
    test_text.write_text("xyz " * 100)
    both, folder = f"{file} + {other}", tmp_path if kept else None
    plain, tokenizer = tokenized(str(file), 16, None)
    for _ in range(2):  # the second time the tokens are found in the folder
        source, _ = tokenized(both, 16, None, limit=300, folder=folder, test_text=str(test_text))
        assert tokenizer.decode(source.tokens_N) == tokenizer.decode(plain.tokens_N[:300]) + END + ("abc " * 75)[:299]
        assert source.train_windows == source.windows
        assert source.test_rows == round(0.95 * source.tests.windows)
        rows = [source.row("test", seed, index)["input_ids"] for seed in range(2) for index in range(source.test_rows)]
        assert set(np.concatenate(rows)) <= set(tokenizer("xyz ")["input_ids"]) | {source.end}
        assert [row.tolist() for row in rows[: source.test_rows]] == [row.tolist() for row in rows[source.test_rows :]]
    said = documents(both)
    assert said[0] == f"{file.name} + other.txt"
    assert len(list(said[1])) == 11
    assert source.settings()["tests"]["text"] == str(test_text)
    before = fingerprint(both)
    other.write_text("abd " * 100)
    assert fingerprint(both) != before


def test_what_writes_to_the_stream_can_start_smaller():
    for architecture in ("llama", "opt"):
        shape = ModelShape(architecture=architecture, layers=2, hidden=16, heads=2)
        plain, scaled = (
            dict(build_model(one, [], vocabulary=32, length=16, seed=0).named_parameters())
            for one in (shape, replace(shape, scaled_init=True))
        )
        ratios = {
            name: float((scaled[name] / plain[name]).detach().nanmean()) for name in plain if plain[name].dim() > 1
        }
        halved = {name for name, ratio in ratios.items() if ratio == pytest.approx(0.5)}
        assert len(halved) == 4
        assert all(".layers." in name and ratios[name] == 0.5 for name in halved)
        assert all(ratio == pytest.approx(1) for name, ratio in ratios.items() if name not in halved)


def test_a_source_says_what_it_is(file):
    source, _ = tokenized(str(file), 16, None)
    other = TextSource(source.tokens_N[::-1].copy(), 16, 257, source.name)
    assert source.settings()["text_hash"] != other.settings()["text_hash"]


@pytest.mark.parametrize(
    ("name", "millions", "tokens"),
    [
        ("opt-125m", 125, 12.3e9),
        ("kv-shift-1.5b", 1560, 10e9),
        ("1m", 1.05, 20.5e6),
        ("vehicle-span", 0.22816, 4000 * 8 * 65),
    ],
)
def test_presets_have_the_sizes_of_their_papers(name, millions, tokens):
    preset = PRESETS[name]
    found = estimate(
        preset.shape,
        variants_from(preset.attention),
        preset.recipe,
        vocabulary=preset.vocabulary or 257,
        length=preset.length,
    )
    assert found.parameters / 1e6 == pytest.approx(millions, rel=0.02)
    assert found.tokens == preset.tokens == pytest.approx(tokens, rel=0.01)
    assert found.memory > 16 * found.parameters
    assert found.disk == 40 * found.parameters
    with_text = estimate_of(1, 1, 8, preset.recipe, 70_000, preset.length, 1, 1000)
    assert with_text.disk == 40 + 4 * 1000
    assert found.seconds > 0
