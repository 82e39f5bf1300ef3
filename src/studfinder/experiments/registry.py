"""Every experiment by name."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

from studfinder.errors import StudfinderError

REGISTRY: dict[str, str] = {
    "massive-values/constant-or-deviation": "studfinder.experiments.massive_values_constant",
    "massive-values/disrupt": "studfinder.experiments.massive_values_disrupt",
    "massive-values/layers": "studfinder.experiments.massive_values_layers",
    "massive-values/map": "studfinder.experiments.massive_values_map",
    "massive-values/rope": "studfinder.experiments.massive_values_rope",
    "super-weight/case": "studfinder.experiments.super_weight_case",
}
"""The module of each experiment: it holds EXPERIMENT, run(bench) and draw(result, width)."""


def experiment_named(name: str) -> Any:
    """The module of an experiment. Raises StudfinderError if there is none of this name."""
    if name not in REGISTRY:
        near = difflib.get_close_matches(name, REGISTRY, n=3, cutoff=0.4)
        raise StudfinderError(
            f"there is no experiment {name!r}",
            expected="one of " + ", ".join(near or REGISTRY),
            do="studfinder ls experiments lists them",
        )
    return import_module(REGISTRY[name])
