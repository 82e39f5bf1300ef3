"""The published JSON Schema is the one of this code.

To renew it: python -c "from tests.test_schema import renew; renew()"
"""

from __future__ import annotations

import json
from pathlib import Path

from studfinder.records import Findings, schema

PUBLISHED = Path(__file__).parent.parent / "docs" / "schema" / "findings.schema.json"


def renew() -> None:
    PUBLISHED.parent.mkdir(exist_ok=True)
    PUBLISHED.write_text(json.dumps(schema(Findings), indent=1) + "\n")


def test_the_published_schema_is_current() -> None:
    assert json.loads(PUBLISHED.read_text()) == schema(Findings)
