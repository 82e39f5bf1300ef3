"""Law 2: a patch leaves nothing, whatever ends it, in whatever order, however nested."""

from __future__ import annotations

import random
import re
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import patching
from patching import (
    DOWN,
    W4,
    chosen,
    contexts,
    difference,
    logits,
    models,
    nest,
    traces,
)
from studfinder.edits import Weights, edited, entry, scale, zero
from studfinder.errors import StudfinderError
from studfinder.measures import effects_of
from studfinder.models import LM
from studfinder.quantizers import quantized
from studfinder.sites import Journal, tapped
from tiny import tiny

# --- in any order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
def test_contexts_left_in_any_order_leave_nothing(seed: int) -> None:
    chance = random.Random(seed)
    lm = models()[seed % 5]
    before, entered = traces(lm), []
    names: list[str] = []
    for _ in range(chance.randint(2, 5)):
        kinds = contexts(lm, chance)
        context = kinds[chosen(kinds, chance, names)]()
        context.__enter__()
        entered.append(context)
    chance.shuffle(entered)
    for context in entered:
        try:
            context.__exit__(None, None, None)
        except StudfinderError as error:  # it wrote into a tensor that went with an outer change
            assert "was replaced by somebody else" in str(error)  # noqa: PT017
    assert difference(before, traces(lm)) == []


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_of_two_edits_is_the_other_one(seed: int) -> None:
    """The first is left first: the model is as if only the second had been entered, where they do not overlap."""
    chance = random.Random(seed)
    lm = tiny("llama")
    one, other = (scale(entry(lm, 1, row, chance.randrange(48)), 0.0) for row in chance.sample(range(32), 2))
    with edited(lm, other):
        alone = logits(lm)
    first, second = edited(lm, one), edited(lm, other)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.equal(logits(lm), alone)
    second.__exit__(None, None, None)


def test_two_generators_in_turns() -> None:
    lm = tiny("llama")
    before = traces(lm)

    def steps(factor: float):  # type: ignore[no-untyped-def]
        with edited(lm, scale(entry(lm, 1, 3, 4), factor)):
            yield
            yield

    one, other = steps(2.0), steps(4.0)
    next(one), next(other), next(one), next(other)
    one.close()
    assert lm.model.get_parameter(DOWN)[3, 4] != 0
    other.close()
    assert difference(before, traces(lm)) == []


@pytest.mark.parametrize("second", ["edited", "tapped", "quantized"])
def test_another_thread_is_refused_and_then_let_in(second: str) -> None:
    lm, said = tiny("llama"), []

    def enter() -> None:
        make = {
            "edited": lambda: edited(lm, zero(entry(lm, 1, 3, 4))),
            "tapped": lambda: tapped(lm),
            "quantized": lambda: quantized(lm, W4),
        }[second]
        try:
            with make():
                said.append("entered")
        except StudfinderError as error:
            said.append(str(error))

    def in_a_thread() -> None:
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()

    before = traces(lm)
    with edited(lm, zero(entry(lm, 1, 3, 4))):
        in_a_thread()
    in_a_thread()
    assert re.fullmatch(
        r"this model is being changed or read in another thread \(MainThread\); expected one thread at a time\. .*",
        said[0],
    )
    assert said[1:] == ["entered"]
    assert difference(before, traces(lm)) == []


