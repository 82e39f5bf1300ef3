"""Is it causal? A likelihood means something only if no token sees what comes after it: so that is tried."""

from __future__ import annotations

import inspect
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.sites.active import replacing

_LENGTHS = (21, 75)
_CUTS = (7, 13, 20)
"""Where sequences begin to differ: never all of them at the border of a chunk of attention, and the token just before
sees over the border through the narrowest window."""

_FLAGS = {"use_bidirectional_attention": (True, "all"), "is_causal": (False,), "use_causal_mask": (False,)}
"""How configs say it; only to name the reason, never to find it."""

_KNOWN: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()


def bidirectional(lm: LM) -> str:
    """Why a model is not causal, e.g. "gemma3_text with use_bidirectional_attention"; empty if it is.

    Sequences that begin alike and end differently go through the live model side by side, in two passes of a few
    hundred tokens: the outputs before the difference must be equal. Not bit-equal, since a mixture multiplies the
    tokens of an expert together, but within rounding and within what one sequence differs from its own copy in the same
    batch. The answer is kept for the model object, and sought again when its attention is exchanged.

    While activations are being replaced (a replacement may look at all tokens) a model that was not tried before is
    taken for what its config says.
    """
    config = lm.model.config
    state = f"{getattr(config, '_attn_implementation', None)} {getattr(config, 'studfinder', None)}"
    known = _KNOWN.get(lm.model)
    if known is None or known[0] != state:
        if replacing(lm):
            return _named(lm) if _flag(lm) else ""
        known = _KNOWN[lm.model] = (state, _named(lm) if _looks_ahead(lm) else "")
    return known[1]


def check_causal(lm: LM, what: str) -> None:
    """Raise StudfinderError, with the reason, if a later token moves an earlier output.

    Args:
        what: cannot be had of such a model, e.g. "likelihoods".
    """
    reason = bidirectional(lm)
    if reason:
        raise StudfinderError(
            f"{lm.source.id} is bidirectional ({reason}): a later token moves an earlier output",
            expected=f"a causal model for {what}",
            do="Only scan works on this one",
        )


@torch.no_grad()
def _looks_ahead(lm: LM) -> bool:
    most = lm.anatomy.max_positions or max(_LENGTHS)
    return any(_moves(lm, length) for length in dict.fromkeys(min(length, most) for length in _LENGTHS) if length > 1)


def _moves(lm: LM, length: int) -> bool:
    """Whether the outputs before a change move with it."""
    generator = torch.Generator().manual_seed(length)

    def drawn() -> torch.Tensor:
        return torch.randint(lm.anatomy.vocabulary, (length,), generator=generator)

    base_T = drawn()
    cuts = sorted({min(cut, length - 1) for cut in _CUTS})
    changed = [torch.cat([base_T[:cut], drawn()[cut:]]) for cut in cuts]
    ids_BT = torch.stack([base_T, *changed, base_T]).to(lm.device)
    # A mask, so that ids which happen to be padding are read like any other.
    options: dict[str, Any] = {"attention_mask": torch.ones_like(ids_BT), "use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:  # a vocabulary is large
        options["logits_to_keep"] = torch.arange(cuts[-1], device=lm.device)
    own_TV, *others, copy_TV = lm.model(input_ids=ids_BT, **options).logits[:, : cuts[-1]].float()

    def apart(other_TV: torch.Tensor, end: int) -> float:
        relative_T = (other_TV - own_TV)[:end].norm(dim=-1) / own_TV[:end].norm(dim=-1)
        return float(relative_T.nan_to_num().max())

    bound = max(4 * torch.finfo(lm.dtype).eps, 1e-4, 8 * apart(copy_TV, cuts[-1]))
    return any(apart(other_TV, cut) > bound for cut, other_TV in zip(cuts, others, strict=True))


def _flag(lm: LM) -> str:
    config = lm.model.config.get_text_config(decoder=True)
    return next((name for name, values in _FLAGS.items() if getattr(config, name, None) in values), "")


def _named(lm: LM) -> str:
    flag = _flag(lm)
    no = "" if flag == "use_bidirectional_attention" else "=False"
    return f"{lm.anatomy.architecture} {f'with {flag}{no}' if flag else 'as tried'}"
