"""The gated feed-forward network of a block as anatomy has it, and factors for its neurons."""

from __future__ import annotations

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM, Rows, Writer
from studfinder.quantizers.bench import Workbench


def find_ffn(lm: LM, layer: int) -> Writer | None:
    """The down projection of a block's feed-forward network, with `up` and `gate`; None if it is not gated (what lies
    before the activation cannot be scaled), or a mixture."""
    writers = lm.anatomy.layers[layer].writers
    if len(writers) != 1 or writers[0].routed or writers[0].up is None or writers[0].gate is None:
        return None
    plain = not any(ref.transposed or ref.stacked for ref in (writers[0], writers[0].up.ref, writers[0].gate.ref))
    return writers[0] if plain else None


def ffn_of(lm: LM, layer: int) -> tuple[Writer, Rows, Rows]:
    """The same, with its `up` and its `gate`. Raises StudfinderError if there is none."""
    found = find_ffn(lm, layer)
    if found is not None and found.up is not None and found.gate is not None:
        return found, found.up, found.gate
    raise StudfinderError(
        f"layer {layer} of this {lm.anatomy.architecture} model has no gated feed-forward network of its own",
        expected="down(act(gate(x)) * up(x))",
    )


def rows_of(rows: Rows, neurons: torch.Tensor) -> torch.Tensor:
    """Which rows of their matrix make these neurons."""
    return rows.first + rows.step * neurons


def scale_rows(bench: Workbench, name: str, rows: torch.Tensor, factors: torch.Tensor) -> None:
    """Multiply rows of a matrix (out, in), and of its bias, by powers of two.

    Raises:
        StudfinderError: a number under- or overflows, so that the factor could not be taken back.
    """
    for parameter, value in with_bias(bench.lm, name).items():
        column = factors.to(value).reshape(-1, *[1] * (value.dim() - 1))
        bench.journal.write(parameter, _scaled(value, rows, column, 0, parameter))


def scale_columns(bench: Workbench, name: str, cols: torch.Tensor, factors: torch.Tensor) -> None:
    """Multiply columns of a matrix (out, in) by powers of two. Raises as `scale_rows`."""
    value = bench.lm.model.get_parameter(name).detach()
    bench.journal.write(name, _scaled(value, cols, factors.to(value)[None, :], 1, name))


def with_bias(lm: LM, name: str) -> dict[str, torch.Tensor]:
    """A weight by its parameter's name, and its bias if it has one."""
    module = name.rpartition(".")[0]
    found = lm.model.get_submodule(module).named_parameters(recurse=False, remove_duplicate=False)
    return {f"{module}.{leaf}": value.detach() for leaf, value in found if leaf in ("weight", "bias")}


def _scaled(value: torch.Tensor, places: torch.Tensor, factors: torch.Tensor, axis: int, name: str) -> torch.Tensor:
    places = places.to(value.device)
    old = value.index_select(axis, places)
    new = old * factors
    if not torch.equal(new / factors, old) or not torch.isfinite(new).all():
        raise StudfinderError(f"{name} cannot be scaled exactly in {value.dtype}", do="Use a smaller factor")
    return value.clone().index_copy_(axis, places, new)
