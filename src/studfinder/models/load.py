"""sf.load: a hub id, a folder, a .gguf file, a built-in name or a live model becomes an LM."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models.adapters import adapter_at, merged, refuse_adapter, without_adapter
from studfinder.models.carried import carry_blocks
from studfinder.models.classes import check_decoder
from studfinder.models.files import held_in
from studfinder.models.headers import DTYPES
from studfinder.models.lm import LM, Source
from studfinder.models.measured import anatomy_of
from studfinder.models.memory import OWN, as_bytes, free_memory, memory_plan
from studfinder.models.offloaded import settle
from studfinder.models.paging import keep_nothing_freed, let_go, mapped_spans
from studfinder.models.places import hub_folder, hub_source, source_named
from studfinder.models.pretrained import commit_in, from_pretrained, quiet_when_no_terminal
from studfinder.models.tokenizing import tokenizer_at
from studfinder.records.loading import ReadConfig
from studfinder.records.outside import read_json
from studfinder.visible import say

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
    carried: bool = False,
    memory: int | str | None = None,
    own_names: bool = False,
) -> LM:
    """Load a causal language model, or wrap a live one.

    Args:
        model: a built-in name ("smollm2", "gemma3-270m"), a folder, a .gguf file, a hub id, or a live model.
        tokenizer: for a live model, or to override; a name is loaded.
        dtype: "auto" is the checkpoint's own, which keeps it memory-mapped (a quantised one's is its config's, or
            bfloat16); or "float32", "bfloat16", ...
        device: where to put it; the default is the CPU, or what `device_map` says.
        device_map: handed to transformers as it is.
        revision: of the hub repository.
        attention: transformers' `attn_implementation`.
        trust_remote_code: run model code that comes with the checkpoint.
        allow_pickle: read pickle checkpoints, which can run code as they load.
        allow_missing: load although tensors are missing (they are random) or have no place in the model (they are left
            out); `lm.source.allowed` says which, and so does every record made of the model.
        merge_adapter: of an adapter's folder, load its base model and merge the adapter into it (needs peft).
        carried: where `dtype` is wider than the checkpoint's own, keep the blocks' weights as they are stored, and cast
            each block's while it runs: the same numbers in about half of the memory (models/carried.py). For a model
            that is read or edited; edits are rounded to what is stored. Not with `device_map`, nor of quantised files.
        memory: what may be taken at most, in bytes or e.g. "8GB"; by default what is free. The weights of a larger
            model are read from its files block by block in every pass (passes/weights.py), `carried` where `dtype` is
            wider; its blocks compute on `device`. What was decided is printed.
        own_names: where transformers converts tensors as it loads them (stacks experts, say), which puts them into
            memory, write the checkpoint once in its model's own names into the cache, as large as it is, and load that:
            the same numbers, mapped from the file (models/converted.py). Pickles and quantised files load as ever. So
            is done without being asked for where the files are larger than `memory`.

    A quantised checkpoint is loaded as a dequantised copy, an ordinary model in floating point (`lm.source.quantised`
    is the method that its files are packed by). What was done, and what is not loaded and need not be
    (`lm.source.notes`), is printed on stderr.

    Raises:
        StudfinderError: there is no such model, it is damaged, it needs a permission above, its architecture is
            unknown, a weight is not finite (the tensor is named), what is in memory would not be what the files
            hold (models/judging.py), or `memory` is too little even so.
        Unavailable: a package that the checkpoint needs is not installed.
    """
    if not isinstance(model, str | os.PathLike):
        return _wrap(model, tokenizer)
    asked = os.fspath(model)
    source = source_named(asked, revision)
    how = ReadConfig(
        dtype=_dtype(dtype),
        device_map=device_map,
        attention=attention,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        allow_missing=allow_missing,
        merge_adapter=merge_adapter,
    )
    budget = free_memory() if memory is None else as_bytes(memory)
    quiet_when_no_terminal()
    if source.folder is not None and source.folder.suffix == ".gguf":
        from studfinder.models.gguf import read_gguf

        live, own, notes = read_gguf(source.folder, torch.bfloat16 if how.dtype == "auto" else how.dtype)
        tokenizer = tokenizer or own
        source = Source(source.id, source.origin, notes=notes)
    else:
        larger = _is_larger(source, how, budget, ask=memory is not None)
        live, tokenizer, source = _open(source, tokenizer, how, carried or larger, own_names or larger)
    settle(live)
    anatomy = anatomy_of(live.eval())
    blocks = [live.get_submodule(layer.block) for layer in anatomy.layers]
    width = torch.empty((), dtype=live.dtype).itemsize
    plan = memory_plan(source.id, live, list(dict.fromkeys(blocks)), width, budget, asked=memory is not None)
    if plan.streamed:
        keep_nothing_freed()
    if device is not None and plan.streamed:
        carry_blocks(live, live.dtype, torch.device(device))
    elif device is not None:
        live = live.to(device)
    if isinstance(tokenizer, StudfinderError):  # said when it is needed: a model can be fed token ids
        tokenizer, source = None, dataclasses.replace(source, no_tokenizer=tokenizer)
    began = time.monotonic()
    check_finite(live, source.id)  # before anything is measured on it
    if plan.streamed:
        let_go(mapped_spans(live))
        _say(f"studfinder: note: {source.id}: {plan}; to read them once took {time.monotonic() - began:.0f} s")
    elif memory is not None:
        _say(f"studfinder: note: {source.id}: {plan}")
    lm = LM(live, _named(tokenizer), anatomy, source, plan)
    for line in (*source.notes, *source.allowed, *_slow(lm)):
        _say(f"studfinder: note: {source.id}: {line}")
    return lm


def _is_larger(source: Source, how: ReadConfig, budget: int, *, ask: bool) -> bool:
    """Whether what is in a checkpoint's files is more than memory holds; of a hub id that is not here yet only if the
    hub is to be asked, which takes a while where there is no network."""
    index = "model.safetensors.index.json"
    folder = source.folder or hub_folder(source, "config.json", index, fetch=ask)
    if folder is None or not folder.is_dir():
        return False
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not size and (folder / index).is_file():  # the hub's are fetched later
        said = read_json(folder / index).get("metadata")
        total = said.get("total_size") if isinstance(said, dict) else None
        size = total if isinstance(total, int) else 0
    if size and _is_quantised(folder):  # unpacked it is larger
        size = sum(
            _UNPACKED.get(one.dtype, 1) * math.prod(one.shape) * DTYPES[one.dtype].itemsize
            for one in held_in(folder).values()
            if one.dtype in DTYPES
        )
    size *= 2 if how.dtype is torch.float32 else 1  # most are stored in half of that
    return size + OWN > budget


def _is_quantised(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    config = read_json(folder / "config.json")
    return any(isinstance(one, dict) and one.get("quantization_config") for one in (config, *config.values()))


def _slow(lm: LM) -> Iterator[str]:
    """That a processor computes in bfloat16 without instructions for it, where that costs minutes."""
    here = lm.device.type == "cpu" and platform.machine() in ("x86_64", "AMD64")
    if not here or lm.dtype is not torch.bfloat16 or fast_bfloat16():
        return
    if sum(parameter.numel() for parameter in lm.model.parameters()) >= _LARGE:
        yield "this processor has no bfloat16 arithmetic: --dtype float32 is several times as fast"


def fast_bfloat16() -> bool:
    """Whether this x86 processor multiplies bfloat16 itself. Where not, fp32 was measured to be nine times as fast."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


