"""Small language models of several kinds, trained on one text at several seeds: shared settings, shared loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from studfinder.experiments.experiment import Bench
from studfinder.experiments.seeds import Cells
from studfinder.experiments.trained import every_cell, recipe_of, run_cell
from studfinder.training import Shape, TextSource, tokenized

SMALL: dict[str, Any] = {
    "text": "wikitext2",
    "vocabulary": 1024,
    "length": 128,
    "layers": 4,
    "hidden": 96,
    "heads": 4,
    "steps": 1000,
    "batch": 16,
    "lr": 2e-3,
    "warmup": 100,
    "schedule": "cosine",
    "look_every": 100,
    "test": 64,
    "seeds": 3,
}
"""A few hundred thousand parameters on two million tokens: what two cores train in minutes."""


def language_cells(
    bench: Bench,
    kinds: Mapping[str, list[str]],
    *,
    watch: bool = True,
    finish: Callable[[TextSource, Any], dict[str, Any]] = lambda source, model: {},
) -> Cells:
    """Train every kind of attention at every seed on the text of the settings; see `run_cell` for a cell.

    Args:
        kinds: variants by name.
        watch: look at outliers on the way.
        finish: what else to measure, given the text and the trained model.
    """
    s = bench.settings
    bench.progress(f"reading {s['text']}", 0, 1)
    source, tokenizer = tokenized(s["text"], s["length"], s["vocabulary"] or None)
    shape = Shape(layers=s["layers"], hidden=s["hidden"], heads=s["heads"], tied=True)

    def cell(name: str, seed: int) -> dict[str, Any]:
        done = partial(finish, source)
        return run_cell(source, len(tokenizer), shape, kinds[name], recipe_of(s, seed), watch=watch, finish=done)

    return every_cell(bench, list(kinds), s["seeds"], cell)