def test_threads_with_models_of_their_own_do_not_meet() -> None:
    pairs = [(lm, traces(lm)) for lm in (tiny("llama"), tiny("llama", seed=1), tiny("llama", seed=2))]
    failed = []

    def work(lm: LM, seed: int) -> None:
        for number in range(15):
            try:
                nest(lm, 100 * seed + number)
            except (ZeroDivisionError, StudfinderError):
                pass
            except BaseException as error:
                failed.append(error)

    threads = [threading.Thread(target=work, args=(lm, seed)) for seed, (lm, _) in enumerate(pairs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [difference(before, traces(lm)) for lm, before in pairs] == [[], [], []]


def test_edits_that_are_in_force_are_not_entered_again_but_later_they_are() -> None:
    lm = tiny("llama")
    before, once = traces(lm), edited(lm, zero(entry(lm, 1, 3, 4)))
    for _ in range(2):
        with once:
            assert lm.model.get_parameter(DOWN)[3, 4] == 0
            with pytest.raises(StudfinderError, match="in force already"), once:
                pass
            assert lm.model.get_parameter(DOWN)[3, 4] == 0
        assert difference(before, traces(lm)) == []


# --- what others do inside -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda lm: edited(lm, zero(entry(lm, 1, 3, 4))), lambda lm: quantized(lm, W4)])
def test_a_parameter_that_somebody_replaced_inside_is_put_back_and_said(make) -> None:  # type: ignore[no-untyped-def]
    lm = tiny("llama")
    before = traces(lm)
    owner = lm.model.get_submodule("model.layers.1.mlp.down_proj")
    with pytest.raises(StudfinderError, match=rf"{re.escape(DOWN)} was replaced by somebody else"), make(lm):
        owner.weight = nn.Parameter(owner.weight.detach().clone())
    assert difference(before, traces(lm)) == []
    with pytest.raises(RuntimeError) as caught, make(lm):
        owner.weight = nn.Parameter(owner.weight.detach().clone())
        raise RuntimeError
    assert "was replaced by somebody else" in caught.value.__notes__[0]
    assert difference(before, traces(lm)) == []


def test_what_was_written_into_a_tensor_that_went_with_an_outer_change_is_said() -> None:
    lm = tiny("llama")
    before = traces(lm)
    outer, inner = Journal(lm.model), Journal(lm.model)
    outer.__enter__().replace(DOWN, torch.zeros(32, 50))
    inner.__enter__().write(DOWN, 1.0, (3, 49))
    outer.__exit__(None, None, None)
    assert difference(before, traces(lm)) == ["handlers"]
    with pytest.raises(StudfinderError, match="replaced"):
        inner.__exit__(None, None, None)
    assert difference(before, traces(lm)) == []


@pytest.mark.parametrize("at", range(5))
def test_a_step_back_that_fails_does_not_stop_the_others(at: int) -> None:
    lm = tiny("llama")
    before = traces(lm)

    def fail() -> None:
        raise OSError(f"step {at}")

    steps = [
        lambda j: j.write(DOWN, 0.0, (3, 4)),
        lambda j: j.write(DOWN, torch.zeros(32, 48)),
        lambda j: j.set(lm.model.config, "use_cache", False),
        lambda j: j.hook(lm.model, lambda *_: None),
    ]
    steps.insert(at, lambda j: j.then(fail))
    with pytest.raises(OSError, match=f"step {at}"), Journal(lm.model) as one:
        for step in steps:
            step(one)
    assert difference(before, traces(lm)) == []


# --- every kind of tensor --------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Tensors of every kind that models have."""

    def __init__(self, dtype: torch.dtype, inference: bool) -> None:
        super().__init__()
        with torch.inference_mode(inference):
            flat = torch.randn(60).to(dtype)
            self.whole = nn.Parameter(flat)
            self.view = nn.Parameter(flat[12:36].view(4, 6))  # one storage under three names
            self.turned = nn.Parameter(flat[20:40].view(4, 5).T)
            self.experts = nn.Parameter(torch.randn(3, 4, 5).to(dtype), requires_grad=False)
            self.register_buffer("scale", torch.tensor(2.0).to(dtype))
            self.nan = nn.Parameter(torch.full((3, 3), float("nan")).to(dtype))

    @property
    def state(self) -> list[object]:
        return [
            (name, id(p), p.requires_grad, p.grad, patching.digest(p))
            for name, p in self.state_dict(keep_vars=True).items()
        ]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_tensors_of_every_kind_come_back(dtype: torch.dtype, inference: bool) -> None:
    chance = random.Random(0)
    for number in range(60):
        torch.manual_seed(number)
        model = Odd(dtype, inference)
        before, open_ones = model.state, []
        for _ in range(chance.randint(1, 3)):
            with torch.inference_mode(chance.random() < 0.3):
                one = Journal(model).__enter__()
                open_ones.append(one)
                for _ in range(chance.randint(1, 6)):
                    name = chance.choice([name for name, _ in model.state_dict(keep_vars=True).items()])
                    shape = tuple(model.get_parameter(name).shape) if name != "scale" else ()
                    index = tuple(chance.choice([chance.randrange(size), slice(None)]) for size in shape)
                    index = chance.choice([index, index[:1], (), tuple(torch.randint(size, (7,)) for size in shape)])
                    if chance.random() < 0.15 and name != "scale":
                        one.replace(name, torch.ones(shape, dtype=dtype))
                    else:
                        one.write(name, chance.choice([0.0, -1.5, float("inf")]), index)
        chance.shuffle(open_ones)
        for one in open_ones:
            problems = one.close()
            assert all("replaced" in str(problem) for problem in problems), problems
        assert model.state == before, number


def test_offloaded_weights_are_refused_by_every_way_to_write() -> None:
    lm = tiny("llama")
    owner = lm.model.get_submodule("model.layers.1.mlp.gate_proj")
    owner.weight = nn.Parameter(owner.weight.detach().to("meta"))
    name = "model.layers.1.mlp.gate_proj.weight"
    for change in (
        lambda: edited(lm, zero(Weights(parameter=name, entries=((0, 0),)))).__enter__(),
        lambda: quantized(lm, W4).__enter__(),
        lambda: Journal(lm.model).write(name, 0.0),
    ):
        with pytest.raises(StudfinderError, match=r"gate_proj.weight is offloaded"):
            change()
    with pytest.raises(StudfinderError, match=r"there is no parameter 'model\.nothing\.weight'"):
        Journal(lm.model).write("model.nothing.weight", 0.0)


def test_a_model_that_accelerate_runs_keeps_its_own_forward(tmp_path: Path) -> None:
    """accelerate puts a `forward` on each module; blocks that are passed by get theirs back."""
    from accelerate import disk_offload

    lm, whole = tiny("llama"), tiny("llama")
    for layer in lm.anatomy.layers:
        disk_offload(lm.model.get_submodule(layer.block), tmp_path / layer.block)
    before = traces(lm)
    edit = zero(entry(whole, 1, 3, 4))
    found, wanted = (effects_of(one, [[5, 6, 7, 8]], [edit]) for one in (lm, whole))
    assert (found.kl > 0).all()
    assert (found.kl, found.clean_nll) == (wanted.kl, wanted.clean_nll)
    assert difference(before, traces(lm)) == []
    assert torch.equal(logits(lm), logits(whole))
