"""The proof: nothing in a random model, the planted weight in every architecture, and the rule itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from outside import quick_and_deep
from proving import LAYER, provable
from studfinder.detectors.published import TABLE, published_for
from studfinder.edits import channel, entry, scale, zero
from studfinder.errors import StudfinderError
from studfinder.measures import effects_of, perplexity
from studfinder.models import content_hash
from studfinder.prove import LOOKS, prove
from studfinder.prove.rule import bounds, does_nothing, still_open, verdict_of
from studfinder.prove.trial import Case, Trial
from studfinder.records import Findings, Interval
from studfinder.report import print_candidates
from studfinder.stats import ratio_interval, student_interval
from studfinder.texts import proof_text, proof_windows
from studfinder.verbs.configs import ScanConfig
from studfinder.verbs.scan import plan_scan, run_scan, scan
from tiny import ARCHITECTURES, UNLIKE, token_ids


@pytest.mark.usefixtures("whole_scans")
@pytest.mark.real
@pytest.mark.parametrize("architecture", quick_and_deep(ARCHITECTURES, *UNLIKE))
def test_nothing_is_proven_in_a_random_model(architecture: str) -> None:
    lm, _ = provable(architecture, planted=False)
    findings = scan(lm)
    assert findings.proven == ()
    assert findings.proof is not None
    assert findings.summary.nearest_super_weight is None or findings.summary.nearest_super_weight.score < 50


@pytest.mark.usefixtures("whole_scans")
@pytest.mark.real
@pytest.mark.parametrize("architecture", quick_and_deep(ARCHITECTURES, *UNLIKE))
def test_a_planted_super_weight_is_proven_at_its_coordinates(architecture: str) -> None:
    lm, index = provable(architecture, planted=True)
    before = content_hash(lm)
    findings = scan(lm)
    assert [(w.layer, w.index) for w in findings.proven] == [(LAYER, index)]
    weight = findings.proven[0]
    assert weight.effect is not None
    assert len(weight.effect.control_kls) == 20
    assert weight.effect.kl.low > max(0.01, *weight.effect.control_kls)
    assert len(findings.continuations) == 3
    assert content_hash(lm) == before


# --- the rule, on numbers --------------------------------------------------------------------------------------------

TOKENS = np.full(LOOKS[-1], 61)


def sums(kl: float, windows: int = LOOKS[-1], spread: float = 0.05) -> np.ndarray:
    """KL by window, so much a token on average, in random order."""
    return kl * np.random.default_rng(1).permutation(np.linspace(1 - spread, 1 + spread, windows)) * 61


def interval(kl: float) -> Interval:
    return bounds(sums(kl), TOKENS, tests=1)


@pytest.mark.parametrize(
    ("kl", "controls", "marginal", "others", "verdict"),
    [
        (1.0, (0.001,) * 20, None, (), "proven"),
        (1.0, (2.0,) * 20, None, (), "candidate"),  # controls do as much
        (1.0, (*(0.001,) * 19, 2.0), None, (), "candidate"),  # one does
        (1.0, (*(0.001,) * 19, float("nan")), None, (), "candidate"),  # one breaks the model
        (1.0, (float("nan"), *(0.001,) * 19), None, (), "candidate"),
        (1.0, (), None, (), "candidate"),  # held against nothing
        (0.005, (0.001,) * 20, None, (), "inert"),  # above its controls, and yet nothing
        (0.001, (), 0.001, (), "inert"),
        (0.001, (), None, (), "inert"),
        (0.001, (), 1.0, (), "candidate"),
        (0.001, (), 1.0, (0.001,) * 20, "proven-jointly"),
        (0.001, (0.001,) * 20, 1.0, (2.0,) * 20, "candidate"),
        (0.0102, (), None, (), "candidate"),  # neither bound is clear of the floor
        (float("nan"), (0.001,) * 20, None, (), "candidate"),
    ],
)
def test_the_rule(kl, controls, marginal, others, verdict) -> None:
    share = None if marginal is None else interval(marginal)
    assert verdict_of(interval(kl), controls, share, others, 0.01) == verdict


def test_few_windows_are_judged_by_students_t_and_all_by_a_bootstrap() -> None:
    assert "bootstrap" in bounds(sums(1.0), TOKENS, 1).method
    few = bounds(sums(1.0, 4), TOKENS, 1)
    assert (few.method, few.n) == ("Student's t over windows", 4)
    assert few.high > ratio_interval(sums(1.0, 4), TOKENS[:4]).high
    assert bounds(sums(1.0, 4), TOKENS, 800).high > few.high


@pytest.mark.parametrize(
    ("controls", "left"),
    [
        ({"a": 0.001, "b": 0.002, "c": 0.0001}, ["b"]),  # none can reach it: the largest goes on
        ({"a": 0.001, "b": 0.98, "c": 0.99}, ["b", "c"]),  # two may
        ({"a": 0.001, "b": 5.0, "c": 0.95}, ["b"]),  # one does for certain: the others no longer matter
        ({"a": float("nan"), "b": 0.001}, ["a"]),  # what breaks the model is the largest
        ({"a": float("nan"), "b": 0.99}, ["a", "b"]),
        ({"a": float("inf"), "b": 0.001}, ["a"]),
    ],
)
def test_controls_are_left_when_a_bound_allows(controls: dict[str, float], left: list[str]) -> None:
    seen = {key: sums(kl, 8) for key, kl in controls.items()}
    assert still_open(seen, TOKENS, needed=1.0, tested=10) == left


def test_what_could_still_matter_is_not_silent() -> None:
    assert does_nothing(sums(0.001, 4), TOKENS, 0.01, tested=10)
    assert not does_nothing(sums(0.0095, 4), TOKENS, 0.01, tested=10)
    assert not does_nothing(sums(0.004, 4, spread=1.0), TOKENS, 0.01, tested=10)  # its windows differ too much to say
    assert does_nothing(sums(0.004, 16, spread=1.0), TOKENS, 0.01, tested=10)
    assert not does_nothing(np.full(4, np.nan), TOKENS, 0.01, tested=10)


class Numbers:
    """A bench of given numbers that counts how far each was looked at."""

    def __init__(self, kl: dict[str, float]) -> None:
        self.of, self.kl, self.tokens, self.looks, self.ahead = kl, {}, TOKENS, list(LOOKS), 0.0

    def look(self, changes, upto: int) -> None:
        self.kl.update((one, sums(self.of[one])[:upto]) for one in changes if len(self.kl.get(one, ())) < upto)

    def cost(self, changes, windows: float) -> float:
        return 0.0


def trial(candidates: list[float], control: float, share: float = 0.0, top: float | None = None) -> tuple[Any, Any]:
    """Candidates with 20 controls each (the first of which does `top`), in a set that does 3 nats."""
    kl, cases = {"set": 3.0}, []
    for number, candidate in enumerate(candidates):
        keys = [f"{number}, control {place}" for place in range(20)]
        kl |= {f"{number}": candidate, f"{number}, without": 3.0 - share} | dict.fromkeys(keys, control)
        kl |= {f"{key}, swapped": 3.0 - share + control for key in keys}
        kl[keys[0]] = control if top is None else top
        cases.append(
            Case(f"{number}", f"{number}, without", lambda keys=keys: (keys, [f"{key}, swapped" for key in keys]))
        )
    bench = Numbers(kl)
    return Trial(bench, cases, "set", 0.01).run(), {key: len(seen) for key, seen in bench.kl.items()}


def test_only_the_largest_control_is_looked_at_to_the_end() -> None:
    verdicts, seen = trial([1.0, 0.001], control=1e-4, top=2e-4)
    assert verdicts == ["proven", "inert"]
    assert seen["0, control 0"] == LOOKS[-1]
    assert all(seen[f"0, control {place}"] == LOOKS[0] for place in range(1, 20))
    assert (seen["0"], seen["1"], seen["1, without"]) == (LOOKS[-1], LOOKS[0], LOOKS[0])
    assert not any(key.startswith("1, control") for key in seen)


def test_a_look_alike_is_not_proven_and_its_other_controls_are_left() -> None:
    verdicts, seen = trial([1.0], control=1e-4, top=2.0)
    assert verdicts == ["candidate"]
    assert [seen[f"0, control {place}"] for place in range(3)] == [LOOKS[-1], LOOKS[0], LOOKS[0]]
    verdicts, seen = trial([1.0], control=1.0)
    assert verdicts == ["candidate"]
    assert min(seen[f"0, control {place}"] for place in range(20)) > LOOKS[0]  # too near to be left at once


def test_shares_are_held_against_the_shares_of_controls() -> None:
    assert trial([0.001, 0.002], control=1e-4, share=1.0)[0] == ["proven-jointly"] * 2
    assert trial([0.001, 0.002], control=2.0, share=1.0)[0] == ["candidate"] * 2
    verdicts, seen = trial([0.001, 0.002], control=1e-4, share=-1.0)
    assert verdicts == ["inert"] * 2
    assert seen["0, without"] == LOOKS[1]


def test_under_the_null_few_are_proven() -> None:
    """Candidates that are one more control each: as large as the others, or a little larger by chance."""
    chance, proven = np.random.default_rng(0), 0
    for _ in range(40):
        kl = {"set": 3.0, "without": 3.0} | {str(place): 0.02 * chance.lognormal(sigma=0.1) for place in range(21)}
        bench = Numbers(kl)
        case = Case("0", "without", lambda: ([str(place) for place in range(1, 21)], []))
        proven += Trial(bench, [case], "set", 0.01).run() != ["candidate"]
    assert proven <= 5  # 1 in 21 is the largest


# --- the bench -------------------------------------------------------------------------------------------------------


def test_windows_are_equal_random_and_begin_as_a_text_does() -> None:
    lm, _ = provable("llama", planted=False)
    windows = proof_windows(lm)
    assert len(windows) == LOOKS[-1]
    assert len({len(ids) for ids in windows}) == 1
    assert windows == proof_windows(lm)
    whole = "".join(piece.text for piece in proof_text())
    texts = [lm.tokenizer.decode(ids).replace(" ", "") for ids in windows]
    places = [whole.replace(" ", "").find(text[:40]) for text in texts]
    assert min(places) >= 0
    assert places != sorted(places)
    assert max(places) > 0.9 * len(whole.replace(" ", ""))


def test_nothing_is_run_twice_and_looks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, _ = provable("llama", planted=True)
    findings = scan(lm, prove=False)
    ran: Counter[tuple[str, tuple[int, ...]]] = Counter()

    def counted(lm, windows, streams, **options):
        ran.update((str(id(stream)), tuple(ids)) for stream in streams for ids in windows)
        return effects_of(lm, windows, streams, **options)

    monkeypatch.setattr("studfinder.prove.bench.effects_of", counted)
    told: list[tuple[str, int, int]] = []
    proved = prove(lm, findings, progress=lambda *one: told.append(one))
    assert set(ran.values()) == {1}
    windows = proof_windows(lm)
    weight = proved.proven[0]
    whole = effects_of(lm, windows, [zero(weight)])
    assert weight.effect is not None
    assert weight.effect.kl.value == pytest.approx(whole.kl_interval(0).value, rel=1e-5)
    assert weight.effect.perplexity_ratio.value == pytest.approx(whole.perplexity_ratio(0).value, rel=1e-5)
    assert proved.proof is not None
    assert proved.proof.clean_perplexity == pytest.approx(whole.clean_perplexity, rel=1e-5)
    assert (proved.proof.windows, proved.proof.looks) == (LOOKS[-1], LOOKS)
    assert {what for what, _, _ in told} == {"proving"}  # one bar, from the beginning to the end
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1] == told[-1][2]


def test_a_small_effect_has_its_nulls_beside_it_and_taken_off() -> None:
    lm, _ = provable("llama", planted=True)
    findings = scan(lm, prove=False)
    small = prove(lm, findings, floor=2.0).super_weights[0].effect  # 12 nats are below ten floors of 2
    assert small is not None
    assert small.null_kl is not None
    assert small.net_kl is not None
    assert 0 < small.null_kl.value < 1e-3 < small.kl.value
    assert small.null_kl.n == LOOKS[0]
    assert small.net_kl.value == small.kl.value - small.null_kl.value
    assert small.net_kl.low < small.kl.low
    large = prove(lm, findings).super_weights[0].effect
    assert large is not None
    assert (large.null_kl, large.net_kl) == (None, None)


def test_candidates_are_told_before_the_proof_begins(capsys: pytest.CaptureFixture[str]) -> None:
    lm, index = provable("llama", planted=True)
    told: list[Findings] = []
    findings, _ = run_scan(plan_scan(lm, ScanConfig()), seen=told.append)
    assert findings.proof is not None
    (early,) = told
    assert (early.proof, early.super_weights[0].index, early.super_weights[0].effect) == (None, index, None)
    print_candidates(early)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert str(early.super_weights[0]) in printed.err


def test_a_sweep_equals_one_edit_at_a_time_and_a_dense_computation() -> None:
    from studfinder.edits import edited

    lm, _ = provable("llama", planted=False)
    encoded = [token_ids(1, n, seed=n)[0].tolist() for n in (12, 7, 20)]
    variants = [zero(channel(lm, 2, 3)), scale(entry(lm, 0, 1, 2), 100.0)]
    together = effects_of(lm, encoded, variants)
    for number, edits in enumerate(variants):
        alone = effects_of(lm, encoded, [edits])
        np.testing.assert_allclose(together.kl[number], alone.kl[0], rtol=1e-4, atol=1e-6)
        for window, ids in enumerate(encoded):
            with torch.no_grad():
                clean = lm.model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
                with edited(lm, edits):
                    other = lm.model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
            kl = float((clean.exp() * (clean - other)).sum())
            nll = -float(other.gather(1, torch.tensor(ids[1:])[:, None]).sum())
            assert together.kl[number, window] == pytest.approx(kl, rel=1e-3, abs=1e-5)
            assert together.nll[number, window] == pytest.approx(nll, rel=1e-4)


def test_the_interval_covers() -> None:
    """At 90 %, about nine in ten intervals hold the truth."""
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        sums = generator.normal(1.0, 0.3, size=24)
        interval = ratio_interval(sums, np.ones(24), level=0.9)
        hits += interval.low <= 1.0 <= interval.high
    assert 160 <= hits <= 195


@pytest.mark.parametrize("items", [2, 4])
def test_students_interval_covers_with_few_items_where_a_bootstrap_does_not(items: int) -> None:
    generator = np.random.default_rng(items)
    weights = generator.integers(50, 70, size=(600, items)).astype(float)
    drawn = generator.normal(1.0, 0.3, size=weights.shape) * weights
    hits = {
        of: sum((one := of(*row, level=0.9)).low <= 1.0 <= one.high for row in zip(drawn, weights, strict=True))
        for of in (student_interval, ratio_interval)
    }
    assert 515 <= hits[student_interval] <= 565
    assert hits[ratio_interval] < hits[student_interval]


def test_perplexity_protocols_count_what_they_say() -> None:
    lm, _ = provable("llama", planted=False)
    whole = perplexity(lm, ["some words " * 30], window=100)
    assert sum(whole.items["tokens"]) == 330 - 4  # each of four windows gives up its first token
    strided = perplexity(lm, ["some words " * 30], window=100, stride=50)
    assert sum(strided.items["tokens"]) == 329  # every token but the first is scored once
    word = perplexity(lm, ["some words here", "and more"], protocol="word", window=100)
    assert sum(word.items["tokens"]) == 5
    assert whole.value == pytest.approx(np.exp(sum(whole.items["nll"]) / sum(whole.items["tokens"])))
    assert whole.interval.low < whole.value < whole.interval.high
    with pytest.raises(StudfinderError, match="shorter than one window"):
        perplexity(lm, ["short"], protocol="gptq")
    with pytest.raises(StudfinderError, match="no text"):
        perplexity(lm, "no such text")


def test_published_coordinates_match_by_name_then_by_shape() -> None:
    card = scan(provable("llama", planted=False)[0], prove=False).model
    from dataclasses import replace

    named = replace(card, id="meta-llama/Llama-2-7b-hf")
    assert {(p.model, p.layer, p.row, p.col, p.match) for p in published_for(named, ())} == {
        ("Llama-2-7B", 1, 2533, 7890, "name")
    }
    shaped = replace(card, id="./mine", layers=32, hidden=4096, intermediate=11008)
    assert {p.model for p in published_for(shaped, ())} == {"Llama-7B", "Llama-2-7B", "OLMo-7B-0724"}
    assert all(p.match == "shape" for p in published_for(shaped, ()))
    assert published_for(card, ()) == ()
    assert len({(entry.model, entry.weights) for entry in TABLE}) == len(TABLE)


def test_the_papers_loop_finds_the_planted_weight_and_leaves_no_trace() -> None:
    lm, index = provable("llama", planted=True)
    with torch.no_grad():  # the paper wants a spike of its own in the input, too
        lm.model.get_parameter("model.layers.1.mlp.up_proj.weight")[7].mul_(1e4)
    before = content_hash(lm)
    findings = scan(lm, iterative=True, prove=False)
    assert findings.super_weights[0].index == index
    assert content_hash(lm) == before
