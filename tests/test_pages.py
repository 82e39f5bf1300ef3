"""The page of every kind of record: one frame, and open to everybody."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from browsed import chromium, violations
from paged import pages
from readers import _samples
from studfinder.report.document import anchor
from studfinder.report.glossary import glossary
from studfinder.report.next_steps import next_steps
from test_causes import _options

KINDS = (
    *("scan", "scan-null", "scorecard", "plan", "diagnosis", "equivalence", "quantization", "training"),
    *("experiment", "comparison"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return pages(tmp_path_factory.mktemp("pages"))


def test_all_kinds_are_here(made):
    assert set(made) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_can_be_found_one_s_way_in(made, kind):
    html = made[kind].read_text("utf-8")
    assert '<a class="skip" href="#main">' in html
    assert html.count("<h1") == 1
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)
    contents = re.search(r'<nav class="contents".*?</nav>', html, flags=re.DOTALL)
    sections = re.findall(r'<section id="([^"]+)"', html)
    assert contents is not None
    assert re.findall(r'href="#([^"]+)"', contents[0]) == sections
    assert "<section>" not in html
    for table in re.findall(r"<table.*?</table>", html, flags=re.DOTALL):
        assert re.match(r"<table[^>]*>\s*<caption>[^<]+</caption>", table)
        assert not re.search(r"<th(?![^>]*scope=)[^>a-z]*>", table)
    for button in re.findall(r"<button.*?</button>", html, flags=re.DOTALL):
        assert "aria-label=" in button or len(re.sub(r"<.*?>", "", button)) > 4


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "comparison"])
def test_a_page_says_what_now_and_explains_its_words(made, kind):
    html = unescape(made[kind].read_text("utf-8"))
    section = re.search(r'<section id="next".*?</section>', html, flags=re.DOTALL)
    assert section is not None
    assert 'data-copy="studfinder ' in section[0]
    assert '<section id="glossary"' in html


def test_words_are_explained_where_they_are_used():
    assert [word for word, _ in glossary("KL in nats per token")] == ["KL", "nats"]
    assert glossary("nothing") == []


def test_nothing_follows_from_nothing():
    assert next_steps(None) == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "comparison"])
def test_what_is_advised_can_be_run(made, kind):
    """Every command names a verb that there is, and only its options."""
    html = made[kind].read_text("utf-8")
    section = re.search(r'<section id="next".*?</section>', html, flags=re.DOTALL)
    assert section is not None
    options = _options()
    for command in re.findall(r'data-copy="studfinder ([^"]+)"', section[0]):
        words = shlex.split(unescape(command))
        verb = " ".join(words[:2]) if words[0] == "recipe" else words[0]
        assert {word for word in words if word.startswith("--")} <= options[verb]


def test_a_plan_made_for_a_method_is_carried_out_by_it():
    plan = _samples()["Plan"]
    said = {method: next_steps(replace(plan, method=method), "run")[0].command for method in ("rtn", "gptq")}
    assert said["gptq"] == said["rtn"].replace(" --plan run", " --plan run --method gptq")
    assert "--method" not in said["rtn"]


def test_an_anchor_is_one_word():
    assert anchor("layers.2 down_proj[7, 30]") == "layers-2-down-proj-7-30"
    assert anchor("<é>") == "it"


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_nothing(made, browser, kind):
    """No violation of axe-core's rules; nothing is wider than the screen, on a phone and on a desk, light and dark."""
    for width, scheme in ((1280, "light"), (390, "dark"), (390, "light"), (1280, "dark")):
        size = {"width": width, "height": 900}
        with browser.new_context(viewport=size, color_scheme=scheme, bypass_csp=True) as context:
            page = context.new_page()
            page.goto(made[kind].resolve().as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert violations(page) == []


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_print_cuts_nothing(made, browser, kind):
    """On paper nothing scrolls, so nothing may need to."""
    page = browser.new_page(viewport={"width": 700, "height": 990})
    page.emulate_media(media="print")
    page.goto(made[kind].resolve().as_uri())
    wide = page.evaluate("""
        [...document.querySelectorAll("main *")]
          .filter((e) => !e.closest("svg, caption, .link") && e.checkVisibility())
          .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
          .map((e) => e.outerHTML.slice(0, 80))
    """)
    assert wide == []
    page.close()
