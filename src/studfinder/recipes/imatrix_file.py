"""An importance file for llama-quantize: GGUF with, for each tensor, the sums of its squared inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class ImportanceSums:
    """Of one tensor of GGUF.

    Attributes:
        sums: of squared inputs, (matrices, in) fp32; experts of a layer are several matrices.
        counts: over how many tokens, (matrices,).
    """

    sums: np.ndarray
    counts: np.ndarray


def write_importance(
    path: Path, tensors: Mapping[str, ImportanceSums], *, datasets: Sequence[str], chunks: int, length: int
) -> None:
    """Write the file, in llama.cpp's format (`common/imatrix-loader`): importance is sum over count.

    Args:
        tensors: by GGUF name.
        datasets: which text, and how it was read, in words.
        chunks, length: windows, and tokens of each.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", list(datasets))
    writer.add_uint32("imatrix.chunk_count", chunks)
    writer.add_uint32("imatrix.chunk_size", length)
    for name, one in sorted(tensors.items()):
        writer.add_tensor(f"{name}.in_sum2", np.ascontiguousarray(one.sums, np.float32))
        writer.add_tensor(f"{name}.counts", np.ascontiguousarray(one.counts[:, None], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
