"""A quantised checkpoint read as a plain one: its matrices are unpacked as transformers asks for them.

transformers itself would replace modules by ones that hold codes (so that nothing finds a weight there), want packages
that need another torch, or read mixed checkpoints by one of their schemes. So it is handed the plain class, the plain
config, and a state whose tensors come into being one by one; what it converts on the way (experts that it fuses, older
names) it converts as ever, and `judge` holds the result against the same plain view.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError, in_a_line, known
from studfinder.models.files import SAFE, Held
from studfinder.models.headers import DTYPE_NAMES
from studfinder.models.packed_floats import fp8_weights, mxfp4_weights
from studfinder.models.packed_ints import auto_round_weights, awq_weights, gptq_weights
from studfinder.models.packed_libraries import bitsandbytes_weights, compressed_tensors_weights
from studfinder.models.packing import PackedFiles, PackedWeight, Packing

PACKINGS: dict[str, Packing] = {
    "compressed-tensors": compressed_tensors_weights,
    "fp8": fp8_weights,
    "fbgemm_fp8": fp8_weights,
    "mxfp8": fp8_weights,
    "mxfp4": mxfp4_weights,
    "bitsandbytes": bitsandbytes_weights,
    "gptq": gptq_weights,
    "awq": awq_weights,
    "auto-round": auto_round_weights,
    "intel/auto-round": auto_round_weights,
}
"""By the quant_method of a config."""
_PACKAGES = {
    "aqlm": "aqlm",
    "bitnet": "transformers",
    "eetq": "eetq",
    "exl2": "exllamav2",
    "exl3": "exllamav3",
    "fp_quant": "fp_quant",
    "higgs": "flute-kernel",
    "hqq": "hqq",
    "modelopt": "nvidia-modelopt",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "spqr": "spqr_quant",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""Which package reads the methods that are not read here."""
_ROUND_INPUTS = ("fp8", "fbgemm_fp8", "mxfp8")
_OF_INPUTS = re.compile(r"(activation|input|output)_(scale(_ub)?|zero_point|global_scale)$")
"""What belongs to a quantised matrix and says nothing of its numbers."""


def taken_out(source: str, config: Any) -> dict[str, Any] | None:
    """The quantization_config of a model's config, which no longer has it afterwards; None where it has none.

    Raises:
        StudfinderError: its method is not read here.
    """
    found = None
    for part in (config.get_text_config(), config):  # of a wrapper, either may have it
        found = part.__dict__.pop("quantization_config", None) or found
    if not found:
        return None
    settings = dict(found) if isinstance(found, Mapping) else {}
    old = settings.get("load_in_8bit") or settings.get("load_in_4bit")  # bitsandbytes' first configs do not say it
    method = str(settings.setdefault("quant_method", "bitsandbytes" if old else "a method without a name"))
    if method not in PACKINGS:
        package = _PACKAGES.get(method)
        do = f"Take it back to floats with its package, {package}, or load" if package else "Load"
        raise StudfinderError(
            f"studfinder does not know the quantisation method {method!r} of {source}",
            expected=f"one of {', '.join(sorted(PACKINGS))}",
            do=f"{do} the model that it was made from",
        )
    return settings


@dataclass
class PlainView:
    """What the files would hold if they were not quantised.

    Attributes:
        held: as headers would say it.
        state: the tensors, each read when it is sliced.
        note: what was done, for print.
        failed: why a tensor could not be unpacked: transformers swallows it and goes on.
    """

    held: dict[str, Held]
    state: dict[str, Any]
    note: str
    failed: list[StudfinderError] = field(default_factory=list)


@dataclass(frozen=True)
class _Unpacked:
    """A tensor of a state that is made when transformers slices it, in one of its threads."""

    name: str
    weight: PackedWeight
    turned: bool
    files: PackedFiles
    dtype: torch.dtype
    failed: list[StudfinderError]

    def __getitem__(self, whole: Any) -> torch.Tensor:
        try:
            read = {end: self.files.read(name) for end, name in self.weight.parts.items()}
            made = self.weight.unpack(read, self.dtype)
            if tuple(made.shape) != self.weight.shape:
                raise ValueError(f"it comes out as {tuple(made.shape)} and not as {self.weight.shape}")
        except Exception as error:  # libraries raise many kinds for damaged numbers
            self.failed.append(
                known(error)
                or StudfinderError(
                    f"{self.name} of {self.files.source} cannot be unpacked ({in_a_line(error)})",
                    expected=self.weight.kind,
                    do="Download or save it again",
                )
            )
            raise
        return (made.t().contiguous() if self.turned else made)[whole]


