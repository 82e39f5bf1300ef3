"""Which heads do what: a map of induction, previous-token and no-op heads over all heads of a model.

The paper (Sun et al. 2024, section 4) shows attention to massive tokens averaged over heads. Here every head has three
scores, each with a control that the same head is given:

* induction: on random tokens that are repeated once, mean attention from the second half to the token after the same
  token's first occurrence (Olsson et al. 2022); control: the second half in another random order, attention to the same
  places;
* previous token: on our prompts and our proof text, mean attention to the token before; control: to the one before
  that, which a head that looks at all recent tokens sees as well;
* no-op: on the same texts, mean attention from a second half's tokens to the massive tokens of the first half, as they
  enter the layer; control: to as many tokens right beside them. A head does nothing there if their values are short,
  too.

A head is called one of a kind if its score is above 0.3 (what makes an attention sink) and the lower end of score minus
control, corrected for the number of heads (Bonferroni, Student's t over sequences or texts), is above 0. Layers and
heads count from 0. Texts begin as the tokenizer begins them.

Look at: where in depth each kind sits, and whether no-op heads begin where massive activations do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from studfinder.detectors.attention_sinks import attention_weights
from studfinder.errors import StudfinderError
from studfinder.experiments.massive_attention import attention_to_massive, calls_of
from studfinder.experiments.massive_onset import Onset, onset_of
from studfinder.experiments.massive_reading import conditions, ids_of
from studfinder.measures.induction import prefix_matching, repeated
from studfinder.models import LM
from studfinder.records import Cell, Interval, Table
from studfinder.records.config import option
from studfinder.report.style import RAMP, new_figure
from studfinder.report.words import count
from studfinder.stats import student_interval
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import default_prompts, proof_text


@dataclass(frozen=True, kw_only=True)
class HeadsConfig(StudyConfig):
    """What is read."""

    limit: int = option(20, help="Of our prompts and our proof text.", least=2)
    window: int = option(256, help="Tokens of a text, at most.", least=1)
    sequences: int = option(16, help="Sequences of random tokens.", least=2)
    length: int = option(48, help="Random tokens of a sequence, which are then repeated.", least=2)


EXPERIMENT = Experiment(
    name="massive-activations/heads",
    paper="2402.17762",
    shows="figures 5 to 7, by head (and kinds of heads that are Olsson et al.'s)",
    summary="Which heads look for repetition, which at the token before, and which at massive tokens?",
    needs="about 1 minute and 1 GB with smollm2 on two cores",
    presets={"cpu": HeadsConfig()},
)
_KINDS = {"induction": "induction", "previous": "previous token", "no-op": "no-op (massive tokens)"}
_LEAST = 0.3
_Read = dict[str, list[list[float]]]
"""By layer, one number a head: [score, control]."""


def run(bench: Bench, lm: LM) -> Outcome:
    """Score every head on every sequence and text."""
    own, bos = bench.config, next(iter(conditions(lm).values()))
    texts = ids_of(lm, [*default_prompts(), *proof_text()][: own.limit], own.window, bos=bos)
    onset, why = None, []
    try:
        onset = onset_of(lm, bos=bos)
    except StudfinderError as error:
        why = [f"No head can be a no-op head: {error}"]
    sequences = repeated(lm, own.length, own.sequences, own.seed)
    seen: dict[str, list[_Read]] = {kind: [] for kind in _KINDS}
    for place, ids in enumerate(sequences):
        bench.progress("reading repetition", place, len(sequences) + len(texts))
        seen["induction"].append(bench.once(f"sequence {place}", partial(_induction, lm, ids, own.length, place)))
    for place, ids in enumerate(texts):
        bench.progress("reading texts", len(sequences) + place, len(sequences) + len(texts))
        read = bench.once(f"text {place}", partial(_text, lm, onset, ids))
        seen["previous"].append(read["previous"])
        seen["no-op"] += [read["no-op"]] if read["no-op"] else []
    maps = {kind: _map(read) for kind, read in seen.items() if len(read) > 1}
    if not any(maps.values()):
        raise StudfinderError("no layer of this model has an attention that can be read")
    called = {kind: _called(of) for kind, of in maps.items()}
    tables = [_kinds_table(maps, called, seen), *(_map_table(kind, of, called[kind]) for kind, of in maps.items())]
    return Outcome(tables, [*_notes(maps, called, onset), *why], data={kind: _plain(of) for kind, of in maps.items()})


def _induction(lm: LM, ids: list[int], size: int, place: int) -> _Read:
    """Prefix matching, and the same places of the sequence whose second half is in another order."""
    order = torch.randperm(size, generator=torch.Generator().manual_seed(place)).tolist()
    other = [*ids[:-size], *(ids[len(ids) - size + token] for token in order)]
    both = [
        {layer: prefix_matching(event, size).tolist() for layer, event in calls_of(lm, some)[0].items()}
        for some in (ids, other)
    ]
    return {str(layer): [both[0][layer], both[1][layer]] for layer in both[0]}


def _text(lm: LM, onset: Onset | None, ids: list[int]) -> dict[str, _Read]:
    """Attention one and two tokens back, and to massive tokens and those beside them."""
    previous: _Read = {}
    for layer, event in calls_of(lm, ids)[0].items():
        p_HTS = attention_weights(event, 0, len(ids), len(ids))[0].cpu()
        # From the fourth token on: before it there is little else to attend to.
        back = [p_HTS.diagonal(-steps, dim1=1, dim2=2)[:, 3 - steps :].mean(dim=1).tolist() for steps in (1, 2)]
        previous[str(layer)] = back
    seen = [] if onset is None else attention_to_massive(lm, onset, ids)
    no_op: _Read = {str(one.layer): [one.mass_H.tolist(), one.beside_H.tolist(), one.norm_H.tolist()] for one in seen}
    return {"previous": previous, "no-op": no_op}


_Map = Mapping[int, np.ndarray]
"""By layer, (items, 2 or 3, heads)."""


def _map(read: Sequence[_Read]) -> _Map:
    layers = sorted({int(layer) for one in read for layer in one})
    found = {layer: np.array([one[str(layer)] for one in read if str(layer) in one]) for layer in layers}
    return {layer: values for layer, values in found.items() if len(values) > 1}


def _called(of: _Map) -> dict[tuple[int, int], Interval]:
    """Score minus control of those heads that are of the kind."""
    heads = sum(values.shape[-1] for values in of.values())
    found = {}
    for layer, values in of.items():
        for head in np.flatnonzero(values[:, 0].mean(axis=0) > _LEAST).tolist():
            beyond = values[:, 0, head] - values[:, 1, head]
            apart = student_interval(beyond, np.ones(len(beyond)), level=1 - 0.05 / heads, what="items")
            if apart.low > 0:
                found[layer, head] = apart
    return found


def _kinds_table(maps: Mapping[str, _Map], called: Mapping[str, Any], seen: Mapping[str, Sequence[_Read]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for kind, of in maps.items():
        means = {layer: values.mean(axis=0) for layer, values in of.items()}
        ranked = sorted(
            ((float(mean[0, head]), layer, head) for layer, mean in means.items() for head in range(mean.shape[-1])),
            reverse=True,
        )
        layers = [layer for layer, _ in called[kind]]
        for score, layer, head in ranked[:3]:
            own = of[layer][:, :2, head]
            control, beyond = (
                student_interval(values, np.ones(len(own)), what="items")
                for values in (own[:, 1], own[:, 0] - own[:, 1])
            )
            rows.append(
                (
                    _KINDS[kind],
                    len(called[kind]),
                    sum(mean.shape[-1] for mean in means.values()),
                    f"{min(layers)} to {max(layers)}" if layers else "",
                    f"layer {layer}, head {head}",
                    score,
                    control,
                    beyond,
                    max(float(mean[1].max()) for mean in means.values()),
                )
            )
    counts = ", ".join(f"{_KINDS[kind]} {len(read)}" for kind, read in seen.items() if kind in maps)
    return Table(
        title="kinds of heads",
        columns=(
            "kind",
            "heads of it",
            "of",
            "in layers",
            "the strongest",
            "score",
            "its control",
            "score minus control",
            "largest control of any head",
        ),
        rows=tuple(rows),
        note=f"Of a kind: score above {_LEAST:g}, and above the head's own control at 95 %, corrected for all heads. "
        f"Intervals here are of one head (Student's t). Sequences or texts: {counts}.",
    )


def _map_table(kind: str, of: _Map, called: Mapping[tuple[int, int], Any]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for layer, values in of.items():
        score, control = values.mean(axis=0)[:2]
        marked = (f"{one:.2f}{'*' * ((layer, head) in called)}" for head, one in enumerate(score))
        rows.append((layer, " ".join(marked), " ".join(f"{one:.2f}" for one in control)))
    return Table(
        title=f"{_KINDS[kind]}: every head",
        columns=("layer", "scores of heads 0, 1, ...", "their controls"),
        rows=tuple(rows),
        note="* of this kind.",
    )


def _notes(
    maps: Mapping[str, _Map], called: Mapping[str, Mapping[tuple[int, int], Any]], onset: Onset | None
) -> list[str]:
    parts = [f"{len(called[kind])} {_KINDS[kind]}" for kind in maps]
    total = sum(values.shape[-1] for values in next(iter(maps.values())).values())
    notes = [f"of {count(total, 'head')} {', '.join(parts)} (score above {_LEAST:g} and above the control)."]
    if onset is not None and called.get("no-op"):
        after = [place for place in called["no-op"] if onset.layer < place[0] <= onset.last + 1]
        short = [(layer, head) for layer, head in called["no-op"] if maps["no-op"][layer].mean(axis=0)[2, head] < 0.5]
        both = set(called["no-op"]) & {*called.get("induction", {}), *called.get("previous", {})}
        notes.append(
            f"{len(after)} of {count(len(called['no-op']), 'head')} that attend to massive tokens are in layers "
            f"{onset.layer + 1} to {onset.last + 1}, where these stand; for {len(short)} of them the values there are "
            f"less than half as long as others'. {len(both)} of them are induction or previous-token heads as well."
        )
    return notes


def _plain(of: _Map) -> dict[str, Any]:
    """Enough to draw."""
    return {str(layer): np.round(values.mean(axis=0), 4).tolist() for layer, values in of.items()}


def draw(name: str, seen: dict[str, Any], width: float) -> Figure:
    """A map a kind, layers down and heads across, and the controls' below, in the same colours."""
    wide = width > 600
    kinds = list(seen)
    lines, columns = (2, len(kinds)) if wide else (2 * len(kinds), 1)
    figure = new_figure(width, 90 + lines * (330 if wide else 260))
    figure.suptitle(name, x=0.01, ha="left", fontsize=12.5)
    grid = figure.subplots(lines, columns, squeeze=False)
    colours = TwoSlopeNorm(vmin=0, vcenter=_LEAST, vmax=1)
    for column, kind in enumerate(kinds):
        layers = sorted(map(int, seen[kind]))
        for row in range(2):
            axes = grid[row, column] if wide else grid[2 * column + row, 0]
            heads = max(len(seen[kind][str(layer)][row]) for layer in layers)
            map_LH = np.full((len(layers), heads), np.nan)
            for place, layer in enumerate(layers):
                map_LH[place, : len(seen[kind][str(layer)][row])] = seen[kind][str(layer)][row]
            axes.imshow(map_LH, cmap=RAMP, norm=colours, aspect="auto", interpolation="nearest")
            axes.set_title(_KINDS[kind] if row == 0 else f"{_KINDS[kind]}: control", fontsize=11)
            step = max(1, -(-len(layers) // 8))
            axes.set_yticks(range(0, len(layers), step), labels=[str(layer) for layer in layers[::step]])
            axes.set_xticks(range(0, heads, max(1, -(-heads // 9))))
            axes.spines[:].set_visible(False)
            axes.set_xlabel("head")
            axes.set_ylabel("layer")
    look: Any = {"orientation": "horizontal", "fraction": 0.02, "pad": 0.01, "aspect": 40 if wide else 20}
    bar = figure.colorbar(ScalarMappable(colours, RAMP), ax=grid, **look)
    bar.set_ticks([0, _LEAST, 1], labels=["0", f"{_LEAST:g}", "1"])
    bar.set_label(f"mean attention; of the kind above {_LEAST:g}, if above the control")
    return figure
