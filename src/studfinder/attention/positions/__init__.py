"""Position encodings for controls: RoPE (full, partial, p-RoPE), none, ALiBi."""

from studfinder.attention.positions.layer import ALiBi, NoPE, RoPE

__all__ = ["ALiBi", "NoPE", "RoPE"]
