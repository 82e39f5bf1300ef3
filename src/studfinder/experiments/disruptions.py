"""Ways to disrupt Q and K: massive dims, the controls for them, and noise elsewhere that does as much damage.

Each is a variant whose `family` is its row: draws of the same control share it. Its edits, which are its `detail`, act
in prefill only, as in the paper: in every teacher-forced pass, and in the prompt of a generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studfinder.edits import (
    Edit,
    Entries,
    MatchedDims,
    RandomDims,
    TopDims,
    dims,
    massive_value_disruption,
    mean,
    noise,
)
from studfinder.errors import StudfinderError, WriteFailed
from studfinder.measures.damage import damage_matched
from studfinder.models import LM, rotary_of
from studfinder.studies import ModelVariant, with_edits
from studfinder.texts import encode, proof_text

CLEAN = "as it is"
_PIECES = 16
TUNING_SEED = 1000
"""Noise is tuned with a draw of its own."""


def massive(lm: LM, ks: Sequence[int]) -> list[ModelVariant]:
    """The paper's attack: the k largest dims of every head of Q and K, all at one mean."""
    return [with_edits(lm, f"massive, k = {k}", massive_value_disruption(lm, k)) for k in ks]


def others(lm: LM, k: int, draws: int) -> dict[str, list[Entries]]:
    """As many dims as the k largest: the next in norm, random ones, and (where there is RoPE) those of the same rotary
    band; several where they are drawn."""
    found: dict[str, list[Entries]] = {
        "next in norm": [MatchedDims(k, "norm")],
        "random": [RandomDims(k, seed) for seed in range(draws)],
    }
    if any(rotary_of(lm, layer) is not None for layer in range(len(lm.anatomy.layers))):
        found["same rotary band"] = [MatchedDims(k, "band", seed) for seed in range(draws)]
    return found


def controls(lm: LM, k: int, draws: int) -> list[ModelVariant]:
    """As many other dims, each held at its mean: the smallest, which is the paper's control, and random ones."""
    selects: dict[str, list[Entries]] = {
        "smallest": [TopDims(k, largest=False)],
        "random": [RandomDims(k, seed) for seed in range(draws)],
    }
    return [
        one
        for name, chosen in selects.items()
        for one in draws_of(lm, f"{name}, k = {k}", [mean(dims(lm, select=own), when="prefill") for own in chosen])
    ]


def draws_of(lm: LM, name: str, draws: Sequence[Sequence[Edit]]) -> list[ModelVariant]:
    """Variants of one family, a draw each; the first has its name, if it is alone."""
    labels = [f"{name} draw {seed}" for seed in range(len(draws))] if len(draws) > 1 else [name]
    return [with_edits(lm, label, edits, family=name) for label, edits in zip(labels, draws, strict=True)]


# --- noise as harmful as something else -----------------------------------------------------------------------------


def noise_elsewhere(lm: LM, k: int, std: float, seed: int) -> tuple[Edit, ...]:
    """Noise in all dims of Q and K but the k largest of every head."""
    return noise(dims(lm, select=TopDims(lm.anatomy.head_dim - k, largest=False)), std, seed, when="prefill")


def neutral(lm: LM) -> tuple[list[list[int]], list[list[int]]]:
    """Pieces of our proof text by turns: damage is tuned on the first and reported on the others."""
    encoded = encode(lm, proof_text(), limit=min(128, lm.anatomy.max_positions or 128))[0][:_PIECES]
    return encoded[::2], encoded[1::2]


def as_harmful(lm: LM, edits: Sequence[Edit], k: int) -> dict[str, Any]:
    """The noise elsewhere that does as much damage to neutral text as given edits: its strength in units of each dim's
    root mean square, and why there is none, if it could not be matched (within 5 %)."""
    try:
        found = damage_matched(
            lm, neutral(lm)[0], edits, lambda std: noise_elsewhere(lm, k, std, TUNING_SEED), start=0.5
        )
    except WriteFailed:
        raise
    except StudfinderError as error:
        return {"std": None, "why": f" ({error.what})"}
    missed = f": its KL of {found.target.value:.3g} was not reached (nearest: {found.kl.value:.3g})"
    return {"std": found.strength, "why": "" if found.matched else missed}
