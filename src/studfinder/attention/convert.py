"""convert: swap a variant of attention into a live model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from studfinder.attention.install import install
from studfinder.attention.kv_shift.cache import prepare
from studfinder.attention.measuring import places_of, runs_doubled
from studfinder.attention.places import AttentionPlace, to_config
from studfinder.attention.saved import SavedVariant, config_class, model_class, places_in, variants_of
from studfinder.attention.variant import Part, Variant
from studfinder.errors import StudfinderError
from studfinder.models import LM, Anatomy, anatomy_of
from studfinder.models.probe import structure_of
from studfinder.models.twin import twin_of

_Model = TypeVar("_Model", bound=LM | torch.nn.Module)


def convert(lm: _Model, variant: Variant, init: str | None = None) -> _Model:
    """Swap a variant of attention into a live model, in place, and return it.

    Variants combine by converting again, e.g. KV shift and then a gate. `save_pretrained` writes a checkpoint
    of model_type "studfinder-<base>", which `AutoModelForCausalLM.from_pretrained` loads after
    `import studfinder.attention`.

    Args:
        lm: an LM or a transformers model whose attention goes through transformers' AttentionInterface; what else a
            variant needs of it is measured.
        variant: its settings, e.g. KVShift(init="identity").
        init: the start; overrides the settings' own. Variants that have a start which keeps the model's
            outputs bit for bit use it unless told otherwise; the others have no default, because they change
            the model.

    Raises:
        StudfinderError: the model's attention cannot carry the variant (the reason is said), the shapes do not fit,
            the start is missing, or the model already has a variant that this one does not combine with.
    """
    model: Any = lm.model if isinstance(lm, LM) else lm
    present = variants_of(getattr(model, "config", None))
    places = places_in(model.config) if present else _plain_places(model, lm.anatomy if isinstance(lm, LM) else None)
    variant = variant.started(init)
    _check(model, places, present, variant)
    factor = variant.output_factor
    if factor != 1.0:
        _scale_outputs(model, places, factor)
    _own_config(model)
    install(model, places, [variant])
    settings = [v.to_dict() for v in (*present, variant)]
    model.config.studfinder = {"variants": settings, "attention": to_config(places)}
    if not isinstance(model, SavedVariant):
        model.__class__ = model_class(type(model))  # type: ignore[arg-type]
    return lm


def shift_cache(model: Any) -> Any:
    """An empty dynamic cache for a model with KV shift, ready for `activate_past_recording` and then
    `crop`."""
    from transformers import DynamicCache

    model = model.model if isinstance(model, LM) else model
    return prepare(DynamicCache(config=model.config))


def parameter_groups(lm: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: matrices with weight decay; biases, norms, embeddings' peers of one axis, and
    everything a variant adds that is no matrix product (KV shift's scalars, sink logits, k' and v', gate
    biases) without.

    Decay would pull KV shift's (1, 0) towards (0, 0), which is no attention at all rather than a plain one.
    """
    model = lm.model if isinstance(lm, LM) else lm
    spared = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, Part)
        for name, parameter in module.named_parameters(recurse=False)
        if name not in module.decays
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [p for p in trained if p.dim() >= 2 and id(p) not in spared]
    kept = [p for p in trained if p.dim() < 2 or id(p) in spared]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def _plain_places(model: Any, anatomy: Anatomy | None) -> dict[str, AttentionPlace]:
    """The places of a model without variants."""
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise StudfinderError(f"cannot convert a {type(model).__name__}", expected="a causal LM")
    if getattr(model.config, "add_cross_attention", False):
        raise StudfinderError("this model has cross-attention", expected="a decoder without it")
    with torch.random.fork_rng():  # a model that is being trained drops at random
        if anatomy is None:
            with torch.enable_grad():
                anatomy = anatomy_of(model)
        if any(parameter.is_meta for parameter in model.parameters()):  # nothing can be run in it
            return _places_by_twin(model, anatomy)
        return places_of(model, anatomy.layers)


