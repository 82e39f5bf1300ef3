"""Which of transformers' classes loads a checkpoint as a language model; what has none is refused in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studfinder.errors import StudfinderError

_TAKEN = "a causal language model, or an image-text or omni model, which contains one"
_AUTO = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM", "AutoModelForSeq2SeqLM")
"""The auto classes of models that generate text; the last also lists a few that read sound into a decoder."""


def check_type(name: str, stored: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Raise StudfinderError if a config.json names a type that neither transformers nor code that may run knows.

    Args:
        name: the model's, in print.
        stored: config.json.
        trust_remote_code: whether code that comes with the checkpoint may run.
    """
    import transformers

    kind, own = stored.get("model_type"), stored.get("auto_map")
    if isinstance(kind, str) and kind in transformers.CONFIG_MAPPING:
        return
    if isinstance(own, dict) and own.get("AutoConfig"):
        if not trust_remote_code:
            raise StudfinderError(
                f"{name} ({kind}) needs code that comes with it ({own['AutoConfig']}), which was not allowed to run",
                do="Read the code, and if you trust it: --trust-remote-code (trust_remote_code=True)",
            )
    elif "_diffusers_version" in stored:
        raise diffusion(name, stored.get("_class_name"))
    else:
        raise StudfinderError(
            f"transformers {transformers.__version__} does not know the model_type of {name}, {kind!r}",
            expected="a type that transformers has, or code beside the weights (auto_map in config.json)",
            do="Update transformers, if the model is newer than it",
        )


def auto_class_of(name: str, config: Any, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The auto class that loads a checkpoint as the language model that it is or contains, and the config for it.

    A class that the config names comes first, so that a wrapper (image and text, say) is loaded whole and its tensors
    keep their names; of a model that also talks, the part that writes text is loaded.

    Raises:
        StudfinderError: it is something else.
    """
    import transformers

    automatic = [getattr(transformers, one) for one in _AUTO]
    own = getattr(config, "auto_map", None) or {}
    check_decoder(name, config)
    if trust_remote_code and (named := [one for one in automatic if one.__name__ in own]):
        return named[0], config
    found = [(one, one._model_mapping[type(config)]) for one in automatic if type(config) in one._model_mapping]
    found = [one for one in found if _generates(one[1])]
    if not found:
        base = transformers.MODEL_MAPPING.get(type(config), None)
        reads = getattr(base[0] if isinstance(base, tuple) else base, "input_modalities", "text")
        reads = reads if isinstance(reads, str) else " and ".join(reads)
        code = f"; its code has only {', '.join(own)}" if own else ""
        raise StudfinderError(
            f"{name} is no language model (transformers has no class that writes text for the type "
            f"{config.model_type}{'' if reads == 'text' else f', which reads {reads}'}{code})",
            expected=_TAKEN,
        )
    architectures = getattr(config, "architectures", None) or ()
    auto, model_class = next((one for one in found if one[1].__name__ in architectures), found[0])
    if model_class.forward.__name__ == "_forward_unimplemented":  # torch's: parts in a row, each run by itself
        return auto_class_of(name, next(getattr(config, part) for part in config.sub_configs), trust_remote_code)
    return auto, config


def check_decoder(name: str, config: Any) -> None:
    """Raise StudfinderError if a model is something else than a decoder that writes token by token, by its config."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        what = "an encoder-decoder"
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        what = "an encoder, which fills in masked tokens"
    elif "diffusion" in kind:
        what = "a diffusion model, which writes its tokens in any order"
    else:
        return
    raise StudfinderError(f"{name} ({kind}) is {what}", expected=_TAKEN)


def diffusion(name: str, what: object) -> StudfinderError:
    """A pipeline of diffusers, or a part of one."""
    return StudfinderError(f"{name} is a diffusion model, or part of one ({what} of diffusers)", expected=_TAKEN)


def _generates(model_class: type) -> bool:
    from transformers import GenerationMixin

    return issubclass(model_class, GenerationMixin) or not model_class.__module__.startswith("transformers.")
