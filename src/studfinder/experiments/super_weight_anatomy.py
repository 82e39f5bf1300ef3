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
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from studfinder.edits import Weights, edited, matched_controls, zero
from studfinder.experiments.experiment import Bench, Experiment, Outcome
from studfinder.experiments.gated_ffn import GatedFFN, gated_ffn
from studfinder.experiments.weights import super_weights_of
from studfinder.models import LM
from studfinder.records import Findings, Result, SuperWeight, Table
from studfinder.report.style import GREY, INK, VERMILLION, log_ticks, new_figure
from studfinder.report.words import brief, number
from studfinder.sites import capture, module_inputs

EXPERIMENT = Experiment(
    name="super-weight/anatomy",
    paper="2411.07191",
    shows="ours",
    summary="What makes the super weight's input spike, and what becomes of its output?",
    needs="about 30 seconds with smollm2 on two cores (plus the scan that finds the weights)",
    presets={"cpu": {"channels": 3}},
)


def run(bench: Bench) -> Outcome:
    """Take each proven super weight apart at the token where it was found."""
    outcome = Outcome([])
    for name in bench.models:
        with bench.model(name) as lm:
            weights, findings = super_weights_of(bench, lm)
            taken = [weight.index for weight in weights]
            seen = []
            for place, weight in enumerate(weights):
                bench.progress("taking apart", place, len(weights))
                control = matched_controls(lm, weight, findings, count=1, exclude=taken)[0]
                seen.append(bench.once(str(weight), partial(_apart, bench, lm, weight, control, findings)))
            bench.progress("taken apart", len(weights), len(weights))
        _report(outcome, name, seen)
    return outcome


def _apart(bench: Bench, lm: LM, weight: SuperWeight, control: Weights, findings: Findings) -> dict[str, Any]:
    ids = torch.tensor([findings.ids_of(weight)], device=lm.device)
    sites = [f"residual[{layer}]" for layer in range(len(lm.anatomy.layers))]
    traces, medians = {}, []
    for state, target in (("clean", None), ("without", weight), ("control", control)):
        if target is None:
            found = capture(lm, ids, sites)
            medians = [float(found[site].float().abs().median()) for site in sites]
        else:
            with edited(lm, zero(target)):
                found = capture(lm, ids, sites)
        traces[state] = [float(found[site][0, weight.position, weight.row]) for site in sites]
    seen: dict[str, Any] = {
        "weight": brief(weight),
        "value": weight.value,
        "token": weight.token,
        "position": weight.position,
        "layer": weight.layer,
        "control_index": list(control.entries[0]),
        "spike": weight.input_spike,
        "medians": medians,
        **traces,
    }
    seen.update(_meets(lm, weight))
    parts = gated_ffn(lm, weight.layer, _writer(lm, weight)) if weight.expert is None else None
    if parts is not None:
        with module_inputs(lm, [parts.module]) as kept, torch.no_grad():
            lm.model(input_ids=ids, use_cache=False)
        normed_TC = kept[parts.module][0].float()
        seen.update(_spike(bench, weight, parts, normed_TC))
        seen.update(_score(lm, weight, parts))
    return seen


def _writer(lm: LM, weight: SuperWeight) -> int:
    return [ref.parameter for ref in lm.anatomy.layers[weight.layer].writers].index(weight.parameter)


def _spike(bench: Bench, weight: SuperWeight, parts: GatedFFN, normed_TC: torch.Tensor) -> dict[str, Any]:
    """The neuron's gate and up at its token, among the layer's neurons and the text's other tokens."""
    gate_TF, up_TF = normed_TC @ parts.gate_FC.T, normed_TC @ parts.up_FC.T
    with torch.no_grad():
        act_TF = parts.act(gate_TF)
    product_TF = act_TF * up_TF
    at, k = weight.position, weight.col
    named = {"gate": gate_TF, "act(gate)": act_TF, "up": up_TF, "act(gate) x up": product_TF}
    others = torch.arange(len(normed_TC)) != at
    rows = []
    for name, values_TF in named.items():
        size_F = values_TF[at].abs()
        elsewhere = values_TF[others, k].abs()
        rows.append(
            {
                "part": name,
                "value": float(values_TF[at, k]),
                "rank": int((size_F > size_F[k]).sum()) + 1,
                "ratio": float(size_F[k] / size_F.median()),
                "elsewhere": float(elsewhere.max()) if len(elsewhere) else None,
            }
        )
    channels = {
        name: _shares(normed_TC[at] * matrix[k], bench.settings["channels"])
        for name, matrix in (("gate", parts.gate_FC), ("up", parts.up_FC))
    }
    return {"parts": rows, "channels": channels, "neurons": gate_TF.shape[1]}


def _shares(terms_C: torch.Tensor, count: int) -> list[list[float]]:
    """The channels that make up a sum: [channel, share], the largest first."""
    top = terms_C.abs().topk(min(count, len(terms_C))).indices.tolist()
    return [[channel, float(terms_C[channel] / terms_C.sum())] for channel in top]


def _score(lm: LM, weight: SuperWeight, parts: GatedFFN) -> dict[str, Any]:
    """The weight-only score of the row over the median row of its layer, and its rank."""
    ref = lm.anatomy.layers[weight.layer].writers[_writer(lm, weight)]
    down_CF = ref.view(lm.model.get_parameter(ref.parameter)).detach().float()
    scale_F = (parts.gate_FC.norm(dim=1) * parts.up_FC.norm(dim=1)) ** 2
    score_C = (down_CF.square() @ scale_F).sqrt()
    own = score_C[weight.row]
    return {"score": float(own / score_C.median()), "score_rank": int((score_C > own).sum()) + 1}


