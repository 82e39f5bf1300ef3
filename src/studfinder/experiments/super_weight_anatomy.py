"""Where a super weight's input comes from, and what its output meets (ours; the paper stops at "it spikes").

The input spike of a gated FFN is x_k = act(g_k) u_k at one neuron and one token, with g = W_gate n, u = W_up n and n
the normed residual stream. For every proven super weight we take the token at which it was found and ask: are g_k and
u_k each outlying among the layer's neurons at that token, or only their product? Which channels of n make them up, and
how much of n there is the norm's own gain? Is the neuron driven at other tokens? Where does the residual channel that
the weight writes to become large and stay large, with the weight and without it (control: the weight nearest in size)?
How strongly does the next norm turn that channel down again?

The weight-only score needs no token: without the activation the output channel j is a quadratic form of n, and
sqrt(sum_i W_down[j,i]^2 |W_gate,i|^2 |W_up,i|^2) is its size with cross terms left out; its ratio to the layer's median
row was reported to be 27 to 38 in three models.

Look at: the products' rank against that of gate and up alone, and the residual channel with and without the weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from studfinder.edits import Weights, edited, zero
from studfinder.experiments.weights import SuperWeightConfig, controls_of, super_weights_of
from studfinder.models import LM, Writer
from studfinder.records import Chart, Plot, SuperWeight, Table, line
from studfinder.records.config import option
from studfinder.report.words import brief, number
from studfinder.sites import capture, module_inputs
from studfinder.studies.experiment import Bench, Experiment, Outcome


@dataclass(frozen=True, kw_only=True)
class SpikeConfig(SuperWeightConfig):
    """How much is shown."""

    channels: int = option(3, help="Channels that are named behind gate and up.", least=1)


EXPERIMENT = Experiment(
    name="super-weight/anatomy",
    paper="2411.07191",
    shows="ours",
    summary="What makes the super weight's input spike, and what becomes of its output?",
    needs="about 30 seconds with smollm2 on two cores (plus the scan that finds the weights)",
    presets={"cpu": SpikeConfig()},
)
_Gated = tuple[torch.Tensor, torch.Tensor, nn.Module]
"""W_gate (F,C), W_up (F,C) and the activation."""
_STATES = {"clean": "as it is", "without": "without the weight", "control": "without a control"}


def run(bench: Bench, lm: LM) -> Outcome:
    """Take each proven super weight apart at the token where it was found."""
    weights, findings = super_weights_of(bench, lm)
    seen = []
    for place, (weight, control) in enumerate(zip(weights, controls_of(lm, weights, findings), strict=True)):
        bench.progress("taking apart", place, len(weights))
        apart = partial(_apart, lm, weight, control, findings.ids_of(weight), bench.config.channels)
        seen.append(bench.once(str(weight), apart))
    tables = [_output_table(seen)]
    rows = [(one["weight"], repr(one["token"]), *part.values()) for one in seen for part in one.get("parts", [])]
    if rows:
        spike = Table(
            title="the input spike taken apart",
            columns=("weight", "token", "part", "value", "rank in layer", "x median neuron", "largest elsewhere"),
            rows=tuple(rows),
            note="At the weight's input neuron and the token where it was found. Rank 1: no neuron of the layer is "
            "larger there. Elsewhere: at the other tokens of the same text.",
        )
        tables.insert(0, spike)
    chart = Chart(name="residual", plots=tuple(map(_plot, seen)))
    return Outcome(tables, list(map(_note, seen)), [chart])


def _apart(lm: LM, weight: SuperWeight, control: Weights, text: Sequence[int], channels: int) -> dict[str, Any]:
    """Everything about one weight. Read here, because no measure reads the stream and the neurons at one token."""
    ids = torch.tensor([list(text)], device=lm.device)
    sites = [f"residual[{layer}]" for layer in range(len(lm.anatomy.layers))]
    seen: dict[str, Any] = {
        "weight": brief(weight),
        "token": weight.token,
        "layer": weight.layer,
        "control_index": list(control.entries[0]),
        "gains": _gains(lm, weight),
    }
    for state, target in (("clean", None), ("without", weight), ("control", control)):
        with nullcontext() if target is None else edited(lm, zero(target)):
            found = capture(lm, ids, sites)
        seen[state] = [float(found[site][0, weight.position, weight.row]) for site in sites]
        if target is None:
            seen["medians"] = [float(found[site].float().abs().median()) for site in sites]
    writers = lm.anatomy.layers[weight.layer].writers
    ref = writers[[ref.parameter for ref in writers].index(weight.parameter)]
    path = ref.module.rpartition(".")[0]
    parts = None if weight.expert is not None else _gated(lm, ref)
    if parts is None:
        return seen
    with module_inputs(lm, [path]) as kept, torch.no_grad():
        lm.model(input_ids=ids, use_cache=False)
    down_CF = ref.view(lm.model.get_parameter(ref.parameter)).detach().float()
    gate_FC, up_FC, _ = parts
    score_C = (down_CF.square() @ (gate_FC.norm(dim=1) * up_FC.norm(dim=1)) ** 2).sqrt()
    own = score_C[weight.row]
    return {
        **seen,
        **_spike(weight, parts, kept[path][0].float(), channels),
        "score": float(own / score_C.median()),
        "score_rank": int((score_C > own).sum()) + 1,
    }


def _gated(lm: LM, writer: Writer) -> _Gated | None:
    """The parts of an FFN; None if it has no gate that we know of."""
    ffn = lm.model.get_submodule(writer.module.rpartition(".")[0])
    act = getattr(ffn, "act_fn", None) or getattr(ffn, "activation_fn", None)
    if act is None or writer.gate is None or writer.up is None:
        return None
    width = writer.view(lm.model.get_parameter(writer.parameter)).shape[1]
    gate_FC, up_FC = (
        rows.ref.view(lm.model.get_parameter(rows.ref.parameter)).detach().float()[rows.first :: rows.step][:width]
        for rows in (writer.gate, writer.up)
    )
    return gate_FC, up_FC, act


def _spike(weight: SuperWeight, parts: _Gated, normed_TC: torch.Tensor, channels: int) -> dict[str, Any]:
    """The neuron's gate and up at its token, among the layer's neurons and the text's other tokens, and the channels
    that make each of them up, with their shares, the largest first."""
    gate_FC, up_FC, act = parts
    gate_TF, up_TF = normed_TC @ gate_FC.T, normed_TC @ up_FC.T
    with torch.no_grad():
        act_TF = act(gate_TF)
    named = {"gate": gate_TF, "act(gate)": act_TF, "up": up_TF, "act(gate) x up": act_TF * up_TF}
    at, k = weight.position, weight.col
    others = torch.arange(len(normed_TC)) != at
    rows = []
    for name, values_TF in named.items():
        size_F, elsewhere = values_TF[at].abs(), values_TF[others, k].abs()
        rows.append(
            {
                "part": name,
                "value": float(values_TF[at, k]),
                "rank": int((size_F > size_F[k]).sum()) + 1,
                "ratio": float(size_F[k] / size_F.median()),
                "elsewhere": float(elsewhere.max()) if len(elsewhere) else None,
            }
        )
    behind = []
    for matrix_FC in (gate_FC, up_FC):
        terms_C = normed_TC[at] * matrix_FC[k]
        top = terms_C.abs().topk(min(channels, len(terms_C))).indices.tolist()
        behind.append("; ".join(f"{channel} ({float(terms_C[channel] / terms_C.sum()):.0%})" for channel in top))
    return {"parts": rows, "behind": behind, "neurons": gate_TF.shape[1]}


def _gains(lm: LM, weight: SuperWeight) -> list[float]:
    """The gain, at the weight's output channel, of the norms that read the residual stream after its layer, each over
    its median gain."""
    ratios = []
    for layer in lm.anatomy.layers[weight.layer + 1 :]:
        for norm in layer.norms:
            gain_C = getattr(lm.model.get_submodule(norm.module), "weight", None)
            beside = norm.module.rpartition(".")[0] == layer.block  # others are inside attention
            if beside and isinstance(gain_C, torch.Tensor) and gain_C.shape == (lm.anatomy.hidden,):
                size_C = (gain_C.detach().float() + norm.offset).abs()
                ratios.append(float(size_C[weight.row] / size_C.median()))
    return ratios


def _output_table(seen: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for one in seen:
        gate, up = one.get("behind", (None, None))
        whole, rest, other = (abs(one[state][one["layer"]]) for state in _STATES)
        rows.append(
            {
                "weight": one["weight"],
                "channels behind gate": gate,
                "channels behind up": up,
                "row score / median row": one.get("score"),
                "rank of the row": one.get("score_rank"),
                "its channel is outlying from layer": _starts(one),
                "|a| there after its layer": whole,
                "without the weight": rest,
                "without a control": other,
                "later norms' gain / median": float(np.median(one["gains"])) if one["gains"] else None,
            }
        )
    return Table(
        title="what drives it, and what it writes to",
        columns=tuple(rows[0]),
        rows=tuple(tuple(row.values()) for row in rows),
        note="Channels of the normed residual stream, with their share of the sum (above 100 % where others work "
        "against it). Row score: the weight-only score. Outlying: over 100 and over 1,000 times the median |a| after "
        "the layer, at the weight's token and output channel.",
    )


def _starts(one: dict[str, Any]) -> int | str:
    large = (abs(value) > max(100, 1000 * median) for value, median in zip(one["clean"], one["medians"], strict=True))
    return next((layer for layer, there in enumerate(large) if there), "never")


def _note(one: dict[str, Any]) -> str:
    whole, rest, other = (number(abs(one[state][one["layer"]])) for state in _STATES)
    start = _starts(one)
    text = (
        f"{one['weight']} at {one['token']!r}: after its layer the residual channel stands at {whole}; without the "
        f"weight at {rest}, which becomes at most {number(max(map(abs, one['without'][one['layer'] :])))} in later "
        f"layers; without the control {one['control_index']} at {other}. The channel is outlying "
        f"{'nowhere' if start == 'never' else f'from layer {start} on'}."
    )
    if "parts" not in one:
        return text + " This FFN has no gate to take apart."
    gate, _, up, product = one["parts"]
    ranks = f"they rank {gate['rank']} and {up['rank']} of {one['neurons']:,} neurons"
    return (
        f"{text} The input spike is gate {number(gate['value'])} times up {number(up['value'])}: "
        f"{'both are the largest of the layer' if gate['rank'] == up['rank'] == 1 else ranks}; their product ranks "
        f"{product['rank']}, at {number(product['ratio'])} times the median neuron."
    )


def _plot(one: dict[str, Any]) -> Plot:
    """The residual channel by layer with the weight, without it and without a control."""
    layer, x = one["layer"], range(len(one["medians"]))
    series = [line(label, x, map(abs, one[state]), dotted=state == "control") for state, label in _STATES.items()]
    series.append(line("median |a| of the layer", x, one["medians"], quiet=True, dotted=True))
    below, y = "after layer (shaded: its own)", "|a| in its channel"
    shaded = (layer - 0.5, layer + 0.5)
    return Plot(kind="lines", series=tuple(series), title=one["weight"], x=below, y=y, log=True, shaded=shaded)
