"""How many planted faults `studfinder diagnose` names right, cause and place, and how many healthy copies it calls ill.

    python benchmarks/diagnose.py [--seeds 10] [--from 50000]

Fault, place, size, model and format are drawn by the seed (tests/faults.py, which the tests use, too). Give seeds that
nobody has looked at: those that a rule was made after say nothing about it.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faults import FAULTS, case
from test_diagnose import said

HEALTHY = 40


def main(seeds: range) -> None:
    """Print a line a kind, and the sums."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(" ".join(f"w{random.Random(n).randrange(3, 60)}" for n in range(400)), "utf-8")
        right = 0
        for fault in FAULTS:
            wrong = []
            for seed in seeds:
                drawn = case(fault, seed)
                found = said(drawn, text)
                if not drawn.right(found):
                    wrong.append(
                        f"  seed {seed}: {drawn.cause} in {drawn.culprit} called {found.cause}, {found.culprit}"
                    )
            right += len(seeds) - len(wrong)
            print(f"{len(seeds) - len(wrong):3} of {len(seeds)}  {fault}", *wrong, sep="\n", flush=True)
        ill = [seed for seed in range(seeds.stop, seeds.stop + HEALTHY) if said(case("", seed), text).ill]
    print(f"{right} of {len(FAULTS) * len(seeds)} named right; of {HEALTHY} healthy ones {len(ill)} ill {ill or ''}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="of each kind of fault")
    parser.add_argument("--from", type=int, default=50_000, dest="first", help="the first of them")
    given = parser.parse_args()
    main(range(given.first, given.first + given.seeds))
