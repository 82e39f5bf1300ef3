"""Softmax off by one: 1 + the sum in the denominator."""
