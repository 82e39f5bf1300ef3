"""Where the thresholds come from: what the detector and the proof say when there is nothing to find.

    python benchmarks/null_super_weights.py [MODEL ...] [--seeds N] [--out FILE]

1. The score. Every tensor of a model is shuffled (its numbers stay, their places go) and scanned: the largest score any
   weight reaches, over seeds. The `score` of `Thresholds` must lie above it.
2. The verdict. Candidates that nobody found - weights drawn at random, and at random from the largest 0.1 % of their
   matrix - are put to the proof on the untouched model: the share that is called proven is the false-positive rate.
3. Random models of tiny sizes of every architecture in the test suite go through the whole scan (tests/test_prove.py).
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import replace
from pathlib import Path

import torch

import studfinder as sf
from studfinder.detectors import observe
from studfinder.detectors.super_weights import SuperWeights
from studfinder.models import matrix
from studfinder.prove import prove
from studfinder.records import SuperWeight
from studfinder.texts import default_prompts, encode


def shuffled_score(name: str, seed: int) -> float:
    lm = sf.load(name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.dim() > 1:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    encoded, _ = encode(lm, default_prompts())
    seen = SuperWeights(lm)
    observe(lm, encoded, [seen])
    # Channels below ten medians are not looked into at all, so an empty list means "below ten".
    return max((entry.score for entry, _ in seen.ranked()), default=0.0)


def random_candidates(lm, tokens, count: int, seed: int, large: bool):
    chance = random.Random(seed)
    nothing = {"input_spike": 0.0, "output_spike": 0.0, "share": 0.0, "score": 0.0, "token": ""}
    found = []
    for _ in range(count):
        layer = chance.randrange(len(lm.anatomy.layers))
        writer = chance.randrange(len(lm.anatomy.layers[layer].writers))
        ref = lm.anatomy.layers[layer].writers[writer]
        with matrix(lm, ref) as weight:
            sizes = weight.abs().float()
            if large:
                top = sizes.flatten().topk(max(1, sizes.numel() // 1000)).indices
                row, col = divmod(int(top[chance.randrange(len(top))]), sizes.shape[1])
            else:
                row, col = chance.randrange(sizes.shape[0]), chance.randrange(sizes.shape[1])
            value = float(weight[row, col])
        prompt = chance.randrange(len(tokens))
        found.append(
            SuperWeight(
                layer=layer,
                parameter=ref.parameter,
                index=ref.index(row, col),
                checkpoint_tensor=None,
                checkpoint_index=None,
                expert=ref.expert,
                row=row,
                col=col,
                value=value,
                prompt=prompt,
                position=chance.randrange(tokens[prompt]),
                **nothing,
            )
        )
    return tuple(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma3-270m"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=10, help="random candidates a seed and kind")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        scores = [shuffled_score(name, seed) for seed in range(arguments.seeds)]
        print(f"{name}: largest score with shuffled weights: " + ", ".join(f"{score:.1f}" for score in scores))
        lm = sf.load(name)
        findings = sf.scan(lm, prove=False)
        row = {"model": name, "shuffled_scores": scores}
        for kind in ("random", "large"):
            judged = []
            for seed in range(arguments.seeds):
                candidates = random_candidates(lm, findings.prompts.tokens, arguments.candidates, seed, kind == "large")
                judged += prove(lm, replace(findings, super_weights=candidates)).super_weights
            names = ("proven", "proven-jointly", "candidate", "inert")
            verdicts = {name: sum(weight.verdict == name for weight in judged) for name in names}
            row[kind] = verdicts
            print(f"{name}: {len(judged)} {kind} candidates: {verdicts}", flush=True)
        rows.append(row)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
