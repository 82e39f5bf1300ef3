"""Does a quantiser that keeps massive values pay, at equal true bits?

What it asks: the paper (Jin et al. 2025, arXiv 2502.01563) wants quantisers that preserve massive values; does keeping
the rows of Q and K that make them win more than the same bits spent otherwise? How: rounding to nearest with those rows
in 16 bits, with the rows of K alone, and a cache of keys and values with the massive dims of K in 16 bits. Each beside
as many other rows or dims, at the same bits exactly; and the rows beside the plain scheme with smaller blocks, as small
as the same bits buy. What to look at: the KL of each pair, and its skill of reading the context; that the massive ones
beat others of their kind says that they matter, that they beat smaller blocks says that keeping them pays.

Bits count a kept number with 16 bits and the 32 of its place, as everywhere. The rival of whole rows is given no more
than a file would need that names each row once: 16 bits a number, 32 a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from studfinder.errors import StudfinderError
from studfinder.experiments.quantize_keeps import other_rows
from studfinder.experiments.quantize_kv_cache import MASSIVE_KEPT, OTHERS_KEPT, cache_keeps, cache_variant
from studfinder.experiments.weights import load_findings
from studfinder.models import LM
from studfinder.quantizers import RTN, KVCache, MassiveRows, Scheme, bits_per_weight, hold_out, targets
from studfinder.quantizers.massive_rows import TENSORS
from studfinder.records import Chart, Claim, ClaimResult, Findings, Plot, Series, Table, point, scheme_named
from studfinder.records.config import option
from studfinder.studies import KL, PAIRED, GridScores, ModelVariant, judged
from studfinder.studies.experiment import Bench, Experiment, Outcome
from studfinder.studies.rounding import CAVEAT, CalibratedConfig, Rounding


@dataclass(frozen=True, kw_only=True)
class KeepMassiveConfig(CalibratedConfig):
    """Which schemes, judged by what."""

    schemes: tuple[str, ...] = option(
        "w4-channel,w3-g64", help="Schemes by name; claims are judged in the first.", commas=True
    )
    cache: str = option("int4", help="What keys and values are rounded to; empty for no cache.")
    context: str = option("lookup:4,8", help="Tasks that read their prompt, beside the KL, with spaces between.")
    items: int = option(100, help="Items of each.", least=1)


_WANTED = "quantisers that preserve massive values are called for; none is made"
_NATS = "the KL with {} kept less that of {}, nats per token"
KEEP_ROWS = Claim(
    key="massive-values/keep-rows",
    says="Keeping the rows of Q and K that make massive values pays at equal true bits.",
    decides=_NATS.format("the rows", "smaller blocks at no more bits"),
    kind="less",
    published=_WANTED,
)
KEEP_KEY_ROWS = Claim(
    key="massive-values/keep-key-rows",
    says="Keeping the rows of K alone that make massive values pays at equal true bits.",
    decides=_NATS.format("the rows of K", "smaller blocks at no more bits"),
    kind="less",
    published=_WANTED,
)
KEEP_CACHE = Claim(
    key="massive-values/keep-cache",
    says="In a cache of few bits, keeping the massive dims of K pays at equal true bits.",
    decides=_NATS.format("them", "as many other dims of K kept"),
    kind="less",
    published=_WANTED,
)
EXPERIMENT = Experiment(
    name="massive-values/keep",
    paper="2502.01563",
    shows="ours",
    summary="Does a quantiser that keeps massive values pay, at equal true bits?",
    needs="about 8 minutes and 2 GB with smollm2 on two cores (estimated; plus a scan)",
    presets={"cpu": KeepMassiveConfig()},
    claims=(KEEP_ROWS, KEEP_KEY_ROWS, KEEP_CACHE),
    spread=True,
)
_KINDS = {"the rows of Q and K": TENSORS, "the rows of K": ("key",)}
_OTHERS, _SMALLER = "as many others", "smaller blocks instead"
_CHEAPER = "the first token kept, keys centred"


def run(bench: Bench, lm: LM) -> Outcome:
    """Every keep in every scheme, with what else its bits buy."""
    own, rounding = bench.config, Rounding(bench, lm)
    for name in own.schemes:
        scheme_named(name)
    findings = load_findings(bench, lm, prove=False)
    variants = [one for name in own.schemes for one in _rows(rounding, name, findings)]
    variants += _cache(rounding, findings) if own.cache else []
    measures = own.context.split()
    limits = {name.partition(":")[0]: own.items for name in measures}
    scored = rounding.scored(variants, measures, limits=limits)
    pairs = [(one.label, one.label, other) for one in scored.tried() for other in _rivals(scored, one)]
    tables = [
        scored.scores_table("scores", f"Rounded to nearest. {CAVEAT}", bits="bits per number", first="recipe"),
        Table(
            title="what is kept, against what else the bits buy",
            columns=("kept", "against", *scored.measures),
            rows=tuple(
                (label, other, *(scored.change(measure, label, other) for measure in scored.measures))
                for _, label, other in pairs
            ),
            note=PAIRED,
        ),
    ]
    claims = [
        _judged(scored, own, claim, kind)
        for claim, kind in ((KEEP_ROWS, "the rows of Q and K"), (KEEP_KEY_ROWS, "the rows of K"))
    ]
    labels = [one.label for one in scored.tried()]
    kl = Series(name=KL, points=tuple(point(scored.change(KL, label)) for label in labels))
    chart = Chart(name="keep", plots=(Plot(kind="dots", rows=tuple(labels), series=(kl,), x="KL, nats per token"),))
    return Outcome(tables, scored.notes(), [chart], remarks=[CAVEAT], claims=[*claims, _cache_claim(scored, own)])


# --- what is tried --------------------------------------------------------------------------------------------------


def _rows(rounding: Rounding, name: str, findings: Findings) -> Iterator[ModelVariant]:
    lm, scheme = rounding.lm, rounding.scheme(scheme_named(name))
    method = RTN(scheme=scheme)
    yield rounding.variant(name, method, family=name)
    for kind, tensors in _KINDS.items():
        try:
            held = MassiveRows(findings=findings, tensors=tensors).of(lm)
        except StudfinderError:
            continue  # none of this kind, which the claim says
        rows = {one.parameter: [int(entry[0] or 0) for entry in one.entries] for one in held}
        for kept, keep in ((kind, held), (f"{kind}: {_OTHERS}", other_rows(lm, rows, rounding.bench.config.seed))):
            yield rounding.variant(f"{name}, {kept}", method, keep=hold_out(keep), kept=kept, family=name)
        smaller = _smaller_blocks(lm, scheme, rows)
        if smaller is not None:
            yield rounding.variant(f"{name}, {kind}: {_SMALLER}", RTN(scheme=smaller), kept=_SMALLER, family=name)


def _smaller_blocks(lm: LM, scheme: Scheme, rows: dict[str, list[int]]) -> Scheme | None:
    """The scheme with the smallest blocks of one row that cost no more than the rows; None if it has those already."""
    shapes = [tuple(target.weight(lm).shape) for target in targets(lm)]
    counts = {shape: shapes.count(shape) for shape in shapes}
    widths = [(len(own), lm.model.get_parameter(name).shape[1]) for name, own in rows.items()]
    more = sum(count * (width * (16 - scheme.bits) + 32) for count, width in widths)

    def total(one: Scheme) -> float:
        return sum(h * w * count * bits_per_weight((h, w), one) for (h, w), count in counts.items())

    room, own = total(scheme) + more, scheme.block if isinstance(scheme.block, int) else max(w for _, w in counts)
    for block in range(8, own):
        found = replace(scheme, block=block, remainder="block")
        if total(found) <= room:
            return found
    return None


def _cache(rounding: Rounding, findings: Findings) -> list[ModelVariant]:
    element = rounding.bench.config.cache
    plain = KVCache(element=element)
    found = [cache_variant(rounding, f"{element} cache", "", plain)]
    for kept, keep in cache_keeps(rounding.lm, findings, rounding.bench.config.seed).items():
        found.append(cache_variant(rounding, f"{element} cache", kept, plain, keep))
    return [*found, cache_variant(rounding, f"{element} cache", _CHEAPER, replace(plain, first=1, centre="added"))]


# --- what is said of it ---------------------------------------------------------------------------------------------


def _rivals(scored: GridScores, one: ModelVariant) -> list[str]:
    """What else the bits of a keep buy, and the plain recipe."""
    own = [one.label + f": {rival}" for rival in (_OTHERS, _SMALLER)]
    if one.kept == MASSIVE_KEPT:
        own = [f"{one.family}, {rival}" for rival in (OTHERS_KEPT, _CHEAPER)]
    elif one.kept not in _KINDS:
        return []
    tried = {variant.label for variant in scored.tried()}
    return [label for label in (one.family, *own) if label in tried]


def _judged(scored: GridScores, own: KeepMassiveConfig, claim: Claim, kind: str) -> ClaimResult:
    label = f"{own.schemes[0]}, {kind}"
    return _against(scored, own, claim, label, f"{label}: {_SMALLER}", f"{label}: {_OTHERS}")


def _cache_claim(scored: GridScores, own: KeepMassiveConfig) -> ClaimResult:
    start = f"{own.cache} cache"
    return _against(
        scored, own, KEEP_CACHE, f"{start}, {MASSIVE_KEPT}", f"{start}, {OTHERS_KEPT}", f"{start}, {_CHEAPER}"
    )


def _against(
    scored: GridScores, own: KeepMassiveConfig, claim: Claim, label: str, rival: str, besides: str
) -> ClaimResult:
    tried = {one.label for one in scored.tried()}
    missing = [one for one in (label, rival) if one not in tried]
    if missing:
        return judged(claim, None, why=f"there is no {missing[0]!r}: nothing of the kind is massive here")
    why = f"{scored.bits(label):.3f} bits against {scored.bits(rival):.3f}"
    if besides in tried:
        why += f"; less {besides!r} ({scored.bits(besides):.3f} bits) it is {scored.change(KL, label, besides):+.3f}"
    return judged(
        claim,
        scored.change(KL, label, rival),
        effect=scored.change(KL, label),
        control=scored.change(KL, rival),
        items=f"{own.pieces} pieces of our proof text",
        why=why,
        cost=f"--set pieces={4 * own.pieces}, about four times this run, halves the interval",
    )
