"""The paper's own search (Yu et al. 2024, section 3.1): find a spike, zero its weight, look again.

In the first layer where the input of down_proj spikes at channel k and its output at channel j, w_jk is taken for a
super weight and set to zero; then the model runs again. The paper gives no stopping rule beyond "greatly suppressed",
its code a threshold of 50; here the search ends when no layer has both spikes above the threshold, or after ten rounds.

Kept for comparison: it cannot see that a zeroed weight's input still spikes, takes large outputs of late layers for
super weights, and misses those below 50 (OLMo-1B's second one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from studfinder.detectors.observe import observe
from studfinder.detectors.super_weights import SuperWeights
from studfinder.edits import edited, zero
from studfinder.models import LM, matrix
from studfinder.records import SuperWeight
from studfinder.texts import token_text

_ROUNDS = 10


def iterative_search(
    lm: LM,
    encoded: Sequence[Sequence[int]],
    *,
    threshold: float = 50.0,
    progress: Callable[[int], Any] | None = None,
) -> tuple[SuperWeight, ...]:
    """The weights that the paper's loop removes, in its order. The model is left as it was."""
    removed: list[SuperWeight] = []
    with ExitStack() as stack:
        for number in range(_ROUNDS):
            seen = SuperWeights(lm)
            observe(lm, encoded, [seen])
            if progress is not None:
                progress(number + 1)
            found = _next(lm, seen, encoded, threshold)
            if found is None or any(found.index == old.index and found.parameter == old.parameter for old in removed):
                break
            removed.append(found)
            stack.enter_context(edited(lm, zero(found)))
    return tuple(removed)


def _next(lm: LM, seen: SuperWeights, encoded: Sequence[Sequence[int]], threshold: float) -> SuperWeight | None:
    for layer, (source, target) in enumerate(zip(seen.input_spikes, seen.output_spikes, strict=True)):
        if abs(source.value) <= threshold or abs(target.value) <= threshold:
            continue
        for writer, ref in enumerate(lm.anatomy.layers[layer].writers):
            if (writer, target.channel) not in {(place[0], place[2]) for place in seen.peaks[layer]}:
                continue
            with matrix(lm, ref) as weight:
                value = float(weight[target.channel, source.channel]) if weight is not None else 0.0
            term, median = source.value * value, seen.magnitudes[layer].median
            return SuperWeight(
                layer=layer,
                parameter=ref.parameter,
                index=ref.index(target.channel, source.channel),
                checkpoint_tensor=ref.parameter if ref.expert is None else None,
                checkpoint_index=ref.index(target.channel, source.channel) if ref.expert is None else None,
                expert=ref.expert,
                row=target.channel,
                col=source.channel,
                value=value,
                input_spike=source.value,
                output_spike=target.value,
                share=term / target.value,
                score=abs(term) / median if median else float("inf"),
                prompt=target.prompt,
                position=target.position,
                token=token_text(lm, encoded[target.prompt][target.position]),
            )
    return None
