"""Settings as one record: its fields are the keywords in Python, the options of the command line and, but for those
that are marked, what a run's identity is made of.

    @dataclass(frozen=True, kw_only=True)
    class ScanConfig(Config):
        prove: bool = option(True, help="Test the candidates (minutes).")

    @takes(ScanConfig)
    def scan(lm: LM, config: ScanConfig) -> Findings: ...

    scan(lm, prove=False) == scan(lm, ScanConfig(prove=False))

`cli/faces.py` makes the options; `replaced` reads NAME=VALUE; `identity` gives the identity.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from studfinder.errors import StudfinderError, near, unknown
from studfinder.records.public import OneLine, fits_hint, hint_of, wrong

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field says beside its type and its default.

    Attributes:
        help: what it is, in a line.
        flag: its option, where that is not --its-name.
        otherwise: the default in words, where the value says nothing.
        least, most: of a number; above, below: the same without the end itself.
        commas: several in one text, with commas between.
        line: its type on the command line, where Python takes more; False: it is not there.
        identity: whether it is part of what a run is.
        gone: it was taken out, and is accepted only to be refused in words: --help leaves it out.
        late: it came after the others, so that it is part of it only where it is not the default: runs of before are
            found again.
    """

    help: str = ""
    flag: str = ""
    otherwise: str = ""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    commas: bool = False
    line: Any = True
    identity: bool = True
    gone: bool = False
    late: bool = False

    @property
    def bounds(self) -> str:
        """Between which numbers it lies, in words."""
        if self.most is not None:
            return f"{self.least or 0:g} to {self.most:g}"
        ends = ((self.least, "{:g} or more"), (self.above, "above {:g}"), (self.below, "below {:g}"))
        said = ((end, "finite" if end == float("inf") else words) for end, words in ends if end is not None)
        return " and ".join(words.format(end) for end, words in said)

    def holds(self, number: float) -> bool:
        """Whether it lies between them; NaN lies nowhere."""
        return (
            (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
            and (self.below is None or number < self.below)
        )


def option(default: Any = dataclasses.MISSING, **said: Any) -> Any:
    """A field of a config. See `Option` for what can be said of it; without a default it is required."""
    return field(default=default, metadata={"option": Option(**said)})


@dataclass(frozen=True)
class Setting:
    """A field of a config, as its type and its option describe it.

    Attributes:
        kind: of one value: bool, int, float, str or Path.
        choices: all that it can be, if not anything.
        many, optional: whether it takes several, or None.
        given, module: its annotation, and where that stands.
    """

    name: str
    default: Any
    option: Option
    kind: Any
    choices: tuple[Any, ...]
    many: bool
    optional: bool
    given: Any
    module: str

    @property
    def flag(self) -> str:
        """Its option on the command line."""
        return self.option.flag or "--" + self.name.replace("_", "-")

    @property
    def said(self) -> str:
        """What it is called in an error."""
        return f"{self.flag} " if self.option.help and self.option.line is not False else f"{self.name}="

    def checked(self, value: Any) -> Any:
        """A value as the config keeps it: several as a tuple. Raises StudfinderError for what it does not take."""
        if value is None and (self.optional or self.default is None):
            return None
        if value is None and self.option.line is False:
            return self.default
        if self.many and self.option.commas and isinstance(value, str):
            return self.parsed(value)
        if self.many:
            return tuple(map(self._one, self._several(value)))
        return self._one(value)

    def parsed(self, text: str) -> Any:
        """What a text says. Raises StudfinderError for what it does not take."""
        if self.optional and text.lower() == "none":
            return None
        parts = [part.strip() for part in text.split(",") if part.strip()] if self.many else [text]
        values = tuple(self._read(part) for part in parts)
        return self.checked(values if self.many else values[0])

    def _several(self, value: Any) -> Iterator[Any]:
        return iter(value if isinstance(value, list | tuple | set | frozenset | Iterator | range) else (value,))

    def _read(self, text: str) -> Any:
        try:
            if self.kind is bool:
                return {"true": True, "false": False}[text.lower()]
            if self.kind is float and self.many and text.lstrip("-").isdecimal():
                return int(text)
            return self.kind(text) if self.kind in (int, float, Path) else text
        except (ValueError, KeyError):
            raise self._refused(text) from None

    def _one(self, value: Any) -> Any:
        if self.option.line is not True:
            taken = hint_of(self.given, self.module)
            if not self.many and not fits_hint(taken, value):
                raise wrong(f"{self.name}=", value, taken)
            return value
        if self.choices:
            if value not in self.choices:
                expected = near(value, self.choices)
                raise StudfinderError(f"{self.name} {str(value)[:40]!r} is unknown", expected=expected)
            return value
        if self.kind is Path and isinstance(value, str | Path):
            return Path(value)
        if self.kind in (int, float):
            try:
                number = operator.index(value) if self.kind is int or isinstance(value, int) else float(value)
            except (TypeError, ValueError):
                raise self._refused(value) from None
            if isinstance(value, bool | str):
                raise self._refused(value)
            if not self.option.holds(number):
                raise self._refused(number, self.option.bounds)
            return number
        if self.kind in (bool, str, Path) and not isinstance(value, self.kind):
            raise self._refused(value)
        return value

    def _refused(self, value: Any, expected: str = "") -> StudfinderError:
        expected = expected or _WORDS.get(self.kind, "another value")
        return StudfinderError(f"{self.said}{str(value)[:40]}", expected=expected)


class Config(OneLine):
    """Base of all configs. Values are checked when one is made: choices, ranges and kinds of numbers, in one place."""

    def __post_init__(self) -> None:
        for setting in settings_of(self):
            object.__setattr__(self, setting.name, setting.checked(getattr(self, setting.name)))


@functools.cache
def described(kind: Any) -> tuple[Setting, ...]:
    """The fields of a config: its own first, then those of its bases."""
    fields = {one.name: one for one in dataclasses.fields(kind)}
    found: dict[str, Setting] = {}
    for base in kind.__mro__:
        for name, hint in vars(base).get("__annotations__", {}).items():
            if name in fields and name not in found:
                found[name] = _setting(fields[name], hint, base)
    return tuple(found.values())


def settings_of(config: Config) -> tuple[Setting, ...]:
    """The fields of this config, see `described`."""
    kind: Any = type(config)
    return described(kind)


def _setting(one: dataclasses.Field, hint: Any, base: type) -> Setting:
    said: Option = one.metadata.get("option", Option())
    given = hint
    if said.line is False:
        hint = Any
    elif said.line is not True:
        hint = said.line
    else:  # one by one: what only Python takes need not be imported here
        place = types.SimpleNamespace(__annotations__={one.name: hint})
        hint = get_type_hints(place, vars(sys.modules[base.__module__]))[one.name]
    optional = many = False
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        optional, hint = len(parts) < len(get_args(hint)), parts[0] if len(parts) == 1 else Any
    if get_origin(hint) in (list, tuple, Sequence):
        many, hint = True, get_args(hint)[0]
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else hint
    return Setting(one.name, one.default, said, kind, choices, many, optional, given, base.__module__)


def made(kind: Callable[..., Any], name: str, given: Sequence[Any], fields: Mapping[str, Any]) -> Any:
    """A config of what a verb was called with. Raises StudfinderError for a keyword that it has not."""
    known = [setting.name for setting in described(kind)]
    for one in fields:
        if one not in known:
            raise unknown(f"{name} has no keyword", one, known)
    try:
        return kind(*given, **fields)
    except TypeError as error:
        raise StudfinderError(f"{name}: {str(error).partition('__init__() ')[2] or error}") from None


_Settings = TypeVar("_Settings", bound=Config)
_Record = TypeVar("_Record")


def replaced(config: _Settings, changes: Mapping[str, Any], name: str = "the config") -> _Settings:
    """A config with some fields changed; None leaves a field, and text is read by the field's type.

    Raises:
        StudfinderError: it has no such field, or the field takes no such value.
    """
    given = {one: value for one, value in changes.items() if value is not None}
    return dataclasses.replace(config, **_read(settings_of(config), given, name))  # type: ignore[type-var]


def worded(kind: Callable[..., _Record], text: str, name: str) -> _Record:
    """A record of a line such as "kind=linear,pi_init=0.25". Raises as `replaced`, and what the record refuses."""
    pairs = (pair.partition("=") for pair in text.split(",") if pair)
    return kind(**_read(described(kind), {one: value for one, _, value in pairs}, name))


def _read(settings: Sequence[Setting], given: Mapping[str, Any], name: str) -> dict[str, Any]:
    known = {setting.name: setting for setting in settings}
    for one in given:
        if one not in known:
            raise unknown(f"{name} has no setting", one, known)
    return {one: known[one].parsed(v) if isinstance(v, str) else v for one, v in given.items()}


def identity(config: Config) -> dict[str, Any]:
    """The fields of a config that are part of what a run is."""
    values = ((one, getattr(config, one.name)) for one in settings_of(config) if one.option.identity)
    return {one.name: value for one, value in values if not one.option.late or value != one.default}


_Model = TypeVar("_Model", contravariant=True)
_Kind = TypeVar("_Kind", contravariant=True)
_Made = TypeVar("_Made", covariant=True)
_Fields = ParamSpec("_Fields")


class Verb(Protocol, Generic[_Model, _Kind, _Fields, _Made]):
    """A function of a model and a config, or of a model and the config's fields."""

    @overload
    def __call__(self, model: _Model, config: _Kind, /) -> _Made: ...
    @overload
    def __call__(self, model: _Model, /, *args: _Fields.args, **fields: _Fields.kwargs) -> _Made: ...


class Maker(Protocol, Generic[_Kind, _Fields, _Made]):
    """A function of a config, or of its fields."""

    @overload
    def __call__(self, config: _Kind, /) -> _Made: ...
    @overload
    def __call__(self, *args: _Fields.args, **fields: _Fields.kwargs) -> _Made: ...


def takes(
    kind: Callable[_Fields, _Record],
) -> Callable[[Callable[[_Model, _Record], _Made]], Verb[_Model, _Record, _Fields, _Made]]:
    """Lets a verb (model, config) be called with the config or with its fields as keywords."""
    return functools.partial(_taking, kind, 1)


def makes(kind: Callable[_Fields, _Record]) -> Callable[[Callable[[_Record], _Made]], Maker[_Record, _Fields, _Made]]:
    """As `takes`, for a verb without a model."""
    return functools.partial(_taking, kind, 0)


def _taking(kind: Any, models: int, verb: Callable[..., Any]) -> Any:
    @functools.wraps(verb)
    def called(*given: Any, **fields: Any) -> Any:
        lead, rest = given[:models], given[models:]
        config = fields.pop("config", None)
        if rest and isinstance(rest[0], kind):
            config, rest = rest[0], rest[1:]
        if config is None:
            config = made(kind, verb.__name__, rest, fields)
        elif rest or fields:
            raise StudfinderError(
                f"{verb.__name__} with a config and {', '.join(fields) or 'more'}", expected="one of them"
            )
        return verb(*lead, config)

    called.__doc__ = (
        inspect.cleandoc(verb.__doc__ or "")
        + f"\n\nKeywords, the fields of a `{kind.__name__}`:\n"
        + "".join(f"    {one.name}: {one.option.help}\n" for one in described(kind))
    )
    own = list(inspect.signature(verb).parameters.values())[:models]
    called.__signature__ = inspect.Signature([*own, *inspect.signature(kind).parameters.values()])  # type: ignore[attr-defined]
    return called
