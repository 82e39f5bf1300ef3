"""The paper's own search (Yu et al. 2024, section 3.1): find a spike, zero its weight, look again.

In the first layer where an output of down_proj spikes at channel j and an input that carries it spikes at channel k,
w_jk is taken for a super weight and set to zero; then the model runs again, without every weight taken so far. The
paper stops when large maximum activations are "greatly suppressed", and gives no number; its code prints spikes above
50. Here a layer is done when its largest output is below that threshold or below 0.3 of what it was in the whole model
(three weights may carry a spike together: it is gone when less than one of them is left), when no weight stands out
that carries it, or when three removals one after another took less than half of it away: a neuron that writes into
many channels alike has no super weight. The search ends when every layer is done.

Kept for comparison: it takes large outputs of late layers for super weights, and misses those below 50 (OLMo-1B's
second one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from studfinder.detectors.observe import observe
from studfinder.detectors.super_weights import TERMS, SuperWeights
from studfinder.edits import edited, zero
from studfinder.models import LM
from studfinder.records import SuperWeight

GONE = 0.3
"""A spike below this share of what it was in the whole model is suppressed."""


def iterative_search(
    lm: LM,
    encoded: Sequence[Sequence[int]],
    *,
    threshold: float = 50.0,
    gone: float = GONE,
    progress: Callable[[int], Any] | None = None,
) -> tuple[SuperWeight, ...]:
    """The weights that the paper's loop removes, in its order. The model is left as it was.

    Args:
        encoded: token ids of each prompt.
        threshold: what both an input and an output of down_proj must exceed to be spikes.
        gone: a layer's spike is suppressed below this share of its largest output in the whole model.
        progress: told how often the model was looked at.
    """
    removed: list[SuperWeight] = []
    spikes: list[_Spike] = []
    with ExitStack() as stack:
        while True:
            seen = SuperWeights(lm)
            observe(lm, encoded, [seen])
            if progress is not None:
                progress(len(removed) + 1)
            heights = [abs(spike.value) for spike in seen.output_spikes]
            spikes = spikes or [_Spike(max(threshold, gone * height)) for height in heights]
            if removed:
                spikes[removed[-1].layer].took(heights[removed[-1].layer])
            found = _next(seen, spikes, threshold, {(w.parameter, w.index) for w in removed})
            if found is None:
                break
            spikes[found.layer].before = heights[found.layer]
            removed.append(found)
            stack.enter_context(edited(lm, zero(found)))
    return seen.located(removed)


@dataclass
class _Spike:
    """A layer's largest output: below `bar` it is gone; `before` the last removal; removals in vain since it halved."""

    bar: float
    before: float = 0.0
    vain: int = 0

    def took(self, height: float) -> None:
        self.vain = 0 if height <= self.before / 2 else self.vain + 1


def _next(
    seen: SuperWeights, spikes: Sequence[_Spike], threshold: float, removed: set[tuple[str, tuple[int, ...]]]
) -> SuperWeight | None:
    """In the first layer that still spikes: the weight with the largest term of the largest output that it carries."""
    for layer, (peaks, spike) in enumerate(zip(seen.peaks, spikes, strict=True)):
        if spike.vain >= TERMS:
            continue
        for place, peak in sorted(peaks.items(), key=lambda item: item[1].order):
            if abs(peak.value) <= spike.bar:
                break
            for which, carried in enumerate(seen.carried(peak)):
                if carried < seen.at.share or abs(peak.inputs[which]) <= threshold:
                    continue
                entry = seen.entry(layer, place, which, peak)
                if entry.score >= seen.at.score and (entry.parameter, entry.index) not in removed:
                    return entry
    return None
