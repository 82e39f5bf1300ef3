"""Rotary positions as a GGUF file means them: what its metadata and its factor tensors say, as transformers' rope
parameters, and the frequencies that must come out.

The formulas are ggml's (`ggml_rope_ext`, `rope_yarn`): theta_i = base^(-2i/n), divided by a factor of each pair where
the file holds them (`rope_freqs`: Llama 3; `rope_factors_short`, `rope_factors_long`: LongRoPE), then by the linear
factor, or mixed between both by YaRN's ramp, which also multiplies cosines and sines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from studfinder.errors import StudfinderError

FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_TOLERANCE = 1e-6
_YARN = {"yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0}
_NEUTRAL = {"yarn_ext_factor": (1.0, -1.0), "yarn_log_multiplier": (0.0,)}


@dataclass(frozen=True)
class Rope:
    """How a file rotates queries and keys.

    Attributes:
        parameters: transformers' rope parameters.
        inv_freq: the frequencies that they must give, shape (pairs,).
        scale: what cosines and sines are multiplied by.
        local: the base of the frequencies of sliding-window layers, which are never scaled.
    """

    parameters: Mapping[str, Any]
    inv_freq: torch.Tensor
    scale: float = 1.0
    local: float = 10_000.0


def rope_of(name: str, said: Mapping[str, Any], factors: Mapping[str, torch.Tensor], head_dim: int) -> Rope:
    """The rope of a file.

    Args:
        name: the file, for errors.
        said: metadata without the architecture's name in front ("rope.freq_base").
        factors: the tensors of FACTORS that the file holds.
        head_dim: dims of a head.

    Raises:
        StudfinderError: a scaling that transformers has no rope parameters for, or two at once.
    """
    dims = int(said.get("rope.dimension_count", head_dim))
    base = float(said.get("rope.freq_base", 10_000.0))
    plain = base ** -(torch.arange(0, dims, 2, dtype=torch.float64) / dims)
    parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    if dims != head_dim:
        parameters["partial_rotary_factor"] = dims / head_dim
    local = float(said.get("rope.freq_base_swa", 10_000.0))
    kind, factor, attention = _scaling(name, said)
    lengths = {"original_max_position_embeddings": int(said.get("rope.scaling.original_context_length", 0))}
    if factors and kind not in ("none", "longrope") and factor != 1:
        raise _refused(name, f"both {sorted(factors)[0]} and rope.scaling.type {kind!r}")
    if "rope_freqs.weight" in factors:
        if len(factors) > 1 or attention != 1:
            raise _refused(name, "rope_freqs beside another scaling")
        found = _llama3(name, base, plain, factors["rope_freqs.weight"].double(), said)
        return Rope({**parameters, **found}, plain / factors["rope_freqs.weight"].double(), 1.0, local)
    if factors or kind == "longrope":
        if len(factors) != 2 or not lengths["original_max_position_embeddings"]:
            raise _refused(name, "LongRoPE without both factor tensors and rope.scaling.original_context_length")
        short, long = factors["rope_factors_short.weight"].double(), factors["rope_factors_long.weight"].double()
        given = {"short_factor": short.tolist(), "long_factor": long.tolist(), "attention_factor": attention}
        return Rope({**parameters, **lengths, **given, "rope_type": "longrope"}, plain / short, attention, local)
    if kind in ("none", "linear") or factor == 1:
        if attention != 1:
            raise _refused(name, f"rope.scaling.attn_factor {attention:g} with rope.scaling.type {kind!r}")
        if kind == "none" or factor == 1:
            return Rope(parameters, plain, 1.0, local)
        return Rope({**parameters, "rope_type": "linear", "factor": factor}, plain / factor, 1.0, local)
    return _yarn(said, parameters, plain, factor, attention, local)


def _scaling(name: str, said: Mapping[str, Any]) -> tuple[str, float, float]:
    """The type of scaling, its factor and what it multiplies cosines by; ggml's defaults where nothing is said."""
    factor = float(said.get("rope.scaling.factor", said.get("rope.scale_linear", 0.0))) or 1.0
    kind = str(said.get("rope.scaling.type", "linear" if factor != 1 else "none"))
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise _refused(name, f"rope.scaling.type {kind!r}")
    for key, neutral in _NEUTRAL.items():
        value = float(said.get(f"rope.scaling.{key}", neutral[0]))
        if value not in neutral:
            raise _refused(name, f"rope.scaling.{key} {value:g}")
    attention = float(said.get("rope.scaling.attn_factor", 1.0)) * float(said.get("rope.scaling.yarn_attn_factor", 1.0))
    return kind, factor, attention


def _yarn(
    said: Mapping[str, Any],
    parameters: dict[str, Any],
    plain: torch.Tensor,
    factor: float,
    attention: float,
    local: float,
) -> Rope:
    dims, base = 2 * len(plain), parameters["rope_theta"]
    original = int(said.get("rope.scaling.original_context_length", said.get("context_length", 0)))
    fast, slow = (float(said.get(f"rope.scaling.{key}", value)) for key, value in _YARN.items())

    def pair(turns: float) -> float:
        return dims * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0, math.floor(pair(fast))), min(dims - 1, math.ceil(pair(slow)))
    ramp = ((torch.arange(len(plain), dtype=torch.float64) - low) / max(0.001, high - low)).clamp(0, 1)
    scale = attention * (1 + 0.1 * math.log(factor))
    given = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_fast": fast,
        "beta_slow": slow,
        "attention_factor": scale,
    }
    return Rope({**parameters, **given}, plain * (1 - ramp) + plain / factor * ramp, scale, local)


def _llama3(
    name: str, base: float, plain: torch.Tensor, factors: torch.Tensor, said: Mapping[str, Any]
) -> dict[str, Any]:
    """The Llama 3 parameters that give these factors.

    1/f rises from 1/factor to 1 as a line in the frequency, between low / original and high / original turns a token.
    Only the ratios to `low` show in the factors, so it is 1, as in every released model.
    """
    if len(factors) != len(plain):
        raise _refused(name, f"{len(factors)} rope_freqs for {len(plain)} pairs")
    if bool((factors == 1).all()):
        return {}
    factor = round(float(factors.max()), 4)  # the file's is a float32
    if bool(torch.isclose(factors, torch.full_like(factors, factor), rtol=_TOLERANCE, atol=0).all()):
        return {"rope_type": "linear", "factor": factor}
    turns = plain / (2 * math.pi)
    share = (1 / factors - 1 / factor) / (1 - 1 / factor)
    for original, high in _lines(turns, share, int(said.get("rope.scaling.original_context_length", 8192))):
        line = ((original * turns - 1) / (high - 1)).clamp(0, 1)
        made = (1 - line) / factor + line
        if torch.allclose(made * factors, torch.ones_like(factors), rtol=0, atol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise _refused(name, f"rope_freqs (1 to {factor:g}) that no Llama 3 scaling gives")


def _lines(turns: torch.Tensor, share: torch.Tensor, usual: int) -> Iterator[tuple[int, float]]:
    """Lines (original, high) that may give these shares, which are 0 below 1 / original and 1 above high / original
    turns a token: the usual one, that through two points between, or those through one point or none that fit."""
    yield usual, 4.0
    between = (share > 1e-4) & (share < 1 - 1e-4)
    x, y = turns[between], share[between]
    below, above = float(turns[share <= 1e-4].max()), float(turns[share >= 1 - 1e-4].min())
    zeros = [below + part * (float(x.min() if len(x) else above) - below) for part in (0.02, 0.2, 0.5, 0.8, 0.98)]
    if len(x) >= 2:
        slope = float((y[0] - y[-1]) / (x[0] - x[-1]))
        zeros.insert(0, float(x[0] - y[0] / slope))
    for zero, step in itertools.product(zeros, (1024, 256, 16, 1)):
        original = round(1 / zero / step) * step
        if original < 1 or (len(x) and float(x.min()) * original <= 1):
            continue
        high = float(1 + ((original * x - 1) / y).mean()) if len(x) else 1 + 0.5 * (above * original - 1)
        if high > 1:
            yield from ((original, round(high, digits)) for digits in (0, 1, 3, 9) if round(high, digits) > 1)


def check_rope(name: str, model: torch.nn.Module, rope: Rope) -> None:
    """Compare a live model's frequencies with the file's. Raises StudfinderError where they differ by over 1e-6."""
    seen = False
    for path, buffer in model.named_buffers():
        owner, _, leaf = path.rpartition(".")
        if not leaf.endswith("inv_freq") or leaf.endswith("original_inv_freq"):
            continue
        seen = True
        kind = leaf.removesuffix("inv_freq")
        wanted, scale = rope.inv_freq, rope.scale
        if kind.startswith("sliding"):
            pairs = torch.arange(len(wanted), dtype=torch.float64)
            wanted, scale = rope.local ** -(pairs / len(wanted)), 1.0
        live = float(getattr(model.get_submodule(owner), f"{kind}attention_scaling", 1.0))
        same = len(buffer) == len(wanted) and torch.allclose(
            buffer.double() / wanted, torch.ones_like(wanted), rtol=0, atol=_TOLERANCE
        )
        if not same or abs(live / scale - 1) > _TOLERANCE:
            raise _refused(name, f"rope parameters that {type(model).__name__} computes otherwise ({path})")
    if not seen:
        raise _refused(name, f"rotary positions that {type(model).__name__} does not have")


def _refused(name: str, what: str) -> StudfinderError:
    return StudfinderError(
        f"{name} has {what}, which transformers cannot compute from it",
        expected="plain, linear, yarn, longrope or Llama 3 rope scaling",
        do="Load the checkpoint that it was converted from",
    )
