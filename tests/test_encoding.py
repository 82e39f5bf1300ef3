"""What is scored is the text that was meant, whatever a tokenizer adds to it."""

from __future__ import annotations

import ast
import io
import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import studfinder
from studfinder.errors import StudfinderError
from studfinder.measures import induction, likelihood, scorer
from studfinder.measures.choices import choice, evidence
from studfinder.measures.perplexity import perplexity
from studfinder.models import LM, load
from studfinder.texts import Text, as_text, encode, encode_pairs, encoding, token_ids
from tiny import tiny, tokenizer
from tokenizers_drawn import HABITS, KINDS, ROWS, WORDS, Drawn, drawn

CASES = 252
"""Seven texts for each kind of tokenizer with each habit."""


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=ROWS, max_position_embeddings=256, **sizes)).eval()


def lm_of(model: LlamaForCausalLM, case: Drawn) -> LM:
    return load(model, case.tokenizer)


def right(model: LlamaForCausalLM, case: Drawn) -> bool:
    """Pairs, prompts and streams of one case are the ids that are meant."""
    lm = lm_of(model, case)
    context, continuation = case.meant
    (pair,) = encode_pairs(lm, [(case.context, case.continuation)])
    stream = encode(lm, [Text("t", case.context + case.continuation)])[0][0]
    prompt = encode(lm, [Text("t", case.context)])[0][0]
    if not case.start:  # conditioned on nothing but the text: there is a first token
        assert context
    return pair == (context, continuation) and stream == [*context, *continuation] and prompt == context


def test_pairs_prompts_and_streams_are_the_ids_that_are_meant(model):
    wrong = [case for case in drawn(CASES) if not right(model, case)]
    assert not wrong, [(case.kind, case.habit, case.context, case.continuation) for case in wrong[:3]]
    counted = Counter((case.kind, case.habit) for case in drawn(CASES))
    assert set(counted.values()) == {7}
    assert len(counted) == len(KINDS) * len(HABITS)


def test_without_the_check_what_is_added_at_the_end_is_scored(model, monkeypatch):
    monkeypatch.setattr(encoding, "_end", lambda *_: [])
    ending = [case for case in drawn(CASES) if case.end]
    assert len(ending) >= CASES / 2
    assert sum(not right(model, case) for case in ending) >= 0.9 * len(ending)


def test_a_tokenizer_that_ends_every_text_scores_as_one_that_does_not(model):
    """Choices, likelihoods and perplexity, to the last bit, on the same model."""
    for plain, ending in (("nothing", "EOS"), ("BOS", "both")):
        found = {}
        for case in drawn(len(KINDS) * len(HABITS)):
            if case.habit not in (plain, ending) or case.kind == "words":
                continue
            lm = lm_of(model, case)
            words = " ".join(WORDS)
            prompts = [f"{words} {word}" for word in ("kaba", "lodo", "mifi")]
            values, ids = evidence(lm, [choice(prompts, ("lodo mifi", "rugu", "teshen kado lofi"), "c")])
            whole = likelihood.log_likelihoods(lm, encode_pairs(lm, [(words, " lodo mifi rugu")]))
            texts = [f"{words} {words}", f"{words} teshen"]
            lost = [perplexity(lm, texts, window=16, protocol=protocol).value for protocol in ("windows", "word")]
            found.setdefault(case.kind, []).append((values[0].tolist(), ids, whole, lost))
        assert len(found) == len(KINDS) - 1
        assert all(one == other for one, other in found.values())


@pytest.mark.deep
def test_the_spans_that_are_scored_hold_nothing_else(model, monkeypatch):
    """What reaches the model's rows, through every measure that scores: no id that the tokenizer added at the end."""
    seen: list[tuple[list[int], list[int]]] = []
    rows = likelihood._rows

    def watched(requests: list) -> list[scorer.ScoredRow]:
        seen.extend(requests)
        return rows(requests)

    monkeypatch.setattr(likelihood, "_rows", watched)
    checked = 0
    for case in drawn(len(KINDS) * len(HABITS), seed=1):
        seen.clear()
        lm, text = lm_of(model, case), " ".join(WORDS * 2)
        perplexity(lm, [text, text], window=8)
        perplexity(lm, [text, text], window=8, protocol="word")
        evidence(lm, [choice([text, f"{text} lodo"], ("lodo", "mifi rugu"), "c")])
        assert seen
        added = {1, 2, 4, 5}
        scored = {token for _, continuation in seen for token in continuation}
        before = [context[: context.index(token) + 1] for context, _ in seen for token in added & set(context)]
        assert not scored & added, (case.kind, case.habit)
        # What is added stands at the very beginning: the tokenizer's own start, or what a text without one begins with.
        assert all(ids in (case.start[: len(ids)], [1]) for ids in before), (case.kind, case.habit)
        checked += 1
    assert checked == len(KINDS) * len(HABITS)


