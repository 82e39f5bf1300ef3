"""Axes in names are checked: what is called `query_BHTD` has four axes, and the same letter is the same size in a call.

A loader decorates every function of the package that names axes (in a parameter, or in its own name for what it
returns) as its module is imported; nested functions and methods too. Only tensors and arrays are looked at.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, FunctionType
from typing import Any

import torch
from beartype.door import is_bearable
from jaxtyping import Shaped, jaxtyped

_AXES = re.compile(r"_([A-Z]{1,6})$")
_NAMED = re.compile(r"\b[a-z]\w*_[A-Z]{1,6}\b")


def axes_of(name: str) -> str:
    """The axes that a name ends with, e.g. "B H T D"; empty if it names none."""
    found = _AXES.search(name)
    broadcast = "#" if name.startswith("mask") else ""  # a mask may be the same for all sequences, heads or tokens
    return " ".join(broadcast + axis for axis in found[1]) if found else ""


def checked(function: FunctionType) -> Any:
    """The function, with the axes of its arguments and of what it returns checked at each call."""
    code, own = function.__code__, axes_of(function.__name__)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    places = [*range(code.co_argcount), *[sys.maxsize] * code.co_kwonlyargcount]
    named = [(place, name, axes) for place, name in zip(places, names, strict=True) if (axes := axes_of(name))]

    @functools.wraps(function)
    def called(*given: Any, **options: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*given, **options)
        with jaxtyped("context"):
            for place, name, axes in named:
                _check(given[place] if place < len(given) else options.get(name), axes, code, name)
            found = function(*given, **options)
            if own:
                _check(found, own, code, "what it returns")
        return found

    return called


def _check(value: Any, axes: str, code: CodeType, name: str) -> None:
    if hasattr(value, "shape") and hasattr(value, "dtype") and not is_bearable(value, _kind(type(value), axes)):
        where = f"{code.co_filename}:{code.co_firstlineno}: {code.co_qualname}"
        raise AssertionError(f"{where}: {name} has the shape {tuple(value.shape)}, not ({axes}) as before it")


@functools.cache
def _kind(kind: type, axes: str) -> Any:
    return Shaped[kind, axes]


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        text = self.get_data(self.path).decode()
        return self.source_to_code(text, self.path) if _NAMED.search(text) else super().get_code(fullname)

    def source_to_code(self, data: Any, path: Any, **options: Any) -> CodeType:  # type: ignore[override]
        tree = ast.parse(data, path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if any(axes_of(name) for name in (node.name, *(each.arg for each in given))):
                    where = ast.parse('__import__("axes").checked', mode="eval").body
                    node.decorator_list.append(ast.copy_location(where, node))  # the innermost: others see it checked
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class _Finder(PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        spec = super().find_spec(fullname, path, target) if fullname.startswith("studfinder.") else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From now on, modules of the package are checked as they are imported."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
