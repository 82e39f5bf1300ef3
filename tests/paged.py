"""A page of every kind of record, made up."""

from __future__ import annotations

from pathlib import Path

from proved import made_up_proof
from readers import _samples
from scanned import a_scan
from studfinder.experiments.registry import experiment_named
from studfinder.experiments.sheets import draw_into
from studfinder.records import Result
from studfinder.report import comparison_page, page
from studfinder.report.diagnosis import diagnosis_sheet
from studfinder.report.equivalence import equivalence_sheet
from studfinder.report.plan import plan_sheet
from studfinder.report.quantization import quantization_sheet
from studfinder.report.training import training_sheet
from studfinder.runs import read
from studfinder.verbs.measure import write_cards
from studfinder.verbs.results import write_sheet


def pages(folder: Path) -> dict[str, Path]:
    """The page of each, by its name; everything is written into a folder of its own."""
    made = _samples()
    found, profile = a_scan()
    proved = made_up_proof(found)
    sheets = {
        "plan": plan_sheet(made["Plan"], made["Sensitivity"], {"a tool": "a: recipe"}),
        "diagnosis": diagnosis_sheet(made["Diagnosis"]),
        "equivalence": equivalence_sheet(made["Equivalence"]),
        "quantization": quantization_sheet(made["Quantization"]),
        "training": training_sheet(made["Training"]),
    }
    html = {
        "scan": page(proved, profile, folder="runs/a"),
        "scan-null": page(*a_scan(found=False), folder="runs/b"),
        "comparison": comparison_page([("a", proved, profile), ("b", *a_scan(found=False))]),
    }
    places = {name: folder / name / "report.html" for name in (*sheets, *html, "scorecard", "experiment")}
    for place in places.values():
        place.parent.mkdir(parents=True)
    for name, sheet in sheets.items():
        write_sheet(folder / name, sheet)
    for name, text in html.items():
        places[name].write_text(text, encoding="utf-8")
    write_cards(folder / "scorecard", [made["Scorecard"]])
    run = Path(__file__).parent.parent / "docs/results/runs/massive-activations-where-smollm2"
    result = read(run, Result)
    draw_into(folder / "experiment", result, experiment_named(result.name))
    return places
