"""The page in a browser: real scans, headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import studfinder as sf
from browsed import chromium
from builtins_here import REAL_DTYPE
from studfinder.report.profile import head_ratios
from studfinder.texts import default_prompts
from studfinder.verbs.report import ScanRun, read_run

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> ScanRun:
    folder = tmp_path_factory.mktemp("report") / "smollm2"
    sf.scan(sf.load("smollm2", dtype=REAL_DTYPE), prompts=default_prompts()[:3], out=folder, prove=False)
    return read_run(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def test_the_manifest_is_written_last_and_lists_all(scanned: ScanRun):
    written = sorted(scanned.folder.iterdir(), key=lambda file: file.stat().st_mtime_ns)
    assert written[-1].name == "run.json"
    listed = json.loads(written[-1].read_text())["files"]
    assert listed == sorted(file.name for file in written[:-1])
    assert {"findings.json", "report.html", "figure-depth.png", "figure-depth.svg"} <= set(listed)


def test_the_page_can_be_explored(scanned: ScanRun, browser: Any):
    with _opened(browser, scanned.folder / "report.html") as (page, heard):
        query = page.locator("#detail canvas[data-tensor=query]")
        for layer in (3, 17):
            page.locator("#layer").focus()
            page.keyboard.press("Home")
            for _ in range(layer):
                page.keyboard.press("ArrowRight")
            assert page.locator("#layer-name").text_content() == str(layer)
            _point(page, query, scanned.profile["norm.query"].shape[1:], head=4, dim=29)
            _check(page, scanned, layer, head=4, dim=29)
        query.focus()  # the keyboard reads cells too
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowRight")
        _check(page, scanned, 17, head=5, dim=30)
        overview = page.locator("#overview canvas").first
        box = overview.bounding_box()
        overview.click(position={"x": 60, "y": 9 + (box["height"] - 29) * 5.5 / 30})
        assert page.locator("#layer-name").text_content() == "5"
        page.locator("button.more").first.click()
        assert page.locator("#super-weights tr.hidden").count() == 0
        assert heard == []


def test_buttons_copy_what_they_say(scanned: ScanRun, browser: Any):
    with _opened(browser, scanned.folder / "report.html") as (page, heard):
        page.evaluate("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
        page.get_by_role("button", name="copy as Python", exact=True).click()
        code = page.evaluate("window.copied")
        compile(code, "copied", "exec")
        assert repr(scanned.findings.super_weights[0].parameter) in code
        page.get_by_role("button", name="copy as --keep").click()
        assert page.evaluate("window.copied") == f"--keep {scanned.folder}"
        assert heard == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_and_follows_the_theme(scanned: ScanRun, browser: Any, tmp_path: Path, width: int, scheme: str):
    with _opened(browser, scanned.folder / "report.html", width=width, scheme=scheme) as (page, heard):
        page.screenshot(path=tmp_path / f"report-{scheme}-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        brightness = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (sum(brightness) > 384) == (scheme == "light")
        visible = [chart.is_visible() for chart in page.locator("svg.chart").all()]
        assert visible.count(True) == 3
        assert heard == []


class _opened:
    """A page and everything it should not have said or asked for."""

    def __init__(self, browser: Any, file: Path, *, width: int = 1280, scheme: str = "light") -> None:
        self.file, self.heard = file, []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)

    def __enter__(self) -> tuple[Any, list[str]]:
        url = self.file.resolve().as_uri()
        self.page.on("console", lambda message: self.heard.append(message.text))
        self.page.on("pageerror", lambda error: self.heard.append(str(error)))
        self.page.on("request", lambda request: request.url == url or self.heard.append(request.url))
        self.page.goto(url)
        return self.page, self.heard

    def __exit__(self, *_: object) -> None:
        self.page.close()


def _point(page: Any, canvas: Any, shape: tuple[int, int], *, head: int, dim: int) -> None:
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    gutter, band, axis = 34, 9, 20  # as page.js has them
    cell = (box["width"] - gutter) / shape[1], (box["height"] - band - axis) / shape[0]
    page.mouse.move(box["x"] + gutter + (dim + 0.5) * cell[0], box["y"] + band + (head + 0.5) * cell[1])


def _check(page: Any, scanned: ScanRun, layer: int, *, head: int, dim: int) -> None:
    norm = scanned.profile["norm.query"]
    readout = page.locator("#map-readout")
    assert f"query, layer {layer}, head {head}, dim {dim}" in readout.text_content()
    assert float(readout.get_attribute("data-norm")) == pytest.approx(float(norm[layer, head, dim]), rel=1e-3)
    assert float(readout.get_attribute("data-ratio")) == pytest.approx(
        float(head_ratios(norm)[layer, head, dim]), rel=1e-3
    )
    assert ("never completes" in readout.text_content()) == bool(scanned.profile["rotary.never_turns"][layer, dim] == 1)
