"""The run folder: where a verb's files go, and which run they belong to."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from studfinder.errors import StudfinderError
from studfinder.runs.atomic import write_text
from studfinder.runs.provenance import key_of

_LEDGER = "run.json"


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run.

    Attributes:
        path: the folder.
        key: hash of the settings.
        result: the file that, written last, marks the run as complete.
        made: whether the folder was made for this run.
    """

    path: Path
    key: str
    result: str
    made: bool = True

    @property
    def complete(self) -> bool:
        """Whether the result is there."""
        return (self.path / self.result).is_file()

    @contextmanager
    def held(self) -> Iterator[Path]:
        """The folder while the run works in it. A run that fails before it has written a result leaves nothing."""
        try:
            yield self.path
        except BaseException:
            if [child.name for child in self.path.iterdir()] == [_LEDGER]:
                (self.path / _LEDGER).unlink()
                if self.made:
                    self.path.rmdir()
            raise


def open_run(
    verb: str,
    model: str,
    settings: Mapping[str, object],
    *,
    result: str,
    out: Path | None = None,
    overwrite: bool = False,
    root: Path = Path("runs"),
) -> RunFolder:
    """Make or reopen the folder of a run.

    The default is `runs/<model>/<verb>-<key>`; the key hashes `settings`, so that the same settings find the same
    folder and continue or renew it. A given `out` that holds another run is refused, naming what differs.

    Raises:
        StudfinderError: `out` is a file, holds another run or other files, or cannot be written.
    """
    key = key_of(settings)
    path = out or root / re.sub(r"[^\w.-]+", "-", model.strip("/.")).strip("-") / f"{verb}-{key}"
    if path.exists() and not path.is_dir():
        raise StudfinderError(f"--out {path} is a file", expected="a folder, or a name that does not exist yet")
    made = True
    if path.is_dir():
        made = any(path.iterdir())  # with a run's files in it; an empty folder was somebody's before
        if made:
            _check_owner(path, verb, settings, overwrite)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StudfinderError(f"folder {path} cannot be made ({error.strerror})") from None
    write_text(path / _LEDGER, json.dumps({"verb": verb, "key": key, "settings": settings}, indent=1, default=str))
    return RunFolder(path, key, result, made)


def _check_owner(path: Path, verb: str, settings: Mapping[str, object], overwrite: bool) -> None:
    try:
        ledger = json.loads((path / _LEDGER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        # A process that was killed while making the folder leaves only a temporary ledger.
        if all(child.name.startswith(f".{_LEDGER}.") for child in path.iterdir()):
            return
        raise StudfinderError(
            f"folder {path} holds files that are not a studfinder run", do="Choose another --out"
        ) from None
    except ValueError:
        ledger = {}
    if ledger.get("verb") == verb and ledger.get("settings") == json.loads(json.dumps(dict(settings), default=str)):
        return
    if overwrite:
        shutil.rmtree(path)
        return
    old = ledger.get("settings", {})
    new = json.loads(json.dumps(dict(settings), default=str))
    differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    name = differing[0] if differing else "verb"
    was, is_now = (old.get(name), new.get(name)) if differing else (ledger.get("verb"), verb)
    raise StudfinderError(
        f"folder {path} holds another run: {name} was {was!r} and is now {is_now!r}",
        do="Choose another --out, or replace it with --overwrite",
    )


def find_findings(path: Path) -> Path:
    """The findings file of a run folder, or the file itself. Raises StudfinderError if there is none."""
    found = path / "findings.json" if path.is_dir() else path
    if not found.is_file():
        unfinished = path.is_dir() and (path / _LEDGER).is_file()
        raise StudfinderError(
            f"{path} holds no findings.json" + (" (the scan did not finish)" if unfinished else ""),
            expected="the folder of a scan, or its findings.json",
        )
    return found
