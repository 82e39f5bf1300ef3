"""How often the proof calls a weight proven that is one of many.

    python benchmarks/proof_null.py --measure smollm2 --dtype float32   measure matched controls, window by window
    python benchmarks/proof_null.py [--scans 10000]                     simulate scans from them, and write the page

Under the null a candidate is one more control. A simulated scan has ten candidates. Each draws one of the weights that
were measured as matched controls of one super-weight candidate, and is held against 20 others of the same; the windows
of the proof text are drawn anew, with replacement, in random order, the same for all. It then goes through the proof's
own code (`studfinder.prove.trial`), with measured numbers in place of a model. A share of the set is drawn likewise,
from the shares that matched controls have in a set that breaks the model; where these were not measured, it is what a
weight does alone, as if effects added up.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
from scipy.stats import beta

from studfinder.prove.rule import FLOOR, LOOKS, MOST
from studfinder.prove.trial import Case, Trial

HOME = Path(__file__).parent.parent / "docs" / "results"
MEASURED = HOME / "proof-null.json"
PAGE = HOME / "proof.md"
POOL = 21
"""Weights a pool: a candidate and its controls."""


def measure(name: str, dtype: str | None, numbers: list[int], windows: int, cut: int) -> None:
    """KL by window of the matched controls of some of a model's candidates, each set to zero alone; then of those of
    the last, each in its place in the set. Written after each of these."""
    import studfinder as sf
    from studfinder.edits import matched_controls, zero
    from studfinder.prove.bench import ProofBench
    from studfinder.texts import proof_windows

    lm = sf.load(name, dtype=dtype)
    findings = sf.scan(lm, prove=False)
    tested = findings.super_weights[:10]
    found = {(one.parameter, one.index) for one in findings.super_weights}
    bench = ProofBench(lm, proof_windows(lm, count=cut)[:windows], lambda done, total: None)
    measured = {
        "model": findings.model.id,
        "dtype": findings.model.dtype,
        "tokens": bench.tokens.tolist(),
        "versions": {key: findings.run.versions[key] for key in ("studfinder", "torch", "transformers", "cpu")},
        "pools": [],
        "shares": [],
    }
    for number in numbers:
        candidate = tested[number]
        taken = {one.index for one in tested if one.parameter == candidate.parameter}
        controls = matched_controls(lm, candidate, findings, count=POOL, exclude=taken)
        bench.look([zero(candidate), *map(zero, controls)], len(bench.windows))
        rows = [
            {
                "index": list(one.entries[0]),
                "found": (one.parameter, one.entries[0]) in found,
                "kl": rounded(bench.kl[zero(one)]),
            }
            for one in controls
        ]
        pool = {"candidate": str(candidate), "kl": rounded(bench.kl[zero(candidate)]), "controls": rows}
        measured["pools"].append(pool)
        MEASURED.write_text(json.dumps(measured) + "\n")
        print(candidate, f"{bench.work:,.0f} blocks x windows", flush=True)
    without = zero([one for one in tested if one is not candidate])
    swapped = [(*without, *zero(one)) for one in controls]
    bench.look([without, *swapped], len(bench.windows))
    measured["shares"] = [rounded(bench.kl[one] - bench.kl[without]) for one in swapped]
    MEASURED.write_text(json.dumps(measured) + "\n")


def rounded(sums: np.ndarray) -> list[float]:
    """KL summed over each window's tokens, to four digits."""
    return [float(f"{value:.4g}") for value in sums]


class Drawn:
    """A bench of measured numbers: KL by window of every change, shown as far as it was looked at."""

    def __init__(self, sums: dict, tokens: np.ndarray, looks: list[int]) -> None:
        self.sums, self.tokens, self.looks, self.kl, self.ahead = sums, tokens, looks, {}, 0.0

    def look(self, changes, upto: int) -> None:
        self.kl.update((one, self.sums[one][:upto]) for one in changes if len(self.kl.get(one, ())) < upto)

    def cost(self, changes, windows: float) -> float:
        return 0.0


