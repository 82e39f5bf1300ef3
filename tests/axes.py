"""Axes in names are checked: what is called `query_BHTD` has four axes, and the same letter is the same size in a call.

A loader wraps every function of the package that names axes (in a parameter, or in its own name for what it returns) as
its module is imported. Only tensors and arrays are looked at; None and lists of them pass.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any

from beartype.door import die_if_unbearable
from jaxtyping import Shaped, jaxtyped

_AXES = re.compile(r"_([BTSHGDCFVRLKNEWPQIXM]{1,6})$")


def axes_of(name: str) -> str | None:
    """The axes that a name ends with, e.g. "B H T D"."""
    found = _AXES.search(name)
    if found is None:
        return None
    broadcast = "#" if name.startswith("mask") else ""  # a mask may be the same for all sequences, heads or tokens
    return " ".join(broadcast + axis for axis in found[1])


def checked(function: FunctionType) -> Any:
    """The function, with the axes of its arguments and of what it returns checked at each call; itself if it names
    none."""
    signature = inspect.signature(function)
    named = {name: axes for name in signature.parameters if (axes := axes_of(name))}
    own = axes_of(function.__name__)
    if not named and not own:
        return function

    @functools.wraps(function)
    def called(*given: Any, **options: Any) -> Any:
        with jaxtyped("context"):
            arguments = signature.bind(*given, **options).arguments
            for name, axes in named.items():
                _check(arguments.get(name), axes)
            found = function(*given, **options)
            if own:
                _check(found, own)
        return found

    return called


def _check(value: Any, axes: str) -> None:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        die_if_unbearable(value, Shaped[type(value), axes])


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _wrap(module, module.__name__)


def _wrap(holder: Any, module: str) -> None:
    for name, value in list(vars(holder).items()):
        if inspect.isfunction(value) and value.__module__ == module:
            if checked(value) is not value:
                setattr(holder, name, checked(value))
        elif inspect.isclass(value) and value.__module__ == module and value is not holder:
            _wrap(value, module)


class _Finder(PathFinder):
    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith("studfinder."):
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """From now on, modules of the package are checked as they are imported."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
