"""A site of finished runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from browsed import chromium, violations
from proved import made_up_proof
from readers import _samples
from scanned import a_scan
from studfinder.cli.app import run_cli
from studfinder.records import to_json

pytestmark = pytest.mark.usefixtures("true_figures")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A scan and a plan of one model, a training, a recipe that has no page, and what did not finish."""
    made, (findings, profile) = _samples(), a_scan()
    model = findings.model
    files = {
        "m/scan/findings.json": made_up_proof(findings),
        "m/plan/plan.json": replace(made["Plan"], model=model),
        "m/plan/sensitivity.json": replace(made["Sensitivity"], model=model),
        "train/result.json": made["Training"],
        "recipe/recipe.json": made["Recipe"],
        "m/scan-2.partial/findings.json": findings,
    }
    root = tmp_path / "runs"
    for name, record in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(to_json(record), encoding="utf-8")
    save_file(dict(profile), root / "m/scan/profile.safetensors")
    (root / "broken").mkdir()
    (root / "broken/scorecard.json").write_text("{")
    return root


def test_a_gallery_holds_every_page_and_says_what_it_left_out(runs, tmp_path, capsys):
    assert run_cli(["gallery", str(runs), "--out", str(tmp_path / "site")]) == 0
    printed = capsys.readouterr()
    assert "broken" in printed.err
    assert "partial" not in printed.err
    site = tmp_path / "site"
    entries = json.loads((site / "gallery.json").read_text())
    assert [one["kind"] for one in entries] == ["plan", "scan", "training"]
    html = (site / "index.html").read_text("utf-8")
    for link in re.findall(r'(?:href|src)="([^#"][^"]*)"', html):
        assert (site / link).is_file(), link
    assert "int4-g4" in html
    assert "One weight holds this model up" in html
    assert (site / "a-model-scan" / "findings.json").is_file()
    assert '<section id="skyline"' in (site / "a-model-scan" / "report.html").read_text("utf-8")
    assert run_cli(["gallery", str(runs / "m"), "--out", str(site)]) == 0  # made again


def test_a_gallery_overwrites_nothing_else(runs, tmp_path, mistake):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("x")
    assert "is no gallery" in mistake("gallery", runs, "--out", tmp_path / "mine")
    assert "holds no finished run" in mistake("gallery", tmp_path / "mine", "--out", tmp_path / "site")
    assert not (tmp_path / "site").exists()


@pytest.mark.real
def test_a_gallery_opens_from_a_file(runs, tmp_path):
    assert run_cli(["gallery", str(runs), "--out", str(tmp_path / "site")]) == 0
    with chromium() as browser:
        with browser.new_context(bypass_csp=True) as context:
            index = context.new_page()
            index.goto((tmp_path / "site/index.html").resolve().as_uri())
            assert violations(index) == []
        page, heard = browser.new_page(), []
        page.on("console", lambda message: heard.append(message.text))
        page.goto((tmp_path / "site/index.html").resolve().as_uri())
        assert page.evaluate("[...document.images].every((one) => one.naturalWidth === 1200)")
        page.get_by_role("link", name="scan").first.click()
        assert "One weight holds" in page.locator("h1").text_content()
        assert heard == []
