"""Clipped softmax: attention weights that can be exactly zero, so that a head can do nothing."""

from studfinder.attention.clipped_softmax.layer import ClippedSoftmax

__all__ = ["ClippedSoftmax"]
