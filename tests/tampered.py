"""Checkpoints tampered with in every way that has been met, drawn at random from tiny models of several families."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tiny import tiny

FAMILIES = ("llama", "gpt2", "mixtral", "gemma", "opt", "qwen3_moe", "gpt_neox", "phi3")
Weights = dict[str, torch.Tensor]

_PREFIXES = ("_orig_mod.", "module.", "base_model.model.", "model.", "transformer.", "language_model.", "x.")
_FLOATS = (torch.float16, torch.bfloat16, torch.float64)
_NOT_WEIGHTS = (torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2)
_SCALES = (
    "_scale",
    "_scale_inv",
    ".scales",
    ".qzeros",
    ".qweight",
    ".absmax",
    ".quant_map",
    "_packed",
    ".SCB",
    "_zero_point",
)


@dataclass(frozen=True)
class Case:
    """A checkpoint that is not what it should be: its family, what was done, what its files hold, what they mean."""

    family: str
    what: str
    weights: Weights
    meant: Weights


@dataclass
class Bench:
    """A good checkpoint of each family on disk, of which the weights are swapped."""

    folders: dict[str, Path]
    weights: dict[str, Weights]

    @classmethod
    def at(cls, root: Path) -> Bench:
        folders, weights = {}, {}
        for family in FAMILIES:
            folders[family] = root / family
            tiny(family).model.save_pretrained(folders[family])
            weights[family] = load_file(folders[family] / "model.safetensors")
        return cls(folders, weights)

    def put(self, family: str, weights: Weights) -> Path:
        """The family's folder with these weights."""
        save_file(
            {name: tensor.clone().contiguous() for name, tensor in weights.items()},
            self.folders[family] / "model.safetensors",
            metadata={"format": "pt"},
        )
        return self.folders[family]

    def cases(self, kind: str, count: int, seed: int = 0) -> Iterator[Case]:
        """Drawn cases of a kind."""
        draw = random.Random(f"{kind}{seed}")
        for number in range(count):
            family = FAMILIES[number % len(FAMILIES)]
            good = self.weights[family]
            what, weights, meant = KINDS[kind](draw, good)
            yield Case(family, f"{family}: {kind}: {what}", weights, meant or good)


Made = tuple[str, Weights, Weights | None]


def _dropped(draw: random.Random, good: Weights) -> Made:
    gone = set(draw.sample(sorted(good), draw.choice((1, 1, 2, 5))))
    return ", ".join(sorted(gone)), {name: t for name, t in good.items() if name not in gone}, None


def _renamed(draw: random.Random, good: Weights) -> Made:
    prefix, one = draw.choice(_PREFIXES), draw.choice(sorted(good))
    manner = draw.randrange(4)
    if manner == 0:
        return f"all {prefix}", {prefix + name: t for name, t in good.items()}, None
    if manner == 1:
        return f"{prefix}{one}", {prefix + name if name == one else name: t for name, t in good.items()}, None
    if manner == 2:
        bad = one.replace("weight", "w").replace("bias", "b").replace("proj", "p")
        return bad, {bad if name == one else name: t for name, t in good.items()}, None
    first, second = one.split(".", 1)  # in or out of the base model, which transformers mends, or elsewhere
    moved = second if draw.random() < 0.5 else f"{first}.{one}"
    return moved, {moved if name == one else name: t for name, t in good.items()}, None


def _transposed(draw: random.Random, good: Weights) -> Made:
    name = draw.choice([n for n, t in sorted(good.items()) if t.dim() == 2 and t.shape[0] != t.shape[1]])
    return name, {**good, name: good[name].T}, None


def _sized(draw: random.Random, good: Weights) -> Made:
    name = draw.choice(sorted(good))
    tensor, axis = good[name], draw.randrange(good[name].dim())
    size = draw.choice([1, tensor.shape[axis] - 1, tensor.shape[axis] + 1, 2 * tensor.shape[axis]])
    index = torch.arange(size) % tensor.shape[axis]
    return f"{name} {size} in axis {axis}", {**good, name: tensor.index_select(axis, index)}, None


def _typed(draw: random.Random, good: Weights) -> Made:
    names = draw.sample(sorted(good), draw.choice((1, 3)))
    kind = draw.choice((*_FLOATS, *_NOT_WEIGHTS))
    cast = {name: (good[name] if kind.is_floating_point else good[name] * 100).to(kind) for name in names}
    meant = {**good, **{name: tensor.float() for name, tensor in cast.items()}} if kind in _FLOATS else None
    return f"{kind} {names}", {**good, **cast}, meant


def _doubled(draw: random.Random, good: Weights) -> Made:
    name = draw.choice([n for n in sorted(good) if "." in n])
    other = torch.randn(good[name].shape, generator=torch.Generator().manual_seed(draw.randrange(1000)))
    experts = [n for n in sorted(good) if ".experts." in n]
    manner = draw.randrange(4 if experts else 3)
    if manner == 3:  # one expert too many, of one of its matrices or of all of them
        last = [n for n in experts if ".experts.3." in n]
        some = [draw.choice(last)] if draw.random() < 0.5 else last
        return (
            f"expert 9 {len(some)}",
            {**good, **{n.replace(".experts.3.", ".experts.9."): good[n] for n in some}},
            None,
        )
    second = (f"{draw.choice(_PREFIXES)}{name}", name.split(".", 1)[1], f"{name.split('.', 1)[0]}.{name}")[manner]
    return f"{name} and {second}", {**good, second: other}, None


def _scaled(draw: random.Random, good: Weights) -> Made:
    name = draw.choice([n for n, t in sorted(good.items()) if t.dim() == 2])
    suffix = draw.choice(_SCALES)
    new = (name if suffix[0] == "_" else name.removesuffix(".weight")) + suffix
    return new, {**good, new: torch.full((good[name].shape[0], 1), 0.01)}, None


KINDS: dict[str, Callable[[random.Random, Weights], Made]] = {
    "dropped": _dropped,
    "renamed": _renamed,
    "transposed": _transposed,
    "of another size": _sized,
    "of another dtype": _typed,
    "doubled": _doubled,
    "with a scale": _scaled,
}
