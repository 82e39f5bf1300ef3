"""How well one backward pass predicts what rounding costs: beside the measured KL of every fused group alone.

    python benchmarks/plan.py smollm2 --formats int4-g64,nvfp4     predicted on our prompts, measured on our proof text

Of each format: Spearman's rank correlation, the share of groups (and of the 30 worst) within a factor of 2, the sums,
and the KL of all groups rounded together. Both in float32; nothing of the proof text is seen by the prediction.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.stats import spearmanr

import studfinder as sf
from studfinder.measures import effects_of
from studfinder.quantizers.formats import candidates
from studfinder.quantizers.mixed import mixed_stream
from studfinder.quantizers.sensitivity import sensitivities
from studfinder.quantizers.targets import by_fused, targets
from studfinder.texts import default_prompts, encode, proof_text

_WORST = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--formats", default="int4-g64")
    parser.add_argument("--pieces", type=int, default=6, help="pieces of our proof text that measure")
    parser.add_argument("--draws", type=int, default=1)
    asked = parser.parse_args()
    lm = sf.load(asked.model, dtype="float32")
    found, formats = targets(lm), candidates(asked.formats.split(","))
    began = time.monotonic()
    made = sensitivities(lm, encode(lm, default_prompts())[0], formats, found, draws=asked.draws)
    print(f"{asked.model}: {len(made.costs)} groups predicted in {time.monotonic() - began:.0f} s\n")
    print("| format | groups | Spearman, diagonal | own direction | within 2 | 30 worst within 2 ", end="")
    print("| sum / sum measured | whole / sum measured | seconds |\n" + "|---" * 9 + "|")
    windows = encode(lm, proof_text()[: asked.pieces])[0]
    for one in formats:
        groups = [group for group in by_fused(found) if one.name in made.costs[group]]
        alone = [{group: one} for group in groups] + [dict.fromkeys(groups, one)]
        began = time.monotonic()
        kept = made.kept
        effects = effects_of(lm, windows, [mixed_stream(lm, f, kept, found) for f in alone])
        *kl, whole = effects.kl.sum(axis=1) / effects.tokens.sum()
        measured = np.array(kl)
        own = [made.costs[group][one.name] for group in groups]
        predicted = np.array([cost.kl for cost in own])
        along = [np.nan if cost.together is None else cost.together for cost in own]
        near = (predicted / measured > 0.5) & (predicted / measured < 2)
        worst = np.argsort(-measured)[:_WORST]
        ranks = [spearmanr(which, measured)[0] for which in (predicted, along)]
        print(
            f"| {one.name} | {len(groups)} | {ranks[0]:.3f} | {ranks[1]:.3f} "
            f"| {near.mean():.1%} | {near[worst].mean():.1%} "
            f"| {predicted.sum():.3f} / {measured.sum():.3f} | {whole:.3f} / {measured.sum():.3f} "
            f"| {time.monotonic() - began:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
