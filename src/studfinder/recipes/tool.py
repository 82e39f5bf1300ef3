"""What all writers share: the header, the usual format, and whether a tool has a format at all."""

from __future__ import annotations

from studfinder import __version__
from studfinder.errors import StudfinderError
from studfinder.records import UNTOUCHED, Format, Recipe, format_named


def header(recipe: Recipe) -> dict[str, str]:
    """Which model, what decided, and who wrote it."""
    said = {
        "made by": f"studfinder {__version__}",
        "model": recipe.model.id,
        "weights": recipe.model.content_hash,
        "decided by": recipe.decided,
    }
    return {**said, "from": recipe.origin} if recipe.origin else said


def comments(recipe: Recipe, *more: str) -> str:
    """The header as lines that begin with #."""
    lines = [f"{name}: {value}" for name, value in header(recipe).items()]
    return "".join(f"# {' '.join(line.split())}\n" for line in (*lines, *more))


def usual(recipe: Recipe) -> str:
    """The format that most matrices have, of those that are quantised.

    Raises:
        StudfinderError: nothing is quantised.
    """
    counts = {name: len(members) for name, members in recipe.by_format() if name != UNTOUCHED}
    if not counts:
        raise StudfinderError("the recipe quantises nothing", expected="at least one group in fewer than 16 bits")
    return max(counts, key=lambda name: counts[name])


def of_integers(name: str, tool: str) -> Format:
    """A format of integers in groups, rows or whole matrices, without rounded inputs; what most tools can store.

    Raises:
        StudfinderError: it is another.
    """
    found = format_named(name)
    scheme = found.weights
    if scheme is None or found.inputs is not None or not scheme.integer or isinstance(scheme.block, tuple):
        raise no_place(name, tool, "integers by group or channel, as int4-g64-zero")
    return found


def no_place(name: str, tool: str, expected: str) -> StudfinderError:
    """A tool has no such format."""
    return StudfinderError(f"{tool} has no place for {name}", expected=expected, do="Choose another format or tool")
