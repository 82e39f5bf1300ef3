"""Orders in which numbers may be looked at: by spikes, by size, by size times input (Wanda), by impact (CherryQ)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from studfinder.detectors.census import Spot
from studfinder.models import LM
from studfinder.quantizers import RTN, Scheme
from studfinder.quantizers.rtn import round_to_nearest
from studfinder.quantizers.targets import Target, targets
from studfinder.records import Findings
from studfinder.sites import module_inputs


def by_spikes(findings: Findings) -> list[Spot]:
    """The super-weight candidates of a scan, best score first."""
    return list(dict.fromkeys((weight.parameter, weight.index) for weight in findings.super_weights))


def by_magnitude(lm: LM, most: int) -> list[Spot]:
    """The largest |w| of the matrices in the blocks."""
    return _largest(((name, lm.model.get_parameter(name).detach().abs()) for name in matrices_of_blocks(lm)), most)


def by_contribution(lm: LM, windows: Sequence[Sequence[int]], most: int) -> list[Spot]:
    """The largest |w| times the norm of its input over all tokens, of the same matrices: those that are no module of
    their own (fused experts) have no input here."""
    modules = {name.removesuffix(".weight"): name for name in matrices_of_blocks(lm) if name.endswith(".weight")}
    squares: dict[str, torch.Tensor] = {}
    for ids in windows:
        with module_inputs(lm, list(modules)) as inputs, torch.no_grad():
            lm.model(input_ids=torch.tensor([list(ids)], device=lm.device), use_cache=False)
        for name, x in inputs.items():
            squares[name] = squares.get(name, 0) + x.float().square().flatten(0, -2).sum(dim=0)

    def scored() -> Iterator[tuple[str, torch.Tensor]]:
        for name, square in squares.items():
            weight = lm.model.get_parameter(modules[name]).detach().float().abs()
            if weight.shape[-1] == len(square) and isinstance(lm.model.get_submodule(name), nn.Linear):
                yield modules[name], weight * square.sqrt()
            elif weight.shape[0] == len(square):  # stored (in, out)
                yield modules[name], weight * square.sqrt()[:, None]

    return _largest(scored(), most)


Moved = Callable[[Target, torch.Tensor], torch.Tensor]
"""From a matrix and its parameter w, in fp32, by how much each of its numbers is moved, in the parameter's shape."""


def as_much(_target: Target, w: torch.Tensor) -> torch.Tensor:
    """All by as much."""
    return torch.ones_like(w)


def to_zero(_target: Target, w: torch.Tensor) -> torch.Tensor:
    """To zero: what the census predicts."""
    return w


def rounded_to(scheme: Scheme) -> Moved:
    """To the nearest code of a scheme."""

    def moved(target: Target, w: torch.Tensor) -> torch.Tensor:
        own_RC = target.of(w)
        return target.of(own_RC - round_to_nearest(own_RC, RTN(scheme=scheme)).dequantized())  # turned twice

    return moved


def by_impact(lm: LM, predicted: Path, most: int, moved: Moved = as_much) -> list[Spot]:
    """The largest F moved^2 of the matrices that are quantised. With all moved by as much it is what CherryQ
    (2404.02837) calls a parameter's impact; with rounding errors it is how SqueezeLLM (2306.07629) weighs them.

    Args:
        predicted: the census's map: 1/2 w^2 F of every number.
    """

    def scored() -> Iterator[tuple[str, torch.Tensor]]:
        with safe_open(predicted, framework="pt") as file:
            for target in targets(lm):
                if target.part is None:  # experts in one fused parameter are left out, as in `by_contribution`
                    w = lm.model.get_parameter(target.name).detach().float()
                    impact = (file.get_tensor(target.name) / w.square()).nan_to_num(0, 0, 0)
                    yield target.name, impact.mul_(moved(target, w).square())

    return _largest(scored(), most)


def at_random(lm: LM, most: int, seed: int) -> list[Spot]:
    """Numbers of the same matrices, each with the same chance."""
    draws = torch.Generator().manual_seed(seed)
    sizes = ((name, lm.model.get_parameter(name).shape) for name in matrices_of_blocks(lm))
    return _largest(((name, torch.rand(shape, generator=draws)) for name, shape in sizes), most)


def matrices_of_blocks(lm: LM) -> list[str]:
    """Parameters of two axes or more inside the blocks."""
    blocks = tuple(layer.block + "." for layer in lm.anatomy.layers)
    return [n for n, p in lm.model.named_parameters() if n.startswith(blocks) and p.dim() >= 2]


def _largest(scores: Iterable[tuple[str, torch.Tensor]], most: int) -> list[Spot]:
    shapes: list[tuple[str, torch.Size]] = []
    best, flat, whose = torch.empty(0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    for name, score in scores:
        values, places = score.float().flatten().cpu().topk(min(most, score.numel()))
        best, order = torch.cat([best, values]).topk(min(most, len(best) + len(values)))
        flat = torch.cat([flat, places])[order]
        whose = torch.cat([whose, torch.full_like(places, len(shapes))])[order]
        shapes.append((name, score.shape))
    found: list[Spot] = []
    for place, number in zip(flat.tolist(), whose.tolist(), strict=True):
        name, shape = shapes[number]
        found.append((name, tuple(int(at) for at in np.unravel_index(place, shape))))
    return found
