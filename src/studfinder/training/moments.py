"""Max infinity norm and kurtosis of activations, by an explicit reduction and by the paper's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from studfinder.detectors import Detector
from studfinder.sites import BlockOutput, PartOutput
from studfinder.texts import Batch


@dataclass
class _Mean:
    total: float = 0.0
    n: int = 0

    def add(self, values: torch.Tensor) -> None:
        self.total += float(values.double().sum())
        self.n += values.numel()

    @property
    def value(self) -> float:
        return self.total / self.n if self.n else float("nan")


@dataclass
class Moments(Detector):
    """A detector of the size and the tails of activations. Give it batches of sequences of one length.

    Ours, over the residual stream after each block: the infinity norm is the largest |x| over the tokens and channels
    of a sequence, averaged over sequences, and then the largest over layers; kurtosis is that of one token over its
    channels, averaged over tokens, and then over layers. Both are of x itself, not in excess of a Gaussian's 3.

    The paper's (Quantizable Transformers, arXiv 2306.12929, as its code computes them): over the outputs of blocks,
    norms, attention and the FFN's last matrix, each tensor cut into rows along its *first* axis. A row is a whole
    sequence, or one token where a model works on flat tokens (OPT's feed-forward half). Infinity norm: the largest |x|
    of a row, averaged over rows, the largest over tensors. Kurtosis: mean((x - mean)^4) / (std^4 + 1e-6) of a row with
    the unbiased std, averaged over rows and then over tensors.
    """

    norms: dict[int, _Mean] = field(default_factory=lambda: defaultdict(_Mean))
    tails: dict[int, _Mean] = field(default_factory=lambda: defaultdict(_Mean))
    paper_norms: dict[str, _Mean] = field(default_factory=lambda: defaultdict(_Mean))
    paper_tails: dict[str, _Mean] = field(default_factory=lambda: defaultdict(_Mean))

    def begin(self, batch: Batch) -> None:
        """Told the batch that is about to run."""

    @property
    def readers(self) -> Mapping[type, Callable[[list[Any]], None]]:
        return {BlockOutput: self._blocks, PartOutput: self._parts}

    def _blocks(self, seen: list[tuple[Batch, BlockOutput]]) -> None:
        for _, event in seen:
            if event.layer < 0:
                continue
            hidden_BTC = event.hidden_BTC.float()
            self.norms[event.layer].add(hidden_BTC.abs().amax(dim=(1, 2)))
            centred = hidden_BTC - hidden_BTC.mean(dim=-1, keepdim=True)
            squares = centred.square()
            spread = squares.mean(dim=-1).square().clamp_min(torch.finfo(torch.float32).tiny)
            self.tails[event.layer].add(squares.square().mean(dim=-1) / spread)
            self._paper(f"block {event.layer}", hidden_BTC)

    def _parts(self, seen: list[tuple[Batch, PartOutput]]) -> None:
        for _, event in seen:
            self._paper(event.name, event.output.float())

    def _paper(self, name: str, tensor: torch.Tensor) -> None:
        rows = tensor.reshape(tensor.shape[0], -1)
        self.paper_norms[name].add(rows.abs().amax(dim=1))
        squares = (rows - rows.mean(dim=1, keepdim=True)).square()
        variance = squares.sum(dim=1) / (rows.shape[1] - 1)
        self.paper_tails[name].add(squares.square().mean(dim=1) / (variance.square() + 1e-6))

    def merge(self, other: Moments) -> None:
        for kind in ("norms", "tails", "paper_norms", "paper_tails"):
            for name, mean in getattr(other, kind).items():
                kept = getattr(self, kind)[name]
                kept.total, kept.n = kept.total + mean.total, kept.n + mean.n

    @property
    def inf_norm(self) -> float:
        """Ours."""
        return max(mean.value for mean in self.norms.values())

    @property
    def kurtosis(self) -> float:
        """Ours."""
        return sum(mean.value for mean in self.tails.values()) / len(self.tails)

    @property
    def paper_inf_norm(self) -> float:
        """The paper's max inf norm."""
        return max(mean.value for mean in self.paper_norms.values())

    @property
    def paper_kurtosis(self) -> float:
        """The paper's average kurtosis."""
        return sum(mean.value for mean in self.paper_tails.values()) / len(self.paper_tails)