def plain_view(
    source: str, settings: Mapping[str, Any], folder: Path, held: Mapping[str, Held], dtype: torch.dtype, shell: Any
) -> PlainView:
    """The plain view of a quantised checkpoint.

    Args:
        source: its name in print.
        settings: its quantization_config.
        held: what the headers of its files say.
        dtype: of what is unpacked.
        shell: the plain model, without numbers.

    Raises:
        StudfinderError: the method or a variant of it is not read here, a part of a matrix is missing or does not fit.
        Unavailable: a package that the method needs is not installed.
    """
    from safetensors import safe_open
    from transformers.pytorch_utils import Conv1D

    method = settings["quant_method"]
    if pickles := sorted({one.file for one in held.values() if not one.file.endswith(SAFE)}):
        raise StudfinderError(f"{source} holds quantised weights in a pickle ({pickles[0]})", expected="safetensors")
    open_files = {file: safe_open(folder / file, framework="pt") for file in {one.file for one in held.values()}}
    files = PackedFiles(source, settings, held, lambda name: open_files[held[name].file].get_tensor(name))
    weights = dict(PACKINGS[method](files))
    if not weights:
        raise StudfinderError(
            f"config.json of {source} says that it is quantised by {method}, but its files hold nothing of that",
            do="Take the quantization_config out if the weights are plain; else it belongs to others",
        )
    parts = {part for one in weights.values() for part in one.parts.values()}
    owners = {name.rpartition(".")[0] for name in weights}
    parts |= {n for n in held if _OF_INPUTS.search(n) and n.rpartition(".")[0] in owners}
    view = PlainView(
        {name: one for name, one in held.items() if name not in parts}, {}, _note(settings, weights, dtype)
    )
    view.state = {name: open_files[one.file].get_slice(name) for name, one in view.held.items()}
    convolutions = {f"{name}.weight" for name, module in shell.named_modules() if isinstance(module, Conv1D)}
    start = f"{shell.base_model_prefix}."
    for name, weight in weights.items():  # a Conv1D, whose matrix is (in, out), is packed as if it were a Linear
        turned = weight.linear and not convolutions.isdisjoint((name, start + name, name.removeprefix(start)))
        shape = weight.shape[::-1] if turned else weight.shape
        view.held[name] = Held(DTYPE_NAMES[dtype], shape, held[next(iter(weight.parts.values()))].file)
        view.state[name] = _Unpacked(name, weight, turned, files, dtype, view.failed)
    return view


def _note(settings: Mapping[str, Any], weights: Mapping[str, PackedWeight], dtype: torch.dtype) -> str:
    kinds = Counter(one.kind for one in weights.values()).most_common()
    read = ", ".join(f"{many:,} {'matrix' if many == 1 else 'matrices'} ({kind})" for kind, many in kinds)
    groups = (settings.get("config_groups") or {}).values()  # compressed-tensors'
    rounded = settings["quant_method"] in _ROUND_INPUTS or settings.get("load_in_8bit")
    rounded = rounded or any(isinstance(one, Mapping) and one.get("input_activations") for one in groups)
    inputs = "; inputs, which engines round as it runs, are not rounded" if rounded else ""
    to = str(dtype).removeprefix("torch.")
    return f"quantised by {settings['quant_method']}, dequantised to {to} in memory: {read}{inputs}"


def view_of(
    source: str,
    settings: Mapping[str, Any],
    auto: Any,
    config: Any,
    folder: Path,
    held: Mapping[str, Held],
    **options: Any,
) -> tuple[Any, torch.dtype, PlainView]:
    """The plain model without numbers, the dtype that is unpacked to, and the plain view; see `load_plain`."""
    with torch.device("meta"):
        shell = auto.from_config(config, trust_remote_code=options["trust_remote_code"])
    own = getattr(shell.config, "dtype", None)
    dtype = options["dtype"] if options["dtype"] != "auto" else own
    dtype = dtype if isinstance(dtype, torch.dtype) and dtype.itemsize > 1 else torch.bfloat16
    return shell, dtype, plain_view(source, settings, folder, held, dtype, shell)


def load_plain(
    source: str,
    settings: Mapping[str, Any],
    auto: Any,
    config: Any,
    folder: Path,
    held: Mapping[str, Held],
    **options: Any,
) -> tuple[Any, dict[str, Any], PlainView]:
    """A quantised checkpoint as an ordinary model: as its class loads it, from its plain view.

    Args:
        source, settings, folder, held: as of `plain_view`.
        auto: transformers' auto class that loads such models.
        config: the model's, without the quantization_config.
        options: what `from_pretrained` is given.

    Returns:
        The model, transformers' loading info, and the view.

    Raises:
        StudfinderError: as `plain_view`.
    """
    from transformers import GenerationConfig

    shell, dtype, view = view_of(source, settings, auto, config, folder, held, **options)
    kept = {name: value for name, value in options.items() if name not in ("revision", "use_safetensors")}
    try:
        model, info = type(shell).from_pretrained(
            None, config=shell.config, state_dict=view.state, **{**kept, "dtype": dtype}
        )
    finally:
        for failure in view.failed:  # else transformers' own words, of many lines, or of the tensors after it
            raise failure
    model.config._name_or_path = model.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, info, view
