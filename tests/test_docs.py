"""README and docs: links lead somewhere, every command is understood by the parser, and the Python runs, on a tiny
model in place of the built-in one."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer.main

import studfinder as sf
from proving import provable
from studfinder.cli.app import app, run_cli
from test_causes import _options

HOME = Path(__file__).parents[1]
PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted((HOME / "docs").glob("*.md"))]
PAGES += sorted((HOME / "docs" / "notebooks").glob("*.md"))
RESULTS = sorted((HOME / "docs" / "results").glob("*.md"))
PROMPTS = ["a load bearing number", "The quick brown fox."]
MADE = ("reference/", "changelog.md", "contributing.md", "security.md")
"""Pages that the build makes, or that hold another file."""

NOT_RUN = {
    "--text owner/dataset": "a data set of the hub",
    "spike = findings.massive_activations[0]": "a tiny model has no massive activation",
    "sf.attention.import_kernels(lm, tensors)": "tensors of the authors' own code, which is not here",
    'runs = listed_runs(Path("mine.toml")': "whole experiments: tests/test_experiment_all.py runs a list",
    'scores = tasks(lm, "piqa"': "needs lm-eval and its data: tests/real/test_tasks_real.py runs it",
}
"""What is not run here, by a part of its line, and why; at most five."""

LESS = {
    "sf.scan(lm)": "sf.scan(lm, prompts=PROMPTS)",
    'sf.load("smollm2", dtype="float32")': 'sf.load("m")',
    '"smollm2"': '"m"',
    '"proof", limit=4)': '"proof", window=64, limit=2)',
    '"wikitext2", limit=8)': '"proof", window=64, limit=2)',
    '"proof")': '"proof", window=64, limit=2)',
    "(11, 507, 1229), (2, 507, 90), (20, 3, 5)": "(1, 5, 7), (0, 3, 5)",
    "lm, 20, 3, 5": "lm, 1, 3, 5",
    "steps=2000": "steps=2",
    "bits=4.5)": 'bits=8, formats=("int4-g8", "int8-channel", "16"), windows=2, judges=1)',
    "[1, 504, 260, 2644, 282, 4649, 314, 260], [1, 378, 6330, 5050, 335, 253, 2644, 30]": "[1, 5, 4, 9, 7], [1, 8, 3]",
}
"""What makes a block short, and fit for a tiny model."""


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of each block; an indented one has no language, and what a run printed is none."""
    rest = []
    for at, part in enumerate(re.split(r"(?m)^```(.*)$", text)):
        if at % 4 == 0:
            rest.append(part)
        elif at % 4 == 1:
            language = part.strip()
        elif at % 4 == 2:
            yield language, part
    for part in rest:
        for block in re.findall(r"(?m)(?:^    .*\n?)+", part):
            yield "", block


def commands() -> Iterator[tuple[str, str]]:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for page in PAGES:
        for language, code in blocks(page.read_text("utf-8")):
            for line in code.replace("\\\n", " ").splitlines() if language in ("", "sh") else ():
                words = line.split("#")[0].split()
                if page.name != "CONTRIBUTING.md" and words[:1] == ["studfinder"] and words[1:2] and words[1] in verbs:
                    yield page.name, re.split(r"\s# |\s{4}", line.strip())[0]


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    """The folder of a user who has what the pages speak of: models, their quantised copies, finished runs, a book."""
    home = tmp_path_factory.mktemp("user")
    lm = provable("llama", planted=True)[0]
    lm.model.config.max_position_embeddings = 2048
    m, runs, w4 = home / "m", home / "runs", home / "my-w4"
    lm.model.save_pretrained(m)
    lm.tokenizer.save_pretrained(m)
    sf.scan(sf.load(str(m)), prompts=PROMPTS, most=1, pools=0, census=False, out=runs / "mine")
    short = ["--formats", "int8-channel,16", "--windows", "1", "--judges", "0", "--for", "llm-compressor"]
    for words in (
        ["plan", str(m), "--bits", "12", *short, "--out", str(runs / "plan")],
        ["quantize", str(m), "--group", "channel", "--out", str(w4)],
        ["measure", str(m), "--measures", "repetition", "--limit", "1", "--out", str(runs / "m" / "measure-1")],
        ["experiment", "kv-shift/theory", "--out", str(runs / "m" / "super-weight-ablation-1")],
        ["recipe", "write", str(runs / "mine"), "--for", "llm-compressor", "--out", str(home / "run1")],
    ):
        assert run_cli(words) == 0
    copies = {
        m: [
            "my-model",
            "7b",
            "mine",
            "base",
            "instruct",
            "my-equal",
            "model-7b",
            "smollm2",
            "tiny-gpt_oss",
            "runs/shifted/model",
        ],
        w4: ["m-w4", "smollm2-w4"],
        runs / "plan": ["runs/smollm2/plan-1"],
        runs / "mine": [
            *("runs/base", "runs/instruct", "runs/model-7b/scan-1", "runs/base/scan-1", "runs/instruct/scan-2"),
            *(f"runs/smollm2/{name}" for name in ("scan", "scan-1", "scan-1a2b3c4d5e")),
        ],
    }
    for place, names in copies.items():
        for name in names:
            shutil.copytree(place, home / name, dirs_exist_ok=True)
    for place in (home, runs / "plan"):
        shutil.copy(home / "run1" / "llm-compressor.yaml", place)
    for name in ("books", "books.txt", "prompts.txt"):
        (home / name).write_text("A load bearing number.\n" * 400)
    (home / "vllm.jsonl").write_text('{"token_ids": [3, 5, 9], "logprobs": [null, -2.1, -0.3]}\n')
    return home


