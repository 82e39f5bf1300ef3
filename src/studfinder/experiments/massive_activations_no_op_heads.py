"""Why massive activations exist: heads that want to write nothing (Sun et al. 2024, section 4, figures 5 to 8).

The paper shows, by eye, that attention after the layer where massive activations appear concentrates on their tokens,
that keys and values there are nearly the same for any text, and that those tokens therefore add nearly the same vector
to every query: u_k = sum over massive tokens i of p_ki v_i, an implicit bias. No statistic is given. Here, for every
layer, text and head (the tokens C of a text's first half that are massive as they enter the layer; and the queries k of
its second half, those that are massive left out), with BOS and without:

* attention mass: mean over k of the sum over C of p_ki; controls: as many tokens right beside them, as many random ones
  of the same half, and the same tokens while their massive entries are set to zero;
* value norm: |v_i| at C over the mean |v_i| at the half's other tokens: much below 1, attending there is a no-op;
* share of the output: |u_k| / |sum over all i of p_ki v_i|;
* constancy: mean_k |u_k - ubar| / |ubar|, 0 if every query gets the same; controls: as many random other tokens of the
  same half, several draws, and for each head as many of those to which it attends most;
* value across texts: cosine between the values of two texts' first massive tokens, of texts in pairs; control: one
  random token each. With BOS that token is the same in all texts, and so is its value by construction.

Layers up to and with the onset are "before": their attention cannot see massive activations yet. Texts (our prompts and
our proof text, never fewer than two) are resampled.

Look at: mass before and after and beside, and constancy against its controls.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from studfinder.errors import StudfinderError
from studfinder.experiments.massive_attention import attention_to_massive, head_means, mass_at_zero
from studfinder.experiments.massive_no_op_claims import NO_OP_CLAIMS, no_op_claims
from studfinder.experiments.massive_onset import Onset, onsets
from studfinder.experiments.massive_reading import ids_of
from studfinder.models import LM
from studfinder.records import Cell, Chart, Interval, Plot, Table, line
from studfinder.records.config import option
from studfinder.report.words import count, number, times
from studfinder.stats import mean_interval
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig
from studfinder.texts import default_prompts, proof_text


@dataclass(frozen=True, kw_only=True)
class NoOpConfig(StudyConfig):
    """Which texts, and how the null is drawn."""

    limit: int = option(28, help="Of our prompts and our proof text.", least=1)
    draws: int = option(10, help="Draws of random tokens.", least=1)
    window: int = option(256, help="Tokens of a text, at most.", least=1)


EXPERIMENT = Experiment(
    name="massive-activations/no-op-heads",
    paper="2402.17762",
    shows="figures 5 to 8 (and statistics that are ours)",
    summary="Do heads attend to massive tokens in order to write nothing, or the same to everyone?",
    needs="about 2 minutes and 1 GB with smollm2 on two cores",
    presets={"cpu": NoOpConfig()},
    claims=NO_OP_CLAIMS,
)
_MEASURES = {
    "held": "massive tokens",
    "mass": "attention mass on them",
    "beside": "on as many beside them",
    "random": "on as many at random",
    "zeroed": "on them, massive entries at zero",
    "norm": "their value norm / others'",
    "moved": "mass x value norm",
    "share": "share of the output they make",
    "constancy": "constancy of what they add",
    "null": "constancy, random tokens",
    "attended": "constancy, most attended others",
}
_Texts = Sequence[dict[str, Any]]
"""What `_read` gives, by text."""


def run(bench: Bench, lm: LM) -> Outcome:
    """Read every text, with and without BOS, for its massive tokens and its attention, and again with those at zero."""
    own, texts = bench.config, [*default_prompts(), *proof_text()][: bench.config.limit]
    every, notes = onsets(lm)
    outcome = Outcome(notes=notes)
    numbers: dict[str, Mapping[str, tuple[Interval, Interval, Interval]]] = {}
    for label, (bos, onset) in every.items():
        seen = []
        for place, ids in enumerate(ids_of(lm, texts, own.window, bos=bos)):
            bench.progress(f"reading attention, {label}", len(numbers) * len(texts) + place, len(every) * len(texts))
            read = bench.once(f"{label} {place}", partial(_read, own, lm, onset, ids, place))
            seen += [read] if read is not None else []
        if len(seen) < 2:
            why = f"{label}: {count(len(seen), 'text')} of {len(texts)} can be read"
            outcome.notes.append(
                f"{why}: a massive token in the first half, and attention whose weights can be formed."
            )
            continue
        layers = sorted({int(layer) for text in seen for layer in text})
        phases = _phases(onset, layers)
        outcome.tables.append(_phase_table(label, onset, seen, phases))
        if not numbers:
            outcome.tables.append(_layer_table(label, seen, layers))
            outcome.charts.append(_chart(onset, seen, layers))
        after = phases.get(_after(onset), [])
        outcome.notes += _notes(label, onset, seen, phases.get(_before(onset)), after) if after else []
        numbers[label] = _numbers(seen, after) if after else {}
    if not numbers:
        raise StudfinderError(
            " ".join(outcome.notes), expected="at least two texts", do="Raise --limit or --set window"
        )
    outcome.claims += no_op_claims(numbers)
    return outcome


def _before(onset: Onset) -> str:
    return f"before: layers to {onset.layer}"


def _after(onset: Onset) -> str:
    return f"after: layers {onset.layer + 1} to {onset.last + 1}"


def _phases(onset: Onset, layers: Sequence[int]) -> dict[str, list[int]]:
    phases: dict[str, list[int]] = {}
    for layer in layers:
        late = _after(onset) if layer <= onset.last + 1 else f"gone: layers from {onset.last + 2}"
        phases.setdefault(_before(onset) if layer <= onset.layer else late, []).append(layer)
    return phases


def _read(own: NoOpConfig, lm: LM, onset: Onset, ids: list[int], place: int) -> dict[str, Any] | None:
    """One text: for each layer the means over heads; None if its first half holds no massive token."""
    random = torch.Generator().manual_seed(own.seed + place)
    seen = list(attention_to_massive(lm, onset, ids))
    if not seen:
        return None
    zeroed = mass_at_zero(lm, onset, ids, seen)
    return {str(one.layer): head_means(one, zeroed[one.layer], random, own.draws) for one in seen}


def _over(seen: _Texts, layers: Sequence[int], key: str, minus: str = "") -> Interval:
    values = _by_text(seen, layers, key)
    return mean_interval(values - _by_text(seen, layers, minus) if minus else values, what="texts")


def _by_text(seen: _Texts, layers: Sequence[int], key: str) -> np.ndarray:
    """Each text's mean over those of the layers that it was read in; texts that were read in none are left out."""
    found = [[text[str(layer)][key] for layer in layers if str(layer) in text] for text in seen]
    return np.array([np.mean(values) for values in found if values])


