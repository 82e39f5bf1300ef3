"""Where massive activations first appear, and what they are there: from our own prompts, which nothing is scored on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from studfinder.detectors.massive_activations import MassiveActivations
from studfinder.detectors.observe import observe
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.records import MassiveActivation
from studfinder.sites import capture
from studfinder.texts import default_prompts, encode


@dataclass(frozen=True)
class Onset:
    """The first layer after which massive activations stand in the residual stream.

    Attributes:
        layer: that layer.
        last: the last layer after which there are any.
        dims: those that are massive after `layer`.
        median: of |a| after `layer`.
        means: by dim, the mean value of its massive entries, at first tokens and at others; where there are none, the
            mean over both.
        found: all of them, in all layers.
    """

    layer: int
    last: int
    dims: tuple[int, ...]
    median: float
    means: dict[int, tuple[float, float]]
    found: tuple[MassiveActivation, ...]

    @property
    def least(self) -> float:
        """What |a| must exceed to be massive (Sun et al. 2024: 100, and 1,000 times the median)."""
        return max(100.0, 1000.0 * self.median)

    def massive(self, hidden_BTC: torch.Tensor) -> torch.Tensor:
        """Which entries of the dims are massive, shape (B, T, dims)."""
        return hidden_BTC[..., list(self.dims)].abs().float() > self.least


def onset_of(lm: LM) -> Onset:
    """The onset of massive activations on our default prompts. Raises StudfinderError if there are none."""
    encoded, _ = encode(lm, default_prompts())
    detector = MassiveActivations(lm)
    observe(lm, encoded, [detector])
    found = detector.found()
    if not found:
        nearest = detector.nearest()
        near = f": the largest |a| is {nearest.ratio:,.0f} times its layer's median" if nearest else ""
        raise StudfinderError(
            f"{lm.source.id} has no massive activation on our prompts{near}",
            expected="|a| above 100 and above 1,000 times the median",
            do="See studfinder scan, or choose another model",
        )
    layer = min(entry.layer for entry in found)
    here = [entry for entry in found if entry.layer == layer]
    means = {}
    for dim in sorted({entry.dim for entry in here}):
        firsts, others = (
            [entry.value for entry in here if entry.dim == dim and (entry.position == 0) is at_first]
            for at_first in (True, False)
        )
        first, other = (sum(values) / len(values) for values in (firsts or others, others or firsts))
        means[dim] = (first, other)
    return Onset(
        layer=layer,
        last=max(entry.layer for entry in found),
        dims=tuple(means),
        median=here[0].median,
        means=means,
        found=found,
    )


def control_dims(lm: LM, onset: Onset, seed: int) -> dict[str, tuple[int, ...]]:
    """As many other dims, chosen by |a| at the tokens that hold massive activations on our prompts: the next largest,
    those nearest the median, and random ones."""
    encoded, _ = encode(lm, default_prompts())
    site = f"residual[{onset.layer}]"
    rows = []
    for ids in encoded:
        hidden_TC = capture(lm, torch.tensor([ids], device=lm.device), [site])[site][0]
        rows.append(hidden_TC[onset.massive(hidden_TC[None])[0].any(dim=-1)].abs().float().cpu())
    size_C = torch.cat(rows).mean(dim=0)
    if 2 * len(onset.dims) > len(size_C):
        raise StudfinderError(f"{len(onset.dims)} of {len(size_C)} dims are massive", expected="at most half of them")
    scores = {
        "the next largest": size_C,
        "median-like": -(size_C - onset.median).abs(),
        "random": torch.rand(len(size_C), generator=torch.Generator().manual_seed(seed)),
    }
    free = {kind: score_C.index_fill(0, torch.tensor(onset.dims), float("-inf")) for kind, score_C in scores.items()}
    return {kind: tuple(score_C.topk(len(onset.dims)).indices.tolist()) for kind, score_C in free.items()}
