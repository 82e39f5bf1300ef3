"""How fast tasks and perplexity are beside lm-eval's HFLM, with the same scores; and what a sweep of edits saves.

    STUDFINDER_DATA=... python benchmarks/measure.py [MODEL] [--items N] [--rounds N] [--json FILE]

Both sides get the same live model, the same requests and the same process, and are timed in turns, so that a noisy
machine hits both alike; the ratio is the median over rounds with a bootstrap interval. HFLM runs at the fastest of
several batch sizes, found before. Tokenising is part of both times, building lm-eval's prompts of neither.

Many edits are timed three ways, with bit-equal results: every edit from the first block and with a clean pass of its
own; the clean pass shared; and every edit forking from the clean stream at its own layer.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import logging
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import studfinder as sf
from studfinder.edits import neuron, stream_of, zero
from studfinder.measures import effects_of, perplexity
from studfinder.measures.tasks import TASKS, harness
from studfinder.measures.tasks.adapter import LiveLM
from studfinder.texts import Text, corpus, encode

BATCHES = (1, 4, 16, 64)
CHOICES = ("piqa", "arc_easy")
WINDOWS = (512, 2048)
"""Of word perplexity: the longest window of both sides."""


def seconds(function):
    with contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        result = function()
        return time.perf_counter() - start, result


def in_turns(functions, rounds):
    """Seconds of each function by round, and its last result. The order is reversed in every other round."""
    times = {name: [] for name in functions}
    results = {}
    for number in range(rounds):
        for name in list(functions) if number % 2 else list(functions)[::-1]:
            spent, results[name] = seconds(functions[name])
            times[name].append(spent)
    return times, results


def ratio(slow, fast, draws=2000):
    """Median of the rounds' ratios with a 95 % bootstrap interval."""
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(draws))
    return statistics.median(ratios), medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def fastest(make, requests, method):
    """HFLM at the batch size that is fastest on a sixth of these requests."""
    some = requests[:: 6 if len(requests) > 64 else 1]
    spent = {size: seconds(lambda size=size: getattr(make(size), method)(some))[0] for size in BATCHES}
    return make(min(spent, key=spent.get))


def choice(lm, name, items, rounds):
    """A multiple choice task: questions a second, and how far the two sides' log-probabilities are apart."""
    built = harness.build_task(name, TASKS[name])
    picked = sorted(np.random.default_rng(0).choice(built.size, min(items, built.size), replace=False).tolist())
    harness.requests_hash(built, picked)
    requests = built.harness.instances
    seconds(lambda: hflm(lm, 1).loglikelihood(requests[:2]))
    theirs = fastest(lambda size: hflm(lm, size), requests, "loglikelihood")
    ours = LiveLM(lm)
    times, results = in_turns(
        {"hflm": lambda: theirs.loglikelihood(requests), "ours": lambda: ours.loglikelihood(requests)}, rounds
    )
    precise = hflm(lm, theirs.batch_size, softmax_dtype=torch.float32)
    with contextlib.redirect_stderr(io.StringIO()):
        exact = np.array([one[0] for one in precise.loglikelihood(requests)])
    found = {side: np.array([one[0] for one in results[side]]) for side in results}
    owners = np.array([one.doc_id for one in requests])
    chosen = {side: [int(found[side][owners == doc].argmax()) for doc in np.unique(owners)] for side in found}
    return {
        "what": name,
        "items": len(picked),
        "hflm_batch": theirs.batch_size,
        "per_second": len(picked) / statistics.median(times["ours"]),
        "ratio": ratio(times["hflm"], times["ours"]),
        "largest_difference": float(np.abs(found["ours"] - found["hflm"]).max()),
        "largest_difference_fp32_softmax": float(np.abs(found["ours"] - exact).max()),
        "other_choices": int(np.sum(np.array(chosen["ours"]) != np.array(chosen["hflm"]))),
        "seconds": times,
    }


