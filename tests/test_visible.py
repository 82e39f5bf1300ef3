# ruff: noqa: E501
"""What somebody else wrote reaches the terminal, a table, a card and a page as text that can be seen, and does nothing."""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import studfinder
from scanned import a_scan
from studfinder.errors import StudfinderError
from studfinder.quantizers.card import card
from studfinder.records import Interval, Measured, Quantization, Scorecard, Table
from studfinder.report import print_comparison, print_findings
from studfinder.report.cells import as_csv, markdown, print_sheet
from studfinder.report.escaped import code, for_csv, for_markdown, for_yaml
from studfinder.report.html import comparison_page, page
from studfinder.report.quantization import quantization_sheet
from studfinder.report.result import html_sheet, markdown_sheet
from studfinder.report.scorecard import tables
from studfinder.visible import say, say_json, visible

SOURCES = Path(studfinder.__file__).parent
HIDDEN = [
    *(chr(n) for n in (*range(0x20), *range(0x7F, 0xA0))),  # C0 with ESC, BEL, CR; DEL; C1 with CSI
    *"\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u061c\u180e\u115f\u3164\ufe0f\u2800",  # zero width, or nothing to see
    *"\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",  # they turn the reading direction
    *"\u2028\u2029\u0085\u00a0\u2003\u3000",  # separators and spaces that are none
    *"\ue000\U000e0041\U000e0100\ufff9\udc80",  # private, tags, a variation, an annotation, a byte that is no UTF-8
]
SEQUENCES = [
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "\x1b[2J\x1b[H", "\x9b31m",
    "a\rstudfinder: fine", "a\nstudfinder: error: forged", "a\r\nb", "a\x08\x08\x08b", "\x1bP1$r\x1b\\", "safe\u202egnp.exe",
]  # fmt: skip
MARKUP = [
    "[red]", "[/red]", "[bold]x[/bold]", "[link=http://evil]x[/link]", "[/]", "[[", "[", "]", ":boom:", ":warning:", "\\[red]",
    "[@click=app.bell]x[/]", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</td></tr></table>", "&lt;b&gt;",
    "| a | b |", "`x`", "``", "[x](http://evil)", "![x](http://evil)", "http://evil.example", "www.evil.example", "*x*", "_x_",
    "~~x~~", "# x", "---", "x: y", "- x", "{a: b}", "&a", "!!python/object:os", "%x", "$x$", "'", '"', "\\", "null", "1e3",
    "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1)", "＝1", "\t=1", "\r=1", " =1",
]  # fmt: skip
PAYLOADS = [*(f"a{c}b" for c in HIDDEN), *SEQUENCES, *MARKUP]
UNSEEN = re.compile("[" + "".join(map(re.escape, (c for c in HIDDEN if c != "\n"))) + "]")


def clean(printed: str) -> None:
    """Nothing of it is hidden: checked by category, apart from the table that `visible` keeps."""
    for character in printed.replace("\n", ""):
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"), (
            f"{character!r} in {printed!r}"
        )
    assert not UNSEEN.search(printed.replace("\u00a0", " ")), printed


@pytest.mark.parametrize("payload", PAYLOADS)
def test_visible_once_is_enough(payload):
    shown = visible(payload)
    clean(shown)
    assert "\n" not in shown
    assert visible(shown) == shown
    if payload.isascii() and payload.isprintable():
        assert shown == payload


@given(st.text())
def test_any_text_is_visible(text):
    shown = visible(text)
    clean(shown)
    assert shown.isprintable()
    assert visible(shown) == shown
    assert visible(StudfinderError(text, expected=text, do=text), keep="\n") == str(
        StudfinderError(text, expected=text, do=text)
    )


