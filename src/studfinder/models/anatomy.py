"""Where the parts of a model are. A new architecture is one entry in FAMILIES.

Everything here is names and sizes: plain data that says where to look in the live Hugging Face model. Nothing is
renamed, copied or re-implemented.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from studfinder.errors import StudfinderError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Stage = Literal["post-RoPE", "pre-RoPE", "no RoPE"]


@dataclass(frozen=True)
class MatrixRef:
    """One matrix that writes to the residual stream from the feed-forward network.

    Attributes:
        parameter: the Hugging Face parameter's name.
        expert: which slice of a fused 3-D parameter, or None.
        transposed: stored (in, out) instead of (out, in), as Conv1D and gpt_oss do.
    """

    parameter: str
    expert: int | None = None
    transposed: bool = False

    @property
    def module(self) -> str:
        """The module that owns the parameter."""
        return self.parameter.rpartition(".")[0]

    def index(self, row: int, col: int) -> tuple[int, ...]:
        """The literal index of (output channel `row`, input channel `col`) into the parameter."""
        pair = (col, row) if self.transposed else (row, col)
        return pair if self.expert is None else (self.expert, *pair)

    def view(self, parameter: nn.Parameter) -> nn.Parameter:
        """The matrix as (out, in), a view of the parameter's storage."""
        matrix = parameter if self.expert is None else parameter[self.expert]
        return matrix.T if self.transposed else matrix  # type: ignore[return-value]


@dataclass(frozen=True)
class Layer:
    """One block: its module, its attention module if it has one, and the matrices that write from its FFN."""

    block: str
    attention: str | None
    writers: tuple[MatrixRef, ...]


@dataclass(frozen=True)
class Anatomy:
    """The map of a model. Shapes: heads H, kv_heads G, head_dim D, hidden C, intermediate F, vocabulary V."""

    architecture: str
    decoder: str
    layers: tuple[Layer, ...]
    stage: Stage
    split: str | None
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    intermediate: int
    vocabulary: int
    max_positions: int | None


@dataclass(frozen=True)
class Family:
    """How one architecture names its parts, relative to a block unless said otherwise.

    Attributes:
        layers: the ModuleList of blocks, from the model; several where a family comes in wrappers.
        attention: the attention module; a block without it is a layer without attention.
        writers: the down projections (Linear or Conv1D modules, or modules that own a fused `down_proj`).
        split: for attention outside transformers' AttentionInterface, the method of the attention module that
            splits projections into heads: Q, K and V are read and replaced there, before RoPE.
        rope: whether positions are rotary.
    """

    layers: tuple[str, ...] = ("model.layers", "model.language_model.layers", "language_model.model.layers")
    attention: str = "self_attn"
    writers: tuple[str, ...] = ("mlp.down_proj",)
    split: str | None = None
    rope: bool = True


_MOE = ("mlp.down_proj", "mlp.experts", "mlp.shared_expert.down_proj")

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "gemma": Family(),
    "gemma2": Family(),
    "gemma3_text": Family(),
    "gemma3": Family(),
    "phi": Family(writers=("mlp.fc2",)),
    "phi3": Family(),
    "olmo": Family(),
    "olmo2": Family(),
    "stablelm": Family(),
    "gpt2": Family(layers=("transformer.h",), attention="attn", writers=("mlp.c_proj",), rope=False),
    "gpt_neo": Family(
        layers=("transformer.h",),
        attention="attn.attention",
        writers=("mlp.c_proj",),
        split="_split_heads",
        rope=False,
    ),
    "gpt_neox": Family(layers=("gpt_neox.layers",), attention="attention", writers=("mlp.dense_4h_to_h",)),
    "opt": Family(layers=("model.decoder.layers",), writers=("fc2",), rope=False),
    "falcon": Family(
        layers=("transformer.h",),
        attention="self_attention",
        writers=("mlp.dense_4h_to_h",),
        split="_split_heads",
    ),
    "bloom": Family(
        layers=("transformer.h",),
        attention="self_attention",
        writers=("mlp.dense_4h_to_h",),
        split="_reshape",
        rope=False,
    ),
    "mixtral": Family(writers=("mlp.experts", "block_sparse_moe.experts")),
    "qwen2_moe": Family(writers=_MOE),
    "qwen3_moe": Family(writers=_MOE),
    "gpt_oss": Family(writers=("mlp.experts",)),
    "qwen3_next": Family(writers=_MOE),
    "lfm2": Family(writers=("feed_forward.w2",)),
}


_WIDTHS = ("in_features", "infeatures", "nx")
"""What Linear and most quantised layers, older GPTQ layers, and Conv1D call the size of their input."""


