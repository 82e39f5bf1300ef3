"""Eight-bit activations with the super activations held out (Yu et al. 2024, arXiv 2411.07191, tables 3, 4 and 7).

What it asks: does putting back a few super activations make naive eight-bit activations as good as SmoothQuant? How:
what enters the matrices, and the queries, keys and values that enter the products of attention, in int8; naive, with
SmoothQuant (alpha 0.85, as the paper, and the reference's 0.5), and with the paper's REPLACE-quantise-RESTORE. The
weights stay as they are, so that activations alone count (and what SmoothQuant moves into them costs nothing), with one
scale a token, one a tensor, and one static range a matrix from calibration text; then everything in the paper's own
setting, W8A8: weights in int8 with one scale a tensor, activations with one a token. The paper does not say of what its
median is nor which inputs it means, and released no code for this; here a super activation is a number in a channel
that a proven super weight writes or reads, above 20 times its token's median. Control: as many other channels of the
same inputs, always held out. What to look at: the share of SmoothQuant's gain, where there is a gain to share at all.

The paper's printed step, (max - min) / (2^(N-1) - 1), wastes a bit; here it is absmax / (2^(N-1) - 1), as SmoothQuant.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from studfinder.experiments.quantize_transforms import Unrounded
from studfinder.experiments.weights import SuperWeightConfig, named, super_weights_of, unproven
from studfinder.models import LM
from studfinder.quantizers import RTN, Scheme, Workbench
from studfinder.quantizers.activations import ActivationScheme, Restore, WithActivations, super_channels
from studfinder.quantizers.products import WithProducts
from studfinder.quantizers.smoothquant import SmoothQuant
from studfinder.records import Claim, ClaimResult, Interval, Table
from studfinder.records.config import option
from studfinder.stats import averaged
from studfinder.studies import KL, PAIRED, GridScores, ModelVariant, head, judged, spoken
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, CalibratedConfig, Rounding, families_chart

_HELPS = Claim(
    key="super-weight/restore-activations",
    says="Eight-bit activations lose less when the super activations are held out.",
    decides="KL with super activations held out minus KL with as many other channels held out, nats per token",
    kind="less",
    published="Llama-7B, WikiText-2: perplexity 5.83 naive, 5.74 with them held out, 5.68 in FP16",
)
_SHARES = Claim(
    key="super-weight/restore-share",
    says="Holding out the super activations brings most of what SmoothQuant brings to W8A8.",
    decides="share of SmoothQuant's gain in KL over naive W8A8, beyond that of other channels held out, minus a half",
    published="71 to 83 % of its gain on Llama, 14 and 25 % of FP16's on Mistral-7B, 9 and 17 % on Llama-2-7B",
    paper_effect=0.25,
)


@dataclass(frozen=True, kw_only=True)
class RestoreConfig(CalibratedConfig, SuperWeightConfig):
    """Which texts and elements."""

    texts: tuple[str, ...] = option("wikitext2", help="Texts of perplexities.", commas=True)
    element: str = option("int8", help="What activations are rounded to.")
    alphas: tuple[float, ...] = option("0.85,0.5", help="SmoothQuant's alpha.", commas=True)
    medians: tuple[str, ...] = option("token", help="What REPLACE's median is of: token, tensor, channel.", commas=True)


EXPERIMENT = Experiment(
    name="super-weight/activation-quantization",
    paper="2411.07191",
    shows="tables 3, 4 and 7",
    summary="Does holding out super activations make naive 8-bit activations as good as SmoothQuant?",
    needs="about 15 minutes and 2 GB with smollm2 on two cores (estimated; plus the scan that finds the super weights)",
    presets={"cpu": RestoreConfig()},
    claims=(_HELPS, _SHARES),
    spread=True,
)
NAIVE, OURS, _OTHERS, SMOOTH = "naive", "REPLACE-RESTORE", "other channels held out", "SmoothQuant"
_TOKEN, _W8A8 = "activations alone, per token", "W8A8, per token"
_INT8 = RTN(scheme=Scheme(element="int8", block="tensor", narrow=True))
_FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    _TOKEN: (Unrounded(), {"scope": "token"}),
    "activations alone, per tensor": (Unrounded(), {"scope": "tensor"}),
    "activations alone, static": (Unrounded(), {"scope": "tensor", "range": "static"}),
    _W8A8: (_INT8, {"scope": "token"}),
}
_PAPER = (
    "The paper (W8A8 per token; WikiText-2, C4): Llama-7B 5.68, 7.08 in FP16, naive 5.83, 7.23, SmoothQuant 5.71, "
    "7.12, theirs 5.74, 7.14; Mistral-7B 5.25, 7.75, naive 5.32, 7.83, theirs 5.31, 7.81."
)


@dataclass(frozen=True)
class Smoothed:
    """SmoothQuant's exact part, before anything is rounded."""

    alpha: float
    calibrated: bool = True

    def apply(self, bench: Workbench) -> None:
        SmoothQuant(alpha=self.alpha).smooth(bench)