def test_a_word_that_grows_together_with_the_answer_is_scored_whole(model):
    """ "ab" is one token, "a" another: the answer " b" without its space is part of the first."""
    backend = Tokenizer(models.BPE({"x": 0, "a": 1, "b": 2, "ab": 3}, [("a", "b")]))
    lm = load(model, PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="x"))
    assert encode_pairs(lm, [("xa", "b")]) == [([0], [3])]  # the harness's cut would leave no answer at all
    assert encode_pairs(lm, [("a", "b")]) == [([0], [3])]  # conditioned on EOS, as there is nothing else
    assert encode_pairs(lm, [("", "ab")]) == [([0], [3])]
    with pytest.raises(StudfinderError, match="adds no token"):
        encode_pairs(lm, [("xa", "")])


def test_spaces_before_the_answer_belong_to_it(model):
    case = next(case for case in drawn(99) if case.kind == "bytes" and case.habit == "BOS")
    lm = lm_of(model, case)
    assert encode_pairs(lm, [("kaba ", "lodo")]) == encode_pairs(lm, [("kaba", " lodo")])


def test_a_text_that_brings_its_own_bos_gets_no_second():
    end = tokenizer()
    assert token_ids(end, ["<s> w3", "w3"]) == [[1, 3], [1, 3]]
    assert token_ids(end, ["w3 w4"], special=False) == [[3, 4]]


def test_a_tokenizer_that_cannot_be_told_to_leave_the_end_out(model):
    """Tokenizers with code of their own may ignore add_special_tokens: the end is found by what it is."""

    class Stubborn:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __len__(self):
            return len(self.inner)

        def __call__(self, texts, **_):
            return self.inner(texts)

    for case in drawn(len(KINDS) * len(HABITS), seed=2):
        bare = token_ids(Stubborn(case.tokenizer), [case.context])
        assert bare == [[*case.start, *case.bare.encode(case.context, add_special_tokens=False).ids]]


def test_many_ids_a_character_are_not_cut(model):
    case = next(case for case in drawn(99) if case.kind == "bytes" and case.habit == "nothing")
    (pair,) = encode_pairs(lm_of(model, case), [("ü漢" * 20, "漢" * 30)])
    assert len(pair[0]) + len(pair[1]) == 20 * 5 + 30 * 3
    ids = encode(lm_of(model, case), [Text("t", "漢" * 50)], limit=encoding.WHOLE)[0][0]
    assert len(ids) == 150


