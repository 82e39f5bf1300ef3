"""sf.load: a hub id, a folder, a .gguf file, a built-in name or a live model becomes an LM."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from studfinder.errors import StudfinderError, Unavailable
from studfinder.models.adapters import adapter_at, merged, without_adapter
from studfinder.models.anatomy import FAMILIES, anatomy_of
from studfinder.models.builtin import BUILTINS, ensure
from studfinder.models.files import check_folder, held_in
from studfinder.models.lm import LM, Source
from studfinder.models.loading import expert_gap, judge, partner_gap, report_of

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
    allow_missing: bool = False,
    merge_adapter: bool = False,
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
        allow_missing: load although tensors are missing (they are random) or have no place in the model (they are left
            out); `lm.source.allowed` says which, and so does every record made of the model.
        merge_adapter: of an adapter's folder, load its base model and merge the adapter into it (needs peft).

    What is not loaded and need not be (`lm.source.notes`) is printed on stderr.

    Raises:
        StudfinderError: there is no such model, it is damaged, it needs a permission above, its architecture is
            unknown, a weight is not finite (the tensor is named), or what is in memory would not be what the files
            hold (models/loading.py).
        Unavailable: a package that the checkpoint needs is not installed.
    """
    if not isinstance(model, str | os.PathLike):
        return _wrap(model, tokenizer)
    asked = os.fspath(model)
    source = _resolve(asked, revision)
    wanted = _dtype(dtype)
    _quiet_when_no_terminal()
    if source.folder is not None and source.folder.suffix == ".gguf":
        from studfinder.models.gguf import read_gguf

        kind = torch.bfloat16 if wanted == "auto" else wanted
        live, own, notes = read_gguf(source.folder, kind)
        tokenizer = tokenizer or own
        source = Source(source.id, source.origin, notes=notes)
    else:
        options = {
            "dtype": wanted,
            "device_map": device_map,
            "attention": attention,
            "trust_remote_code": trust_remote_code,
            "allow_pickle": allow_pickle,
            "allow_missing": allow_missing,
        }
        live, tokenizer, source = _open(source, tokenizer, merge_adapter, options)
    if device is not None:
        live = live.to(device)
    lm = LM(live.eval(), _named(tokenizer), anatomy_of(live), source)
    check_finite(lm)
    for line in (*source.notes, *source.allowed):
        print(f"studfinder: note: {source.id}: {line}", file=sys.stderr)
    return lm


def _open(source: Source, tokenizer: Any, merge: bool, options: dict[str, Any]) -> tuple[Any, Any, Source]:
    """The model, its tokenizer and where it came from; an adapter is merged if that was asked for, else refused."""
    adapter = adapter_at(source)
    if adapter is None:
        return _from_pretrained(source, tokenizer, **options)
    if not merge:
        raise StudfinderError(
            f"{source.id} is {adapter.words}",
            expected="a whole model",
            do="Merge it with --merge-adapter (merge_adapter=True)"
            + (", or delete its adapter_config.json" if adapter.base is None else f", or load {adapter.base}"),
        )
    if adapter.base is None:
        with without_adapter(adapter.folder) as folder:
            whole = dataclasses.replace(source, folder=folder)
            live, tokenizer, opened = _from_pretrained(whole, tokenizer, **options)
    else:
        base = _resolve(adapter.base, None)
        if adapter_at(base) is not None:
            raise StudfinderError(f"{adapter.base}, the base of {source.id}, is an adapter itself", do="Merge it first")
        live, own, opened = _from_pretrained(base, None, **options)
        tokenizer = tokenizer or _tokenizer(adapter.folder, options["trust_remote_code"]) or own
    live = merged(live, adapter, options["allow_pickle"])
    source = dataclasses.replace(
        source,
        folder=None,  # its files are not what is in memory
        origin=f"{source.origin}, merged into {adapter.base or 'the model beside it'}",
        notes=opened.notes,
        allowed=opened.allowed,
        merged=adapter.words,
    )
    return live, tokenizer, source


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
    allow_missing: bool,
) -> tuple[Any, Any, Source]:
    from transformers import AutoConfig, AutoModelForCausalLM

    where = str(source.folder or source.id)
    common: dict[str, Any] = {"revision": source.revision or "main", "trust_remote_code": trust_remote_code}
    if source.folder is not None:
        check_folder(source.folder, allow_pickle)
    try:
        config = AutoConfig.from_pretrained(where, **common)
        if config.model_type.removeprefix("studfinder-") not in FAMILIES and not trust_remote_code:
            raise StudfinderError(
                f"architecture {config.model_type!r} of {source.id} is unknown to studfinder",
                expected="one of " + ", ".join(sorted(FAMILIES)),
                do="CONTRIBUTING.md says how to add one",
            )
        method, decoded = _quantiser(getattr(config, "quantization_config", None))
        options: dict[str, Any] = {
            "dtype": dtype,
            "use_safetensors": None if allow_pickle else True,
            "output_loading_info": True,
            "ignore_mismatched_sizes": True,  # they are refused by name, below
            **common,
        }
        if device_map is not None:
            options["device_map"] = device_map
        if attention is not None:
            options["attn_implementation"] = attention
        model, info = AutoModelForCausalLM.from_pretrained(where, **options)
    except StudfinderError:
        raise
    except Exception as error:  # transformers raises many kinds; the user needs one line
        held = held_in(source.folder) if source.folder is not None else {}
        if (gap := expert_gap(source.id, held) or partner_gap(source.id, held)) is not None:
            raise gap from error
        kind = Unavailable if isinstance(error, ImportError) else StudfinderError
        raise kind(f"cannot load {source.id} ({_first_line(error)})", do=_advice(source)) from error
    report = report_of(
        model,
        info,
        held_in(folder) if (folder := source.folder or _snapshot(source.id, config)) else {},
        quantiser=method,
        decoded=decoded,
        asked=dtype != "auto",
    )
    found = judge(source.id, report)
    for refused in found.refused if allow_missing else (*found.absent, *found.refused):
        raise refused
    source = dataclasses.replace(
        source, notes=tuple(found.listed), allowed=tuple(f"allowed: {absent.what}" for absent in found.absent)
    )
    return model, tokenizer or _tokenizer(where, **common), source


def _quantiser(config: Any) -> tuple[str | None, bool]:
    """The quantisation method that a config names, and whether transformers decodes it."""
    from transformers.quantizers import AutoHfQuantizer

    if not config:
        return None, False
    plain = config if isinstance(config, dict) else config.to_dict()
    return str(plain.get("quant_method", "unnamed")), bool(AutoHfQuantizer.supports_quant_method(plain))


def _tokenizer(where: str | Path, trust_remote_code: bool, revision: str = "main") -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code, revision=revision)
    except Exception:  # a model without a tokenizer can still be fed token ids
        return None


def _snapshot(repository: str, config: Any) -> Path | None:
    """Where the hub's files of a model that was just loaded are on this disk."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, "config.json", revision=getattr(config, "_commit_hash", None))
    return Path(found).parent if isinstance(found, str) else None


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
