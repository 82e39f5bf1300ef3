"""The two texts of a plan: windows that choose, and others that judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers import calibration_windows
from studfinder.texts import Text, as_user_says, corpus, default_prompts, encode, proof_text
from studfinder.texts.prompts import DEFAULT_PROMPTS, PROOF_TEXT
from studfinder.verbs.configs import PlanConfig


@dataclass(frozen=True)
class PlanText:
    """Windows of token ids, and what they are in words.

    Attributes:
        choosing: gradients and whatever else decides.
        judging: nothing of it decides.
    """

    choosing: list[list[int]]
    judging: list[list[int]]
    chose: str
    judged: str


def plan_text(lm: LM, config: PlanConfig) -> PlanText:
    """Our prompts and our proof text, or parts of a text that follow each other.

    Raises:
        StudfinderError: the text is too short, or there is no chat template.
    """
    if config.text is None:
        choosing, _ = encode(lm, _framed(lm, default_prompts(), config))
        judging = encode(lm, _framed(lm, proof_text()[: config.judges], config))[0] if config.judges else []
        return _described(choosing, judging, DEFAULT_PROMPTS, PROOF_TEXT, config)
    name = str(config.text)
    if config.chat_template:
        name, documents = corpus(config.text)
        texts = _framed(lm, [Text(f"{name}:{place}", one) for place, one in enumerate(documents)], config)
        cut = [ids for ids in encode(lm, texts, limit=config.length)[0] if len(ids) > 1]
        if len(cut) < config.windows + config.judges:
            raise StudfinderError(
                f"{name} holds {len(cut):,} documents, too few for {config.windows + config.judges} windows",
                do="With --chat-template each is one window: say fewer, or give a .jsonl with more",
            )
    else:
        name, cut = calibration_windows(lm, config.text, count=config.windows + config.judges, length=config.length)
    judging = cut[config.windows : config.windows + config.judges]
    return _described(cut[: config.windows], judging, name, f"what follows in {name}", config)


def _described(
    choosing: list[list[int]], judging: list[list[int]], chose: str, judged: str, config: PlanConfig
) -> PlanText:
    def said(windows: list[list[int]], name: str) -> str:
        framed = ", in the chat template" if config.chat_template else ""
        return f"{name}: {len(windows)} windows, {sum(map(len, windows)):,} tokens{framed}"

    return PlanText(
        choosing, judging, said(choosing, chose), said(judging, judged) if judging else "nothing: it was not judged"
    )


def _framed(lm: LM, texts: Sequence[Text], config: PlanConfig) -> Sequence[Text]:
    """Each text as what a user says, if that was asked for."""
    if not config.chat_template:
        return texts
    tokenizer: Any = lm.tokenizer
    if getattr(tokenizer, "chat_template", None) is None:
        raise StudfinderError(f"the tokenizer of {lm.source.id} has no chat template", do="Leave --chat-template out")
    return [Text(one.name, as_user_says(tokenizer, one.text)) for one in texts]
