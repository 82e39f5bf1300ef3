"""Where a matrix of a live model stands in the files it came from.

transformers renames tensors while it loads (prefixes of wrappers, GPT-2 from the hub) and fuses some (one tensor an
expert in the file, one for all in memory). Which tensors of the file go into a parameter is asked of transformers' own
conversion mapping; which of them holds an entry, and where, is then looked up in the files: the whole row and the whole
column of the entry must be there, number for number. What cannot be verified so is said, not guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from studfinder.errors import StudfinderError
from studfinder.models.anatomy import MatrixRef
from studfinder.models.files import SAFE, held_in
from studfinder.models.lm import LM
from studfinder.models.loading import destinations
from studfinder.models.places import model_folder
from studfinder.models.weights import matrix


@dataclass(frozen=True)
class FilePlace:
    """An entry in a checkpoint file.

    Attributes:
        tensor, index: its tensor and its literal index there; None where they could not be verified.
        note: why not.
    """

    tensor: str | None = None
    index: tuple[int, ...] | None = None
    note: str = ""


class CheckpointFiles:
    """The safetensors files that a model came from, and what transformers makes of their tensors."""

    def __init__(self, lm: LM) -> None:
        self.lm = lm

    def place(self, ref: MatrixRef, row: int, col: int) -> FilePlace:
        """Where the entry (output channel `row`, input channel `col`) of a matrix stands in the files."""
        if not self.files:
            return FilePlace(note="no safetensors files of this model are at hand")
        if self.lm.source.quantised is not None:
            return FilePlace(note=f"the files hold {ref.parameter} as {self.lm.source.quantised} packs it")
        with matrix(self.lm, ref) as weight_CF:
            if weight_CF is None:
                return FilePlace(note=f"{ref.parameter} is quantised")
            row_F, col_C = weight_CF[row].cpu().clone(), weight_CF[:, col].cpu().clone()
        names = self.sources.get(ref.parameter, [])
        if ref.expert is not None and ref.expert < len(names):  # experts that are copies of each other look alike
            names = [names[ref.expert], *names[: ref.expert], *names[ref.expert + 1 :]]
        for name in names:
            index = self._index(name, ref, row, col, row_F, col_C)
            if index is not None:
                return FilePlace(name, index)
        if not names:
            return FilePlace(note=f"transformers makes {ref.parameter} from no tensor of the files")
        return FilePlace(note=f"{names[0]} of the files holds other numbers: changed since loading, or converted")

    def _index(
        self, name: str, ref: MatrixRef, row: int, col: int, row_F: torch.Tensor, col_C: torch.Tensor
    ) -> tuple[int, ...] | None:
        """The entry's literal index into a tensor of the files, if its row and its column are there."""
        from safetensors import safe_open

        with safe_open(self.files[name], framework="pt") as file:
            stored = file.get_slice(name)
            shape = tuple(stored.get_shape())
            expert: tuple[int, ...] = () if len(shape) < 3 or ref.expert is None else (ref.expert,)
            for pair, along, down in (((row, col), row_F, col_C), ((col, row), col_C, row_F)):
                if shape[len(expert) :] != (len(down), len(along)):
                    continue
                across, below = (*expert, pair[0], slice(None)), (*expert, slice(None), pair[1])
                first, second = stored[across], stored[below]
                if torch.equal(first.to(along.dtype), along) and torch.equal(second.to(down.dtype), down):
                    return (*expert, *pair)
        return None

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each tensor; empty where there are none."""
        folder = model_folder(self.lm.source)
        if folder is None:
            return {}
        try:
            return {name: folder / one.file for name, one in held_in(folder).items() if one.file.endswith(SAFE)}
        except StudfinderError:
            return {}

    @cached_property
    def sources(self) -> dict[str, list[str]]:
        """Which tensors of the files go into each parameter, experts in their order."""
        found: dict[str, list[str]] = {}
        for name, (target, _) in destinations(self.lm.model, self.files).items():
            found.setdefault(target, []).append(name)
        return found