@pytest.mark.real  # a minute for one process
@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_a_command_runs(page, line, user, tmp_path, monkeypatch, capsys):
    """As far as its --dry-run goes, which loads what it is given and says what it would do; else whole."""
    if any(word in line for word in NOT_RUN):
        pytest.skip(next(why for word, why in NOT_RUN.items() if word in line))
    monkeypatch.chdir(user)
    words = []
    for word in shlex.split(line)[1:]:
        word = word.replace("…", "1").replace("scan-...", "scan-1").replace("int4-g64", "int4-g8")
        words += [str(tmp_path / "out")] if words[-1:] == ["--out"] else sorted(map(str, user.glob(word))) or [word]
    verb = " ".join(words[:2]) if words[0] == "recipe" else words[0]
    dry = ["--dry-run"] if "--dry-run" in _options()[verb] and "--dry-run" not in words else []
    assert run_cli([*words, *dry]) == 0, capsys.readouterr().err


@pytest.mark.real
def test_a_wrong_command_is_found(user, tmp_path, monkeypatch, capsys):
    for line in ("studfinder scan ./my-model --no-such-option 3", "studfinder measure ./my-model --measures nothing"):
        with pytest.raises(AssertionError):
            test_a_command_runs("x", line, user, tmp_path, monkeypatch, capsys)


# --- links --------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    text = re.sub(r"(?ms)^```.*?^```", "", page.read_text("utf-8"))
    seen: dict[str, int] = {}
    found = set()
    for title in re.findall(r"(?m)^#+ (.*)$", text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        found.add(slug if slug not in seen else f"{slug}-{seen[slug]}")
        seen[slug] = seen.get(slug, 0) + 1
    return found


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"(?ms)^```(?!\{).*?^```|`[^`\n]*`", "", page.read_text("utf-8"))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
    for link in re.findall(r"(?m)^:link: (\S+)$", text):  # of cards, which name the page that is made
        yield link.replace(".html", ".md")


@pytest.mark.parametrize("page", [*PAGES, *RESULTS], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else page.parent / path
        if path.startswith(MADE):
            continue
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), f"{page.name}: {link}"


def test_each_task_is_two_links_from_the_front_page():
    tasks = re.findall(r"(?m)^## (.*)$", (HOME / "docs" / "tasks.md").read_text("utf-8"))
    assert len(tasks) == 9
    front = HOME / "docs" / "index.md"
    near = {link for link in links(front) if not re.match(r"[a-z]+:", link)}
    assert {link.partition("#")[2] for link in near if link.startswith("tasks.md#")} == anchors(
        HOME / "docs" / "tasks.md"
    ) - {"nine-tasks"}
    for title in tasks:  # and from there to the page that says how
        section = (HOME / "docs" / "tasks.md").read_text("utf-8").partition(f"## {title}\n")[2].partition("\n## ")[0]
        assert re.search(r"\]\((how-to|results)[^)]*\)", section), title


# --- Python -------------------------------------------------------------------------------------------------------

PYTHON = [page for page in PAGES if "```python" in page.read_text("utf-8") and page.name != "CONTRIBUTING.md"]


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lm = provable("llama", planted=True)[0]
    lm.model.config.max_position_embeddings = 2048
    lm.model.save_pretrained("m")
    lm.tokenizer.save_pretrained("m")
    lm = sf.load("m")
    names = {"sf": sf, "torch": torch, "lm": lm, "PROMPTS": PROMPTS, "edits": ["noise=0.1:residual[1].all"]}
    for language, code in blocks(page.read_text("utf-8")):
        if language != "python" or any(line in code for line in NOT_RUN):
            continue
        for long, short in LESS.items():
            code = code.replace(long, short)
        exec(code, names)


def test_few_blocks_are_not_run():
    every = "".join(page.read_text("utf-8") for page in PAGES)
    assert len(NOT_RUN) <= 5
    assert all(line in every for line in NOT_RUN)
