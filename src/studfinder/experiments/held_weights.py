"""Single weights that training is kept away from, and what the model loses without them.

Everything here is about a handful of entries of parameters, as (parameter, index) pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from studfinder.edits import Weights, zero
from studfinder.experiments.w8a8 import Windows
from studfinder.measures import effects_of
from studfinder.models import LM

WeightPlaces = Sequence[tuple[str, Sequence[int]]]
"""(parameter, index into it), one a weight."""


def values_of(model: Any, places: WeightPlaces) -> list[float]:
    """What stands there."""
    return [float(model.get_parameter(name).detach()[tuple(index)]) for name, index in places]


class Hold(TrainerCallback):
    """Keeps weights out of training: no gradient, no decay, and the value that is said after every step.

    Args:
        model: as it is before training; where its weights stand now is where they are held, or start from.
        places: which weights.
        until_zero: pull them to zero on a straight line over so many steps and keep them there; None holds them.
    """

    def __init__(self, model: Any, places: WeightPlaces, until_zero: int | None = None) -> None:
        self.places, self.until_zero = places, until_zero
        self.start = values_of(model, places)

    def at(self, step: int) -> list[float]:
        """Where the weights are after a step."""
        left = 1.0 if self.until_zero is None else max(0.0, 1 - step / self.until_zero)
        return [value * left for value in self.start]

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for name, index in self.places:
            model.get_parameter(name).register_hook(_without(tuple(index)))

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        with torch.no_grad():  # this step is counted only after its callbacks
            for (name, index), value in zip(self.places, self.at(state.global_step + 1), strict=True):
                model.get_parameter(name)[tuple(index)] = value


def _without(index: tuple[int, ...]) -> Any:
    def hook(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[index] = 0  # so that it has no part in the gradient's norm either, by which all are clipped
        return gradient

    return hook


def needs(windows: Windows, places: WeightPlaces, lm: LM) -> dict[str, float]:
    """What the model would lose on windows without some weights, and the value of the first."""
    return {
        "need": float(np.mean(without(lm, windows, {"need": places})["need"]["kl"])),
        "value": values_of(lm.model, places)[0],
    }


def without(lm: LM, windows: Windows, groups: Mapping[str, WeightPlaces]) -> dict[str, Any]:
    """What becomes of each window when groups of weights are set to zero.

    Returns:
        "loss": of the model as it is, nats a token, one a window; and by group its "loss" and "kl": KL(as it is ||
        without them), nats a token.
    """
    edits = [
        zero([Weights(parameter=name, entries=(tuple(index),)) for name, index in places]) for places in groups.values()
    ]
    effects = effects_of(lm, windows, edits)
    loss, kl = (sums / effects.tokens for sums in (effects.nll, effects.kl))
    found: dict[str, Any] = {"loss": (effects.clean_nll / effects.tokens).tolist()}
    return found | {name: {"loss": loss[i].tolist(), "kl": kl[i].tolist()} for i, name in enumerate(groups)}
