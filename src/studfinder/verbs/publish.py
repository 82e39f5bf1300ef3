"""A finished checkpoint put on the hub, with a card that the hub can read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from studfinder.errors import StudfinderError, Unavailable, in_a_line
from studfinder.hub import hub_failure
from studfinder.records.outside import read_text
from studfinder.visible import say

_CARD = "README.md"
_LEFT = ["report.html", "run.json", "*.partial", ".*"]
"""What is no part of the checkpoint."""


def check_repository(name: str) -> None:
    """Raise StudfinderError if a name is no repository's: said before any work is done."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise StudfinderError(f"--push-to-hub {name!r} is no repository", expected="owner/name") from None
    if name.count("/") != 1:
        raise StudfinderError(f"--push-to-hub {name!r} names no owner", expected="owner/name")


def publish(folder: Path, name: str) -> str:
    """Upload a checkpoint's folder to a repository of the hub, which is made, private, if there is none; its address.

    Raises:
        StudfinderError: the hub refuses it.
        Unavailable: the hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api: Any = HfApi()
    try:
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(
            repo_id=name, folder_path=folder, ignore_patterns=[*_LEFT, _CARD], commit_message="studfinder"
        )
        card = CommitOperationAdd(path_in_repo=_CARD, path_or_fileobj=hub_card(folder).encode())
        api.create_commit(repo_id=name, operations=[card], commit_message="studfinder: the card")
    except Exception as error:  # of the hub's client and of whatever is under it
        said = hub_failure(name, error)
        raise said or Unavailable(
            f"{folder} could not be uploaded to {name} ({in_a_line(error)})",
            do="It is whole where it is; log in with `hf auth login`, and give the same command again",
        ) from error
    say(f"published {address} (private until you say otherwise)", file=sys.stderr)
    return address


def hub_card(folder: Path) -> str:
    """A checkpoint's card as the hub takes it: a base model that is a path of this machine is left out."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    _, _, rest = read_text(folder / _CARD).partition("---\n")
    head, _, body = rest.partition("---\n")
    said = yaml.safe_load(head)
    try:
        validate_repo_id(said["base_model"])
        found = said["base_model"].count("/") == 1
    except (HFValidationError, KeyError, TypeError):
        found = False
    if not found:
        said = {key: value for key, value in said.items() if not key.startswith("base_model")}
    return f"---\n{yaml.safe_dump(said, sort_keys=False)}---\n{body}"