_UNPACKED = {"I32": 4, "U8": 4, "I8": 2, "F8_E4M3": 2, "F8_E5M2": 2}
"""How much larger 16 bits are than codes that are stored so, four of them in 16 bits where there are several."""
_LARGE = 50_000_000
"""Parameters from which it matters."""
_PART = 1 << 22


@functools.cache  # once a process: some verbs load a model again
def _say(line: str) -> None:
    say(line, file=sys.stderr)


def _open(source: Source, tokenizer: Any, how: ReadConfig, carried: bool, own_names: bool) -> tuple[Any, Any, Source]:
    """The model, its tokenizer and where it came from; an adapter is merged if that was asked for, else refused."""
    trusted = how.trust_remote_code
    if not how.merge_adapter:
        refuse_adapter(source)
    adapter = adapter_at(source) if how.merge_adapter else None
    if adapter is None:
        live, opened = from_pretrained(source, how, carried=carried, own_names=own_names)
        return live, tokenizer or tokenizer_at(source.folder or source.id, trusted, opened.revision), opened
    if adapter.base is None:
        base = source
    elif source.folder is None:  # what a stranger's file names is not looked for on this disk
        base = hub_source(adapter.base, adapter.revision)
        if Path(adapter.base).exists():
            raise StudfinderError(
                f"the adapter {source.id} is of {adapter.base} on the hub, and a folder here has that name",
                do="Run it from another folder",
            )
    else:
        base = source_named(adapter.base, adapter.revision)
    with without_adapter(adapter.folder) if adapter.base is None else nullcontext(base.folder) as folder:
        if adapter.base is not None:
            refuse_adapter(base)
        base = dataclasses.replace(base, folder=folder)
        live, opened = from_pretrained(base, how, own_names=own_names)
        if tokenizer is None:  # the adapter's own, or its base model's
            tokenizer = tokenizer_at(adapter.folder, trusted)
            if tokenizer is None or isinstance(tokenizer, StudfinderError):
                tokenizer = tokenizer_at(folder or base.id, trusted, opened.revision)
    live = merged(live, adapter, how.allow_pickle)
    of_base = f" (commit {opened.revision})" if adapter.base is not None and opened.revision else ""
    source = dataclasses.replace(
        source,
        folder=None,  # its files are not what is in memory
        revision=commit_in(adapter.folder) or source.revision,
        origin=f"{source.origin}, merged into {adapter.base or 'the model beside it'}{of_base}",
        notes=opened.notes,
        allowed=opened.allowed,
        merged=adapter.words,
        quantised=opened.quantised,
    )
    return live, tokenizer, source


