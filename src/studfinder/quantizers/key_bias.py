"""The bias of K in slow rotary pairs, which a softmax cannot see, and that of V, which attention passes on.

The score of a query at s and a key at t holds q . R(t - s) b of the key's bias b. In a pair of dims with angular
frequency w, R turns b by w (t - s): over a context of T tokens that moves the score by at most

    r = scaling |q| |b| 2 sin(min(w T, pi) / 2)

and what is the same for all keys of a query a softmax does not see. Taking the bias out of some pairs changes the
scores of a query by numbers that differ by at most the sum of their r, and a distribution by a KL of at most
(sum r)^2 / 8 (Hoeffding's lemma). |q| is the largest in the pair on calibration text, of all query heads that read the
head of K; w is 0 in dims that are not rotated, so that there it is exact.

The weights that attention gives sum to one, so that a bias of V comes out of it as it went in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from studfinder.models import LM, HeadRows, MatrixRef, Mixer, rotary_of
from studfinder.passes import carry
from studfinder.quantizers.bench import Workbench
from studfinder.quantizers.kv_cache import sees_constants
from studfinder.quantizers.rotary_pairs import pairs_of
from studfinder.records import EqualChange
from studfinder.sites import AttentionCall, tapped
from studfinder.texts import batches

_LITTLE = 0.01
"""Share of a bias's squares below which taking it away is not worth a change."""


def key_biases(
    lm: LM, windows: Sequence[Sequence[int]], *, context: int, bound: float
) -> tuple[list[EqualChange], list[str]]:
    """What may be taken from the biases of K, and what was left alone, in words.

    Args:
        windows: token ids, on which queries are measured.
        context: tokens of a window up to which it must hold.
        bound: nats: the KL of one query's attention at most.
    """
    biased = {
        layer: name for layer in range(len(lm.anatomy.layers)) if (name := _bias_of(lm, layer, "key")) is not None
    }
    if not biased:
        return [], ["key biases: there are none"]
    seen = sees_constants(lm)
    if seen is not None:
        return [], [f"key biases: {seen} sees a constant that is added to all scores of a query"]
    changes, notes = [], []
    sizes = query_sizes(lm, windows)
    for layer, name in biased.items():
        why = _left_alone(lm, layer)
        if why:
            notes.append(f"key bias of layer {layer}: {why}")
            continue
        changes += _of_layer(lm, layer, name, *sizes[layer], context=context, bound=bound)
    return changes, notes


def _of_layer(
    lm: LM, layer: int, name: str, query_HP: torch.Tensor, scaling: float, *, context: int, bound: float
) -> list[EqualChange]:
    mixer = lm.anatomy.layers[layer].mixer
    assert mixer is not None
    assert mixer.key is not None
    pair_D = pairs_of(lm, layer)
    freq_P = frequencies(lm, layer, len(query_HP[0]))
    bias = lm.model.get_parameter(name).detach().double().cpu()
    each = query_HP.double().reshape(mixer.kv_heads, -1, query_HP.shape[1])  # query heads by the head of K they read
    changes = []
    for head, first in enumerate(mixer.key.first):
        bias_D = bias[first : first + mixer.key.width]
        size_P = torch.zeros(len(freq_P), dtype=torch.float64).index_add_(0, pair_D, bias_D.square()).sqrt()
        taken_P, worst = invisible_pairs(
            size_P * factor_of(lm), each[head], freq_P, scaling, context=context, bound=bound
        )
        share = float(size_P[taken_P].square().sum() / size_P.square().sum().clamp_min(1e-300))
        if share < _LITTLE:
            continue
        dims = tuple(torch.nonzero(taken_P[pair_D])[:, 0].tolist())
        words = (
            f"head {head} of layer {layer}: the bias of K in {int(taken_P.sum())} of {len(freq_P)} pairs taken away, "
            f"{share:.0%} of its squares; |b| {float(size_P.norm()):.3g} to {float(size_P[~taken_P].norm()):.3g}"
        )
        changes.append(
            EqualChange(
                kind="key bias",
                layer=layer,
                parameter=name,
                words=words,
                exact=worst == 0,
                head=head,
                dims=dims,
                taken=share,
                bound=worst,
            )
        )
    return changes


