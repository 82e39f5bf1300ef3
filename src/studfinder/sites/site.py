"""Names of places in a model."""

from __future__ import annotations

import re
from dataclasses import dataclass

from studfinder.errors import StudfinderError
from studfinder.models import LM, Mixer

KINDS = (
    "embedding",
    "residual",
    "query",
    "key",
    "value",
    "query.pre_rope",
    "key.pre_rope",
    "down_proj.input",
    "down_proj.output",
)
"""Every kind of site. Shapes: embedding and residual (B,T,C); query (B,H,T,D); key and value (B,G,S,D), after the
cache; pre_rope only the new tokens (a replacement there gets only the dims that a partial RoPE turns: the others go
past it and are replaced in query and key); down_proj.input (N,F) and .output (N,C) with one row a token that the
matrix saw.
"""

_TEXT = re.compile(r"([a-z_.]+?)(?:\[(\d+)(?:,\s*(\d+))?\])?")


@dataclass(frozen=True)
class Site:
    """A named place: `embedding`, `residual[3]`, `query[3]`, `down_proj.output[3]`, `down_proj.output[3,7]`.

    Attributes:
        kind: one of KINDS. `residual[l]` is the output of block l, before any final norm; `query` and `key` are
            after RoPE unless the kind says pre_rope.
        layer: which block, from 0; None for the embedding.
        writer: which of the block's FFN matrices, in the order of the anatomy: the expert, for a mixture.
    """

    kind: str
    layer: int | None = None
    writer: int = 0

    def __str__(self) -> str:
        if self.layer is None:
            return self.kind
        return f"{self.kind}[{self.layer},{self.writer}]" if self.writer else f"{self.kind}[{self.layer}]"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site's name. Raises StudfinderError if it is none."""
        match = _TEXT.fullmatch(text.strip())
        if match is None or match[1] not in KINDS or (match[2] is None) != (match[1] == "embedding"):
            raise StudfinderError(
                f"{text!r} is not a site", expected="embedding, or " + "[l], ".join(KINDS[1:]) + "[l]"
            )
        return cls(match[1], int(match[2]) if match[2] else None, int(match[3] or 0))

    def check(self, lm: LM) -> None:
        """Raise StudfinderError if this model has no such site."""
        layers = lm.anatomy.layers
        if self.kind not in KINDS:
            raise StudfinderError(f"{self.kind!r} is not a kind of site", expected=", ".join(KINDS))
        if self.kind == "embedding":
            return
        if self.layer is None or not 0 <= self.layer < len(layers):
            raise StudfinderError(f"{self} is not in this model", expected=f"a layer from 0 to {len(layers) - 1}")
        layer = layers[self.layer]
        if self.kind.startswith("down_proj") and self.writer >= len(layer.writers):
            raise StudfinderError(
                f"{self} is not in this model", expected=f"a writer from 0 to {len(layer.writers) - 1}"
            )
        if self.kind.split(".")[0] in ("query", "key", "value"):
            self._check_attention(lm, layer.mixer)

    def _check_attention(self, lm: LM, mixer: Mixer | None) -> None:
        if mixer is None:
            raise StudfinderError(f"{self} is not in this model: layer {self.layer} has no attention")
        if self.kind.endswith("pre_rope") and mixer.stage == "no RoPE":
            whose = "it" if lm.anatomy.stage == "no RoPE" else f"layer {self.layer}"
            raise StudfinderError(f"{self} is not in this model: {whose} has no RoPE", do="Use query and key")
        if self.kind in ("query", "key") and mixer.stage == "pre-RoPE":
            raise StudfinderError(
                f"{self} cannot be reached: {lm.anatomy.architecture} attends outside transformers' interface",
                do=f"Use {self.kind}.pre_rope",
            )
        if not mixer.readable:
            raise StudfinderError(
                f"{self} cannot be reached: which channels make it is unknown in {lm.anatomy.architecture}"
            )
