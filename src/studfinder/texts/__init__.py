"""Corpora, our own prompts and proof text, BOS, windows: every text comes from here."""

from studfinder.texts.batches import Batch, batches
from studfinder.texts.corpora import ONE_DOCUMENT, corpus, documents, fingerprint, texts_in
from studfinder.texts.digest import digest
from studfinder.texts.encoding import (
    WHOLE,
    added_before,
    as_user_says,
    check_ids,
    conversation,
    token_ids,
    tokenizer_of,
)
from studfinder.texts.nonce import filler, nonce_names
from studfinder.texts.pairs import encode_pairs
from studfinder.texts.pinned import commit_of, said, split_revision
from studfinder.texts.prompts import Text, default_prompts, encode, proof_text, proof_windows, read_prompts
from studfinder.texts.relations import Relation, relations
from studfinder.texts.tokens import as_text, token_class, token_text

__all__ = [
    "ONE_DOCUMENT",
    "WHOLE",
    "Batch",
    "Relation",
    "Text",
    "added_before",
    "as_text",
    "as_user_says",
    "batches",
    "check_ids",
    "commit_of",
    "conversation",
    "corpus",
    "default_prompts",
    "digest",
    "documents",
    "encode",
    "encode_pairs",
    "filler",
    "fingerprint",
    "nonce_names",
    "proof_text",
    "proof_windows",
    "read_prompts",
    "relations",
    "said",
    "split_revision",
    "texts_in",
    "token_class",
    "token_ids",
    "token_text",
    "tokenizer_of",
]
