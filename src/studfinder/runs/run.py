"""One run: what it is, where it lies, which of its steps are done, and how its result comes into place.

A run is worked on in a folder of its own beside the place of its result, `NAME.partial`, and changes places with what
was there when it is whole. So a result is the old one or the new one, whatever kills the process, and what an
interrupted run has done is found again by the same command. Each folder holds `run.json`: which run it is, in which
state, and the list of its files. Only listed files are ever removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError
from studfinder.runs.atomic import exchange, write_text, writes_to
from studfinder.runs.earlier import is_earlier
from studfinder.runs.lock import Lock, locked
from studfinder.runs.manifest import (
    FORMAT,
    MANIFEST,
    listing,
    manifest_of,
    read_plain,
    remove,
    remove_temporary,
    strays,
)
from studfinder.runs.processes import first_process
from studfinder.runs.provenance import key_of, now, scored_with, versions
from studfinder.runs.steps import Steps

STEPS = "steps.jsonl"


@dataclass(frozen=True)
class Run:
    """A run and its place. Making one writes nothing.

    Attributes:
        verb: what is run, e.g. "scan".
        identity: all that determines the result, as plain values.
        path: the folder of its result.
        result: the file that holds the result.
        given: whether the folder was chosen by the user.
        before: where a finished run of an earlier version with these settings would be.
    """

    verb: str
    identity: Mapping[str, Any]
    path: Path
    result: str
    given: bool = False
    before: Path | None = None

    @property
    def key(self) -> str:
        """Hash of the identity."""
        return key_of(self.identity)

    def finished(self) -> Path | None:
        """The folder of this run's result, if it is complete: its own, or one that an earlier version wrote.

        Raises:
            StudfinderError: the place is taken by something else; see `check`.
        """
        self.check()
        manifest = manifest_of(self.path)
        if manifest is not None and manifest["state"] == "done" and (self.path / self.result).is_file():
            return self.path
        for place in (self.path, self.before):
            if place is not None and is_earlier(place, self.verb, self.identity) and (place / self.result).is_file():
                return place
        return None

    def check(self, overwrite: bool = False, sources: Sequence[Path | str | None] = ()) -> None:
        """Whether the result can go to its place.

        Args:
            overwrite: another run there may be replaced.
            sources: what is read: no result is written over it, around it or, if the folder was chosen, into it.

        Raises:
            StudfinderError: it is a file, holds files that are not of a run, holds another run, or overlaps a source.
        """
        path = self.path
        check_place(path, overwrite, sources, inside=not self.given)
        if not path.is_dir() or not any(path.iterdir()):
            return
        found = manifest_of(path)
        same = found is not None and (found.get("verb"), found.get("key")) == (self.verb, self.key)
        if overwrite or same or is_earlier(path, self.verb, self.identity):
            return
        raise StudfinderError(
            f"folder {path} holds another run: {self._difference(path)}",
            do="Choose another --out, or replace it with --overwrite",
        )

    def _difference(self, path: Path) -> str:
        old = read_plain(path / MANIFEST)
        was, is_now = old.get("identity", old.get("settings", {})), _plain(self.identity)
        if old.get("verb") != self.verb:
            return f"verb was {old.get('verb')!r} and is now {self.verb!r}"
        differing = [name for name in sorted({*was, *is_now}) if was.get(name) != is_now.get(name)]
        if not differing:
            return "it is damaged"
        name = differing[0]
        return f"{name} was {was.get(name)!r} and is now {is_now.get(name)!r}"

    @contextmanager
    def work(
        self,
        *,
        overwrite: bool = False,
        sources: Sequence[Path | str | None] = (),
        fresh: bool = False,
    ) -> Iterator[Work]:
        """Work on the run; its result is in place when the block ends well.

        When it ends with an error, what was done stays for the same command to go on from, if there is any of it
        (`Work.keep`, or a step); otherwise nothing stays.

        Args:
            overwrite: replace what is there; the run is computed anew, without the steps of the one it replaces.
            sources: see `check`.
            fresh: nothing of an interrupted try can be used.

        Raises:
            StudfinderError: see `check`; or another process is working on it.
            WriteFailed: the place cannot be written.
        """
        path, partial = self.path, partial_path(self.path)
        if not first_process():  # the first one makes and finishes the folder; the others find it there
            yield Work(partial, Steps(None))
            return
        made = _make_parents(path.parent)
        try:
            with locked(path.with_name(f".{path.name[:80]}.lock")) as lock:
                _mend(path)
                self.check(overwrite, sources)
                found = self._partial(partial, overwrite, fresh)
                work = Work(partial, Steps(partial / STEPS, self.key, scored_with()), kept=found)
                try:
                    yield work
                    if not (partial / self.result).is_file():
                        raise RuntimeError(f"{self.verb} ended without its {self.result}")
                    lock.check()
                except BaseException:
                    if not work.kept and not work.steps.values:
                        shutil.rmtree(partial, ignore_errors=True)
                    raise
                self._put_in_place(partial, lock)
        finally:
            for folder in made:  # of a run that left nothing; one that holds something stays
                try:
                    folder.rmdir()
                except OSError:
                    break

    def _partial(self, partial: Path, overwrite: bool, fresh: bool) -> bool:
        """Make the folder to work in, or take over that of an interrupted try; whether there was one."""
        if os.path.lexists(partial):
            old = manifest_of(partial)
            if partial.is_symlink() or (old is None and listing(partial)):
                raise StudfinderError(f"{partial} is in the way and is not of a studfinder run", do="Move it")
            if old is not None and not fresh and self._goes_on(old, overwrite):
                remove_temporary(partial)
                self._note(partial, {**old, "state": "working", "made with": _made_with(old)})
                return True
            remove(partial)
            if partial.exists() and any(partial.iterdir()):
                raise StudfinderError(f"{partial} is in the way: it holds {min(partial.iterdir()).name}", do="Move it")
        with writes_to(partial):
            partial.mkdir(exist_ok=True)
        new = {"state": "working", "id": uuid.uuid4().hex, "anew": overwrite, "started": now()}
        self._note(partial, {**new, "made with": _made_with({})})
        return False

    def _goes_on(self, old: Mapping[str, Any], overwrite: bool) -> bool:
        """Whether an interrupted try was of this run, and not the result that this place had before, which a process
        was killed in removing."""
        replaced = read_plain(self.path / MANIFEST).get("replaces")
        mine = old.get("verb") == self.verb and old.get("key") == self.key and old.get("id") != replaced
        return mine and bool(old.get("anew") or not overwrite)

    def _note(self, folder: Path, more: Mapping[str, Any]) -> None:
        own = {"format": FORMAT, "version": 1, "verb": self.verb, "key": self.key, "identity": _plain(self.identity)}
        write_text(folder / MANIFEST, json.dumps({**more, **own}, indent=1))

    def _put_in_place(self, partial: Path, lock: Lock) -> None:
        old = read_plain(self.path / MANIFEST)
        remove_temporary(partial)
        new = {**read_plain(partial / MANIFEST), "state": "done", "files": listing(partial), "replaces": old.get("id")}
        self._note(partial, new)
        with writes_to(self.path):
            if not self.path.exists():
                partial.rename(self.path)
                return
            if not any(self.path.iterdir()):
                self.path.rmdir()
                partial.rename(self.path)
                return
            if exchange(partial, self.path):
                remove(partial)
                return
            # Without a call that exchanges folders: two renamings, which the next run mends if it dies between them.
            aside = _aside(self.path)
            self.path.rename(aside)
            partial.rename(self.path)
            remove(aside)


@dataclass
class Work:
    """What a run works with.

    Attributes:
        path: the folder to write to.
        steps: what is done already.
        kept: whether something here is worth going on from after an interruption.
    """

    path: Path
    steps: Steps
    kept: bool = field(default=False)

    def keep(self) -> None:
        """There is something now that the same command can go on from."""
        self.kept = True


def check_place(
    path: Path, overwrite: bool = False, sources: Sequence[Path | str | None] = (), *, inside: bool = False
) -> None:
    """Whether some run's result could go to a place: what can be said before its identity is known.

    Args:
        inside: a place inside of a source is allowed, as for the default folder of a run in a model's own folder.

    Raises:
        StudfinderError: it is a file, holds files that are not of a run, or overlaps a source.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise StudfinderError(f"--out {path} is a file", expected="a folder, or a name that does not exist yet")
    for source in sources:
        if source is not None and os.path.exists(source):
            here, there = path.resolve(), Path(source).resolve()
            if here == there or here in there.parents or (not inside and there.is_dir() and there in here.parents):
                raise StudfinderError(f"--out {path} overlaps {source}, which is read", do="Choose another --out")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if manifest_of(path) is None and not is_earlier(path):
        raise StudfinderError(f"folder {path} holds files that are not a studfinder run", do="Choose another --out")
    stray = strays(path)
    if overwrite and stray:
        raise StudfinderError(
            f"folder {path} also holds {stray[0]}, which is not of the run there",
            do="Move it, or choose another --out",
        )


