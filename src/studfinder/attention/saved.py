"""Saved variants: one `model_type` per base, "studfinder-llama" and so on.

Plain transformers refuses such a checkpoint by this name; after `import studfinder.attention` the Auto
classes load it (`sf.load` does that import itself). Without a name of its own a checkpoint would load as its
base and silently drop the variant. The classes of a base are made when it is first asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from studfinder.attention.install import install, start_missing
from studfinder.attention.interface import NAME
from studfinder.attention.kv_shift.cache import prepare
from studfinder.attention.measuring import places_of
from studfinder.attention.places import AttentionPlace, from_config, to_config
from studfinder.attention.variant import Variant, variant_from
from studfinder.errors import StudfinderError
from studfinder.models import anatomy_of

KIND_PREFIX = "studfinder-"
_OWN_SOFTMAX = ("eager", "sdpa", *(f"flash_attention_{version}" for version in (2, 3, 4)), "flex_attention")
_AUTO = (AutoModelForCausalLM, AutoModelForImageTextToText)


def variants_of(config: Any) -> list[Variant]:
    """The variants a config names; an empty list for a plain one."""
    return [variant_from(entry) for entry in (getattr(config, "studfinder", None) or {}).get("variants", [])]


class SavedVariant:
    """Mixed into a base's causal LM: builds the parts that the config names."""

    base: Any
    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        if not places_in(config) and variants_of(config):  # saved by an earlier version, or made by hand
            config.studfinder = {**config.studfinder, "attention": to_config(_places_of_twin(self.base, config))}
        install(self, places_in(config), variants_of(config))

    @classmethod
    def is_custom_code(cls) -> bool:
        """Its buffers are filled as the base's: of code that transformers does not know it leaves them unset."""
        return False

    def initialize_weights(self) -> None:
        """As in transformers, which asks for what a checkpoint lacks; parts of a variant are ours to
        start."""
        super().initialize_weights()  # type: ignore[misc]
        start_missing(self, places_in(self.config))

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; refused where it would silently replace the variant by plain softmax."""
        own = any(variant.own_function for variant in variants_of(self.config))
        if own and attn_implementation in _OWN_SOFTMAX:
            raise StudfinderError(
                f"attention implementation {attn_implementation!r} would make this variant plain softmax",
                expected=repr(NAME),
            )
        super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; refused for a base whose code is not transformers' own, which no one could load."""
        if not any(type(self.config) in auto._model_mapping for auto in _AUTO):
            raise StudfinderError(
                f"{self.base.__name__} is no class of transformers, so this variant of it could not be loaded again",
                expected="a variant of a model that transformers knows",
            )
        super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    def _prepare_cache_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        # Early, because assisted decoding switches past recording on before the first forward pass.
        given = super()._prepare_cache_for_generation(*args, **kwargs)  # type: ignore[misc]
        if any(variant.role == "keys and values" for variant in variants_of(self.config)):
            for argument in (*args, *kwargs.values()):
                if isinstance(argument, dict) and hasattr(argument.get("past_key_values"), "layers"):
                    cache = prepare(argument["past_key_values"])
                    if any(getattr(given_to, "is_assistant", False) for given_to in args):
                        cache.activate_past_recording()
        return given


def places_in(config: Any) -> dict[str, AttentionPlace]:
    """The places that a converted model's config holds; none of a plain one."""
    return from_config((getattr(config, "studfinder", None) or {}).get("attention", []))


def _places_of_twin(base: Any, config: Any) -> dict[str, AttentionPlace]:
    """The places of a plain model of the same config: its weights are drawn here, whatever device and dtype the model
    itself is being made in."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        twin = base(config).eval()
        for parameter in twin.parameters():
            drawn = parameter.detach()  # what the class would draw is left out while a model is loaded
            drawn.normal_(0, 0.02) if drawn.dim() > 1 else drawn.uniform_(0.5, 1)
        with torch.enable_grad():
            layers = anatomy_of(twin).layers
        return places_of(twin, layers)


@cache
def config_class(base: Any) -> type[Any]:
    """The config of a base's converted models; it is made, with the model classes that go with it, and registered."""
    kind = KIND_PREFIX + base.model_type
    made = _made(base, {"model_type": kind})
    AutoConfig.register(kind, made, exist_ok=True)
    _convert_files_alike(base.model_type, kind)
    for auto in _AUTO:
        model = auto._model_mapping.get(base, None)
        if getattr(model, "config_class", None) is base:  # some only stand for the type of a part of it
            auto.register(made, model_class(model), exist_ok=True)
    return made


@cache
def model_class(base: Any) -> type[Any]:
    """The class of a base's converted models."""
    config = _made(base.config_class, {"model_type": KIND_PREFIX + base.config_class.model_type})
    made = _made(base, {"base": base, "config_class": config}, SavedVariant)
    _convert_files_alike(base.__name__, made.__name__)
    return made


def _convert_files_alike(base: str, made: str) -> None:
    """Names and shapes of weights in a checkpoint, where transformers' own differ from those in memory (experts, above
    all): of a made type or class as of its base."""
    mapping = get_checkpoint_conversion_mapping(base)
    if mapping is not None:
        register_checkpoint_conversion_mapping(made, mapping, overwrite=True)


def _made(base: Any, own: dict[str, Any], *mixed: type) -> type[Any]:
    """A subclass that pickles: it stands in this module."""
    name = f"Studfinder{base.__name__}"
    if name not in globals():
        globals()[name] = type(name, (*mixed, base), {**own, "__module__": __name__})
    return globals()[name]


def __getattr__(name: str) -> Any:
    """A class by its name, in a process that has not made it yet."""
    base = getattr(transformers, name.removeprefix("Studfinder"), None)
    if base is None or not name.startswith("Studfinder"):
        raise AttributeError(name)
    config_class(getattr(base, "config_class", None) or base)
    return globals()[name] if name in globals() else model_class(base)


class _Later:
    """Stands in transformers' table for a config class that nobody has asked for."""

    def __init__(self, kind: str) -> None:
        self.__name__ = f"Studfinder{CONFIG_MAPPING_NAMES[kind]}"
        self.kind = kind

    def __getattr__(self, name: str) -> Any:
        return getattr(config_class(CONFIG_MAPPING[self.kind]), name)


for _kind in CONFIG_MAPPING_NAMES:
    CONFIG_MAPPING.register(KIND_PREFIX + _kind, _Later(_kind), exist_ok=True)
