"""Massive values of Q and K as weights for a quantiser: which rows of their matrices an error hurts most in."""

from __future__ import annotations

from pathlib import Path

import torch

from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.quantizers.rotary_pairs import all_rows, mean_by_pair, pairs_of, query_and_key


def row_weights(lm: LM, profile: str | Path) -> dict[str, torch.Tensor]:
    """How much a square error in each row of the query and the key projection counts, (out,), by parameter name.

    A score is sum_d q_d k_d, so an error in q_d counts with k_d^2: a query's row gets the mean square of the keys of
    its head at its dim, a key's row the sum over the query heads that read it. Dims that rotate together get their
    mean, because rows are before RoPE and the map after it. Only what several rows share can be chosen by such weights:
    AWQ's factors, or a range shared by rows. Rounding to nearest and GPTQ minimise each row by itself, where a factor
    for the row changes nothing.

    Args:
        profile: profile.safetensors of a scan of this model, or its run folder.

    Raises:
        StudfinderError: it holds no map, or one of another shape; Q and K are not made apart.
    """
    from safetensors.torch import load_file

    path = Path(profile)
    path = path / "profile.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise StudfinderError(f"there is no {path}", expected="profile.safetensors of a scan, or its run folder")
    maps = load_file(path)
    heads, groups, dim = lm.anatomy.heads, lm.anatomy.kv_heads, lm.anatomy.head_dim
    if "norm.query" not in maps or maps["norm.query"].shape[1:] != (heads, dim):
        raise StudfinderError(
            f"{path} is no map of {lm.source.id}", expected=f"norm.query with {heads} heads of {dim} dims"
        )
    weights = {}
    for place, layer in enumerate(maps["norm.query.layers"].tolist()):
        query, key = query_and_key(lm, layer)
        pair_D = pairs_of(lm, layer)
        squares = (maps[f"norm.{name}"][place].square() for name in ("query", "key"))
        query_HD, key_GD = (mean_by_pair(square, pair_D)[:, pair_D] for square in squares)
        of_query_HD = key_GD.repeat_interleave(heads // groups, dim=0)
        of_key_GD = query_HD.view(groups, heads // groups, dim).sum(dim=1)
        for rows, size_HD in ((query, of_query_HD), (key, of_key_GD)):
            weights[rows.ref.parameter] = torch.empty(size_HD.numel()).index_copy_(0, all_rows(rows), size_HD.flatten())
    return weights