def words(lm, documents, rounds, window):
    """Word perplexity of whole documents, in windows of so many tokens."""
    requests = [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(documents)]
    theirs = fastest(lambda size: hflm(lm, size, window), requests, "loglikelihood_rolling")
    times, results = in_turns(
        {
            "hflm": lambda: theirs.loglikelihood_rolling(requests),
            "ours": lambda: perplexity(lm, documents, protocol="word", window=window),
        },
        rounds,
    )
    precise = hflm(lm, theirs.batch_size, window, softmax_dtype=torch.float32)
    with contextlib.redirect_stderr(io.StringIO()):
        exact = np.array(precise.loglikelihood_rolling(requests))
    ours = -np.array(results["ours"].items["nll"])
    tokens = np.array([len(lm.tokenizer(text)["input_ids"]) for text in documents])
    return {
        "what": f"word perplexity, window {window} (nats a token)",
        "items": len(documents),
        "hflm_batch": theirs.batch_size,
        "per_second": len(documents) / statistics.median(times["ours"]),
        "ratio": ratio(times["hflm"], times["ours"]),
        "largest_difference": float(np.abs((ours - np.array(results["hflm"])) / tokens).max()),
        "largest_difference_fp32_softmax": float(np.abs((ours - exact) / tokens).max()),
        "other_choices": 0,
        "seconds": times,
    }


def word_perplexity(lm, rounds, documents=6, window=512):
    """Word perplexity of some of WikiText-2; HFLM's time over ours is its "ratio"."""
    return words(lm, texts(documents), rounds, window)


def edits(lm, windows, rounds):
    """One edit a layer (a neuron's column set to zero), each against the clean model on the same windows."""
    variants = [stream_of(lm, zero(neuron(lm, layer, 0))) for layer in range(len(lm.anatomy.layers))]
    # One that forks before the blocks shares none of them with the clean stream.
    whole = [dataclasses.replace(variant, first=-1, touches=None) for variant in variants]

    def alone():
        return np.concatenate([effects_of(lm, windows, [variant]).kl for variant in whole])

    def shared():
        return effects_of(lm, windows, whole).kl

    times, results = in_turns(
        {"alone": alone, "shared": shared, "reused": lambda: effects_of(lm, windows, variants).kl}, rounds
    )
    return {
        "edits": len(variants),
        "shared": ratio(times["alone"], times["shared"]),
        "reused": ratio(times["alone"], times["reused"]),
        "largest_difference": float(
            max(np.abs(results["alone"] - results[name]).max() for name in ("shared", "reused"))
        ),
        "seconds": times,
    }


def hflm(lm, size, window=512, **options):
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=size, max_length=window, **options)


def texts(count, lines=48):
    """Whole stretches of WikiText-2, as long as its articles."""
    _, found = corpus("wikitext2")
    return ["\n".join(found[start : start + lines]) for start in range(0, lines * count, lines)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--documents", type=int, default=6)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    record = {"model": arguments.model, "threads": torch.get_num_threads(), "rounds": arguments.rounds, "dtypes": {}}
    for dtype in arguments.dtypes:
        lm = sf.load(arguments.model, dtype=dtype)
        print(f"\n{arguments.model}, {dtype}, {record['threads']} threads, {arguments.rounds} rounds\n")
        print("| | items | HFLM's batch | items a second | HFLM / ours | difference | with fp32 softmax | choices |")
        print("|-|-|-|-|-|-|-|-|")
        rows = []
        for what in (*CHOICES, *WINDOWS):
            if isinstance(what, str):
                row = choice(lm, what, arguments.items, arguments.rounds)
            else:
                row = word_perplexity(lm, arguments.rounds, arguments.documents, what)
            rows.append(row)
            speed = "{:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
            print(
                f"| {row['what']} | {row['items']} | {row['hflm_batch']} | {row['per_second']:.1f} | {speed} "
                f"| {row['largest_difference']:.2g} | {row['largest_difference_fp32_softmax']:.2g} "
                f"| {row['other_choices']} differ |",
                flush=True,
            )
        ids = encode(lm, [Text("wikitext2", "\n\n".join(corpus("wikitext2")[1][:400]))], limit=10**6)[0][0]
        windows = [ids[start : start + 256] for start in range(0, 256 * arguments.windows, 256)]
        row = edits(lm, windows, arguments.rounds)
        print(f"\nsweep of {row['edits']} edits, each alone from the first block over:")
        for name in ("shared", "reused"):
            print(f"  {name:8}{'{:.2f} [{:.2f}, {:.2f}]'.format(*row[name])}")
        print(f"  largest difference of KL: {row['largest_difference']:.2g}")
        record["dtypes"][dtype] = {"rows": rows, "sweep": row}
        del lm
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
