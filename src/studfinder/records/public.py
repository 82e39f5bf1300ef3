"""What a room shows to strangers: its functions refuse wrong types in one line, its records print as one line."""

from __future__ import annotations

import builtins
import dataclasses
import functools
import hashlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from studfinder.errors import StudfinderError

_Function = TypeVar("_Function", bound=Callable[..., Any])
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    **dict.fromkeys((Path, os.PathLike), "a path"),
    **dict.fromkeys((Sequence, Iterable, tuple), "a list"),
    Callable: "a function",
}
_FROM = {
    "LM": "sf.load(...) gives an LM",
    "Method": "sf.quantizers has RTN(...), GPTQ(...) and others",
    "Findings": "sf.scan(...) gives findings, and sf.read(path) reads them",
}


def public(room: dict[str, Any]) -> None:
    """Called once at the end of a room, with its `globals()`; what is in its `__all__` is public."""
    for name in room["__all__"]:
        one = room[name]
        if isinstance(one, types.FunctionType):
            room[name] = checked(one)
        elif isinstance(one, type):
            if isinstance(vars(one).get("__init__"), types.FunctionType):
                setattr(one, "__init__", checked(one.__init__, name))  # type: ignore[misc]  # noqa: B010
            if dataclasses.is_dataclass(one) and not issubclass(one, OneLine):
                one.__repr__ = one_line  # type: ignore[method-assign]


class OneLine:
    """Base of records that print as `one_line`, unless they say it in their own words."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "__repr__" not in vars(cls):
            cls.__repr__ = one_line  # type: ignore[method-assign]


def one_line(record: Any) -> str:
    """A record in one line: what differs from the defaults, and of what is long only its size and a hash, so that
    different records never look alike."""
    said = []
    for one in dataclasses.fields(record):
        value = getattr(record, one.name)
        default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        text = repr(value)
        if text != repr(default):
            if len(text) > 80:
                size = f"{len(value):,} in " if isinstance(value, Sized) else ""
                text = f"<{size}{type(value).__name__} {hashlib.sha256(text.encode()).hexdigest()[:8]}>"
            said.append(f"{one.name}={text}")
    return f"{type(record).__name__}({', '.join(said)})"


def checked(function: _Function, name: str = "") -> _Function:
    """The function, which refuses what its annotations do not take.

    Python itself says which arguments are missing or too many.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def called(*given: Any, **named: Any) -> Any:
        if not hints:
            module = function.__module__
            hints.update({one.name: hint_of(one.annotation, module) for one in signature.parameters.values()})
        for parameter, value in signature.bind(*given, **named).arguments.items():
            kind = signature.parameters[parameter].kind
            several = value if kind is inspect.Parameter.VAR_POSITIONAL else (value,)
            for one in () if kind is inspect.Parameter.VAR_KEYWORD else several:
                if not fits_hint(hints[parameter], one):
                    raise wrong(f"{name or function.__name__}: {parameter}", one, hints[parameter])
        return function(*given, **named)

    return called  # type: ignore[return-value]


class _Names(dict):
    """What annotations name and their module imports for type checkers only: a public name has one meaning, and what
    no room has loaded has no instances either."""

    def __init__(self, module: str) -> None:
        super().__init__()
        self.known = {**vars(builtins), **vars(sys.modules[module])}

    def __missing__(self, name: str) -> Any:
        if name in self.known:
            return self.known[name]
        rooms = [module for place, module in list(sys.modules.items()) if place.startswith("studfinder.")]
        found = [vars(room)[name] for room in rooms if name in vars(room)]
        ours = (one for one in found if str(getattr(one, "__module__", "")).startswith("studfinder."))
        return next(ours, found[0] if found else Any)  # a library may have another thing of this name


def hint_of(annotation: Any, module: str) -> Any:
    """The type that a module's annotation stands for, as far as it is known by now."""
    if annotation is inspect.Parameter.empty:
        return Any
    return eval(annotation, {}, _Names(module)) if isinstance(annotation, str) else annotation


def fits_hint(hint: Any, value: Any) -> bool:
    """Whether a value is of the type, as far as that can be seen without going through all of it."""
    hint = _bound(hint)
    if hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        nested = any(isinstance(one, str) for part in inner for one in get_args(part))
        return nested or any(fits_hint(one, value) for one in inner)  # what holds its like the function itself walks
    if hint is None or hint is types.NoneType:
        return value is None
    if origin is Literal:
        return any(type(value) is type(one) for one in inner)  # which of them is the function's own to say
    if hint in (int, float):
        method = "__index__" if hint is int else "__float__"
        return (hasattr(value, method) and not isinstance(value, bool)) or (hint is float and fits_hint(int, value))
    if isinstance(value, str | bytes) and isinstance(origin, type) and issubclass(origin, Iterable):
        return False  # one where several are meant
    if origin in (Sequence, Iterable, tuple):
        if isinstance(value, Mapping) or not hasattr(value, "__iter__" if origin is Iterable else "__getitem__"):
            return False
        alike = isinstance(value, list | tuple) and (origin is not tuple or inner[-1] is ...)
        return not alike or all(fits_hint(inner[0], one) for one in value[:20])
    kind = origin or hint
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol that cannot be asked
        return True


def wrong(what: str, value: Any, hint: Any) -> StudfinderError:
    """What was given, and what is taken."""
    plain = value is None or isinstance(value, bool | int | float | str | os.PathLike)
    shown = repr(value)[:60] if plain else f"of the type {type(value).__name__}"
    words = _words(hint)
    do = next((said for name, said in _FROM.items() if name in words), None)
    return StudfinderError(f"{what} is {shown}", expected=" or ".join(words), do=do)


def _bound(hint: Any) -> Any:
    hint = (hint.__bound__ or Any) if isinstance(hint, TypeVar) else hint
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _words(hint: Any) -> list[str]:
    hint = _bound(hint)
    inner = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return list(dict.fromkeys(word for one in inner for word in _words(one)))
    if get_origin(hint) is Literal:
        return list(map(repr, inner))
    if (origin := get_origin(hint)) is not None:
        of = f" of {' or '.join(_words(inner[0]))}" if origin in (Sequence, Iterable, tuple) and inner else ""
        return [_WORDS.get(origin, f"a {origin.__name__.lower()}") + of]
    if hint is None or hint is types.NoneType:
        return ["None"]
    if str(getattr(hint, "__module__", "")).startswith("studfinder.") and (kinds := hint.__subclasses__()):
        return [f"{one.__name__}(...)" for one in kinds]
    return [_WORDS.get(hint, getattr(hint, "__name__", str(hint)))]
