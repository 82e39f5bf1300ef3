"""Attention that does not need outliers: variants that swap into a live model, exact and cache-safe.

Importing this room registers the saved variants ("studfinder-llama", ...) with transformers' Auto classes.
"""

from studfinder.attention.attention_bias import AttentionBias
from studfinder.attention.clipped_softmax import ClippedSoftmax
from studfinder.attention.convert import convert, parameter_groups, shift_cache
from studfinder.attention.differential import Differential
from studfinder.attention.gated import Gated
from studfinder.attention.kv_shift import KVShift
from studfinder.attention.kv_shift.baichuan import import_kernels
from studfinder.attention.positions import ALiBi, NoPE, RoPE
from studfinder.attention.sink_logit import SinkLogit
from studfinder.attention.softmax_one import SoftmaxOne
from studfinder.attention.softpick import Softpick
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
