"""Where the parts of a model are: plain data, measured on the live model (probe.py), never a table of architectures."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

Stage = Literal["post-RoPE", "pre-RoPE", "no RoPE"]


@dataclass(frozen=True)
class MatrixRef:
    """One matrix.

    Attributes:
        parameter: the Hugging Face parameter's name.
        expert: which expert's slice of a fused parameter, or None.
        transposed: stored (in, out) instead of (out, in), as Conv1D and gpt_oss do.
        stacked: where a 2-D parameter holds experts one under the other, as DBRX's: how many rows each has; else 0.
    """

    parameter: str
    expert: int | None = None
    transposed: bool = False
    stacked: int = 0

    @property
    def module(self) -> str:
        """The module that owns the parameter."""
        return self.parameter.rpartition(".")[0]

    def index(self, row: int, col: int) -> tuple[int, ...]:
        """The literal index of (output channel `row`, input channel `col`) into the parameter."""
        pair = (col, row) if self.transposed else (row, col)
        if self.expert is None:
            return pair
        return (self.expert * self.stacked + pair[0], pair[1]) if self.stacked else (self.expert, *pair)

    def view(self, parameter: nn.Parameter) -> nn.Parameter:
        """The matrix as (out, in), a view of the parameter's storage."""
        matrix: torch.Tensor = parameter
        if self.stacked:
            matrix = matrix.unflatten(0, (-1, self.stacked))
        if self.expert is not None:
            matrix = matrix[self.expert]
        return matrix.T if self.transposed else matrix  # type: ignore[return-value]


@dataclass(frozen=True)
class HeadRows:
    """Output channels of a matrix, by head: those of head h are `first[h]` and the `width - 1` that follow.

    Attributes:
        ref: the matrix; q, k and v may be in one.
    """

    ref: MatrixRef
    first: tuple[int, ...]
    width: int


@dataclass(frozen=True)
class Rows:
    """Output channels of a matrix, one for each neuron: neuron n's is `first + n * step`."""

    ref: MatrixRef
    first: int = 0
    step: int = 1


@dataclass(frozen=True)
class Mixer:
    """What lets tokens of a layer see each other.

    Attributes:
        module: the innermost module that holds all of it.
        kind: "softmax" (attention), or "linear" for everything else: linear attention, recurrences, convolutions.
        interface: whether Q, K and V reach transformers' AttentionInterface.
        stage: what can be read of Q and K: after RoPE where the interface is reached.
        turned: with RoPE, the first dim of a head that it turns: MLA keeps those behind the others.
        interleaved: whether it turns neighbouring dims together, and not each with one half the width away.
        heads, kv_heads, head_dim, value_dim: H, G, D of Q and K, and D of V as attention receives them; 0 where the
            mixer is no attention.
        query, key, value: which output channels make them: of the last matrix before attention, in MLA those that
            expand the latent; None where probing could not confirm it (*unknown*).
        output: the matrix that reads what attention gives; None if unknown.
        gate: the channels that multiply attention's output, one for each; None if there are none.
    """

    module: str
    kind: Literal["softmax", "linear"]
    interface: bool = False
    stage: Stage = "no RoPE"
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    value_dim: int = 0
    query: HeadRows | None = None
    key: HeadRows | None = None
    value: HeadRows | None = None
    output: MatrixRef | None = None
    gate: HeadRows | None = None
    turned: int = 0
    interleaved: bool = False

    @property
    def readable(self) -> bool:
        """Whether Q, K and V can be read: at the interface, or where it is known which channels make them."""
        return self.interface or None not in (self.query, self.key, self.value)


@dataclass(frozen=True)
class Writer(MatrixRef):
    """A matrix that writes what a feed-forward network gives to the residual stream: the down projection.

    Attributes:
        up: the rows that enter its input as a factor, or alone where there is no gate; None if unknown.
        gate: the rows that enter it through the activation; None if there are none, or unknown.
        routed: whether it is an expert's, which only the tokens reach that a router sends there.
    """

    up: Rows | None = None
    gate: Rows | None = None
    routed: bool = False


@dataclass(frozen=True)
class Norm:
    """A norm: its output does not change with the size of its input.

    Attributes:
        module: its name.
        offset: 1 if it multiplies by 1 + weight, as Gemma's, else 0.
    """

    module: str
    offset: float


@dataclass(frozen=True)
class Layer:
    """One block.

    Attributes:
        block: its module.
        mixers: of its tokens; an attention first.
        writers: the matrices that write from its feed-forward networks; one an expert.
        norms: every norm in it, in the order they run.
        routers: matrices that choose or weigh experts.
        fused: modules that read the same tensor and belong together, so that serving engines run them as one matrix
            and they must share a format: q, k and v; gate and up.
        experts: the innermost module around the experts that is given hidden states; None without experts.
    """

    block: str
    mixers: tuple[Mixer, ...]
    writers: tuple[Writer, ...]
    norms: tuple[Norm, ...] = ()
    routers: tuple[str, ...] = ()
    fused: tuple[tuple[str, ...], ...] = ()
    experts: str | None = None

    @property
    def mixer(self) -> Mixer | None:
        """Its softmax attention, if it has one."""
        return next((mixer for mixer in self.mixers if mixer.kind == "softmax"), None)

    @property
    def attention(self) -> str | None:
        """The module of its softmax attention."""
        return self.mixer.module if self.mixer is not None else None


@dataclass(frozen=True)
class Anatomy:
    """The map of a model. Sizes: hidden C, intermediate F (of the first writer), vocabulary V; attention's are those of
    the first layer that attends (a layer's own are its mixer's).

    Attributes:
        streams: how many residual streams run side by side; C counts them all.
        stream_axis: which axis of what blocks hand on they are; None if they are one row, or one stream.
    """

    architecture: str
    decoder: str
    layers: tuple[Layer, ...]
    hidden: int
    intermediate: int
    vocabulary: int
    max_positions: int | None
    streams: int = 1
    stream_axis: int | None = None

    @cached_property
    def _first(self) -> Mixer:
        attending = [layer.mixer for layer in self.layers if layer.mixer is not None]
        turned = [mixer for mixer in attending if mixer.stage != "no RoPE"]
        return (turned or attending or [Mixer("", "linear")])[0]

    @property
    def stage(self) -> Stage:
        """Where Q and K are read in the first layer with RoPE, or the first that attends."""
        return self._first.stage

    @property
    def interface(self) -> bool:
        """Whether its attention is read at transformers' AttentionInterface."""
        return self._first.interface

    @property
    def heads(self) -> int:
        return self._first.heads

    @property
    def kv_heads(self) -> int:
        return self._first.kv_heads

    @property
    def head_dim(self) -> int:
        return self._first.head_dim
