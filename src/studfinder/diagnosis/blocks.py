"""How wrong each block is by itself, and how wrong what it was given makes it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from studfinder.measures.effects import batched
from studfinder.models import LM
from studfinder.passes import Blocks
from studfinder.records.diagnosis import BlockDiagnosis


@torch.inference_mode(False)
@torch.no_grad()
def block_errors(original: LM, made: LM, windows: Sequence[Sequence[int]]) -> list[BlockDiagnosis]:
    """Both models block by block, and the made one's blocks on the original's states; empty of architectures whose
    blocks cannot be called one by one."""
    one, other = Blocks(original), Blocks(made)
    if not (one.direct and other.direct) or one.layers != other.layers:
        return []
    cut = batched(windows)
    sums, tokens = [[0.0, 0.0] for _ in one.layers], 0
    with one.weights.outside(), other.weights.outside():
        given = [(one.begin(batch), other.begin(batch)) for batch in cut]
        states: list[tuple] = [((), ()) for _ in cut]
        for step in range(len(one.layers)):
            with one.weights.at_hand(step), other.weights.at_hand(step):
                for place, ((own, others), (was, now)) in enumerate(zip(given, states, strict=True)):
                    right, really = one.run(step, own, was), other.run(step, others, now)
                    alone = other.run(step, others, was) if step else really
                    real = _real(cut[place].lengths, one.stream(right))
                    sums[step][0] += _off(one.stream(right), other.stream(alone), real)
                    sums[step][1] += _off(one.stream(right), other.stream(really), real)
                    tokens += int(real.sum()) if step == 0 else 0
                    states[place] = (right, really)
    return [
        BlockDiagnosis(layer=layer, injected=own / tokens, total=total / tokens)
        for layer, (own, total) in zip(one.layers, sums, strict=True)
    ]


def _real(lengths: Sequence[int], stream_BTC: torch.Tensor) -> torch.Tensor:
    return torch.arange(stream_BTC.shape[1])[None] < torch.tensor(lengths)[:, None]


def _off(right_BTC: torch.Tensor, other_BTC: torch.Tensor, real_BT: torch.Tensor) -> float:
    right, other = right_BTC.float(), other_BTC.float()
    share = (other - right).flatten(2).norm(dim=2) / right.flatten(2).norm(dim=2).clamp_min(1e-12)
    return float(share.cpu()[real_BT].sum())
