"""Which weights: those that a scan found, one entry, a neuron's column, a channel's row, the largest of all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from studfinder.edits.edit import Weights
from studfinder.edits.names import is_name
from studfinder.errors import StudfinderError, unknown
from studfinder.models import LM, MatrixRef, matrix
from studfinder.records import Findings, OtherNumber, SuperWeight
from studfinder.runs import read

WHICH = ("proven", "tested", "all")


@dataclass(frozen=True)
class Selection:
    """Which numbers of a scan are meant: one rule for all that edits, keeps or rebalances them.

    Attributes:
        findings: the scan's; given alone, their proven ones are meant.
        which: "proven": their removal was shown to matter; "tested": they were tested, whatever came of it; or "all".
    """

    findings: Findings
    which: Literal["proven", "tested", "all"] = "proven"

    def __post_init__(self) -> None:
        if self.which not in WHICH:
            raise unknown("there is no selection of findings", self.which, WHICH)

    @property
    def weights(self) -> tuple[SuperWeight, ...]:
        """The super weights that are meant; may be none."""
        return tuple(one for one in self.numbers if isinstance(one, SuperWeight))

    @property
    def numbers(self) -> tuple[SuperWeight | OtherNumber, ...]:
        """Super weights and other numbers that are meant; may be none."""
        if self.which == "proven":
            return self.findings.proven_numbers
        found: tuple[SuperWeight | OtherNumber, ...] = (*self.findings.super_weights, *self.findings.other_numbers)
        return tuple(one for one in found if self.which == "all" or one.effect is not None)

    @property
    def nothing(self) -> str:
        """Why there are none."""
        found, others = len(self.findings.super_weights), len(self.findings.other_numbers)
        model = self.findings.model.id
        if not found and not others:
            return f"the scan of {model} found no super-weight candidates"
        more = f" and {others} other numbers" if others else ""
        return f"none of the {found} super-weight candidates{more} of {model} is {self.which} (#all means all of them)"


def selected(given: Any) -> Any:
    """Findings, a run's folder or file, or its name with #proven, #tested or #all, as a Selection; all else as it is,
    the printed name of a number too.

    Raises:
        StudfinderError: there are no findings in that place, or another word behind the #.
    """
    if isinstance(given, Findings):
        return Selection(given)
    if not isinstance(given, str | Path):
        return given
    if is_name(str(given)) and not Path(given).exists():
        return str(given)
    path, mark, which = str(given).rpartition("#")
    if not mark or Path(given).exists():
        path, which = str(given), "proven"
    return Selection(read(path, Findings), which)  # type: ignore[arg-type]


def meant(what: Any) -> tuple[SuperWeight, ...]:
    """The super weights of a selection, of findings or of a list. Raises StudfinderError if there are none."""
    found = tuple(one for one in meant_numbers(what) if isinstance(one, SuperWeight))
    if not found:
        raise StudfinderError("there are no super weights", expected="at least one")
    return found


def meant_numbers(what: Any) -> tuple[SuperWeight | OtherNumber, ...]:
    """The super weights and other numbers of a selection, of findings or of a list. Raises StudfinderError if there
    are none."""
    what = selected(what)
    if isinstance(what, Selection):
        if not what.numbers:
            raise StudfinderError(what.nothing, do="Name those that are meant")
        return what.numbers
    numbers = (what,) if isinstance(what, SuperWeight | OtherNumber) else tuple(what)
    if not numbers:
        raise StudfinderError("there are no super weights", expected="at least one")
    return numbers


def entry(lm: LM, layer: int, row: int, col: int, writer: int = 0) -> Weights:
    """One entry of a block's down projection. `writer` is the expert, for a mixture."""
    ref = _ref(lm, layer, writer)
    _check(lm, ref, row, col)
    return Weights(parameter=ref.parameter, entries=(ref.index(row, col),))


def neuron(lm: LM, layer: int, col: int, writer: int = 0) -> Weights:
    """Everything one FFN neuron writes: the column of its down projection."""
    ref = _ref(lm, layer, writer)
    _check(lm, ref, 0, col)
    return Weights(parameter=ref.parameter, entries=(_axis(ref, None, col),))


def channel(lm: LM, layer: int, row: int, writer: int = 0) -> Weights:
    """Everything a block's FFN writes into one channel of the residual stream: the row of its down projection."""
    ref = _ref(lm, layer, writer)
    _check(lm, ref, row, 0)
    return Weights(parameter=ref.parameter, entries=(_axis(ref, row, None),))


def top_fraction(
    lm: LM, fraction: float, parameters: Sequence[str] | None = None, keep: Collection[tuple[str, tuple]] = ()
) -> list[Weights]:
    """The largest weights by magnitude, a fraction of each parameter (at least one entry of each).

    Args:
        parameters: which; the default is every matrix inside the blocks.
        keep: (parameter, index) pairs to leave out.

    Raises:
        StudfinderError: the fraction is not between 0 and 1, or a parameter is not in the model.
    """
    if not 0 < fraction <= 1:
        raise StudfinderError(f"fraction {fraction}", expected="a number above 0 and at most 1")
    blocks = tuple(layer.block + "." for layer in lm.anatomy.layers)
    known = dict(lm.model.named_parameters())
    names = parameters or [n for n, p in known.items() if n.startswith(blocks) and p.dim() >= 2]
    chosen = []
    for name in names:
        if name not in known:
            raise StudfinderError(f"there is no parameter {name!r} in this model")
        values = known[name].detach().abs()
        count = max(1, int(fraction * values.numel()))
        places = torch.unravel_index(values.flatten().topk(count).indices, values.shape)
        entries = tuple(zip(*(axis.tolist() for axis in places), strict=True))
        left = tuple(index for index in entries if (name, index) not in keep)
        if left:
            chosen.append(Weights(parameter=name, entries=left))
    return chosen


def _ref(lm: LM, layer: int, writer: int) -> MatrixRef:
    layers = lm.anatomy.layers
    if not 0 <= layer < len(layers):
        raise StudfinderError(f"there is no layer {layer}", expected=f"0 to {len(layers) - 1}")
    writers = layers[layer].writers
    if not 0 <= writer < len(writers):
        raise StudfinderError(f"layer {layer} has no writer {writer}", expected=f"0 to {len(writers) - 1}")
    return writers[writer]


def _check(lm: LM, ref: MatrixRef, row: int, col: int) -> None:
    with matrix(lm, ref) as weight:
        if weight is None:
            raise StudfinderError(f"{ref.parameter} is quantised", do="Edit the unquantised model")
        rows, cols = weight.shape
    if not (0 <= row < rows and 0 <= col < cols):
        raise StudfinderError(f"[{row}, {col}] is outside {ref.parameter}", expected=f"[0..{rows - 1}, 0..{cols - 1}]")


def _axis(ref: MatrixRef, row: int | None, col: int | None) -> tuple[int | None, ...]:
    pair = (col, row) if ref.transposed else (row, col)
    return pair if ref.expert is None else (ref.expert, *pair)
