"""Gradients of the log-likelihood of labels that the model itself draws, a window and a draw at a time.

With such labels the mean squared gradient is the Fisher information: half of w^2 times it is, to second order, the KL
of taking w out, and what positions have in common cancels in expectation (their labels are drawn independently).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM


def floating(lm: LM) -> list[str]:
    """Every floating parameter, tied ones once, in the order of the model: those of a block stand together.

    Raises:
        StudfinderError: one is offloaded.
    """
    found = [name for name, p in lm.model.named_parameters() if p.is_floating_point() and p.numel()]
    away = next((name for name in found if lm.model.get_parameter(name).is_meta), None)
    if away is not None:
        raise StudfinderError(f"{away} is offloaded", expected="a model in memory, for a census of its parameters")
    return found


def gradients(
    lm: LM, names: Sequence[str], windows: Sequence[Sequence[int]], *, draws: int, seed: int = 0
) -> Iterator[tuple[int, int, dict[str, torch.Tensor]]]:
    """For each window and draw: their numbers, and the gradient of the summed log-likelihood for each parameter that
    has one. The labels of a window and a draw are the same whichever parameters are asked for.

    Args:
        names: of parameters; the model's own `requires_grad` is neither asked nor changed.
        windows: token ids. A label is drawn at each position.
    """
    leaves = {name: lm.model.get_parameter(name).detach().requires_grad_() for name in names}
    for number, ids in enumerate(windows):
        given = {"input_ids": torch.tensor([list(ids)], device=lm.device), "use_cache": False}
        with torch.enable_grad():
            logits_TV = torch.func.functional_call(lm.model, leaves, kwargs=given).logits[0].float()
            log_TV = logits_TV.log_softmax(dim=-1)
            for draw in range(draws):
                generator = torch.Generator().manual_seed((seed << 32) + (number << 8) + draw)
                labels_T1 = log_TV.detach().exp().cpu().multinomial(1, generator=generator).to(log_TV.device)
                total = log_TV.gather(1, labels_T1).sum()
                last = draw == draws - 1
                found = torch.autograd.grad(total, list(leaves.values()), retain_graph=not last, allow_unused=True)
                yield number, draw, {name: g for name, g in zip(names, found, strict=True) if g is not None}
