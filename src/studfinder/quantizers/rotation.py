"""Rotate the residual stream by a Hadamard matrix: no channel stands out any more (QuaRot, SpinQuant)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.models.roles import norm_offset
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.ffn import with_bias
from studfinder.quantizers.folds import readers_of
from studfinder.quantizers.targets import matrices_of
from studfinder.sites import Journal

_OFF = (1e-3, 5e-2)
"""By how much of their norm logits may differ after a rotation, in 32 and in 16 bits."""


@dataclass(frozen=True, kw_only=True)
class Rotate:
    """Fuse each norm into the matrices that read it, then rotate what they read and what is written back.

    The computation is the same up to rounding (Ashkboos et al. 2024, arXiv 2404.00456, without their online
    transforms); that it is, is measured, since a model may read its residual stream in other ways too. A tied head gets
    numbers of its own. A rotation leaves no single weight in its place: findings are made before it, and nothing can be
    held out beside it.

    Attributes:
        seed: of the random signs.
    """

    seed: int = 0

    @torch.no_grad()
    def apply(self, bench: Workbench) -> None:
        if bench.held:
            raise StudfinderError(
                "numbers to hold out do not survive a rotation", do="Keep them by skip(), or rotate not"
            )
        lm = bench.lm
        ids_BT = torch.randint(lm.anatomy.vocabulary, (1, 16), generator=torch.Generator().manual_seed(0)).to(lm.device)
        before = lm.model(input_ids=ids_BT, use_cache=False).logits.float()
        reads, writes, last = _ways(lm, ids_BT)
        rotation_CC = hadamard(lm.anatomy.hidden, self.seed).to(lm.device)
        for norm, names in reads.items():
            gain_C = _value(bench, norm)
            for name in names:
                _write(bench, name, (_value(bench, name) * gain_C) @ rotation_CC)
            _write(bench, norm, torch.ones_like(gain_C))
        for name in writes:
            for parameter, value in with_bias(lm, name).items():
                matrix = value.dim() == 2
                _write(bench, parameter, rotation_CC.T @ value.double() if matrix else value.double() @ rotation_CC)
        self._ends(bench, last, rotation_CC)
        off = (lm.model(input_ids=ids_BT, use_cache=False).logits.float() - before).norm() / before.norm()
        if not off <= _OFF[lm.dtype.itemsize < 4]:
            raise _unknown(lm, "is read in other ways than through a norm without a mean")
        bench.notes.append(
            f"residual stream rotated by a random Hadamard matrix, seed {self.seed} (exact up to rounding)"
        )

    def _ends(self, bench: Workbench, norm: str, rotation_CC: torch.Tensor) -> None:
        model = bench.lm.model
        names = {id(value): name for name, value in model.named_parameters(remove_duplicate=False)}  # the head's last
        gain_C = _value(bench, norm)
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        new = (head.detach().double() * gain_C) @ rotation_CC
        if head is embedding:
            bench.journal.set(model.config, "tie_word_embeddings", False)
            bench.journal.replace(names[id(head)], new.to(head.dtype))
        else:
            _write(bench, names[id(head)], new)
        _write(bench, norm, torch.ones_like(gain_C))
        first = next(name for name, value in model.named_parameters() if value is embedding)
        _write(bench, first, _value(bench, first) @ rotation_CC)


def _ways(lm: LM, ids_BT: torch.Tensor) -> tuple[dict[str, list[str]], list[str], str]:
    """By parameter names: what reads the residual stream, by the norm in front of it; what writes to it; the last norm.

    Raises:
        StudfinderError: one of them is unknown, or something else reads or writes.
    """
    if lm.anatomy.streams > 1:
        raise _unknown(lm, f"has {lm.anatomy.streams} parts")
    reads: dict[str, list[str]] = {}
    writes = []
    for number, layer in enumerate(lm.anatomy.layers):
        norms = [norm.module for norm in layer.norms]
        matrices = matrices_of(lm, number)
        readers = readers_of(lm, norms, lambda: lm.model(input_ids=ids_BT, use_cache=False), layer.block)
        for norm in layer.norms:
            own = dict(lm.model.get_submodule(norm.module).named_parameters(recurse=False))
            refs = [matrices.get(name) for name in readers[norm.module]]
            if refs and own.keys() == {"weight"} and len(own["weight"]) == lm.anatomy.hidden and not norm.offset:
                found = [ref.parameter for ref in refs if ref is not None and not ref.transposed]
                if len(found) == len(refs):
                    reads[f"{norm.module}.weight"] = found
        outputs = [*(mixer.output for mixer in layer.mixers), *layer.writers]
        for ref in outputs:
            if ref is None or ref.expert is not None or ref.transposed:
                raise _unknown(lm, f"is written to in layer {number} by what is no matrix (out, in) of its own")
            writes.append(ref.parameter)
    return reads, list(dict.fromkeys(writes)), _last_norm(lm, ids_BT)


def _last_norm(lm: LM, ids_BT: torch.Tensor) -> str:
    """The weight of the norm in front of the head: the last that runs outside the blocks."""
    blocks = tuple(f"{layer.block}." for layer in lm.anatomy.layers)
    entered: dict[str, torch.Tensor] = {}

    def before(name: str, _module: nn.Module, args: tuple) -> None:
        if args:
            entered[name] = args[0]

    with Journal(lm.model) as journal:
        for name, module in lm.model.named_modules():
            if not name.startswith(blocks) and not list(module.children()):
                journal.hook(module, partial(before, name), before=True)
        lm.model(input_ids=ids_BT, use_cache=False)
    for name, x in reversed(entered.items()):
        module = lm.model.get_submodule(name)
        own = dict(module.named_parameters(recurse=False))
        if own.keys() == {"weight"} and own["weight"].shape == x.shape[-1:] and norm_offset(module, x) == 0:
            return f"{name}.weight"
    raise _unknown(lm, "ends in no norm with a weight alone")


def _unknown(lm: LM, why: str) -> StudfinderError:
    return StudfinderError(
        f"the residual stream of {lm.anatomy.architecture} cannot be rotated: it {why}",
        expected="matrices that read it through an RMSNorm, and matrices that write to it",
    )


def hadamard(size: int, seed: int) -> torch.Tensor:
    """A random orthogonal matrix with entries of one size, (size, size) fp64.

    Raises:
        StudfinderError: no Hadamard matrix of this size is known to compressed-tensors.
    """
    from compressed_tensors.transform.utils.hadamard import random_hadamard_matrix

    generator = torch.Generator().manual_seed(seed)
    try:
        matrix = random_hadamard_matrix(size, dtype=torch.float64, gen=generator)
    except ValueError:
        raise StudfinderError(f"no Hadamard matrix of size {size} is known", expected="another hidden size") from None
    # Some releases return it normalised.
    return matrix / matrix.abs().max() / size**0.5


def _value(bench: Workbench, name: str) -> torch.Tensor:
    return bench.lm.model.get_parameter(name).detach().double()


def _write(bench: Workbench, name: str, value: torch.Tensor) -> None:
    bench.journal.write(name, value.to(bench.lm.model.get_parameter(name).dtype))
