"""What kind of number a parameter holds: gains (of which some multiply by w, some by 1 + w), biases, embeddings, ..."""

from __future__ import annotations

import torch

from studfinder.models.lm import LM
from studfinder.models.roles import norm_offset
from studfinder.records.numbers import NumberKind


def gain_offsets(lm: LM) -> dict[str, float]:
    """The gains of every norm, by parameter: 1 where it multiplies by 1 + w, else 0. Norms outside the blocks are tried
    as those inside were (see `norm_offset`)."""
    blocks = tuple(layer.block + "." for layer in lm.anatomy.layers)
    norms = {norm.module: norm.offset for layer in lm.anatomy.layers for norm in layer.norms}
    for name, module in lm.model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        width = next((p.shape[0] for p in own.values() if p.dim() == 1 and not p.is_meta), None)
        if width is not None and name not in norms and not name.startswith(blocks) and not list(module.children()):
            sizes = torch.arange(4 * width, device=next(iter(own.values())).device).view(1, 4, width)
            offset = norm_offset(module, sizes.to(next(iter(own.values())).dtype))
            if offset is not None:
                norms[name] = offset
    known = {name for name, _ in lm.model.named_parameters()}
    return {f"{name}.weight": offset for name, offset in norms.items() if f"{name}.weight" in known}


def kinds_of(lm: LM) -> dict[str, NumberKind]:
    """The kind of every parameter, tied ones by their first name."""
    gains = gain_offsets(lm)
    written = {ref.parameter for layer in lm.anatomy.layers for ref in layer.writers}
    embedding, head = lm.model.get_input_embeddings(), lm.model.get_output_embeddings()
    found: dict[str, NumberKind] = {}
    for name, parameter in lm.model.named_parameters():
        if name in gains:
            found[name] = "gain"
        elif name.endswith("bias"):
            found[name] = "bias"
        elif embedding is not None and parameter is embedding.weight:
            found[name] = "embedding"
        elif head is not None and parameter is head.weight:
            found[name] = "head"
        else:
            found[name] = "down projection" if name in written else "other weight"
    return found