def invisible_pairs(
    bias_P: torch.Tensor,
    query_HP: torch.Tensor,
    freq_P: torch.Tensor,
    scaling: float,
    *,
    context: int,
    bound: float,
) -> tuple[torch.Tensor, float]:
    """Which pairs of one head of K lose their bias (bool, by pair), and the bound that this comes to, in nats.

    Pairs are taken in the order of how much bias goes for how much of the bound, as long as they fit.

    Args:
        bias_P: its size by pair.
        query_HP: the largest query by pair, of each head that reads it.
        freq_P: radians a token.
        scaling: what multiplies q . k.
    """
    chord_P = 2 * torch.sin((freq_P * context).clamp(max=math.pi) / 2)
    moved_HP = scaling * query_HP * bias_P * chord_P
    worth_P = bias_P.square() / moved_HP.amax(dim=0).clamp_min(1e-300)
    most, spent_H = math.sqrt(8 * bound), torch.zeros(len(query_HP), dtype=moved_HP.dtype)
    taken_P = torch.zeros(len(bias_P), dtype=torch.bool)
    for pair in worth_P.argsort(descending=True, stable=True).tolist():
        if bias_P[pair] > 0 and float((spent_H + moved_HP[:, pair]).max()) <= most:
            taken_P[pair] = True
            spent_H = spent_H + moved_HP[:, pair]
    return taken_P, float(spent_H.max()) ** 2 / 8


def query_sizes(lm: LM, windows: Sequence[Sequence[int]]) -> dict[int, tuple[torch.Tensor, float]]:
    """By layer the largest size of a query in each rotary pair, (heads, pairs), and what multiplies q . k."""
    found: dict[int, tuple[torch.Tensor, float]] = {}

    def read(call: AttentionCall) -> None:
        pair_D = pairs_of(lm, call.layer).to(call.query_BHTD.device)
        square_BHTD = call.query_BHTD.float().square()
        sums_BHTP = square_BHTD.new_zeros(*square_BHTD.shape[:3], int(pair_D.max()) + 1)
        largest_HP = sums_BHTP.index_add_(3, pair_D, square_BHTD).sqrt().amax(dim=(0, 2)).cpu()
        scaling = call.scaling if call.scaling is not None else call.query_BHTD.shape[-1] ** -0.5
        before = found.get(call.layer)
        found[call.layer] = (largest_HP if before is None else torch.maximum(before[0], largest_HP)), float(scaling)

    with tapped(lm, read={AttentionCall: (read,)}):
        for _ in carry(lm, list(batches(windows))):
            pass
    return found


def frequencies(lm: LM, layer: int, pairs: int) -> torch.Tensor:
    """Radians a token of each pair of `pairs_of`, fp64; 0 of dims that are not rotated."""
    rotary = rotary_of(lm, layer)
    live = [] if rotary is None else list(rotary.inv_freq)
    return torch.tensor([*live, *[0.0] * (pairs - len(live))], dtype=torch.float64)


def factor_of(lm: LM) -> float:
    """By what a rotary embedding multiplies what it turns, as YaRN's does."""
    factors = [float(getattr(module, "attention_scaling", 1.0)) for module in lm.model.modules()]
    return max(factors, default=1.0)


def _left_alone(lm: LM, layer: int) -> str:
    """Why the key bias of a layer stays; "" if it need not."""
    part = lm.anatomy.layers[layer]
    mixer = part.mixer
    assert mixer is not None
    if any(norm.module.startswith(f"{mixer.module}.") for norm in part.norms):
        return "a norm comes after it"
    if mixer.stage != "no RoPE" and rotary_of(lm, layer) is None:
        return "how fast its pairs turn is unknown"
    if len(mixer.key.first) != mixer.kv_heads if mixer.key else True:
        return "which of its numbers make which head is unknown"
    return ""


