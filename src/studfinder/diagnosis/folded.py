"""The original's weights as a checkpoint would have them if it had only moved factors between them.

AWQ, SmoothQuant and rebalancing multiply the columns of a matrix and take the inverse out of what makes its input: a
norm, the up projection, the value projection. The function stays what it was, the numbers do not. What is compared, and
what is put back, is the original with the same factors moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from studfinder.diagnosis.patterns import line_factors
from studfinder.models import LM, MatrixRef, Norm
from studfinder.quantizers.folds import Fold, up_fold, value_fold
from studfinder.quantizers.targets import Target, by_input

_SEEN = 0.05
"""Logs of factors nearer to 0 are what rounding leaves."""
_EXPLAINED = 0.5
"""A norm explains the factors of columns if no more than this share of them is left."""
_SPREAD = 0.02
"""Logs of factors that differ by less from each other tell nothing."""
_ALIKE = 0.3
"""Or what it may be off by over its own size, by the median over channels."""
_INVERSE = 0.12
"""What the log of a factor times its inverse may be off by, so rounded."""


class FoldedOriginal:
    """An original's parameters with a checkpoint's factors moved.

    Attributes:
        moved: by name of a parameter, factors that broadcast over it; of norms over what they multiply by.
    """

    def __init__(
        self,
        original: LM,
        made: LM,
        matrices: Sequence[Target],
        advance: Callable[[float], Any] = lambda share: None,
    ) -> None:
        self.was = dict(original.model.named_parameters(remove_duplicate=False))
        self.now = dict(made.model.named_parameters(remove_duplicate=False))
        self.moved: dict[str, list[torch.Tensor]] = {}
        self._offsets: dict[str, float] = {}
        for layer, part in enumerate(original.anatomy.layers):
            if any(self._differs(name) for name in self.was if name.startswith(part.block + ".")):
                own = [target for target in matrices if target.layer == layer]
                self._norms(part.norms, own, part.block)
                for fold in (up_fold(original, layer), value_fold(original, layer, shared=True)):
                    if fold is not None:
                        self._matrix(fold)
            advance(1 / len(original.anatomy.layers))

    def tensor(self, name: str) -> torch.Tensor:
        """A parameter; the original's own where nothing was moved."""
        found, factors = self.was[name].detach(), self.moved.get(name, ())
        if not factors:
            return found
        offset = self._offsets.get(name, 0.0)
        made = found.float() + offset
        for one in factors:
            made = made * one
        return (made - offset).to(found.dtype)

    def error(self, name: str) -> torch.Tensor:
        """What a parameter differs by, fp32, in the original's own numbers: as if no factor had been moved."""
        found = self.now[name].detach().float() - self.tensor(name).float()
        for one in self.moved.get(name, ()):
            found = found / one
        return found

    @property
    def differing(self) -> list[str]:
        """Every parameter of the checkpoint that is not the original's bit by bit."""
        own = {id(parameter): name for name, parameter in reversed(self.now.items())}
        return [name for name in own.values() if name in self.was and self._differs(name)]

    def _differs(self, name: str) -> bool:
        if name not in self.now or self.was[name].shape != self.now[name].shape:
            return False
        return not torch.equal(self.was[name].detach().to(self.now[name].dtype), self.now[name].detach())

    def _norms(self, norms: Sequence[Norm], own: Sequence[Target], block: str) -> None:
        """What was taken out of norms, into the columns of the matrices that are given their output: of the norm whose
        factors fit them best."""
        ratios = {norm: one for norm in norms if (one := self._ratio(norm)) is not None}
        moved: set[Norm] = set()
        for names in list(self._readers(own, block)):
            width = next(iter(names.values()))[0].shape[1]
            off = {
                norm: min(_off(one, *pair) for pair in names.values())
                for norm, one in ratios.items()
                if len(one) == width
            }
            best = min(off, key=lambda norm: off[norm], default=None)
            if best is None or off[best] > _EXPLAINED:
                continue
            moved.add(best)
            for name in names:
                factors = 1 / ratios[best]
                self._move(name.removesuffix(".T"), factors[:, None] if name.endswith(".T") else factors)
        for norm in moved:
            self._offsets[f"{norm.module}.weight"] = norm.offset
            self._move(f"{norm.module}.weight", ratios[norm])
            if (bias := f"{norm.module}.bias") in self.was:
                self._move(bias, ratios[norm])

    def _ratio(self, norm: Norm) -> torch.Tensor | None:
        """By what a norm was multiplied."""
        name = f"{norm.module}.weight"
        if name not in self.was or self.was[name].dim() != 1 or not self._differs(name):
            return None
        ratio = (self.now[name].detach().float() + norm.offset) / (self.was[name].detach().float() + norm.offset)
        return ratio if bool((ratio.isfinite() & (ratio > 0)).all()) else None

    def _readers(self, own: Sequence[Target], block: str) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Matrices of one input, by parameter (".T" behind it if it lies turned), as (was, is)."""
        taken = set()
        for group in by_input(own).values():
            taken |= {target.ref.parameter for target in group}
            yield {
                target.ref.parameter + ".T" * target.ref.transposed: (
                    target.of(self.was[target.ref.parameter].detach()),
                    target.of(self.now[target.ref.parameter].detach()),
                )
                for target in group
            }
        for name, parameter in self.was.items():
            other = name.startswith(block + ".") and name not in taken and name in self.now
            if other and parameter.dim() == 2 and parameter.shape == self.now[name].shape:
                yield {name: (parameter.detach(), self.now[name].detach())}

    def _matrix(self, fold: Fold) -> None:
        """What was taken out of the rows of a matrix, into the columns of the one that is given them."""
        source, (reader,) = f"{fold.source}.weight", fold.reads
        if not (self._differs(source) and self._differs(reader.parameter)):
            return
        rows_R = self._logs(MatrixRef(source), 1)
        cols_C = self._logs(reader, 0)
        if rows_R is None or cols_C is None or len(fold.row_C) != len(cols_C):
            return
        row_C = rows_R[fold.row_C]
        inverse_C = (row_C + cols_C).abs() < _INVERSE
        seen_C = row_C.abs() > 2 * _SEEN
        some = bool((inverse_C & seen_C).any()) and int((inverse_C & seen_C).sum()) * 2 >= int(seen_C.sum())
        if not some and float((row_C + cols_C).abs().median()) > _ALIKE * float(row_C.abs().median()):
            return
        scale_C = torch.where(inverse_C, (cols_C - row_C) / 2, 0.0).exp()
        self._move(reader.parameter, scale_C[:, None] if reader.transposed else scale_C)
        by_row = torch.ones(len(rows_R)).index_copy_(0, fold.row_C, scale_C)
        self._move(source, 1 / by_row[:, None])
        if (bias := f"{fold.source}.bias") in self.was:
            self._move(bias, 1 / by_row)

    def _logs(self, ref: MatrixRef, dim: int) -> torch.Tensor | None:
        was, now = self.tensor(ref.parameter), self.now[ref.parameter].detach()
        if was.dim() != 2:
            return None
        was, now = (one.T if ref.transposed else one for one in (was, now))
        return line_factors(was.float(), now.float(), dim).flatten().clamp_min(1e-6).log()

    def _move(self, name: str, factors: torch.Tensor) -> None:
        self.moved.setdefault(name, []).append(factors)


def _off(ratio_C: torch.Tensor, was_RC: torch.Tensor, is_RC: torch.Tensor) -> float:
    """What is left of the factors of a matrix's columns, as logs, when what a norm was multiplied by is undone: as they
    are, or but for one factor of the whole matrix, which is its own fault."""
    logs_C = line_factors(was_RC.float(), is_RC.float(), 0)[0].clamp_min(1e-6).log()
    left_C = logs_C + ratio_C.log()
    whole = float(left_C.abs().median()) / max(1e-9, float(logs_C.abs().median()))
    spread, own = ((one - one.median()).abs().median() for one in (left_C, logs_C))
    return min(whole, float(spread / own)) if float(own) > _SPREAD else whole