@given(st.text(), st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_json_keeps_its_value(key, text):
    printed = io.StringIO()
    from contextlib import redirect_stdout

    raw = json.dumps({"x": [text]}, ensure_ascii=False, indent=1)
    with redirect_stdout(printed):
        say_json(raw)
    clean(printed.getvalue())
    assert json.loads(printed.getvalue()) == {"x": [text]}


def test_letters_of_every_script_stay():
    for text in ("Größe", "模型", "نموذج", "мо́дель", "モデル", "é", "😀", "×1.5 – 3 ≥ λ"):
        assert visible(text) == text


# --- every way in which something is printed, a payload in every field that comes from outside ---------------------


def scan_of(payload: str):
    findings, profile = a_scan()
    weights = tuple(
        replace(w, token=payload, parameter=payload, checkpoint_tensor=payload) for w in findings.super_weights
    )
    return replace(
        findings,
        model=replace(findings.model, id=payload, architecture=payload, origin=payload, dtype=payload),
        run=replace(findings.run, command=payload, device=payload),
        prompts=replace(findings.prompts, id=payload, names=(payload, payload)),
        super_weights=weights,
        summary=replace(findings.summary, bidirectional=payload, unreadable=(payload,), pictured=(payload,) * 12),
        massive_activations=tuple(replace(a, token=payload) for a in findings.massive_activations),
        nonfinite=(payload,),
        others={payload: ({payload: payload, "a list": [payload]},)},
        continuation_prompt=payload,
    ), profile


def card_of(payload: str) -> Scorecard:
    findings, _ = scan_of(payload)
    score = Interval(value=1.0, low=0.5, high=1.5, level=0.95, n=3, method="bootstrap")
    one = Measured(measure=payload, what=payload, kind="fluency", better="lower", score=score, why_not=payload)
    return Scorecard(model=findings.model, run=findings.run, measured=(one,), edits=(payload,))


def quantization_of(payload: str) -> Quantization:
    return Quantization(
        model=payload, origin=payload, method=payload, scheme=payload, settings={payload: payload}, bits=4.0, quantized=1,
        stored_as=payload, engines=payload, calibration=payload, kept=(payload,), skipped=(payload,), instead=(payload,),
        scores={payload: payload}, verified=payload, notes=(payload,), versions={"studfinder": payload}, made=payload,
    )  # fmt: skip


def _said(payload, tmp_path):
    say(payload, f"checkpoint {payload}")


def _findings(payload, tmp_path):
    print_findings(scan_of(payload)[0], tmp_path / "x")


def _comparison(payload, tmp_path):
    print_comparison([payload, payload], [scan_of(payload)[0]] * 2)


def _scorecard(payload, tmp_path):
    print_sheet("scorecard", tables([card_of(payload)]), [f"edit: {payload}"], Path(payload.replace("\0", "")))


def _scorecards(payload, tmp_path):
    print_sheet(payload, tables([card_of(payload)] * 2), [], None)


def _table(payload, tmp_path):
    table = Table(title=payload, columns=(payload, payload), rows=((payload, 1.0),), note=payload)
    print_sheet(payload, [table], [payload], None)


def _quantized(payload, tmp_path):
    from studfinder.cli.quantize import _print

    _print(quantization_of(payload), Path(payload.replace("\0", "")))


PRINTED = [_said, _findings, _comparison, _scorecard, _scorecards, _table, _quantized]


@pytest.mark.parametrize("place", PRINTED)
def test_nothing_hidden_is_printed(place, tmp_path, capsys):
    for payload in PAYLOADS:
        place(payload, tmp_path)
        printed = capsys.readouterr().out
        clean(printed)
        lines = printed.splitlines()
        assert not any(line.startswith("studfinder:") for line in lines), printed  # no forged line
        if payload in MARKUP and payload.strip() == payload and "\t" not in payload:
            assert visible(payload)[:12] in " ".join(printed.split()), payload


def test_markup_is_text_on_a_terminal_with_colours():
    from studfinder.report.screen import Screen

    for payload in PAYLOADS:
        for print_it in (print_findings,):
            out = io.StringIO()
            print_it(
                scan_of(payload)[0], None, Screen(file=out, force_terminal=True, width=200, color_system="truecolor")
            )
            styled = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue())  # our own colours
            clean(styled)
            assert "\x1b]8" not in out.getvalue()


@pytest.mark.parametrize("arguments", [
    ["scan", "{}"], ["scan", "--prompts", "{}"], ["scan", "--nonsense{}"], ["{}"], ["ls", "{}"], ["measure", "--measures", "{}"],
    ["report", "{}"], ["quantize", "./{}", "--out", "x"], ["quantize", "./x", "--out", "o", "--scheme", "{}"],
    ["train", "--task", "{}"], ["train", "--task", "induction", "--attention", "{}"], ["experiment", "{}"], ["scan", "--lam", "{}"],
    ["measure", "--batch-size", "{}"],
])  # fmt: skip
def test_a_mistake_is_one_visible_line(arguments, capsys, tmp_path, monkeypatch, cache):
    from studfinder.cli.app import run_cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for payload in (
        "a\x1b[31mb",
        "a\u202eb",
        "a\rb",
        "a\u2028b",
        "[red]a",
        "a\x9bb",
        "a\nstudfinder: b",
        "a\u200bb",
        "\udc80a",
    ):
        assert run_cli([argument.replace("{}", payload) for argument in arguments]) == 2
        printed = capsys.readouterr()
        clean(printed.err)
        assert printed.err.count("\n") == 1
        assert printed.err.startswith("studfinder: error: ")


def test_progress_is_visible(monkeypatch):
    from studfinder.cli.progress import progress_bar

    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar() as progress:
        progress("a\x1b[31m\u202eb", 1, 2)
    assert "\\x1b[31m\\u202eb" in stream.getvalue()


def test_warnings_are_visible(tmp_path):
    from studfinder.runs.steps import Steps

    path = tmp_path / "a\x1b[31mb"
    path.mkdir()
    (path / "steps.jsonl").write_text("{}\n")
    with pytest.warns(UserWarning, match="line 1 is damaged") as caught:
        Steps(path / "steps.jsonl", run="r", under="u")
    clean(str(caught[0].message))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", PAYLOADS)