def value_biases(lm: LM) -> tuple[list[EqualChange], list[str]]:
    """Biases of V that may be moved behind attention, where there is a bias that takes them; and what was left."""
    layers = range(len(lm.anatomy.layers))
    biased = {layer: name for layer in layers if (name := _bias_of(lm, layer, "value")) is not None}
    if not biased:
        return [], ["value biases: there are none"]
    if (seen := sees_constants(lm)) is not None:
        return [], [f"value biases: with {seen} the weights of attention need not sum to one"]
    changes = []
    for layer, name in biased.items():
        mixer = lm.anatomy.layers[layer].mixer
        assert mixer is not None
        if mixer.output is None or mixer.gate is not None or _bias_name(lm, mixer.output) is None:
            continue
        size = float(_rows(lm, name, mixer.value).norm())
        if size:
            words = f"layer {layer}: the bias of V, of size {size:.3g}, moved into that of the output projection"
            changes.append(
                EqualChange(kind="value bias", layer=layer, parameter=name, words=words, exact=False, taken=1.0)
            )
    notes = [] if changes else ["value biases: no output projection has a bias that takes them"]
    return changes, notes


def move_value_bias(bench: Workbench, layer: int) -> None:
    """Carry out one of `value_biases`."""
    lm = bench.lm
    mixer = lm.anatomy.layers[layer].mixer
    assert mixer is not None
    assert mixer.output is not None
    name, out = _bias_of(lm, layer, "value"), _bias_name(lm, mixer.output)
    assert name is not None
    assert out is not None
    value_GD = _rows(lm, name, mixer.value).double().reshape(mixer.kv_heads, -1)
    every = value_GD.repeat_interleave(mixer.heads // mixer.kv_heads, dim=0).flatten()
    matrix = mixer.output.view(lm.model.get_parameter(mixer.output.parameter)).detach().double()
    made = lm.model.get_parameter(out).detach().double() + matrix @ every
    bench.journal.write(out, made.to(lm.model.get_parameter(out).dtype))
    take_bias(bench, name, _places(mixer.value))


def take_bias(bench: Workbench, name: str, places: Sequence[int]) -> None:
    """Set some numbers of a bias to 0."""
    bench.journal.write(name, 0.0, (torch.tensor(places, device=bench.lm.device),))


def key_places(lm: LM, change: EqualChange) -> list[int]:
    """Where in the bias the dims of a key bias's change are."""
    mixer = lm.anatomy.layers[change.layer].mixer
    assert mixer is not None
    assert mixer.key is not None
    assert change.head is not None
    return [mixer.key.first[change.head] + dim for dim in change.dims]


def _bias_of(lm: LM, layer: int, which: str) -> str | None:
    """The parameter that holds the bias of K or V; None where there is none, or all of it is 0."""
    mixer: Mixer | None = lm.anatomy.layers[layer].mixer
    rows: HeadRows | None = None if mixer is None or mixer.kind != "softmax" else getattr(mixer, which)
    name = None if rows is None else _bias_name(lm, rows.ref)
    return name if name is not None and bool(_rows(lm, name, rows).any()) else None


def _bias_name(lm: LM, ref: MatrixRef) -> str | None:
    name = f"{ref.module}.bias"
    return name if any(own == name for own, _ in lm.model.named_parameters(remove_duplicate=False)) else None


def _places(rows: HeadRows | None) -> list[int]:
    assert rows is not None
    return [first + dim for first in rows.first for dim in range(rows.width)]


def _rows(lm: LM, name: str, rows: HeadRows | None) -> torch.Tensor:
    return lm.model.get_parameter(name).detach()[torch.tensor(_places(rows), device=lm.device)].cpu()
