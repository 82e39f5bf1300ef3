"""One owner at a time: who works at a place, and whether that process is still alive.

The lock file lies beside the run folder. It names its owner, who touches it every few seconds. On the owner's own host
a dead process is seen at once; from another host (a shared file system) when the touching has stopped.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError, WriteFailed
from studfinder.runs.atomic import writes_to

try:
    import fcntl
except ImportError:  # Windows: two processes that start within the same millisecond are not told apart there
    fcntl = None  # type: ignore[assignment]

BEAT = 15.0
"""Seconds between two signs of life."""
SILENT = 8 * BEAT
"""Seconds without one, after which an owner on another host is taken for dead."""


@contextmanager
def locked(path: Path) -> Iterator[Lock]:
    """Hold the lock file `path` while the block runs.

    Raises:
        StudfinderError: a live process holds it; its host, number and start are named.
        WriteFailed: the place cannot be written.
    """
    lock = Lock(path)
    lock.take()
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True, name="studfinder-lock")
    beat.start()
    try:
        yield lock
    finally:
        stop.set()
        lock.release()


class Lock:
    """A lock file with its owner's name in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.me = {"host": socket.gethostname(), "pid": os.getpid(), "born": _born(os.getpid())}

    def take(self) -> None:
        """Make it ours, or say whose it is."""
        with _guarded(self.path) as file:
            owner = _read(file)
            if owner is not None and self._alive(owner):
                raise StudfinderError(
                    f"process {owner['pid']} on {owner['host']} is working at this place since {owner['since']} "
                    f"({self.path})",
                    do="Wait for it, end it, or choose another --out",
                )
            since = datetime.now(UTC).isoformat(timespec="seconds")
            file.seek(0)
            file.truncate()
            file.write(json.dumps({**self.me, "since": since}).encode())
            file.flush()

    def check(self) -> None:
        """Raise WriteFailed if somebody else has taken it meanwhile (this process was asleep for long)."""
        try:
            owner = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError):
            owner = None
        if not isinstance(owner, dict) or not self._mine(owner):
            raise WriteFailed(
                f"another process has taken over this place ({self.path}) while this one was not responding",
                do="Nothing was replaced: run the command again",
            )

    def release(self) -> None:
        """Give it up, if it is still ours."""
        try:
            with _guarded(self.path) as file:
                owner = _read(file)
                if owner is not None and self._mine(owner):
                    self.path.unlink(missing_ok=True)
        except (OSError, WriteFailed):
            pass  # the folder is gone, or read-only: a dead owner's lock is taken over anyway

    def _mine(self, owner: dict[str, Any]) -> bool:
        return all(owner.get(name) == value for name, value in self.me.items())

    def _alive(self, owner: dict[str, Any]) -> bool:
        if owner["host"] == self.me["host"]:
            return _born(owner["pid"]) == owner["born"] is not None
        return time.time() - self.path.stat().st_mtime < SILENT


@contextmanager
def _guarded(path: Path) -> Iterator[Any]:
    """The lock file, opened and for this moment nobody else's. One that was removed between opening it and getting
    hold of it is opened again."""
    with writes_to(path):
        while True:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
            with file:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    same = os.stat(path).st_ino == os.fstat(file.fileno()).st_ino
                except FileNotFoundError:
                    same = False
                if same:
                    yield file
                    return


def _read(file: Any) -> dict[str, Any] | None:
    try:
        owner = json.loads(file.read())
    except (ValueError, RecursionError):  # its owner died before writing its name
        return None
    return owner if isinstance(owner, dict) and {"host", "pid", "born", "since"} <= owner.keys() else None


def _born(pid: Any) -> float | str | None:
    """When a process of this host was started, as the system counts it; None if there is none. A process number is
    used again, a number with its birth is not."""
    try:
        stat = Path(f"/proc/{int(pid)}/stat").read_text()
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, ValueError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # a system without /proc: that there is such a process must do
        os.kill(int(pid), 0)
    except (OSError, ValueError):
        return None
    return "alive"


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        try:
            os.utime(path)
        except OSError:
            return
