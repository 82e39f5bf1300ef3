"""A pass through the engine beside the model's own: edits as streams, and what differs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import torch

from architected import built
from studfinder.edits import Activations, Edit, LargestEntry, edited, scale, stream_of
from studfinder.edits.edit import SiteEdit, WeightEdit, Weights
from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from studfinder.passes import Ends, carry
from studfinder.texts import Batch, batches
from tried import apart, tokens

_SLOW = {"axk2", "bailing_hybrid", "deepseek_v4", "glm5_next", "inkling2", "inkling_mm_model", "kimi_linear"}
_SLOW |= {"muse_spark", "zaya"}
_FIRST = ("qwen3_5_text", "gemma4_text", "deepseek_v3", "glm4_moe", "llama4_text", "gpt_oss")
FORTY = [kind for kind in apart(49, _FIRST) if kind not in _SLOW]
"""The types that differ most in structure, but for the slowest: those that every run of the tests tries."""

DOWN, QUERY = "model.layers.2.mlp.down_proj.weight", "model.layers.2.self_attn.q_proj.weight"


def llama() -> LM:
    return load(built("llama"))


@cache
def loaded(kind: str) -> LM:
    """A model of a type, for all tests that leave it as it is."""
    return load(built(kind))


def texts(lm: LM, *lengths: int) -> list[Batch]:
    """Two batches: windows of these lengths, and others, the other way round."""
    both = (*lengths, *lengths[::-1])
    ids = tokens(lm, len(both), max(both))
    return list(batches([row[:length] for row, length in zip(ids, both, strict=True)], len(lengths)))


def own(lm: LM, batch: Batch, masked: bool = False) -> torch.Tensor:
    """What the model itself gives."""
    mask = batch.mask_BT.long() if masked and batch.mask_BT is not None else None
    with torch.no_grad():
        return lm.model(input_ids=batch.input_ids_BT, attention_mask=mask, use_cache=False).logits


def of(ends: Ends, stream: int | None = None) -> torch.Tensor:
    """All logits (B,T,V) of a stream, or of the clean one."""
    shape = ends.clean.shape[:2]
    rows = torch.cartesian_prod(*map(torch.arange, shape)).unbind(1)
    return ends.logits(rows, stream).unflatten(0, shape)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def scaled(lm: LM, name: str, factor: float = -3.0) -> WeightEdit:
    """The first row of a parameter, or its first number."""
    dims = lm.model.get_parameter(name).dim()
    entry = (0, *[None if dims > 1 else 0] * (dims - 1))
    return WeightEdit(target=Weights(parameter=name, entries=(entry,)), factor=factor)


def everywhere(lm: LM, layer: int | None = None) -> list[WeightEdit]:
    """One edit in every parameter of a block, by default one in the middle, and in two before and after the blocks."""
    blocks = [one.block + "." for one in lm.anatomy.layers]
    inside = [name for name in numbered(lm) if name.startswith(blocks[len(blocks) // 2 if layer is None else layer])]
    around = outside(lm)
    return [scaled(lm, name) for name in dict.fromkeys([*inside, *around[:2], *around[-2:]])]


def outside(lm: LM) -> list[str]:
    """The parameters outside of blocks."""
    blocks = tuple(one.block + "." for one in lm.anatomy.layers)
    return [name for name in numbered(lm) if not name.startswith(blocks)]


def numbered(lm: LM) -> list[str]:
    """The parameters that hold numbers."""
    return [name for name, one in lm.model.named_parameters() if one.is_floating_point() and one.numel()]


def at_sites(lm: LM) -> list[SiteEdit]:
    """An edit of every kind of site that the model has: in the middle of the blocks that attend, and of the last
    block's output."""
    depth = len(lm.anatomy.layers)
    attending = [number for number, layer in enumerate(lm.anatomy.layers) if layer.mixer is not None] or [depth // 2]
    layer = attending[len(attending) // 2]
    parts = ("query", "key", "value", "query.pre_rope", "key.pre_rope", "down_proj.input", "down_proj.output")
    names = ["embedding", f"residual[{layer}]", f"residual[{depth - 1}]", *(f"{part}[{layer}]" for part in parts)]
    found = []
    for name in names:
        with suppress(StudfinderError):  # it has none
            edits = scale(Activations(name, LargestEntry()), -2.0)
            edited(lm, edits)
            found += edits
    return found


def wrong(lm: LM, variants: Sequence[Sequence[Edit]], texts: Sequence[Batch]) -> list[Any]:
    """The edits whose stream differs from the model's own forward pass with them; None for that of no edits."""
    streams = [stream_of(lm, edits) for edits in variants]
    masked = any(stream.masked for stream in streams)
    found: list[Any] = []
    for ends in carry(lm, texts, streams):
        found += [] if same(of(ends), own(lm, ends.batch, masked)) else [None]
        for number, edits in enumerate(variants):
            with edited(lm, edits):
                theirs = own(lm, ends.batch, masked)
            found += [] if same(of(ends, number), theirs) else [edits]
    return found


def drawn(lm: LM, kind: str, count: int) -> list[list[WeightEdit]]:
    """Lists of edits anywhere in the model, drawn at random."""
    chance = random.Random(kind)
    return [[scaled(lm, name) for name in chance.sample(numbered(lm), chance.randint(1, 3))] for _ in range(count)]


def three(lm: LM) -> list[list[WeightEdit]]:
    """Streams that fork inside a block, at its beginning, and before all blocks."""
    return [[scaled(lm, name)] for name in (DOWN, QUERY, "model.embed_tokens.weight")]


# --- models that are special -----------------------------------------------------------------------------------------


def looped() -> LM:
    """Layers 1 and 2 are one block."""
    model = built("llama")
    model.model.layers[2] = model.model.layers[1]
    return load(model)


def spoiling() -> LM:
    """Blocks write into what they are given."""
    model = built("llama")
    for layer in model.model.layers:

        def forward(hidden_states: torch.Tensor, *args: Any, _own: Any = layer.forward, **options: Any) -> torch.Tensor:
            found = _own(hidden_states.clone(), *args, **options)
            hidden_states.zero_()
            return found

        layer.forward = forward
    return load(model)


def hooked() -> LM:
    """Somebody's hooks change what parts give."""
    lm = load(built("llama"))
    block = lm.model.model.layers[2]
    block.self_attn.register_forward_hook(lambda _module, _args, output: (output[0] * 2, *output[1:]))
    block.post_attention_layernorm.register_forward_pre_hook(lambda _module, args: (args[0] + 1,))
    return lm


def inside_out() -> LM:
    """What matrices give goes through an object, and is written into there."""
    lm = load(built("llama"))
    block = lm.model.model.layers[2]
    up, gate = block.mlp.up_proj, block.mlp.gate_proj

    class Both(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"up": up(x), "gate": gate(x)}

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.down_proj = Both(), block.mlp.down_proj

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.both(x)
            found["up"] = found["up"] * found["gate"]
            return self.down_proj(found["up"])

    block.mlp = Network()
    return lm


def overwriting() -> LM:
    """What one matrix gives is written into before the next runs."""
    lm = llama()

    class Network(torch.nn.Module):
        def __init__(self, own: Any) -> None:
            super().__init__()
            self.up_proj, self.gate_proj, self.down_proj = own.up_proj, own.gate_proj, own.down_proj

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.up_proj(x).mul_(self.gate_proj(x)))

    lm.model.model.layers[2].mlp = Network(lm.model.model.layers[2].mlp)
    return lm


def read_early() -> LM:
    """The gain of the last norm is used in front of the blocks too."""
    lm = llama()
    norm = lm.model.model.norm
    lm.model.model.embed_tokens.register_forward_hook(lambda _module, _args, output: output + norm.weight)
    return lm


SHARING = {
    "num_kv_shared_layers": 2,
    "per_layer_config": None,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")],
}
SPECIAL = {
    "keys shared by layers, gemma4": lambda: load(built("gemma4_text", **SHARING)),
    "keys shared by layers, gemma3n": lambda: load(built("gemma3n_text", **SHARING)),
    "blocks called several times": lambda: load(built("hrm_text")),
    "one block serves two layers": looped,
    "blocks that write into their input": spoiling,
    "hooks of somebody else": hooked,
    "an object handed on and changed": inside_out,
    "an output that is written into": overwriting,
    "the last norm's gain is read early": read_early,
    "the head does something of its own": lambda: load(built("xlstm")),
    "bf16": lambda: load(built("llama", dtype=torch.bfloat16)),
    "bf16 with experts": lambda: load(built("gpt_oss", dtype=torch.bfloat16)),
}
