# ruff: noqa: E501
"""Ways to damage a file: bits, bytes, cuts and splices; and, where it is JSON, its values, keys and numbers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"),
    "", "x", "\0", "\x1b[31m", "\ud800", "²", "../../x", "/etc/passwd", "a" * 300, [], {}, [[]], [None], {"": None}, [1, "x", None],
]  # fmt: skip
_BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"\n",
    b"\x1a",
    b'"',
    b"{",
    b"}",
    b"[" * 50,
    b"\xef\xbb\xbf",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"\xed\xa0\x80",
    b"\\u0000",
]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The content, damaged in one of the ways, now and then in two."""
    for _ in range(1 if rng.random() < 0.85 else 2):
        content = rng.choice([_bits, _cut, _splice, _insert, _json, _json, _json])(content, rng)
    return content


def _bits(content: bytes, rng: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if made:
            made[_place(made, rng)] ^= 1 << rng.randrange(8)
    return bytes(made)


def _place(content: Any, rng: random.Random) -> int:
    # Headers lie at the beginning: half of the damage goes there.
    return rng.randrange(min(len(content), 400) if rng.random() < 0.5 else len(content))


def _cut(content: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(content) + 1)
    return rng.choice([content[:at], content[at:], content + content[:at]])


def _splice(content: bytes, rng: random.Random) -> bytes:
    if len(content) < 2:
        return content * 2
    a, b, c = _place(content, rng), _place(content, rng), rng.randrange(1, 64)
    return content[:a] + content[b : b + c] + content[a + rng.choice([0, c]) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    at = _place(content, rng) if content else 0
    return content[:at] + rng.choice(_BYTES) + content[at + rng.choice([0, 1, 4]) :]


def _json(content: bytes, rng: random.Random) -> bytes:
    """One value of the JSON in it: the whole, a line, or a safetensors header."""
    start, end = 0, len(content)
    length = int.from_bytes(content[:8], "little")
    header = content[8:9] == b"{" and 8 + length <= len(content)
    if header:
        start, end = 8, 8 + length
    else:
        lines = content.split(b"\n")
        if len(lines) > 2 and content[:1] == b"{" and lines[1][:1] == b"{":
            number = rng.randrange(len([line for line in lines if line]))
            start = sum(len(line) + 1 for line in lines[:number])
            end = start + len(lines[number])
    try:
        value = json.loads(content[start:end])
        text = _changed(value, rng)
    except (ValueError, RecursionError):
        return _splice(content, rng)
    made = text.encode("utf-8", "surrogatepass")
    return (len(made).to_bytes(8, "little") if header else content[:start]) + made + content[end:]


def _changed(value: Any, rng: random.Random) -> str:
    places: list[tuple[Any, Any]] = []

    def walk(inside: Any) -> None:
        if len(places) > 3000:
            return
        for key, item in (
            inside.items() if isinstance(inside, dict) else enumerate(inside) if isinstance(inside, list) else ()
        ):
            places.append((inside, key))
            walk(item)

    walk(value)
    if not places or rng.random() < 0.02:
        return rng.choice([json.dumps(rng.choice(_VALUES)), "[" * 100_000, '{"a":' * 100_000])
    inside, key = rng.choice(places)
    old = inside[key]
    what = rng.randrange(6)
    if what == 0 and isinstance(inside, dict):
        del inside[key]
    elif what == 1 and isinstance(inside, dict):
        inside[rng.choice(["", "x", "format", "\0", "a" * 300])] = inside.pop(key)
    elif what == 2 and isinstance(inside, dict):  # the key twice
        text = json.dumps(value)
        return text.replace(
            f"{json.dumps(key)}:", f"{json.dumps(key)}: {json.dumps(rng.choice(_VALUES))}, {json.dumps(key)}:", 1
        )
    elif what == 3:
        inside[key] = [old] if rng.random() < 0.5 else {"x": old}
    elif what == 4 and isinstance(old, int | float):
        inside[key] = rng.choice([-old, old + 1, old - 1, old * 1000, old * 10**9, old / 2, str(old), 0])
    else:
        inside[key] = rng.choice(_VALUES)
    return json.dumps(value)


Mutation = Callable[[bytes, random.Random], bytes]
