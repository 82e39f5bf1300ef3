"""Names of tensors in GGUF, by the gguf package's own map."""

from __future__ import annotations

import re
from collections.abc import Collection

_ARCHITECTURES = {
    "mistral": "llama",
    "mixtral": "llama",
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
"""Types of Hugging Face that are called otherwise in GGUF, beside what differs in signs alone."""
_EXPERT = re.compile(r"\.experts\.\d+\.")


def gguf_architecture(model_type: str) -> str | None:
    """What GGUF calls an architecture; None where it has none of that name."""
    from gguf import MODEL_ARCH_NAMES

    known = {_plain(name): name for name in MODEL_ARCH_NAMES.values()}
    asked = _ARCHITECTURES.get(model_type, model_type)
    return known.get(_plain(asked)) or known.get(_plain(asked.removesuffix("_text")))


def gguf_names(model_type: str, layers: int, modules: Collection[str]) -> dict[str, str]:
    """The tensor's name of each module's weight; "" where there is none. Experts of a layer share one tensor."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = gguf_architecture(model_type)
    if architecture is None:
        return dict.fromkeys(modules, "")
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == architecture)
    table = get_tensor_name_map(kind, layers)
    found = {}
    for module in modules:
        merged = _EXPERT.sub(".experts.", module)
        spellings = [merged, merged.replace("model.language_model.", "model."), merged.removeprefix("model.")]
        name = next((name for one in spellings if (name := table.get_name(f"{one}.weight", (".weight",)))), None)
        found[module] = name or ""
    return found


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
