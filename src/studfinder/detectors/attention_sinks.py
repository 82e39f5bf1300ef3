"""Attention sinks (Gu et al. 2024, arXiv 2410.10781, section 3).

alpha_h = mean over query positions i of the attention that head h pays to the first token, over the first T = 64 tokens
of each prompt; a head is a sink if the mean over prompts exceeds 0.3. A first token always attends to itself, so a head
that spreads evenly over T = 64 tokens has alpha = 0.07.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from studfinder.detectors.detector import Detector, by_place, stacked
from studfinder.models import LM
from studfinder.records import AttentionSink, ModelCard, Thresholds
from studfinder.sites import AttentionCall
from studfinder.texts import Batch

_CHUNK = 256
"""Query positions whose scores are held at once."""


class AttentionSinks(Detector):
    """Mean attention to the first token, per layer and head, from Q and K alone."""

    def __init__(self, lm: LM, at: Thresholds | None = None) -> None:
        super().__init__(lm, at)
        self.totals: dict[int, torch.Tensor] = {}
        self.counts: dict[int, int] = {}  # prompts that are in them

    @property
    def readers(self) -> Mapping[type, Callable[[list[Any]], None]]:
        return {AttentionCall: self._read}

    def _read(self, seen: list[tuple[Batch, AttentionCall]]) -> None:
        for group in by_place(seen, "layer"):
            for event, lengths in _together(group, self.at.sink_tokens):
                usable = lengths > 1
                if not event.comparable or not bool(usable.any()):
                    continue
                alpha_BH = first_token_attention(event, lengths).cpu().double()[usable]
                if event.layer not in self.totals:
                    self.totals[event.layer] = torch.zeros(alpha_BH.shape[1], dtype=torch.float64)
                self.totals[event.layer] += alpha_BH.sum(dim=0)
                self.counts[event.layer] = self.counts.get(event.layer, 0) + len(alpha_BH)

    def merge(self, other: AttentionSinks) -> None:
        super().merge(other)
        for layer, total in other.totals.items():
            self.totals[layer] = self.totals[layer] + total if layer in self.totals else total
            self.counts[layer] = self.counts.get(layer, 0) + other.counts[layer]

    def strength_H(self, layer: int) -> torch.Tensor | None:
        """Mean attention to the first token of each head, shape (H,); None where it could not be read."""
        if not self.counts.get(layer):
            return None
        return self.totals[layer] / self.counts[layer]

    def found(self) -> tuple[AttentionSink, ...]:
        """The heads above the threshold, by layer."""
        return tuple(
            AttentionSink(layer=layer, head=head, strength=float(value))
            for layer in sorted(self.totals)
            for head, value in enumerate((self.totals[layer] / self.counts[layer]).tolist())
            if value > self.at.sink
        )

    @property
    def heads(self) -> int:
        """Heads that were looked at; 0 where attention could not be read."""
        return sum(total.numel() for total in self.totals.values())

    def summary(self, model: ModelCard) -> dict[str, Any]:
        return {"sink_heads": self.heads}

    def profile(self, model: ModelCard) -> dict[str, torch.Tensor]:
        """`sink` (L,H): the strengths, with `sink.layers` naming the layers."""
        layers = [layer for layer in sorted(self.totals) if self.counts.get(layer)]
        if not layers:
            return {}
        strengths = [self.totals[layer] / self.counts[layer] for layer in layers]
        return {"sink": stacked(strengths), "sink.layers": torch.tensor(layers)}

    def nonfinite(self) -> list[str]:
        return [f"attention[{layer}]" for layer, total in self.totals.items() if not torch.isfinite(total).all()]


def _together(group: list[tuple[Batch, AttentionCall]], tokens: int) -> Iterator[tuple[AttentionCall, torch.Tensor]]:
    """Calls of one layer with as many tokens that count, as one: the first tokens are all that a causal one needs. The
    others as they are, each with how many tokens of its rows count."""
    alike: dict[int, list[AttentionCall]] = {}
    for batch, event in group:
        lengths = torch.tensor(batch.lengths).clamp_max(tokens)
        if event.causal and event.mask is None and int(lengths.min()) == int(lengths.max()):
            alike.setdefault(int(lengths[0]), []).append(event)
        else:
            yield event, lengths
    for length, events in alike.items():
        query_BHTD, key_BGSD = (
            torch.cat([getattr(event, name)[:, :, :length] for event in events]) for name in ("query_BHTD", "key_BGSD")
        )
        one = replace(events[0], query_BHTD=query_BHTD, key_BGSD=key_BGSD)
        yield one, torch.full((len(query_BHTD),), length)


def first_token_attention(event: AttentionCall, lengths_B: torch.Tensor) -> torch.Tensor:
    """Mean over each row's first `lengths_B` queries of the attention to its first token, shape (B,H), fp32.

    Scores are formed in fp32 for a chunk of queries at a time, with the call's own mask, scale, soft cap and sinks.
    Rows are padded on the right, if at all. Keys after those queries count only where attention is not causal.
    """
    tokens = int(lengths_B.max())
    keys = tokens if event.causal else event.key_BGSD.shape[2]
    rows, heads = event.query_BHTD.shape[:2]
    total_BH = torch.zeros(rows, heads, device=event.query_BHTD.device)
    for start in range(0, tokens, _CHUNK):
        stop = min(tokens, start + _CHUNK)
        first_BHT = attention_weights(event, start, stop, keys)[..., 0]
        counted_BT = torch.arange(start, stop) < lengths_B[:, None]
        # Not a product: padding that sees nothing but padding has no softmax.
        total_BH += first_BHT.masked_fill(~counted_BT[:, None].to(first_BHT.device), 0.0).sum(dim=-1)
    return total_BH / lengths_B[:, None].clamp_min(1).to(total_BH.device)


def attention_weights(event: AttentionCall, start: int, stop: int, tokens: int) -> torch.Tensor:
    """How queries start..stop attend to the first `tokens` keys, shape (B, H, stop - start, S), fp32. A learned sink
    takes its share and is left out, so that rows may add up to less than one."""
    query_BHTD, key_BGSD = event.query_BHTD[:, :, start:stop].float(), event.key_BGSD[:, :, :tokens].float()
    (rows, heads, _, width), groups = query_BHTD.shape, key_BGSD.shape[1]
    scale = event.scaling if event.scaling is not None else width**-0.5
    # The query heads of a group share its keys: one product for each group.
    grouped = query_BHTD.reshape(rows, groups, -1, width)
    scores_BHTS = (grouped @ (key_BGSD * scale).transpose(2, 3)).view(rows, heads, stop - start, tokens)
    if event.softcap is not None:
        scores_BHTS = torch.tanh(scores_BHTS / event.softcap) * event.softcap
    scores_BHTS = scores_BHTS + _bias(event, start, stop, tokens)
    if event.sinks is not None:
        extra = event.sinks.float().reshape(1, heads, 1, 1).expand(rows, -1, stop - start, 1)
        scores_BHTS = torch.cat([scores_BHTS, extra], dim=-1)
    return scores_BHTS.softmax(dim=-1)[..., :tokens]


def _bias(event: AttentionCall, start: int, stop: int, tokens: int) -> torch.Tensor:
    """What is added to the scores of queries start..stop, broadcastable to (B, H, stop - start, tokens)."""
    if event.mask is None and not event.causal:
        return torch.zeros(1, device=event.query_BHTD.device)
    if event.mask is None:
        return _causal(start, stop, tokens, event.window).to(event.query_BHTD.device)
    mask = event.mask[:, :, start:stop, :tokens]
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
    return mask.float()


@lru_cache(maxsize=16)
def _causal(start: int, stop: int, tokens: int, window: int | None) -> torch.Tensor:
    query, key = torch.arange(start, stop)[:, None], torch.arange(tokens)[None, :]
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return torch.zeros(stop - start, tokens).masked_fill(hidden, float("-inf"))
