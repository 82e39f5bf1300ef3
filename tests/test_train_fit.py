"""Training: it learns, it scores exactly, and an interrupted run ends like one that never stopped."""

from __future__ import annotations

import dataclasses
import os
import random
import signal

import pytest
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from transformers import TrainerCallback

from studfinder.errors import StudfinderError
from studfinder.training import (
    ModelShape,
    OutlierCallback,
    TaskSource,
    TrainingRecipe,
    build_model,
    fit,
    task_from,
    variants_from,
)
from studfinder.training.checkpoints import latest
from studfinder.training.streams import SequenceRows, collate

SOURCE = TaskSource(task_from("induction:vocabulary=40,length=16"))
SHAPE = ModelShape(layers=1, hidden=16, heads=2)
RECIPE = TrainingRecipe(steps=12, batch=8, micro=4, warmup=2, look_every=6, keep_every=4, test=8, precision="fp32")
VARIANTS = ("kv_shift",)


def model(attention=VARIANTS, shape=SHAPE, seed=0):
    return build_model(shape, variants_from(attention), vocabulary=40, length=16, seed=seed)


class Interrupt(TrainerCallback):
    """Ctrl-C in the middle of a step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("step", [3, 7])
def test_an_interrupted_run_ends_as_if_it_never_stopped(tmp_path, step):
    """Law 12: a resumed run ends with the same numbers as one that was not stopped."""
    whole = fit(model(), SOURCE, RECIPE, callbacks=[seen := OutlierCallback(SOURCE, sequences=2)])
    options = {"folder": tmp_path / "checkpoints", "key": "k"}
    file = tmp_path / "outliers.jsonl"
    first = fit(
        model(), SOURCE, RECIPE, callbacks=[Interrupt(step), OutlierCallback(SOURCE, file=file, sequences=2)], **options
    )
    assert first.stopped == "interrupted"
    assert latest(tmp_path / "checkpoints", "k").name == f"checkpoint-{step}"
    resumed = fit(
        model(seed=5), SOURCE, RECIPE, callbacks=[again := OutlierCallback(SOURCE, file=file, sequences=2)], **options
    )
    assert resumed.stopped is None
    assert resumed.log == whole.log
    assert again.looks == seen.looks
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_half_written_checkpoint_is_not_used(tmp_path):
    fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k")
    assert latest(tmp_path, "k").name == "checkpoint-12"
    (tmp_path / "checkpoint-99").mkdir()
    (tmp_path / "checkpoint-99" / "model.safetensors").write_bytes(b"half")
    assert latest(tmp_path, "k").name == "checkpoint-12"
    assert not (tmp_path / "checkpoint-99").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k")
    with pytest.raises(StudfinderError, match="of another run"):
        fit(model(), SOURCE, RECIPE, folder=tmp_path, key="other")


def test_a_checkpoint_with_one_thing_changed_is_refused(tmp_path):
    """A file that is gone, one more, one bit in any of them: two hundred cases."""
    fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k")
    newest = latest(tmp_path, "k", SOURCE.settings())
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.name != "studfinder.json")
    assert {"optimizer.pt", "scheduler.pt", "model.safetensors", "rng_state.pth"} <= {path.name for path in files}
    chance = random.Random(0)
    for number in range(200):
        path = files[number % len(files)]
        kept = path.read_bytes()
        if number % 7 == 0:
            path.unlink()
        elif number % 7 == 1:
            path.write_bytes(kept[: chance.randrange(len(kept))])
        else:
            place = chance.randrange(len(kept))
            path.write_bytes(kept[:place] + bytes([kept[place] ^ 1 << chance.randrange(8)]) + kept[place + 1 :])
        with pytest.raises(StudfinderError, match=rf"not as it was written \({path.name}\)"):
            latest(tmp_path, "k")
        path.write_bytes(kept)
    assert latest(tmp_path, "k") == newest
    (newest / "more.bin").write_text("x")
    with pytest.raises(StudfinderError, match=r"more\.bin"):
        fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k")
    (newest / "more.bin").unlink()
    (newest / "studfinder.json").write_text("{")
    with pytest.raises(StudfinderError, match="not as it was written"):
        latest(tmp_path, "k")


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k")
    other = TaskSource(task_from("induction:vocabulary=39,length=16"))
    with pytest.raises(StudfinderError, match="trained on other data"):
        fit(model(), other, RECIPE, folder=tmp_path, key="k")


FULL = [
    OSError(28, "No space left on device"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 33216 vs 33104"),
    RuntimeError("basic_ios::clear: iostream error"),
]


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
def test_a_full_disk_is_said_and_the_last_checkpoint_stays(tmp_path, monkeypatch, error):
    """In the words of each library that writes a part of a checkpoint (a disk that really is full: tests/real)."""
    fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k", callbacks=[Interrupt(5)])

    def full(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("transformers.trainer_callback.TrainerState.save_to_json", full)
    monkeypatch.setattr("studfinder.training.disk._free", lambda place: 0)
    with pytest.raises(StudfinderError, match="No space left on device") as said:
        fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k")
    assert "Free some space" in str(said.value)
    monkeypatch.undo()
    kept = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-5"]  # what was half-written is gone
    assert latest(tmp_path, "k").name == "checkpoint-5"
    assert fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k").stopped is None


def test_what_else_goes_wrong_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    class Broken(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            raise RuntimeError("one of the tensors was overwritten by an in-place write")

    monkeypatch.setattr("studfinder.training.disk._free", lambda place: 0)
    with pytest.raises(RuntimeError, match="in-place write"):
        fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k", callbacks=[Broken()])


def test_accumulation_changes_nothing_but_rounding():
    split = fit(model(), SOURCE, RECIPE)
    whole = fit(model(), SOURCE, dataclasses.replace(RECIPE, micro=8))
    for (_, a), (_, b) in zip(split.curve("loss"), whole.curve("loss"), strict=True):
        assert a == pytest.approx(b, abs=1e-4)


def test_a_cool_down_is_constant_then_linear_to_nothing():
    seen = []

    class Rates(TrainerCallback):
        def on_step_begin(self, args, state, control, lr_scheduler=None, **_):
            seen.append(lr_scheduler.get_last_lr()[0] / RECIPE.lr)

    fit(model(), SOURCE, dataclasses.replace(RECIPE, schedule="cool-down"), callbacks=[Rates()])
    assert seen == pytest.approx([0, 1 / 2, *[1] * 8, 2 / 3, 1 / 3])


def test_scores_are_those_of_the_scored_labels():
    fitted = fit(model(), SOURCE, RECIPE)
    rows = collate([SequenceRows(SOURCE, "test", 0, 8)[i] for i in range(8)])
    with torch.no_grad():
        logits = fitted.model(input_ids=rows["input_ids"]).logits[:, :-1]
    labels = rows["labels"][:, 1:]
    asked = labels != -100
    assert fitted.items_N3[:, 1].tolist() == asked.sum(1).tolist()
    right = (logits.argmax(-1) == labels) & asked
    assert fitted.last["accuracy"] == pytest.approx(right.sum().item() / asked.sum().item())
    assert fitted.last["loss"] == pytest.approx(F.cross_entropy(logits[asked], labels[asked]).item(), rel=1e-5)
    assert fitted.accuracy.value == pytest.approx(fitted.last["accuracy"])
    assert fitted.accuracy.n == 8


def test_a_loss_that_is_not_finite_ends_the_run():
    broken = model()
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("inf"))
    fitted = fit(broken, SOURCE, RECIPE)
    assert fitted.stopped == "diverged"
    assert fitted.log[-1]["step"] < RECIPE.steps


def test_watching_does_not_change_training():
    plain = fit(model(), SOURCE, RECIPE)
    watched = fit(model(), SOURCE, RECIPE, callbacks=[OutlierCallback(SOURCE, sequences=2)])
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name]), name


def test_scalars_and_norms_are_not_decayed_unless_asked():
    groups = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, optimizer=None, **_):
            for group in optimizer.param_groups:
                groups[group["weight_decay"]] = [tuple(p.shape) for p in group["params"]]

    short = dataclasses.replace(RECIPE, steps=1)
    fit(model(), SOURCE, short, callbacks=[Look()])
    matrices = sum(parameter.dim() == 2 for parameter in model().parameters())
    assert [len(shape) for shape in groups[0.1]] == [2] * matrices
    assert sorted(groups[0.0]) == [(2,)] * 4 + [(16,)] * 3
    fit(model(), SOURCE, dataclasses.replace(short, decay_norms=True), callbacks=[Look()])
    assert sorted(groups[0.0]) == [(2,)] * 4
    assert sum(len(shape) == 1 for shape in groups[0.1]) == 3


def test_bf16_autocast_keeps_fp32_weights():
    fitted = fit(model(), SOURCE, dataclasses.replace(RECIPE, precision="bf16"))
    assert {p.dtype for p in fitted.model.parameters()} == {torch.float32}
    exact = fit(model(), SOURCE, RECIPE)
    assert fitted.last["loss"] != exact.last["loss"]
    assert fitted.last["loss"] == pytest.approx(exact.last["loss"], rel=0.02)


def test_a_model_trained_under_autocast_is_afterwards_the_one_that_is_saved(tmp_path):
    fitted = fit(model(), SOURCE, dataclasses.replace(RECIPE, steps=2, precision="bf16"))
    fitted.model.save_pretrained(tmp_path)
    again = type(fitted.model).from_pretrained(tmp_path)
    ids = torch.arange(3, 19)[None]
    assert torch.equal(fitted.model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_a_batch_that_does_not_divide():
    with pytest.raises(StudfinderError, match="does not divide"):
        fit(model(), SOURCE, TrainingRecipe(steps=1, batch=8, micro=3, precision="fp32"))


def test_one_layer_with_kv_shift_learns_induction():
    """Something real: a few seconds of training, against the same model without the shift."""
    source = TaskSource(task_from("induction:vocabulary=43,length=32,train_on=scored"))
    recipe = TrainingRecipe(steps=60, batch=64, lr=5e-3, warmup=20, look_every=60, test=128, precision="fp32")
    reached = {}
    for attention in ("kv_shift", "vanilla"):
        shape = ModelShape(layers=1, hidden=64, heads=4)
        fitted = fit(build_model(shape, variants_from([attention]), vocabulary=43, length=32, seed=0), source, recipe)
        reached[attention] = fitted.accuracy
    assert reached["kv_shift"].low > 2 * reached["vanilla"].high


def test_a_run_that_only_lacks_its_end(tmp_path):
    whole = fit(model(), SOURCE, RECIPE, folder=tmp_path, key="k", callbacks=[OutlierCallback(SOURCE, sequences=2)])
    again = fit(
        model(seed=3), SOURCE, RECIPE, folder=tmp_path, key="k", callbacks=[OutlierCallback(SOURCE, sequences=2)]
    )
    assert again.log == whole.log
    assert (again.items_N3 == whole.items_N3).all()
