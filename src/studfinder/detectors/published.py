"""Super weights that papers and their code have published, with the known misprints.

Sources: Yu et al. 2024 (arXiv 2411.07191v1), Table 2, and the coordinate map in the authors' code. Where the two
differ, the note says which one the weights themselves bear out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from studfinder.records import ModelCard, PublishedWeight, SuperWeight

_PAPER = "Yu et al. 2024, Table 2"
_CODE = "code of Yu et al. 2024, not in the paper"


@dataclass(frozen=True)
class Published:
    """Coordinates for one model. `key` is matched against names without case and punctuation; `shape` is (layers,
    hidden, intermediate); `weights` are (layer, row, col)."""

    model: str
    key: str
    shape: tuple[int, int, int]
    weights: tuple[tuple[int, int, int], ...]
    source: str = _PAPER


TABLE: tuple[Published, ...] = (
    Published("Llama-7B", "llama7b", (32, 4096, 11008), ((2, 3968, 7003),)),
    Published("Llama-13B", "llama13b", (40, 5120, 13824), ((2, 2231, 2278), (2, 2231, 6939))),
    Published("Llama-30B", "llama30b", (60, 6656, 17920), ((3, 5633, 12817), (3, 5633, 17439), (10, 5633, 14386))),
    Published("Llama-2-7B", "llama27b", (32, 4096, 11008), ((1, 2533, 7890),)),
    Published("Llama-2-13B", "llama213b", (40, 5120, 13824), ((3, 4743, 7678),)),
    Published("Mistral-7B-v0.1", "mistral7b", (32, 4096, 14336), ((1, 2070, 7310),)),
    Published(
        "OLMo-1B-0724",
        "olmo1b0724",
        (16, 2048, 8192),
        ((1, 1764, 1710), (2, 1764, 8041)),
        f"{_PAPER}, which misprints the second one's layer as 1; the code has 2, where the spikes are",
    ),
    Published(
        "OLMo-7B-0724",
        "olmo7b0724",
        (32, 4096, 11008),
        ((1, 269, 7467), (2, 269, 8275), (7, 269, 453), (24, 269, 2300)),
    ),
    Published(
        "Phi-3-mini-4k-instruct",
        "phi3mini4k",
        (32, 3072, 8192),
        ((2, 525, 808), (2, 1693, 808), (2, 1113, 808), (4, 525, 2723), (4, 1113, 2723), (4, 1693, 2723)),
    ),
    Published(
        "Meta-Llama-3-8B",
        "llama38b",
        (32, 4096, 14336),
        ((1, 788, 2427), (1, 1384, 2427), (1, 4062, 2427)),
        _CODE,
    ),
    Published(
        "gemma-7b", "gemma7b", (28, 3072, 24576), ((0, 1995, 21041),), f"{_CODE}; marked there as not sufficient"
    ),
    Published(
        "falcon-7b",
        "falcon7b",
        (32, 4544, 18176),
        ((3, 2002, 10708), (4, 2002, 5921)),
        f"{_CODE}; commented out there",
    ),
    Published(
        "Llama-3.2-1B",
        "llama321b",
        (16, 2048, 8192),
        (),
        "reported second-hand: input neuron 1417, rows 400, 698, 2029 and 1159, layer not given",
    ),
)


def published_for(model: ModelCard, found: Sequence[SuperWeight]) -> tuple[PublishedWeight, ...]:
    """The published coordinates that apply to this model, and whether this scan found them.

    A name that contains a published model's name matches by name; failing that, every model of the same layers, hidden
    and intermediate size is offered as a match by shape (fine-tunes keep their base's super weights).
    """
    name = re.sub(r"[^a-z0-9]", "", model.id.lower().replace("meta-", ""))
    shape = (model.layers, model.hidden, model.intermediate)
    by_name = [entry for entry in TABLE if entry.key in name]
    by_shape = [entry for entry in TABLE if entry.shape == shape and entry.shape[2]]
    kind, entries = ("name", by_name) if by_name else ("shape", by_shape)
    places = {(w.layer, w.row, w.col): (rank, w) for rank, w in enumerate(found, 1)}
    checked = []
    for entry in entries:
        for layer, row, col in entry.weights:
            rank, weight = places.get((layer, row, col), (None, None))
            checked.append(
                PublishedWeight(
                    model=entry.model,
                    layer=layer,
                    row=row,
                    col=col,
                    source=entry.source,
                    match=kind,  # type: ignore[arg-type]
                    rank=rank,
                    verdict=weight.verdict if weight else None,
                )
            )
    return tuple(checked)
