"""The census on every type: each number is counted once, and what is planted is among the first of an order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from architected import TYPES, built
from outside import quick_and_deep
from planted import FIRST, plants
from studfinder.detectors.census import census
from studfinder.models import load
from tiny import token_ids
from tried import EIGHT

pytestmark = pytest.mark.filterwarnings("ignore::studfinder.edits.TiedWeightsWarning")

RECORD = json.loads((Path(__file__).parent.parent / "docs" / "results" / "census-types.json").read_text("utf-8"))
"""By type and kind of parameter, what benchmarks/census_types.py found."""


@pytest.mark.parametrize("kind", quick_and_deep(TYPES, *EIGHT))
def test_every_parameter_of_every_type_is_counted(kind: str) -> None:
    lm = load(built(kind))
    found = census(lm, [token_ids(1, 12)[0].tolist()], draws=1)
    assert found.numbers == sum(one.numel() for one in lm.model.parameters() if one.is_floating_point())
    assert found.nonfinite == []
    assert found.top[0].most > 0
    assert len({(one.parameter, one.index) for one in found.top}) == len(found.top)


@pytest.mark.deep
@pytest.mark.parametrize("kind", sorted(RECORD))
def test_what_is_planted_is_where_it_was_found(kind: str) -> None:
    """Among the first three of an order, or where docs/results/census-types.md says that it is not: no more than twice
    as far back, for sums differ between machines."""
    found = list(plants(kind))
    assert {one.kind for one in found} == set(RECORD[kind])
    farther = [one for one in found if one.best > 2 * max(FIRST, RECORD[kind][one.kind]["best"])]
    assert farther == []
