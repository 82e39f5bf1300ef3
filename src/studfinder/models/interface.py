"""transformers' attention interface: stand in front of whatever function a model's attention resolves to."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from studfinder.errors import StudfinderError
from studfinder.patches import Journal

AttentionWatcher = Callable[[nn.Module, Any, Any, Any, Any, dict], tuple[Any, Any, Any]]
"""(module, query, key, value, mask, keywords) -> the query, key and value that attention is given."""

_WATCHERS: WeakKeyDictionary[nn.Module, AttentionWatcher] = WeakKeyDictionary()


def watch_attention(module: nn.Module, watcher: AttentionWatcher, journal: Journal) -> None:
    """Call `watcher` before the attention function of a module, until the journal ends.

    The function stands under the same name in the registry that the module's own file looks it up in, so that config,
    mask and kernel choice stay the model's own.

    Raises:
        StudfinderError: the module's file does not use the interface.
    """
    place = _registry_and_name(module)
    if place is None:
        raise StudfinderError(f"{type(module).__name__} does not use transformers' attention interface")
    registry, name = place
    journal.put(_WATCHERS, module, watcher)
    journal.share(registry._local_mapping, name, partial(_dispatcher, registry.get(name)))


def uses_interface(module: nn.Module) -> bool:
    """Whether the file of a module's class looks attention up in the interface, and the module could."""
    return _registry_and_name(module) is not None


def globals_of(module: nn.Module) -> dict[str, Any]:
    """The globals of the file whose `forward` this module runs."""
    return getattr(inspect.unwrap(type(module).forward), "__globals__", {})


def _registry_and_name(module: Any) -> tuple[Any, str] | None:
    """The registry the module's own file looks attention up in (most share one, a file may have its own)."""
    registry = globals_of(module).get("ALL_ATTENTION_FUNCTIONS")
    config: Any = getattr(module, "config", None)
    if registry is None or not hasattr(config, "_attn_implementation"):
        return None
    return registry, config._attn_implementation or "eager"


def _dispatcher(original: Any) -> Any:
    """What stands in front of a registered attention function. Modules without a watcher pass straight through.

    Args:
        original: None for eager: each file has its own function.
    """

    def dispatcher(
        module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        function = original or globals_of(module)["eager_attention_forward"]
        watcher = _WATCHERS.get(module)
        if watcher is not None:
            query, key, value = watcher(module, query, key, value, attention_mask, kwargs)
        return function(module, query, key, value, attention_mask, *args, **kwargs)

    return dispatcher
