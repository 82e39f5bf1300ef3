"""Texts: prompts, BOS, batches and kinds of tokens."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from studfinder.texts import (
    Text,
    batches,
    corpus,
    default_prompts,
    documents,
    encode,
    fingerprint,
    proof_text,
    read_prompts,
    token_class,
    token_text,
)
from tiny import V, prompts, tiny, tokenizer


@pytest.fixture(scope="module")
def lm() -> LM:
    return load(tiny("llama").model, tokenizer())


def test_our_own_texts_are_what_they_say():
    names = [text.name for text in default_prompts()]
    assert len(names) == len(set(names)) == 12
    assert len(proof_text()) == 16
    assert 2000 < sum(len(text.text.split()) for text in proof_text()) < 4000
    assert all(text.text.strip() for text in (*default_prompts(), *proof_text()))


@pytest.mark.parametrize(("bos", "first"), [(None, 1), (True, 1), (False, 3)])
def test_bos_is_there_as_asked(lm, bos, first):
    encoded, begins = encode(lm, [Text("a", "w3 w4"), Text("b", "w3")], bos=bos)
    assert [ids[0] for ids in encoded] == [first, first]
    assert [len(ids) for ids in encoded] == ([2, 1] if bos is False else [3, 2])  # never doubled
    assert begins is (first == 1)


def test_long_texts_are_cut_to_the_models_context(lm):
    assert len(encode(lm, [Text("a", "w3 " * 500)])[0][0]) == lm.anatomy.max_positions == 128
    assert len(encode(lm, [Text("a", "w3 " * 500)], limit=7)[0][0]) == 7


def test_mistakes_are_named(lm):
    with pytest.raises(StudfinderError, match="prompt 'a' is empty"):
        encode(lm, [Text("a", " \n")])
    with pytest.raises(StudfinderError, match="no tokenizer"):
        encode(load(lm.model), [Text("a", "w3")])
    with pytest.raises(StudfinderError, match="not in the embedding"):
        encode(load(lm.model, tokenizer(words=2 * V)), [Text("a", f"w{V + 5}")])
    bare = tokenizer()
    bare.bos_token = None
    with pytest.raises(StudfinderError, match="no BOS token"):
        encode(load(lm.model, bare), [Text("a", "w3")], bos=True)


def test_prompt_files(tmp_path):
    lines, plain, bad = tmp_path / "p.jsonl", tmp_path / "p.txt", tmp_path / "bad.jsonl"
    lines.write_text(json.dumps({"text": "one"}) + "\n\n" + json.dumps({"text": "zwei ü"}) + "\n", encoding="utf-8")
    plain.write_text("one\n\ntext")
    assert [(t.name, t.text) for t in read_prompts(lines)] == [("p:1", "one"), ("p:3", "zwei ü")]
    assert [(t.name, t.text) for t in read_prompts(plain)] == [("p", "one\n\ntext")]
    for content in ("{", "[1]", '{"txt": "x"}', "3"):
        bad.write_text('{"text": "fine"}\n' + content)
        with pytest.raises(StudfinderError, match=r"line 2 (is not|holds)"):
            read_prompts(bad)
    for content in (b"", b" \n"):
        plain.write_bytes(content)
        with pytest.raises(StudfinderError, match="holds no text"):
            read_prompts(plain)
    plain.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudfinderError, match="cannot be read"):
        read_prompts(plain)
    with pytest.raises(StudfinderError, match="cannot be read"):
        read_prompts(tmp_path / "missing.txt")


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder STUDFINDER_DATA with texts of every kind."""
    files = {
        "books/a.txt": "A whole\n\nbook.\n",
        "books/b.json": json.dumps(["one", {"text": "two"}, {"story": "three"}, " "]),
        "books/c.jsonl": '{"text": "four"}\n\n{"text": "five\\nsix"}\n{"text": ""}\n',
        "books/d.png": "no text",
        "wikitext2/wiki.test.raw": "= Title =\n \nSome words.\nMore.\n",
        "wikitext2/wiki.train.raw": "other text",
        "calibration/wikipedia.txt": '<doc id="1">\nTitle\n\nText.\n</doc>\n',
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("STUDFINDER_DATA", str(tmp_path))
    return tmp_path


BOOKS = {"a.txt": ["A whole\n\nbook.\n"], "b.json": ["one", "two", "three"], "c.jsonl": ["four", "five\nsix"]}


def test_one_rule_for_what_a_document_is(data, monkeypatch):
    every = [document for found in BOOKS.values() for document in found]
    rules = {
        "books": ("books (STUDFINDER_DATA), 3 files", every),
        data / "books": ("books, 3 files", every),
        **{f"books/{name}": (f"books/{name} (STUDFINDER_DATA)", found) for name, found in BOOKS.items()},
        **{str(data / "books" / name): (name, found) for name, found in BOOKS.items()},
        "wikitext2": ("wikitext2 (STUDFINDER_DATA)", ["= Title =", "Some words.", "More."]),
        "wikipedia": ("wikipedia sample (STUDFINDER_DATA)", ["Title", "Text."]),
        data / "wikitext2/wiki.test.raw": ("wiki.test.raw", ["= Title =\n \nSome words.\nMore.\n"]),
    }
    (data / "here/wikitext2").mkdir(parents=True)  # a folder that has the name of a text
    monkeypatch.chdir(data / "here")
    for name, (source, found) in rules.items():
        assert corpus(name) == (source, found)
        streamed = documents(name)
        assert (streamed[0], list(streamed[1])) == (source, found)
    monkeypatch.chdir(data)
    monkeypatch.delenv("STUDFINDER_DATA")
    assert corpus("books")[0] == "books, 3 files"
    assert corpus("./wikitext2")[1] == ["= Title =\n \nSome words.\nMore.\n", "other text"]


@pytest.mark.parametrize(
    "name", ["", "nothing", "nothing@v1", "a/b/c", "books/none.txt", "./owner/name", "x" * 300, "a\0"]
)
def test_a_text_that_is_nowhere(data, name):
    with pytest.raises(StudfinderError, match=r"there is no text .*; expected a file, a folder, .* wikitext2, c4"):
        corpus(name)


def test_texts_that_cannot_be_read_say_where(data):
    bad = data / "books" / "a.jsonl"
    for content, said in (
        ('{"text": "x"}\n{"txt": 1}', r"a\.jsonl cannot be read \(line 2 has no text"),
        ("", "is empty"),
    ):
        bad.write_text(content)
        with pytest.raises(StudfinderError, match=said):
            corpus(bad)
    bad.write_bytes(b'{"text": "x"}\n' * 2000 + b"\xff")
    with pytest.raises(StudfinderError, match=r"not UTF-8 \(byte 28,000\)"):
        corpus("books")


def test_a_changed_text_is_told(data):
    names = ("books", "wikitext2", str(data / "books/a.txt"))
    before = [fingerprint(name) for name in names]
    assert before == [fingerprint(name) for name in names]
    (data / "books/a.txt").write_text("Another book.")
    (data / "wikitext2/wiki.test.raw").write_text("Another text.")
    assert all(fingerprint(name) != was for name, was in zip(names, before, strict=True))


@given(st.lists(st.integers(1, 7), min_size=1, max_size=9), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_batches_hold_every_token_once_at_its_place(lengths, size):
    encoded = prompts(tuple(lengths))
    seen = []
    for batch in batches(encoded, size, pad=0):
        flat = torch.arange(batch.input_ids_BT.numel()) if batch.real_N is None else batch.real_N
        for (prompt, position), token in zip(
            batch.where(flat).tolist(), batch.input_ids_BT.flatten()[flat].tolist(), strict=True
        ):
            seen.append((prompt, position, token))
        assert (batch.mask_BT is None) == (len(set(batch.lengths)) == 1)
    assert seen == [(p, t, token) for p, ids in enumerate(encoded) for t, token in enumerate(ids)]


def test_a_batch_of_none_is_refused():
    with pytest.raises(StudfinderError, match="batch size 0"):
        next(batches([[1]], 0))


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("the", 0, "first"),
        (" the", 3, "low-semantic"),
        ("2", 3, "low-semantic"),
        ("23", 3, "other"),
        (".", 3, "delimiter"),
        ("\n\n", 3, "delimiter"),
        (" ", 3, "delimiter"),
        (" wall", 3, "other"),
        ("Und", 3, "low-semantic"),
    ],
)
def test_kinds_of_tokens(text, position, expected):
    assert token_class(text, position) == expected


def test_a_token_in_words(lm):
    assert token_text(lm, 7) == "w7"
    assert token_text(load(lm.model), 7) == "7"
