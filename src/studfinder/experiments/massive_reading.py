"""How the experiments on massive activations read: texts with and without BOS, and the paper's rule on each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from studfinder.models import LM
from studfinder.sites import BlockOutput, tapped
from studfinder.stats import AbsHistogram
from studfinder.texts import WHOLE, Text, corpus, encode, tokenizer_of


def conditions(lm: LM) -> dict[str, bool]:
    """Whether texts begin with BOS, by what tables call it: the tokenizer's own habit first, then the other one if
    there is a BOS."""
    if not _has_bos(lm):
        return {"without BOS (the model has none)": False}
    own = encode(lm, [Text("a", "a")])[1]
    names = {True: "with BOS", False: "without BOS"}
    return {f"{names[own]} (the tokenizer's habit)": own, names[not own]: not own}


def _has_bos(lm: LM) -> bool:
    return tokenizer_of(lm).bos_token_id is not None


def ids_of(lm: LM, texts: Sequence[Text], size: int, *, bos: bool) -> list[list[int]]:
    """The first tokens of each text, `size` of them at most and BOS beside them where it is asked for."""
    limit = min(size, (lm.anatomy.max_positions or WHOLE) - 1)
    return [
        begun(lm, ids[:limit], bos=bos)
        for ids in encode(lm, texts, bos=False if _has_bos(lm) else None, limit=WHOLE)[0]
    ]


def corpus_windows(lm: LM, text: str, size: int, count: int, *, bos: bool) -> tuple[str, list[list[int]]]:
    """The name of a text and its first windows, as `ids_of` gives them. They begin in mid-text, but for the first."""
    source, documents = corpus(text)
    size = min(size, (lm.anatomy.max_positions or WHOLE) - 1)
    # Far more characters than so many tokens have: the rest of a large text need not be encoded.
    joined = Text(source, "\n\n".join(documents)[: 12 * size * count])
    (ids,) = encode(lm, [joined], bos=False if _has_bos(lm) else None, limit=WHOLE)[0]
    return source, [begun(lm, ids[start : start + size], bos=bos) for start in range(0, len(ids), size)][:count]


def begun(lm: LM, ids: Sequence[int], *, bos: bool) -> list[int]:
    """Token ids with BOS before them, or as they are."""
    return [*([tokenizer_of(lm).bos_token_id] if bos else []), *ids]


def forward_read(lm: LM, ids: Sequence[int], readers: Mapping[type, Callable[[Any], None]], **more: Any) -> None:
    """One forward pass of one text for what is shown on the way: nobody asks for its logits, which are a third of a
    small model's work. `more` as `tapped` takes it."""
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        options["logits_to_keep"] = 1
    with torch.no_grad(), tapped(lm, read={event: [reader] for event, reader in readers.items()}, **more):
        lm.model(input_ids=torch.tensor([list(ids)], device=lm.device), **options)


def least_massive(median: float) -> float:
    """What |a| must exceed to be massive (Sun et al. 2024): 100, and 1,000 times the median."""
    return max(100.0, 1000.0 * median)


def read_residual(lm: LM, ids: Sequence[int], see: Callable[[int, torch.Tensor, float], None], **more: Any) -> None:
    """Show (layer, residual stream (T,C), median of |a| over all of its entries) after each block; -1 is the
    embedding."""

    def on_block(event: BlockOutput) -> None:
        histogram = AbsHistogram()
        histogram.add(event.hidden_BTC[0])
        see(event.layer, event.hidden_BTC[0], histogram.median)

    forward_read(lm, ids, {BlockOutput: on_block}, **more)
