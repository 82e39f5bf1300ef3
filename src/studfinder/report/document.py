"""One page for everything: a body inside the same frame, in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from studfinder.report.glossary import glossary
from studfinder.report.words import count, number, one_more, percent, token
from studfinder.visible import visible

_SECTION = re.compile(r'<section id="([\w-]+)"[^>]*>\s*<h2[^>]*>(.*?) <a ', re.DOTALL)
_UNSEEN = re.compile(r"<(script|svg|pre)\b.*?</\1>|<[^>]*>", re.DOTALL)


def document(template: str, *, title: str, about: str, beside: str = "", **context: object) -> str:
    """A template as a whole page: with a list of its sections, and what the words mean that it uses. Everything from
    outside is escaped.

    Args:
        template: of the body.
        title, about, beside: of the page; of what kind it is, and what stands at the other end of that line.
        context: what the template shows.
    """
    environment = Environment(
        loader=PackageLoader("studfinder.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"count": count, "token": token, "num": number, "percent": percent, "anchor": anchor}
    environment.tests |= {"one_more": one_more}
    body = environment.get_template(template).render(**context)
    script = _read("page.js") if 'id="data"' in body else ""
    buttons = _read("buttons.js") if "<button" in body else ""
    scripts = [Markup(one) for one in (script, buttons) if one]
    # The page may run these scripts and load nothing: a browser refuses what a prompt might smuggle in.
    digests = " ".join(f"'sha256-{_digest(one)}'" for one in scripts) or "'none'"
    return environment.get_template("frame.html").render(
        title=title,
        about=about,
        beside=beside,
        css=Markup(_read("page.css")),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {digests}",
        body=Markup(body),  # a template's own output
        sections=[(name, Markup(heading)) for name, heading in _SECTION.findall(body)],
        words=glossary(_UNSEEN.sub(" ", body)),
        scripts=scripts,
    )


def anchor(text: object) -> str:
    """A name as the id of its place in a page."""
    return re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-") or "it"


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _shown(value: object) -> object:
    """What a template prints: a name can turn a page's reading direction as it can a terminal's."""
    return visible(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


def _read(name: str) -> str:
    return files("studfinder.report").joinpath(f"templates/{name}").read_text("utf-8")
