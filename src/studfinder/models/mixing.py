"""What lets the tokens of a block see each other: its attention, by heads and roles, and its other mixers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from studfinder.models.anatomy import HeadRows, Mixer, Stage
from studfinder.models.dependence import BlockLook, clear, common_module, energy_of, ref_of
from studfinder.models.trace import Attended, Product


def mixers_of(look: BlockLook, mixing: Sequence[Product], outputs: Sequence[Product]) -> tuple[Mixer, ...]:
    """The mixers of a block, attention first.

    Args:
        mixing: the products that read other tokens.
        outputs: those of them that write to the stream.
    """
    named = list({one.module: one for one in reversed(look.call.attended) if one.module is not None}.values())[::-1]
    own = [one for one in look.call.attended if one.module is None][:1]
    softmax = [_attention(look, one, mixing) for one in named or own]
    known = {mixer.output.parameter for mixer in softmax if mixer.output is not None}
    linear = [_linear(look, product) for product in outputs if product.parameter not in known]
    return (*softmax, *linear)


def convolutions(look: BlockLook, known: Sequence[str]) -> tuple[Mixer, ...]:
    """Mixers without a matrix, beside those that are known by their modules."""
    inside = tuple(f"{name}." for name in known)
    found: list[str] = []
    for name, (given, gave) in look.call.modules.items():
        alike = given and gave and given[0].shape == gave[0].shape and given[0].shape[-2] == look.tokens
        if alike and not name.startswith(inside) and name not in known:
            (slope,) = look.slopes(gave[0].flatten(0, -2)[look.late], [given[0]])
            own = not any(product.parameter.startswith(f"{name}.") for product in look.products)
            if own and slope is not None and bool(slope.flatten(0, -2)[: look.late - 1].any()):
                found.append(name)
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    return tuple(Mixer(name, "linear") for name in outer)


def _linear(look: BlockLook, output: Product) -> Mixer:
    """A mixer that is no softmax: around its output projection and what that reads of other tokens."""
    slopes = look.slopes(look.late_row(output), look.leaves)
    feeding = [one.parameter for one, slope in zip(look.products, slopes, strict=True) if slope is not None]
    return Mixer(common_module([output.parameter, *feeding]), "linear", output=ref_of(output))


def _attention(look: BlockLook, seen: Attended, mixing: Sequence[Product]) -> Mixer:
    anchor = seen.scores if seen.value is None else seen.value
    assert anchor is not None
    output = next((one for one in mixing if look.slopes(one.x, [anchor])[0] is not None), None)
    if seen.query is not None and seen.key is not None and seen.value is not None:
        query, key, value = (_head_rows(look, one) for one in (seen.query, seen.key, seen.value))
        sizes = (seen.query.shape[1], seen.key.shape[1], seen.query.shape[-1], seen.value.shape[-1])
        if seen.module is None:  # torch's own attention may be given keys that are repeated for several heads
            key, value = _once(key), _once(value)
            sizes = (sizes[0], len(key.first) if key else sizes[1], *sizes[2:])
    else:
        query, key = _score_rows(look, anchor.reshape(-1, look.tokens, look.tokens))
        value = _value_rows(look, output, query, key)
        key, value = _once(key), _once(value)
        heads, groups = (len(rows.first) if rows else 0 for rows in (query, key))
        sizes = (heads, groups, query.width if query else 0, value.width if value else 0)
    parts = [rows.ref.parameter for rows in (query, key, value) if rows is not None]
    module = seen.module or common_module(parts + ([output.parameter] if output else []))
    gate = _gate_rows(look, output, sizes[0], [query, key, value])
    stage = _stage(look, seen)
    of_output = None if output is None else ref_of(output)
    return Mixer(
        module, "softmax", seen.module is not None, stage[0], *sizes, query, key, value, of_output, gate, *stage[1:]
    )


def _once(rows: HeadRows | None) -> HeadRows | None:
    """Heads that share their channels counted as one."""
    return rows and HeadRows(rows.ref, tuple(dict.fromkeys(rows.first)), rows.width)


def _head_rows(look: BlockLook, tensor_BHTD: torch.Tensor) -> HeadRows | None:
    """Which output channels make each head of a tensor at the interface."""
    slopes = [look.slopes(tensor_BHTD[:, head], look.leaves) for head in range(tensor_BHTD.shape[1])]
    return _best(look, slopes, lambda slope, product: energy_of(slope, product.rows), _by_owner)


def _score_rows(look: BlockLook, scores_HTS: torch.Tensor) -> tuple[HeadRows | None, HeadRows | None]:
    """The same for queries and keys of attention that only its softmax shows: queries move a score from their own
    token, keys from theirs."""
    slopes = [look.slopes(one[look.late, look.early], look.leaves) for one in scores_HTS]
    query, key = (
        _best(look, slopes, lambda slope, product, at=token: look.at_token(slope, at, product.rows), _by_head)  # type: ignore[misc]
        for token in (look.late, look.early)
    )
    return query, key


def _value_rows(
    look: BlockLook, output: Product | None, query: HeadRows | None, key: HeadRows | None
) -> HeadRows | None:
    """The same for values: what the output projection reads of another token, but for its key."""
    x_THD = None if output is None or query is None else look.tokens_of(output, len(query.first))
    if x_THD is None:
        return None

    def energy(slope: torch.Tensor | None, product: Product) -> torch.Tensor:
        return _without(look.at_token(slope, look.early, product.rows), product, (query, key))

    slopes = [look.slopes(x_THD[look.late, head], look.leaves) for head in range(x_THD.shape[1])]
    return _best(look, slopes, energy, _by_head)


def _gate_rows(
    look: BlockLook, output: Product | None, heads: int, known: Sequence[HeadRows | None]
) -> HeadRows | None:
    """The channels that multiply what attention gives: the output projection reads them at its own token alone."""
    x_THD = None if output is None else look.tokens_of(output, heads)
    if x_THD is None:
        return None

    def energy(slope: torch.Tensor | None, product: Product) -> torch.Tensor:
        own = _without(look.at_token(slope, look.late, product.rows), product, known)
        return own * (look.at_token(slope, look.early, product.rows) == 0)

    slopes = [look.slopes(x_THD[look.late, head], look.leaves) for head in range(heads)]
    found = _best(look, slopes, energy, _by_owner)
    return found if found is not None and len(set(found.first)) == heads else None


def _without(energy_O: torch.Tensor, product: Product, known: Iterable[HeadRows | None]) -> torch.Tensor:
    """No energy in channels that are known to make something else."""
    for rows in known:
        if rows is not None and rows.ref == ref_of(product):
            for first in rows.first:
                energy_O[first : first + rows.width] = 0
    return energy_O


def _best(
    look: BlockLook,
    slopes: Sequence[Sequence[torch.Tensor | None]],
    energy: Callable[[torch.Tensor | None, Product], torch.Tensor],
    assign: Callable[[torch.Tensor], list[list[int]]],
) -> HeadRows | None:
    """Of all products the one that most channels of make the heads, each in one piece of one width; None if none does.

    Args:
        slopes: by head, by product.
        energy: how much each channel of a product moves a head, (O,).
        assign: which channels are each head's, of the energies (H,O).
    """
    best = None
    for number, product in enumerate(look.products):
        energy_HO = torch.stack([energy(of_head[number], product) for of_head in slopes])
        rows = assign(energy_HO) if bool(energy_HO.any()) else [[]]
        width = len(rows[0])
        if width and all(len(one) == width and one[-1] - one[0] == width - 1 for one in rows):
            found = HeadRows(ref_of(product), tuple(one[0] for one in rows), width)
            if best is None or width * len(set(found.first)) > best.width * len(set(best.first)):
                best = found
    return best


def _by_head(energy_HO: torch.Tensor) -> list[list[int]]:
    """Heads may share channels."""
    return [energy_O.nonzero()[:, 0].tolist() for energy_O in energy_HO]


def _by_owner(energy_HO: torch.Tensor) -> list[list[int]]:
    """Each channel is of the head that it moves most, as it moves all through a norm over all heads; channels that move
    all alike are shared, as the part of MLA's keys that positions turn."""
    heads = len(energy_HO)
    used = energy_HO.any(dim=0)
    top = energy_HO.topk(min(2, heads), dim=0).values
    if heads > 1 and not bool(clear(top[0], top[1])[used].all()):
        every = bool((energy_HO[:, used] > 0).all())
        return [used.nonzero()[:, 0].tolist()] * heads if every else [[]]
    owner_O = energy_HO.argmax(dim=0)
    return [(used & (owner_O == head)).nonzero()[:, 0].tolist() for head in range(heads)]


