"""Each law that tests hold is named by one of them: "Law N" in the docstring of a test that runs every time."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

LAWS = {
    1: "reading changes nothing",
    2: "a patch leaves nothing",
    3: "scales compose, and scale(1) is the identity",
    4: "an edit that resolves to nothing is an error",
    5: "statistics of parts merge to those of the whole",
    6: "what is planted is found where it is, and nothing else",
    7: "each attention variant equals its naive.py, however it is run",
    8: "an identity start is bit-exact and trainable",
    10: "results do not depend on batch size, order or workers",
    11: "blocks run one at a time are the model's own forward pass",
    12: "a killed or resumed run ends with the same numbers",
}


def laws_of(text: str | None) -> set[int]:
    """The numbers after "Law" or "Laws": "Laws 2, 3 and 4" is three."""
    found = re.findall(r"\bLaws? (\d+(?:(?:, | and )\d+)*)", text or "")
    return {int(number) for numbers in found for number in re.findall(r"\d+", numbers)}


def named() -> dict[int, list[str]]:
    """By law, the tests that name it, of those that every run of the tests collects."""
    tests = defaultdict(list)
    for path in sorted(Path(__file__).parent.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = " ".join(map(ast.unparse, node.decorator_list))
                if not re.search(r"mark\.(deep|skip|xfail)", marks):
                    for law in laws_of(ast.get_docstring(node)):
                        tests[law].append(f"{path.name}::{node.name}")
    return tests


def test_numbers_are_read():
    assert laws_of("Laws 2, 3 and 14: an edit. Law 7 too, by law 9, of 5.") == {2, 3, 14, 7}
    assert laws_of(None) == set()


@pytest.mark.parametrize("law", LAWS, ids=[f"{law}: {text}" for law, text in LAWS.items()])
def test_a_law_is_named_by_a_test_that_holds_it(law):
    assert named()[law]
