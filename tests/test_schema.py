"""The published JSON Schemas are those of this code.

To renew them: python -c "from tests.test_schema import renew; renew()"
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studfinder.records import schema
from studfinder.runs.found import RECORDS as KINDS

PUBLISHED = Path(__file__).parent.parent / "docs" / "schema"
RECORDS = {name.removeprefix("studfinder."): record for name, record in KINDS.items()}


def renew() -> None:
    PUBLISHED.mkdir(exist_ok=True)
    for name, record in RECORDS.items():
        (PUBLISHED / f"{name}.schema.json").write_text(json.dumps(schema(record), indent=1) + "\n")


@pytest.mark.parametrize("name", RECORDS)
def test_the_published_schema_is_current(name) -> None:
    assert json.loads((PUBLISHED / f"{name}.schema.json").read_text()) == schema(RECORDS[name])
