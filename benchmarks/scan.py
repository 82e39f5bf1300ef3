"""What observing costs: time and peak memory of the observation pass over a plain forward pass of the same prompts.

    python benchmarks/scan.py [MODEL] [--rounds N]

Both passes get the same batches and the same options (no cache, last logits only; a plain pass with all logits is
printed beside them). Times are measured in turns within one process, so that a noisy machine hits both alike; the
ratio is the median over rounds with a bootstrap interval. Memory is the peak of a fresh process each.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import sys
import time

import torch

import studfinder as sf
from studfinder.detectors import observe
from studfinder.detectors.attention_sinks import AttentionSinks
from studfinder.detectors.massive_activations import MassiveActivations
from studfinder.detectors.massive_values import MassiveValues
from studfinder.detectors.super_weights import SuperWeights
from studfinder.texts import batches, default_prompts, encode


def plain(lm, encoded, **options):
    with torch.no_grad():
        for batch in batches(encoded):
            lm.model(input_ids=batch.input_ids_BT, use_cache=False, **options)


def observed(lm, encoded):
    detectors = [kind(lm) for kind in (SuperWeights, MassiveActivations, MassiveValues, AttentionSinks)]
    observe(lm, encoded, detectors)


def seconds(function, *arguments, **options):
    start = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - start


def interval(ratios, draws=2000):
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(draws))
    return statistics.median(ratios), medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def peak_megabytes(model, dtype, what):
    command = [sys.executable, __file__, model, "--dtype", dtype, "--peak", what]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def observation(lm, rounds, prompts=None):
    """By round: the observation pass over a plain one that also computes only the last logits, and over one that
    computes all. `prompts`: only so many, where a pass is slow (bf16 on a processor without its arithmetic)."""
    encoded = encode(lm, default_prompts())[0][:prompts]
    like, full = [], []
    plain(lm, encoded), observed(lm, encoded)
    for _ in range(rounds):
        first = seconds(plain, lm, encoded, logits_to_keep=1)
        with_us = seconds(observed, lm, encoded)
        everything = seconds(plain, lm, encoded)
        again = seconds(plain, lm, encoded, logits_to_keep=1)
        like.append(2 * with_us / (first + again))
        full.append(with_us / everything)
    return like, full


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--dtype", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--peak", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        lm = sf.load(arguments.model, dtype=arguments.dtype)
        encoded, _ = encode(lm, default_prompts())
        if arguments.peak == "plain":
            plain(lm, encoded, logits_to_keep=1)
        else:
            observed(lm, encoded)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    threads = torch.get_num_threads()
    print(f"{arguments.model}, our 12 prompts, {threads} threads, {arguments.rounds} rounds")
    print(f"{'dtype':10}{'observe / plain':>28}{'observe / plain, all logits':>32}{'peak memory':>14}")
    for dtype in ("float32", "bfloat16"):
        lm = sf.load(arguments.model, dtype=dtype)
        like, full = observation(lm, arguments.rounds)
        del lm
        memory = peak_megabytes(arguments.model, dtype, "observed") / peak_megabytes(arguments.model, dtype, "plain")
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*interval(ratios)) for ratios in (like, full)]
        print(f"{dtype:10}{cells[0]:>28}{cells[1]:>32}{memory:>13.3f}x")


if __name__ == "__main__":
    main()
