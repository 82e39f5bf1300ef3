"""Where a model is: by the name it is asked for, and where its files lie."""

from __future__ import annotations

from pathlib import Path

from studfinder.errors import StudfinderError
from studfinder.hub import check_reached
from studfinder.models.builtin import BUILTINS, ensure
from studfinder.models.files import weights_of
from studfinder.models.lm import Source


def source_named(asked: str, revision: str | None = None) -> Source:
    """What a name stands for: a built-in model, a GGUF file, a folder, or a repository of the hub.

    Raises:
        StudfinderError: it can be none of these.
        Unavailable: it can only be the hub's, nothing of it is in the hub's cache, and the hub cannot be reached.
    """
    if asked in BUILTINS:
        return Source(asked, BUILTINS[asked].origin, ensure(BUILTINS[asked]))
    path = Path(asked).expanduser()
    if path.is_file():
        if path.suffix == ".gguf":
            return Source(asked, "a GGUF file, dequantised", path)
        raise StudfinderError(f"{asked} is a file", expected="a folder with config.json, a .gguf file or a hub id")
    if asked and path.is_dir():  # an empty name is not the current folder
        return Source(asked, "a local folder", path)
    found = hub_source(asked, revision)
    check_reached(asked)
    return found


def hub_source(asked: str, revision: str | None = None) -> Source:
    """A repository of the hub by its id, whatever lies on this disk. Raises StudfinderError if it cannot be one."""
    # A hub id is "name" or "owner/name"; anything else can only have been meant as a path.
    if asked.startswith((".", "/", "~")) or asked.count("/") > 1 or not asked:
        raise StudfinderError(
            f"there is no folder or file {asked!r}",
            expected="a folder, a .gguf file, a hub id, or a built-in name: " + ", ".join(BUILTINS),
        )
    return Source(asked, "the Hugging Face hub", None, revision)


def hub_folder(source: Source, name: str, *more: str, fetch: bool = True) -> Path | None:
    """The folder in the hub's cache that holds a file of a repository, which is fetched if it may be, and those of
    `more` that are there; None where it cannot be had: no such file, no repository, no network."""
    from transformers.utils.hub import cached_file

    def file(name: str) -> str | None:
        try:
            return cached_file(source.id, name, revision=source.revision, local_files_only=not fetch)
        except (OSError, ValueError):  # loading says why better
            return None

    found = file(name)
    if found is None:
        return None
    for other in more:
        file(other)
    return Path(found).parent


def fetched(source: Source) -> Path:
    """The folder in the hub's cache that holds a repository's weights, which are fetched. Raises what the hub does,
    and StudfinderError if there are none that transformers reads."""
    from transformers.utils.hub import cached_file

    folder = hub_folder(
        source, "config.json", "model.safetensors.index.json", "model.safetensors", "generation_config.json"
    )
    if folder is None:
        raise StudfinderError(f"{source.id} has no config.json")
    for name in weights_of(folder).files:
        cached_file(source.id, name, revision=source.revision)
    return folder


def model_folder(source: Source, *more: str, fetch: bool = False) -> Path | None:
    """Where a model's files lie; a live model is looked for under the name that it was loaded by. Of the hub's those of
    `more` that loading did not need are fetched if that is allowed."""
    if source.folder is not None:
        return source.folder if source.folder.is_dir() else None
    if (Path(source.id) / "config.json").is_file():
        return Path(source.id)
    if source.id == "live" or source.id.count("/") > 1:  # the name of a live object may mean anything
        return None
    return hub_folder(source, "config.json", *more, fetch=fetch)
