"""How two tokenizers differ: in their vocabulary, in how they cut texts, in what they put before one, in their chat
templates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from studfinder.errors import in_a_line
from studfinder.records.diagnosis import SettingDiagnosis
from studfinder.texts import conversation, proof_text, token_ids

_TEXTS = (
    "The quick brown fox doesn't jump: 3.14159, 2026-11-30, 1,000,000 and 0x7f.",
    "  Leading spaces,\ttabs\n\n\nand    runs of them \n",
    "def f(x):\n    return {'a': [x ** 2 for _ in range(10)]}  # code\n",
    "Grüße aus Köln; l'été, ÇA VA? naïve café ﬁ ½ ①",
    "Привет, мир! Ελληνικά. שלום. مرحبا بالعالم",
    "你好，世界。こんにちは、カタカナ。안녕하세요",
    "नमस्ते दुनिया สวัสดีชาวโลก",
    "👩‍👩‍👧 🏳️‍🌈 \u200b\u00a0\ufeff € ∑ → ⟨x⟩",
    "<s></s><|im_start|>user\n[INST] <bos> <start_of_turn> <|endoftext|>",
)
"""Texts that tokenizers cut differently if they are not the same: numbers, white space, code, accents and compatibility
forms, scripts, emoji, words that look special."""
_SAID = (
    [{"role": "user", "content": " Hello, world. "}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}],
)


def words_that_differ(was: Any, now: Any) -> Iterator[SettingDiagnosis]:
    """What differs between two tokenizers; of which a model's own may be missing (None)."""
    if was is None or now is None:
        if was is not None:
            yield _setting("tokenizer", "there", "missing", "how text is cut")
        return
    yield from _vocabulary(was, now)
    yield from _cut(was, now)
    yield from _specials(was, now)
    yield from _template(was, now)


def _setting(name: str, was: str, is_now: str, about: str, *, counts: bool = True) -> SettingDiagnosis:
    return SettingDiagnosis(name=name, was=was, is_now=is_now, about=about, computes=False, counts=counts)


def _vocabulary(was: Any, now: Any) -> Iterator[SettingDiagnosis]:
    """Words that have another id; words that were added behind the others are no fault."""
    one, other = was.get_vocab(), now.get_vocab()
    moved = [word for word, number in one.items() if other.get(word) != number]
    if moved:
        word = min(moved, key=lambda each: one[each])
        yield _setting(
            "vocabulary",
            f"{word!r} is {one[word]}",
            f"{other.get(word, 'missing')}",
            f"{len(moved):,} of {len(one):,} words are other tokens",
        )


def _cut(was: Any, now: Any) -> Iterator[SettingDiagnosis]:
    texts = [*_TEXTS, *(text.text[:400] for text in proof_text()[:4])]
    for text, one, other in zip(
        texts, token_ids(was, texts, special=False), token_ids(now, texts, special=False), strict=True
    ):
        if one != other:
            at = next(
                (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
            )
            was_, now_ = (f"token {ids[at]}" if at < len(ids) else "nothing" for ids in (one, other))
            about = f"the same text is cut into other tokens ({text[:24]!r}, at {at})"
            yield _setting("tokenizer", was_, now_, about)
            return


def _specials(was: Any, now: Any) -> Iterator[SettingDiagnosis]:
    """What is put before a text, and what ends one."""
    before = [ids[0][: len(ids[0]) - len(bare[0])] for ids, bare in (_both(was), _both(now))]
    if before[0] != before[1]:
        about = "the first token, which takes much of the attention, is another one"
        yield _setting("BOS", f"a text begins with {before[0] or 'nothing more'}", f"{before[1] or 'nothing'}", about)
    if was.eos_token_id != now.eos_token_id:
        yield _setting("EOS", f"{was.eos_token_id}", f"{now.eos_token_id}", "where an answer ends")


def _both(tokenizer: Any) -> tuple[list[list[int]], list[list[int]]]:
    return token_ids(tokenizer, ["a"]), token_ids(tokenizer, ["a"], special=False)


def _template(was: Any, now: Any) -> Iterator[SettingDiagnosis]:
    """A chat template that gives another text for some conversation; one that only reads otherwise is said."""
    one, other = (getattr(each, "chat_template", None) for each in (was, now))
    if one == other:
        return
    was_, now_ = ("missing" if not each else f"{len(str(each)):,} characters" for each in (one, other))
    given = [(_given(was, said), _given(now, said)) for said in _SAID]
    differs = next((pair for pair in given if pair[0] != pair[1]), None)
    if not one:
        yield _setting("chat template", was_, now_, "how a conversation is put: there was none", counts=False)
    elif differs is None and other:
        yield _setting(
            "chat template", was_, now_, f"it gives the same text for {len(given)} conversations", counts=False
        )
    else:
        yield _setting("chat template", was_, now_, "how a conversation is put")


def _given(tokenizer: Any, said: list[dict[str, str]]) -> str:
    try:
        return conversation(tokenizer, said)
    except Exception as error:  # a template's own, or Jinja's: of whatever kind, it is what the template gives
        return in_a_line(error)
