"""Dims of Q, K and V over all layers in one call, and the disruption of massive values as published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from studfinder.edits.edit import Cache, SiteEdit
from studfinder.edits.makers import Activations, mean
from studfinder.edits.selections import Entries, TopDims
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.sites import Site

Tensor = Literal["query", "key", "value"]


def dims(
    lm: LM,
    tensors: Sequence[Tensor] = ("query", "key"),
    layers: Iterable[int] | None = None,
    *,
    pre_rope: bool = False,
    select: Entries = TopDims(),  # noqa: B008 - a frozen record
) -> Activations:
    """A selection at Q, K or V of many layers.

    Args:
        layers: which; the default is every layer with attention.
        pre_rope: Q and K before RoPE; V has no such stage.
        select: which dims, worked out head by head (K and V: by KV head) and row by row.

    Raises:
        StudfinderError: no tensor or layer, or a layer without attention or with its Q and K out of reach.
    """
    attending = [number for number, layer in enumerate(lm.anatomy.layers) if layer.attention is not None]
    chosen = attending if layers is None else list(layers)
    names = []
    for layer in chosen:
        for tensor in tensors:
            site = Site(f"{tensor}.pre_rope" if pre_rope and tensor != "value" else tensor, layer)
            site.check(lm)
            names.append(str(site))
    if not names:
        raise StudfinderError("no dims are selected", expected="at least one of query, key, value, and one layer")
    return Activations(tuple(names), select)


def massive_value_disruption(lm: LM, k: int = 1, *, cache: Cache = "touched") -> tuple[SiteEdit, ...]:
    """The attack of Jin et al. 2025 (arXiv 2502.01563) as they released it: Q and K of every layer after RoPE, in every
    head the k dims of largest norm, all their entries set to one mean over tokens and those k dims; in prefill only.

    Args:
        k: 1 in their code for Llama and Mistral, 3 for Qwen2.5. (Their Gemma2 code does something else.)
        cache: their Llama code writes into the cached keys ("touched"), so that decoding sees them; their Qwen2 and
            Mistral code changes a copy, and decoding attends to the "clean" keys. Decoding's queries are never touched.

    Raises:
        StudfinderError: this architecture's Q and K cannot be reached after RoPE, or k is no number of dims.
    """
    where = dims(lm, ("query", "key"), select=TopDims(k))
    return tuple(
        edit
        for name in where.names
        for edit in mean(
            Activations(name, where.select),
            pooled=True,
            when="prefill",
            cache=cache if name.startswith("key") else "touched",
        )
    )
