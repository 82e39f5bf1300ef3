"""What differs between two models besides their weights: settings that change what is computed, words, templates."""

from __future__ import annotations

from typing import Any

from studfinder.models import LM
from studfinder.records.diagnosis import SettingDiagnosis
from studfinder.texts import proof_text, token_ids

_COMPUTES = {
    "rope": "the rotation of Q and K",
    "norm_eps": "the epsilon of its norms",
    "epsilon": "the epsilon of its norms",
    "eps": "the epsilon of its norms",
    "act": "its activation function",
    "sliding": "which tokens attention sees",
    "window": "which tokens attention sees",
    "layer_types": "which tokens attention sees",
    "softcap": "how scores are capped",
    "scal": "how scores or states are scaled",
    "multiplier": "how states are scaled",
    "head": "the number or size of heads",
    "experts": "which experts are used",
    "theta": "the rotation of Q and K",
    "norm": "a norm",
    "bias": "whether there are biases",
    "partial": "the rotation of Q and K",
}
"""What a setting is about, by a part of its name; the first that fits."""
_IDENTITY = ("vocab_size", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def settings_that_differ(original: LM, made: LM) -> list[SettingDiagnosis]:
    """What differs, what computes first."""
    return [*_config(original, made), *_tied(original, made), *_tokens(original, made)]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: one for part, own in value.items() for key, one in _flat(own, f"{name}.{part}".strip(".")).items()}
    return {name: value}


def _config(original: LM, made: LM) -> list[SettingDiagnosis]:
    was, now = (_flat(lm.model.config.get_text_config(decoder=True).to_dict()) for lm in (original, made))
    found = []
    for name in sorted(was.keys() | now.keys()):
        if was.get(name) == now.get(name) or name.startswith(("quantization_config", "_")):
            continue
        about = next((words for part, words in _COMPUTES.items() if part in name), "")
        if about or name in _IDENTITY:
            found.append(
                SettingDiagnosis(
                    name=name,
                    was=_brief(was.get(name)),
                    is_now=_brief(now.get(name)),
                    about=about or "which tokens there are, and where texts begin and end",
                    computes=bool(about),
                )
            )
    return sorted(found, key=lambda one: not one.computes)


def _tied(original: LM, made: LM) -> list[SettingDiagnosis]:
    def tied(lm: LM) -> bool:
        head, embedding = lm.model.get_output_embeddings(), lm.model.get_input_embeddings()
        return head is not None and getattr(head, "weight", None) is embedding.weight

    if tied(original) == tied(made):
        return []
    words = {True: "the embedding itself", False: "a matrix of its own"}
    was, now = words[tied(original)], words[tied(made)]
    return [SettingDiagnosis(name="output matrix", was=was, is_now=now, about="a tied head came apart", computes=False)]


def _tokens(original: LM, made: LM) -> list[SettingDiagnosis]:
    one, other = original.tokenizer, made.tokenizer
    if one is None or other is None:
        if one is None or other is one:
            return []
        return [
            SettingDiagnosis(name="tokenizer", was="there", is_now="missing", about="how text is cut", computes=False)
        ]
    found = []
    text = proof_text()[0].text[:400]
    was, now = (token_ids(each, [text])[0] for each in (one, other))
    plain, plain_now = (token_ids(each, [text], special=False)[0] for each in (one, other))
    if plain != plain_now:
        at = next((n for n, (a, b) in enumerate(zip(plain, plain_now, strict=False)) if a != b), 0)
        found.append(
            SettingDiagnosis(
                name="tokenizer",
                was=f"token {plain[at]} at {at}",
                is_now=f"token {plain_now[at] if at < len(plain_now) else 'none'}",
                about="the same text is cut into other tokens",
                computes=False,
            )
        )
    elif was != now:
        what = "BOS" if was[:1] != now[:1] else "the special tokens around a text"
        found.append(
            SettingDiagnosis(
                name=what,
                was=f"a text begins with {was[:1]}",
                is_now=f"with {now[:1]}",
                about="the first token, which takes much of the attention, is another one",
                computes=False,
            )
        )
    templates = [getattr(each, "chat_template", None) for each in (one, other)]
    if templates[0] != templates[1]:
        was_, now_ = (("missing" if not each else f"{len(str(each)):,} characters") for each in templates)
        found.append(
            SettingDiagnosis(
                name="chat template", was=was_, is_now=now_, about="how a conversation is put", computes=False
            )
        )
    return found


def _brief(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
