"""Attention that does not need outliers: variants that swap into a live model, exact and cache-safe.

Importing this room registers the saved variants ("studfinder-llama", ...) with transformers' Auto classes.
"""

from studfinder.attention.convert import convert, parameter_groups, shift_cache
from studfinder.attention.kv_shift.layer import KVShift
from studfinder.attention.variant import VARIANTS, Variant

__all__ = ["VARIANTS", "KVShift", "Variant", "convert", "parameter_groups", "shift_cache"]
