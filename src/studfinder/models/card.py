"""A model described for the record."""

from __future__ import annotations

from studfinder.models.lm import LM
from studfinder.models.rotary import train_length
from studfinder.records import ModelCard


def model_card(lm: LM, content_hash: str, context: int | None = None) -> ModelCard:
    """The model's card. `context` overrides the training length that rotary facts use."""
    length, length_source = train_length(lm, context)
    anatomy = lm.anatomy
    return ModelCard(
        id=lm.source.id,
        origin=lm.source.origin,
        architecture=anatomy.architecture,
        content_hash=content_hash,
        dtype=str(lm.dtype).removeprefix("torch."),
        layers=len(anatomy.layers),
        hidden=anatomy.hidden,
        heads=anatomy.heads,
        kv_heads=anatomy.kv_heads,
        head_dim=anatomy.head_dim,
        intermediate=anatomy.intermediate,
        vocabulary=anatomy.vocabulary,
        parameters=sum(p.numel() for p in lm.model.parameters()),
        train_length=length,
        train_length_source=length_source,
        notes=lm.source.notes,
        allowed_missing=lm.source.allowed,
        revision=lm.source.revision,
        merged_adapters=() if lm.source.merged is None else (lm.source.merged,),
    )
