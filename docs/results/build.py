"""Build the result pages from what runs wrote: no table on them is typed by hand.

    python docs/results/build.py collect runs/smollm2/super-weight-case-1a2b3c4d5e ...   keep a run's tables and figures
    python docs/results/build.py                                                         write the pages again

A page is a template in docs/results/pages/. A line `{{ NAME }}` in it becomes the answer, notes and figures of the run
that was collected under docs/results/runs/NAME, with the command that made it. Its tables stand, folded, on a page of
their own: README.md in its folder.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
KEPT = ("table*.md", "table*.csv", "figure-*.png", "result.json", "scorecard.json", "equivalence.json")
RECORDS = {"result.json": "", "scorecard.json": "measure", "plan.json": "plan", "equivalence.json": "equalize"}
"""The record of a run, and what the run is called where the record does not say."""
LARGEST = 400_000
"""Bytes: larger pictures are made smaller, other larger files stay in the run folder."""


def collect(folder: Path) -> None:
    """Keep the tables and figures of a finished run as docs/results/runs/<verb>-<models>."""
    record = next((folder / name for name in RECORDS if (folder / name).is_file()), None)
    if record is None:
        sys.exit(f"{folder} holds no finished run")
    plain = json.loads(record.read_text("utf-8"))
    cards = plain["models"] if "models" in plain else [plain["model"]]
    kind = plain.get("name") or RECORDS[record.name]
    name = "-".join([kind.replace("/", "-"), *(Path(card["id"]).name for card in cards)])
    if record.name == "plan.json":
        name += "-" + plain["budget"].partition(" ")[0] + f"-{plain['method']}" * (plain["method"] != "rtn")
    if plain.get("edits"):
        name += "-edited"
    target = HERE / "runs" / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for pattern in KEPT:
        for file in folder.glob(pattern):
            _keep(file, target / file.name)
    if plain.get("claims") and not (target / "result.json").is_file():  # what the index is made from stays
        less = {**plain, "data": {}, "charts": []}
        (target / "result.json").write_text(json.dumps(less, indent=1), encoding="utf-8")
        print("result.json: kept without data and charts")
    print(f"{folder} -> {target.relative_to(HERE)}")


def _keep(file: Path, target: Path) -> None:
    """Copy a file that is not too large; of a picture that is, a smaller one. Says what it left out."""
    if file.stat().st_size <= LARGEST:
        shutil.copy(file, target)
        return
    if file.suffix == ".png":
        for scale in (1.0, 0.75, 0.5):
            _smaller(file, target, scale)
            if target.stat().st_size <= LARGEST:
                print(f"{file.name}: {file.stat().st_size:,} bytes, kept with {target.stat().st_size:,}")
                return
        target.unlink()
    print(f"{file.name}: {file.stat().st_size:,} bytes, LEFT OUT (largest: {LARGEST:,})")


def _smaller(file: Path, target: Path, scale: float) -> None:
    """A picture in 256 colours, at a share of its size."""
    from PIL import Image  # matplotlib needs it too

    with Image.open(file) as picture:
        plain = picture.convert("RGB")
        if scale < 1:
            plain = plain.resize((round(plain.width * scale), round(plain.height * scale)))
        plain.quantize(256).save(target, optimize=True)


def build() -> None:
    """Fill every template."""
    for template in sorted((HERE / "pages").glob("*.md")):
        text = re.sub(r"^\{\{ (\S+) \}\}$", lambda match: _filled(match[1]), template.read_text("utf-8"), flags=re.M)
        (HERE / template.name).write_text(text, encoding="utf-8")
        print(f"docs/results/{template.name}")
    for table in sorted(HERE.glob("runs/*/table.md")):
        table.with_name("README.md").write_text(_run_page(table.parent), encoding="utf-8")


def _filled(name: str) -> str:
    return _claims() if name == "claims" else _run(name)


def _claims() -> str:
    """What every collected run says of the papers' claims: the table of all, then why, run by run."""
    from studfinder.records import Result, from_json  # the rest of this script needs nothing installed
    from studfinder.report.cells import markdown
    from studfinder.report.claims import claims_overview, claims_table, verdicts

    texts = [(file.parent.name, file.read_text("utf-8")) for file in sorted((HERE / "runs").glob("*/result.json"))]
    runs = [(name, from_json(Result, text, name=name)) for name, text in texts if '"claims"' in text]
    runs = [(name, result) for name, result in runs if result.claims]
    every = [claim for _, result in runs for claim in result.claims]
    hours = sum(result.run.seconds for _, result in runs) / 3600
    asked = f"{len(every)} times a model was asked whether a claim holds: {verdicts(every)}."
    lines = [f"{asked} The runs took {hours:.1f} hours."]
    lines += [markdown(table) for table in claims_overview([result for _, result in runs])]
    for name, result in runs:
        seconds, of = result.run.seconds, ", ".join(Path(card.id).name for card in result.models) or "its own models"
        lines += [
            f"## {result.name}, {of}",
            f"[The run](runs/{name}/README.md), {seconds / 60:.0f} minutes: `{result.run.command}`",
        ]
        claims = [markdown(table).split("\n", 2)[2] for table in claims_table(result.claims)]
        lines += [f"<details><summary>{verdicts(result.claims)}</summary>", *claims, "</details>"]
    return "\n\n".join(lines)


def _run(name: str) -> str:
    """What a run answers, its figures, and where its tables are."""
    folder = HERE / "runs" / name
    if not (folder / "table.md").is_file():
        sys.exit(f"no run was collected as {name}")
    answer, tables = _parts(folder)
    titles = ", ".join(title for title, _ in tables)
    return "\n\n".join([answer, *_figures(folder, f"runs/{name}/"), f"[Its tables](runs/{name}/README.md): {titles}."])


def _run_page(folder: Path) -> str:
    """The page of one run: the answer and the figures first, then every table, folded."""
    answer, tables = _parts(folder)
    title = (folder / "table.md").read_text("utf-8").partition("\n")[0]
    kind = title.removeprefix("# ").replace("/", "-")
    of = f": {folder.name.removeprefix(kind)[1:]}" if folder.name.startswith(f"{kind}-") else ""
    folded = [f"<details><summary>{name}</summary>\n\n{table}\n\n</details>" for name, table in tables]
    return "\n\n".join([title + of, answer, *_figures(folder, ""), *folded]) + "\n"


def _parts(folder: Path) -> tuple[str, list[tuple[str, str]]]:
    """A run's answer with the time that it took, and its tables by their titles."""
    answer, *tables = re.split(r"^### ", (folder / "table.md").read_text("utf-8").partition("\n")[2], flags=re.M)
    record = folder / "result.json"
    if record.is_file():
        seconds = json.loads(record.read_text("utf-8"))["run"]["seconds"]
        answer = re.sub(
            r"(Command: `[^`]+`)$", rf"\1. It took {seconds / 60:.0f} minutes.", answer, count=1, flags=re.M
        )
    return answer.strip(), [(title, table.strip()) for title, _, table in (one.partition("\n") for one in tables)]


def _figures(folder: Path, where: str) -> list[str]:
    return [f"![{figure.stem}]({where}{figure.name})" for figure in sorted(folder.glob("figure-*.png"))]


if __name__ == "__main__":
    if sys.argv[1:2] == ["collect"]:
        for path in sys.argv[2:]:
            collect(Path(path))
    else:
        build()