@pytest.mark.parametrize(("what", "id"), [("scan", 98), ("measure", 98)])
def test_ids_beyond_the_embedding_are_one_line(tmp_path, mistake, what, id, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm = tiny("llama")
    lm.model.save_pretrained(tmp_path / "m")
    extended = tokenizer()
    extended.add_tokens(["is", "the", "of"])  # ids 96 and up
    extended.save_pretrained(tmp_path / "m")
    said = mistake(what, tmp_path / "m", "--out", tmp_path / "r")
    assert f"id {id} is not in the embedding of" in said


def test_nobody_else_reads_text_with_a_tokenizer():
    """Every call of something named tokenizer, or of its encode, stands in the texts room."""
    root = Path(studfinder.__file__).parent
    calls = [
        f"{path.relative_to(root)}:{node.lineno}"
        for path in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and _reads(node.func)
    ]
    assert [call for call in calls if not call.startswith("texts/")] == []
    assert len(calls) == 2  # and one of each there: a text, and what a chat's template makes of one


_READING = {"encode", "encode_plus", "batch_encode_plus", "tokenize", "__call__", "apply_chat_template"}


def _reads(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute) and function.attr in _READING:
        return _is_tokenizer(function.value)
    return _is_tokenizer(function)


def _is_tokenizer(value: ast.expr) -> bool:
    name = value.attr if isinstance(value, ast.Attribute) else value.id if isinstance(value, ast.Name) else ""
    return name in ("tokenizer", "backend_tokenizer")


# --- tokenizers as people have them -------------------------------------------------------------------------------


def plain(**special: str):
    """Twenty words as ids, for a model of 96 rows; with these special tokens and no others."""
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(20)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.mark.parametrize("special", [{}, {"eos_token": "w2", "pad_token": "w2"}, {"pad_token": "w1"}])
def test_a_tokenizer_needs_no_bos_no_end_and_no_padding_of_its_own(special, tmp_path):
    """Batches of unequal prompts find what the same prompts find by themselves, and every measure has an answer."""
    lm = load(tiny("llama").model, plain(**special))
    prompts = ["w3 w4 w5 w6 w2 w7", "w3 w2 w5"]
    together, alone = (studfinder.scan(lm, prompts=prompts, prove=False, batch_size=size) for size in (2, 1))
    found, wanted = ({(s.layer, s.head): s.strength for s in one.attention_sinks} for one in (together, alone))
    assert found
    assert found == pytest.approx(wanted, rel=1e-5)
    assert together.prompts.token_ids == ((3, 4, 5, 6, 2, 7), (3, 2, 5))
    studfinder.measure(lm, ["perplexity", "induction"], limit=2, out=tmp_path / "m")
    if "eos_token" in special:
        assert encode_pairs(lm, [("", "w3")]) == [([2], [3])]
    else:
        with pytest.raises(StudfinderError, match="Begin with BOS or another token"):
            likelihood.log_likelihoods(lm, encode_pairs(lm, [("", "w3")]))


class Ending:
    """A tokenizer in Python, as SentencePiece's: an id that it does not have is an error."""

    def __init__(self, inner) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def decode(self, ids, **options):
        if max(ids, default=0) >= len(self):
            raise IndexError("piece id is out of range.")
        return self.inner.decode(ids, **options)


def test_rows_past_the_tokenizer_are_never_drawn_and_are_no_text():
    lm = load(tiny("llama").model, plain(eos_token="w2"))
    assert lm.anatomy.vocabulary == 96
    for seed in range(20):
        assert max(max(ids) for ids in induction.repeated(lm, 16, 4, seed)) < 20
    for reader in (lm.tokenizer, Ending(lm.tokenizer)):
        assert as_text(reader, [3, 95, 20, 4]) == "w3 w4"
        assert as_text(reader, [95]) == ""


SENTENCES = {
    "LlamaTokenizer": {"model_type": "bpe", "byte_fallback": True},
    "GemmaTokenizer": {"model_type": "bpe", "byte_fallback": True, "add_dummy_prefix": False},
    "T5Tokenizer": {"model_type": "unigram"},
    "Qwen2Tokenizer": {"model_type": "bpe"},
    "PreTrainedTokenizerFast": {"model_type": "unigram"},
}
"""Classes that a tokenizer.model may be of, and what SentencePiece was told to train. The last two misread it."""


@pytest.mark.parametrize("kind", SENTENCES)
def test_a_sentencepiece_file_alone_is_read_as_sentencepiece_reads_it_or_not_at_all(kind, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    file, words = io.BytesIO(), random.Random(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" ".join(words.choices(WORDS, k=8)) for _ in range(300)),
        model_writer=file,
        vocab_size=340,
        hard_vocab_limit=False,
        minloglevel=2,
        **SENTENCES[kind],
    )
    architecture = "qwen2" if kind == "Qwen2Tokenizer" else "llama"
    tiny(architecture).model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(file.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    lm = load(tmp_path)
    own = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    if kind in list(SENTENCES)[3:]:
        assert lm.tokenizer is None
        with pytest.raises(StudfinderError, match=r"reads '.*' as \[.*\], and SentencePiece as \["):
            encode(lm, [Text("t", "kaba")])
        return
    for text in (" ".join(WORDS[i : i + 4]) for i in range(20)):
        assert token_ids(lm.tokenizer, [text], special=False) == [own.encode(text)]
        assert as_text(lm.tokenizer, own.encode(text)) == text
