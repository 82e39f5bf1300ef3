"""What can go wrong, in one line: what was wrong, what was expected, what to do.

`StudfinderError` itself is a user's mistake. The kinds below tell apart what is nobody's mistake: only `NotApplicable`
may be passed over (and is printed); the others end the run.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

from studfinder.visible import visible


class StudfinderError(Exception):
    """A mistake the user can mend. The command line prints it as one plain line and exits with code 2.

    Args:
        what: what was wrong, naming the thing.
        expected: what was expected instead.
        do: what to do about it.
    """

    def __init__(self, what: str, *, expected: str | None = None, do: str | None = None) -> None:
        self.what = what
        self.expected = expected
        self.do = do
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what.rstrip(".")]
        if self.expected:
            parts.append(f"expected {self.expected.rstrip('.')}")
        sentence = "; ".join(parts) + "."
        if self.do:
            sentence = f"{sentence} {self.do.rstrip('.')}."
        return visible(sentence, keep="\n")  # names and other libraries' words are in it

    def __reduce__(self) -> tuple:  # keyword-only arguments survive pickling between processes
        return _rebuild, (type(self), self.what, self.expected, self.do)


class NotApplicable(StudfinderError):
    """This measure or experiment has nothing to work on here: passed over, and printed."""


class Unavailable(StudfinderError):
    """A library, a file or a data set that this needs is not here."""


class WriteFailed(StudfinderError):
    """A result could not be written: a full disk, a folder without permission."""


class NoWorkers(StudfinderError):
    """Workers that were to share the work are lost, differ, or cannot be had."""


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc")
_FULL_DISK = ("no space left on device", "os error 28", "disk quota exceeded", "os error 122", "file too large")


def known(error: BaseException) -> StudfinderError | None:
    """What an exception of another library or of the system means in our words, where that needs no guessing: memory
    or the disk ended, a file ended early, a file may not be read. None for all else.

    Libraries raise these under many types (torch's allocator: RuntimeError; safetensors: its own), so texts are read.
    """
    if isinstance(error, StudfinderError):
        return error
    words = str(error).casefold()
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or getattr(error, "errno", None) == errno.ENOMEM
        or (isinstance(error, RuntimeError) and any(sign in words for sign in _NO_MEMORY))
    ):
        return StudfinderError(
            "there is not enough memory",
            do="Use a smaller model or a narrower dtype, as bfloat16; scan and measure also take --device-map auto",
        )
    if any(sign in words for sign in _FULL_DISK):
        at = getattr(error, "filename", None)
        return WriteFailed(f"the disk is full{f' ({at})' if at else ''}", do="Make room, and run the command again")
    if isinstance(error, EOFError):
        return StudfinderError(
            "a file that was read is empty, or ends before it should", do="Download or save it again"
        )
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return StudfinderError(f"{error.filename} cannot be read or written ({error.strerror})")
    return None


def in_a_line(error: BaseException) -> str:
    """The first line of what another library says: its exceptions are of many types and lengths."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


def _rebuild(kind: type[StudfinderError], what: str, expected: str | None, do: str | None) -> StudfinderError:
    return kind(what, expected=expected, do=do)


def unknown(what: str, name: object, known: Iterable[object]) -> StudfinderError:
    """There is nothing of a name: what is there, or what is called nearly so."""
    return StudfinderError(f"{what} {str(name)[:80]!r}", expected=near(name, known))


def near(name: object, known: Iterable[object]) -> str:
    """All of which it is the first part; else what is called nearly so; all that is there if nothing is."""
    names = [str(one) for one in known]
    begun = [one for one in names if name and one.startswith(f"{name}/")]  # the first part of it, as "super-weight"
    return (
        ", ".join(begun)
        or " or ".join(difflib.get_close_matches(str(name), names, n=3, cutoff=0.6))
        or ", ".join(names)
    )
