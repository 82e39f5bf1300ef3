"""Where a result came from: the model, the texts and the run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from studfinder.records.public import OneLine


@dataclass(frozen=True, kw_only=True)
class ModelCard(OneLine):
    """The model a result belongs to.

    Attributes:
        id: the name or path it was loaded by.
        origin: in words, e.g. "Q4_1 weights expanded to bf16".
        architecture: the `model_type` of its config.
        content_hash: SHA-256 over names, dtypes, shapes and bytes of the weights.
        dtype: the dtype it ran in.
        layers, hidden, heads, kv_heads, head_dim, intermediate, vocabulary: its sizes.
        parameters: how many there are, tied ones counted once.
        train_length: the training context used for rotary facts.
        train_length_source: where that number came from.
        notes: what its files hold that is not in memory and need not be, and what was cast.
        allowed_missing: what is random or was left out because the user allowed it.
        merged_adapters: adapters that were merged into its weights as it was loaded.
        revision: the commit of the hub's repository that it was read from; None of files that are the user's own.
    """

    id: str
    origin: str
    architecture: str
    content_hash: str
    dtype: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    parameters: int
    train_length: int
    train_length_source: str
    notes: tuple[str, ...] = ()
    allowed_missing: tuple[str, ...] = ()
    merged_adapters: tuple[str, ...] = ()
    revision: str | None = None

    def __post_init__(self) -> None:
        if not self.content_hash:
            raise ValueError(f"{self.id}: no content hash, so nothing says which weights this is of")


@dataclass(frozen=True, kw_only=True)
class PromptCard(OneLine):
    """The texts a result was observed on.

    Attributes:
        id: name of the text source, e.g. "studfinder-default-1".
        hash: SHA-256 of the token ids, in order.
        names: the name of each prompt.
        tokens: real tokens of each prompt, special tokens included.
        bos: whether each prompt began with the tokenizer's BOS token.
        chat_template: whether a chat template was applied.
        token_ids: the token ids of each prompt; empty where they are not known (findings of version 1).
    """

    id: str
    hash: str
    names: tuple[str, ...]
    tokens: tuple[int, ...]
    bos: bool
    chat_template: bool = False
    token_ids: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, id: str, names: Sequence[str], token_ids: Sequence[Sequence[int]], *, bos: bool) -> PromptCard:
        """The card of texts whose token ids are known."""
        return cls(
            id=id,
            hash=ids_hash(token_ids),
            names=tuple(names),
            tokens=tuple(map(len, token_ids)),
            bos=bos,
            token_ids=tuple(map(tuple, token_ids)),
        )

    def __post_init__(self) -> None:
        if self.token_ids and tuple(map(len, self.token_ids)) != self.tokens:
            raise ValueError(f"{self.id}: the token ids are not as many as the tokens")
        if self.token_ids and ids_hash(self.token_ids) != self.hash:
            raise ValueError(f"{self.id}: the token ids are not those of the hash {self.hash[:12]}")

    @property
    def total(self) -> int:
        """All tokens together."""
        return sum(self.tokens)


def ids_hash(token_ids: Sequence[Sequence[int]]) -> str:
    """SHA-256 of the token ids of some texts, in order."""
    return hashlib.sha256(repr([list(ids) for ids in token_ids]).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class RunCard(OneLine):
    """One run of a verb.

    Attributes:
        verb: what was run.
        key: hash of everything that determines the result.
        settings: the settings that went into the key.
        command: the command line or call.
        started: ISO time, UTC.
        seconds: wall time.
        device, seed, versions: of the run.
    """

    verb: str
    key: str
    settings: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    command: str = ""
    started: str = ""
    seconds: float = 0.0
    device: str = "cpu"
    seed: int = 0
    versions: dict[str, str] = field(default_factory=dict)
