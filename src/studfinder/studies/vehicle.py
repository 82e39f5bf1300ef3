"""Vehicles: small models made to grow outliers, and whether they did before anything is concluded from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from studfinder.models import LM
from studfinder.records import Table
from studfinder.records.result import Cell
from studfinder.sites import capture
from studfinder.studies.seeds import Trained, last
from studfinder.studies.trained import Watcher
from studfinder.training import Preset, TextSource, TrainingRecipe, tokenized
from studfinder.training.outliers import SEQUENCES
from studfinder.training.presets import Threshold

LOGGED = "vehicle/"
CURVES = {"sink": "outliers/top_sink", "ratio": "ratio", "kurtosis": "kurtosis", "damage": "damage"}
"""Where in a trained cell the numbers of a `Threshold` are."""
TELLING = {
    "outliers/top_sink": "largest attention of a head to BOS",
    "ratio": "largest activation on BOS over the median",
    "kurtosis": "kurtosis of a window",
}


def vehicle_source(chosen: Preset, recipe: TrainingRecipe, length: int) -> TextSource:
    """The texts of a vehicle, as `studfinder train` makes them for a run of these sizes."""
    assert chosen.text is not None
    limit = recipe.text_tokens(length)
    made = tokenized(
        chosen.text, length, chosen.vocabulary, limit=limit, repeat=chosen.repeat, test_text=chosen.test_text
    )
    return made[0]


def growth(source: TextSource) -> Watcher:
    """Sees at each evaluation what tells a vehicle, beside what `OutlierCallback` sees: `ratio` and `kurtosis`."""
    ids_BT = torch.stack([torch.from_numpy(source.row("test", 0, index)["input_ids"]) for index in range(SEQUENCES)])

    def see(lm: LM) -> dict[str, float]:
        streams = capture(lm, ids_BT, [f"residual[{layer}]" for layer in range(len(lm.anatomy.layers))]).values()
        return {
            "ratio": max(float(x_BTC[:, 0].abs().max() / x_BTC.abs().median()) for x_BTC in streams),
            "kurtosis": max(window_kurtosis(x_BTC) for x_BTC in streams),
        }

    return Watcher(LOGGED, see)


def window_kurtosis(x_BTC: torch.Tensor) -> float:
    """Of all numbers of a window, mean over windows; not in excess of a Gaussian's 3. At most T times C."""
    rows = x_BTC.double().flatten(1)
    squares = (rows - rows.mean(dim=1, keepdim=True)).square()
    return float((squares.square().mean(dim=1) / squares.mean(dim=1).square()).mean())


def shortfalls(cell: Trained, threshold: Threshold) -> list[str]:
    """What of the threshold a trained model did not exceed; a number that is not there is not exceeded."""
    return [name for name, least in asdict(threshold).items() if not last(cell, CURVES[name]) > least]


def passed(seeds: Sequence[Trained], threshold: Threshold) -> bool:
    """Whether most seeds of vanilla attention did: else nothing can be decided."""
    return 2 * sum(not shortfalls(cell, threshold) for cell in seeds) > len(seeds)


def vehicle_verdict(seeds: Sequence[Trained], threshold: Threshold, first: int) -> tuple[str, Table]:
    """Whether a vehicle passed its threshold, in a sentence, and by seed. `first` is the first seed."""
    good = sum(not shortfalls(cell, threshold) for cell in seeds)
    what = f"vanilla attention passed the vehicle's threshold at {good} of {len(seeds)} seeds"
    said = "" if passed(seeds, threshold) else ": what outliers do could not be decided here"
    asked = asdict(threshold)
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            str(first + number),
            *(last(cell, CURVES[name]) for name in asked),
            f"no: {', '.join(short)}" if (short := shortfalls(cell, threshold)) else "yes",
        )
        for number, cell in enumerate(seeds)
    )
    columns = ("seed", *(f"{name} (above {least:g})" for name, least in asked.items()), "passed")
    note = (
        "sink: the largest mean attention of a head to BOS; ratio: the largest |a| on BOS over its layer's median; "
        "kurtosis: of all numbers of the residual stream in a window, largest over layers; damage: nats a token lost "
        "in W8A6 with the residual stream rounded too."
    )
    return what[0].upper() + what[1:] + said + ".", Table(
        title="Did the vehicle pass?", columns=columns, rows=rows, note=note
    )
