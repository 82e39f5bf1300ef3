"""What studfinder makes of a tiny model of each architecture: its parts against the list made by eye, planted super
weights, reading that changes nothing, a patch that leaves nothing.

Each `..._of` gives what went wrong, in words; nothing where all is right.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from architected import PARTS, TYPES
from patching import difference, traces
from studfinder.detectors import observe
from studfinder.detectors.super_weights import SuperWeights
from studfinder.edits import Activations, LargestEntry, edited, entry, scale, zero
from studfinder.errors import StudfinderError
from studfinder.models import LM, Layer
from studfinder.models.tried import architectures
from studfinder.records import SuperWeight
from studfinder.sites import AttentionCall, BlockOutput, ModelCall, Site, WriterCall, tapped

OTHERWISE = {
    "mllama": "layers that attend to pictures are passed over where there is only text: layer 3 is not seen",
    "muse_spark": "what maps the experts' latent to the stream writes to it too: it is reported beside them",
    "rwkv": "its feed-forward network looks at the token before: the list calls that a mixer, probing does not",
    "xlstm": "the list has no mixers of it",
}
"""Types whose measured parts and list differ, and why the measured ones are right."""

NO_TOKENS = {
    "blt": "its blocks see patches of bytes",
    "cpmant": "it puts a prefix of its own before the text",
}
"""Types of which nothing is planted, and why."""

STATES = {"recurrent_gemma": "it keeps the recurrence's state in its attributes"}
"""Types that leave traces of a pass on themselves."""

EIGHT = ("bloom", "codegen", "deepseek_v3", "falcon_mamba", "gemma4_text", "gpt_oss", "qwen3_5_text", "zamba2")
"""Types of every kind of structure, for what follows from laws that hold on forty: attention that is a block's own, a
fused matrix, latent attention and experts, no attention, norms everywhere, stacked experts with biases and sinks,
linear attention with gates, blocks that layers share."""

EVENTS = (ModelCall, BlockOutput, AttentionCall, WriterCall)


def known(kind: str) -> list[dict[str, Any]]:
    """The parts of each layer as they were listed by eye: writers and softmax attentions."""
    parts = PARTS[kind]
    layers = []
    for number in map(str, range(parts["layers"])):
        writers = {tuple(writer) for writer in parts["writers"].get(number, ())}
        seen = parts["attention"].get(number, ())
        softmax = {(name, interface, rope) for name, _, kind, interface, rope in seen if kind != "linear"}
        linear = {name for name, _, kind, _, _ in seen if kind == "linear"}
        layers.append({"writers": writers, "attention": softmax, "linear": linear})
    return layers


def measured(layer: Layer) -> dict[str, Any]:
    """The same of a layer as probing found it."""
    experts = Counter(writer.parameter for writer in layer.writers if writer.expert is not None)
    writers = {(w.parameter, experts.get(w.parameter), w.transposed, bool(w.stacked)) for w in layer.writers}
    softmax = [mixer for mixer in layer.mixers if mixer.kind == "softmax"]
    return {
        "writers": writers,
        "attention": {(mixer.module, mixer.interface, mixer.stage != "no RoPE") for mixer in softmax},
        "linear": {mixer.module for mixer in layer.mixers if mixer.kind == "linear"},
    }


def differences(kind: str, lm: LM) -> list[str]:
    """Where the measured anatomy and the list made by eye differ."""
    anatomy = lm.anatomy
    home = anatomy.layers[0].block.rpartition(".")[0]
    found = [] if home == PARTS[kind]["blocks"] else [f"blocks: {home}, not {PARTS[kind]['blocks']}"]
    theirs = known(kind)
    if len(theirs) != len(anatomy.layers):
        return [*found, f"{len(anatomy.layers)} layers, not {len(theirs)}"]
    for number, (ours, right) in enumerate(zip(map(measured, anatomy.layers), theirs, strict=True)):
        for part in right:
            more, less = ours[part] - right[part], right[part] - ours[part]
            if more or less:
                found.append(f"layer {number} {part}: {sorted(map(str, more))} for {sorted(map(str, less))}")
    return found


def marks(lm: LM) -> list[str]:
    """What is special about the structure of a model."""
    found = {f"{lm.anatomy.streams} streams"} if lm.anatomy.streams > 1 else set()
    for layer in lm.anatomy.layers:
        found |= {f"norms offset by {norm.offset:g}" for norm in layer.norms} or {"no norms"}
        found |= {f"{len(layer.mixers)} mixers", f"{len(layer.norms)} norms", f"{len(layer.fused)} fused groups"}
        for mixer in layer.mixers:
            where = "" if mixer.interface or mixer.kind == "linear" else ", own"
            found.add(f"{mixer.kind}, {mixer.stage}{where}" if mixer.kind == "softmax" else "linear")
            if mixer.kind == "softmax":
                roles = {name: getattr(mixer, name) for name in ("query", "key", "value")}
                unknown = [name for name, rows in roles.items() if rows is None]
                matrices = len({rows.ref.parameter for rows in roles.values() if rows is not None})
                found.add(f"unknown: {', '.join(unknown)}" if unknown else f"q, k and v in {matrices} matrices")
                found |= {"output gate"} if mixer.gate is not None else set()
                found |= {"values of another width"} if mixer.value_dim != mixer.head_dim else set()
                found |= {"shared keys"} if mixer.kv_heads < mixer.heads else set()
                found |= {"RoPE behind other dims"} if mixer.turned else set()
        for writer in layer.writers:
            kind = "experts" if writer.routed else "down"
            form = "stacked" if writer.stacked else "fused" if writer.expert is not None else "apart"
            gate = "gated" if writer.gate else "plain" if writer.up else "unknown"
            found.add(f"{kind} {form if writer.routed else ''} {'(in, out)' if writer.transposed else ''} {gate}")
        found |= set() if layer.writers else {"no feed-forward"}
    return sorted(" ".join(mark.split()) for mark in found)


def apart(count: int, first: tuple[str, ...]) -> list[str]:
    """The types that differ most in structure: after `first` each the farthest from all before it."""
    types, chosen = architectures()["types"], list(first)
    structure = {kind: set(types[kind]["marks"]) for kind in TYPES}
    while len(chosen) < count:
        chosen.append(max(TYPES, key=lambda kind: min(len(structure[kind] ^ structure[one]) for one in chosen)))
    return sorted(chosen)


def tokens(lm: LM, rows: int = 6, length: int = 24, seed: int = 0) -> list[list[int]]:
    """Prompts of token ids."""
    top = min(lm.anatomy.vocabulary, 250)  # ids beyond may stand for pictures
    return torch.randint(3, top, (rows, length), generator=torch.Generator().manual_seed(seed)).tolist()


def found(lm: LM, prompts: list[list[int]]) -> tuple[SuperWeight, ...]:
    """The super weights that a scan of some prompts finds."""
    detector = SuperWeights(lm)
    observe(lm, prompts, [detector])
    return detector.found()


@contextmanager
def planted(lm: LM, prompts: list[list[int]], chance: random.Random) -> Iterator[tuple[str, tuple[int, ...]]]:
    """One entry of a matrix that writes carries its layer's output while the context lasts: at coordinates drawn at
    random from those that some token reaches through an expert or a ReLU. Gives the parameter and the literal index.
    """
    seen: dict[tuple[int, int], list[WriterCall]] = {}

    def read(event: WriterCall) -> None:
        seen.setdefault((event.layer, event.writer), []).append(event)

    with torch.no_grad(), tapped(lm, read={WriterCall: [read]}):
        lm.model(input_ids=torch.tensor(prompts), use_cache=False)
    layer, writer = chance.choice(sorted(seen))
    calls = seen[layer, writer]
    loud_F = torch.cat([call.input_NF for call in calls]).float().abs().amax(dim=0)
    col = chance.choice((loud_F >= loud_F.median()).nonzero()[:, 0].tolist())
    row = chance.randrange(calls[0].output_NC.shape[-1])
    usual = torch.cat([call.output_NC.abs().flatten() for call in calls]).float().median()
    ref = lm.anatomy.layers[layer].writers[writer]
    parameter, index = lm.model.get_parameter(ref.parameter).detach(), ref.index(row, col)
    before = parameter[index].clone()
    parameter[index] = float(1000 * usual / loud_F[col])
    yield ref.parameter, index
    parameter[index] = before


def is_at(lm: LM, weight: SuperWeight, parameter: str, index: tuple[int, ...]) -> bool:
    """Whether a super weight is that entry; blocks may share a matrix under several names."""
    same = lm.model.get_parameter(weight.parameter) is lm.model.get_parameter(parameter)
    return same and weight.index == index


def planted_of(lm: LM, name: str, seeds: int = 3) -> list[str]:
    """Whether weights planted at random are found first, and none in the model without them."""
    prompts = tokens(lm)
    clean = found(lm, prompts)
    wrong = [f"{len(clean)} found in a clean model, first {clean[0]}"] if clean else []
    for seed in range(seeds if any(layer.writers for layer in lm.anatomy.layers) else 0):
        with planted(lm, prompts, random.Random(f"{name} {seed}")) as place:
            seen = found(lm, prompts)
            if not seen or not is_at(lm, seen[0], *place):
                wrong.append(f"seed {seed}: planted at {place}, found {[str(weight) for weight in seen[:2]]}")
    return wrong


def ignored(_event: object) -> None:
    """The shortest reader."""


reading = partial(tapped, read={event: [ignored] for event in EVENTS})
"""Every reader on."""


def read_of(lm: LM) -> list[str]:
    """Whether logits stay bit for bit what they are with every reader on, also those before RoPE where it can be
    seen."""
    before = list(passes(lm))
    wrong = []
    for pre_rope in (False, True):
        try:
            with reading(lm, pre_rope=pre_rope):
                after = list(passes(lm))
        except StudfinderError as error:
            if not pre_rope or "RoPE" not in str(error):
                raise
            continue  # refused by name
        wrong += [
            f"pass {number}{' before RoPE' * pre_rope}"
            for number, (one, other) in enumerate(zip(before, after, strict=True))
            if one.shape != other.shape or not torch.equal(one, other)
        ]
    return wrong


def passes(lm: LM) -> Iterator[torch.Tensor]:
    """The logits of ordinary uses of a model: a batch, a padded batch, and steps with a cache. Some models take no
    padding or no cache: that they raise must stay the same too."""
    ids_BT = torch.tensor(tokens(lm, 2, 12))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :4] = 0
    with torch.no_grad():
        yield lm.model(input_ids=ids_BT, use_cache=False).logits
        try:
            yield lm.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
            first = lm.model(input_ids=ids_BT[:, :8], use_cache=True)
            yield first.logits
            yield lm.model(input_ids=ids_BT[:, 8:9], past_key_values=first.past_key_values, use_cache=True).logits
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, StudfinderError):
                raise
            yield torch.tensor(list(map(ord, type(error).__name__)))


def left_of(lm: LM) -> list[str]:
    """What edits, replacements and readers leave behind."""
    ids_BT = torch.tensor(tokens(lm, 2, 12))
    edits: list[Any] = [zero(Activations("residual[1]", LargestEntry()))]
    layer = next((number for number, layer in enumerate(lm.anatomy.layers) if layer.writers), None)
    if layer is not None:
        edits.append(scale(entry(lm, layer, 3, 5, 0), 0.0))
    with torch.no_grad():
        lm.model(input_ids=ids_BT, use_cache=False)
    before = traces(lm)
    with edited(lm, edits), reading(lm, replace={Site("residual", 0): lambda hidden: hidden * 1.5}), torch.no_grad():
        lm.model(input_ids=ids_BT, use_cache=False)
    return difference(before, traces(lm))
