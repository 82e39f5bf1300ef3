"""The residual stream in few bits, beside what enters the matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.activations import ActivationScheme, round_inputs, rounded_after
from studfinder.quantizers.targets import targets
from studfinder.sites import Journal, Site, tapped


@contextmanager
def rounded_stream(lm: LM, config: ActivationScheme, *, first: int = 0) -> Iterator[None]:
    """Round what enters the matrices of the blocks, and the residual stream where blocks begin and end, while the
    context lasts. Inside a block, the sum behind attention is not rounded.

    Args:
        config: dynamic ranges, with nothing restored.
        first: so many first positions stay as they are, and set no range.

    Raises:
        StudfinderError: a static range, or one that holds out super activations; the inputs of experts in a fused
            parameter, which cannot be rounded.
    """
    chosen = targets(lm)
    if config.range == "static" or config.restore is not None:
        raise StudfinderError("the residual stream is rounded by what is in it", expected="a dynamic range, no restore")
    if any(target.part is not None for target in chosen):
        raise StudfinderError("inputs of experts in a fused parameter are not rounded", expected="a dense model")
    sites = (Site("embedding"), *(Site("residual", layer) for layer in range(len(lm.anatomy.layers))))
    replace = {site: lambda hidden_BTC: rounded_after(hidden_BTC, first, config) for site in sites}
    with Journal(lm.model) as journal, tapped(lm, replace=replace):
        round_inputs(journal, lm, config, chosen, first=first)
        yield
