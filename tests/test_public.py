"""What is public: listed once, lazy, short in print, and clear about wrong arguments."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

import studfinder as sf
from checkpoints import PROMPT
from proving import provable
from studfinder.errors import StudfinderError
from studfinder.runs import progress
from studfinder.verbs.configs import MeasureConfig, ScanConfig
from studfinder.verbs.measure import plan_measure

ROOMS = ("attention", "edits", "keep", "measures", "quantizers", "training")
HOME = Path(sf.__file__).parent


@pytest.fixture(scope="module")
def lm():
    return provable("llama", planted=True)[0]


@pytest.fixture(scope="module")
def findings(lm):
    return sf.scan(lm, prompts=[PROMPT])


# --- the list -----------------------------------------------------------------------------------------------------


def test_what_is_public_is_there_and_short():
    assert dir(sf) == sorted(sf.__all__)
    assert all(getattr(sf, name) is not None for name in sf.__all__)
    assert len(set(sf.__all__) - set(ROOMS) - {"__version__"}) <= 19
    assert set(ROOMS) < set(sf.__all__)
    for room in ROOMS:
        names = getattr(sf, room).__all__
        assert all(getattr(getattr(sf, room), name) is not None for name in names)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = sf.nonsense


def test_names_are_loaded_when_they_are_used():
    code = (
        "import studfinder as sf, sys; dir(sf); sf.StudfinderError, sf.Findings, sf.Scorecard, sf.read\n"
        "print({'torch', 'transformers'} & set(sys.modules)); sf.LM; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "True"]


def test_old_names_say_what_they_are_called_now():
    for place, names in sf._MOVED.items():
        for name in names.split():
            with pytest.warns(DeprecationWarning, match=f"studfinder.{name} is now studfinder.{place}.{name}$"):
                old = getattr(sf, name)
            home = sf
            for part in place.split("."):
                home = getattr(home, part) if hasattr(home, part) else sys.modules[f"studfinder.{part}"]
            assert getattr(home, name) is old


def test_only_the_new_names_are_used():
    """In the package, the docs, the tests and the benchmarks."""
    root = HOME.parent.parent
    old = {name for names in sf._MOVED.values() for name in names.split()}
    files = [file for kind in ("*.md", "docs/*.md", "tests/**/*.py", "benchmarks/**/*.py") for file in root.glob(kind)]
    for path in [*files, *HOME.rglob("*.py")]:
        if path.name not in ("CHANGELOG.md", "LOG.md"):
            assert not set(re.findall(r"\bsf\.(\w+)", path.read_text(encoding="utf-8"))) & old, path


def test_the_list_is_of_plain_imports():
    """`__init__.py` reads it as one."""
    body = ast.parse((HOME / "__init__.pyi").read_text(encoding="utf-8")).body
    names = [one.asname for node in body if isinstance(node, ast.ImportFrom) for one in node.names]
    assert names == [one.name for node in body if isinstance(node, ast.ImportFrom) for one in node.names]
    assert sorted(names) == sorted(set(sf.__all__) - {"__version__"})


# --- one line, and HTML in notebooks ------------------------------------------------------------------------------


def test_records_print_as_one_line(lm, findings, tmp_path):
    scores = sf.measures.perplexity(lm, "proof", window=64, limit=2)
    card = sf.measure(lm, "perplexity", edits=sf.edits.zero(findings), limit=2, out=tmp_path / "m")
    edits = sf.edits.zero(sf.edits.Weights(parameter="x", entries=tuple((n, n) for n in range(1000))))
    shown = {
        "LM('live'": lm,
        "Findings('live': 1 super-weight candidates (1 proven)": findings,
        "Scores('perplexity": scores,
        "Scorecard('live': 1 measures, 1 edits)": card,
        "RTN(scheme=Scheme(block=64))": sf.quantizers.RTN(scheme=sf.quantizers.Scheme(block=64)),
        "KVCache(element='int4')": sf.quantizers.KVCache(element="int4"),
        "Gated(kind='linear')": sf.attention.Gated(kind="linear"),
        "WeightEdit(target=": edits[0],
        "HoldOut(": sf.keep.hold_out(fraction=0.01),
        "ScanConfig(prove=False)": ScanConfig(prove=False),
        "MeasurePlan(": plan_measure(lm, MeasureConfig(limit=2)),
        "PromptCard(": findings.prompts,
        "SuperWeight(": findings.super_weights[0],
    }
    for start, record in shown.items():
        line = repr(record)
        assert line.startswith(start), line
        assert "\n" not in line
        assert len(line) < 700, line


def test_records_that_differ_never_look_alike():
    """Steps of experiments are remembered by how their settings print."""
    many = [tuple((n, n) for n in range(start, start + 100)) for start in (0, 1)]
    one, other = (sf.edits.Weights(parameter="x", entries=entries) for entries in many)
    assert repr(one) != repr(other)
    assert repr(one) == repr(dataclasses.replace(one))
    assert "100 in tuple" in repr(one)


def test_html_in_notebooks_is_escaped(lm, findings):
    evil = "<img src=x>\u202e"
    scores = sf.measures.perplexity(lm, "proof", window=64, limit=2)
    records = [
        dataclasses.replace(findings, model=dataclasses.replace(findings.model, id=evil), others={evil: ()}),
        dataclasses.replace(scores, text=evil),
        plan_measure(lm, MeasureConfig(limit=2)),
    ]
    card = sf.measure(lm, "perplexity", limit=2)
    records.append(dataclasses.replace(card, model=dataclasses.replace(card.model, id=evil), edits=(evil,)))
    for record in records:
        html = record._repr_html_()
        assert html.startswith("<div><b>")
        assert html.endswith("</div>")
        assert "<table>" in html
        assert "<img" not in html
        assert "\u202e" not in html


# --- sf.read ------------------------------------------------------------------------------------------------------


def test_read_gives_whatever_record_is_there(lm, tmp_path):
    found = sf.scan(lm, prompts=[PROMPT], prove=False, out=tmp_path / "s")
    card = sf.measure(lm, "perplexity", limit=2, out=tmp_path / "m")
    made = sf.quantize(lm, scheme="w8-tensor", out=tmp_path / "q", verify=False)
    for folder, file, record in (("s", "findings", found), ("m", "scorecard", card), ("q", "studfinder", made)):
        assert sf.read(tmp_path / folder) == record
        assert sf.read(str(tmp_path / folder / f"{file}.json")) == record
    with pytest.raises(StudfinderError, match="holds no record"):
        sf.read(tmp_path)
    with pytest.raises(StudfinderError, match="cannot read a NoneType"):
        sf.read(None)


# --- progress -----------------------------------------------------------------------------------------------------


class _Bar:
    def __init__(self, **_options) -> None:
        self.n, self.said = 0, []
        _Bar.last = self

    def reset(self, total) -> None:
        self.n = 0
        self.said.append(total)

    def set_description(self, words) -> None:
        self.said.append(words)

    def update(self, more) -> None:
        self.n += more

    def set_postfix_str(self, words, refresh=True) -> None:
        self.times = words

    def close(self) -> None:
        self.said.append("closed")


@pytest.mark.parametrize("shell", [None, object(), types.SimpleNamespace(kernel=1)])
def test_progress_is_shown_in_notebooks_only(lm, monkeypatch, capsys, shell):
    bars = []
    monkeypatch.setattr(progress._NOTEBOOK, "_make", lambda: bars.append(_Bar()) or bars[-1])
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    sf.scan(lm, prompts=[PROMPT], prove=False)
    sf.measure(lm, "perplexity", limit=2)
    assert capsys.readouterr().err == ""
    said = [words for bar in bars for words in bar.said]
    shown = [1, "observing", "closed", 1, "perplexity, model", 1, "measured", "closed"]
    assert said == (shown if hasattr(shell, "kernel") else [])
    asked = []
    sf.scan(lm, prompts=[PROMPT], prove=False, progress=lambda *told: asked.append(told))
    assert asked == [("observing", 1, 1)]


def test_where_there_is_no_terminal_progress_is_a_line_now_and_then():
    said, at = [], [0.0]
    lines = progress.Lines(said.append, every=15.0, clock=lambda: at[0])
    told = [(0, 0, 400), (10, 100, 400), (16, 100, 500), (20, 150, 500), (31, 250, 500), (60, 500, 500)]
    for at[0], done, total in told:
        lines("proving", done, total)
    at[0] = 90
    lines("drawing", 0, 2)
    lines.close()
    assert said == [
        "proving: 20%, 16 seconds so far, about 64 seconds left",
        "proving: 50%, 31 seconds so far, about 31 seconds left",
        "drawing: 0%, 90 seconds so far",
    ]


def test_what_is_left_is_of_the_whole_where_the_steps_are_known():
    said, at = [], [0.0]
    lines = progress.Lines(said.append, every=10.0, clock=lambda: at[0])
    progress.expect(lines, {"observing": 1, "skipped": 0, "proving": 3})
    for at[0], what, done in [(0, "observing", 0), (10, "observing", 1), (20, "proving", 0), (40, "proving", 1)]:
        lines(what, done, 2)
    at[0] = 60
    lines.beat()  # nothing was told since
    assert said == [
        "observing (step 1 of 2): 50%, 10 seconds so far, about 70 seconds left",
        "proving (step 2 of 2): 0%, 20 seconds so far, about 60 seconds left",
        "proving (step 2 of 2): 50%, 40 seconds so far, about 24 seconds left",
        "proving (step 2 of 2): 50%, 60 seconds so far, about 36 seconds left",
    ]


def test_cells_of_one_count_go_on_under_other_names():
    said, at = [], [0.0]
    lines = progress.Lines(said.append, every=10.0, clock=lambda: at[0])
    for at[0], what, done in [(0, "perplexity, model", 0), (30, "facts, model", 1), (60, "facts, edited", 2)]:
        lines(what, done, 4)
    assert said[-1] == "facts, edited: 50%, 60 seconds so far, about 60 seconds left"


# --- wrong arguments ----------------------------------------------------------------------------------------------

WRONG = [None, 5, 2.5, True, "./nowhere", Path("/no/where/at/all"), [1], {}, b"x", object()]
SHOWN = [str(value)[:20] for value in WRONG[:-1]] + ["object"]


def _refused(call, *given, **named) -> None:
    """It takes the value, or refuses it in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(*given, **named)
    except StudfinderError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 700


