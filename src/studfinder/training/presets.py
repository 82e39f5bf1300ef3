"""Models and recipes by name."""

from __future__ import annotations

from dataclasses import dataclass

from studfinder.errors import unknown
from studfinder.training.models import ModelShape
from studfinder.training.recipe import TrainingRecipe


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a vehicle, a small model that is made to grow outliers, must exceed at the end of its training before
    anything is concluded from it; `studies.vehicle` says how each number is taken.

    Attributes:
        sink: the largest mean attention of a head to the first token.
        ratio: the largest |a| on the first token over its layer's median.
        kurtosis: of all numbers of the residual stream in a window, largest over layers.
        damage: nats a token lost in W8A6 with the residual stream rounded too.
    """

    sink: float
    ratio: float
    kurtosis: float
    damage: float


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A language model and how to train it.

    Attributes:
        shape: its sizes.
        recipe: optimisation.
        length: tokens of a window.
        vocabulary: of the BPE trained in place; None is plain bytes.
        attention: variants, as `variants_from` reads them.
        source: where the numbers come from.
        text, test_text, repeat: what it is trained and tested on, and how windows are cut; see `training.TextSource`.
        threshold: of a vehicle.
    """

    shape: ModelShape
    recipe: TrainingRecipe
    length: int
    vocabulary: int | None
    attention: tuple[str, ...] = ()
    source: str = "ours"
    text: str | None = None
    test_text: str | None = None
    repeat: int = 0
    threshold: Threshold | None = None

    @property
    def tokens(self) -> int:
        """Tokens seen in training."""
        return self.recipe.steps * self.recipe.batch * self.length


PRESETS: dict[str, Preset] = {
    "toy": Preset(
        shape=ModelShape(layers=2, hidden=64, heads=4, tied=True),
        recipe=TrainingRecipe(steps=1000, batch=32, lr=2e-3, schedule="cosine"),
        length=128,
        vocabulary=None,
    ),
    "1m": Preset(
        shape=ModelShape(layers=4, hidden=128, heads=4, tied=True),
        recipe=TrainingRecipe(steps=2500, batch=32, lr=1e-3, schedule="cosine", warmup=200),
        length=256,
        vocabulary=2048,
    ),
    "10m": Preset(
        shape=ModelShape(layers=6, hidden=320, heads=5, tied=True),
        recipe=TrainingRecipe(steps=12_000, batch=32, micro=8, lr=1e-3, schedule="cosine", warmup=500),
        length=512,
        vocabulary=8192,
    ),
    "vehicle-span": Preset(
        shape=ModelShape(layers=4, hidden=64, heads=4, intermediate=168, rope_base=10_000.0, scaled_init=True),
        recipe=TrainingRecipe(
            steps=4000, batch=8, lr=1e-2, schedule="cool-down", warmup=200, weight_decay=0.3, precision="fp32"
        ),
        length=65,
        vocabulary=None,
        text="text/public_domain_en.txt + wikipedia",
        test_text="wikitext2",
        repeat=16,
        threshold=Threshold(sink=0.5, ratio=100, kurtosis=500, damage=0.15),
    ),
    "opt-125m": Preset(
        shape=ModelShape(
            architecture="opt",
            layers=12,
            hidden=768,
            heads=12,
            intermediate=3072,
            tied=True,
            init_std=0.006,
            dropout=0.1,
        ),
        recipe=TrainingRecipe(
            steps=125_000,
            batch=192,
            micro=16,
            lr=4e-4,
            schedule="linear",
            warmup=2000,
            decay_norms=True,
            look_every=2500,
        ),
        length=512,
        vocabulary=50_265,
        source="Quantizable Transformers (arXiv 2306.12929), appendix C and its code; the tokenizer is ours",
    ),
    "kv-shift-1.5b": Preset(
        shape=ModelShape(layers=28, hidden=2048, heads=16, intermediate=5504),
        recipe=TrainingRecipe(
            steps=9536, batch=512, micro=4, lr=2e-4, schedule="constant", warmup=1000, look_every=500
        ),
        length=2048,
        vocabulary=36_000,
        attention=("kv_shift",),
        source="KV shifting attention (arXiv 2411.19574), table 1: 10B tokens, 1M a step; text and tokenizer are ours",
    ),
}
"""Every preset. AdamW (0.9, 0.95), weight decay 0.1, clip 1 and RoPE base 100,000 are the defaults of all."""


def preset(name: str) -> Preset:
    """A preset by name. Raises StudfinderError if there is none."""
    if name not in PRESETS:
        raise unknown("there is no preset", name, PRESETS)
    return PRESETS[name]
