"""Gated attention: a sigmoid gate on what each head writes."""
