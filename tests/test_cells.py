"""Tables read the same in Markdown, CSV and the terminal."""

from __future__ import annotations

import csv
import io

import pytest

from studfinder.records import Comparison, Interval, Table
from studfinder.report.cells import as_csv, markdown, text


def _interval(value: float) -> Interval:
    return Interval(value=value, low=value - 0.5, high=value + 0.5, level=0.95, n=10, method="bootstrap")


def _table() -> Table:
    change = Comparison(kind="ratio", interval=_interval(1.5), p=None)
    rows = (("a|b", _interval(2.0), change, 12345), ("c", None, None, 7))
    return Table(title="T", columns=("name", "score", "change", "n"), rows=rows, note="read it so")


def test_cells_show_their_uncertainty():
    assert text(_interval(2.0)) == "2 [1.5, 2.5]"
    assert text(Comparison(kind="ratio", interval=_interval(1.5))) == "×1.5 [1, 2]"
    assert text(Comparison(kind="difference", interval=_interval(-0.1))) == "-0.1 [-0.6, +0.4]"
    nothing = Interval(value=0.0, low=-0.1, high=-2e-18, level=0.95, n=10, method="bootstrap")
    assert text(Comparison(kind="difference", interval=nothing)) == "+0 [-0.1, +0]"
    assert text(None) == "–"
    assert text(12345) == "12,345"


def test_markdown_keeps_its_columns():
    lines = markdown(_table()).splitlines()
    assert lines[0] == "### T"
    assert lines[3] == "| --- | ---: | ---: | ---: |"
    assert lines[4].startswith("| a\\|b | 2 [1.5, 2.5] |")
    assert "read it so" in lines


def test_csv_has_ends_of_intervals_in_columns_of_their_own():
    rows = list(csv.reader(io.StringIO(as_csv(_table()))))
    assert rows[0] == ["name", "score", "score low", "score high", "change", "change low", "change high", "n"]
    assert rows[1] == ["a|b", "2.0", "1.5", "2.5", "1.5", "1.0", "2.0", "12345"]
    assert rows[2] == ["c", "", "", "", "", "", "", "7"]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="cells for"):
        Table(title="T", columns=("a",), rows=((1, 2),))
