"""Ways to disrupt Q and K: massive dims, the controls for them, and noise elsewhere that does as much damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from studfinder.edits import (
    AboveLambda,
    Edit,
    Entries,
    Everything,
    MatchedDims,
    RandomDims,
    TopDims,
    dims,
    massive_value_disruption,
    mean,
    noise,
)
from studfinder.measures.damage import damage_matched
from studfinder.models import LM, rotary_of
from studfinder.texts import encode, proof_text

TUNING_SEED = 1000
"""Noise is tuned with a draw of its own."""


@dataclass(frozen=True)
class Disruption:
    """One set of edits.

    Attributes:
        name: its row; draws of the same control share it.
        key: tells draws apart.
        edits: in prefill only, as in the paper: every teacher-forced pass, and the prompt of a generation.
    """

    name: str
    key: str
    edits: tuple[Edit, ...]


def massive(lm: LM, ks: Sequence[int], lams: Sequence[float]) -> list[Disruption]:
    """The paper's attack, and the same with a mean for each dim; k largest dims, or all above lambda."""
    found = []
    for k in ks:
        pooled = massive_value_disruption(lm, k)
        found.append(Disruption(f"massive, k = {k}" + (", one mean" if k > 1 else ""), f"massive {k} pooled", pooled))
        if k > 1:  # at k = 1 the two are the same
            found.append(_of_means(lm, f"massive, k = {k}, a mean each", f"massive {k} each", TopDims(k)))
    return found + [_of_means(lm, f"massive, above {lam:g}", f"above {lam:g}", AboveLambda(lam)) for lam in lams]


def controls(lm: LM, ks: Sequence[int], draws: int) -> list[Disruption]:
    """As many other dims, held at their means: the smallest (the paper's control), random ones, the next in norm, and
    dims of the same rotary band (where there is RoPE)."""
    found = []
    banded = any(rotary_of(lm, i) is not None for i, layer in enumerate(lm.anatomy.layers) if layer.attention)
    for k in ks:
        found.append(_of_means(lm, f"smallest, k = {k}", f"smallest {k}", TopDims(k, largest=False)))
        found.append(_of_means(lm, f"next in norm, k = {k}", f"norm {k}", MatchedDims(k, "norm")))
        found += [
            _of_means(lm, f"random, k = {k}", f"random {k} draw {seed}", RandomDims(k, seed)) for seed in range(draws)
        ]
        found += [
            _of_means(lm, f"same rotary band, k = {k}", f"band {k} draw {seed}", MatchedDims(k, "band", seed))
            for seed in range(draws if banded else 0)
        ]
    return found


def _of_means(lm: LM, name: str, key: str, select: Entries) -> Disruption:
    return Disruption(name, key, mean(dims(lm, select=select), when="prefill"))


# --- noise as harmful as something else -----------------------------------------------------------------------------

PLACES = ("the massive dims", "the other dims", "V")


def noise_in(lm: LM, place: str, k: int, std: float, seed: int) -> tuple[Edit, ...]:
    """Noise in the k largest dims of every head of Q and K, in all their other dims, or in all of V."""
    where = {
        "the massive dims": lambda: dims(lm, select=TopDims(k)),
        "the other dims": lambda: dims(lm, select=TopDims(lm.anatomy.head_dim - k, largest=False)),
        "V": lambda: dims(lm, ("value",), select=Everything()),
    }[place]()
    return noise(where, std, seed, when="prefill")


def neutral(lm: LM) -> tuple[list[list[int]], list[list[int]]]:
    """Our proof text in two halves of alternating pieces: damage is tuned on one and reported on the other."""
    encoded = encode(lm, proof_text(), limit=min(256, lm.anatomy.max_positions or 256))[0]
    return encoded[::2], encoded[1::2]


def as_harmful(lm: LM, edits: Sequence[Edit], place: str, k: int) -> dict[str, Any]:
    """The noise in a place that does as much damage to neutral text as given edits: its strength in units of each
    dim's root mean square, whether it could be matched (within 5 %), and both KLs on the half it was tuned on."""
    found = damage_matched(lm, neutral(lm)[0], edits, lambda std: noise_in(lm, place, k, std, TUNING_SEED), start=0.5)
    return {"std": found.strength, "matched": found.matched, "kl": found.kl.value, "target": found.target.value}
