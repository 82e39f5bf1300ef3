"""Numbers that no figure was made for, and figures that fail: the numbers are kept, the figure is named."""

from __future__ import annotations

import dataclasses
import json

import pytest
from safetensors.torch import load_file, save_file

import studfinder as sf
from checkpoints import PROMPT, checkpoint
from outside import quick_and_deep
from studfinder.cli.app import run_cli
from studfinder.records import Chart, Plot, Series
from studfinder.report import figures, style
from studfinder.report.charts import draw_chart
from studfinder.report.style import attempted, new_figure, rendered, styled

pytestmark = pytest.mark.usefixtures("true_figures")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)


def scaled(folder, by, *, to=False):
    """A checkpoint whose numbers are all multiplied by `by`, or are all `by`."""
    path = folder / "model.safetensors"
    tensors = {name: (0 * tensor + by if to else tensor * by) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


ENDS = [0.0, 1e-45, 1e-40, 1e-38, 1e-20, 1e3, 1e10, 1e19, 1e30, 1e38]


@pytest.mark.parametrize("by", quick_and_deep(ENDS, 0.0))
@pytest.mark.parametrize("to", quick_and_deep([False, True], False))
def test_models_of_zeros_and_of_numbers_at_the_ends_of_their_range(tmp_path, capsys, by, to):
    scaled(checkpoint(tmp_path / "model"), by, to=to)
    assert run_cli(["scan", "model", "--prompt", PROMPT, "--out", "s"]) == 0
    assert capsys.readouterr().err == ""
    assert {"findings.json", "report.html", "figure-depth.png"} <= {path.name for path in (tmp_path / "s").iterdir()}
    assert run_cli(["measure", "model", "--measures", "perplexity,facts", "--limit", "2", "--out", "m"]) == 0
    assert (tmp_path / "m" / "scorecard.json").is_file()
    assert run_cli(["report", "s", "m"]) in (0, 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("by", [30.0, 300.0, 3000.0])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gemma3_text"])
@pytest.mark.deep
def test_overflow(tmp_path, capsys, architecture, by, dtype):
    scaled(checkpoint(tmp_path / "model", architecture), by)
    assert run_cli(["scan", "model", "--prompt", PROMPT, "--dtype", dtype, "--out", "s"]) == 0
    names = ["perplexity", "repetition:4", "passkey:32", "facts", "induction:8"]
    for name in names:
        out = ["--limit", "2", "--dtype", dtype, "--out", f"m-{name[:4]}"]
        assert run_cli(["measure", "model", "--measures", name, *out]) in (0, 2)
    assert "internal error" not in capsys.readouterr().err


# --- a figure that fails ----------------------------------------------------------------------------------------------


def fail(*_args, **_options):
    raise ValueError("Axis limits\ncannot be NaN or Inf")


@pytest.mark.parametrize("name", quick_and_deep(figures.FIGURES, "maps"))
def test_a_figure_of_a_scan_that_fails_is_named_and_the_rest_is_written(tmp_path, monkeypatch, capsys, name):
    checkpoint(tmp_path / "model")
    module = figures._module(name)
    monkeypatch.setattr(module, "applies", lambda *_: True)
    monkeypatch.setattr(module, "draw", fail)
    assert run_cli(["scan", "model", "--prompt", PROMPT, "--no-prove", "--out", "s"]) == 0
    assert capsys.readouterr().err == f"studfinder: note: figure {name} cannot be drawn (Axis limits)\n"
    left = {path.name for path in (tmp_path / "s").iterdir()}
    assert {"findings.json", "profile.safetensors", "report.html", "run.json"} <= left
    assert f"figure-{name}.png" not in left
    assert len([file for file in left if file.endswith(".png")]) >= 3
    manifest = json.loads((tmp_path / "s" / "run.json").read_text())
    assert set(manifest["files"]) == left - {"run.json"}
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert run_cli(["report", "s"]) == 0  # drawn again, when it can be


@pytest.mark.deep
@pytest.mark.parametrize("place", ["studfinder.verbs.measure.draw_scorecard", "studfinder.verbs.results.rendered"])
def test_a_figure_of_a_scorecard_that_fails(tmp_path, monkeypatch, capsys, place):
    checkpoint(tmp_path / "model")
    monkeypatch.setattr(place, fail)
    assert run_cli(["measure", "model", "--measures", "perplexity", "--limit", "2", "--out", "m"]) == 0
    assert capsys.readouterr().err == "studfinder: note: figure scorecard cannot be drawn (Axis limits)\n"
    left = {path.name for path in (tmp_path / "m").iterdir()}
    assert {"scorecard.json", "table.md", "table.csv", "report.html"} <= left
    assert not [file for file in left - {"card.png"} if file.endswith((".png", ".svg"))]


@pytest.mark.deep
def test_a_figure_of_training_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("studfinder.report.training._draw", fail)
    small = ["--task", "recall:vocabulary=32,length=16,pairs=2", "--layers", "1", "--hidden", "16", "--heads", "2"]
    assert run_cli(["train", *small, "--batch", "4", "--test", "4", "--steps", "2", "--out", "t"]) == 0
    assert "note: figure training cannot be drawn (Axis limits)" in capsys.readouterr().err
    assert (tmp_path / "t" / "result.json").is_file()


@pytest.mark.parametrize("error", [MemoryError(), OSError(28, "No space left on device")])
def test_memory_and_disks_are_no_matter_of_a_figure(error):
    def draw():
        raise error

    with pytest.raises(type(error)):
        attempted("x", draw)


# --- names in figures -------------------------------------------------------------------------------------------------

NAMES = [
    "$",
    "$$",
    "a$b",
    "$x$",
    "$\\frac{1}$",
    "$\\nonsense$",
    "$x_{$",
    "\\$x\\$",
    "cost: $5 and $6",
    "$\\mathdefault{x}$",
    "a_b^c",
    "{",
    "%s%d",
    "&<>\"'",
    "</svg><script>",
    "]]>",
    "-->",
    "\\n",
    "\\",
    "x" * 60,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_as_it_is(name):
    with styled():
        figure = new_figure(400, 200)
        axes = figure.add_subplot()
        axes.plot([1, 2], [1, 2], label=name)
        axes.set(title=name, xlabel=name, ylabel="y")
        axes.set_yticks([1, 2], [name[:20], "b"])
        figure.legend()
    svg = rendered(figure, kind="svg", name="x").decode()
    assert rendered(figure, kind="png", name="x").startswith(b"\x89PNG")
    from xml.etree import ElementTree

    drawn = ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert name in drawn


@pytest.mark.parametrize("name", quick_and_deep(["a$b", "$x$", "$\\frac{1}$", "$x_{$"], "$x_{$"))
def test_a_model_of_that_name(tmp_path, capsys, name):
    from studfinder.verbs.measure import write_cards

    checkpoint(tmp_path / "model")
    assert run_cli(["measure", "model", "--measures", "perplexity", "--limit", "2", "--out", "m"]) == 0
    card = sf.read(tmp_path / "m")
    named = dataclasses.replace(card, model=dataclasses.replace(card.model, id=name))
    write_cards(tmp_path / "p", [named, dataclasses.replace(named, edits=())])
    assert (tmp_path / "p" / "figure-scorecard.png").is_file()
    assert capsys.readouterr().err == ""


def test_no_axis_shows_a_formula(monkeypatch, tmp_path):
    """With formulas off, matplotlib's own ticks of a log axis would show their source."""
    points = ((10.0, 5.0, 2000.0), (100.0, 50.0, 20000.0))
    rows = Plot(kind="dots", rows=("a", "b"), series=(Series(name="x", points=points),), log=True)
    lines = Plot(kind="lines", series=(Series(name="x", x=(1.0, 1000.0), points=points),), log=True, log_x=True)
    with styled():
        figure = draw_chart(Chart(name="x", plots=(rows, lines)), 400)
    assert "mathdefault" not in rendered(figure, kind="svg", name="x").decode()
    assert style._STYLE["text.parse_math"] is False


# --- what figures may not say -----------------------------------------------------------------------------------------


def lines(*values, **more):
    from studfinder.records import Plot, Series

    points = tuple(values)
    return Plot(kind="lines", x="steps", series=(Series(name="a", x=tuple(range(len(points))), points=points),), **more)


def drawn_axes(*plots):
    from studfinder.records import Chart

    with styled():
        return draw_chart(Chart(name="c", plots=plots), style.WIDE).axes


def test_a_share_has_no_band_above_one():
    (axes,) = drawn_axes(lines((0.5, -0.2, 1.4), (0.9, 0.8, 1.1), y="accuracy", percent=True))
    ends = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert (ends.min(), ends.max()) == (0.0, 1.0)


def test_lines_of_one_quantity_share_their_axis_and_none_is_cut():
    axes = drawn_axes(*(lines((v, v, v), (1.0, 1.0, 1.0), y="KL", log=True) for v in (1.1, 1.6)))
    assert axes[0].get_ylim() == axes[1].get_ylim()
    assert axes[1].get_ylim()[1] > 1.6
    assert [one.get_ylabel() for one in axes] == ["KL", ""]
    assert len([tick for tick in axes[0].get_yticks() if 1 <= tick <= 1.6]) > 2


def test_every_plot_of_lines_names_its_values():
    (axes,) = drawn_axes(lines((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), title="loss, nats"))
    assert (axes.get_ylabel(), axes.get_title(loc="left")) == ("loss, nats", "")


def test_eight_kinds_have_eight_looks():
    from studfinder.records import Chart, Plot, Series
    from studfinder.report.charts import _colours

    kinds = [Series(name=str(n), points=((1.0, 1.0, 1.0),), quiet=n == 0) for n in range(8)]
    chart = Chart(name="c", plots=(Plot(kind="dots", rows=("r",), series=tuple(kinds)),))
    assert len({colour for colour, *_ in _colours(chart, [one.name for one in kinds]).values()}) == 8