def _meets(lm: LM, weight: SuperWeight) -> dict[str, Any]:
    """The gain, at the weight's output channel, of the norms that read the residual stream after its layer; relative to
    the norm's median gain, the least and the median over those norms."""
    ratios = []
    for layer in lm.anatomy.layers[weight.layer + 1 :]:
        for name, module in lm.model.get_submodule(layer.block).named_children():
            gain_C = getattr(module, "weight", None)
            if "norm" in name and isinstance(gain_C, torch.Tensor) and gain_C.shape == (lm.anatomy.hidden,):
                # Gemma multiplies by 1 + weight; what its parameter is called does not tell, its class does.
                size_C = (gain_C.detach().float() + (1.0 if "Gemma" in type(module).__name__ else 0.0)).abs()
                ratios.append(float(size_C[weight.row] / size_C.median()))
    return {"gains": ratios}


def _report(outcome: Outcome, name: str, seen: Sequence[dict[str, Any]]) -> None:
    names = ("part", "value", "rank", "ratio", "elsewhere")
    rows = [
        (one["weight"], repr(one["token"]), *(part[key] for key in names))
        for one in seen
        for part in one.get("parts", [])
    ]
    if rows:
        outcome.tables.append(
            Table(
                title=f"{name}: the input spike taken apart",
                columns=("weight", "token", "part", "value", "rank in layer", "x median neuron", "largest elsewhere"),
                rows=tuple(rows),
                note="At the weight's input neuron and the token where it was found. Rank 1: no neuron of the layer is "
                "larger there. Elsewhere: at the other tokens of the same text.",
            )
        )
    outcome.tables.append(_output_table(name, seen))
    for one in seen:
        outcome.notes.append(_note(name, one))
    outcome.data[name] = [
        {key: one[key] for key in ("weight", "layer", "clean", "without", "control", "medians")} for one in seen
    ]


def _output_table(name: str, seen: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for one in seen:
        channels = [_listed(one["channels"][part]) if "parts" in one else None for part in ("gate", "up")]
        gain = float(np.median(one["gains"])) if one["gains"] else None
        rows.append(
            (
                one["weight"],
                *channels,
                one.get("score"),
                one.get("score_rank"),
                _starts(one),
                *(abs(one[state][one["layer"]]) for state in ("clean", "without", "control")),
                gain,
            )
        )
    return Table(
        title=f"{name}: what drives it, and what it writes to",
        columns=(
            "weight",
            "channels behind gate",
            "channels behind up",
            "row score / median row",
            "rank of the row",
            "its channel is outlying from layer",
            "|a| there after its layer",
            "without the weight",
            "without a control",
            "later norms' gain / median",
        ),
        rows=tuple(rows),
        note="Channels of the normed residual stream, with their share of the sum (above 100 % where others work "
        "against it). Row score: the weight-only score. Outlying: over 100 and over 1,000 times the median |a| after "
        "the layer, at the weight's token and output channel.",
    )


def _listed(channels: Sequence[Sequence[float]]) -> str:
    return "; ".join(f"{int(channel)} ({share:.0%})" for channel, share in channels)


def _starts(one: dict[str, Any]) -> int | str:
    for layer, (value, median) in enumerate(zip(one["clean"], one["medians"], strict=True)):
        if abs(value) > 100 and abs(value) > 1000 * median:
            return layer
    return "never"


def _note(name: str, one: dict[str, Any]) -> str:
    whole, rest, other = (abs(one[state][one["layer"]]) for state in ("clean", "without", "control"))
    later = max(map(abs, one["without"][one["layer"] :]))
    start = _starts(one)
    text = (
        f"{name}, {one['weight']} at {one['token']!r}: after its layer the residual channel stands at {number(whole)}; "
        f"without the weight at {number(rest)}, which becomes at most {number(later)} in later layers; without the "
        f"control {one['control_index']} at {number(other)}. The channel is outlying "
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


def draw(result: Result, width: float) -> dict[str, Figure]:
    """The residual channel by layer with the weight, without it and without a control; a panel a weight."""
    figures = {}
    wide = width > 600
    for place, (name, seen) in enumerate(result.data.items()):
        columns = min(len(seen), 2) if wide else 1
        rows = -(-len(seen) // columns)
        figure = new_figure(width, 70 + 220 * rows)
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
        for axes in panels[len(seen) :]:
            axes.set_visible(False)
        for axes, one in zip(panels, seen, strict=False):
            x = np.arange(len(one["clean"]))
            for state, colour, style, label in (
                ("clean", INK, "-", "as it is"),
                ("control", GREY, "--", "without a control"),
                ("without", VERMILLION, "-", "without the weight"),
            ):
                axes.plot(x, np.abs(one[state]), style, color=colour, linewidth=2, label=label)
            axes.plot(x, one["medians"], color=GREY, linewidth=1, linestyle=":", label="median |a| of the layer")
            axes.axvline(one["layer"], color=GREY, linewidth=1)
            axes.set(yscale="log", title=one["weight"])
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            log_ticks(axes.yaxis, most=6)
        figure.supxlabel(f"after layer ({name})", fontsize=12)
        figure.supylabel("|a| in its output channel", fontsize=12)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=4 if wide else 2)
        figures["residual" if not place else f"residual-{place + 1}"] = figure
    return figures
