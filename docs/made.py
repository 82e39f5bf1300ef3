"""What the site shows that is made from the package itself: the command line from its parser, the lists of public names
from `__all__`, the drawing of the house from its imports. `conf.py` calls `write` at every build."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import typer

import studfinder
from studfinder.cli.app import app
from studfinder.report.glossary import glossary

ROOT = Path(studfinder.__file__).parent
NAMESPACES = ("edits", "keep", "measures", "attention", "quantizers", "training")
ROOMS = ("records", "models", "sites", "passes", "texts", "errors")


def write(folder: Path) -> None:
    """All pages and the drawing, below `folder`."""
    for name, text in {**command_pages(), **name_pages(), "glossary.md": words(), "changes.md": changes()}.items():
        _put(folder / name, text)
    _put(folder / "house.svg", drawing())


def _put(file: Path, text: str) -> None:
    """Files that stay as they were keep their time, so that the next build does not read them again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file() or file.read_text("utf-8") != text:
        file.write_text(text, encoding="utf-8")


def changes() -> str:
    """The changelog, each of its parts folded."""
    text = (Path(__file__).parents[1] / "CHANGELOG.md").read_text("utf-8")
    head, *parts = re.split(r"(?m)^### ", text.partition("\n")[2])
    folded = []
    for part in parts:
        title, _, body = part.partition("\n")
        body, version, behind = body.partition("\n## ")  # the next version begins behind the last part of this one
        folded.append(f"::::{{dropdown}} {title}\n{body.strip()}\n::::\n" + (version + behind).strip())
    return "\n".join([head.strip(), "", *folded])


# --- the command line ---------------------------------------------------------------------------------------------