def test_csv_cells_do_nothing_and_numbers_stay_numbers(payload):
    table = Table(title="t", columns=(payload, "n"), rows=((payload, -1.5), ("-0.5", 2)))
    rows = list(csv.reader(io.StringIO(as_csv(table))))
    assert rows[1][1] == "-1.5"
    assert rows[2] == ["-0.5", "2"]
    for cell in (rows[0][0], rows[1][0]):
        clean(cell)
        assert not cell.lstrip().startswith(tuple("=+-@＝＋－＠\t\r\n"))
        assert cell.removeprefix("'") == visible(payload).removeprefix("'")
    assert for_csv(-3) == -3


@pytest.mark.parametrize("payload", PAYLOADS)
def test_markdown_is_one_line_of_plain_text(payload):
    line = for_markdown(payload)
    clean(line)
    assert "\n" not in line
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*|]", line)
    assert not re.search(r"(?<!\\)\]\(|(?<!\\)<[A-Za-z/!]|(?<!\\)://|^[#>+-]", line)
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", line) == visible(payload)  # what a reader of Markdown sees
    row = markdown(Table(title="t", columns=("a", "b"), rows=((payload, 1),))).splitlines()[4]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    fence = re.match("`+", code(payload))
    assert fence
    assert code(payload).count(fence[0]) == 2


@pytest.mark.parametrize("payload", PAYLOADS)
def test_yaml_is_the_same_text(payload):
    yaml = pytest.importorskip("yaml")
    read = yaml.safe_load(f"base_model: {for_yaml(payload)}\n")
    assert read == {"base_model": visible(payload)}
    for name in ("org/model-1.5b", "./x", "smollm2", "yes", "1.0", "2020-01-01", "a.b"):
        assert yaml.safe_load(f"a: {for_yaml(name)}") == {"a": name}
    assert for_yaml("org/Model-1.5B") == "org/Model-1.5B"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_card_holds_its_fields_and_no_more(payload):
    yaml = pytest.importorskip("yaml")
    written, plain = card(quantization_of(payload)), card(quantization_of("x"))
    clean(written)
    _, head, body = written.split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"library_name", "base_model", "base_model_relation", "tags"}
    assert yaml.safe_load(head)["base_model"] == visible(payload)
    assert written.count("\n") == plain.count("\n")
    assert len(re.findall(r"(?m)^#", body)) == len(re.findall(r"(?m)^#", plain))
    sheet = markdown_sheet(quantization_sheet(quantization_of(payload)))
    clean(sheet)
    assert sheet.count("\n") == markdown_sheet(quantization_sheet(quantization_of("x"))).count("\n")


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag + "".join(f" {name}" for name, _ in attrs if name.startswith("on")))


def test_pages_have_the_same_elements_whatever_the_names():
    sheets = _Tags(html_sheet(quantization_sheet(quantization_of("x")))).tags
    for payload in PAYLOADS:
        drawn = html_sheet(quantization_sheet(quantization_of(payload)))
        assert _Tags(drawn).tags == sheets, payload
        clean(drawn.replace("\t", "").replace("\u00a0", ""))


@pytest.mark.real
def test_the_pages_of_scans_have_the_same_elements():
    def drawn(payload: str) -> list[str]:
        findings, profile = scan_of(payload)
        text = page(findings, profile) + comparison_page([(payload, findings, profile)])
        clean(re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).replace("\t", "").replace("\u00a0", ""))
        return _Tags(text).tags

    plain = drawn("x")
    for payload in ("a\u202eb", "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x1b[31mb"):
        assert drawn(payload) == plain


# --- nothing prints past it -------------------------------------------------------------------------------------------

ALLOWED = {
    "visible.py": "here",
    "cli/__init__.py": "a constant, before anything is imported",
    "training/screen.py": "one line that is painted over, of numbers",
}


def _called(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES)))
def test_nothing_prints_but_by_say_and_screen(path):
    name = path.relative_to(SOURCES).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for called, node in _called(tree):
        where = f"{name}:{node.lineno}"
        if name not in ALLOWED:
            assert called != "print", f"{where} prints: use say()"
            assert called not in ("sys.stdout.write", "sys.stderr.write", "typer.echo", "typer.secho", "rich.print"), (
                where
            )
        if called.endswith("Console"):
            pytest.fail(f"{where} has a console of its own: use Screen")
        if called.endswith("from_markup"):
            pytest.fail(f"{where} reads markup")
        if called in ("warnings.warn", "warn"):
            first = node.args[0]
            shown = isinstance(first, ast.Constant) or (
                isinstance(first, ast.Call) and ast.unparse(first.func) == "visible"
            )
            assert shown, f"{where} warns of something from outside: visible()"
        if called.endswith("set_description"):
            assert ast.unparse(node.args[0]).startswith("visible("), where


def test_the_places_that_may_print_are_there():
    for name in ALLOWED:
        assert "print(" in (SOURCES / name).read_text(encoding="utf-8")
