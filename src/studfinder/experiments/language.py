"""Small language models of several kinds, trained on one text at several seeds: shared settings, shared loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from studfinder.experiments.experiment import Bench
from studfinder.experiments.seeds import Cells
from studfinder.experiments.trained import every_cell, recipe_of, run_cell
from studfinder.training import ModelShape, TextSource, tokenized

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
"""A few hundred thousand parameters that read two million tokens: what two cores train in minutes. By this name there
is the test split of WikiText-2 alone, half a million tokens, so that each is read several times (`about_text`)."""


def source_of(bench: Bench) -> TextSource:
    """The text of the settings, with a tokenizer trained on it."""
    s = bench.settings
    bench.progress(f"reading {s['text']}", 0, 1)
    return tokenized(s["text"], s["length"], s["vocabulary"] or None)[0]


def model_shape(settings: Mapping[str, Any]) -> ModelShape:
    """The sizes of the settings."""
    return ModelShape(layers=settings["layers"], hidden=settings["hidden"], heads=settings["heads"], tied=True)


def language_cells(
    bench: Bench,
    source: TextSource,
    kinds: Mapping[str, list[str]],
    *,
    watch: bool = True,
    finish: Callable[[Any], dict[str, Any]] = lambda model: {},
) -> Cells:
    """Train every kind of attention at every seed on one text; see `run_cell` for a cell.

    Args:
        kinds: variants by name.
        watch: look at outliers on the way.
        finish: what else to measure of the trained model.
    """
    s = bench.settings
    shape = model_shape(s)

    def cell(name: str, seed: int, folder: Path | None) -> dict[str, Any]:
        recipe = recipe_of(s, seed)
        kind = kinds[name]
        return run_cell(source, source.vocabulary, shape, kind, recipe, watch=watch, folder=folder, finish=finish)

    return every_cell(bench, list(kinds), s["seeds"], cell)


def about_text(source: TextSource, settings: Mapping[str, Any]) -> str:
    """How much text there is, and how often training read it."""
    read = settings["steps"] * settings["batch"] * source.length
    here = source.train_windows * source.length
    return (
        f"The text {source.name}{_files(source.name)} has {len(source.tokens_N):,} tokens (its own tokenizer's). "
        f"Training read {read:,} tokens: it saw its {here:,} {read / here:.1f} times. The last {source.test_rows:,} "
        f"windows of {source.length} are kept for testing."
    )


def _files(name: str) -> str:
    """Which files a text below STUDFINDER_DATA is: a name does not say which split of a data set it stands for."""
    folder = Path(os.environ.get("STUDFINDER_DATA", "")) / name
    found = sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return f" ({', '.join(found)})" if 0 < len(found) <= 3 else ""
