"""The published JSON Schemas are those of this code.

To renew them: python -c "from tests.test_schema import renew; renew()"
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studfinder.records import (
    Findings,
    Plan,
    Quantization,
    Recipe,
    Result,
    Scorecard,
    Sensitivity,
    Training,
    schema,
)

PUBLISHED = Path(__file__).parent.parent / "docs" / "schema"
RECORDS = {
    "findings": Findings,
    "scorecard": Scorecard,
    "experiment": Result,
    "training": Training,
    "quantization": Quantization,
    "recipe": Recipe,
    "plan": Plan,
    "sensitivity": Sensitivity,
}


def renew() -> None:
    PUBLISHED.mkdir(exist_ok=True)
    for name, record in RECORDS.items():
        (PUBLISHED / f"{name}.schema.json").write_text(json.dumps(schema(record), indent=1) + "\n")


@pytest.mark.parametrize("name", RECORDS)
def test_the_published_schema_is_current(name) -> None:
    assert json.loads((PUBLISHED / f"{name}.schema.json").read_text()) == schema(RECORDS[name])
