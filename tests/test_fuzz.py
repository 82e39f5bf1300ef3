# ruff: noqa: E501
"""Every reader of a file, on damaged files: one line, or the unmutated answer, or the answer of another content.

Never another exception, never longer than 30 seconds, never a file outside. What is damaged is found by walking
`readers.READERS`; that every function which opens a file is covered there is checked over the syntax trees.
"""

from __future__ import annotations

import ast
import hashlib
import os
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

import studfinder
from fuzzing import damaged
from readers import FORMATS, READERS, Reader, _samples
from studfinder.errors import StudfinderError
from studfinder.visible import visible

SOURCES = Path(studfinder.__file__).parent
SECONDS = 30
FEW = 300
MANY = 20_000


class Hang(BaseException):
    """Longer than SECONDS."""


@contextmanager
def _bounded():
    """No longer than SECONDS, and no more than some gigabytes above what is taken already."""

    def stop(*_):
        raise Hang

    before, limits = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + (6 << 30), limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _is_memory(error: BaseException) -> bool:
    """What the boundary of the command line says in one line of its own."""
    text = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in text or "not enough memory" in text


def _state(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): "" for p in sorted(folder.rglob("*")) if not p.is_dir()}


def fuzz(one: Reader, count: int, seed: int, folder: Path) -> tuple[Counter, list[str]]:
    """Outcomes of `count` mutations of one kind of file, and what must not have been."""
    inside = folder / "a" / "b"
    inside.mkdir(parents=True)
    files = one.make(inside)
    whole = {path: path.read_bytes() for path in files}
    everything = {p: p.read_bytes() for p in inside.rglob("*") if p.is_file()}
    answer = repr(one.read(inside))
    told, wrong = Counter(), []
    expected = None
    for number in range(count):
        rng = random.Random(f"{one.kind} {seed} {number}")
        path = rng.choice(files)
        made = damaged(whole[path], rng)
        for p, content in everything.items():
            if not p.exists() or p.stat().st_size != len(content) or p in whole:
                p.parent.mkdir(parents=True, exist_ok=True)
                p.write_bytes(content)
        path.write_bytes(made)
        outside = _state(folder) if expected is None else expected
        begun = time.monotonic()
        try:
            with warnings.catch_warnings(), _bounded():
                warnings.simplefilter("ignore")
                found = repr(one.read(inside))
            told["the same answer" if found == answer else "another answer, of another content"] += 1
            if found != answer and one.same:
                wrong.append(f"{one.kind} #{number}: {found[:100]} instead of {answer[:100]}")
            if found != answer and hashlib.sha256(made).digest() == hashlib.sha256(whole[path]).digest():
                wrong.append(f"{one.kind} #{number}: another answer of the same content")
        except StudfinderError as error:
            line = str(error)
            told["one line"] += 1
            if visible(line, keep="\n") != line or not line.strip():
                wrong.append(f"{one.kind} #{number}: a line that is not visible: {line!r}")
        except Hang:
            wrong.append(f"{one.kind} #{number}: over {SECONDS} s")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            if _is_memory(error):
                told["the line about memory"] += 1
            else:
                at = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
                ours = [
                    f"{Path(f.filename).relative_to(SOURCES)}:{f.lineno}"
                    for f in traceback.extract_tb(error.__traceback__)
                    if str(SOURCES) in f.filename
                ]
                wrong.append(
                    f"{one.kind} #{number} ({path.name}): {type(error).__name__}: {str(error)[:150]} at {ours[-2:]} {at[-1:]}"
                )
        if time.monotonic() - begun > SECONDS:
            wrong.append(f"{one.kind} #{number}: {time.monotonic() - begun:.0f} s")
        if (now := _state(folder)) != outside and any(not name.startswith("a/b/") for name in set(now) ^ set(outside)):
            wrong.append(f"{one.kind} #{number}: files outside: {sorted(set(now) ^ set(outside))}")
    return told, wrong


def _shares(count: int) -> dict[str, int]:
    """Mutations of each kind: as many as its cost allows."""
    weights = {kind: 1 / one.cost for kind, one in READERS.items()}
    total = sum(weights.values())
    return {kind: max(2, round(count * weight / total)) for kind, weight in weights.items()}


@pytest.mark.parametrize("kind", sorted(READERS))
def test_damaged_files_end_in_a_line_or_an_answer(kind, tmp_path, cache):
    told, wrong = fuzz(READERS[kind], _shares(FEW)[kind], 0, tmp_path / "f")
    assert not wrong, "\n".join(wrong)
    assert sum(told.values()) == _shares(FEW)[kind]


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", sorted(READERS))
def test_twenty_thousand_damaged_files(kind, tmp_path, cache):
    count = 1 + round(_shares(MANY)[kind])
    told, wrong = fuzz(READERS[kind], count, 1, tmp_path / "f")
    print(
        f"{kind}: {count} mutations, " + ", ".join(f"{number} {what}" for what, number in told.most_common()),
        file=sys.stderr,
    )
    assert not wrong, "\n".join(wrong[:40])


