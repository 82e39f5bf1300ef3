"""Attention that does not need outliers: variants that swap into a live model, exact and cache-safe.

Importing this room registers the saved variants ("studfinder-llama", ...) with transformers' Auto classes.
"""

from studfinder.attention.attention_bias.layer import AttentionBias
from studfinder.attention.clipped_softmax.layer import ClippedSoftmax
from studfinder.attention.convert import convert, parameter_groups, shift_cache
from studfinder.attention.differential.layer import Differential
from studfinder.attention.gated.layer import Gated
from studfinder.attention.kv_shift.baichuan import import_kernels
from studfinder.attention.kv_shift.layer import KVShift
from studfinder.attention.positions.layer import ALiBi, NoPE, RoPE
from studfinder.attention.sink_logit.layer import SinkLogit
from studfinder.attention.softmax_one.layer import SoftmaxOne
from studfinder.attention.softpick.layer import Softpick
from studfinder.attention.variant import VARIANTS, Part, Variant
from studfinder.records.public import public

__all__ = [
    "VARIANTS",
    "ALiBi",
    "AttentionBias",
    "ClippedSoftmax",
    "Differential",
    "Gated",
    "KVShift",
    "NoPE",
    "Part",
    "RoPE",
    "SinkLogit",
    "SoftmaxOne",
    "Softpick",
    "Variant",
    "convert",
    "import_kernels",
    "parameter_groups",
    "shift_cache",
]

public(globals())
