"""Where KV shift keeps its one raw row per layer: in the cache object's layer, never on the module.

A row there follows whatever is done to the cache: beam search reorders it, crop takes it back, copies copy
it, and two generations at once do not see each other.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from studfinder.errors import StudfinderError


class RawRows:
    """Mixed into a transformers cache layer: what each projection gave the last token (unmixed, unrotated).

    `raw` holds them by projection as (B, N, ...) each; N is 1, or every row since the last crop while past
    recording is on.
    """

    raw: dict[str, torch.Tensor]
    record_past: bool

    def push(self, projection: str, new: torch.Tensor) -> torch.Tensor | None:
        """Remember these tokens' rows (B, T, ...); return those (B, 1, ...) of the token before them, None at
        the start."""
        old = self.raw.get(projection)
        if self.record_past:
            self.raw[projection] = new if old is None else torch.cat([old, new], dim=1)
        else:
            # Copied, so that one row does not keep the whole prefill's storage alive.
            self.raw[projection] = new if new.shape[1] == 1 else new[:, -1:].clone()
        return old if old is None or old.shape[1] == 1 else old[:, -1:]

    def activate_past_recording(self) -> None:
        getattr(super(), "activate_past_recording", lambda: None)()
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        kept = self.get_seq_length() - abs(tokens_to_remove)  # type: ignore[attr-defined]
        rows = max((raw.shape[1] for raw in self.raw.values()), default=0)
        if tokens_to_remove < 0 and kept > 0 and rows <= abs(tokens_to_remove):
            raise StudfinderError(
                f"this cache cannot go back {abs(tokens_to_remove)} tokens: KV shift keeps one raw row per layer",
                expected="cache.activate_past_recording() before the tokens that are to be undone",
                do="Make the cache with studfinder.attention.shift_cache(model), then activate the recording",
            )
        super().crop(tokens_to_remove)  # type: ignore[misc]
        end = rows - abs(tokens_to_remove)
        if kept > 0:
            self._map(lambda raw: raw[:, end - 1 : end].clone())
        else:
            self.raw = {}

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.raw = {}

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._map(lambda raw: raw.index_select(0, beam_idx.to(raw.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        self._map(lambda raw: raw.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._map(lambda raw: raw[indices])

    def _map(self, change: Any) -> None:
        self.raw = {projection: change(raw) for projection, raw in self.raw.items()}


@cache
def _with_rows(kind: Any) -> type:
    # _layer_type None: transformers registers a cache layer class that names one.
    return type(f"Shifted{kind.__name__}", (RawRows, kind), {"_layer_type": None, "__module__": __name__})


def shifted_layer(past_key_values: Any, layer: int) -> RawRows:
    """Layer `layer` of a cache, made able to hold raw rows the first time it is asked for.

    The new layer's class is a subclass of what it was, so dynamic, sliding, static and quantized layers work
    alike, also in a cache that the caller made without a config.

    Raises:
        StudfinderError: the cache already holds tokens whose raw rows nobody kept.
    """
    layers = past_key_values.layers
    make = getattr(past_key_values, "layer_class_to_replicate", None)
    while len(layers) <= layer and make is not None:
        layers.append(make())
    found = layers[layer]
    if not isinstance(found, RawRows):
        seen = found.get_seq_length()
        if isinstance(seen, int) and seen > 0:
            raise StudfinderError(
                "this cache was filled by a model without KV shift",
                expected="an empty cache, or one this model filled",
            )
        layers[layer] = object.__new__(_with_rows(found.__class__))
        layers[layer].__dict__.update(found.__dict__, raw={}, record_past=getattr(found, "record_past", False))
    return layers[layer]


def prepare(past_key_values: Any) -> Any:
    """Make every layer of a cache able to hold raw rows, so that past recording can be switched on early."""
    for index in range(len(getattr(past_key_values, "layers", ()))):
        shifted_layer(past_key_values, index)
    return past_key_values
