"""What can go wrong, in one line: what was wrong, what was expected, what to do.

`StudfinderError` itself is a user's mistake. The kinds below tell apart what is nobody's mistake: only `NotApplicable`
may be passed over (and is printed); the others end the run.
"""

from __future__ import annotations

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


def _rebuild(kind: type[StudfinderError], what: str, expected: str | None, do: str | None) -> StudfinderError:
    return kind(what, expected=expected, do=do)
