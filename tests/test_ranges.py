"""Largest activations beside what formats hold, and the picture of the residual stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from scanned import a_scan
from studfinder.detectors.massive_activations import MassiveActivations
from studfinder.detectors.observe import observe
from studfinder.report.ranges import layer_ranges, ranges_table
from studfinder.report.tables import massive_dims
from tiny import prompts, tiny


def test_what_fits_and_where_it_will_overflow():
    findings, profile = a_scan()
    table = ranges_table(findings, profile)
    assert table is not None
    rows = {str(row[0]): row[2:] for row in table.rows}
    assert rows["fp8 e4m3, no scale"] == ("will overflow at layers 2 to 4", "will overflow at layer 2")
    assert rows["fp16, no scale"] == ("fits", "fits")
    assert rows["int8, one scale for a layer"] == ("the median becomes 0 at layers 2 to 4", None)
    assert rows["sums of 8-bit products in int32"][0] == "fits: 128 at most"
    wide = ranges_table(replace(findings, model=replace(findings.model, intermediate=200_000)), profile)
    assert wide is not None
    assert wide.rows[-1][2] == "will overflow: 200,000 at most"
    gone = ranges_table(replace(findings, nonfinite=("residual[5]",)), profile)
    assert gone is not None
    assert gone.rows[2][2] == "will overflow at layer 5"
    assert ranges_table(findings, {}) is None
    assert np.isnan(layer_ranges({"residual.top": np.zeros((3, 0))})["residual"]).all()


def test_massive_dims_are_a_list():
    assert massive_dims(a_scan()[0]) == [7]
    assert massive_dims(a_scan(found=False)[0]) == []


def test_the_picture_is_that_of_the_largest_number_however_the_prompts_are_cut():
    lm, texts = tiny("llama"), prompts((9, 30, 6, 11))
    whole = _seen(lm, texts, 4)
    value, (prompt, position, dim) = max(
        (layer.top.entries[0] for index, layer in whole.layers.items() if index >= 0), key=lambda entry: abs(entry[0])
    )
    picture = whole.picture
    assert picture is not None
    assert picture.prompt == prompt
    assert float(picture.hidden_TC[position - picture.start, dim]) == value
    assert len(picture.hidden_TC) == len(whole.summary(None)["pictured"]) == min(12, len(texts[prompt]))
    for size in (1, 3):
        other = _seen(lm, texts, size)
        assert other.picture is not None
        assert other.picture.order[1:] == picture.order[1:]
        assert torch.allclose(other.picture.hidden_TC, picture.hidden_TC, atol=1e-5)
    first, second = _seen(lm, texts, 4), MassiveActivations(lm)
    second.merge(first)
    assert second.picture == first.picture


def _seen(lm, texts, size: int) -> MassiveActivations:
    detector = MassiveActivations(lm)
    observe(lm, texts, [detector], batch_size=size)
    return detector
