"""Softmax off by one: 1 + the sum in the denominator."""

from studfinder.attention.softmax_one.layer import SoftmaxOne

__all__ = ["SoftmaxOne"]
