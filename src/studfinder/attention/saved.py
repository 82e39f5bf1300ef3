"""Saved variants: one `model_type` per base, "studfinder-llama" and so on.

Plain transformers refuses such a checkpoint by this name; after `import studfinder.attention` the Auto
classes load it (`sf.load` does that import itself). Without a name of its own a checkpoint would load as its
base and silently drop the variant.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from studfinder.attention.bases import BASES, Base
from studfinder.attention.install import install, start_missing
from studfinder.attention.interface import NAME
from studfinder.attention.kv_shift.cache import prepare
from studfinder.attention.variant import Variant, variant_from
from studfinder.errors import StudfinderError

KIND_PREFIX = "studfinder-"
_OWN_SOFTMAX = ("eager", "sdpa", *(f"flash_attention_{version}" for version in (2, 3, 4)), "flex_attention")


def variants_of(config: Any) -> list[Variant]:
    """The variants a config names; an empty list for a plain one."""
    return [variant_from(entry) for entry in (getattr(config, "studfinder", None) or {}).get("variants", [])]


class SavedVariant:
    """Mixed into a base's causal LM: builds the parts that the config names."""

    base: Base
    config: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        install(self, self.base, variants_of(config))

    def initialize_weights(self) -> None:
        """As in transformers, which asks for what a checkpoint lacks; parts of a variant are ours to
        start."""
        super().initialize_weights()  # type: ignore[misc]
        start_missing(self, self.base)

    def set_attn_implementation(self, attn_implementation: Any, *args: Any, **kwargs: Any) -> None:
        """As in transformers; refused where it would silently replace the variant by plain softmax."""
        if self.config._attn_implementation == NAME and attn_implementation in _OWN_SOFTMAX:
            raise StudfinderError(
                f"attention implementation {attn_implementation!r} would make this variant plain softmax",
                expected=repr(NAME),
            )
        super().set_attn_implementation(attn_implementation, *args, **kwargs)  # type: ignore[misc]

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


CONFIGS: dict[str, type[Any]] = {}
MODEL_CLASSES: dict[str, type[Any]] = {}

for _kind, _base in BASES.items():
    _settings: dict[str, Any] = {"model_type": KIND_PREFIX + _kind, "__module__": __name__}
    _config = type(f"Studfinder{_base.config_class.__name__}", (_base.config_class,), _settings)
    _own: dict[str, Any] = {"base": _base, "config_class": _config, "__module__": __name__}
    _model = type(f"Studfinder{_base.model_class.__name__}", (SavedVariant, _base.model_class), _own)
    CONFIGS[_kind], MODEL_CLASSES[_kind] = _config, _model
    globals().update({_config.__name__: _config, _model.__name__: _model})  # so that they pickle
    AutoConfig.register(KIND_PREFIX + _kind, _config, exist_ok=True)
    AutoModelForCausalLM.register(_config, _model, exist_ok=True)
