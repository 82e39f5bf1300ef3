"""Explicit attention bias: a learned key and value in every layer."""
