"""What studfinder makes of a tiny model of each architecture: its parts against the list made by eye, a planted super
weight, reading that changes nothing, a patch that leaves nothing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from architected import PARTS, built
from studfinder.detectors import observe
from studfinder.detectors.super_weights import SuperWeights
from studfinder.models import LM, Layer
from studfinder.records import SuperWeight
from studfinder.sites import AttentionCall, BlockOutput, ModelCall, WriterCall, tapped

EVENTS = (ModelCall, BlockOutput, AttentionCall, WriterCall)

_Found = dict[str, Any]


def known(kind: str) -> list[_Found]:
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


def measured(layer: Layer) -> _Found:
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
    theirs = [layer for layer in known(kind)]
    if len(theirs) != len(anatomy.layers):
        return [*found, f"{len(anatomy.layers)} layers, not {len(theirs)}"]
    for number, (ours, right) in enumerate(zip(map(measured, anatomy.layers), theirs, strict=True)):
        for part in right:
            more, less = ours[part] - right[part], right[part] - ours[part]
            if more or less:
                found.append(f"layer {number} {part}: {sorted(map(str, more))} for {sorted(map(str, less))}")
    return found


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


def passes(lm: LM) -> Iterator[torch.Tensor]:
    """The logits of ordinary uses of a model: a batch, a padded batch, and steps with a cache. Some models take no
    padding or no cache: what they raise is told as a number, which must stay the same too."""
    ids_BT = torch.tensor(tokens(lm, 2, 12))
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[0, :4] = 0
    with torch.no_grad():
        yield lm.model(input_ids=ids_BT, use_cache=False).logits
        try:
            yield lm.model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
        except Exception as error:
            yield torch.tensor(list(map(ord, type(error).__name__)))
        try:
            first = lm.model(input_ids=ids_BT[:, :8], use_cache=True)
            yield first.logits
            yield lm.model(input_ids=ids_BT[:, 8:9], past_key_values=first.past_key_values, use_cache=True).logits
        except Exception as error:
            yield torch.tensor(list(map(ord, type(error).__name__)))