def anatomy_of(model: PreTrainedModel) -> Anatomy:
    """The map of a live model.

    Raises:
        StudfinderError: the architecture has no entry, or a part is not where its entry says.
    """
    config = model.config.get_text_config(decoder=True)
    kind = model.config.model_type
    kind = kind if kind in FAMILIES else config.model_type
    # A variant of attention saved by this package keeps its base's anatomy.
    family = FAMILIES.get(kind.removeprefix("studfinder-"))
    if family is None:
        raise StudfinderError(
            f"architecture {kind!r} is unknown to studfinder",
            expected="one of " + ", ".join(sorted(FAMILIES)),
            do="Add an entry to FAMILIES in studfinder/models/anatomy.py: where its blocks, its attention and "
            "its down projection are",
        )
    prefix, blocks = _blocks(model, kind, family)
    names = {module: name for name, module in model.named_modules()}  # a module that layers share has its first name
    layers = tuple(_layer(f"{prefix}.{i}", block, kind, family, names) for i, block in enumerate(blocks))
    if not any(layer.writers for layer in layers):
        raise StudfinderError(
            f"no down projection found in {kind!r}", expected=" or ".join(family.writers) + " in a block"
        )
    heads = _size(config, "num_attention_heads", "num_heads", "n_head")
    hidden = _size(config, "hidden_size", "n_embd")
    return Anatomy(
        architecture=kind,
        decoder=prefix.rpartition(".")[0],
        layers=layers,
        stage=_stage(config, family),
        split=family.split,
        heads=heads,
        kv_heads=_kv_heads(config, heads),
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        hidden=hidden,
        intermediate=_intermediate(model, layers),
        vocabulary=int(config.vocab_size),
        max_positions=getattr(config, "max_position_embeddings", None),
    )


def _blocks(model: PreTrainedModel, kind: str, family: Family) -> tuple[str, nn.ModuleList]:
    for path in family.layers:
        found = _submodule(model, path)
        if isinstance(found, nn.ModuleList):
            return path, found
    raise StudfinderError(
        f"the blocks of this {kind!r} model are not where they should be",
        expected="a list of blocks at " + " or ".join(family.layers),
        do="Load it as a causal language model (AutoModelForCausalLM)",
    )


def _layer(path: str, block: nn.Module, kind: str, family: Family, names: dict[nn.Module, str]) -> Layer:
    attention = _submodule(block, family.attention)
    writers: list[MatrixRef] = []
    for name in family.writers:
        module = _submodule(block, name)
        if module is not None:
            writers += _matrices(names[module], module, kind)
    return Layer(path, f"{path}.{family.attention}" if attention is not None else None, tuple(writers))


def _matrices(path: str, module: nn.Module, kind: str) -> list[MatrixRef]:
    """The matrices of a writer: one for Linear and Conv1D, one an expert for fused 3-D parameters."""
    fused = getattr(module, "down_proj", None)
    if isinstance(fused, nn.Parameter) and fused.dim() == 3:
        transposed = bool(getattr(module, "is_transposed", False))
        return [MatrixRef(f"{path}.down_proj", expert, transposed) for expert in range(fused.shape[0])]
    if isinstance(module, nn.ModuleList):  # experts kept apart, as older model code does
        return [
            MatrixRef(f"{path}.{i}.{'down_proj' if hasattr(expert, 'down_proj') else 'w2'}.weight", None)
            for i, expert in enumerate(module)
        ]
    weight = getattr(module, "weight", None)
    # Quantised layers keep something else under this name, or nothing: their input and output can still be
    # read, and whoever wants the matrix itself is refused there.
    if weight is None and not hasattr(module, "in_features") and not hasattr(module, "qweight"):
        raise StudfinderError(f"{path} of this {kind!r} model has no weight", expected="a Linear or Conv1D")
    return [MatrixRef(f"{path}.weight", None, type(module).__name__ == "Conv1D")]


def _stage(config: object, family: Family) -> Stage:
    rope = family.rope and not getattr(config, "alibi", False)  # falcon comes with either
    if not rope:
        return "no RoPE"
    return "pre-RoPE" if family.split else "post-RoPE"


def _kv_heads(config: object, heads: int) -> int:
    if getattr(config, "model_type", "") == "falcon":
        # Falcon's own rule: the new architecture broadcasts K and V to all heads before attention.
        if getattr(config, "new_decoder_architecture", False):
            return heads
        return 1 if getattr(config, "multi_query", True) else heads
    return int(getattr(config, "num_key_value_heads", None) or heads)


def _intermediate(model: nn.Module, layers: tuple[Layer, ...]) -> int:
    """F of the first writer. Packed layers keep other shapes under their weights' names, so what a layer says of
    itself comes first."""
    for writer in (writer for layer in layers for writer in layer.writers):
        module: Any = model.get_submodule(writer.module)
        width = next((found for name in _WIDTHS if isinstance(found := getattr(module, name, None), int)), None)
        if width is not None and writer.expert is None:
            return width
        parameter = getattr(module, writer.parameter.rpartition(".")[2], None)
        if isinstance(parameter, nn.Parameter) and parameter.dim() >= 2 and parameter.is_floating_point():
            return int(writer.view(parameter).shape[1])
    return 0


def _size(config: object, *names: str) -> int:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    raise StudfinderError("this config lacks a size", expected=" or ".join(names))


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    for part in path.split("."):
        found = getattr(module, part, None)
        if not isinstance(found, nn.Module):
            return None
        module = found
    return module