def _calls():
    """Every public function and record, once an argument that its annotation says something of."""
    for room in ROOMS:
        for name in getattr(sf, room).__all__:
            one = getattr(getattr(sf, room), name)
            made = vars(one).get("__init__") if isinstance(one, type) else one
            if not isinstance(made, types.FunctionType) or getattr(one, "_is_protocol", False):
                continue
            signature = inspect.signature(one)
            for parameter in signature.parameters.values():
                if parameter.annotation not in (inspect.Parameter.empty, "Any") and parameter.kind not in (
                    inspect.Parameter.VAR_KEYWORD,
                    inspect.Parameter.VAR_POSITIONAL,
                ):
                    yield pytest.param(one, parameter.name, id=f"{room}.{name}({parameter.name})")


class _Nothing:
    """What no annotation takes."""


@pytest.mark.parametrize(("one", "parameter"), list(_calls()))
def test_every_public_function_refuses_what_it_does_not_take(one, parameter):
    from studfinder.records.public import fits_hint, hint_of

    signature = inspect.signature(one)
    home = one if isinstance(one, types.FunctionType) else one.__init__
    hint = hint_of(signature.parameters[parameter].annotation, home.__module__)
    if fits_hint(hint, _Nothing()):
        pytest.skip("takes anything")
    needed = [p for p in signature.parameters.values() if p.default is p.empty and p.name != parameter]
    given = {p.name: None for p in needed if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    with pytest.raises(StudfinderError, match=" is "):
        one(**{parameter: _Nothing(), **given})


@pytest.mark.parametrize("value", WRONG, ids=SHOWN)
@pytest.mark.parametrize(
    "verb", ["load", "scan", "measure", "quantize", "read", "capture", "convert", "edited", "quantized"]
)
def test_no_model(tmp_path, verb, value):
    more = {
        "capture": (torch.tensor([[1, 2]]), ["embedding"]),
        "convert": (sf.attention.KVShift(),),
        "edited": ("zero:query[0].top1",),
        "quantized": (sf.quantizers.RTN(),),
    }
    named = {"out": tmp_path / "q"} if verb == "quantize" else {}
    with pytest.raises(StudfinderError):
        getattr(sf, verb)(value, *more.get(verb, ()), **named)


VERBS = {
    "scan": ("prompts", "prompt", "thresholds", "progress", "train_length", "bos", "prove", "batch_size", "lam"),
    "measure": ("measures", "edits", "against", "progress", "limit", "seed", "tasks", "batch_size"),
    "quantize": (
        "method",
        "scheme",
        "keep",
        "transforms",
        "bits",
        "group",
        "skip",
        "samples",
        "progress",
    ),
}


@pytest.mark.parametrize("value", WRONG[:-1], ids=SHOWN[:-1])
@pytest.mark.parametrize(("verb", "keyword"), [(verb, word) for verb, words in VERBS.items() for word in words])
def test_wrong_settings(lm, verb, keyword, value, tmp_path):
    """Only the config and the plan: what they take is the verb's business."""
    from studfinder.verbs import configs, measure, quantize, scan

    def plan():
        config = getattr(configs, f"{verb.title()}Config")
        settings = {keyword: value} | ({"out": tmp_path / "q"} if verb == "quantize" else {})
        plans = {"scan": scan.plan_scan, "measure": measure.plan_measure, "quantize": quantize.plan_quantize}
        return plans[verb](lm, config(**settings))

    _refused(plan)


@pytest.mark.parametrize("value", WRONG, ids=SHOWN)
def test_no_findings_no_edits_no_variant_no_method(lm, value):
    for call in (
        lambda: sf.edits.zero(value),
        lambda: sf.edits.mean(value),
        lambda: sf.convert(lm, value),
        lambda: sf.edits.matched_controls(lm, value, value),
        lambda: sf.capture(lm, value, ["embedding"]),
        lambda: sf.quantized(lm, value),
        lambda: sf.edits.Selection(value),
        lambda: sf.experiment(value),
        lambda: sf.measures.compare(value, value),
    ):
        with pytest.raises(StudfinderError):
            call()


def test_the_messages(lm, findings):
    with pytest.raises(StudfinderError, match=r"convert: variant is 'kv'; expected .*KVShift\(\.\.\.\).*Softpick"):
        sf.convert(lm, "kv")
    with pytest.raises(StudfinderError, match=r"perplexity: lm is 'smollm2'; expected LM\. sf\.load"):
        sf.measures.perplexity("smollm2", "proof")
    with pytest.raises(StudfinderError, match=r"cannot edit a str; expected findings.* sf\.read"):
        sf.edits.zero("runs/a")
    with pytest.raises(StudfinderError, match="thresholds= is 5; expected Thresholds or None"):
        sf.scan(lm, thresholds=5)
    card = sf.measure(lm, measures="perplexity", limit=2)
    assert [line.measure for line in card.measured] == ["perplexity"]


# --- the examples -------------------------------------------------------------------------------------------------


def test_the_readme_runs(lm, monkeypatch):
    """The block of Python in the README, on a tiny model in place of the built-in one."""
    text = (HOME.parent.parent / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0].replace('sf.load("smollm2")', "lm")
    code = code.replace("limit=4)", "window=64, limit=2)").replace("sf.scan(lm)", "sf.scan(lm, prompts=PROMPTS)")
    exec(code, {"lm": provable("llama", planted=True)[0], "PROMPTS": [PROMPT]})


def test_an_annotation_means_the_room_s_own_name_whatever_a_library_calls_so(lm):
    """`Text` of rich is loaded with the terminal's pages; prompts are still ours."""
    import studfinder.report.terminal
    from studfinder.texts import default_prompts

    assert studfinder.report.terminal.Text is not type(default_prompts()[0])
    prompts = default_prompts()[:1]
    assert sf.scan(lm, prompts=prompts, prove=False).prompts.names == (prompts[0].name,)
