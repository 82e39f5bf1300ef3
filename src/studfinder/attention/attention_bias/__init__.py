"""Explicit attention bias: a learned key and value in every layer."""

from studfinder.attention.attention_bias.layer import AttentionBias

__all__ = ["AttentionBias"]
