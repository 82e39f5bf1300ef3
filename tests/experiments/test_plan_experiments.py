"""plan/scores and plan/additivity: every score by its formula, and both experiments from end to end."""

from __future__ import annotations

import pytest
import torch
from experimented import run

from proving import provable
from studfinder.experiments.plan_additivity import spike_path
from studfinder.experiments.plan_rivals import (
    DELTA_LOSS,
    DIAGONAL,
    DIRECTION,
    DOT,
    IMPORTANCE,
    KURTOSIS,
    SCORES,
    SQUARED,
    TRACE,
    rival_scores,
)
from studfinder.passes import gradients, likelihood, sampled_likelihood
from studfinder.quantizers.formats import candidates
from studfinder.quantizers.sensitivity import rounding_error, sensitivities
from studfinder.quantizers.targets import by_fused, targets
from studfinder.records import to_json
from studfinder.texts import batches
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.scan import scan
from tiny import prompts, tiny


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_score_is_its_formula(kind) -> None:
    lm, windows = tiny(kind), prompts((20, 24, 22))
    formats, found = candidates(["int4-g16", "int8-channel"]), targets(lm)
    table = rival_scores(lm, windows, formats, found)
    assert set(table) == set(SCORES)
    tokens = sum(map(len, windows))
    # ours are what a plan predicts
    made = sensitivities(lm, windows, formats, found)
    for group, own in made.costs.items():
        for name, cost in own.items():
            assert table[DIAGONAL][group][name] == pytest.approx(cost.kl, rel=1e-5)
            assert table[DIRECTION][group][name] == pytest.approx(cost.together, rel=1e-4)
    # the others from the gradients of one group themselves
    name, group = next((name, own) for name, own in by_fused(found).items() if len(own) > 1 or kind == "gpt2")
    of = {target.name: target for target in group}
    parameters = [target.ref.parameter for target in group]
    drawn = [p.parameters for p in gradients(lm, list(batches(windows)), sampled_likelihood(1), parameters=parameters)]
    text = [p.parameters for p in gradients(lm, list(batches(windows)), likelihood(), parameters=parameters)]
    for one in formats:
        absolute = dot = trace = squared = kurtosis = size = 0.0
        for target in of.values():
            w = target.weight(lm).detach().float()
            d = rounding_error(w, one)
            own = [target.of(each[target.ref.parameter]) for each in drawn if target.ref.parameter in each]
            mean = sum(target.of(each[target.ref.parameter]) for each in text if target.ref.parameter in each)
            absolute += sum(float((g * d).abs().sum()) for g in own)
            dot += float((mean * d).sum())
            trace += sum(float(g.square().mean()) for g in own) / tokens * float(d.square().sum())
            squared += float(d.square().sum())
            centred = w - w.mean()
            kurtosis += float((centred**4).mean() / (centred**2).mean() ** 2 * d.square().sum() / w.square().sum())
            size += w.numel()
        wanted = {
            DELTA_LOSS: absolute / tokens,
            DOT: abs(dot) / tokens / size,
            TRACE: trace,
            SQUARED: squared,
            KURTOSIS: kurtosis,
        }
        for score, value in wanted.items():
            assert table[score][name][one.name] == pytest.approx(value, rel=1e-3), score


def test_importance_is_of_what_enters() -> None:
    lm, windows = tiny("llama"), prompts((20, 24))
    (one,) = candidates(["int4-g16"])
    table = rival_scores(lm, windows, [one], targets(lm))
    target = next(target for target in targets(lm) if target.name == "model.layers.1.mlp.down_proj.weight")
    seen = []
    handle = lm.model.get_submodule("model.layers.1.mlp.down_proj").register_forward_pre_hook(
        lambda _, given: seen.append(given[0].detach()[0])
    )
    with torch.no_grad():
        for ids in windows:
            lm.model(input_ids=torch.tensor([ids]))
    handle.remove()
    x_NC = torch.cat(seen)
    error_RC = rounding_error(target.weight(lm).detach(), one)
    wanted = float((error_RC.square().sum(dim=0) * x_NC.square().mean(dim=0)).sum())
    assert table[IMPORTANCE][target.fused][one.name] == pytest.approx(wanted, rel=1e-4)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A model with one super weight, and a scan of it."""
    folder = tmp_path_factory.mktemp("plan")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("studfinder.verbs.scan._has_gradients", lambda _: False)  # no census, as in every test
        patch.setenv("STUDFINDER_CACHE", str(folder / "cache"))
        lm = provable("llama", planted=True)[0]
        (folder / "scan").mkdir()
        (folder / "scan" / "findings.json").write_text(to_json(scan(lm, ScanConfig())))
        yield lm, folder


def test_scores(planted) -> None:
    lm, folder = planted
    result = run("plan/scores", lm, folder, limit=4, formats="int3-g16,int8-channel", bits=6, draws=2)
    ranks, nats, regrets = result.tables
    assert len(ranks.rows) == 2 * len(SCORES)
    assert all(-1 <= row[2] <= 1 and 0 <= row[3] <= 1 for row in ranks.rows)
    assert {row[1] for row in nats.rows} == {DIAGONAL, DIRECTION}
    plans = {row[0]: row for row in regrets.rows}
    assert all(row[1] <= 6 + 1e-9 for row in regrets.rows)
    uniform, ours = plans["all int3-g16"], plans["measured, 6 bits"]
    assert ours[2].value < uniform[2].value
    assert ours[3] is None
    assert plans["at random, draw 1, 6 bits"][3].interval.n == 2
    assert any("times as long" in note for note in result.notes)


def test_additivity(planted) -> None:
    lm, folder = planted
    result = run(
        "plan/additivity", lm, folder, limit=2, formats="int8-channel,int3-g16", pairs=4, findings=str(folder / "scan")
    )
    sums, *others = result.tables
    assert [row[0] for row in sums.rows] == ["int8-channel", "int3-g16"]
    for _, _, whole, parts, share in sums.rows:
        assert share.value == pytest.approx(parts.value / whole.value, rel=1e-6)
    pairs, back = others[2], others[3]
    assert len(pairs.rows) == 6
    assert len(back.rows) == 4
    for _, _, alone, gain, more in back.rows:
        assert more.interval.value == pytest.approx(gain.value - alone.value, abs=1e-9)


def test_the_path_of_a_spike() -> None:
    class Work:
        lm = tiny("llama")
        groups = by_fused(targets(lm))

    found = spike_path(Work(), ["model.layers.1.mlp.down_proj.weight"])
    assert found == {"model.layers.1.mlp.down_proj", "model.layers.1.mlp.gate_proj+up_proj"}
