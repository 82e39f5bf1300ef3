"""Small language models of several kinds, trained on one text at several seeds: shared settings, shared loop."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studfinder.records import Table
from studfinder.records.config import option
from studfinder.studies.experiment import Bench
from studfinder.studies.seeds import Cells, ends_table
from studfinder.studies.trained import ModelKind, SizedConfig, every_cell
from studfinder.training import TextSource, tokenized


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(SizedConfig):
    """And which text is read."""

    text: str = option("wikitext2", help="What is read: a data set or a file.")
    vocabulary: int = option(1024, help="Ids of the tokenizer that is trained on it; 0 is bytes.", least=0)
    layers: int = option(4, help="Blocks.", least=1)


SMALL = LanguageConfig(
    length=128, hidden=96, steps=1000, batch=16, warmup=100, schedule="cosine", look_every=100, test=64
)
"""A few hundred thousand parameters that read two million tokens: what two cores train in minutes. By this name there
is the test split of WikiText-2 alone, half a million tokens, so that each is read several times (`language_table`)."""


def source_of(bench: Bench) -> TextSource:
    """The text of the settings, with a tokenizer trained on it."""
    own = bench.config
    bench.progress(f"reading {own.text}", 0, 1)
    return tokenized(own.text, own.length, own.vocabulary or None)[0]


def language_cells(bench: Bench, source: TextSource, attentions: Mapping[str, Sequence[str]], **more: Any) -> Cells:
    """Train the same model with every kind of attention, at every seed; see `every_cell`."""
    own = bench.config
    shape = own.shape(own.layers, tied=True)
    return every_cell(bench, source, {name: ModelKind(shape, kind) for name, kind in attentions.items()}, **more)


def language_table(
    bench: Bench, source: TextSource, cells: Cells, columns: dict[str, str], first: str = "attention"
) -> Table:
    """Where curves end, and how much text there is, and how often training read it."""
    own = bench.config
    read = own.steps * own.batch * source.length
    here = source.train_windows * source.length
    note = (
        f"The text {source.name}{_files(source.name)} has {len(source.tokens_N):,} tokens (its own tokenizer's). "
        f"Training read {read:,} tokens: it saw its {here:,} {read / here:.1f} times. The last {source.test_rows:,} "
        f"windows of {source.length} are kept for testing."
    )
    return ends_table(f"After {own.steps} steps on {own.text}", cells, columns, first, note)


def _files(name: str) -> str:
    """Which files a text below STUDFINDER_DATA is: a name does not say which split of a data set it stands for."""
    folder = Path(os.environ.get("STUDFINDER_DATA", "")) / name
    found = sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return f" ({', '.join(found)})" if 0 < len(found) <= 3 else ""
