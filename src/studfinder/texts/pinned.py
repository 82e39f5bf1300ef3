"""Data sets of the hub at a revision, "name@revision", and the commit that was read of them."""

from __future__ import annotations

import re

from studfinder.errors import StudfinderError

_COMMIT = re.compile(r"[0-9a-f]{40}")


def split_revision(name: str) -> tuple[str, str | None]:
    """A name and the revision behind its "@": a branch, a tag or a commit of the hub's repository; None if there is no.

    Raises:
        StudfinderError: what is behind the "@" cannot be one.
    """
    plain, at, revision = name.partition("@")
    if at and (not re.fullmatch(r"\w[\w./-]{0,99}", revision) or ".." in revision):
        raise StudfinderError(f"{revision!r} is no revision", expected="a branch, tag or commit, as in wikitext2@main")
    return plain, revision if at else None


def commit_of(repository: str, revision: str | None) -> str | None:
    """The commit that a revision of a data set is now, so that this one is read and no later one; None where the hub
    cannot be asked."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    try:
        from huggingface_hub import HfApi

        found = HfApi().dataset_info(repository, revision=revision, timeout=20).sha
    except Exception:  # no network, no such repository: reading it says which
        return None
    return found if isinstance(found, str) and _COMMIT.fullmatch(found) else None


def said(commit: str | None, revision: str | None = None) -> str:
    """For the name of a text: which commit was read, or which revision was asked for."""
    return f", commit {commit[:12]}" if commit else f", revision {revision}" if revision else ""
