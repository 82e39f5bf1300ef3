"""Corpora, our own prompts and proof text, BOS, windows: every text comes from here."""

from studfinder.texts.batches import Batch, batches
from studfinder.texts.corpora import corpus
from studfinder.texts.prompts import Text, default_prompts, encode, proof_text, read_prompts
from studfinder.texts.tokens import token_class, token_text

__all__ = [
    "Batch",
    "Text",
    "batches",
    "corpus",
    "default_prompts",
    "encode",
    "proof_text",
    "read_prompts",
    "token_class",
    "token_text",
]
