"""Differential attention (v2): the difference of two softmaxes."""

from studfinder.attention.differential.layer import Differential

__all__ = ["Differential"]
