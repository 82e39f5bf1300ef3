"""Token sequences with common beginnings, read as a tree: each distinct beginning once, many sequences in one pass.

A pass over a small model costs its fixed price (about that of 130 tokens for SmolLM2 on two cores) as often as it is
made, and multiple choice is hundreds of short sequences that differ in their last few tokens. So the tokens of many
sequences stand in one row; a mask lets each see its own beginning only, and its position is its depth in the tree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from studfinder.texts.pairs import common


@dataclass
class Pack:
    """Some sequences as one row of N tokens.

    Attributes:
        ids: the tokens (N).
        depths: their positions (N).
        paths: where the tokens of each sequence are, by its number.
        begun: per branch, the tokens before it that it sees, and where it begins and ends.
    """

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: dict[int, list[int]] = field(default_factory=dict)
    branches: list[tuple[list[int], int, int]] = field(default_factory=list)

    def add(self, number: int, sequence: Sequence[int], path: list[int], start: int) -> None:
        """Branch off a path that is there already, at depth `start` + its length."""
        begin, depth = len(self.ids), start + len(path)
        self.ids += sequence[depth:]
        self.depths += range(depth, len(sequence))
        self.branches.append((path, begin, len(self.ids)))
        self.paths[number] = path + list(range(begin, len(self.ids)))

    @property
    def straight(self) -> bool:
        """Whether plain causal attention is the same."""
        return len(self.branches) == 1

    def visible(self, size: int) -> torch.Tensor:
        """Which token (row) sees which (column), (size, size) booleans; padding sees itself."""
        seen_NN = torch.eye(size, dtype=torch.bool)
        for path, begin, end in self.branches:
            seen_NN[begin:end, path] = True
            seen_NN[begin:end, begin:end] = torch.ones(end - begin, end - begin, dtype=torch.bool).tril()
        return seen_NN


def packed(sequences: Sequence[Sequence[int]], start: int, size: int) -> Iterator[Pack]:
    """Packs of at most `size` tokens (a longer sequence has one of its own), the same beginnings side by side.

    Args:
        sequences: token ids, each longer than `start`.
        start: so many tokens are the same in all and are read already.
        size: tokens of a pack.
    """
    pack, last = Pack(), None
    path: list[int] = []
    for number in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence = sequences[number]
        shared = 0 if last is None else common(last, sequence) - start
        if last is not None and len(pack.ids) + len(sequence) - start - shared > size:
            yield pack
            pack, shared = Pack(), 0
        pack.add(number, sequence, path[:shared], start)
        last, path = sequence, pack.paths[number]
    if last is not None:
        yield pack


def additive(packs: Sequence[Pack], size: int, start: int, dtype: torch.dtype) -> torch.Tensor:
    """The mask of a batch of packs behind `start` tokens that all of them see, (B, 1, size, start + size)."""
    seen_BNN = torch.stack([pack.visible(size) for pack in packs])
    mask_BNK = torch.zeros(len(packs), size, start + size, dtype=dtype)
    mask_BNK[..., start:].masked_fill_(~seen_BNN, torch.finfo(dtype).min)
    return mask_BNK[:, None]