def test_the_deep_run_is_of_twenty_thousand():
    assert sum(1 + round(share) for share in _shares(MANY).values()) >= MANY
    assert sum(_shares(FEW).values()) >= 0.95 * FEW  # rounded, a kind at a time


def test_every_record_is_fuzzed():
    assert set(FORMATS) == set(_samples())


# --- no reader is forgotten ---------------------------------------------------------------------------------------------

OPENING = {
    "read_json",
    "json_lines",
    "read_header",
    "read_text",
    "read_bytes",
    "load_file",
    "safe_open",
    "GGUFReader",
    "fdopen",
    "memmap",
}
NOT_A_USERS_FILE = {
    "records/outside.py": "the one place: what calls it is looked at here",
    "models/headers.py": "the one place: what calls it is looked at here",
    "quantizers/seen.py:seen_record": "the package's own",
    "models/cache.py:private_text": "writes",
    "models/made.py": "bytes, to be hashed",
    "models/converted.py:_as_made": "what we wrote, held against its marks",
    "models/tried.py": "our own record of what was tried",
    "models/measured.py:_code": "our own code, to be hashed",
    "models/measured.py:_file_of": "code that runs already, to be hashed",
    "models/converted.py:_seal": "a config that was read before",
    "quantizers/budget.py:_quiet": "/dev/null",
    "report/document.py:_read": "the package's own",
    "verbs/diagnose_stored.py:_scales": "a checkpoint that is loaded by then",
    "verbs/publish.py:hub_card": "what the same command wrote",
    "verbs/results.py:_pasted": "what the same run wrote",
    "models/load.py:_is_quantised": "a config, which is fuzzed as `load` reads it; only whether it says so is taken of it",
    "models/load.py:_is_larger": "an index, on which `weights_of` is fuzzed; only a number is taken of it",
    "studies/processes.py:_serve": "/dev/null",
    "models/memory.py": "the kernel's",
    "models/paging.py": "the kernel's",
    "runs/provenance.py:_processor": "the kernel's",
    "runs/lock.py:_born": "the kernel's",
    "quantizers/verify.py": "what our own child process wrote a moment ago",
    "quantizers/decode.py": "what was written a moment ago, to be held against what was meant",
    "quantizers/plain.py": "what our own parent process wrote a moment ago",
    "report/html.py:_read": "our own templates",
    "texts/prompts.py:default_prompts": "our own texts",
    "texts/prompts.py:proof_text": "our own texts",
    "texts/nonce.py": "our own texts",
    "texts/tokens.py:_low_semantic": "our own words",
    "__init__.py:": "our own list of what is public",
    "texts/relations.py:_built_in": "our own texts",
    "runs/atomic.py": "what was written a moment ago, to be synced",
    "cli": "a record that was written a moment ago, printed",
    "experiments": "the profile of a scan that the experiment made",
    "training/text.py": "tokens, written and hashed by us",
    "models/builtin.py": "a wheel, checked against its SHA-256",
    "models/fingerprint.py": "bytes, to be hashed",
    "verbs/train.py": "bytes, to be hashed",
    "texts/corpora.py:fingerprint": "bytes, to be hashed",
}


def _openings() -> list[str]:
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))

        def walk(node, names, path=path):
            for child in ast.iter_child_nodes(node):
                inner = [*names, child.name] if isinstance(child, ast.FunctionDef | ast.ClassDef) else names
                if isinstance(child, ast.Call):
                    called = ast.unparse(child.func).rpartition(".")[2]
                    mode = "".join(
                        str(a.value)
                        for a in [*child.args, *(k.value for k in child.keywords)]
                        if isinstance(a, ast.Constant)
                    )
                    reads = called == "open" and not any(letter in mode for letter in "wax")
                    if called in OPENING or reads:
                        found.append(f"{path.relative_to(SOURCES).as_posix()}:{'.'.join(names)}")
                walk(child, inner)

        walk(tree, [])
    return sorted(set(found))


@pytest.mark.parametrize("place", _openings())
def test_a_function_that_opens_a_file_is_fuzzed(place):
    if any(place == known or place.startswith((f"{known}:", f"{known}/")) for known in NOT_A_USERS_FILE):
        return
    covered = {name for one in READERS.values() for name in one.covers}
    assert place in covered, f"{place} opens a file: register it in tests/readers.py"