def _cosines(seen: _Texts, layers: Sequence[int], key: str) -> np.ndarray:
    """Of texts in pairs, each in one, the cosine of their value vectors: mean over layers and heads."""
    means = []
    for one, other in zip(seen[::2], seen[1::2], strict=False):
        both = [(one[key_L], other[key_L]) for key_L in map(str, layers) if key_L in one and key_L in other]
        if both:
            a, b = (np.array([pair[side][key] for pair in both]) for side in (0, 1))
            length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
            means.append(float(((a * b).sum(axis=-1) / np.maximum(length, 1e-30)).mean()))
    return np.array(means)


def _numbers(seen: _Texts, after: Sequence[int]) -> Mapping[str, tuple[Interval, Interval, Interval]]:
    """What decides each claim, and what it contrasts, in the layers after the onset."""
    pairs = {
        "attend": ("mass", "beside"),
        "drawn": ("mass", "zeroed"),
        "queries": ("constancy", "null"),
        "attended": ("constancy", "attended"),
    }
    found = {
        name: (_over(seen, after, *both), _over(seen, after, both[0]), _over(seen, after, both[1]))
        for name, both in pairs.items()
    }
    value, other = (_cosines(seen, after, key) for key in ("value", "other"))
    if len(value) > 1:
        number, effect, control = (
            mean_interval(cosines, what="pairs of texts") for cosines in (value - other, value, other)
        )
        found["texts"] = (number, effect, control)
    return found


