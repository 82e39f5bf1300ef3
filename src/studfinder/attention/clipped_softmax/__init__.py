"""Clipped softmax: attention weights that can be exactly zero, so that a head can do nothing."""