def run(bench: Bench, lm: LM) -> Outcome:
    """Every way of rounding the activations, on every text."""
    weights, _ = super_weights_of(bench, lm)
    rounding = Rounding(bench, lm)
    variants = list(_variants(rounding, super_channels(lm, weights)))
    scored = rounding.scored(variants, bench.each("perplexity", "texts"))
    naive = {one.family: one.label for one in scored.tried() if one.kept == NAIVE}
    rest = [one for one in scored.tried() if one.family in naive and one.kept != NAIVE]
    pairs = [(one.label, one.label, naive[one.family]) for one in rest]
    tables = [
        scored.scores_table(
            "scores", f"Super weights: {named(weights)}. {_PAPER} {CAVEAT}", bits="bits per weight", first="recipe"
        ),
        scored.changes_table("against naive of the same kind", PAIRED, pairs=pairs),
        _shares_table(scored, naive),
    ]
    notes = [_said(scored, family, label, measure) for family, label in naive.items() for measure in scored.measures]
    for label in (OURS, _OTHERS, SMOOTH):
        for measure in scored.measures:
            own = [(one.label, naive[one.family]) for one in rest if one.kept.startswith(label)]
            says = scored.tally(own, measure)
            notes += [f"{label} against naive {says}, over kinds and variants."] if says else []
    chart = families_chart(scored, "activations", turned=True)
    claims = _judged(scored, naive, unproven(weights))
    return Outcome(tables, [*notes, *scored.notes()], [chart], remarks=[CAVEAT], claims=claims)


def _variants(rounding: Rounding, places: Any) -> Iterator[ModelVariant]:
    own = rounding.bench.config
    yield rounding.variant("weights alone, int8 per tensor", _INT8, family="weights alone")
    others = Restore(places=_other_places(rounding.lm, places, own.seed), ratio=1e-9)  # each, whatever its size
    held: dict[str, Restore | None] = {NAIVE: None}
    held |= {f"{OURS}, median of the {one}": Restore(places=places, median=one) for one in own.medians}
    held[_OTHERS] = others
    for family, (weights, kind) in _FAMILIES.items():
        plain = ActivationScheme(element=own.element, **kind)

        def rounded(restore: Restore | None = None, weights: Any = weights, kind: Any = kind) -> WithActivations:
            activations = ActivationScheme(element=own.element, restore=restore, **kind)
            return WithActivations(weights=weights, activations=activations)

        def variant(label: str, method: Any, family: str = family, **more: Any) -> ModelVariant:
            return rounding.variant(f"{label}, {family}", method, kept=label, family=family, **more)

        if family == _TOKEN:
            yield variant(f"{NAIVE} but for attention's products", rounded())
        for label, restore in held.items():
            yield variant(label, WithProducts(method=rounded(restore), activations=plain))
        for alpha in own.alphas:
            method = WithProducts(method=rounded(), activations=plain)
            yield variant(f"{SMOOTH} {alpha}", method, transforms=[Smoothed(alpha)])


