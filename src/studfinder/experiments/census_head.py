"""What single entries of the output matrix carry, exactly: a number at zero there moves one logit only.

Taking out entry (v, c) moves the logit of token v by d = -h_c W_vc at each position, h being what enters the matrix.
With p the probability of v, the KL is log(1 + p (e^d - 1)) - p d: no second order, so what makes a rare token likely is
seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from studfinder.detectors.census import Spot
from studfinder.edits import Names
from studfinder.models import LM
from studfinder.records import Table
from studfinder.records.interval import Interval
from studfinder.sites import module_inputs

_TOGETHER = 1 << 24
"""Entries times positions worked on at a time."""


def head_carriers(lm: LM, windows: Sequence[Sequence[int]], threshold: float) -> list[tuple[Spot, float]] | None:
    """The entries of the output matrix whose KL at zero is above a threshold, the largest first, by what the matrix
    itself does: of a tied embedding the look-up comes besides. None where logits are not a plain product with it.

    Args:
        windows: token ids.
        threshold: in nats per token, over all positions but the last of each window.
    """
    head = lm.model.get_output_embeddings()
    names = {id(one): name for name, one in lm.model.named_parameters()}
    places = {module: name for name, module in lm.model.named_modules()}
    if head is None or not isinstance(getattr(head, "weight", None), torch.nn.Parameter):
        return None
    hidden, logs = [], []
    for ids in windows:
        with module_inputs(lm, [places[head]]) as inputs, torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([list(ids)], device=lm.device), use_cache=False).logits
            own = head(inputs[places[head]])
        if not torch.allclose(own, logits, rtol=1e-3, atol=1e-3):
            return None
        hidden.append(inputs[places[head]][0, :-1].float())
        logs.append(logits[0, :-1].double().log_softmax(-1))
    h_TC, log_TV, w_VC = torch.cat(hidden), torch.cat(logs), head.weight.detach().float()
    # Nothing with p e^|d| below the threshold at every position can carry as much: KL <= p e^|d|.
    most_V, reach_C = log_TV.amax(0), h_TC.abs().amax(0)
    v_N, c_N = (most_V[:, None] + w_VC.abs() * reach_C >= math.log(threshold)).nonzero(as_tuple=True)
    found = torch.empty(len(v_N))
    step = max(1, _TOGETHER // len(h_TC))
    for start in range(0, len(v_N), step):
        v, c = v_N[start : start + step], c_N[start : start + step]
        log_TN = log_TV[:, v]
        d_TN = -(h_TC[:, c] * w_VC[v, c]).double()
        kl_TN = torch.logaddexp((-log_TN.expm1()).log(), log_TN + d_TN) - log_TN.exp() * d_TN
        found[start : start + step] = kl_TN.mean(0).float()
    order = found.argsort(descending=True)[: int((found > threshold).sum())].tolist()
    name = names[id(head.weight)]
    return [((name, (int(v_N[at]), int(c_N[at]))), float(found[at])) for at in order]


def head_tables(
    lm: LM, carried: Sequence[tuple[Spot, float]], measured: Mapping[Spot, Interval], predicted: Mapping[Spot, float]
) -> list[Table]:
    """Which channels the entries that carry lie in, and some of them beside their measurement and prediction."""
    names = Names(lm)
    channels: dict[int, list[float]] = {}
    for (_, (_, channel)), kl in carried:
        channels.setdefault(channel, []).append(kl)
    most = sorted(channels.items(), key=lambda one: -len(one[1]))[:12]
    rows = tuple((channel, len(kls), max(kls), float(np.median(kls))) for channel, kls in most)
    note = (
        "Of the closed form, on our proof text: what the output matrix itself does, without the look-up of a tied one."
    )
    columns = ("channel", "entries", "the largest KL", "median")
    exact = dict(carried)
    beside = tuple((names.of(*spot), predicted.get(spot), exact[spot], kl) for spot, kl in measured.items())
    heads = ("number", "predicted KL", "closed form", "KL in nats per token")
    return [
        Table(title="entries of the output matrix that carry, by channel", columns=columns, rows=rows, note=note),
        Table(title="some of them, measured", columns=heads, rows=beside, note="Drawn at random; – is below the top."),
    ]
