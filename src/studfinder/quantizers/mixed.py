"""Every fused group in a format of its own, on the bench that `quantize` works on too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from studfinder.models import LM
from studfinder.passes import Stream
from studfinder.quantizers.apply import bench_for, running
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.keep import skip
from studfinder.quantizers.method import Method
from studfinder.quantizers.rtn import RTN
from studfinder.quantizers.streams import quantized_stream
from studfinder.quantizers.targets import Target
from studfinder.records.scheme import Format

KeptPlaces = Mapping[tuple[str, str], torch.Tensor]
"""By a format's name and a matrix's, flat indices into (out, in) of the numbers that it keeps."""
NEAREST = RTN()  # whose scheme is that of no matrix: each has its own


class HeldPlaces(Mapping[str, torch.Tensor]):
    """Bool masks (out, in) by matrix, made of flat indices when they are asked for: as masks, the numbers that are kept
    of many matrices in many formats would take a byte for each number of the model."""

    def __init__(self, lm: LM, places: Mapping[str, torch.Tensor], found: Sequence[Target]) -> None:
        self.places = places
        self.shapes = {target.name: target.weight(lm).shape for target in found if target.name in places}
        self.device = lm.device

    def __getitem__(self, name: str) -> torch.Tensor:
        return mask_of(self.shapes[name], self.places[name], self.device)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def mask_of(shape: torch.Size, kept: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    """A bool mask (out, in), True at some flat indices."""
    mask_RC = torch.zeros(shape, dtype=torch.bool, device=device)
    mask_RC.view(-1)[kept.to(mask_RC.device).long()] = True
    return mask_RC


def mixed_bench(
    lm: LM,
    formats: Mapping[str, Format],
    kept: KeptPlaces,
    found: Sequence[Target],
    method: Method = NEAREST,
    windows: Sequence[Sequence[int]] = (),
) -> Workbench:
    """What a method needs to round every group in its format.

    Args:
        formats: by fused group; groups without one, and those in 16 bits, are left as they are.
        kept: see `KeptPlaces`; needed of formats that keep something.
        found: every matrix that may be rounded.
        method: the formats stand for its scheme.
        windows: token ids that it is calibrated on, if it is.
    """
    said = {target.name: formats.get(target.fused, Format()) for target in found}
    whole = [target.modules[0] for target in found if said[target.name].weights is None]
    schemes = {name: format.weights for name, format in said.items() if format.weights is not None}
    keep = skip(*whole) if whole else None
    bench = bench_for(lm, method, found, keep=keep, schemes=schemes, windows=windows)
    places = {name: kept[format.name, name] for name, format in said.items() if format.kept}
    bench.held = HeldPlaces(lm, places, found)
    return bench


def mixed_stream(lm: LM, formats: Mapping[str, Format], kept: KeptPlaces, found: Sequence[Target]) -> Stream:
    """The model with every group in its format, as a stream of the engine; arguments as `mixed_bench`."""
    return quantized_stream(mixed_bench(lm, formats, kept, found), NEAREST)


def written_by(bench: Workbench, method: Method) -> dict[str, torch.Tensor]:
    """The parameters that a method changes, by name, as it leaves them; the model is as before."""
    with running(bench, method):
        return {name: bench.lm.model.get_parameter(name).detach().clone() for name in bench.journal.written}
