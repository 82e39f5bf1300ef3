"""The house from its syntax trees: no circle of imports, and one meaning to a public name."""

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import studfinder

HOME = Path(studfinder.__file__).parent


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name (a folder's `__init__` by the folder's)."""
    found = {}
    for file in sorted(HOME.rglob("*.py")):
        parts = ("studfinder", *file.relative_to(HOME).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = ast.parse(file.read_text(encoding="utf-8"))
    return found


def imported(module: str) -> Iterator[str]:
    """The modules that `module` imports anywhere: inside functions and under TYPE_CHECKING too.

    `from folder import name` means the module `folder.name` where there is one, else the folder's own `__init__`.
    """
    for node in ast.walk(trees()[module]):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by dots; write the whole name"
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for base, name in names:
            target = f"{base}.{name}" if f"{base}.{name}" in trees() else base
            if target in trees() and target != module:
                yield target


def test_no_circle_of_imports():
    """A module never reaches itself through what it imports; a circle hides which of two modules stands on which.

    `TopologicalSorter` names the modules of a circle in its error.
    """
    graph = {module: set(imported(module)) for module in trees()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError("modules import each other in a circle: " + " <- ".join(error.args[1])) from None
