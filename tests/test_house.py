"""The house from its syntax trees: no circle of imports, and one meaning to a public name."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import fnmatchcase
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


PROTOCOLS = {
    **dict.fromkeys(("EXPERIMENT", "run", "across"), ("experiments.*",)),
    **dict.fromkeys(("command", "EXAMPLES"), ("cli.*",)),
    **dict.fromkeys(("applies", "describe"), ("report.figures", "report.figures.*")),
    "draw": ("experiments.*", "report.figures", "report.figures.*"),
    "attend": ("attention.*.naive",),
    **dict.fromkeys(("TOOL", "FILE", "USE", "write", "spelled", "owns", "rules"), ("recipes.*",)),
}
"""What every file of a kind has under the same name, and which files: entries of a registry, and specifications."""


def defined(body: list[ast.stmt]) -> Iterator[str]:
    """The public names that a module's own statements bind: functions, classes, constants and aliases."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found = [item for target in targets for item in getattr(target, "elts", [target])]
            names = [item.id for item in found if isinstance(item, ast.Name)]
        else:  # an if or a try may bind names as well
            names = [name for part in ("body", "orelse", "handlers") for name in defined(getattr(node, part, []))]
        yield from (name for name in names if not name.startswith("_"))


def test_a_public_name_has_one_meaning():
    """No public name is defined in two modules, but for what every file of a kind has."""
    places = defaultdict(set)
    for module, tree in trees().items():
        for name in defined(tree.body):
            shared = any(fnmatchcase(module, f"studfinder.{kind}") for kind in PROTOCOLS.get(name, ()))
            places[name].add("a protocol" if shared else module)
    twice = [f"{name}: {', '.join(sorted(modules))}" for name, modules in sorted(places.items()) if len(modules) > 1]
    assert not twice, "public names with two meanings; rename one, or begin it with an underscore:\n" + "\n".join(twice)
