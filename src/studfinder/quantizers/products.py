"""What enters the two products of attention in few bits, beside what enters the matrices."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.activations import ActivationScheme, fake_quantized
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.grid import RoundingGrid, grid_of
from studfinder.quantizers.method import Method
from studfinder.quantizers.scheme import Scheme
from studfinder.quantizers.walk import Extremes, wider
from studfinder.sites import Replacement, Site, tapped


@dataclass(frozen=True, kw_only=True)
class WithProducts:
    """A method, and queries, keys and values rounded besides, as attention gets them (after RoPE).

    As SmoothQuant's reference simulates it, what the heads of a layer get of a token is one vector that is rounded as
    the input of a matrix would be; attention weights, which are the other input of the second product, are not rounded.

    Attributes:
        method: any.
        activations: how; static ranges are measured after the method has run.
    """

    method: Method
    activations: ActivationScheme

    @property
    def scheme(self) -> Scheme:
        return self.method.scheme

    @property
    def calibrated(self) -> bool:
        return self.method.calibrated or self.activations.range == "static"

    def run(self, bench: Workbench) -> None:
        """Raises StudfinderError if the model has no attention whose products can be reached."""
        self.method.run(bench)
        sites = _sites(bench.lm)
        grids: dict[Site, RoundingGrid] = {}
        if self.activations.range == "static":
            for site, (low, high) in _ranges(bench, sites).items():
                grids[site] = grid_of(low.reshape(1, 1), high.reshape(1, 1), self.activations.scheme)
        replace = {site: partial(_rounded, self.activations, grids.get(site)) for site in sites}
        entered = ExitStack()
        bench.journal.then(entered.close)
        entered.enter_context(tapped(bench.lm, replace=replace))
        bench.notes.append(f"queries, keys and values of {len(sites) // 3} layers rounded")


def _sites(lm: LM) -> list[Site]:
    found = []
    for layer in range(len(lm.anatomy.layers)):
        own = [Site(kind, layer) for kind in ("query", "key", "value")]
        with suppress(StudfinderError):  # a layer without attention
            for site in own:
                site.check(lm)
            found += own
    if not found:
        Site("query", 0).check(lm)  # says why not
    return found


def _rounded(config: ActivationScheme, grid: RoundingGrid | None, x_BHTD: torch.Tensor) -> torch.Tensor:
    x_BTHD = x_BHTD.transpose(1, 2)
    rows = x_BTHD.reshape(-1, x_BTHD.shape[-2] * x_BTHD.shape[-1])
    return fake_quantized(rows, config, grid=grid).view(x_BTHD.shape).transpose(1, 2)


@torch.no_grad()
def _ranges(bench: Workbench, sites: list[Site]) -> Mapping[Site, Extremes]:
    found: dict[Site, Extremes] = {}

    def seen(site: Site, x_BHTD: torch.Tensor) -> torch.Tensor:
        low, high = x_BHTD.float().aminmax()
        ends = low, high
        found[site] = wider(found[site], ends) if site in found else ends
        return x_BHTD

    replace: dict[Site, Replacement] = {site: partial(seen, site) for site in sites}
    with tapped(bench.lm, replace=replace):
        for ids in bench.windows:
            bench.lm.model(input_ids=torch.tensor([list(ids)], device=bench.lm.device), use_cache=False)
    return found
