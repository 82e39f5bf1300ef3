"""A written checkpoint is loaded by plain transformers in a fresh process, and must be what was meant.

Two things are compared: every tensor that transformers holds after it has decompressed the files, bit by bit, and the
logits of a few windows. A model that does not fit into memory a second time is decoded tensor by tensor instead, and
one block of it is loaded and run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.models.memory import free_memory
from studfinder.quantizers import plain
from studfinder.quantizers.decode import decoded, uncovered
from studfinder.quantizers.targets import Target

_WINDOWS, _LENGTH = 4, 32
_NEAR = {"cpu": (1e-5, 5e-3), "elsewhere": (1e-3, 3e-2)}
"""How far logits may lie from those in memory, by the norm of the difference over their norm, in 32 and in 16 bits:
weights are equal already, and only kernels may differ, hardly so where both are of the CPU."""
_NEAR_ROUNDED_INPUTS = 0.2
"""compressed-tensors steps rounded inputs by max / 127.5 in the model's dtype, methods here by max / 127 in fp32."""
_SCALES = ("scale", "zero_point", "packed", "shape", "qweight", "qzeros", "zeros")
Answer = tuple[dict[str, Any], torch.Tensor]


@dataclass
class Meant:
    """What a checkpoint is to hold: by parameter name, digests of the dense tensor in each dtype it may be loaded in.

    Attributes:
        also: dtypes besides a tensor's own.
        apart: of tensors that files keep in parts the names of those, and their digests.
        exact: whether every tensor that is loaded must be here under its name; files may hold some under other names.
        size: bytes of all of them.
    """

    also: tuple[torch.dtype, ...] = ()
    exact: bool = True
    digests: dict[str, dict[str, str]] = field(default_factory=dict)
    apart: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Remember a tensor."""
        self.digests[name] = self._digests(tensor)
        self.size += tensor.numel() * tensor.element_size()

    def add_part(self, whole: str, name: str, tensor: torch.Tensor) -> None:
        """Remember that files have a part of a tensor under a name of its own."""
        self.apart.setdefault(whole, {})[name] = self._digests(tensor)

    def _digests(self, tensor: torch.Tensor) -> dict[str, str]:
        """What is no floating-point number has its own dtype only."""
        kinds = dict.fromkeys((tensor.dtype, *(self.also if tensor.is_floating_point() else ())))
        return {str(kind): plain.tensor_digest(tensor.to(kind)) for kind in kinds}

    def in_files(self) -> Meant:
        """The same with parts in the place of what they are parts of."""
        whole = {name: kinds for name, kinds in self.digests.items() if name not in self.apart}
        parts = {name: kinds for found in self.apart.values() for name, kinds in found.items()}
        return replace(self, digests=whole | parts, apart={})

    def check(self, name: str, dtype: str, digest: str) -> None:
        """Raise StudfinderError if a tensor that was read is not the one that was meant."""
        kinds = self.digests.get(name, {})
        if kinds.get(dtype) != digest:
            cast = f" (loaded as {dtype.removeprefix('torch.')})" if kinds and dtype not in kinds else ""
            raise _refused(f"{name} reads back as other numbers than were meant{cast}")


def meant_of(lm: LM, chosen: Iterable[Target] = ()) -> Meant:
    """What a live model holds now; of `chosen` experts files keep their matrices apart."""
    meant = Meant(also=_loaded_as(lm))
    for name, tensor in lm.model.state_dict().items():
        meant.add(name, tensor)
    for target in chosen:
        if target.part is not None:
            meant.add_part(target.ref.parameter, target.name, target.weight(lm))
    return meant


def meant_of_files(lm: LM) -> Meant:
    """Nothing yet, for a checkpoint made from files: what its skeleton says of how they are loaded."""
    kept = getattr(lm.model, "_keep_in_fp32_modules", None) or getattr(lm.model, "_keep_in_fp32_modules_strict", None)
    return Meant(also=(*_loaded_as(lm), *((torch.float32,) if kept else ())), exact=False)


def _loaded_as(lm: LM) -> tuple[torch.dtype, ...]:
    """The dtype that the config names, if any; by its name where the model was built and not loaded."""
    named = getattr(lm.model.config, "dtype", None)
    found = getattr(torch, named, None) if isinstance(named, str) else named
    return (found,) if isinstance(found, torch.dtype) else ()


def probe(lm: LM) -> list[list[int]]:
    """Windows of token ids drawn from all of the vocabulary, without those that stand for something else than text."""
    config = lm.model.config.to_dict()
    known = {**config, **(config.get("text_config") or {})}
    special = {value for name, value in known.items() if "token" in name and isinstance(value, int)}
    ids = torch.tensor([i for i in range(lm.anatomy.vocabulary) if i not in special])
    length = min(_LENGTH, lm.anatomy.max_positions or _LENGTH)
    drawn = torch.randint(len(ids), (_WINDOWS, length), generator=torch.Generator().manual_seed(0))
    return ids[drawn].tolist()


@torch.no_grad()
def verify(
    folder: Path,
    lm: LM,
    meant: Meant,
    quantised: Collection[str],
    *,
    live: bool,
    rounded_inputs: bool = False,
    fits: bool | None = None,
) -> str:
    """Hold a checkpoint against what was meant.

    Args:
        lm: the model it is of: as it stands in memory, or only its skeleton.
        quantised: names of the modules that are stored compressed.
        live: whether `lm` can be run; otherwise logits must be finite.
        rounded_inputs: whether inputs of matrices are rounded too, which two libraries do not do to the last bit alike.
        fits: whether the model fits into memory a second time; None looks.

    Returns:
        What was checked, in words.

    Raises:
        StudfinderError: the checkpoint is not what was meant, and in which way.
    """
    fits = fits_again(meant.size) if fits is None else fits
    windows = probe(lm)
    ask = {
        "ids": windows,
        "trust": type(lm.model).__module__.startswith("transformers_modules"),
        "attention": "eager" if getattr(lm.model.config, "_attn_implementation", None) == "eager" else None,
        "blocks": None if fits else 1,
        "variant": str(lm.model.config.model_type).startswith("studfinder-"),
        "threads": torch.get_num_threads(),
    }
    _check(uncovered(folder, lm.model, quantised))
    if not fits:
        compared = _compare_decoded(folder, meant.in_files(), quantised)
    answer, logits = fresh(folder, ask)
    _check(missing(answer, whole=fits))
    tensors = compare_tensors(answer["tensors"], meant, whole=fits)
    if not fits:
        _check(None if torch.isfinite(logits).all() else "the logits of its first block are not finite")
        return (
            f"every tensor decoded and compared, {compared} of them bit-equal; the model does not fit into memory "
            "twice, so that only its first block was loaded and run"
        )
    wanted = None
    if live:
        wanted = lm.model(input_ids=torch.tensor(windows, device=lm.device), use_cache=False).logits.cpu()
    near = _NEAR["cpu" if lm.device.type == "cpu" else "elsewhere"][lm.dtype.itemsize < 4]
    said = compare_logits(logits, wanted, _NEAR_ROUNDED_INPUTS if rounded_inputs else near)
    return f"loaded by plain transformers in a process of its own: {tensors} tensors bit-equal, {said}"


def fresh(folder: Path, ask: Mapping[str, Any]) -> Answer:
    """`plain.reload` in a new process. Raises StudfinderError if that cannot load or run the checkpoint."""
    with tempfile.TemporaryDirectory() as temporary:
        asked, answered = Path(temporary) / "ask.json", Path(temporary) / "answer"
        asked.write_text(json.dumps(ask), encoding="utf-8")
        command = [sys.executable, "-P", plain.__file__, str(folder), str(asked), str(answered)]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            last = said[-1][:300] if said else "no word of why"
            raise cannot_run(f"signal {-done.returncode}" if done.returncode < 0 else last)
        answer = json.loads(answered.with_suffix(".json").read_text(encoding="utf-8"))
        return answer, torch.load(answered.with_suffix(".pt"), weights_only=True)


def cannot_run(reason: object) -> StudfinderError:
    """That plain transformers fails on the checkpoint, and with which words."""
    return _refused(f"plain transformers cannot load and run it ({reason})")


def missing(answer: Mapping[str, Any], *, whole: bool = True) -> str | None:
    """What is wrong with what transformers found in the files, by its own account."""
    for kind in ("missing", "mismatched"):
        if answer[kind]:
            return f"{answer[kind][0]} is {kind} in it as plain transformers reads it ({len(answer[kind])} in all)"
    unused = [name for name in answer["unexpected"] if name.rpartition("_")[2] in _SCALES or "weight_" in name]
    return f"plain transformers leaves {unused[0]} unused" if unused and whole else None


def compare_tensors(found: Mapping[str, tuple[str, str]], meant: Meant, *, whole: bool = True) -> int:
    """How many tensors in memory are those that were meant. Raises StudfinderError, naming the first that is not.

    Args:
        found: dtype and digest by name.
        whole: whether all of the model was loaded.
    """
    equal, anywhere = 0, {one for kinds in meant.digests.values() for one in kinds.values()}
    for name, (dtype, digest) in found.items():
        if name in meant.digests:
            meant.check(name, dtype, digest)
            equal += 1
        elif meant.exact and not name.rpartition(".")[2].startswith(("weight_", "input_", "output_")):
            raise _refused(f"it has a tensor {name} that the model in memory has not")
        else:
            equal += digest in anywhere
    lost = [name for name in meant.digests if name not in found] if whole and meant.exact else []
    if lost:
        raise _refused(f"{lost[0]} is not in what plain transformers loads")
    return equal


def compare_logits(found: torch.Tensor, wanted: torch.Tensor | None, near: float) -> str:
    """In words how logits agree. Raises StudfinderError if they do not."""
    of = f"the logits of {found.shape[0]} windows of {found.shape[1]} tokens"
    if wanted is None:
        _check(None if torch.isfinite(found).all() else "its logits are not finite")
        return f"{of} finite"
    if found.dtype == wanted.dtype and torch.equal(found, wanted):
        return f"{of} too"
    if found.shape != wanted.shape:
        raise _refused(f"its logits have the shape {tuple(found.shape)}, those in memory {tuple(wanted.shape)}")
    off = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    if not off <= near:  # NaN is not
        raise _refused(f"its logits differ from those in memory by {off:.2g} of their norm, more than {near:g}")
    return f"{of} within {off:.1g} of their norm"


def _compare_decoded(folder: Path, meant: Meant, quantised: Collection[str]) -> int:
    seen: set[str] = set()
    for name, tensor in decoded(folder, quantised):
        meant.check(name, str(tensor.dtype), plain.tensor_digest(tensor))
        seen.add(name)
    wanted = {name: next(iter(kinds.values())) for name, kinds in meant.digests.items()}
    there = {wanted[name] for name in seen}
    lost = [name for name, digest in wanted.items() if digest not in there]  # tied tensors are stored once
    if lost:
        raise _refused(f"{lost[0]} is not in it")
    return len(seen)


def fits_again(size: int) -> bool:
    """Whether a model of so many bytes can be loaded once more: stored, and decompressed beside it."""
    return free_memory() > 1.6 * size + (1 << 30)


def _check(problem: str | None) -> None:
    if problem is not None:
        raise _refused(problem)


def _refused(what: str) -> StudfinderError:
    return StudfinderError(
        f"the written checkpoint is not what was meant: {what}",
        do="Nothing was left at --out. --format dense may hold the model; --no-verify does not look",
    )
