"""Gated attention: a sigmoid gate on what each head writes."""

from studfinder.attention.gated.layer import Gated

__all__ = ["Gated"]
