"""The content hash of a model: which weights exactly a result belongs to."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from studfinder.errors import StudfinderError
from studfinder.models.cache import keep_private, private_folder, private_text
from studfinder.models.lm import LM
from studfinder.models.offloaded import offloaded_state

_CHUNK = 1 << 20
_PIECES, _PIECE = 64, 4096


def content_hash(lm: LM) -> str:
    """SHA-256 over the names, dtypes, shapes and bytes of every parameter and saved buffer, in name order.

    Tied tensors count once. The live object is read, so an edited model has another hash than its files; one that was
    cast to a wider dtype as it was loaded has theirs (whoever keys anything by the hash adds the dtype). Rotary
    frequencies, which no file holds, count where they are scaled (linear, YaRN, Llama 3, LongRoPE): plain ones, a
    geometric series from 1, follow from the config.

    Raises:
        StudfinderError: a tensor is on the meta device and nowhere else, so there are no bytes to read.
    """
    away = offloaded_state(lm.model)
    state = {**lm.model.state_dict(), **away}
    ties = getattr(lm.model, "all_tied_weights_keys", {})
    names: dict[tuple, str] = {}
    for name, tensor in sorted(state.items()):
        if tensor.device.type == "meta":
            raise StudfinderError(f"{name} has no numbers, so the model has no content hash")
        place = ties.get(name, name) if name in away else tensor.data_ptr()  # each may be a mapping of its own
        names.setdefault((place, tensor.shape, tensor.stride(), tensor.dtype), name)
    ordered = sorted(names.values())
    wide = _kept_wide(lm)
    # hashlib lets go of the interpreter lock, so threads share the cores.
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        kinds = list(pool.map(lambda name: _stored_as(state[name], None if wide(name) else lm.source.stored), ordered))
        digests = list(pool.map(lambda name, kind: tensor_hash(state[name], kind), ordered, kinds))
    whole = hashlib.sha256()
    for name, kind, digest in zip(ordered, kinds, digests, strict=True):
        whole.update(f"{name}|{kind}|{tuple(state[name].shape)}|".encode() + digest)
    for name, scaled in _scaled_rotations(lm.model):
        whole.update(f"{name}|".encode() + scaled)
    return whole.hexdigest()


def _scaled_rotations(model: torch.nn.Module) -> Iterator[tuple[str, bytes]]:
    """The rotary frequencies that are not plain, with what the cosines are multiplied by."""
    for name, buffer in sorted(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        # Dynamic kinds move inv_freq as they run and keep the first in a twin.
        if not leaf.endswith("original_inv_freq"):
            continue
        kept = leaf.removesuffix("original_inv_freq")
        module = model.get_submodule(owner)
        kind = getattr(module, "rope_type", "default")
        kind = kind.get(kept.removesuffix("_"), "default") if isinstance(kind, dict) else kind
        live = buffer if kind in ("dynamic", "longrope") else getattr(module, f"{kept}inv_freq")
        factor = float(getattr(module, f"{kept}attention_scaling", 1.0))
        if live.device.type == "meta" or (factor == 1.0 and _plain(live)):
            continue
        yield name, live.detach().float().cpu().numpy().tobytes() + f"|{factor!r}".encode()


def _plain(inv_freq: torch.Tensor) -> bool:
    """Whether inverse frequencies are a geometric series that begins at 1, as unscaled ones are."""
    steps = inv_freq.detach().double().log()
    line = torch.linspace(0, float(steps[-1]), len(steps), dtype=torch.float64, device=steps.device)
    return bool(torch.allclose(steps, line, rtol=0, atol=1e-5))


def tensor_hash(tensor: torch.Tensor, dtype: torch.dtype | None = None) -> bytes:
    """SHA-256 of a tensor's bytes, or of those that it has in another dtype."""
    digest = hashlib.sha256()
    for part in tensor.detach().contiguous().reshape(-1).split(_CHUNK):
        digest.update(part.to(dtype or tensor.dtype).view(torch.uint8).cpu().numpy().data)
    return digest.digest()


def _kept_wide(lm: LM) -> Callable[[str], object]:
    """Whether a tensor is in fp32 even where a model is loaded as it is stored: its class names those."""
    names = [*(getattr(lm.model, "_keep_in_fp32_modules_strict", None) or ())]
    if lm.source.stored is torch.float16:
        names += getattr(lm.model, "_keep_in_fp32_modules", None) or ()
    return re.compile("|".join(name.replace("*", ".*") for name in names) or r"(?!)").search


def _stored_as(tensor: torch.Tensor, stored: torch.dtype | None) -> torch.dtype:
    """The dtype that a tensor had in the files: its own if a number of it is none of the narrower one."""
    if stored is None or not tensor.is_floating_point() or tensor.dtype.itemsize <= stored.itemsize:
        return tensor.dtype
    parts = tensor.detach().reshape(-1).split(_CHUNK)
    return stored if all(torch.equal(part.to(stored).to(part.dtype), part) for part in parts) else tensor.dtype


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_hash(lm: LM) -> str:
    """A short hash of what a model computes with beside its weights: its config, without what only says how it was
    loaded. Two models with the same weights and another rotary base or norm epsilon differ in it."""
    settings = lm.model.config.to_dict()
    for name in _NO_PART:
        settings.pop(name, None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]


_NO_PART = (
    *("_name_or_path", "transformers_weights", "transformers_version"),
    *("dtype", "torch_dtype", "architectures", "use_cache"),
)


def cached_content_hash(lm: LM) -> str:
    """The content hash of a model just loaded from a folder, remembered by its files: their sizes, times, inodes, and a
    sample of their bytes.

    For a freshly loaded, untouched model only: whoever holds a live object that may have been edited calls
    `content_hash`. A model with numbers that no file holds (filled at random, merged) is always read.
    """
    signature = _signature(lm)
    if signature is None:
        return content_hash(lm)
    try:
        store = private_folder("hashes") / f"{signature}.json"
    except OSError:
        return content_hash(lm)  # only a convenience: the next run hashes again
    try:
        keep_private(store)
        kept = json.loads(store.read_text())
        if kept["sum"] == _sum(signature, kept["hash"]):  # or it is damaged, or of another file
            return str(kept["hash"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    value = content_hash(lm)
    with suppress(OSError):
        private_text(store, json.dumps({"hash": value, "sum": _sum(signature, value)}))
    return value


def _sum(signature: str, value: object) -> str:
    return hashlib.sha256(f"{signature} {value}".encode()).hexdigest()[:16]


def _signature(lm: LM) -> str | None:
    folder = lm.source.folder
    if folder is None or lm.source.allowed or lm.source.merged:
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".gguf", ".json"))
    seen = [(path.name, marks(path)) for path in files]
    parts = [str(folder.resolve()), seen, str(lm.dtype), torch.__version__, lm.source.quantised]
    text = json.dumps(parts if lm.source.stored is None else [*parts, str(lm.source.stored)])
    return hashlib.sha256(text.encode()).hexdigest()


def marks(path: Path) -> list[int | str]:
    """What stands for a file's content where reading all of it would take too long: size, times, inode, and a sample of
    its bytes. Other bytes under the same name have another ctime, which nobody can set."""
    return [*_stat(path), _sample(path)]


def _stat(path: Path) -> tuple[int, int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _sample(path: Path) -> str:
    """A hash of up to 64 pieces of a file, evenly spread: for file systems whose times say nothing."""
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        for number in range(_PIECES):
            file.seek(max(0, size - _PIECE) * number // (_PIECES - 1))
            digest.update(file.read(_PIECE))
    return digest.hexdigest()
