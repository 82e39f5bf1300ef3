"""The paper's Theorem 2 by hand: one layer of KV shift is an induction head (arXiv 2411.19574, section 3.3).

With a = (0, 1), b = (1, 0), identity matrices and ALiBi of slope m, token L attends to the successor of every
earlier copy of itself and reads it:

    IH(x) = sum over s = 2 .. L-1 of softmax(x_L . x_(s-1) / sigma - m |L - s|) x_s

The theorem says that attention equals IH. Real attention also looks at s = 1, whose shifted key is the zero
vector, and at s = L, the last token itself; this measures by how much that changes the result. (The theorem
prints b1 = 1 / sigma; with b1 = 1 the sum comes out as defined, and 1 / sigma belongs to the scores.)
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from studfinder.attention import ALiBi, KVShift, convert
from studfinder.records import Table
from studfinder.records.config import option
from studfinder.studies.experiment import Bench, Experiment, Outcome, StudyConfig


@dataclass(frozen=True, kw_only=True)
class TheoremCase:
    """One row of the table: length L, vocabulary V, width d, sharpness 1 / sigma, slope m."""

    length: int
    vocabulary: int
    width: int
    sharpness: float
    slope: float


SETTINGS = (
    TheoremCase(length=64, vocabulary=64, width=64, sharpness=10, slope=0.01),
    TheoremCase(length=64, vocabulary=64, width=64, sharpness=20, slope=0.01),
    TheoremCase(length=64, vocabulary=64, width=64, sharpness=40, slope=0.01),
    TheoremCase(length=512, vocabulary=512, width=512, sharpness=10, slope=0.01),
    TheoremCase(length=512, vocabulary=512, width=512, sharpness=20, slope=0.01),
    TheoremCase(length=512, vocabulary=512, width=512, sharpness=40, slope=0.01),
    TheoremCase(length=512, vocabulary=512, width=512, sharpness=40, slope=0.1),
    TheoremCase(length=512, vocabulary=512, width=64, sharpness=40, slope=0.01),
    TheoremCase(length=512, vocabulary=512, width=16, sharpness=40, slope=0.01),
)


@dataclass(frozen=True, kw_only=True)
class TheoryConfig(StudyConfig):
    """How much is drawn; nothing is trained."""

    sequences: int = option(200, help="Random sequences a row.", least=1)


EXPERIMENT = Experiment(
    trains=True,
    name="kv-shift/theory",
    paper="2411.19574",
    shows="theorem 2",
    summary="Is one layer of KV shift, with the theorem's weights, the induction head that it is said to be?",
    needs="a minute on two cores (no model is loaded or trained: the weights are written by hand)",
    presets={"cpu": TheoryConfig()},
)


def run(bench: Bench) -> Outcome:
    """The settings of `SETTINGS`, one after the other."""
    rows, found = [], []
    for place, setting in enumerate(SETTINGS):
        step = partial(compared, setting, bench.config.sequences, bench.config.seed)
        found.append(bench.once("-".join(map(str, dataclasses.astuple(setting))), step))
        rows.append((*dataclasses.astuple(setting), *found[-1].values()))
        bench.progress("settings", place + 1, len(SETTINGS))
    table = Table(
        title="Attention beside the sum of the theorem",
        columns=(
            *("L", "V", "d", "1/sigma", "m", "largest difference to IH", "typical difference"),
            *("weight on s = 1", "weight on s = L", "copied: KV shift", "copied: IH", "copied: plain attention"),
        ),
        rows=tuple(rows),
        note=f"fp64, {bench.config.sequences} random sequences a row. The last token occurred before, and the "
        "head has to copy what followed its latest copy. Where d = V tokens are orthogonal, otherwise random unit "
        "vectors. The module is the one that `convert` installs; IH is computed literally.",
    )
    return Outcome([table], data={"settings": found})


def induction_head(setting: TheoremCase, shifted: bool = True) -> Any:
    """One attention module with the theorem's weights, made of the parts that `convert` installs.

    Args:
        setting: the sizes.
        shifted: False gives the same module with a = (1, 0): plain attention.
    """
    config = LlamaConfig(
        hidden_size=setting.width,
        intermediate_size=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=1,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = convert(LlamaForCausalLM(config), KVShift())
    convert(model, ALiBi(slope=setting.slope, init="fresh"))
    attention: Any = model.model.layers[0].self_attn.double()
    attention.scaling = setting.sharpness
    with torch.no_grad():
        for side in "qkvo":
            torch.nn.init.eye_(getattr(attention, f"{side}_proj").weight)
        attention.kv_shift.key_current.fill_(0.0 if shifted else 1.0)
        attention.kv_shift.key_previous.fill_(1.0 if shifted else 0.0)
    return attention


def definition(x_BTD: torch.Tensor, setting: TheoremCase) -> torch.Tensor:
    """IH(x), literally: the sum over s = 2 .. L-1, (B, D)."""
    length = x_BTD.shape[1]
    s = torch.arange(2, length)  # 1-based, as printed
    last, earlier, here = x_BTD[:, -1], x_BTD[:, s - 2], x_BTD[:, s - 1]
    scores = torch.einsum("bd,bsd->bs", last, earlier) * setting.sharpness - setting.slope * (length - s).to(last.dtype)
    return torch.einsum("bs,bsd->bd", torch.softmax(scores, dim=-1), here)


@torch.no_grad()
def compared(setting: TheoremCase, sequences: int = 200, seed: int = 0) -> dict[str, float]:
    """How far attention is from IH, and how often each copies what followed the last earlier copy of token
    L."""
    draw = torch.Generator().manual_seed(seed)
    table = torch.nn.functional.normalize(
        torch.randn(setting.vocabulary, setting.width, generator=draw, dtype=torch.float64), dim=-1
    )
    if setting.width >= setting.vocabulary:
        table = torch.eye(setting.vocabulary, setting.width, dtype=torch.float64)
    ids = torch.randint(0, setting.vocabulary, (sequences, setting.length), generator=draw)
    # The last token has occurred before, and not directly before.
    planted = torch.randint(0, setting.length - 2, (sequences,), generator=draw)
    ids[:, -1] = ids[torch.arange(sequences), planted]
    ids[:, -2] = torch.where(ids[:, -2] == ids[:, -1], (ids[:, -1] + 1) % setting.vocabulary, ids[:, -2])
    place = torch.arange(setting.length - 1)
    latest = torch.where(ids[:, :-1] == ids[:, -1:], place, -1).amax(dim=1)
    answer = ids[torch.arange(sequences), latest + 1]

    x = table[ids]
    exact = definition(x, setting)
    attended = _last(induction_head(setting), x)
    plain = _last(induction_head(setting, shifted=False), x)
    # What the two extra terms weigh, from the same scores.
    keys = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
    distance = torch.arange(setting.length - 1, -1, -1, dtype=torch.float64)
    scores = torch.einsum("bd,bsd->bs", x[:, -1], keys) * setting.sharpness - setting.slope * distance
    weights = torch.softmax(scores, dim=-1)
    return {
        "largest": float((attended - exact).abs().max()),
        "typical": float((attended - exact).abs().amax(dim=-1).median()),
        "first": float(weights[:, 0].mean()),
        "last": float(weights[:, -1].mean()),
        "shift": _accuracy(attended, table, answer),
        "definition": _accuracy(exact, table, answer),
        "plain": _accuracy(plain, table, answer),
    }


def _last(attention: Any, x_BTD: torch.Tensor) -> torch.Tensor:
    nothing = (torch.ones(1, 1, 1, dtype=x_BTD.dtype),) * 2  # ALiBi turns nothing
    outs = [attention(part, position_embeddings=nothing)[0][:, -1] for part in x_BTD.split(20)]
    return torch.cat(outs)


def _accuracy(out_BD: torch.Tensor, table_VD: torch.Tensor, answer_B: torch.Tensor) -> float:
    return float(((out_BD @ table_VD.T).argmax(dim=-1) == answer_B).double().mean())
