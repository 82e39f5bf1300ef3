"""How a model is trained: steps, batch, learning rate and its schedule, and how often to look."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from studfinder.errors import StudfinderError
from studfinder.records.config import Config, option

Schedule = Literal["constant", "cosine", "linear", "cool-down"]


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe(Config):
    """Optimisation, with AdamW.

    Attributes:
        steps: optimizer steps.
        batch: sequences an optimizer step, over all devices.
        micro: sequences a forward pass on one device; None is as many as there are. Gradients are accumulated.
        lr: learning rate after the warm-up.
        schedule: "constant", "cosine" (to 0), "linear" (to 0) or "cool-down" (constant, then linear to 0 over the last
            quarter of the steps).
        warmup: steps over which the rate rises from 0.
        beta1, beta2, weight_decay, clip: AdamW's, and the largest gradient norm. Norms, biases and KV shift's scalars
            are not decayed (`studfinder.attention.parameter_groups`).
        decay_norms: decay the norms' gains too, as Quantizable Transformers does for OPT-125m (`--wd_LN_gamma`).
        seed: of the weights and of the order of the data.
        look_every: steps between evaluations (and looks at outliers); None is steps / 20.
        keep_every: steps between checkpoints; None is look_every.
        test: sequences of each evaluation.
        precision: "fp32", or "bf16" for autocast; "auto" is bf16 where that is faster (`faster_precision`).
    """

    steps: int = option(1000, least=1)
    batch: int = option(64, least=1)
    micro: int | None = None
    lr: float = option(1e-3, above=0, below=inf)
    schedule: Schedule = "constant"
    warmup: int = 100
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0
    decay_norms: bool = False
    seed: int = 0
    look_every: int | None = None
    keep_every: int | None = None
    test: int = option(256, least=1)
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @property
    def look(self) -> int:
        """Steps between evaluations."""
        return self.look_every or max(1, self.steps // 20)

    @property
    def keep(self) -> int:
        """Steps between checkpoints."""
        return self.keep_every or self.look

    def text_tokens(self, length: int) -> int:
        """Tokens of a text that are made, at most: what a run with such windows sees, and a twentieth to test on."""
        return int(self.steps * self.batch * length * 1.06) + 2 * length

    def micro_batch(self, processes: int) -> int:
        """Sequences a forward pass on one device.

        Raises:
            StudfinderError: the batch does not divide over devices and passes.
        """
        micro = self.micro or self.batch // processes
        if micro < 1 or self.batch % (micro * processes):
            raise StudfinderError(
                f"a batch of {self.batch} does not divide into {processes} processes with {micro} sequences a pass",
                expected="batch = processes x micro x a whole number",
            )
        return micro
