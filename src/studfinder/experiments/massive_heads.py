"""What is seen of all heads of Q, K and V: which hold a massive entry, and whether they share their largest dims."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from studfinder.experiments.massive_agreement import LayersAgreement, layers_agreement
from studfinder.experiments.norms import LETTERS, LambdaConfig, Maps, chance_holding, holding
from studfinder.models import LM, rotary_of, train_length
from studfinder.records import Cell, Claim, ClaimResult, Interval, Table
from studfinder.stats import mean_interval
from studfinder.studies import judged

QUERY_KEY = Claim(
    key="massive-values/query-and-key",
    says="Heads of Q and K hold massive values; those of V do not.",
    decides="the share of heads of Q and K that hold one less that of heads of V",
    published="their own tensors of one layer, counted here at lambda 5: Llama-2-7B-chat 31 of 32 heads of Q and K, "
    "none of V; Llama-3-8B 32 of 32, 7 of 8, none of 8",
    paper_effect=0.97,
)
VALUE = Claim(
    key="massive-values/not-value",
    says="V holds no more massive values than chance.",
    decides="the share of heads of V that hold one less that of heads of random direction",
    kind="within",
    margin=0.1,
    published="none of 40 heads of V in their own tensors",
)
SAME_DIMS = Claim(
    key="massive-values/same-dims",
    says="The largest dims of Q are the same in every head of a layer.",
    decides="the mean overlap of two heads' largest dims less that of dims shuffled within their rotary band",
    published="heat maps with rows through all heads; no number",
)


@dataclass(frozen=True, kw_only=True)
class HeadsSeen:
    """All heads of one tensor.

    Attributes:
        lam: the lambda of heads of their size.
        chance: the share of heads of random direction that hold one.
        holding_LH: whether they hold a massive entry, 0 or 1.
        agreed: how far they share their largest dims; None for single heads.
        between: the same of query heads that read different keys; None where there are none, or nothing but such.
    """

    lam: float
    chance: float
    holding_LH: np.ndarray
    agreed: LayersAgreement | None
    between: LayersAgreement | None = None

    @property
    def share(self) -> Interval:
        """Of heads that hold one; layers resampled."""
        return _over_layers(self.holding_LH)


def _over_layers(values_LH: np.ndarray) -> Interval:
    layers = np.repeat(np.arange(len(values_LH)), values_LH.shape[1]).tolist()
    return mean_interval(values_LH.ravel(), layers, what="layers")


def heads_of(lm: LM, maps: Maps, tensor: str, own: LambdaConfig) -> HeadsSeen:
    """Read off the maps."""
    norm_LHD, lam = maps.norm_LHD(tensor), own.lambda_of(maps.squares[tensor].shape[-1])
    slow_LD = np.zeros(norm_LHD[:, 0].shape, dtype=bool)
    for place, layer in enumerate(maps.layers[tensor] if tensor != "value" else ()):
        rotary = rotary_of(lm, layer)
        if rotary is not None:
            slow_LD[place] = rotary.never_turns(train_length(lm)[0])
    between, keys = None, maps.squares[tensor.replace("query", "key")].shape[2]
    if 1 < keys < norm_LHD.shape[1] and tensor.startswith("query"):
        between = layers_agreement(norm_LHD, slow_LD, own.seed, groups=keys)
    return HeadsSeen(
        lam=lam,
        chance=chance_holding(norm_LHD.shape[-1], lam),
        holding_LH=holding(norm_LHD, lam),
        agreed=layers_agreement(norm_LHD, slow_LD, own.seed),
        between=between,
    )


def heads_table(heads: Mapping[str, HeadsSeen]) -> Table:
    """A row for each tensor."""
    rows: list[tuple[Cell, ...]] = []
    for tensor, of in heads.items():
        agreed = of.agreed
        alike: tuple[Cell, ...] = (None,) * 5
        if agreed is not None:
            alike = (agreed.overlap, agreed.null, agreed.excess, min(1.0, agreed.p * len(heads)), agreed.agreeing)
        rows.append((LETTERS[tensor], of.lam, of.share, of.chance, *alike, len(of.holding_LH)))
    return Table(
        title="heads of all layers",
        columns=(
            "tensor",
            "lambda",
            "heads with a massive entry",
            "by chance",
            "overlap of heads' largest dims",
            "shuffled within the band",
            "difference",
            "p",
            "layers that agree by themselves",
            "layers",
        ),
        rows=tuple(rows),
        note="By chance: if every head held one vector of random direction; lambda is set by it unless told. "
        "Overlap: of the D/32 largest dims, mean over pairs of heads and over layers. Shuffled: each head's dims by "
        "themselves, among those that turn in training, or that never do (V: among all). p: over all layers together, "
        f"times {len(heads)} tensors. Layers that agree: p below 0.05 times the number of layers. Intervals: layers "
        "resampled; of the difference, the spread of shuffled dims.",
    )


def heads_claims(heads: Mapping[str, HeadsSeen], prompts: int) -> list[ClaimResult]:
    """What they say of the paper."""
    stage = "" if "query" in heads else ".pre_rope"  # all that some models show
    query, key, value = (heads[name] for name in (f"query{stage}", f"key{stage}", "value"))
    both_LH = np.concatenate([query.holding_LH, key.holding_LH], axis=1)
    less_L = both_LH.mean(axis=1) - value.holding_LH.mean(axis=1)
    items = f"{both_LH.size} heads of Q and K and {value.holding_LH.size} of V, {prompts} prompts"
    lam = f"at lambda {query.lam:.2f}, which {query.chance:.1%} of heads exceed by chance"
    return [
        judged(
            QUERY_KEY,
            mean_interval(less_L, what="layers"),
            effect=_over_layers(both_LH),
            control=value.share,
            items=items,
            why=lam,
        ),
        judged(
            VALUE,
            _over_layers(value.holding_LH - value.chance),
            effect=value.share,
            control=value.chance,
            items=items,
            why=lam,
            cost="a model with more heads of V, in a minute or two; every one of this model's was looked at",
        ),
        _same_dims(query, key),
    ]


def _same_dims(query: HeadsSeen, key: HeadsSeen) -> ClaimResult:
    own = query.agreed
    if own is None:
        return judged(SAME_DIMS, None, why="a layer has one head of Q")
    return judged(
        SAME_DIMS,
        own.excess,
        effect=own.overlap,
        control=own.null,
        items=f"{query.holding_LH.shape[1]} heads in each of {own.layers} layers",
        why=f"p = {own.p:.2g}"
        + (f"; heads of Q that read different keys: {_alike(query.between)}" if query.between else "")
        + f"; K: {_alike(key.agreed)}",
    )


def _alike(agreed: LayersAgreement | None) -> str:
    if agreed is None:
        return "a layer has one head"
    return f"{agreed.overlap:.2f} against {agreed.null:.2f} (p = {agreed.p:.2g})"


def heads_note(heads: Mapping[str, HeadsSeen]) -> str:
    """The same in a sentence."""
    parts = [
        f"{LETTERS[name]} {of.share:.0%} (by chance {of.chance:.1%})"
        for name, of in heads.items()
        if ".pre_rope" not in name
    ]
    agreeing = [
        f"{LETTERS[name]} ({of.agreed.overlap:.2f} against {of.agreed.null:.2f})"
        for name, of in heads.items()
        if ".pre_rope" not in name and of.agreed is not None and of.agreed.p * len(heads) < 0.05
    ]
    shared = f"beyond their rotary band, heads share their largest dims for {', '.join(agreeing)}"
    return (
        f"heads with a massive entry: {', '.join(parts)}; "
        f"{shared if agreeing else 'no tensor is shown to share its largest dims beyond its rotary band'}."
    )
