"""GGUF files as plain Hugging Face models."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from studfinder.errors import StudfinderError, in_a_line, known
from studfinder.models.files import some
from studfinder.models.gguf_metadata import check_kind, honoured
from studfinder.models.gguf_rope import FACTORS, check_rope
from studfinder.models.judging import judge
from studfinder.models.loading import report_of
from studfinder.models.sizes import check_sizes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def read_gguf(
    path: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None, tuple[str, ...]]:
    """Read a GGUF file, dequantised, into a model that can be saved and edited like any other.

    Everything that the metadata says about the computation is in the config, or refused by name; every tensor has a
    place, and every place a tensor. transformers marks the model it builds from GGUF as quantised and then refuses to
    save it, so the weights move into a fresh model of the same config without that mark.

    Returns:
        The model, its tokenizer (None if the file holds none), and what is listed of the load.

    Raises:
        StudfinderError: not a GGUF file, an adapter or a projector, metadata or an architecture that transformers
            cannot follow, a tensor that is missing, left over or of another size.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    fields, tensors = _opened(path)
    architecture = check_kind(str(path), fields)
    factors = {name: torch.from_numpy(np.array(tensors[name].data)) for name in FACTORS if name in tensors}
    with _plain_errors(path):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        config, rope = honoured(str(path), config, architecture, fields, factors)
        check_sizes(str(path), config.to_dict(), {name: held.shape.tolist() for name, held in tensors.items()})
        config.dtype = dtype
        settings = config.to_dict()
        settings.pop("quantization_config", None)
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(type(config).from_dict(settings), dtype=dtype)
        _check_tensors(path, shell, architecture, tensors)
        expanded, info = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        has_tokenizer = "tokenizer.ggml.model" in fields
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name) if has_tokenizer else None
    found = judge(str(path), report_of(expanded, info, {}, {}, asked=True))
    for refused in (*found.absent, *found.refused):
        raise refused
    if rope is not None:
        check_rope(str(path), expanded, rope)
    _move(path, expanded, shell, dtype)
    if "output.weight" not in tensors and "lm_head.weight" in shell.state_dict():
        found.listed.append("no output.weight: the head is the embedding, as llama.cpp reads it")
    return shell.eval(), tokenizer, tuple(found.listed)


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata and the tensors of a file, by name."""
    from gguf import GGUFReader

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise StudfinderError(f"{path} is not a GGUF file", expected="a file that begins with 'GGUF'")
    try:
        reader = GGUFReader(path)
        # A vocabulary is long and is not looked at here.
        fields = {
            name: None if name.startswith("tokenizer.") and len(field.data) > 1 else field.contents()
            for name, field in reader.fields.items()
        }
        return fields, {tensor.name: tensor for tensor in reader.tensors}
    except Exception as error:  # numpy and gguf raise many kinds, of a damaged size MemoryError
        raise _unreadable(path, error) from None


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Errors of transformers in one line, and its progress bar only where there is a terminal."""
    try:
        with redirect_stderr(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            yield
    except StudfinderError:
        raise
    except Exception as error:  # transformers raises many kinds; the user needs one line
        raise known(error) or _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> StudfinderError:
    return StudfinderError(f"transformers cannot read {path} ({in_a_line(error)})")


def _check_tensors(path: Path, shell: Any, architecture: str, tensors: Mapping[str, Any]) -> None:
    """Every tensor of the file has a place in the model, and every place a tensor, of as many numbers."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=shell.config.to_dict())
    places = get_gguf_hf_weights_map(shell, processor)
    held = {name if name in places else name.removesuffix(".weight"): tensor for name, tensor in tensors.items()}
    state = shell.state_dict()
    tied = set(getattr(shell, "all_tied_weights_keys", None) or ())
    missing = {name for name, target in places.items() if target in state and target not in tied} - set(held)
    if missing:
        raise StudfinderError(
            f"{path} lacks {len(missing):,} of {len(places):,} tensors, which would be random ({some(missing)})",
            expected="every tensor of the model",
            do="Download or convert it again",
        )
    left = set(held) - set(places) - {name.removesuffix(".weight") for name in FACTORS}
    if left:
        raise StudfinderError(
            f"{path} holds {some(left)}, for which {type(shell).__name__} has no place",
            expected="the tensors of this architecture",
            do="Load the checkpoint that it was converted from",
        )
    whole = [name for name in held if name in places and not name.split(".")[-1].endswith("_exps")]
    for name in whole:
        wanted, shape = state[places[name]].shape, [int(size) for size in held[name].shape[::-1]]
        if wanted.numel() != np.prod(shape):
            raise StudfinderError(
                f"tensor {name} of {path} is {' x '.join(map(str, shape))}, but the model wants "
                f"{' x '.join(map(str, wanted))}",
                expected="the sizes in its metadata",
                do="Download or convert it again",
            )


def _move(path: Path, expanded: Any, shell: Any, dtype: torch.dtype) -> None:
    """Put the weights of one model into another, made without memory of its own."""
    state = {name: tensor.to(dtype) for name, tensor in expanded.state_dict().items()}
    # Buffers such as rotary frequencies are not in the state dict; they are the expanded model's own, in fp32.
    buffers = dict(expanded.named_buffers())
    missing, unexpected = shell.load_state_dict(state, strict=False, assign=True)
    shell.tie_weights()
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        setattr(shell.get_submodule(owner), leaf, buffer)
    tied = set(getattr(shell, "_tied_weights_keys", None) or ())
    if unexpected or set(missing) - tied:
        raise StudfinderError(f"{path} lacks tensors: {sorted(set(missing) - tied)[:3]}")
    if expanded.generation_config is not None:
        shell.generation_config = expanded.generation_config
