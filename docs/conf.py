"""Sphinx's settings. `make docs` builds the site, with warnings as errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import made
from sphinx.application import Sphinx

from studfinder import __version__

made.write(HERE / "reference")

project = "studfinder"
author = "the studfinder authors"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = [
    "_build",
    "notebooks/runs",
    "notebooks/smollm2-w4",
    "LOG.md",
    "results/pages",
    "results/runs/*/table*.md",
]
exclude_patterns += ["reference/glossary.md", "reference/changes.md"]  # included by others
suppress_warnings = [
    "myst-nb.lexer",  # notebooks that are not run do not say their language
    "myst.header",  # tables that a run wrote begin at the third level
    "toc.not_included",  # a page of each public name and of each run: reached from the lists, and too many for the menu
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
# Notebooks are run by the build; what they gave is kept until they change. "off" shows them without outputs.
nb_execution_mode = os.environ.get("STUDFINDER_NOTEBOOKS", "cache")
nb_execution_timeout = 1800
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_output_stderr = "remove"  # progress bars, a picture of each state
nb_merge_streams = True

autosummary_generate = False  # made.py makes the pages
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
default_role = "code"  # docstrings are written in Markdown's way
napoleon_custom_sections = [("Class attributes", "Attributes")]
copybutton_prompt_text = "$ "

html_theme = "furo"
html_title = "studfinder"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_use_index = False  # the menu and the search lead to every name; all on one page are too many


def setup(app: Sphinx) -> None:
    """Docstrings are plain text with backticks, and examples after `>>>`."""

    def read(_app: Sphinx, what: str, name: str, _value: object, _options: object, lines: list[str]) -> None:
        if what == "data":  # Sphinx gives the words of its type
            lines[:] = made.said_of(name)
        lines[:] = [line if line.lstrip().startswith(">>>") else made.literal(line) for line in lines]

    app.connect("autodoc-process-docstring", read, priority=100)  # before napoleon, which makes markup of sections
