"""convert: swap a variant of attention into a live model."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch

from studfinder.attention.bases import BASES, Base, attention_shape
from studfinder.attention.install import attention_modules, install
from studfinder.attention.kv_shift.cache import prepare
from studfinder.attention.saved import CONFIGS, KIND_PREFIX, MODEL_CLASSES, variants_of
from studfinder.attention.variant import Part, Variant
from studfinder.errors import StudfinderError
from studfinder.models import LM

_Model = TypeVar("_Model", bound=LM | torch.nn.Module)

_NEEDS_ROTARY = {
    "positions": "its positions are added to the embeddings, not made in attention",
    "queries": "its attention has no query projection of its own shape to pair with",
}


def convert(lm: _Model, variant: Variant, init: str | None = None) -> _Model:
    """Swap a variant of attention into a live model, in place, and return it.

    Variants combine by converting again, e.g. KV shift and then a gate. `save_pretrained` writes a checkpoint
    of model_type "studfinder-<base>", which `AutoModelForCausalLM.from_pretrained` loads after
    `import studfinder.attention`.

    Args:
        lm: an LM or a transformers model: llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3_text, gpt2 or
            opt.
        variant: its settings, e.g. KVShift(init="identity").
        init: the start; overrides the settings' own. Variants that have a start which keeps the model's
            outputs bit for bit use it unless told otherwise; the others have no default, because they change
            the model.

    Raises:
        StudfinderError: the architecture is not supported, the shapes do not fit, the start is missing, or
            the model already has a variant that this one does not combine with.
    """
    model: Any = lm.model if isinstance(lm, LM) else lm
    base = _base_of(model)
    present = variants_of(model.config)
    variant = variant.started(init)
    _check(model, base, present, variant)
    factor = variant.output_factor
    if factor != 1.0:
        _scale_outputs(model, base, factor)
    _own_config(model, base)
    install(model, base, [variant])
    model.config.studfinder = {"variants": [v.to_dict() for v in (*present, variant)]}
    model.__class__ = MODEL_CLASSES[base.kind]
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


def _base_of(model: Any) -> Base:
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    base = BASES.get(str(kind).removeprefix(KIND_PREFIX))
    if base is None:
        raise StudfinderError(
            f"attention of architecture {kind!r} cannot be converted", expected="one of " + ", ".join(BASES)
        )
    if not isinstance(model, base.model_class):
        raise StudfinderError(
            f"cannot convert a {type(model).__name__}", expected=f"a causal LM ({base.model_class.__name__})"
        )
    if getattr(model.config, "add_cross_attention", False):
        raise StudfinderError("this model has cross-attention", expected="a decoder without it")
    if getattr(model.config, "reorder_and_upcast_attn", False):
        raise StudfinderError("reorder_and_upcast_attn is not supported", do="Set it to False in the config")
    return base


def _own_config(model: Any, base: Base) -> None:
    """A config of the saved kind, for this model alone: the old one may be shared with other models."""
    old = model.config
    new = copy.deepcopy(old)
    new.__class__ = CONFIGS[base.kind]
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = new


def _check(model: Any, base: Base, present: list[Variant], variant: Variant) -> None:
    module = next(attention_modules(model, base))
    variant.check(attention_shape(module))
    name = type(variant).__name__
    weight = getattr(getattr(module, base.output), "weight", None)
    if weight is None or not weight.is_floating_point():
        raise StudfinderError("the weights of this model are quantised", expected="fp32, bf16 or fp16 weights")
    if not base.rotary and variant.role in _NEEDS_ROTARY:
        raise StudfinderError(
            f"{name} cannot be put into a {base.kind!r} model: {_NEEDS_ROTARY[variant.role]}",
            expected="a llama, mistral, qwen or gemma model",
        )
    if variant.own_function and getattr(module, "attn_logit_softcapping", None):
        raise StudfinderError(
            f"{name} does not combine with capped logits",
            do="Set attn_logit_softcapping to None in the model's config before loading it",
        )
    for other in present:
        reason = _conflict(variant, other)
        if reason:
            raise StudfinderError(f"{name} does not combine with {type(other).__name__}: {reason}")


def _conflict(one: Variant, other: Variant) -> str | None:
    if one.role == other.role:
        return f"both change the {one.role}"
    if one.own_function and other.own_function:
        return "each brings its own attention function, and there is one per model"
    if "queries" in (one.role, other.role) and (one.own_function or other.own_function):
        return "differential attention subtracts two plain softmaxes of twice the heads"
    return None


@torch.no_grad()
def _scale_outputs(model: Any, base: Base, factor: float) -> None:
    for module in attention_modules(model, base):
        weight = getattr(module, base.output).weight
        weight.mul_(factor)
        if not torch.isfinite(weight).all():
            raise StudfinderError(
                f"W_o times {factor} overflows {weight.dtype}", expected="bf16 or fp32", do="Reload the model"
            )
