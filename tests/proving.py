"""Tiny models that can be proved on: with a tokenizer of characters, logits that differ, and a planted super weight."""

from __future__ import annotations

import functools

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from studfinder.models import LM, load
from tiny import V, tiny

ROW, COL, LAYER = 5, 7, 1


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One id a character: printable ASCII and the newline."""
    characters = ["\n", *map(chr, range(32, 127))]
    assert len(characters) == V
    tokens = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="?")


def provable(architecture: str, *, planted: bool, seed: int = 0) -> tuple[LM, tuple[int, ...] | None]:
    """A random model whose output embedding is scaled up, so that what happens inside reaches the logits.

    With `planted`, one entry of a down projection is made large enough to carry its layer's output.
    """
    model = tiny(architecture, seed=seed).model
    with torch.no_grad():
        head = model.get_output_embeddings()
        if model.config.get_text_config().tie_word_embeddings:
            head.weight = torch.nn.Parameter(head.weight.detach().clone())
        head.weight.mul_(30)
    lm = load(model, tokenizer())
    if not planted:
        return lm, None
    ref = lm.anatomy.layers[LAYER].writers[0]
    index = ref.index(ROW, COL)
    with torch.no_grad():
        model.get_parameter(ref.parameter)[index] = 500.0
    return lm, index
