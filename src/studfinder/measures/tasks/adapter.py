"""lm-eval's view of a live LM: whatever edits are on it, are in every score.

Importing this file imports lm-eval (the extra `evaluate`). lm-eval's own response cache is never used: its key leaves
out the model, so that an edited model would get the clean model's score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
    resolve_max_length,
)
from lm_eval.models.utils_hf import stop_sequences_criteria
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from studfinder.errors import StudfinderError
from studfinder.measures.asked import Advance
from studfinder.measures.greedy import takes_cache
from studfinder.measures.likelihood import log_likelihoods
from studfinder.models import LM
from studfinder.sites import check_causal
from studfinder.texts import as_text, check_ids, encode_pairs, token_ids
from studfinder.texts.encoding import first_token, tokenizer_of

_GENERATED_TOKENS = 8192
"""Tokens of prompt and answer together in one batch of greedy generation."""


class LiveLM(TemplateLM):
    """A live LM as lm-eval wants it, with the tokenisation, truncation and scores of its HFLM.

    Args:
        lm: the model, as it is when a request comes; it must have a tokenizer.
        progress: called with the number of requests done.

    Raises:
        StudfinderError: no tokenizer.
    """

    def __init__(self, lm: LM, progress: Advance | None = None) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.progress = lm, tokenizer_of(lm), progress
        self._device = lm.device
        self.max_length = resolve_max_length(lm.model.config, lm.tokenizer)

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """What the first token of a text is conditioned on."""
        return first_token(self.tokenizer)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; BOS as the tokenizer adds it, unless the text begins with it already, and nothing at the end."""
        (ids,) = token_ids(self.tokenizer, [string], special=add_special_tokens is not False)
        check_ids(self.lm, [ids], "a task's prompt")
        return ids

    def loglikelihood(self, requests: list, disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, in nats, and whether it is the greedy one."""
        pairs = encode_pairs(self.lm, [(context, continuation) for context, continuation in (r.args for r in requests)])
        return self._loglikelihood_tokens([(None, *pair) for pair in pairs])

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        found = log_likelihoods(self.lm, pairs, truncate=True, progress=self.progress)
        return [(one.logprob, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = True) -> list[float]:
        """Log-probability of whole texts, each cut into windows of the context length as lm-eval cuts them."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            cut = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, cut):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logprob
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = True) -> list[str]:
        """Greedy answers, each cut at its first stop string.

        Raises:
            StudfinderError: a request asks for sampling, or for more tokens than the window holds.
        """
        answers = [""] * len(requests)
        by_settings: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        for numbers in by_settings.values():
            settings = normalize_gen_kwargs(dict(requests[numbers[0]].args[1]))
            if settings["do_sample"]:
                raise StudfinderError("the task samples its answers", expected="greedy decoding", do="Use another task")
            new = settings["max_gen_toks"]
            ends = self.eot_token_id
            eos = None if ends is None else self.tokenizer.decode([ends], skip_special_tokens=False)
            stop = handle_stop_sequences(list(settings["until"]), eos=eos)
            room = self.max_length - new
            if room < 1:
                raise StudfinderError(
                    f"the task's answers take up to {new} tokens", expected=f"fewer than the {self.max_length} it reads"
                )
            prompts = {number: self.tok_encode(requests[number].args[0])[-room:] for number in numbers}
            for batch in _batches(prompts, new):
                texts = self._generated([prompts[number] for number in batch], new, stop)
                for number, text in zip(batch, texts, strict=True):
                    answers[number] = postprocess_generated_text(text, stop, None)
                if self.progress is not None:
                    self.progress(len(batch))
        return answers

    def _generated(self, prompts: list[list[int]], new: int, stop: list[str]) -> list[str]:
        check_causal(self.lm, "generated answers")
        width = max(map(len, prompts))
        fillers = (self.tokenizer.pad_token_id, self.eot_token_id)  # a tokenizer may have neither, and masks hide them
        pad = next((one for one in fillers if one is not None and one < self.lm.anatomy.vocabulary), 0)
        ids_BT = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts], device=self.lm.device)
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=self.lm.device)
        with torch.no_grad():
            out_BT = self.lm.model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                max_new_tokens=new,
                do_sample=False,
                # The model's own sampling defaults, which greedy decoding would warn about.
                temperature=None,
                top_p=None,
                top_k=None,
                pad_token_id=pad,
                use_cache=takes_cache(self.lm),
                stopping_criteria=stop_sequences_criteria(self.tokenizer, stop, width, len(prompts)),
            )
        return [as_text(self.tokenizer, ids, skip_special_tokens=True) for ids in out_BT[:, width:].tolist()]


def _batches(prompts: dict[int, list[int]], new: int) -> list[list[int]]:
    """Request numbers in batches of prompts of similar length, the longest first."""
    batches: list[list[int]] = []
    for number in sorted(prompts, key=lambda number: -len(prompts[number])):
        if batches and (len(batches[-1]) + 1) * (len(prompts[batches[-1][0]]) + new) <= _GENERATED_TOKENS:
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches
