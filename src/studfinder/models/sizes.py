"""Sizes that a config asks for, held against what its files hold, before a model of them is built.

Building a hundred thousand layers takes hours, and a width of 10^12 takes all memory, even where no file of that size
is there. Whether every tensor fits is judged after loading (models/judging.py); here only what could never fit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from studfinder.errors import StudfinderError

_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_ACROSS = ("vocab_size", "intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner")
"""Each makes a matrix with the width."""
_BESIDE = (*_HEADS, "num_key_value_heads", "head_dim", "num_experts", "num_local_experts", "moe_intermediate_size")
_POSITIONS = ("n_positions", "max_position_embeddings")
_TABLES = ("wpe.weight", "embed_positions.weight", "position_embeddings.weight")
"""Learned positions; where there is no such tensor, positions have no size."""
_MOST_LAYERS = 1000
"""As many as no model has; more are believed where the files hold as many tensors."""
_SLACK = 8
"""Numbers that a file may hold in one: 4-bit codes are packed by eight."""


def check_sizes(name: str, config: Mapping[str, Any], shapes: Mapping[str, Collection[int]]) -> None:
    """Raise StudfinderError if a config has a size that is not above 0, or that its files cannot hold.

    Args:
        name: of the checkpoint, for print.
        config: as it is in config.json, or as `to_dict` gives it.
        shapes: of the tensors of its files, by name; empty where they are not known.
    """
    for part in (config, *(value for key, value in config.items() if key.endswith("_config"))):
        if isinstance(part, Mapping):
            _check(name, part, shapes)


def _check(name: str, config: Mapping[str, Any], shapes: Mapping[str, Collection[int]]) -> None:
    for key in (*_LAYERS, *_WIDTH, *_ACROSS, *_HEADS, *_POSITIONS):
        value = config.get(key)
        if isinstance(value, int) and value < 1:
            raise _wrong(name, key, value, "a number from 1 up")
    layers = _first(config, _LAYERS)
    if layers is not None and layers[1] > max(_MOST_LAYERS, len(shapes)):
        raise _wrong(name, *layers, f"at most {max(_MOST_LAYERS, len(shapes)):,}")
    held = sum(math.prod(max(1, size) for size in shape) for shape in shapes.values()) * _SLACK if shapes else 1 << 50
    width = _first(config, _WIDTH)
    for key in (*_WIDTH, *_ACROSS, *_BESIDE):
        value = config.get(key)
        if _int(value) > held:
            raise _wrong(name, key, value, "what its weights have room for")
        if width is not None and key in _ACROSS and _int(value) * width[1] > held:
            raise _wrong(name, f"{width[0]}={width[1]} and {key}", value, "what its weights have room for")
    rows = [next(iter(shape)) for tensor, shape in shapes.items() if tensor.endswith(_TABLES) and shape]
    positions = _first(config, _POSITIONS)
    if rows and positions is not None and positions[1] > 2 * max(rows):
        raise _wrong(name, *positions, f"at most {max(rows):,}, the rows of its positions")


def _int(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _first(config: Mapping[str, Any], keys: Collection[str]) -> tuple[str, int] | None:
    return next(((key, config[key]) for key in keys if isinstance(config.get(key), int)), None)


def _wrong(name: str, key: str, value: Any, expected: str) -> StudfinderError:
    shown = str(value) if abs(value) < 10**15 else f"a number of {len(str(abs(value)))} digits"
    return StudfinderError(
        f"the config of {name} says {key}={shown}", expected=expected, do="It may be of another model"
    )