def check_finite(model: PreTrainedModel, source: str) -> None:
    """Raise StudfinderError, naming the tensor, if any weight is inf or NaN. Offloaded tensors are passed over.

    Args:
        source: what the model is called in print.
    """
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta" or not parameter.is_floating_point():
            continue
        # Sums are one fast pass; only a suspicious tensor is looked at entry by entry. In parts: torch casts what it
        # sums, and a matrix of all experts would be twice as large once more.
        if all(torch.isfinite(part.sum(dtype=torch.float32)) for part in parameter.detach().reshape(-1).split(_PART)):
            continue
        bad = int((~torch.isfinite(parameter.detach())).sum())
        if bad:
            raise StudfinderError(
                f"weight {name} of {source} holds {bad} NaN or infinite number{'s' if bad > 1 else ''}",
                expected="finite weights",
                do="The checkpoint is damaged, or was saved after training diverged",
            )


def _wrap(model: Any, tokenizer: Any) -> LM:
    from transformers import PreTrainedModel

    if isinstance(model, LM):
        return model
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper keeps the model there
    made_by = {type(part).__module__ for part in model.modules()} if isinstance(model, torch.nn.Module) else set()
    if any(name.startswith("peft.") for name in made_by):
        raise StudfinderError(
            f"this {type(model).__name__} carries an adapter (peft) that is not merged into its weights",
            expected="a plain model",
            do="Give model.merge_and_unload(), or load the adapter's folder with merge_adapter=True",
        )
    if any(name.startswith("torch.ao.nn.quantized") for name in made_by):
        raise StudfinderError(
            f"this {type(model).__name__} is quantised by torch.ao, which keeps no weights to read",
            do="Give it before it was quantised",
        )
    if not isinstance(model, PreTrainedModel):
        raise StudfinderError(
            f"cannot load a {type(model).__name__}",
            expected="a name, a path or a transformers PreTrainedModel",
        )
    if not model.can_generate() and model.get_output_embeddings() is None:
        raise StudfinderError(
            f"a {type(model).__name__} has no language-model head",
            expected="a causal language model",
            do="Load it with AutoModelForCausalLM",
        )
    check_decoder(f"a {type(model).__name__}", model.config)
    name = getattr(model.config, "_name_or_path", "") or "live"
    check_finite(model, name)
    return LM(model.eval(), _named(tokenizer), anatomy_of(model.eval()), Source(name, "a live model object"))


def _named(tokenizer: Any) -> Any:
    if isinstance(tokenizer, str):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(tokenizer)
    return tokenizer


def _dtype(dtype: str | torch.dtype) -> Any:
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
    found = getattr(torch, short.get(str(dtype), str(dtype)), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise StudfinderError(f"dtype {dtype!r} is unknown", expected="auto, float32, bfloat16, float16 or float64")
    return found
