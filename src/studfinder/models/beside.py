"""The files beside the weights: what must travel with a checkpoint that is made from another one."""

from __future__ import annotations

import fnmatch
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studfinder.models.inside import check_distinct, inside, outward
from studfinder.models.lm import Source
from studfinder.models.places import model_folder, source_named

_WITH = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.spm", "*.codes", "vocab*", "merges*", "*.bpe")
"""Tokenizers of every kind, processors, chat templates, generation settings."""
_TERMS = ("license*", "licence*", "notice*", "copying*", "copyright*", "use_policy*", "use-policy*", "*terms_of_use*")
"""Under which terms a model may be passed on: these have to travel."""
_NEVER = (
    "config.json",  # written anew
    "studfinder*.json",
    "run.json",  # ours, as is steps.jsonl, which no pattern above takes
    "readme*",
    "*.index.json",
    "*.safetensors*",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.gguf",
    "adapter_*",
    "adapter.*",
    "*quant*",
    "recipe*",
    "*imatrix*",
    "trainer_state*",
    "training_args*",
    "*_results.json",
    "requirements*",
)
"""Old weights and their indexes, adapters, what another quantiser or a trainer left."""
_TOKENIZER = ("tokenizer*", "special_tokens*", "added_tokens*", "vocab*", "merges*", "*.model", "*.tiktoken", "*.spm")
_ON_HUB = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "USE_POLICY.md",
)
"""What is asked of the hub by name, since loading a model fetches only what it needs itself."""


def put_beside(source: Source | str, to: Path, *, tokenizer: bool = True) -> tuple[str, ...]:
    """Copy what lies beside a model's weights into the folder of a checkpoint made from it; gives their names.

    Copied are tokenizers, chat templates, processor and generation settings, terms of use, and the code of a model that
    brings its own; never weights, their indexes, adapters, or what another quantiser left. The hub's are taken from
    transformers' cache, or fetched. A model that came from no folder has nothing beside it.

    Args:
        source: where the model came from, or the name it is loaded by.
        tokenizer: whether the tokenizer's own files come too; not for a model that has been given another one.

    Raises:
        StudfinderError: a file is a link that leads out of the model's folder, or two differ in case only.
    """
    carried = files_beside(source, tokenizer=tokenizer)
    for name, path in carried.items():
        shutil.copyfile(path, outward(to, name, path.parent))
    return tuple(sorted(carried))


def files_beside(source: Source | str, *, tokenizer: bool = True) -> dict[str, Path]:
    """What `put_beside` copies, by the names it will have: asked before any work, since it may be refused.

    Raises:
        StudfinderError: as `put_beside`.
    """
    source = source_named(source) if isinstance(source, str) else source
    folder = model_folder(source, *_ON_HUB, fetch="hub" in source.origin)
    if folder is None:
        return {}
    found = [
        path.relative_to(folder).as_posix()
        for path in _beside(folder)
        if tokenizer or not any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in _TOKENIZER)
    ]
    check_distinct(found, folder)
    return {name: inside(folder, name) for name in found}


def own_code(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A config whose `auto_map` names the code in its own folder, where that holds it, and not a hub repository's."""
    if not isinstance(config.get("auto_map"), dict):
        return config

    def here(place: Any) -> Any:
        if isinstance(place, list | tuple):
            return [here(one) for one in place]
        own = str(place).rpartition("--")[2]
        module = own.partition(".")[0]
        return own if place is not None and module.isidentifier() and (folder / f"{module}.py").is_file() else place

    return {**config, "auto_map": {name: here(place) for name, place in config["auto_map"].items()}}


def _beside(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        name = path.name.lower()
        if not path.is_file() or any(fnmatch.fnmatch(name, pattern) for pattern in _NEVER):
            continue
        if any(fnmatch.fnmatch(name, pattern) for pattern in (*_WITH, *_TERMS)):
            yield path
    yield from sorted(path for path in folder.glob("additional_chat_templates/*.jinja") if path.is_file())
    if any(_brings_code(path) for path in folder.glob("*config.json")):
        for path in sorted(folder.rglob("*.py")):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path


def _brings_code(path: Path) -> bool:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(found, dict) and "auto_map" in found
    except (OSError, ValueError, RecursionError):
        return False
