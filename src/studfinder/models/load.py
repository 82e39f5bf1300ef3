"""sf.load: a hub id, a folder, a .gguf file, a built-in name or a live model becomes an LM."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models.anatomy import FAMILIES, anatomy_of
from studfinder.models.builtin import BUILTINS, ensure
from studfinder.models.lm import LM, Source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(
    model: str | os.PathLike | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | str | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    device_map: Any = None,
    revision: str | None = None,
    attention: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LM:
    """Load a causal language model, or wrap a live one.

    Args:
        model: a built-in name ("smollm2", "gemma3-270m"), a folder, a .gguf file, a hub id, or a live model.
        tokenizer: for a live model, or to override; a name is loaded.
        dtype: "auto" is the checkpoint's own, which keeps it memory-mapped; or "float32", "bfloat16", ...
        device: where to put it; the default is the CPU, or what `device_map` says.
        device_map: handed to transformers as it is.
        revision: of the hub repository.
        attention: transformers' `attn_implementation`.
        trust_remote_code: run model code that comes with the checkpoint.
        allow_pickle: read pickle checkpoints, which can run code as they load.

    Raises:
        StudfinderError: there is no such model, it is damaged, it needs a permission above, its architecture is
            unknown, or a weight is not finite (the tensor is named).
    """
    if not isinstance(model, str | os.PathLike):
        return _wrap(model, tokenizer)
    asked = os.fspath(model)
    source = _resolve(asked, revision)
    wanted = _dtype(dtype)
    _quiet_when_no_terminal()
    if source.folder is not None and source.folder.suffix == ".gguf":
        from studfinder.models.gguf import read_gguf

        live, own = read_gguf(source.folder, torch.bfloat16 if wanted == "auto" else wanted)
        tokenizer = tokenizer or own
        source = Source(source.id, source.origin)
    else:
        live, tokenizer = _from_pretrained(
            source, tokenizer, wanted, device_map, attention, trust_remote_code, allow_pickle
        )
    if device is not None:
        live = live.to(device)
    lm = LM(live.eval(), _named(tokenizer), anatomy_of(live), source)
    check_finite(lm)
    return lm


def check_finite(lm: LM) -> None:
    """Raise StudfinderError, naming the tensor, if any weight is inf or NaN. Offloaded tensors are passed over."""
    for name, parameter in lm.model.named_parameters():
        if parameter.device.type == "meta" or not parameter.is_floating_point():
            continue
        # A sum is one fast pass without a temporary; only a suspicious one is looked at entry by entry.
        if torch.isfinite(parameter.detach().sum(dtype=torch.float32)):
            continue
        bad = int((~torch.isfinite(parameter.detach())).sum())
        if bad:
            raise StudfinderError(
                f"weight {name} of {lm.source.id} holds {bad} NaN or infinite number{'s' if bad > 1 else ''}",
                expected="finite weights",
                do="The checkpoint is damaged, or was saved after training diverged",
            )


def _wrap(model: Any, tokenizer: Any) -> LM:
    from transformers import PreTrainedModel

    if isinstance(model, LM):
        return model
    if not isinstance(model, PreTrainedModel):
        raise StudfinderError(
            f"cannot load a {type(model).__name__}",
            expected="a name, a path or a transformers PreTrainedModel",
        )
    name = getattr(model.config, "_name_or_path", "") or "live"
    lm = LM(model.eval(), _named(tokenizer), anatomy_of(model), Source(name, "a live model object"))
    check_finite(lm)
    return lm


def _named(tokenizer: Any) -> Any:
    if isinstance(tokenizer, str):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(tokenizer)
    return tokenizer


def _resolve(asked: str, revision: str | None) -> Source:
    if asked in BUILTINS:
        builtin = BUILTINS[asked]
        return Source(asked, builtin.origin, ensure(builtin))
    path = Path(asked).expanduser()
    if path.is_file():
        if path.suffix == ".gguf":
            return Source(asked, "a GGUF file, dequantised", path)
        raise StudfinderError(f"{asked} is a file", expected="a folder with config.json, a .gguf file or a hub id")
    if asked and path.is_dir():  # an empty name is not the current folder
        return Source(asked, "a local folder", path)
    # A hub id is "name" or "owner/name"; anything else can only have been meant as a path.
    if asked.startswith((".", "/", "~")) or asked.count("/") > 1 or not asked:
        raise StudfinderError(
            f"there is no folder or file {asked!r}",
            expected="a folder, a .gguf file, a hub id, or a built-in name: " + ", ".join(BUILTINS),
        )
    return Source(asked, "the Hugging Face hub", None, revision)


def _dtype(dtype: str | torch.dtype) -> Any:
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
    found = getattr(torch, short.get(str(dtype), str(dtype)), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise StudfinderError(f"dtype {dtype!r} is unknown", expected="auto, float32, bfloat16 or float16")
    return found


def _from_pretrained(
    source: Source,
    tokenizer: Any,
    dtype: Any,
    device_map: Any,
    attention: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = str(source.folder or source.id)
    common: dict[str, Any] = {"revision": source.revision or "main", "trust_remote_code": trust_remote_code}
    if source.folder is not None:
        _check_folder(source.folder, allow_pickle)
    try:
        config = AutoConfig.from_pretrained(where, **common)
        if config.model_type.removeprefix("studfinder-") not in FAMILIES and not trust_remote_code:
            raise StudfinderError(
                f"architecture {config.model_type!r} of {source.id} is unknown to studfinder",
                expected="one of " + ", ".join(sorted(FAMILIES)),
                do="CONTRIBUTING.md says how to add one",
            )
        options: dict[str, Any] = {
            "dtype": dtype,
            "use_safetensors": None if allow_pickle else True,
            **common,
        }
        if device_map is not None:
            options["device_map"] = device_map
        if attention is not None:
            options["attn_implementation"] = attention
        model = AutoModelForCausalLM.from_pretrained(where, **options)
    except StudfinderError:
        raise
    except Exception as error:  # transformers raises many kinds; the user needs one line
        raise StudfinderError(f"cannot load {source.id} ({_first_line(error)})", do=_advice(source)) from error
    if tokenizer is None:
        try:
            tokenizer = AutoTokenizer.from_pretrained(where, **common)
        except Exception:  # a model without a tokenizer can still be fed token ids
            tokenizer = None
    return model, tokenizer


def _check_folder(folder: Path, allow_pickle: bool) -> None:
    """Say what is wrong with a checkpoint folder before transformers says it in a traceback."""
    if not (folder / "config.json").is_file():
        raise StudfinderError(f"folder {folder} has no config.json", expected="a Hugging Face checkpoint folder")
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudfinderError(f"{folder / 'config.json'} is not valid JSON ({error})") from None
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
        if pickles and not allow_pickle:
            raise StudfinderError(
                f"{folder} holds only pickle weights ({pickles[0].name}), which can run code as they load",
                expected="safetensors",
                do="Convert it, or allow pickles (--allow-pickle) if you trust its author",
            )
        if not pickles:
            raise StudfinderError(f"folder {folder} has no weights", expected="*.safetensors beside config.json")
    for shard in shards:
        _check_safetensors(shard)


def _check_safetensors(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        try:
            header = json.loads(file.read(length)) if 8 + length <= size else None
        except ValueError:
            header = None
    ends = [entry["data_offsets"][1] for name, entry in (header or {}).items() if name != "__metadata__"]
    if header is None or 8 + length + max(ends, default=0) != size:
        needed = 8 + length + max(ends, default=0) if header else None
        raise StudfinderError(
            f"{path} is truncated or damaged ({size:,} bytes)",
            expected=f"{needed:,} bytes" if needed else "a safetensors header",
            do="Download or save it again",
        )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _advice(source: Source) -> str | None:
    if source.folder is not None:
        return None
    return "Is the id right, is there network, and is the model public (or HF_TOKEN set)? Built in: " + ", ".join(
        BUILTINS
    )


def _quiet_when_no_terminal() -> None:
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
