"""One exception type for a user's mistake: what was wrong, what was expected, what to do."""

from __future__ import annotations


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
        return f"{sentence} {self.do.rstrip('.')}." if self.do else sentence

    def __reduce__(self) -> tuple:  # keyword-only arguments survive pickling between processes
        return _rebuild, (self.what, self.expected, self.do)


def _rebuild(what: str, expected: str | None, do: str | None) -> StudfinderError:
    return StudfinderError(what, expected=expected, do=do)
