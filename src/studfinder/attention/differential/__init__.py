"""Differential attention (v2): the difference of two softmaxes."""