def _phase_table(label: str, onset: Onset, seen: _Texts, phases: dict[str, list[int]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for phase, layers in phases.items():
        cosines = [_cosines(seen, layers, key) for key in ("value", "other")]
        shown = [mean_interval(own, what="pairs of texts") if len(own) > 1 else None for own in cosines]
        rows.append((phase, *(_over(seen, layers, key) for key in _MEASURES), *shown))
    return Table(
        title=f"before and after massive activations appear, {label}",
        columns=("layers", *_MEASURES.values(), "value's cosine across texts", "cosine, random tokens"),
        rows=tuple(rows),
        note="Massive tokens: those of a text's first half that hold a massive activation as they enter the layer "
        f"(before: after layer {onset.layer}); queries: the other tokens of its second half. Means over layers and "
        f"heads, then over {count(len(seen), 'text')} (intervals). Constancy: 0 if every query gets the same. The "
        "paper has figures of layers 3, 15 and 30 of LLaMA2-7B and no number.",
    )


def _layer_table(label: str, seen: _Texts, layers: Sequence[int]) -> Table:
    keys = ("mass", "beside", "zeroed", "norm", "share", "constancy", "null", "attended")
    rows: list[tuple[Cell, ...]] = []
    for layer in layers:
        heads = next(text[str(layer)]["heads"] for text in seen if str(layer) in text)
        shown = (_over(seen, [layer], key) for key in keys)
        rows.append((str(layer), *shown, float(_by_text(seen, [layer], "no_op_heads").mean()), heads))
    return Table(
        title=f"by layer, {label}",
        columns=("layer", *(_MEASURES[key] for key in keys), "no-op heads", "heads"),
        rows=tuple(rows),
        note="No-op head: more than half of its attention on massive tokens, whose values are less than half as long "
        "as others'. Mean number over texts.",
    )


def _notes(label: str, onset: Onset, seen: _Texts, before: Sequence[int] | None, after: Sequence[int]) -> list[str]:
    notes = []
    if before is not None:
        phases = (set(map(str, before)), set(map(str, after)))
        both = [text for text in seen if all(phase & set(text) for phase in phases)]
        mass, then = (_by_text(both, layers, "mass") for layers in (before, after))
        change = mean_interval(then - mass, what="texts")
        went = "grows" if change.low > 0 else "shrinks" if change.high < 0 else "does not clearly change"
        notes.append(
            f"{label}: attention on the massive tokens {went} after they appear (layer {onset.layer}): "
            f"{mass.mean():.0%} before, {then.mean():.0%} after (difference {change:+.0%})."
        )
    share, constancy, null = (_by_text(seen, after, key).mean() for key in ("share", "constancy", "null"))
    norm, apart = _over(seen, after, "norm"), _over(seen, after, "constancy", "null")
    short = "shorter than" if norm.high < 1 else "longer than" if norm.low > 1 else "about as long as"
    how = "steadier than" if apart.high < 0 else "less steady than" if apart.low > 0 else "about as steady as"
    notes.append(
        f"{label}: after it their values are {short} others' ({times(norm)}), they make {share:.0%} of the heads' "
        f"output by length, and what they add is {how} what random tokens add (constancy {number(constancy)} against "
        f"{number(null)})."
    )
    return notes


def _chart(onset: Onset, seen: _Texts, layers: Sequence[int]) -> Chart:
    """Mass, value norm and constancy by layer."""

    def plot(title: str, *keys: str, none: float | None = None) -> Plot:
        series = tuple(
            line(
                named.get(key, "massive tokens"),
                layers,
                (_over(seen, [layer], key) for layer in layers),
                quiet=key in named,
            )
            for key in keys
        )
        x, shaded = "layer; shaded: massive ones are there", (onset.layer + 0.5, onset.last + 1.5)
        return Plot(kind="lines", series=series, title=title, x=x, none=none, shaded=shaded)

    named = {"null": "random tokens", "beside": "tokens beside them"}
    norm = plot("value norm / others'", "norm", none=1.0)
    return Chart(
        name="layers",
        plots=(plot("attention mass", "beside", "mass"), norm, plot("variation over queries", "null", "constancy")),
    )
