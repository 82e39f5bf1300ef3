"""Records to JSON and back: format and version are checked, inf and NaN survive."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from studfinder.errors import StudfinderError
from studfinder.records.outside import parse_json, read_text

Record = TypeVar("Record")


_ADAPTERS: dict[type, TypeAdapter] = {}


def _adapter(kind: Any) -> TypeAdapter:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = _make_adapter(kind)
    return _ADAPTERS[kind]


def _make_adapter(kind: Any) -> TypeAdapter:
    # "strings" writes inf and nan as "Infinity" and "NaN", which every JSON reader accepts
    # and which pydantic reads back into floats.
    kind.__pydantic_config__ = ConfigDict(ser_json_inf_nan="strings", extra="forbid")
    return TypeAdapter(kind)


def schema(kind: type) -> dict[str, Any]:
    """The JSON Schema of a record, as published in docs/schema/."""
    return _adapter(kind).json_schema()


def to_plain(record: Any) -> Any:
    """A record as dicts, lists and numbers that `json.dumps` takes as they are."""
    return json.loads(to_json(record))


def to_json(record: Any, indent: int | None = None) -> str:
    """A record as JSON text."""
    return _adapter(type(record)).dump_json(record, indent=indent).decode()


def from_json(kind: type[Record], text: str | bytes, *, name: str = "this text") -> Record:
    """Read a record back.

    Args:
        kind: the record's dataclass. If it has `format` and `version` fields they must match its defaults; a version
            in its `EARLIER` is read too, as one whose later fields have their defaults.
        text: JSON.
        name: what to call the text in an error.

    Raises:
        StudfinderError: not JSON, another format, an unknown version, or missing or unknown fields.
    """
    plain = parse_json(text, object, name=name)
    expected = {f.name: (f.default,) for f in dataclasses.fields(kind) if f.name in ("format", "version")}  # type: ignore[arg-type]
    for field, values in expected.items():
        if field == "version":
            values = (*getattr(kind, "EARLIER", ()), *values)
        found = plain.get(field) if isinstance(plain, dict) else None
        if found not in values or isinstance(found, bool):  # true is no version 1
            raise StudfinderError(
                f"{name} has {field} {found!r}",
                expected=" or ".join(map(repr, values)),
                do="Read it with the studfinder version that wrote it, or make it again",
            )
        plain = {**plain, field: values[-1]}
    try:
        return _adapter(kind).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        at = f" at {where!r}" if where else ""
        raise StudfinderError(f"{name} does not fit its format{at}: {first['msg']}") from None


def read_record(kind: type[Record], path: Path) -> Record:
    """Read a record from a file. Raises StudfinderError where `from_json` does, or if there is no such file."""
    return from_json(kind, read_text(path).removeprefix("\ufeff"), name=str(path))