def _places_by_twin(model: Any, anatomy: Anatomy) -> dict[str, AttentionPlace]:
    """The places of a model without numbers, by those of its twin, which has one block of each structure."""
    twin, structures = twin_of(model, structure_of)
    blocks = {name for name, _ in twin.named_modules()}
    found = places_of(twin, [layer for layer in anatomy.layers if layer.block in blocks])
    kinds = {structures[layer.block]: found[layer.attention] for layer in anatomy.layers if layer.attention in found}
    return {layer.attention: kinds[structures[layer.block]] for layer in anatomy.layers if layer.attention is not None}


def _own_config(model: Any) -> None:
    """A config of the saved kind, for this model alone: the old one may be shared with other models."""
    copies: dict[int, Any] = {}
    new = copy.deepcopy(model.config, copies)
    for module in model.modules():
        held = getattr(module, "config", None)
        if id(held) in copies:
            module.config = copies[id(held)]
    if not isinstance(model, SavedVariant):
        new.__class__ = config_class(type(new))  # type: ignore[arg-type]


def _check(model: Any, places: Mapping[str, AttentionPlace], present: list[Variant], variant: Variant) -> None:
    name = type(variant).__name__
    for other in present:
        reason = _conflict(variant, other)
        if reason:
            raise StudfinderError(f"{name} does not combine with {type(other).__name__}: {reason}")
    for path, place in places.items():
        variant.check(place.shape)
        reason = refusal(variant, place)
        if reason:
            raise StudfinderError(f"{name} cannot be put into a {model.config.model_type!r} model: {reason} ({path})")
        for parameter in model.get_submodule(path).parameters():
            if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
                raise StudfinderError("the weights of this model are quantised", expected="fp32, bf16 or fp16 weights")
    if variant.role == "positions" and not any(place.turns for place in places.values()):
        raise StudfinderError(
            f"{name} cannot be put into a {model.config.model_type!r} model: it has no rotary positions"
        )
    if variant.role == "queries" and not runs_doubled(model, places):
        raise StudfinderError(
            f"{name} cannot be put into a {model.config.model_type!r} model: its attention counts its heads itself, so "
            "that its query projection cannot give twice as many"
        )


def refusal(variant: Variant, place: AttentionPlace) -> str | None:
    """Why a variant cannot be put into an attention module; None if it can."""
    if variant.role == "positions" and place.turns and place.rotary is None:
        return "its attention makes the cosines and sines of its positions itself"
    if variant.own_function and place.more is not None:
        return f"its attention function does more than a softmax over the keys (it is given {place.more})"
    if variant.role == "keys and values":
        for side, heads in (("keys", place.key), ("values", place.value)):
            if heads is None and getattr(variant, side):
                return f"its {side} are more than a plain projection"
        if not place.once:
            return "its layers run several times, each with a cache of its own"
        if not place.mask:
            return "it makes the mask of its attention itself, so that it cannot be seen which tokens follow each other"
    if variant.role == "queries" and (place.query is None or not place.query.whole or place.query.transposed):
        return "its attention has no query projection of its own that reads the layer's input"
    if variant.role in ("queries", "output") and place.output is None:
        return "no matrix of its attention reads what every head gives"
    return None


def _conflict(one: Variant, other: Variant) -> str | None:
    if one.role == other.role:
        return f"both change the {one.role}"
    if one.own_function and other.own_function:
        return "each brings its own attention function, and there is one per model"
    if "queries" in (one.role, other.role) and (one.own_function or other.own_function):
        return "differential attention subtracts two plain softmaxes of twice the heads"
    return None


@torch.no_grad()
def _scale_outputs(model: Any, places: Mapping[str, AttentionPlace], factor: float) -> None:
    done: set[torch.Tensor] = set()
    for name, place in places.items():
        weight = model.get_submodule(f"{name}.{place.output}").weight
        if weight in done:  # layers that share it
            continue
        done.add(weight)
        weight.mul_(factor)
        if not torch.isfinite(weight).all():
            raise StudfinderError(
                f"W_o times {factor} overflows {weight.dtype}", expected="bf16 or fp32", do="Reload the model"
            )
