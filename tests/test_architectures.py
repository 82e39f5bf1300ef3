"""Tiny models of every architecture that transformers can build: their parts, a planted super weight, and that looking
changes nothing. All in `make deep`, the forty that differ most in structure in `make test`."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import transformers

from architected import PARTS, TYPES, built
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from studfinder.models.tried import architectures, architectures_table
from tried import NO_TOKENS, OTHERWISE, STATES, apart, differences, left_of, marks, planted_of, read_of

RECORD = architectures()["types"]
FORTY = apart(40, ("qwen3_5_text", "gemma4_text", "deepseek_v3", "glm4_moe", "llama4_text", "gpt_oss"))


@pytest.fixture(
    scope="module",
    params=[pytest.param(kind, marks=pytest.mark.real if kind in FORTY else pytest.mark.deep) for kind in TYPES],
)
def kind(request) -> str:
    if not hasattr(transformers, PARTS[request.param]["cls"]):
        pytest.skip(f"transformers {transformers.__version__} has no {request.param} yet")
    return request.param


@pytest.fixture(scope="module")
def lm(kind: str) -> LM:
    return load(built(kind))


def test_as_many_are_found_as_is_promised():
    """As benchmarks/architectures.py wrote them down; the others say why not."""
    found = Counter(row["planted"] for row in RECORD.values())
    assert set(RECORD) == set(TYPES)
    assert found["yes"] >= 210
    assert sum(found.values()) - found["yes"] - found["nothing to plant in"] == len(NO_TOKENS)


def test_the_lowest_transformers_is_run():
    """What pyproject.toml allows is the first of CI's matrix, and what was pinned the last."""
    root = Path(__file__).parent.parent
    lowest = re.search(r'"transformers>=([\d.]+),', (root / "pyproject.toml").read_text("utf-8"))
    pinned = re.search(r"^transformers==([\d.]+)$", (root / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    run = re.search(r"version: (\[.*\])", (root / ".github/workflows/test.yml").read_text("utf-8"))
    assert None not in (lowest, pinned, run)
    assert json.loads(run[1]) == [f"{lowest[1]}.0", pinned[1]]


def test_the_list_shows_every_type_and_its_counts(capsys):
    table = architectures_table()
    assert [row[0] for row in table.rows] == TYPES
    assert (
        f"planted super weights: {Counter(row['planted'] for row in RECORD.values())['yes']} of {len(TYPES)}"
        in table.note
    )
    assert run_cli(["ls", "architectures"]) == 0
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in TYPES)
    assert "transformers" in printed


def test_its_parts_are_those_listed_by_eye(kind: str, lm: LM):
    wrong = differences(kind, lm)
    assert bool(wrong) == (kind in OTHERWISE), wrong


def test_the_record_is_what_is_measured(kind: str, lm: LM):
    assert RECORD[kind]["marks"] == marks(lm)


def test_planted_super_weights_are_found_and_nothing_else(kind: str, lm: LM):
    """Law 6: what is planted is found at its coordinates, and a clean twin has none."""
    if kind in NO_TOKENS:
        with pytest.raises(StudfinderError, match="places where the text has"):
            planted_of(lm, kind)
        return
    assert planted_of(lm, kind) == []


def test_reading_changes_nothing(lm: LM):
    """Law 1, with every reader on: plain, padded and with a cache."""
    assert read_of(lm) == []


def test_a_patch_leaves_nothing(kind: str, lm: LM):
    """Law 2."""
    if kind in NO_TOKENS:
        pytest.skip(NO_TOKENS[kind])
    left = left_of(lm)
    assert bool(left) == (kind in STATES), left
