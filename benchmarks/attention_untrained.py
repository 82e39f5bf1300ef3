"""What each attention variant does to a trained model before any training: perplexity of SmolLM2.

python benchmarks/attention_untrained.py --out docs/results/attention-smollm2.md
"""

from __future__ import annotations

import argparse
import math
from importlib.resources import files
from pathlib import Path

import torch

import studfinder as sf
import studfinder.attention as sa

EXACT = {
    'KVShift(init="identity")': [(sa.KVShift(), "identity")],
    'Gated(kind="headwise")': [(sa.Gated(kind="headwise"), "identity")],
    'Gated(kind="elementwise")': [(sa.Gated(kind="elementwise"), "identity")],
    'Gated(kind="mlp")': [(sa.Gated(kind="mlp"), "identity")],
    "KVShift, then Gated": [(sa.KVShift(), "identity"), (sa.Gated(), "identity")],
    'Differential(init="copy")': [(sa.Differential(), "copy")],
}
CHANGED = {
    "ClippedSoftmax(gamma=0)": (sa.ClippedSoftmax(gamma=0.0), "fresh"),
    "ClippedSoftmax(alpha=1, length=2048)": (sa.ClippedSoftmax(alpha=1, length=2048), "fresh"),
    "ClippedSoftmax(alpha=4, length=2048)": (sa.ClippedSoftmax(alpha=4, length=2048), "fresh"),
    "ClippedSoftmax(alpha=12, length=512)": (sa.ClippedSoftmax(alpha=12, length=512), "fresh"),
    "ClippedSoftmax(gamma=-0.03)": (sa.ClippedSoftmax(gamma=-0.03), "fresh"),
    "ClippedSoftmax(alpha=1, per_row=True)": (sa.ClippedSoftmax(alpha=1, per_row=True), "fresh"),
    "SoftmaxOne()": (sa.SoftmaxOne(), "fresh"),
    "Softpick()": (sa.Softpick(), "fresh"),
    'KVShift(init="paper")': (sa.KVShift(), "paper"),
    "NoPE()": (sa.NoPE(), "fresh"),
    "ALiBi()": (sa.ALiBi(), "fresh"),
}
WINDOW = 256


def windows(lm: sf.LM) -> torch.Tensor:
    """The start of the package's own proof text in four windows of WINDOW tokens, (N, T)."""
    text = (files("studfinder") / "texts/data/proof.txt").read_text(encoding="utf-8")
    ids = torch.tensor(lm.tokenizer(text)["input_ids"])
    return ids[: 4 * WINDOW].view(-1, WINDOW)


@torch.no_grad()
def loss(lm: sf.LM) -> float:
    """Mean loss in nats per token, the logits in the model's own dtype."""
    return sum(float(lm.model(ids[None], labels=ids[None]).loss) for ids in windows(lm)) / len(windows(lm))


@torch.no_grad()
def zero_share(lm: sf.LM, variant: sa.ClippedSoftmax) -> float:
    """The share of plain softmax's visible weights that clipping sets to zero: all layers, one window."""
    zeros = visible = 0
    for p in lm.model(windows(lm)[:1], output_attentions=True).attentions:
        p = p.float()
        seen = torch.ones(p.shape[-2:], dtype=torch.bool).tril().expand_as(p)
        gamma = torch.tensor(variant.offset)
        if variant.per_row:
            gamma = gamma / torch.arange(1, p.shape[-1] + 1)[:, None]
        zeros += int((((1 - gamma) * p + gamma <= 0) & seen).sum())
        visible += int(seen.sum())
    return zeros / visible


def page() -> str:
    """The page as Markdown."""
    lm = sf.load("smollm2")
    plain = loss(lm)
    count = windows(lm).numel()
    lines = [
        "# Attention variants in SmolLM2, before any training",
        "",
        "Written by `python benchmarks/attention_untrained.py --out docs/results/attention-smollm2.md`.",
        f"Model: {lm.source.origin}, bf16.",
        f"Text: the start of the package's proof text, {count} tokens in windows of {WINDOW}, no BOS added.",
        f"Plain attention: perplexity {math.exp(plain):.4f}.",
        "",
        "## Starts that change nothing",
        "",
        "| variant | perplexity | loss the same to the last bit |",
        "|-|-|-|",
    ]
    for name, variants in EXACT.items():
        lm = sf.load("smollm2")
        for variant, init in variants:
            sa.convert(lm, variant, init=init)
        after = loss(lm)
        lines.append(f"| `{name}` | {math.exp(after):.4f} | {'yes' if after == plain else 'no'} |")
    eager = sf.load("smollm2", attention="eager")
    lines += ["", "## Variants that need training", ""]
    lines += ["| variant | perplexity | weights set to exactly zero |", "|-|-|-|"]
    for name, (variant, init) in CHANGED.items():
        torch.manual_seed(0)
        after = loss(sa.convert(sf.load("smollm2"), variant, init=init))
        clipped = isinstance(variant, sa.ClippedSoftmax)
        share = f"{zero_share(eager, variant):.1%}" if clipped else ""
        lines.append(f"| `{name}` | {math.exp(after):,.2f} | {share} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the page here")
    options = parser.parse_args()
    text = page()
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
