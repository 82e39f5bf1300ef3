"""Greedy continuations, token by token, with a cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch

from studfinder.models import LM
from studfinder.sites import check_causal
from studfinder.texts import check_ids


def greedy(lm: LM, prompts: Sequence[Sequence[int]], new: int, *, to_the_end: bool = False) -> list[list[int]]:
    """The ids that follow prompts of one length when the likeliest token is taken each time.

    The checkpoint's own generation settings (sampling, penalties) are overruled.

    Args:
        prompts: run together, so they must be equally long (padding in front of a prompt changes some models).
        new: at most so many tokens; fewer if the model ends its text.
        to_the_end: exactly `new` tokens: the model may not end its text.

    Raises:
        StudfinderError: a model that is not causal, or ids beyond the embedding.
    """
    from transformers import GenerationConfig

    check_causal(lm, "greedy text")
    check_ids(lm, prompts)
    ends = lm.model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    config = GenerationConfig(
        max_new_tokens=new,
        use_cache=takes_cache(lm),
        do_sample=False,
        num_beams=1,
        # What is None here would come from the checkpoint.
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        suppress_tokens=(ends or None) if to_the_end else None,
        pad_token_id=ends[0] if ends else 0,
    )
    prompt = torch.tensor([list(ids) for ids in prompts], device=lm.device)
    with torch.no_grad():
        output = lm.model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)
    return output[:, prompt.shape[1] :].tolist()


def takes_cache(lm: LM) -> bool:
    """Whether the model can go on from what it has read: code of a checkpoint's own may know no cache."""
    given = inspect.signature(lm.model.forward).parameters
    return any(name in given for name in ("past_key_values", "cache_params", "state"))
