"""Edits as text: what each line means, and what is said of one that means nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scanned import EFFECT
from studfinder.edits import (
    AboveLambda,
    Activations,
    Coordinates,
    Everything,
    LargestEntry,
    MatchedDims,
    RandomDims,
    TopDims,
    constant_only,
    deviation_only,
    dims,
    edited,
    entry,
    massive_value_disruption,
    mean,
    neuron,
    noise,
    parse_edits,
    scale,
    set_to,
    shuffle,
    zero,
)
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.records import Findings, MassiveActivation, MassiveValue, to_json
from studfinder.verbs.scan import scan
from tiny import tiny, token_ids


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny("llama")


WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (f"zero:{WEIGHT}[3,4]", lambda lm: zero(entry(lm, 1, 3, 4))),
        (f"scale=0.5:{WEIGHT}[:, 4]", lambda lm: scale(neuron(lm, 1, 4), 0.5)),
        ("zero:lm_head.weight[3,4]", lambda lm: zero(replace(entry(lm, 1, 3, 4), parameter="lm_head.weight"))),
        ("mean:query+key.top1", lambda lm: mean(dims(lm))),
        ("pooled-mean:query+key.top2@prefill", lambda lm: massive_value_disruption(lm, 2)),
        ("pooled-mean:query+key.top2@prefill@clean", lambda lm: massive_value_disruption(lm, 2, cache="clean")),
        ("constant:key[0-1].top", lambda lm: constant_only(dims(lm, ("key",), [0, 1]))),
        (
            "deviation:query+key.pre_rope[0,2].above1.5@always",
            lambda lm: deviation_only(dims(lm, layers=[0, 2], pre_rope=True, select=AboveLambda(1.5))),
        ),
        ("zero:value.smallest2", lambda lm: zero(dims(lm, ("value",), select=TopDims(2, largest=False)))),
        ("mean:query.random2.seed7", lambda lm: mean(dims(lm, ("query",), select=RandomDims(2, 7)))),
        ("mean:query.matched1", lambda lm: mean(dims(lm, ("query",), select=MatchedDims(1)))),
        ("mean:query.band1.seed3", lambda lm: mean(dims(lm, ("query",), select=MatchedDims(1, "band", 3)))),
        ("shuffle=4:value[1].dim1,3", lambda lm: shuffle(Activations("value[1]", Coordinates((1, 3))), 4)),
        ("set=-2:residual[2].largest5", lambda lm: set_to(Activations("residual[2]", LargestEntry((5,))), -2.0)),
        ("noise=0.1:embedding.all", lambda lm: noise(Activations("embedding", Everything()), 0.1)),
        (
            "zero:down_proj.output[0,2].largest",
            lambda lm: zero(Activations(("down_proj.output[0]", "down_proj.output[2]"), LargestEntry())),
        ),
    ],
)
def test_a_line_means_these_edits_and_they_can_be_applied(lm: LM, text: str, meant) -> None:
    edits = parse_edits(lm, text)
    assert edits == meant(lm)
    with edited(lm, edits), torch.no_grad():
        lm.model(token_ids())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("zero", "KIND:TARGET"),
        ("zero:", "KIND:TARGET"),
        ("nothing:query.top1", "zero, mean"),
        ("zero=2:query.top1", "'zero=2' is not a kind"),
        ("scale:query.top1", "'scale' is not a kind"),
        ("noise=much:query.top1", "a number"),
        ("zero:query.best1", "top1"),
        ("zero:query.topx", "top1"),
        ("zero:query.top1.seed3", "no seed"),
        ("zero:query.dim", "top1"),
        ("zero:query[0-9].top1", "0 to 2"),
        ("zero:query[2-1].top1", "0 to 2"),
        ("zero:query[-].top1", "a whole number"),
        ("zero:queries.top1", "there is no 'queries.top1'"),
        ("zero:query.input.top1", "not a kind of site"),
        ("zero:no/such/run", "there is no 'no/such/run' to edit"),
        ("zero:model.layers.9.mlp.down_proj.weight[1,2]", "no parameter 'model.layers.9"),
        (f"zero:{WEIGHT}[1,2:]", "a whole number"),
        ("mean:lm_head.weight[1,2]", "is a weight"),
        ("zero:query", "there is no 'query'"),
    ],
)
def test_a_line_that_means_nothing_says_what_was_expected(lm: LM, text: str, words: str) -> None:
    with pytest.raises(StudfinderError, match=words):
        parse_edits(lm, text)


# --- scans --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scanned() -> tuple[LM, Findings]:
    from proving import provable

    lm, _ = provable("llama", planted=True)
    return lm, scan(lm, prove=False)


def written(folder: Path, findings: Findings) -> Path:
    (folder / "findings.json").write_text(to_json(findings))
    return folder


def test_a_scan_gives_its_proven_super_weights(scanned, tmp_path: Path) -> None:
    lm, findings = scanned
    first, *rest = findings.super_weights
    proven = replace(findings, super_weights=(replace(first, verdict="proven", effect=EFFECT), *rest))
    run = written(tmp_path, proven)
    assert parse_edits(lm, f"zero:{run}") == zero([first])
    assert parse_edits(lm, f"scale=0.5:{run}/findings.json#super_weights") == scale([first], 0.5)
    assert parse_edits(lm, f"zero:{run}#candidates") == zero(findings.super_weights)


def test_a_scan_gives_massive_values_and_where_channels_turn_massive(scanned, tmp_path: Path) -> None:
    lm, findings = scanned

    def massive(layer: int, dim: int, position: int) -> MassiveActivation:
        return MassiveActivation(
            layer=layer, dim=dim, prompt=0, position=position, token="", token_class="first", value=1, median=1, ratio=1
        )

    values = (MassiveValue(layer=1, tensor="query", head=2, dim=3, norm=1, ratio=6),)
    activations = (massive(2, 7, 0), massive(1, 7, 40), massive(2, 5, 0))
    run = written(tmp_path, replace(findings, massive_values=values, massive_activations=activations))
    assert parse_edits(lm, f"mean:{run}#massive_values") == mean(values)
    assert parse_edits(lm, f"zero:{run}#massive_activations") == zero(
        [Activations("residual[2]", LargestEntry((5,))), Activations("residual[1]", LargestEntry((7,)))]
    )


def test_a_scan_of_another_model_or_without_findings_is_refused(scanned, tmp_path: Path) -> None:
    lm, findings = scanned
    run = written(tmp_path, findings)
    with pytest.raises(StudfinderError, match=r"none of the .* is proven .#all"):
        parse_edits(lm, f"zero:{run}")
    with pytest.raises(StudfinderError, match="holds no massive values"):
        parse_edits(lm, f"zero:{written(tmp_path, replace(findings, massive_values=()))}#massive_values")
    with pytest.raises(StudfinderError, match="#all or"):
        parse_edits(lm, f"zero:{run}#heads")
    with pytest.raises(StudfinderError, match="expected findings of this model"):
        parse_edits(tiny("llama"), f"zero:{run}#candidates")
    with edited(lm, zero(entry(lm, 0, 1, 1))), pytest.raises(StudfinderError, match="expected findings of this model"):
        parse_edits(lm, f"zero:{run}#candidates")
    (tmp_path / "findings.json").unlink()
    with pytest.raises(StudfinderError, match=r"no findings\.json"):
        parse_edits(lm, f"zero:{run}")