def _stage(look: BlockLook, seen: Attended) -> tuple[Stage, int, bool]:
    """Whether positions turn queries and keys: of one vector at every token, are the queries alike? And the first dim
    that turns, which is the fastest, and whether it turns with its neighbour."""
    flat = next(one for one in look.level.attended if one.module == seen.module)
    if flat.query is not None:
        query_THD = flat.query[0].transpose(0, 1).detach().float()
        apart_D = (query_THD - query_THD[:1]).abs().amax(dim=(0, 1)) > 1e-3 * query_THD.abs().max()
        if not bool(apart_D.any()):
            return "no RoPE", 0, False
        first = int(apart_D.nonzero()[0])
        pair_TH = query_THD[..., first : first + 2].square().sum(dim=-1)  # what turns keeps its length
        together = (pair_TH - pair_TH[:1]).abs().max() < 1e-2 * pair_TH.abs().max()
        return ("pre-RoPE" if seen.module is None else "post-RoPE"), first, bool(together)
    assert flat.scores is not None
    scores_TS = flat.scores.reshape(-1, look.tokens, look.tokens)[0]
    leaves = [product.y for product in look.level.products]
    slopes = (
        torch.autograd.grad(scores_TS[look.late, source], leaves, retain_graph=True, allow_unused=True)
        for source in (look.early, look.early + 1)
    )
    # The slope of a score by its query is the key: one key at every token, unless positions turn it.
    for one, other in zip(*slopes, strict=True):
        if one is not None and other is not None:
            apart = (one - other).flatten(0, -2)[look.late].abs().max()
            if apart > 1e-3 * one.flatten(0, -2)[look.late].abs().max():
                return "pre-RoPE", 0, False
    return "no RoPE", 0, False
