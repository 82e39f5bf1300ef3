"""A scan of a model of every architecture has a page, also where parts are missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from outside import quick_and_deep
from studfinder.models import model_card, rotary_of
from studfinder.records import PromptCard, Thresholds
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.report import read_run
from studfinder.verbs.scan import ScanPlan, run_scan
from tiny import ARCHITECTURES, UNLIKE, D, tiny, token_ids


@pytest.mark.real  # whole scans
@pytest.mark.parametrize("architecture", quick_and_deep(ARCHITECTURES, *UNLIKE))
def test_a_scan_writes_a_page(architecture: str, tmp_path: Path):
    lm = tiny(architecture)
    prompts = PromptCard.of("given", ("one", "two"), token_ids(2, 12).tolist(), bos=False)
    plan = ScanPlan(
        lm, model_card(lm, "0" * 64, None), prompts, Thresholds(), False, True, ScanConfig(out=tmp_path / "run")
    )
    run_scan(plan)
    run = read_run(tmp_path / "run")
    html = (run.folder / "report.html").read_text("utf-8")
    assert 'id="depth"' in html
    data = json.loads(html.split('id="data">')[1].split("</script>")[0])
    if "rotary.never_turns" in run.profile:
        layers = [int(layer) for layer in run.profile["norm.query.layers"]]
        assert run.profile["rotary.never_turns"].shape == (len(layers), D)
        facts = rotary_of(lm, layers[0])
        assert facts is not None
        expected = facts.never_turns(plan.model.train_length)
        assert np.array_equal(run.profile["rotary.never_turns"][0], expected)
        assert data["never"]["dims"] == D
    else:
        assert data["never"] is None
