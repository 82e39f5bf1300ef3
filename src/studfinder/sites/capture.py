"""Run once and keep the named tensors: for looking, for tests, and for restoring later."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.records.public import checked
from studfinder.sites.events import AttentionCall, BlockOutput, WriterCall
from studfinder.sites.site import Site
from studfinder.sites.tap import tapped


@checked
def capture(
    lm: LM, input_ids: torch.Tensor, sites: Iterable[Site | str], attention_mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """One forward pass; returns the named tensors by site name, as they were when the model showed them.

    Args:
        input_ids: token ids (B,T).
        sites: sites or their names, e.g. "residual[3]", "key.pre_rope[0]"; shapes are those of `KINDS`.
        attention_mask: (B,T), 1 for real tokens.

    Raises:
        StudfinderError: a site is not in this model, or the forward pass did not reach it (an expert nobody
            chose, say): never an empty result.
    """
    sites = list(sites)
    found, changed = _run(lm, input_ids, sites, attention_mask, copy=False)
    # Holding on to a tensor costs nothing; only a model that writes into its own activations makes copies needed.
    return _run(lm, input_ids, sites, attention_mask, copy=True)[0] if changed else found


def _run(
    lm: LM, input_ids: torch.Tensor, sites: Iterable[Site | str], attention_mask: torch.Tensor | None, *, copy: bool
) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors, and whether the model wrote into one after showing it."""
    wanted = [site if isinstance(site, Site) else Site.parse(site) for site in sites]
    for site in wanted:
        site.check(lm)
    kept: dict[str, torch.Tensor] = {}
    versions: dict[str, int] = {}

    def keep(site: Site, tensor: torch.Tensor | None) -> None:
        if tensor is not None and site in wanted:
            kept[str(site)] = tensor.detach().clone() if copy else tensor.detach()
            versions[str(site)] = kept[str(site)]._version

    def on_block(event: BlockOutput) -> None:
        keep(Site("embedding") if event.layer < 0 else Site("residual", event.layer), event.hidden_BTC)

    def on_attention(event: AttentionCall) -> None:
        keep(Site("value", event.layer), event.value_BGSD)
        keep(Site("query.pre_rope", event.layer), event.query_pre_BHTD)
        keep(Site("key.pre_rope", event.layer), event.key_pre_BGTD)
        if event.stage != "pre-RoPE":
            keep(Site("query", event.layer), event.query_BHTD)
            keep(Site("key", event.layer), event.key_BGSD)

    def on_writer(event: WriterCall) -> None:
        keep(Site("down_proj.input", event.layer, event.writer), event.input_NF)
        keep(Site("down_proj.output", event.layer, event.writer), event.output_NC)

    by_prefix = {
        BlockOutput: ("embedding", "residual"),
        AttentionCall: ("query", "key", "value"),
        WriterCall: ("down_proj",),
    }
    readers: dict[type, Callable[[Any], None]] = {
        BlockOutput: on_block,
        AttentionCall: on_attention,
        WriterCall: on_writer,
    }
    read = {
        event: [readers[event]]
        for event, prefixes in by_prefix.items()
        if any(site.kind.startswith(prefixes) for site in wanted)
    }
    pre_rope = any(site.kind.endswith("pre_rope") for site in wanted)
    with torch.no_grad(), tapped(lm, read=read, pre_rope=pre_rope):
        lm.model(input_ids=input_ids.to(lm.device), attention_mask=attention_mask, use_cache=False)
    missed = [str(site) for site in wanted if str(site) not in kept]
    if missed:
        raise StudfinderError(f"the forward pass did not reach {', '.join(missed)}")
    return kept, any(kept[name]._version != version for name, version in versions.items())
