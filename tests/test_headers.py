"""The reader of safetensors headers accepts nothing that safetensors refuses, and reads as that does."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from studfinder.errors import StudfinderError
from studfinder.models.headers import DTYPES, read_header

HUGE = (-1, -0.0, 0, 1, 7, 8, 1 << 31, 1 << 32, (1 << 53) + 1, (1 << 62) + 1, (1 << 63), (1 << 64) - 1, 1 << 64, 10**40)
ODD_TYPES = ("F4", "F6_E2M3", "F6_E3M2", "f32", "F128", "I128", "F32 ")
ODD = (None, True, False, 1.0, 1e3, "", "F32", [], {}, [[]], "0", [0, 0, 0], float("nan"))


def good(draw: random.Random) -> tuple[dict, bytes]:
    """A sound header and the bytes behind it."""
    tensors: dict = {}
    at = 0
    for number in range(draw.randrange(0, 5)):
        kind = draw.choice(sorted(DTYPES))
        shape = [draw.randrange(0, 4) for _ in range(draw.randrange(0, 4))]
        size = DTYPES[kind].itemsize
        for axis in shape:
            size *= axis
        tensors[f"layer.{number}.weight"] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    if draw.random() < 0.5:
        tensors = {"__metadata__": {"format": "pt"}, **tensors}
    return tensors, bytes(draw.randrange(256) for _ in range(at))


def packed(text: bytes, data: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def _offsets(draw: random.Random, header: dict, data: bytes) -> bytes:
    names = [name for name in header if name != "__metadata__"]
    for name in draw.sample(names, min(len(names), draw.choice((1, 1, 2)))):
        begin, end = header[name]["data_offsets"]
        other = header[draw.choice(names)]["data_offsets"]
        header[name]["data_offsets"] = draw.choice(
            [
                [end, begin],
                [begin + 1, end + 1],
                [begin - 1, end],
                [-begin, -end],
                other,
                [begin, end + draw.choice((1, 4, 8))],
                [0, end],
                [begin],
                [begin, end, end],
                [draw.choice(HUGE), draw.choice(HUGE)],
                draw.choice(ODD),
            ]
        )
    return packed(json.dumps(header).encode(), data)


def _shapes(draw: random.Random, header: dict, data: bytes) -> bytes:
    for name in header:
        if name != "__metadata__" and draw.random() < 0.5:
            shape = header[name]["shape"]
            header[name]["shape"] = draw.choice(
                [
                    [*shape, draw.choice(HUGE)],
                    [draw.choice(HUGE), draw.choice(HUGE)],
                    shape[::-1],
                    [1] * draw.choice((1, 64, 65, 3000)) + shape,
                    [*shape, draw.choice(ODD)],
                    draw.choice(ODD),
                ]
            )
    return packed(json.dumps(header).encode(), data)


def _types(draw: random.Random, header: dict, data: bytes) -> bytes:
    for name in header:
        if name != "__metadata__" and draw.random() < 0.5:
            header[name]["dtype"] = draw.choice([*sorted(DTYPES), *ODD_TYPES, *ODD])
    return packed(json.dumps(header).encode(), data)


def _keys(draw: random.Random, header: dict, data: bytes) -> bytes:
    name = draw.choice([*header, "new"])
    manner = draw.randrange(7)
    if manner == 0:
        header[name] = draw.choice(ODD)
    elif manner == 1 and isinstance(header.get(name), dict) and header[name]:
        del header[name][draw.choice(sorted(header[name]))]
    elif manner == 2 and isinstance(header.get(name), dict):
        header[name][draw.choice(("extra", "shape ", "Shape"))] = draw.choice(ODD)
    elif manner == 3:
        header["__metadata__"] = draw.choice([{"a": 1}, {"a": None}, {"a": {}}, {"a": "b"}, *ODD])
    elif manner == 4:
        header[draw.choice(("\ud800", "a\udfff", "\0", "\x1f", "", "../../x", "\u202e"))] = header.pop(name, {})
    text = json.dumps(header)
    if manner == 5 and len(header) > 1:  # the same key twice, plain or as an escape
        text = text[:-1] + ", " + draw.choice((text[1:], json.dumps({name: header.get(name)})[1:]))
    if manner == 6:
        text = text.replace('"shape"', '"\\u0073hape"').replace('"dtype"', draw.choice(('"dtype"', '"shape"')), 1)
    return packed(text.encode("utf-8", "surrogatepass"), data)


def _numbers(draw: random.Random, header: dict, data: bytes) -> bytes:
    text = json.dumps(header)
    places = [at for at, sign in enumerate(text) if sign.isdigit()]
    if places:
        at = draw.choice(places)
        new = draw.choice(
            ("-0", "0" + text[at], text[at] + ".0", text[at] + "e0", "+" + text[at], "٣", "0x1", "1_0", "NaN")
        )
        text = text[:at] + new + text[at + 1 :]
    return packed(text.encode(), data)


def _layout(draw: random.Random, header: dict, data: bytes) -> bytes:
    text = json.dumps(header)
    new = draw.choice(
        [
            text.encode("utf-16"),
            b"\xef\xbb\xbf" + text.encode(),
            text.encode() + b" " * draw.randrange(9),
            b" \n" + text.encode(),
            text.encode() + draw.choice((b"\0", b"{}", b",", b"\x0b", "\u00a0".encode())),
            text.encode("latin-1", "replace") + b"\xff",
            f"[{text}]".encode(),
            b"",
            b"null",
            b"[" * 5000,
            b'{"a":' * 200 + b"1" + b"}" * 200,
        ]
    )
    return packed(new, data)


def _file(draw: random.Random, header: dict, data: bytes) -> bytes:
    whole = packed(json.dumps(header).encode(), data)
    manner = draw.randrange(5)
    if manner == 0:
        return whole[: draw.randrange(len(whole) + 1)]
    if manner == 1:
        return whole + bytes(draw.choice((1, 7, 8, 4096)))
    if manner == 2:
        length = draw.choice((0, 1, len(whole), len(whole) - 8, 100_000_001, (1 << 63), (1 << 64) - 1))
        return length.to_bytes(8, "little") + whole[8:]
    changed = bytearray(whole)
    for _ in range(draw.choice((1, 1, 3))):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _none(_draw: random.Random, header: dict, data: bytes) -> bytes:
    return packed(json.dumps(header).encode(), data)


MUTATIONS = (_offsets, _shapes, _types, _keys, _numbers, _layout, _file, _none)


def verdicts(folder: Path, count: int, seed: int) -> Counter:
    """Mutated files judged by both; how often which said what."""
    draw, path, said, lines = random.Random(seed), folder / "model.safetensors", Counter(), set()
    for number in range(count):
        content = MUTATIONS[number % len(MUTATIONS)](draw, *good(draw))
        path.write_bytes(content)
        try:
            theirs = dict(deserialize(content))
        except (SafetensorError, UnicodeError):
            theirs = None
        try:
            ours = read_header(path)
        except StudfinderError as error:
            said["refused by both" if theirs is None else "refused by us alone"] += 1
            lines.add(len(str(error).splitlines()))
            continue
        assert theirs is not None, content
        assert set(ours) == set(theirs)
        for name, stored in ours.items():
            assert (stored.dtype, list(stored.shape)) == (theirs[name]["dtype"], list(theirs[name]["shape"]))
            assert content[stored.begin : stored.end] == bytes(theirs[name]["data"])
        said["accepted by both"] += 1
    assert lines == {1}
    return said


def test_nothing_is_accepted_that_safetensors_refuses(tmp_path):
    said = verdicts(tmp_path, 4000, 1)
    assert said["accepted by both"] > 800, said
    assert said["refused by both"] > 1500, said
    assert said["refused by us alone"] < 200, said  # keys twice or without a meaning, and shapes beyond torch's


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(2, 7))
def test_nothing_is_accepted_that_safetensors_refuses_in_many_more(tmp_path, seed):
    assert sum(verdicts(tmp_path, 20_000, seed).values()) == 20_000


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_that_torch_has_is_read_as_it_was_written(tmp_path, dtype):
    tensor = torch.zeros(3, 5).to(dtype)
    (tmp_path / "x.safetensors").write_bytes(save({"a": tensor, "b": tensor[:0]}))
    found = read_header(tmp_path / "x.safetensors")
    assert {name: (DTYPES[one.dtype], one.shape) for name, one in found.items()} == {
        "a": (dtype, (3, 5)),
        "b": (dtype, (0, 5)),
    }


def test_there_is_one_reader_of_headers():
    """Whoever else took apart the first eight bytes would have checks of its own."""
    source = Path(__file__).parent.parent / "src"
    found = {path.name for path in source.rglob("*.py") if "data_offsets" in path.read_text("utf-8")}
    assert found == {"headers.py", "checkpoint.py"}, "the reader, and the writer of shards"
