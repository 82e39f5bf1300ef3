"""The quantisers' experiments, from end to end, on a tiny model with a planted super weight."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from experimented import run
from safetensors.torch import save_file

from proving import provable
from rerun import put
from studfinder.edits import edited, zero
from studfinder.errors import StudfinderError
from studfinder.experiments import massive_values_keep
from studfinder.experiments.massive_values_quantization import FigureConfig, _claims
from studfinder.experiments.quantize_keeps import other_neurons
from studfinder.experiments.quantize_phase import Shifted, shifts
from studfinder.experiments.quantize_preserved import SPIKE, Preserved
from studfinder.experiments.quantize_transforms import Unrounded, _cache, _changes
from studfinder.experiments.skill import Skills
from studfinder.experiments.super_weight_activation_quantization import _judged
from studfinder.experiments.super_weight_block_size import Runs, _place, layout, moved
from studfinder.experiments.weights import load_findings, scan_of
from studfinder.measures import Scores
from studfinder.models import cached_content_hash, load
from studfinder.quantizers import RTN, ClipRestore, KVCache, MassiveRows, Scheme, hold_out, quantized, skip, targets
from studfinder.quantizers.keep import as_keeps
from studfinder.quantizers.rtn import round_to_nearest
from studfinder.records import Comparison, Interval, MassiveValue, to_json
from studfinder.runs import Steps
from studfinder.stats import mean_interval
from studfinder.studies import KL, Divergence, Grid, GridScores, ModelVariant, Original
from studfinder.studies.experiment import StudyConfig
from studfinder.studies.frontier import Member, steps, verdict
from studfinder.studies.rounding import ORIGINAL, Rounding
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.scan import plan_scan, run_scan, scan_run
from tasked import choices, write


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model with one super weight and a scan of it that all experiments share, and text to calibrate on."""
    folder = tmp_path_factory.mktemp("quantize")
    random = np.random.default_rng(0)
    words = "\n".join("".join(chr(c) for c in random.integers(97, 123, size=60)) for _ in range(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("studfinder.verbs.scan._has_gradients", lambda _: False)  # no census, as in every test
        patch.setenv("STUDFINDER_CACHE", str(folder / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("STUDFINDER_DATA", str(folder / "data"))
        write(folder / "data", "choice/piqa.jsonl", choices(8, 2))
        (folder / "calibration.txt").write_text(words)
        lm = provable("llama", planted=True)[0]
        lm.model.config.max_position_embeddings = 1024  # windows of perplexity are longer than a tiny model's context
        tokenizer = copy.deepcopy(lm.tokenizer)
        tokenizer.eos_token = "?"
        lm = load(lm.model, tokenizer)
        plan = plan_scan(lm, ScanConfig(), cached_content_hash)
        put(scan_run(plan), to_json(run_scan(plan)[0]))  # its report takes seconds
        yield lm, folder


BENCH: Any = SimpleNamespace(scans=Path("runs"), progress=lambda *_: None)
"""What finding a scan needs of a bench, where one is there already."""


def small(folder):
    """Settings of calibration text."""
    return {"calibration": str(folder / "calibration.txt"), "calibration_windows": 3, "length": 24, "pieces": 2}


def test_pareto(planted):
    lm, folder = planted
    result = run(
        "quantize/pareto",
        lm,
        folder,
        **{name: value for name, value in small(folder).items() if name != "pieces"},
        limit=10,
        text="proof",
        elements="3,8",
        blocks="16,channel",
        zeros="none,integer",
        held="0.01",
        method_blocks="16",
        phases=2,
    )
    every = result.tables[2]
    rows = {row[0]: row for row in every.rows}
    assert rows["RTN int8 g16 none"][1] == pytest.approx(8 + 16 / 16)
    assert rows["RTN int3 g16 integer"][1] == pytest.approx(3 + 19 / 16)
    assert rows["RTN clip int3 g16 integer, keep .01 of all"][1] > rows["RTN clip int3 g16 integer"][1]
    assert {"GPTQ", "AWQ", "SmoothQuant", "CLIP-restore"} <= {label.split()[0] for label in rows}
    assert any("judge on groups of 64" in note for note in result.notes)
    phase = result.tables[3].rows
    assert len(phase) == 3  # begun at 0, and two shifts


def member(label, bits, loss, seed):
    nll = np.random.default_rng(seed).normal(loss, 0.01, 16) * 100
    return Member(label, bits, nll, np.full(16, 100.0))


def test_frontier_says_below_only_where_it_is():
    plain = [member("a", 2.2, 4.0, 0), member("b", 4.2, 3.0, 1)]
    better = [member("A", 2.4, 3.5, 2), member("B", 4.1, 2.9, 3)]
    found = steps(plain, better, 2.5, 8.5)
    assert [(step.plain, step.kept) for step in found] == [("a", "A"), ("a", "B"), ("b", "B")]
    assert "on or below" in verdict(found)
    assert "strictly below" in verdict(found)
    worse = [member("C", 2.4, 4.5, 4)]
    assert "above" in verdict(steps(plain, worse, 2.5, 8.5))
    assert "nowhere" in verdict(steps(plain, worse, 2.5, 8.5))
    late = [member("D", 3.0, 2.0, 5)]
    assert "nothing kept that costs so little at 2.500 to 3.000" in verdict(steps(plain, late, 2.5, 8.5))
    few = [Member(m.label, m.bits, m.nll[:2], m.tokens[:2]) for m in plain + better]
    assert "too few" in verdict(steps(few[:2], few[2:], 2.5, 8.5))


def test_frontier_is_not_judged_on_what_chose_it():
    """Of many equal members the luckiest is not better."""
    plain = [member("one", 4.0, 3.0, 99)]
    lucky = [Member(f"{i}", 4.0, member("", 0, 3.0, i).nll, np.full(16, 100.0)) for i in range(200)]
    (step,) = steps(plain, lucky, 4.0, 5.0)
    assert step.ratio.low <= 1 <= step.ratio.high


def test_shifted_groups():
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    held = weight.abs() > 2
    rtn = RTN(scheme=Scheme(element="int3", block=8, zero="integer"))
    here = Shifted(rtn=rtn).rounded(weight, held).dequantized()
    assert torch.equal(here, round_to_nearest(weight, rtn, held).dequantized())
    moved = Shifted(rtn=rtn, shift=3).rounded(weight, held).dequantized()
    assert torch.equal(moved[held], weight[held])
    assert not torch.equal(moved, here)
    # The second group of the shifted columns is columns 5 to 12.
    alone = round_to_nearest(weight[:, 5:13].contiguous(), rtn, held[:, 5:13].contiguous()).dequantized()
    assert torch.equal(moved[:, 5:13], alone)
    assert shifts(64, 3) == [16, 32, 48]


def test_block_size(planted):
    lm, folder = planted
    layouts = "int8:runs:8,int4:tiles:16,int4:tensor"
    more = {"text": "proof", "layouts": layouts, "tasks": "piqa", "candidates": "inf,4", "fixed": "4,3"}
    result = run("super-weight/block-size", lm, folder, **small(folder), limit=3, **more)
    scores, against, closer, _, alone = result.tables
    rows = {row[0]: row for row in scores.rows}
    assert rows["original"][3].value == 0.0
    assert rows["int4:tensor: RTN"][1] == pytest.approx(4, abs=0.1)
    assert rows["int4:tensor: hold out the super weights"][2].value < rows["int4:tensor: RTN"][2].value
    assert len(against.rows) == 3 * 3
    # The largest blocks that are of use are gone into.
    useful = [text for text in layouts.split(",") if rows[f"{text}: RTN"][2].value < 2 * rows["original"][2].value]
    assert {row[0].partition(": ")[0] for row in closer.rows[1:]} == {useful[-1]}
    assert {"piqa", "average of tasks"} <= set(closer.columns)
    assert [row[0].partition(": ")[2] for row in closer.rows[5:]] == [
        "CLIP, restore the super weights",
        "CLIP, restore others",
        "CLIP, restore nothing",
        "CLIP at z = 4, restore the super weights",
        "CLIP at z = 3, restore the super weights",
    ]
    # The planted weight is the largest of its matrix.
    assert [row[2] for row in alone.rows] == ["yes"] * len(alone.rows)
    assert any("RESTORE alone is a no-op by construction" in note for note in result.notes)
    claims = {one.claim.key: one for one in result.claims}
    grows = claims["super-weight/blocks-grow"]
    assert grows.number.value == pytest.approx(grows.effect.interval.value - grows.control.interval.value)
    assert claims.keys() == {f"super-weight/{name}" for name in ("blocks-grow", "clip-restore", "searched-clip")}


@pytest.mark.parametrize(
    ("factors", "place"),
    [
        ({"int5:runs:64": 1.2, "int5:tiles:128": 1.9, "int4:runs:256": 2.5, "int4:tensor": 9.0}, "int5:tiles:128"),
        ({"int8:tensor": 1.1, "int5:runs:64": 1.2}, "int8:tensor"),
        ({"int4:runs:32": 3.0, "int4:runs:64": 6.0}, "int4:runs:32"),
    ],
)
def test_clip_is_tried_where_the_largest_blocks_are_of_use(factors, place):
    def change(_measure, label):
        value = factors[label.removesuffix(": RTN")]
        return Comparison(kind="ratio", interval=Interval(value=value, low=0, high=99, level=0.95, n=4, method=""))

    scored: Any = SimpleNamespace(change=change)
    assert _place(scored, list(factors), "perplexity:proof") == (place, factors[place])


@pytest.mark.parametrize("text", ["int4:runs:0", "int4:tiles", "runs:4", "int4:runs:4:4", "int4:blocks:4"])
def test_no_layout(text):
    with pytest.raises(StudfinderError, match="expected int4:runs:64"):
        layout(text)


@pytest.mark.parametrize(("kind", "block"), [(Runs, 25), (ClipRestore, (3, 5)), (ClipRestore, "tensor"), (Runs, 7)])
def test_restoring_an_extremum_that_set_the_range_changes_nothing(kind, block):
    """A minimum and a maximum are codes, so that RESTORE undoes nothing there; elsewhere it does."""
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    method = kind(scheme=Scheme(element="int4", block=block, zero="float", scale="float32", remainder="block"))
    made = method.rounded(weight, inf).dequantized()
    found = {place: moved(method, weight, *place) for place in np.ndindex(6, 10)}
    extrema = [place for place, (extremum, _) in found.items() if extremum]
    assert len(extrema) == 2 * method.rounded(weight, inf).grid.scale.numel()
    for place, (extremum, off) in found.items():
        assert off <= 0.501
        if extremum:
            restored = made.clone()
            restored[place] = weight[place]
            torch.testing.assert_close(restored, made, atol=1e-6, rtol=0)
            assert off < 1e-4
    assert max(off for _, off in found.values()) > 0.3
    # Clipped first, an extremum is moved, and restoring it does something.
    place = extrema[0]
    assert (method.rounded(weight, 1.0).dequantized()[place] - weight[place]).abs() > 0.1


def test_runs_go_on_where_rows_end():
    weight = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    scheme = Scheme(element="int4", block=25, zero="float", scale="float32", remainder="block")
    found = Runs(scheme=scheme).rounded(weight, inf)
    for start in (0, 25, 50):
        run_ = weight.flatten()[start : start + 25]
        step = (run_.max() - run_.min()) / 15
        made = ((run_ - run_.min()) / step).round() * step + run_.min()
        assert torch.allclose(found.dequantized().flatten()[start : start + 25], made, atol=1e-6)
    assert found.bits == pytest.approx(4 + 3 * 64 / 60)


def test_formats(planted):
    lm, folder = planted
    result = run(
        "quantize/formats",
        lm,
        folder,
        limit=3,
        pieces=2,
        text="proof",
        formats="w4-channel,nvfp4,w8-tensor",
        fraction=0.01,
    )
    scores, kept, _ = result.tables
    rows = {row[0]: row for row in scores.rows}
    size = sum(target.weight(lm).numel() for target in targets(lm))
    count = len(load_findings(BENCH, lm).proven)
    for format in ("w4-channel", "w8-tensor"):  # a kept number costs 16 bits and the 32 of its place
        kept_bits = rows[f"{format}, keep the super weights"][1]
        assert kept_bits - rows[format][1] == pytest.approx(48 * count / size)
    labels = [row[0] for row in kept.rows]
    assert "nvfp4, keep the super weights" in labels
    assert "nvfp4, keep as many other weights" in labels
    assert "nvfp4, keep the largest 1 %" in labels


def test_massive_rows(planted):
    lm, _ = planted
    values = [
        MassiveValue(layer=1, tensor=tensor, head=1, dim=2, norm=1.0, ratio=9.0) for tensor in ("query", "key", "value")
    ]
    findings = replace(load_findings(BENCH, lm), massive_values=tuple(values))
    # Dims 2 and 6 of a head of 8 rotate together.
    rows = {f"model.layers.1.self_attn.{name}_proj.weight": ((10, None), (14, None)) for name in ("q", "k")}
    assert {one.parameter: one.entries for one in MassiveRows(findings=findings).of(lm)} == rows
    (kept,) = as_keeps(lm, MassiveRows(findings=findings, tensors=("key",)))
    assert [one.parameter for one in kept.entries] == ["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(StudfinderError, match="no massive values of key"):
        MassiveRows(findings=replace(findings, massive_values=tuple(values[:1])), tensors=("key",)).of(lm)
    with pytest.raises(StudfinderError, match="value"):
        MassiveRows(findings=findings, tensors=("value",))


@pytest.fixture
def massive_scan(planted, monkeypatch):
    """The scan's findings with some massive values of Q and K besides."""
    lm, _ = planted
    values = [
        MassiveValue(layer=layer, tensor=tensor, head=1, dim=2, norm=1.0, ratio=9.0)
        for layer in range(3)
        for tensor in ("query", "key")
    ]
    findings = replace(load_findings(BENCH, lm), massive_values=tuple(values))
    monkeypatch.setattr(massive_values_keep, "load_findings", lambda *_, **more: findings)
    return planted


def test_keeping_massive_values_against_what_else_its_bits_buy(massive_scan):
    lm, folder = massive_scan
    settings = {"schemes": "w4-channel", "context": "lookup:2", "items": 4, "pieces": 2}
    result = run("massive-values/keep", lm, folder, **{**small(folder), **settings})
    scores, against = result.tables
    bits = {row[0]: row[1] for row in scores.rows}
    for kind in ("the rows of Q and K", "the rows of K"):
        kept = bits[f"w4-channel, {kind}"]
        assert kept == bits[f"w4-channel, {kind}: as many others"]
        assert bits["w4-channel"] < bits[f"w4-channel, {kind}: smaller blocks instead"] < kept
    assert bits["int4 cache, the massive dims of K kept"] == bits["int4 cache, as many other dims of K kept"]
    assert [row[:2] for row in against.rows if row[0] == "w4-channel, the rows of K"] == [
        ("w4-channel, the rows of K", other)
        for other in (
            "w4-channel",
            "w4-channel, the rows of K: as many others",
            "w4-channel, the rows of K: smaller blocks instead",
        )
    ]
    assert [one.claim.key.partition("/")[2] for one in result.claims] == ["keep-rows", "keep-key-rows", "keep-cache"]
    for one in result.claims:
        difference = one.effect.interval.value - one.control.interval.value
        assert one.number.value == pytest.approx(difference)


def test_a_model_without_massive_values_has_none_to_keep(planted, tmp_path):
    lm, folder = planted
    settings = {"schemes": "w4-channel", "context": "lookup:2", "items": 4, "pieces": 2, "cache": ""}
    result = run("massive-values/keep", lm, tmp_path, **{**small(folder), **settings})
    assert [row[0] for row in result.tables[0].rows] == ["original", "w4-channel"]
    assert all(one.verdict == "not decided" and "nothing of the kind" in one.why for one in result.claims)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_other_neurons_are_of_the_same_matrix(architecture):
    lm = provable(architecture, planted=False)[0]
    for number, ref in enumerate(lm.anatomy.layers[1].writers):
        weights: Any = [SimpleNamespace(layer=1, parameter=ref.parameter, expert=ref.expert, col=col) for col in (3, 7)]
        found = other_neurons(lm, weights)
        assert {(layer, writer) for layer, _, writer in found} == {(1, number)}
        assert len({col for _, col, _ in found} - {3, 7}) == 2


def test_kv_cache(planted):
    lm, folder = planted
    result = run("quantize/kv-cache", lm, folder, **small(folder), limit=3, text="proof", elements="int4", passkey="")
    scores, against = result.tables
    rows = {row[0]: row for row in scores.rows}
    assert rows["int4"][1] == pytest.approx(4 + 32 / 8)
    assert rows["int4, the first token kept"][1] > rows["int4"][1]
    # A constant that all keys share leaves a softmax as it is: what is dropped need not be added.
    added, dropped = (rows[f"int4, keys centred{end}"][2].value for end in ("", ", the constant dropped"))
    assert added == pytest.approx(dropped, rel=1e-3)
    assert len(against.rows) >= 7


def test_activation_quantization(planted):
    lm, folder = planted
    result = run(
        "super-weight/activation-quantization",
        lm,
        folder,
        **{**small(folder), "pieces": 4},
        limit=3,
        texts="proof",
        alphas="0.5,0.85",
    )
    scores, against, shares = result.tables
    rows = {row[0]: row for row in scores.rows}
    changes = {row[0]: row[2].interval for row in against.rows}  # KL
    kinds = [f"activations alone, {kind}" for kind in ("per token", "per tensor", "static")]
    assert len({rows[f"naive, {kind}"][3].value for kind in kinds}) == 3
    assert {rows[f"naive, {kind}"][1] for kind in kinds} == {32.0}  # the weights are as they were
    assert rows["naive, W8A8, per token"][1] == pytest.approx(8, abs=0.1)
    assert changes[f"naive but for attention's products, {kinds[0]}"].value != 0
    # The planted weight's spike sets the range of everything that reads it.
    ours, others = (
        {row[0]: row[1].interval for row in against.rows}[f"{label}, activations alone, per tensor"]
        for label in ("REPLACE-RESTORE, median of the token", "other channels held out")
    )
    assert ours.high < 1
    assert ours.value < others.value
    assert len(shares.rows) == 2 * 4
    helps, share = result.claims
    assert helps.number.value == pytest.approx(helps.effect.interval.value - helps.control.interval.value)
    if share.number is None:
        assert "there is no gain to share" in share.why
    else:
        assert share.number.value == pytest.approx(share.effect.value - share.control.value - 0.5)


def scored_kl(**kl):
    """A grid of four windows by label, from KL a window; perplexity chooses the first SmoothQuant."""
    found = GridScores()
    for label, sums in {"original": np.zeros(4), **kl}.items():
        kept = label.replace("_", " ")
        found.variants.append(ModelVariant(label, family="W8A8, per token", kept=kept))
        found.made[label] = {}
        divergence = Divergence(np.array(sums, dtype=float), np.ones(4)).scores()
        items = {"nll": tuple(np.zeros(4)), "tokens": (1.0,) * 4}
        found.scores[label] = {"perplexity:proof": replace(divergence, items=items), KL: divergence}
    return found


@pytest.mark.parametrize(
    ("ours", "others", "smooth", "verdict"),
    [
        ([1, 1.1, 1, 1.1], [9, 9, 9, 9.1], [0, 0, 0.1, 0], "held"),
        ([8, 8.1, 8, 8], [9, 9, 9, 9], [0, 0, 0, 0.1], "did not hold"),
        ([1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0.1], "did not hold"),  # any channels do as much
        ([1, 1, 1, 1], [9, 9, 9, 9], [9, 9, 9, 9.1], "not decided"),  # SmoothQuant gains nothing
    ],
)
def test_a_share_is_of_a_gain(ours, others, smooth, verdict):
    labels = {
        "naive": [9, 9, 9, 9],
        "REPLACE-RESTORE": ours,
        "other channels held out": others,
        "SmoothQuant 0.5": smooth,
    }
    _, share = _judged(scored_kl(**labels), {"W8A8, per token": "naive"})
    assert share.verdict == verdict
    assert ("no gain to share" in share.why) == (share.number is None)


def test_transforms(planted):
    lm, folder = planted
    heads, groups, dim = lm.anatomy.heads, lm.anatomy.kv_heads, lm.anatomy.head_dim
    random = torch.Generator().manual_seed(0)
    maps = {
        "norm.query": torch.rand(3, heads, dim, generator=random) ** 8,
        "norm.key": torch.rand(3, groups, dim, generator=random) ** 8,
        "norm.query.layers": torch.arange(3),
        "norm.key.layers": torch.arange(3),
    }
    save_file(maps, scan_of(BENCH, lm)[1] / "profile.safetensors")
    settings = {"schemes": "w4-channel", "inputs": "w8-channel:int8", "awq": True}
    result = run("quantize/transforms", lm, folder, **{**small(folder), "pieces": 2}, limit=2, text="proof", **settings)
    scores, against, alone = result.tables
    bits = {row[0]: row[1] for row in scores.rows}
    kl = {row[0]: row[3].value for row in scores.rows}

    # A power of two changes no bit before rounding; a rotation does, and little.
    equal = {row[0]: row[1] for row in alone.rows}
    exact = [label for label in equal if "inputs" in label or "rotary pairs" in label]
    assert len(exact) == 13
    assert {equal[label] for label in exact} == {"2 of 2"}
    assert equal["the residual stream rotated"] == "0 of 2"
    assert 0 < alone.rows[-2][2].value < 1e-5
    assert "bit-equal in 2 of 2 windows, in the worst of 12 cases" in against.note

    assert bits["w4-channel, the super weights split in two"] > bits["w4-channel"]
    assert kl["w8-channel, inputs int8, the residual stream rotated"] != kl["w8-channel, inputs int8"] > 0
    # Its map decides what AWQ does.
    assert len({kl[label] for label in kl if label.startswith("AWQ")}) == 3
    (plot,) = [plot for chart in result.charts for plot in chart.plots if plot.title == "w4-channel"]
    drawn = {series.name: series.x for series in plot.series}
    assert drawn["the super weights"] == (0.125, 0.25, 0.5, 1, 2, 4, 8)


def test_which_number_grows(planted):
    lm, _ = planted
    (weight,) = load_findings(BENCH, lm).proven
    rounding = SimpleNamespace(bench=SimpleNamespace(config=StudyConfig()), lm=lm)
    changes = {one.label: one.transform for one in _changes(rounding, [weight], Scheme(block="channel"))}
    down = lm.model.get_parameter(weight.parameter)
    up = lm.model.get_parameter(weight.parameter.replace("down", "up"))
    old_down, old_up = down.clone(), up.clone()
    with quantized(lm, Unrounded(), transforms=changes["the super weights x 4, their inputs / 4"]):
        assert down[weight.row, weight.col] == 4 * old_down[weight.row, weight.col]
        assert torch.equal(up[weight.col], old_up[weight.col] / 4)
    with quantized(lm, Unrounded(), transforms=changes["as many other columns / 8, their inputs x 8"]):
        (other,) = (down != old_down).any(dim=0).nonzero().flatten().tolist()
        assert other != weight.col
        assert torch.equal(down[:, other], old_down[:, other] / 8)
        assert torch.equal(up[other], old_up[other] * 8)
    assert torch.equal(down, old_down)


def test_rotary_pairs_in_a_cache():
    """Where one pair of K is large, rescaling helps a scale a token; a scale a channel takes the factors up."""
    lm, _ = provable("llama", planted=False)
    with torch.no_grad():
        for part in lm.anatomy.layers:
            # Queries are large, so that attention looks somewhere.
            for leaf, factor, size in (("q_proj", 1 / 16, 30), ("k_proj", 16, 1)):
                weight = lm.model.get_parameter(f"{part.attention}.{leaf}.weight").mul_(size)
                weight.unflatten(0, (-1, lm.anatomy.head_dim))[:, [1, 5]] *= factor
    rounding = Rounding(SimpleNamespace(config=SimpleNamespace(pieces=2, length=64)), lm)
    rounding.original.see(lm)
    kl = {}
    for keys in ("token", "channel"):
        for pairs in ("", "pairs"):
            with _cache(rounding, "cache", KVCache(element="int4", keys=keys), pairs).change():
                kl[keys, bool(pairs)] = rounding.original.kl(lm).sums
    assert (kl["token", True] < kl["token", False] / 2).all()
    assert (kl["channel", True] == kl["channel", False]).all()


def test_which_layer(planted):
    lm, folder = planted
    result = run("quantize/which-layer", lm, folder, limit=4, element="int3", block="16", worst=2, draws=2)
    by_layer, by_kind, by_group, small, skips, kept = result.tables
    assert (len(by_layer.rows), len(by_kind.rows), len(by_group.rows)) == (3, 4, 12)
    assert all(row[1].value > 0 for row in by_group.rows)
    assert len(small.rows) == 8
    for _, kl, null, net in small.rows:
        assert 0 <= null.value < kl.value / 10
        assert net.interval.value == pytest.approx(kl.value - null.value)
    assert [row[0] for row in skips.rows][:2] == ["everything", "all but the worst"]
    assert skips.rows[1][2].interval.value < 0
    # The planted weight is alone in its matrix; every weight of its column meets the spike.
    own = {row[1]: row[2].value for row in kept.rows if row[0] != "everything"}
    assert len(own) == 5
    assert own["the columns of the super weights"] < own["nothing"]
    assert own["the columns of the super weights"] < min(
        value for what, value in own.items() if what.startswith("as many other columns")
    )


def test_variants_that_are_streams_are_read_at_once_and_score_as_each_by_itself(planted, tmp_path):
    lm, _ = planted
    rounding = Rounding(BENCH, lm, pieces=4)
    method = RTN(scheme=Scheme(element="int3", block=16))
    column = hold_out(load_findings(BENCH, lm).proven, columns=True)
    variants = [
        rounding.variant("everything", method),
        rounding.variant("one", method, keep=[skip("*.layers.[02].*", "*.layers.1.self_attn.*"), column]),
        rounding.variant("shifted", Shifted(rtn=method, shift=8), keep=skip("*.layers.0.*")),
        rounding.variant("wrong", RTN(scheme=Scheme(element="int3", block=7))),
    ]

    def scored(steps, variants):
        grid = {"lm": lm, "variants": [ORIGINAL, *variants], "measures": [Original(4)], "lenient": True}
        return Grid(run=steps, **grid).scored()

    path = tmp_path / "steps.jsonl"
    together = scored(Steps(path, "r", "v"), variants)
    alone = scored(Steps(None), [replace(variant, stream=None) for variant in variants])
    assert together.refused("wrong") == alone.refused("wrong") != ""
    for label in alone.labels[:-1]:
        found, wanted = (Divergence.of(one.scores[label]["KL"]) for one in (together, alone))
        assert found.sums == pytest.approx(wanted.sums, rel=1e-4)
        assert found.tokens.tolist() == wanted.tokens.tolist()
        assert together.made[label] == alone.made[label]
    # Killed at any line, the run ends with the same numbers.
    lines = path.read_bytes().splitlines(keepends=True)
    for done in range(len(lines)):
        path.write_bytes(b"".join(lines[:done]))
        assert scored(Steps(path, "r", "v"), variants).scores == together.scores


def test_massive_values_quantization(planted):
    lm, folder = planted
    result = run(
        "massive-values/quantization",
        lm,
        folder,
        **small(folder),
        items=4,
        context="lookup:2",
        memory="facts",
        methods="rtn,gptq",
        schemes="w8-tensor",
        prompts=2,
    )
    scores = result.tables[-1]
    original = dict(zip(scores.columns, scores.rows[0], strict=True))
    assert original["KL, nats per token"].value == 0.0
    assert [row[0] for row in scores.rows[1:]] == [
        "w8-tensor, RTN",
        "w8-tensor, GPTQ",
        "W8A8, rounding",
        "W8A8, SmoothQuant",
    ]
    # A model of nothing but noise knows nothing, so that nothing can be compared.
    assert all(one.verdict == "not decided" and one.why for one in result.claims)


def tasks_of(rates, n=400, chance=0.25):
    """Made-up items, right at these rates by label and task; the first label is the original."""
    scored = GridScores()
    for label, tasks in rates.items():
        scored.variants.append(ModelVariant(label, family="s"))
        scored.scores[label], scored.made[label] = {}, {}
        for task, rate in tasks.items():
            score = tuple((np.arange(n) < rate * n).astype(float).tolist())
            clusters = tuple(str(number // 2) for number in range(n))
            more = {"items": {"score": score}, "clusters": clusters, "chance": chance}
            scored.scores[label][task] = Scores(measure=task, value=rate, interval=mean_interval(score), **more)
    return scored


def test_skill_is_what_lies_above_chance():
    scored = tasks_of(
        {
            "original": {"a": 0.75, "b": 1.0, "m": 0.75, "low": 0.25},
            "bad": {"a": 0.25, "b": 1.0, "m": 0.5, "low": 0.25},
            "good": {"a": 0.75, "b": 1.0, "m": 0.25, "low": 0.25},
        }
    )
    skills = Skills(scored, {"context": ["a", "b", "low"], "memory": ["m"]})
    assert skills.tasks("context") == ["a", "b"]  # the original cannot do the third
    assert skills.kept((1, "bad", "context")).value == pytest.approx((0 + 1) / (2 / 3 + 1))
    assert skills.kept((1, "bad", "memory")).value == pytest.approx(0.5)
    assert skills.apart("bad").value == pytest.approx(0.1)
    assert skills.apart("good").value == pytest.approx(1)
    assert skills.apart("good", "bad").value == pytest.approx(0.9)
    assert skills.apart("good").low < 1 < skills.apart("good").high
    same = skills.kept((1, "good", "context"), (-1, "original", "context"))
    assert (same.low, same.high) == pytest.approx((0, 0))  # paired
    assert Skills(scored, {"context": ["a"], "memory": ["low"]}).lacking == ["memory"]


def test_who_keeps_context_is_judged_beyond_what_is_kept_of_memory():
    rates = {
        "original": {"lookup": 1.0, "facts": 1.0},
        "w4-channel, RTN": {"lookup": 0.4, "facts": 0.9},
        "w4-channel, GPTQ": {"lookup": 0.5, "facts": 0.9},
        "w4-channel, AWQ": {"lookup": 0.9, "facts": 0.9},
        "w4-channel, SmoothQuant": {"lookup": 0.6, "facts": 1.0},
    }
    own = FigureConfig(schemes=("w4-channel",), context="lookup", memory="facts")
    claims = _claims(Skills(tasks_of(rates), {"context": ["lookup"], "memory": ["facts"]}), own)
    assert [one.verdict for one in claims] == ["held", "did not hold", "held"]
    assert claims[0].number.value == pytest.approx(0.4 / 0.75)
    del rates["w4-channel, AWQ"]
    claims = _claims(Skills(tasks_of(rates), {"context": ["lookup"], "memory": ["facts"]}), own)
    assert claims[0].number is None
    assert "was not made" in claims[0].why


def test_preserved_sees_a_super_activation_go(planted):
    lm, _ = planted
    findings = load_findings(BENCH, lm)
    preserved, weights = Preserved(findings, 2, 2.0), findings.proven
    preserved.see(lm)
    with edited(lm, zero(weights)):
        preserved.see(lm)  # the original stays what it was
        assert preserved.scores(lm)[SPIKE].value > 0.5
    assert preserved.scores(lm)[SPIKE].value == 0.0
