"""KV shifting: each head reads a mixture of this token's and the previous token's key and value."""

from studfinder.attention.kv_shift.layer import KVShift, KVShiftPart

__all__ = ["KVShift", "KVShiftPart"]