def _other_places(lm: LM, places: Any, seed: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """As many other channels of the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name, channels in places:
        module = lm.model.get_submodule(name.rpartition(".")[0])
        size = getattr(module, "in_features", None) or lm.model.get_parameter(name).shape[0]  # Conv1D is (in, out)
        free = [channel for channel in torch.randperm(size, generator=generator).tolist() if channel not in channels]
        found.append((name, tuple(sorted(free[: len(channels)]))))
    return tuple(found)


def _said(scored: GridScores, family: str, naive: str, measure: str) -> str:
    """What there is to gain."""
    comparison = scored.change(measure, naive)
    assert comparison is not None
    if measure == KL:
        return f"{NAIVE}, {family}: a KL of {comparison.interval} nats."
    says = (
        f"multiplies {spoken(measure)} by {comparison:.4g}"
        if comparison.changed
        else f"costs nothing on {spoken(measure)} that an interval would show, so there is no gain to share"
    )
    return f"{NAIVE}, {family}: it {says}."


def _smoothed(scored: GridScores, family: str, measure: str) -> str | None:
    """SmoothQuant with the alpha that is best on another text: what is judged on a text did not choose it."""
    own = [one.label for one in scored.tried() if one.family == family and one.kept.startswith(SMOOTH)]
    texts = [other for other in scored.measures if other != KL]
    chooses = texts[0] if measure == KL else KL
    return min(own, key=lambda label: scored.scores[label][chooses].value, default=None)


def _gain(scored: GridScores, naive: str, smooth: str, measure: str) -> Interval | None:
    """What SmoothQuant gains against naive, if an interval shows it."""
    gained = scored.change(measure, smooth, naive)
    shown = gained is not None and gained.interval.high < (1 if gained.kind == "ratio" else 0)
    return gained.interval if gained is not None and shown else None


def _shares_table(scored: GridScores, naive: dict[str, str]) -> Table:
    """(naive - ours) / (naive - SmoothQuant), of log perplexity and of KL."""
    rows = []
    for one in scored.tried():
        if one.kept.startswith((OURS, _OTHERS)) and one.family in naive:
            cells = []
            for measure in scored.measures:
                smooth = _smoothed(scored, one.family, measure)
                gain = smooth and _gain(scored, naive[one.family], smooth, measure)
                share = scored.share(measure, naive[one.family], one.label, smooth or "") if gain else None
                cells.append(share or "SmoothQuant gains nothing")
            rows.append((one.label, *cells))
    return Table(
        title="share of SmoothQuant's gain",
        columns=("recipe", *map(head, scored.measures)),
        rows=tuple(rows),
        note="Of log perplexity, and of KL; only where SmoothQuant itself gains against naive, with an interval that "
        "shows it. Its alpha is the better one on the other text. The paper: 71 to 84 % (Llama, OLMo), 14 and 25 % on "
        f"Mistral-7B, 9 and 17 % on Llama-2-7B. {CAVEAT}",
    )


def _judged(scored: GridScores, naive: dict[str, str], unproven: str = "") -> list[ClaimResult]:
    """By KL, of which the same text says more than of perplexity: every token counts, not its label alone."""
    of = {(one.family, one.kept.partition(",")[0]): one.label for one in reversed(scored.tried())}
    found = []
    for claim, family in ((_HELPS, _TOKEN), (_SHARES, _W8A8)):
        plain, ours, others = naive.get(family), of.get((family, OURS)), of.get((family, _OTHERS))
        if plain is None or ours is None or others is None:
            found.append(judged(claim, None, why="it does not fit this model"))
            continue
        more = {"items": f"{len(scored.items(plain, KL, 'kl'))} pieces of our proof text, {family}", "cost": _COST}
        if claim is _HELPS:
            alone, control = scored.change(KL, ours, plain), scored.change(KL, others, plain)
            number: Any = scored.change(KL, ours, others)
            found.append(judged(claim, number, effect=alone, control=control, why=unproven, **more))
            continue
        smooth = _smoothed(scored, family, KL)
        if smooth is None or _gain(scored, plain, smooth, KL) is None:
            gain = scored.change(KL, smooth, plain) if smooth else "nothing"
            why = f"{smooth or SMOOTH} changes naive W8A8's KL by {gain}: there is no gain to share"
            found.append(judged(claim, None, why=why, **more))
            continue
        naive_N, ours_N, others_N, smooth_N = (scored.items(one, KL, "kl") for one in (plain, ours, others, smooth))
        number = averaged([others_N - ours_N - (naive_N - smooth_N) / 2], [naive_N - smooth_N])
        shares = [scored.share(KL, plain, one, smooth) for one in (ours, others)]
        found.append(judged(claim, number, effect=shares[0], control=shares[1], why=unproven, **more))
    return found


_COST = "the same with all 16 pieces of the proof text: about 15 minutes; on a model where SmoothQuant gains more"
