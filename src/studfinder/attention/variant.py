"""What a variant is: a frozen record of its settings, and a module (a part) for the numbers it learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from studfinder.errors import StudfinderError, unknown
from studfinder.records.config import Config

Role = Literal["keys and values", "queries", "weights", "positions", "output"]

# name -> class of its settings; a new variant is one folder and one line here.
VARIANTS = {
    "kv_shift": "studfinder.attention.kv_shift.layer:KVShift",
    "clipped_softmax": "studfinder.attention.clipped_softmax.layer:ClippedSoftmax",
    "gated": "studfinder.attention.gated.layer:Gated",
    "attention_bias": "studfinder.attention.attention_bias.layer:AttentionBias",
    "sink_logit": "studfinder.attention.sink_logit.layer:SinkLogit",
    "softmax_one": "studfinder.attention.softmax_one.layer:SoftmaxOne",
    "softpick": "studfinder.attention.softpick.layer:Softpick",
    "differential": "studfinder.attention.differential.layer:Differential",
    "rope": "studfinder.attention.positions.layer:RoPE",
    "nope": "studfinder.attention.positions.layer:NoPE",
    "alibi": "studfinder.attention.positions.layer:ALiBi",
}


@dataclass(frozen=True, kw_only=True)
class AttentionShape:
    """The sizes of one attention module: heads H, key/value heads G, head dim D, hidden size C.

    Attributes:
        values: dims of a value, where they are not as many as a key's; else 0.
        turned: dims of a head that positions turn.
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    values: int = 0
    turned: int = 0

    @property
    def value_dim(self) -> int:
        return self.values or self.head_dim


class Part(nn.Module):
    """The learned numbers of a variant in one layer: the parameters that `sizes` names, drawn by `reset` as the
    settings' `init` says. A variant with `own_function` has a method

        attend(query (B, H, T, D), key (B, G, S, D), value (B, G, S, D), mask, causal, scale) -> (B, H, T, D).
    """

    decays: ClassVar[frozenset[str]] = frozenset()  # parameters that take weight decay: the matrix products

    def __init__(self, settings: Any, shape: AttentionShape) -> None:
        super().__init__()
        self.settings, self.shape = settings, shape
        for name, axes in self.sizes().items():  # in torch's default dtype and device, as from_pretrained wants it
            self.register_parameter(name, nn.Parameter(torch.empty(axes)))
        self.reset()

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, by name."""
        return {}

    def reset(self) -> None:
        """Set every parameter to its start."""

    def start_from(self, query: nn.Module) -> None:
        """Copy what the start needs from the query projection of the attention module this part is put into."""


@dataclass(frozen=True, kw_only=True)
class Variant(Config):
    """Base of all settings.

    Class attributes:
        name: its key in VARIANTS and the name of its part in the attention module.
        role: what it changes; two variants of one role do not combine.
        inits: allowed values of `init`, the first being the default; with `identity` None there is no
            default, because no start leaves the model's outputs as they are.
        identity: the start that is bit-exact and trainable, if there is one.
        own_function: whether it needs the attention function for itself (its part then has `attend`).
        part_type: the class of its parts.
    """

    name: ClassVar[str]
    role: ClassVar[Role]
    inits: ClassVar[tuple[str, ...]]
    identity: ClassVar[str | None] = None
    own_function: ClassVar[bool] = False
    part_type: ClassVar[type[Part]]

    init: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for wrong, what, expected in self.rules():
            if wrong:
                raise StudfinderError(what, expected=expected)

    def rules(self) -> Iterator[tuple[bool, str, str]]:
        """Whether a setting is wrong, what is said then, and what was expected; each in the light of those before."""
        known = self.init is None or self.init in self.inits
        yield not known, f"{type(self).__name__}(init={self.init!r}) is unknown", " or ".join(map(repr, self.inits))

    def started(self, init: str | None) -> Variant:
        """These settings with the start made explicit.

        Raises:
            StudfinderError: none was given and the variant has no start that keeps the model's outputs.
        """
        init = init or self.init or self.identity
        if init is None:
            raise StudfinderError(
                f"{type(self).__name__} has no start that leaves the model's outputs as they are",
                expected="init= said aloud",
                do=f"Say convert(model, {type(self).__name__}(...), init={self.inits[0]!r}), then train it",
            )
        return dataclasses.replace(self, init=init)

    def check(self, shape: AttentionShape) -> None:
        """Raise StudfinderError if attention of this shape cannot carry the variant."""

    def part(self, shape: AttentionShape, layer: int) -> Part:
        """A fresh part for one layer."""
        return self.part_type(self, shape)

    @property
    def output_factor(self) -> float:
        """What W_o is multiplied by when a trained model is converted."""
        return 1.0

    def to_dict(self) -> dict[str, Any]:
        """For config.json."""
        return {"name": self.name, **dataclasses.asdict(self)}


def variant_from(entry: dict[str, Any]) -> Variant:
    """The settings that `to_dict` wrote."""
    fields = dict(entry)
    return variant_class(fields.pop("name", None))(**fields)


def variant_class(name: Any) -> type[Variant]:
    """The class of a variant's settings. Raises StudfinderError for an unknown one."""
    if name not in VARIANTS:
        raise unknown("there is no attention variant", name, VARIANTS)
    module, _, attribute = VARIANTS[name].partition(":")
    return getattr(import_module(module), attribute)
