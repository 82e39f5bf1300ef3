"""studfinder finds the load-bearing numbers of a language model before anyone cuts into it.

What is public stands in `__init__.pyi`, once. Each name is loaded when it is first used, so that `import studfinder`
stays fast and does not import torch.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

__version__ = "0.1.0"

_PUBLIC = {
    name.name: one.module or ""
    for one in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(one, ast.ImportFrom)
    for name in one.names
}
"""Name -> the module that has it."""

_MOVED = {
    "attention": "ALiBi AttentionBias ClippedSoftmax Differential Gated KVShift NoPE RoPE SinkLogit SoftmaxOne "
    "Softpick import_kernels parameter_groups shift_cache",
    "edits": "AboveLambda Activations Coordinates EditList Everything LargestEntry MatchedDims RandomDims TopDims "
    "constant_only deviation_only dims massive_value_disruption mean noise parse_edits restore restore_output scale "
    "set_to shuffle zero",
    "keep": "hold_out skip",
    "measures": "compare contrast damage_matched facts_in_context facts_parametric_matched log_likelihoods perplexity",
    "measures.tasks": "tasks",
    "quantizers": "AWQ Clip ClipRestore GPTQ KVCache RTN Scheme SmoothQuant WithActivations calibration_windows "
    "quantized_cache",
    "records": "Interval",
}
"""Where names of version 0.1.0 are now. They go with version 0.3."""

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        module = import_module(_PUBLIC[name])
        return import_module(f"{__name__}.{name}") if module.__name__ == __name__ else getattr(module, name)
    for place, names in _MOVED.items():
        if name in names.split():
            import warnings

            from studfinder.visible import visible

            said = f"studfinder.{name} is now studfinder.{place}.{name}"
            warnings.warn(visible(said), DeprecationWarning, stacklevel=2)
            home = import_module(_PUBLIC.get(place, __name__) + f".{place}")
            return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
