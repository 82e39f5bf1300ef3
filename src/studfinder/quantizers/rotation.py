"""Rotate the residual stream by a Hadamard matrix: no channel stands out any more (QuaRot, SpinQuant)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from studfinder.errors import StudfinderError
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.ffn import with_bias

_KNOWN = ("llama", "mistral", "qwen2", "qwen3")
"""Architectures whose residual stream is read through a plain RMSNorm and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Rotate:
    """Fuse each norm into the matrices that read it, then rotate what they read and what is written back.

    The computation is the same up to rounding (Ashkboos et al. 2024, arXiv 2404.00456, without their online
    transforms). A tied head gets numbers of its own. A rotation leaves no single weight in its place: findings are
    made before it, and nothing can be held out beside it.

    Attributes:
        seed: of the random signs.
    """

    seed: int = 0

    def apply(self, bench: Workbench) -> None:
        lm = bench.lm
        if lm.anatomy.architecture not in _KNOWN:
            raise StudfinderError(
                f"the residual stream of {lm.anatomy.architecture} cannot be rotated", expected=", ".join(_KNOWN)
            )
        if bench.held:
            raise StudfinderError(
                "numbers to hold out do not survive a rotation", do="Keep them by skip(), or rotate not"
            )
        rotation_CC = hadamard(lm.anatomy.hidden, self.seed).to(lm.device)
        for part in lm.anatomy.layers:
            reads = {
                "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
            }
            for norm, names in reads.items():
                gain_C = _value(bench, f"{part.block}.{norm}.weight")
                for name in names:
                    weight = f"{part.block}.{name}.weight"
                    _write(bench, weight, (_value(bench, weight) * gain_C) @ rotation_CC)
                _write(bench, f"{part.block}.{norm}.weight", torch.ones_like(gain_C))
            for name in ("self_attn.o_proj", "mlp.down_proj"):
                for parameter, value in with_bias(lm, f"{part.block}.{name}.weight").items():
                    matrix = value.dim() == 2
                    _write(bench, parameter, rotation_CC.T @ value.double() if matrix else value.double() @ rotation_CC)
        self._ends(bench, lm.anatomy.decoder, rotation_CC)
        bench.notes.append(
            f"residual stream rotated by a random Hadamard matrix, seed {self.seed} (exact up to rounding)"
        )

    def _ends(self, bench: Workbench, decoder: str, rotation_CC: torch.Tensor) -> None:
        model = bench.lm.model
        gain_C = _value(bench, f"{decoder}.norm.weight")
        head = model.get_output_embeddings().weight
        new = (head.detach().double() * gain_C) @ rotation_CC
        if head is model.get_input_embeddings().weight:
            bench.journal.set(model.config, "tie_word_embeddings", False)
            bench.journal.replace("lm_head.weight", new.to(head.dtype))
        else:
            _write(bench, "lm_head.weight", new)
        _write(bench, f"{decoder}.norm.weight", torch.ones_like(gain_C))
        embedding = f"{decoder}.embed_tokens.weight"
        _write(bench, embedding, _value(bench, embedding) @ rotation_CC)


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