def commands(group: Any = None, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every verb of the program with its words: ("recipe", "write")."""
    for name, one in (group or typer.main.get_command(app)).commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, (*above, name))
        else:
            yield (*above, name), one


def command_pages() -> dict[str, str]:
    """One page a verb."""
    return {f"cli/{'-'.join(words)}.md": _command_page(words, one) for words, one in commands()}


def _command_page(words: tuple[str, ...], command: Any) -> str:
    name = " ".join(("studfinder", *words))
    context = command.make_context(name, [], resilient_parsing=True)
    rows = [one.get_help_record(context) for one in command.get_params(context)]
    cells = [(_cell(f"`{row[0]}`"), _cell(_plain(row[1]))) for row in rows if row]
    examples = dedent((command.epilog or "").replace("\b", "").removeprefix("Examples:").strip("\n"))
    return "\n".join(
        [
            f"# {name}\n\n{_plain(command.help or '')}\n",
            f"```text\n{command.get_usage(context)}\n```\n",
            "| option | meaning |\n| --- | --- |",
            *(f"| {option} | {meaning} |" for option, meaning in cells),
            *([f"\n## Examples\n\n```text\n{examples}\n```"] if examples else []),
            "",
        ]
    )


def _plain(text: str) -> str:
    """Help is written for terminals: no sign in it is markup."""
    return "".join(f"\\{sign}" if sign in "\\`*_<>[]$" else sign for sign in text)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def words() -> str:
    """What the words mean that reports and the site's own pages use, from the list that reports have."""
    text = "\n".join(file.read_text("utf-8") for file in sorted(Path(__file__).parent.glob("*.md")))
    return "".join(f"{word}\n: {meaning}\n\n" for word, meaning in glossary(text))


# --- public names -------------------------------------------------------------------------------------------------


def name_pages() -> dict[str, str]:
    """A list of names for each namespace, and a page for each name. What several namespaces show has one page."""
    pages, seen = {}, set()
    for namespace in ("", *NAMESPACES, *ROOMS):
        module = _namespace(namespace)
        shown = {name: getattr(module, name) for name in _shown(module) if name not in NAMESPACES}
        new = {name: value for name, value in shown.items() if _home(value) not in seen}
        seen |= {_home(value) for value in new.values()} - {None}
        pages[f"api/{module.__name__}.rst"] = _list_page(module, sorted(new))
        pages |= {f"api/{module.__name__}.{name}.rst": _name_page(module, name, new[name]) for name in new}
    return pages


def _namespace(name: str) -> Any:
    return getattr(studfinder, name) if name in NAMESPACES else import_module(f"studfinder.{name}".rstrip("."))


def _shown(module: Any) -> list[str]:
    classes = [name for name, value in vars(module).items() if isinstance(value, type)]  # errors.py has no __all__
    return [name for name in getattr(module, "__all__", classes) if not name.startswith("_")]


def _home(value: Any) -> tuple[str, str] | None:
    """Where a function or class is defined."""
    return (value.__module__, value.__qualname__) if hasattr(value, "__qualname__") else None


def _list_page(module: Any, names: list[str]) -> str:
    said = literal((module.__doc__ or "").strip().split("\n\n")[0])
    lines = [_title(module.__name__), said, "", f".. currentmodule:: {module.__name__}", "", ".. autosummary::", ""]
    return "\n".join([*lines, *(f"   {name}" for name in names), ""])


def _name_page(module: Any, name: str, value: Any) -> str:
    kind = "class" if isinstance(value, type) else "function" if callable(value) else "data"
    kind = "exception" if kind == "class" and issubclass(value, BaseException) else kind
    options = "   :members:\n" if kind == "class" else "   :no-value:\n" if kind == "data" else ""
    where = f"Public in :doc:`{module.__name__}`."
    return f"{_title(name)}\n.. currentmodule:: {module.__name__}\n\n.. auto{kind}:: {name}\n{options}\n{where}\n"


def _title(words: str) -> str:
    return f"{words}\n{'=' * len(words)}\n"


def said_of(constant: str) -> list[str]:
    """What stands under a constant where it is defined, in lines."""
    module, _, name = constant.rpartition(".")
    tree = _parsed(module)
    homes = [one.module for one in tree.body if isinstance(one, ast.ImportFrom) and name in {n.name for n in one.names}]
    body = _parsed(homes[0] or "").body if homes else tree.body
    for one, after in pairwise(body):
        targets = one.targets if isinstance(one, ast.Assign) else [one.target] if isinstance(one, ast.AnnAssign) else []
        if name in {getattr(target, "id", None) for target in targets} and isinstance(after, ast.Expr):
            return cleandoc(str(getattr(after.value, "value", ""))).splitlines()
    return []


def _parsed(module: str) -> ast.Module:
    return ast.parse(Path(import_module(module).__file__ or "").read_text("utf-8"))


def literal(line: str) -> str:
    """A line of a docstring, in which only backticks are markup: what reStructuredText takes for more is escaped."""
    parts = line.split("`")
    bullet = re.match(r"\s*\* ", line)
    parts[::2] = [re.sub(r"[*|]|_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]
    done = "`".join(parts)
    return done.replace("\\*", "*", 1) if bullet else done


# --- the house ----------------------------------------------------------------------------------------------------


def rows() -> list[list[str]]:
    """The rooms from the top, as import-linter is told."""
    settings = tomllib.loads((ROOT.parent.parent / "pyproject.toml").read_text("utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [row.split(" | ") for row in layers]


def imports() -> dict[str, set[str]]:
    """Room -> the rooms it imports from, anywhere in its files."""
    rooms = {room for row in rows() for room in row}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for file in ROOT.rglob("*.py"):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            whole = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            whole += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            found.get(room, set()).update({name.split(".")[1] for name in whole if name.startswith("studfinder.")})
    return {room: (others & rooms) - {room} for room, others in found.items()}


def drawing() -> str:
    """The rooms in their rows, and a line from each to those it imports that no other of its imports leads to."""
    wide, high, gap, across = 132, 34, 34, 900
    place = {}
    for down, row in enumerate(rows()):
        step = across / len(row)
        place |= {room: (step * (at + 0.5), 24 + down * (high + gap)) for at, room in enumerate(row)}
    uses = imports()
    lines = []
    for room, others in uses.items():
        for other in others - {far for near in others for far in _reached(uses, near)}:
            (x0, y0), (x1, y1) = place[room], place[other]
            lines.append(
                f'<path d="M{x0:.0f} {y0 + high:.0f} C{x0:.0f} {y0 + high + 28:.0f} '
                f'{x1:.0f} {y1 - 28:.0f} {x1:.0f} {y1:.0f}"/>'
            )
    boxes = [
        f'<g><rect x="{x - wide / 2:.0f}" y="{y:.0f}" width="{wide}" height="{high}" rx="6"/>'
        f'<text x="{x:.0f}" y="{y + 22:.0f}">{room}</text></g>'
        for room, (x, y) in place.items()
    ]
    tall = max(y for _, y in place.values()) + high + 24
    style = (
        "path{fill:none;stroke:#7a8ca5;stroke-width:1.3}rect{fill:#eef3fa;stroke:#3d5a80}"
        "text{font:15px system-ui,sans-serif;text-anchor:middle;fill:#1b2733}"
    )
    return "\n".join(
        [
            '<svg xmlns="http://www.w3.org/2000/svg" '
            f'viewBox="0 0 {across} {tall:.0f}" role="img" aria-label="the rooms">',
            f"<style>{style}</style>",
            f'<rect x="0" y="0" width="{across}" height="{tall:.0f}" style="fill:#fff;stroke:none"/>',
            *sorted(lines),
            *boxes,
            "</svg>\n",
        ]
    )


def _reached(uses: dict[str, set[str]], room: str) -> set[str]:
    """The rooms below one, however many steps away."""
    return {far for near in uses[room] for far in {near} | _reached(uses, near)}