def scan(
    chance, alone: list[np.ndarray], shares: np.ndarray, tokens: np.ndarray, floor: float, looks: list[int]
) -> dict:
    """One simulated scan: of each slot a pool of weights (weights, windows), and of all the shares that weights have.

    Returns how many were called proven, how many of those wrongly (of all windows that are drawn from, the largest is
    another, or it does not reach the floor), and how many controls were left that would have stood in the way of one.
    """
    windows = chance.integers(0, len(tokens), looks[-1])
    size = tokens[windows]
    everything = size * 1.0
    sums, truth, cases = {"everything": everything}, {}, []
    for slot, pool in enumerate(alone):
        own = pool[chance.permutation(len(pool))[:POOL]]
        share = shares[chance.permutation(len(shares))[:POOL]] if len(shares) else own
        without = everything - share[0, windows]
        keys = [(slot, place) for place in range(len(own))], [(slot, place, "swapped") for place in range(len(share))]
        sums |= dict(zip(keys[0], own[:, windows], strict=True))
        sums |= dict(zip(keys[1], without + share[:, windows], strict=True)) | {(slot, "without"): without}
        truth[slot] = own.sum(axis=1) / tokens.sum(), share.sum(axis=1) / tokens.sum()
        cases.append(Case(keys[0][0], (slot, "without"), lambda keys=keys: (keys[0][1:], keys[1][1:])))
    bench = Drawn(sums, size, looks)
    verdicts = Trial(bench, cases, "everything", floor).run()
    told = {"proven": 0, "false": 0, "left": 0}
    for slot, (case, verdict) in enumerate(zip(cases, verdicts, strict=True)):
        if verdict in ("proven", "proven-jointly"):
            own = truth[slot][verdict == "proven-jointly"]
            told["proven"] += 1
            told["false"] += own[0] <= max(floor, *own[1:])
        if verdict == "proven":
            low = Trial(bench, cases, "everything", floor).bounds(case.alone).low
            left = [sums[key] for key in case.controls()[0] if len(bench.kl[key]) < len(size)]
            told["left"] += sum(bool(one.sum() / size.sum() >= low) for one in left)
    return told


def rates(measured: dict, scans: int, *, floor: float, found: bool = True, scale: float | None = None, rounds=LOOKS):
    """The share of scans with a proof and with a false one, each with its upper 95 % bound.

    Args:
        found: with controls that the scan itself had found and left untested.
        scale: what the median of each pool is made.
    """
    tokens = np.array(measured["tokens"])
    slots, shares = [], np.array(measured["shares"])
    for pool in measured["pools"]:
        rows = np.array([one["kl"] for one in pool["controls"] if found or not one["found"]])
        if scale is not None:
            rows *= scale * tokens.sum() / np.median(rows.sum(axis=1))
        slots.append(rows)
    chance = np.random.default_rng(0)
    slots = [slots[slot % len(slots)] for slot in range(MOST)]
    told = [scan(chance, slots, shares, tokens, floor, list(rounds)) for _ in range(scans)]
    row = {key: sum(bool(one[key]) for one in told) for key in ("proven", "false")}
    row["left"] = sum(one["left"] for one in told)
    return row | {f"{key} at most": upper(row[key], scans) for key in ("proven", "false")}


def upper(hits: int, tries: int) -> float:
    """The upper 95 % bound of a share (Clopper and Pearson)."""
    return float(beta.ppf(0.95, hits + 1, tries - hits)) if hits < tries else 1.0


