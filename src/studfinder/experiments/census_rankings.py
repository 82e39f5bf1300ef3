"""Orders in which numbers may be looked at: by spikes, by size, by size times input (Wanda), by impact (CherryQ)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from studfinder.detectors.census import Spot
from studfinder.models import LM
from studfinder.quantizers import RTN, Scheme
from studfinder.quantizers.rtn import round_to_nearest
from studfinder.quantizers.targets import targets
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


def by_impact(lm: LM, predicted: Path, most: int, scheme: Scheme | None = None) -> list[Spot]:
    """The largest F of the matrices that are quantised: what CherryQ (2404.02837) calls a parameter's impact, where all
    are moved by as much. With a scheme F times the square of what rounding to nearest moves each by, as SqueezeLLM
    (2306.07629) weighs errors.

    Args:
        predicted: the census's map: 1/2 w^2 F of every number.
    """

    def scored() -> Iterator[tuple[str, torch.Tensor]]:
        with safe_open(predicted, framework="pt") as file:
            for target in targets(lm):
                if target.part is None:  # experts in one fused parameter are left out, as in `by_contribution`
                    w = lm.model.get_parameter(target.name).detach().float()
                    impact = (file.get_tensor(target.name) / w.square()).nan_to_num(0, 0, 0)
                    if scheme is not None:
                        own_RC = target.of(w)
                        moved_RC = own_RC - round_to_nearest(own_RC, RTN(scheme=scheme)).dequantized()
                        impact *= target.of(moved_RC).square()  # turned twice is as it was
                    yield target.name, impact

    return _largest(scored(), most)


def in_turn(*rankings: Sequence[Spot]) -> list[Spot]:
    """The first of each, the second of each, and so on, each number once."""
    return list(dict.fromkeys(one for one in chain.from_iterable(zip_longest(*rankings)) if one is not None))


def matrices_of_blocks(lm: LM) -> list[str]:
    """Parameters of two axes or more inside the blocks."""
    blocks = tuple(layer.block + "." for layer in lm.anatomy.layers)
    return [n for n, p in lm.model.named_parameters() if n.startswith(blocks) and p.dim() >= 2]


def _largest(scores: Iterable[tuple[str, torch.Tensor]], most: int) -> list[Spot]:
    found: list[tuple[float, Spot]] = []
    for name, score in scores:
        values, flat = score.flatten().topk(min(most, score.numel()))
        places = zip(*(axis.tolist() for axis in torch.unravel_index(flat, score.shape)), strict=True)
        found += [(value, (name, place)) for value, place in zip(values.tolist(), places, strict=True)]
        found = sorted(found, key=lambda one: -one[0])[:most]
    return [spot for _, spot in found]
