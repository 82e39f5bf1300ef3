"""A tiny model that reads words, and a folder of evaluation data made of such words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from studfinder.models import LM, load
from tiny import V, tiny, tokenizer


def worded(architecture: str = "llama", seed: int = 0) -> LM:
    """A random model with the tokenizer of words w3, w4, ..."""
    return load(tiny(architecture, seed=seed).model, tokenizer())


def words(random: np.random.Generator, count: int) -> str:
    return " ".join(f"w{i}" for i in random.integers(3, V - 1, count))


def write(folder: Path, name: str, rows: list[dict]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def choices(count: int, options: int, seed: int = 0) -> list[dict]:
    """Questions with answers of unequal lengths; the right one is random."""
    random = np.random.default_rng(seed)
    return [
        {
            "question": words(random, int(random.integers(3, 12))),
            "choices": [words(random, int(random.integers(1, 5))) for _ in range(options)],
            "label": int(random.integers(options)),
        }
        for _ in range(count)
    ]
