"""Why the Hugging Face hub did not give what was asked for, what is kept of it, and how to go on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from studfinder.errors import StudfinderError, Unavailable, WriteFailed

_UNREACHABLE = {"ConnectError", "ConnectTimeout", "ProxyError", "SSLError", "gaierror", "ConnectionRefusedError"}
_CUT_OFF = {
    "ReadError",
    "ReadTimeout",
    "WriteError",
    "RemoteProtocolError",
    "IncompleteRead",
    "ChunkedEncodingError",
    "ConnectionResetError",
    "XetDownloadError",
    "IncompleteSnapshotError",
}
_PATIENCE = 10
"""Seconds in which the hub must answer."""
_KEPT = "What came whole is kept in the hub's cache, and the same command fetches the rest"


def check_reached(asked: str) -> None:
    """Ask once whether the hub answers, of a repository of which its cache holds nothing: its own client would try
    again for half a minute, for every file.

    Raises:
        Unavailable: it does not.
    """
    from huggingface_hub import constants, get_session

    kept = Path(constants.HF_HUB_CACHE) / f"models--{asked.replace('/', '--')}"
    if kept.is_dir() or constants.HF_HUB_OFFLINE:
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # of whichever HTTP client is under it
        if {kind.__name__ for one in _chain(error) for kind in type(one).__mro__} & _UNREACHABLE:
            raise Unavailable(
                f"there is no folder {asked!r} here, it is not in the hub's cache, and the hub cannot be reached",
                do="Check the spelling, or the network and HF_ENDPOINT",
            ) from error


def hub_failure(asked: str, error: BaseException, revision: str | None = None) -> StudfinderError | None:
    """The line for a failure of the hub, or None if it was something else.

    The kinds are those of huggingface_hub and of the HTTP clients under it, found by name anywhere in the chain of
    causes: transformers and datasets raise others from them.

    Args:
        asked: the repository.
        error: what was raised.
        revision: that was asked for.
    """
    chain = list(_chain(error))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    status = next((code for one in chain if (code := _status(one)) is not None), None)
    full = [one for one in chain if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT)]
    if full:
        return WriteFailed(f"the disk is full, and {asked} is not all here", do=f"Make room. {_KEPT}")
    if "GatedRepoError" in kinds:
        return Unavailable(
            f"{asked} is gated: its owner lets in who has asked",
            do=f"Ask for access at https://huggingface.co/{asked}, then set HF_TOKEN (or run: hf auth login)",
        )
    if "DisabledRepoError" in kinds:
        return Unavailable(f"the hub has taken {asked} down", do="Use another copy of it, from a folder")
    if status == 429:
        return Unavailable(
            f"the hub answers no more requests for now (429: too many), while {asked} was fetched",
            do=f"Wait some minutes, or set HF_TOKEN, which raises the limit. {_KEPT}",
        )
    if "RevisionNotFoundError" in kinds:
        return StudfinderError(
            f"{asked} has no revision {revision or 'main'!r}",
            expected="a branch, a tag or a commit",
            do=f"Its list: https://huggingface.co/{asked}/tree/main",
        )
    if "RepositoryNotFoundError" in kinds:
        return StudfinderError(
            f"there is no repository {asked} on the hub, or it is private",
            do="Check the spelling (owner/name); for a private one set HF_TOKEN",
        )
    if status in (401, 403):
        return Unavailable(
            f"the hub does not let this token read {asked} ({status})", do="Set HF_TOKEN to one that may, or unset it"
        )
    if status is not None and status >= 500:
        return Unavailable(f"the hub itself fails ({status}), while {asked} was fetched", do=f"Try later. {_KEPT}")
    if "OfflineModeIsEnabled" in kinds or (_offline() and "LocalEntryNotFoundError" in kinds):
        return Unavailable(
            f"{asked} is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it",
            do="Unset HF_HUB_OFFLINE, or copy the model here and give its folder",
        )
    if kinds & _CUT_OFF or any("onsistency check failed" in str(one) for one in chain):
        return Unavailable(f"the download of {asked} was cut off", do=f"{_KEPT}")
    if kinds & _UNREACHABLE or "LocalEntryNotFoundError" in kinds:
        return Unavailable(
            f"{asked} is not in the hub's cache, and the hub cannot be reached",
            do="Check the network and HF_ENDPOINT, or copy the model here and give its folder",
        )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _status(error: BaseException) -> int | None:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) and code >= 400 and code != 404 else None


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
