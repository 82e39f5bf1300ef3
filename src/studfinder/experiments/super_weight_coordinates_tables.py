"""What super-weight/coordinates says: where inputs and outputs cross, in layers with super weights and in others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from studfinder.records import Cell, Chart, Claim, ClaimResult, Comparison, Plot, Series, Table, point
from studfinder.stats import mean_interval, ratio_interval
from studfinder.studies import judged

OVER_PROMPTS = Claim(
    key="super-weight/prompts",
    says="Whatever the prompt, the super weight is the same weight.",
    decides="share of prompts at which the largest input and output of a super weight's layer cross at it, less the "
    "share at which those of other layers cross at their commonest place",
    published="one prompt is enough to find it",
)
VERSIONS = Claim(
    key="super-weight/versions",
    says="A model that is rounded or trained on keeps its super weights where they were.",
    decides="share of prompts, over all versions, at which the largest input and output of a super weight's layer "
    "cross at it, less the share at which those of other layers cross where they commonly did",
    published="instruct models have the places of their base (two pairs of models); of rounded ones nothing is said",
)

AS_IS = "as it is"
Crossing = list[int]
"""Writer, row and column: where a layer's largest input and output cross."""
SeenVersion = dict[str, Any]
"""Of one version: "places", by prompt and layer (None where a layer writes nothing); and what `without` gives."""


def commonest(places: Sequence[Crossing | None]) -> Crossing | None:
    """The commonest of some places; None if there is none."""
    counts = Counter(tuple(place) for place in places if place is not None)
    return list(counts.most_common(1)[0][0]) if counts else None


def shares_of(
    read: Sequence[Sequence[Crossing | None]],
    places: Mapping[int, Sequence[Crossing]],
    common: Sequence[Crossing | None],
) -> np.ndarray:
    """(2, prompts): the share of the super weights' layers that cross at one, and of other layers at their commonest
    place."""
    other = [layer for layer, place in enumerate(common) if place is not None and layer not in places]
    own = [[prompt[layer] in places[layer] for layer in places] for prompt in read]
    rest = [[prompt[layer] == common[layer] for layer in other] for prompt in read]
    return np.array([np.mean(own, axis=1), np.mean(rest, axis=1) if other else np.zeros(len(read))])


def judged_shares(claim: Claim, shares: Sequence[np.ndarray]) -> ClaimResult:
    """A claim, by the layers of super weights less the others, over versions."""
    if not shares:
        return judged(claim, None, why="no version was asked for", cost="`--set versions=rtn8,rtn4,gptq4,tuned`")
    own, rest = np.mean(shares, axis=0)
    number, effect, control = (mean_interval(values, what="prompts") for values in (own - rest, own, rest))
    items = f"{number.n} prompts" + (f" in {len(shares)} versions" if len(shares) > 1 else "")
    return judged(claim, number, effect=effect, control=control, items=items, cost=f"`--limit {8 * number.n}`")


def _said(place: Sequence[int] | None) -> str:
    if place is None:
        return "none"
    writer, row, col = place
    return f"[{row}, {col}]" + (f" of writer {writer}" if writer else "")


def layer_table(places: Mapping[int, Sequence[Crossing]], read: Sequence[Sequence[Any]], weights: str) -> Table:
    """By layer, in how many prompts the largest input and output cross at a super weight."""
    rows: list[tuple[Cell, ...]] = []
    for layer, own in sorted(places.items()):
        column = [prompt[layer] for prompt in read]
        elsewhere = [place for place in column if place not in own]
        rows.append(
            (
                layer,
                ", ".join(map(_said, own)),
                mean_interval([float(place in own) for place in column], what="prompts"),
                _said(commonest(elsewhere)),
            )
        )
    return Table(
        title="where the largest input and output cross",
        columns=("layer", "super weights", "share of prompts at one of them", "commonest place elsewhere"),
        rows=tuple(rows),
        note=f"SW: {weights}. Of several in one layer only one can be the place.",
    )


def version_table(seen: Mapping[str, SeenVersion], shares: Mapping[str, np.ndarray]) -> Table:
    """By version, the same over all such layers, and what the first weight does there."""
    rows: list[tuple[Cell, ...]] = []
    before = np.array(seen[AS_IS]["loss"])
    for name, one in seen.items():
        loss = np.array(one["loss"])
        changed = (loss - before, *(np.array(one[group]["loss"]) - loss for group in ("super", "control")))
        each = (ratio_interval(change, np.ones(len(change)), exponential=True) for change in changed)
        own, rest = (mean_interval(values, what="prompts") for values in shares[name])
        rows.append((name, own, rest, *(Comparison(kind="ratio", interval=interval) for interval in each)))
    return Table(
        title="the same weight in versions of the model",
        columns=(
            "version",
            "super weights' layers",
            "other layers",
            "perplexity / as it is",
            "without the first SW",
            "without its control",
        ),
        rows=tuple(rows),
        note="Shares of prompts: in layers with super weights that the largest input and output cross at one of them; "
        "in other layers that they cross at the commonest place of the model as it is. The last two: perplexity on our "
        "proof text with the weight at zero over that of the same version.",
    )


def coordinates_note(shares: Mapping[str, np.ndarray]) -> str:
    """The shares in words."""
    said = [f"{name} {own.mean():.0%} (other layers {rest.mean():.0%})" for name, (own, rest) in shares.items()]
    return (
        "in the layers with super weights the largest input and output cross at one of them in so many of the prompts: "
        f"{'; '.join(said)}."
    )


def coordinates_chart(shares: Mapping[str, np.ndarray]) -> Chart:
    """The shares by version."""
    series = tuple(
        Series(
            name=name,
            points=tuple(point(mean_interval(found[place], what="prompts")) for found in shares.values()),
            quiet=bool(place),
        )
        for place, name in enumerate(("layers of super weights", "other layers"))
    )
    x = "prompts at which input and output cross at the same place"
    return Chart(name="coordinates", plots=(Plot(kind="dots", rows=tuple(shares), series=series, x=x, percent=True),))