def run_of(
    verb: str,
    place: str,
    identity: Mapping[str, Any],
    *,
    result: str,
    out: Path | None = None,
    root: Path = Path("runs"),
    before: Mapping[str, Any] | None = None,
) -> Run:
    """A run at its place: `out`, or `root`/<place>/<verb>-<key>.

    Args:
        place: usually the model's name; made into the name of a folder.
        identity: all that determines the result, the version of what is scored (`SCORING`) included.
        before: the settings by which an earlier version named its folder; None where it had no such run.
    """
    shelf = root / (re.sub(r"[^\w.-]+", "-", place.strip("/.")).strip("-.")[:100] or "unnamed")
    path = out.absolute() if out is not None and not out.name else out  # "." has no name of its own
    old = None if out is not None or before is None else shelf / f"{verb}-{key_of(before)}"
    return Run(verb, identity, path or shelf / f"{verb}-{key_of(identity)}", result, out is not None, old)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.replaced")


def _mend(path: Path) -> None:
    """Undo or end what a process was killed in: a result that was moved aside, and not yet replaced or removed."""
    aside = _aside(path)
    if manifest_of(aside) is None and not is_earlier(aside):
        return
    with writes_to(path):
        if path.exists():
            remove(aside)
        else:
            aside.rename(path)


def partial_path(path: Path) -> Path:
    """Where a run is worked on until it is whole."""
    return path.with_name(f"{path.name}.partial")


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(identity), default=str))


def _made_with(old: Mapping[str, Any]) -> list[dict[str, str]]:
    """All that a run was worked on with, each once, in order."""
    seen, mine = list(old.get("made with") or []), versions()
    return seen if mine in seen else [*seen, mine]


def _make_parents(folder: Path) -> list[Path]:
    """Make a folder with its parents; those that were not there, the innermost first."""
    missing = []
    for place in (folder, *folder.parents):
        if place.exists():
            break
        missing.append(place)
    with writes_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return missing
