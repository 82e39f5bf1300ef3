"""What must a cache of keys and values in few bits keep?

What it asks: keys hold massive values, which are mostly the same at every token, and the first token's keys and values
are unlike all others; which of the known means against that are worth their bits? How: keys and values rounded where
attention reads them, in int8, int4 and fp8, one scale a token and head; then one thing changed at a time: keys per
channel, keys stored before rotation, the first token kept in 16 bits, keys centred by a constant from calibration text
(added back, or dropped, which a softmax does not see), the massive dims of K kept. Control: as many other dims of K.
What to look at: each change against the plain cache of the same element, and its true bits.

Scales and minima are fp16 and counted; runs of 32 tokens share a scale where it is per channel, and a run that is not
full stays in 16 bits. Bits are of a cache of one window.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers.kv_cache import KVCache, held_dims, quantized_cache
from studfinder.records import Findings
from studfinder.records.config import option
from studfinder.studies import PAIRED, ModelVariant
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import (
    CAVEAT,
    CalibratedConfig,
    Rounding,
    families_chart,
    keeping_notes,
    kept_pairs,
)


@dataclass(frozen=True, kw_only=True)
class CacheConfig(CalibratedConfig):
    """Which elements, judged by what."""

    text: str = option("wikitext2", help="The text of the perplexity.")
    elements: tuple[str, ...] = option("int8,int4,fp8", help="What numbers are rounded to.", commas=True)
    passkeys: int = option(40, help="Prompts of the passkey.", least=1)
    passkey: str = option("128,256,512", help="Their lengths; empty for none.")


EXPERIMENT = Experiment(
    name="quantize/kv-cache",
    paper="2502.01563",
    shows="ours",
    summary="What must a cache of keys and values in few bits keep?",
    needs="about 15 minutes and 2 GB with smollm2 on two cores (estimated; plus a scan)",
    presets={"cpu": CacheConfig()},
    spread=True,
)
MASSIVE_KEPT, OTHERS_KEPT = "the massive dims of K kept", "as many other dims of K kept"
_CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    "keys per channel": {"keys": "channel"},
    "keys before RoPE": {"rope": "pre"},
    "keys before RoPE, per channel": {"rope": "pre", "keys": "channel"},
    "the first token kept": {"first": 1},
    "keys centred": {"centre": "added"},
    "keys centred, the constant dropped": {"centre": "dropped"},
    "the first token kept, keys centred": {"first": 1, "centre": "added"},
}


def run(bench: Bench, lm: LM) -> Outcome:
    """Every element with every change."""
    own, rounding = bench.config, Rounding(bench, lm)
    keeps = cache_keeps(lm, load_findings(bench, lm, prove=False), own.seed)
    variants = []
    for element in own.elements:
        zero: Any = "none" if element == "fp8" else "float"
        plain = KVCache(element=element, zero=zero)
        variants += [cache_variant(rounding, element, what, replace(plain, **more)) for what, more in _CHANGES.items()]
        variants += [cache_variant(rounding, element, what, plain, keep) for what, keep in keeps.items()]
    measures = [f"perplexity:{own.text}", *([f"passkey:{own.passkey}"] if own.passkey else [])]
    scored = rounding.scored(variants, measures, limits={"passkey": own.passkeys})
    pairs = [(one.label, one.label, plain.label) for one, plain in kept_pairs(scored)]
    tables = [
        scored.scores_table(
            "scores",
            "The plain cache: one scale and minimum (none for fp8) a token and head, keys after RoPE. " + CAVEAT,
            bits="bits a number of the cache",
            first="recipe",
        ),
        scored.changes_table("against the plain cache of the same element", f"{PAIRED} {CAVEAT}", pairs=pairs),
    ]
    told = keeping_notes(scored, scored.measures[:1], "elements", "the cache with", [(MASSIVE_KEPT, OTHERS_KEPT)])
    none = [] if keeps else ["no massive values of K were found, so none could be kept."]
    chart = families_chart(scored, "kv-cache", turned=True)
    return Outcome(tables, [*told, *none, *scored.notes()], [chart], remarks=[CAVEAT])


def cache_variant(
    rounding: Rounding, element: str, kept: str, config: KVCache, keep: Findings | None = None
) -> ModelVariant:
    """The model with a cache; bits are those of one window.

    Args:
        kept: in words, what is done beyond `element`, the plain cache.
        keep: findings whose massive dims of K stay in 16 bits.
    """
    lm, length = rounding.lm, rounding.bench.config.length

    @contextmanager
    def enter() -> Iterator[float]:
        held = 0 if keep is None else sum(int(mask.sum()) for mask in held_dims(lm, keep).values())
        heads = sum(layer.attention is not None for layer in lm.anatomy.layers) * lm.anatomy.kv_heads
        with quantized_cache(lm, config, keep=keep, windows=() if config.centre == "none" else rounding.windows):
            yield config.bits(lm.anatomy.head_dim, length, held=held / heads)  # type: ignore[arg-type]

    label = element + (f", {kept}" if kept else "")
    settings = repr((config, [] if keep is None else keep.massive_values, length))
    return rounding.entered(label, enter, settings, family=element, kept=kept)


def cache_keeps(lm: LM, findings: Findings, seed: int) -> dict[str, Findings]:
    """The findings, and the same with other dims in place of the massive ones of K."""
    try:
        held = held_dims(lm, findings)
    except StudfinderError:
        return {}
    generator = torch.Generator().manual_seed(seed)
    massive = [value for value in findings.massive_values if value.tensor == "key"]
    others = []
    for value in massive:
        mask = held[value.layer][value.head]
        free = (~mask).nonzero().flatten().tolist()
        if free:
            dim = free[int(torch.randint(len(free), (1,), generator=generator))]
            mask[dim] = True  # not drawn twice
            others.append(replace(value, dim=dim))
    return {MASSIVE_KEPT: findings, OTHERS_KEPT: replace(findings, massive_values=tuple(others))}
