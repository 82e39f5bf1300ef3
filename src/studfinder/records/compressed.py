"""Schemes and inputs as compressed-tensors' QuantizationArgs (plain data), and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.records.scheme import Inputs, Scheme

_E4M3, _UINT8 = "torch.float8_e4m3fn", "torch.uint8"


def weight_arguments(scheme: Scheme) -> dict[str, Any]:
    """The scheme as compressed-tensors' QuantizationArgs."""
    arguments: dict[str, Any] = {
        "num_bits": scheme.bits,
        "type": "int" if scheme.integer else "float",
        "symmetric": scheme.zero == "none",
        "dynamic": False,
    }
    if scheme.element == "fp4":
        kind, stored = ("tensor_group", _E4M3) if scheme.scale == "e4m3" else ("group", _UINT8)
        return {**arguments, "strategy": kind, "group_size": scheme.block, "scale_dtype": stored, "zp_dtype": stored}
    if isinstance(scheme.block, tuple):
        return {**arguments, "strategy": "block", "block_structure": list(scheme.block)}
    if isinstance(scheme.block, int):
        return {**arguments, "strategy": "group", "group_size": scheme.block}
    return {**arguments, "strategy": scheme.block}


def input_arguments(inputs: Inputs) -> dict[str, Any]:
    """Rounded inputs as compressed-tensors' QuantizationArgs."""
    arguments: dict[str, Any] = {
        "num_bits": int(inputs.element.removeprefix("int").removeprefix("fp")),
        "type": "int" if inputs.element.startswith("int") else "float",
        "symmetric": True,
        "dynamic": True,
    }
    if inputs.element == "fp4":
        nv = inputs.scope == 16
        stored = _E4M3 if nv else _UINT8
        kind = {"strategy": "tensor_group" if nv else "group", "dynamic": "local" if nv else True}
        return {**arguments, **kind, "group_size": inputs.scope, "scale_dtype": stored, "zp_dtype": stored}
    if isinstance(inputs.scope, int):
        return {**arguments, "strategy": "group", "group_size": inputs.scope}
    return {**arguments, "strategy": inputs.scope}


def scheme_of_arguments(given: Mapping[str, Any]) -> Scheme:
    """The scheme that QuantizationArgs of weights describe. Raises StudfinderError where there is none."""
    bits, kind = given.get("num_bits", 8), str(given.get("type", "int"))
    size, shape = given.get("group_size"), given.get("block_structure")
    strategy = given.get("strategy") or ("group" if size else "block" if shape else "tensor")
    element = f"int{bits}" if kind == "int" else f"fp{bits}"
    block: Any = {"channel": "channel", "tensor": "tensor", "block": tuple(shape or ())}.get(strategy, size)
    if size == -1 and strategy == "group":
        block = "channel"
    symmetric = given.get("symmetric", True)
    changes: dict[str, Any] = {}
    if element == "fp4":
        changes["scale"] = "e4m3" if strategy == "tensor_group" else "e8m0"
    if strategy == "block":
        changes["remainder"] = "block"
    try:
        return Scheme(element=element, block=block, zero="none" if symmetric else "integer", **changes)  # type: ignore[arg-type]
    except StudfinderError as error:
        raise StudfinderError(f"weights of {bits} bits by {strategy}: {error}") from None


def inputs_of_arguments(given: Mapping[str, Any]) -> Inputs:
    """The inputs that QuantizationArgs of input activations describe. Raises StudfinderError where there are none."""
    bits, kind = given.get("num_bits", 8), str(given.get("type", "int"))
    strategy = str(given.get("strategy") or ("group" if given.get("group_size") else "tensor"))
    scope: Any = given.get("group_size") if strategy in ("group", "tensor_group") else strategy
    return Inputs(element=f"int{bits}" if kind == "int" else f"fp{bits}", scope=scope)  # type: ignore[arg-type]