TEXT = """# The proof when there is nothing to prove

    python benchmarks/proof_null.py --measure smollm2 --dtype float32 --candidates 0 6 --cut 64 --windows 32
    python benchmarks/proof_null.py

Weights were measured as matched controls of super-weight candidates of {model} ({dtype}), each set to zero alone, on
{windows} windows of the proof text ({tokens} scored tokens each; [the numbers](proof-null.json)). KL in nats a token:

| matched to | weights | of them found by the scan | median | 9 of 10 below | largest |
|---|---|---|---|---|---|
{pools}

Under the null a candidate is one more control. A simulated scan has ten candidates, the pools taking turns: each is a
random weight of its pool, held against 20 others of it; its share of the set is what it does alone, as if effects
added up. Windows are drawn anew, with replacement, and the proof's own code runs on the numbers. "At most" is the upper
95 % bound (Clopper and Pearson).

* **proven**: scans in which a weight is called proven, though it was picked blindly among its own controls.
* **false**: scans in which that is untrue of one: over all measured windows its KL is not above the floor, or not the
  largest.
* **in the way**: controls, of all scans, that were left early and stood in the way of a weight called proven.

| rule | controls | looks | scans | proven | false | in the way |
|---|---|---|---|---|---|---|
{rows}

{remark}
"""
REMARK = """\
A weight picked blindly among 21 is the largest of them once in 21 times, whatever it is looked at with; where it is
so by more than its interval, and above the floor, it is called proven, and what is said of it is true: it does more
than its controls. In these pools that happens, since the candidates that they were matched to hold a model up, and
one or two of their neighbours help. Ten such candidates at once come to the share of scans in the first rows: 20
controls a candidate cannot bring it to .05, which would take 200. What the bounds promise is the column *false*.
Looking at a few windows first adds nothing to either: compare the rows in which all windows were run for all."""


EARLY, WHOLE = ("as it is", LOOKS), ("all windows for all", LOOKS[-1:])
ROWS = [
    ("the rule", "all", EARLY, 1, {"floor": FLOOR}),
    ("the rule", "none found", EARLY, 1, {"floor": FLOOR, "found": False}),
    ("the rule", "all", WHOLE, 10, {"floor": FLOOR}),
    ("without a floor", "all", EARLY, 20, {"floor": 0.0}),
    ("without a floor", "all", WHOLE, 20, {"floor": 0.0}),
    ("made loud: median 3 floors", "all", EARLY, 20, {"floor": FLOOR, "scale": 3 * FLOOR}),
    ("made loud: median 3 floors", "all", WHOLE, 20, {"floor": FLOOR, "scale": 3 * FLOOR}),
]
"""Rule, controls, looks, and of how many scans one is simulated: what has more to look at takes longer."""


def line(row: tuple, measured: dict, scans: int) -> str:
    """A row of the table."""
    name, found, (what, rounds), part, options = row
    scans //= part
    told = rates(measured, scans, rounds=rounds, **options)
    cells = [f"{told[key] / scans:.4f} (at most {told[f'{key} at most']:.4f})" for key in ("proven", "false")]
    return f"| {' | '.join([name, found, what, f'{scans:,}', *cells, str(told['left'])])} |"


def page(measured: dict, scans: int) -> str:
    """What `--measure` and the simulation found, as Markdown."""
    pools = [
        f"| {pool['candidate']} | {len(pool['controls'])} | {sum(one['found'] for one in pool['controls'])} | "
        + " | ".join(f"{value:.2g}" for value in np.quantile(_values(pool, measured), (0.5, 0.9, 1.0)))
        + " |"
        for pool in measured["pools"]
    ]
    with ProcessPoolExecutor() as pool:
        rows = list(pool.map(line, ROWS, repeat(measured), repeat(scans)))
    return TEXT.format(
        pools="\n".join(pools),
        rows="\n".join(rows),
        remark=REMARK,
        windows=len(measured["tokens"]),
        tokens=measured["tokens"][0],
        **{key: measured[key] for key in ("model", "dtype")},
    )


def _values(pool: dict, measured: dict) -> np.ndarray:
    return np.array([sum(one["kl"]) for one in pool["controls"]]) / sum(measured["tokens"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", metavar="MODEL")
    parser.add_argument("--dtype")
    parser.add_argument("--candidates", type=int, nargs="+", default=list(range(10)), help="by score, from 0")
    parser.add_argument("--cut", type=int, default=16, help="windows that the proof text is cut into")
    parser.add_argument("--windows", type=int, default=16, help="how many of them to measure on")
    parser.add_argument("--scans", type=int, default=10_000)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.dtype, arguments.candidates, arguments.windows, arguments.cut)
    else:
        PAGE.write_text(page(json.loads(MEASURED.read_text()), arguments.scans))


if __name__ == "__main__":
    main()
