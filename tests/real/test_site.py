"""The site is built without a warning, no page is endless, and the notebooks run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="sphinx is not installed: pip install 'studfinder[docs]'")
pytestmark = pytest.mark.real
DOCS = Path(__file__).parents[2] / "docs"
LONGEST = 40_000
"""Bytes of text that a page shows before anything is unfolded."""


class Shown(HTMLParser):
    """The text of a page's article that is not folded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.depth, self.folded, self.text = 0, 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.depth += tag == "article"
        self.folded += tag in ("details", "script", "style")

    def handle_endtag(self, tag):
        self.depth -= tag == "article"
        self.folded -= tag in ("details", "script", "style")

    def handle_data(self, data):
        if self.depth and not self.folded:
            self.text += data


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("site")
    words = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        str(out / "kept"),
        str(DOCS),
        str(out / "html"),
    ]
    env = {**os.environ, "STUDFINDER_NOTEBOOKS": "off", "PYTHONPATH": str(DOCS.parent / "src")}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / "html"


def test_no_page_is_endless(site):
    pages = {page: len(" ".join(Shown(page.read_text("utf-8")).text.split()).encode()) for page in site.rglob("*.html")}
    assert len(pages) > 100
    assert {page.name: size for page, size in pages.items() if size > LONGEST} == {}


def test_the_front_page_leads_to_every_task(site):
    front = (site / "index.html").read_text("utf-8")
    tasks = (site / "tasks.html").read_text("utf-8")
    anchors = set(re.findall(r'href="tasks\.html#([^"]+)"', front))
    assert len(anchors) == 9
    assert all(f'id="{anchor}"' in tasks for anchor in anchors)


@pytest.mark.parametrize("notebook", sorted(DOCS.glob("notebooks/*.md")), ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, object] = {}
    cells = re.findall(r"(?ms)^```\{code-cell\} ipython3\n(.*?)^```", notebook.read_text("utf-8"))
    assert len(cells) > 1
    for cell in cells:
        exec(cell, names)
