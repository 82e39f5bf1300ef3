"""`studfinder train`: a run folder that other verbs understand, and plain words for what cannot be."""

from __future__ import annotations

import json
import os
import signal

import pytest
from safetensors import SafetensorError

import studfinder as sf
from rerun import interrupted
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.records import Training, read_record
from studfinder.training import ModelShape, build_model
from studfinder.training.text import train_tokenizer
from studfinder.verbs.train import plan_train, train

pytestmark = pytest.mark.usefixtures("undrawn")
TASK = "recall:vocabulary=32,length=16,pairs=2"
SMALL = ["--task", TASK, "--layers", "1", "--hidden", "16", "--heads", "2", "--batch", "4", "--test", "4"]
PLAN = {
    "task": TASK,
    "layers": 1,
    "hidden": 16,
    "heads": 2,
    "batch": 4,
    "test": 4,
    "steps": 4,
    "look_every": 2,
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STUDFINDER_DATA", raising=False)
    return tmp_path


def test_a_run_from_the_command_line(here, capsys):
    options = [*SMALL, "--attention", "kv_shift", "--attention", "gated:kind=linear,pi_init=0.25", "--steps", "4"]
    assert run_cli(["train", *options, "--look-every", "2", "--out", "r"]) == 0
    printed = capsys.readouterr()
    assert "M parameters" in printed.err
    assert "step 4/4" in printed.err
    assert "inf norm" in printed.out
    record = read_record(Training, here / "r" / "result.json")
    assert record.tokens == 4 * 4 * 16
    assert [step for step, _ in record.curve("eval_accuracy")] == [2, 4]
    assert [step for step, _ in record.curve("outliers/kurtosis")] == [2, 4]
    assert record.accuracy.n == 4
    assert record.run.settings["attention"] == "kv_shift gated:kind=linear,pi_init=0.25"
    # Once more: nothing is trained again.
    written = (here / "r" / "result.json").stat().st_mtime_ns
    assert run_cli(["train", *options, "--look-every", "2", "--out", "r", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "studfinder.training"
    assert (here / "r" / "result.json").stat().st_mtime_ns == written
    assert run_cli(["train", *options, "--look-every", "2", "--out", "r", "--overwrite"]) == 0
    assert (here / "r" / "result.json").stat().st_mtime_ns != written
    # Another recipe does not fit into this folder.
    capsys.readouterr()
    assert run_cli(["train", *options, "--look-every", "2", "--out", "r", "--lr", "0.5"]) == 2
    assert "lr was 0.001 and is now 0.5" in capsys.readouterr().err


def test_the_exported_model_can_be_scanned(here):
    folder = train(**PLAN, attention=["kv_shift"], out=here / "r", quiet=True)[1]
    lm = sf.load(folder / "model")
    assert lm.anatomy.architecture == "studfinder-llama"
    rows = [json.loads(line)["text"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    findings = sf.scan(lm, prompts=rows, prove=False)
    assert findings.prompts.tokens == (16,) * 8
    assert not list((folder / "model").glob("*.bin"))


def test_a_text_and_its_tokenizer_are_exported(here):
    (here / "t.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    record, folder = train(
        text="t.txt",
        layers=1,
        hidden=16,
        heads=2,
        batch=4,
        test=2,
        steps=2,
        length=16,
        vocabulary=280,
        quiet=True,
    )
    assert folder.parent.name == "toy"
    lm = sf.load(folder / "model")
    assert lm.tokenizer.decode(lm.tokenizer("The quick fox")["input_ids"]) == "The quick fox"
    assert record.run.settings["vocabulary"] == 280
    assert record.run.settings["data_source"] == "t.txt"
    assert sf.scan(lm, prove=False).model.vocabulary == 280


@pytest.mark.real
@pytest.mark.parametrize("attention", [["kv_shift", "gated"], ["clipped_softmax:alpha=12,length=128", "nope"]])
def test_an_exported_language_model_can_be_measured(here, capsys, attention):
    (here / "t.txt").write_text("The quick brown fox jumps over the lazy dog. " * 300)
    sizes = {"layers": 1, "hidden": 16, "heads": 2}
    recipe = {"batch": 4, "test": 2, "steps": 2}
    options = {"text": "t.txt", "length": 128, "vocabulary": 280, "attention": attention}
    folder = train(**options, **sizes, **recipe, out=here / "r", quiet=True)[1]
    names = "perplexity,repetition,induction:16"
    assert run_cli(["measure", str(folder / "model"), "--measures", names, "--limit", "2", "--out", "m"]) == 0
    found = {line.measure: line for line in sf.read(here / "m").measured}
    assert found["perplexity"].score.value == pytest.approx(280, rel=0.2)  # it has learnt next to nothing
    assert found["induction:16"].score.value < 0.5
    assert found["repetition"].score is not None
    assert (
        run_cli(["measure", str(folder / "model"), "--measures", "perplexity,in-context-learning", "--out", "n"]) == 0
    )
    refused = sf.read(here / "n").measured[1]  # its window is too short: said, and the others measured all the same
    assert refused.score is None
    assert "208 tokens; expected no more than the model's window of 128" in refused.why_not


@pytest.mark.real
def test_an_exported_model_of_a_task_is_measured_as_what_it_learnt(here):
    """One layer with KV shift learns induction, and the measure of it, whose sequences are others, sees that."""
    folders = {}
    for attention in ("vanilla", "kv_shift"):
        _, folders[attention] = train(
            task="induction:vocabulary=43,length=32,train_on=scored",
            layers=1,
            hidden=64,
            heads=4,
            steps=100,
            batch=64,
            lr=5e-3,
            warmup=20,
            look_every=100,
            test=8,
            attention=[attention],
            out=here / attention,
            quiet=True,
        )
    lms = {name: sf.load(folder / "model") for name, folder in folders.items()}
    found = {name: sf.measure(lm, ["induction:16"], limit=16).measured[0] for name, lm in lms.items()}
    assert found["vanilla"].chance == 1 / 43
    assert found["kv_shift"].score.low > 2 * found["vanilla"].score.high
    assert found["kv_shift"].details["prefix matching"] > 5 * found["vanilla"].details["prefix matching"]


def test_a_trained_model_goes_on_from_where_it_was(here):
    (here / "t.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    options = {"text": "t.txt", "length": 16, "batch": 4, "test": 2, "steps": 2, "lr": 1e-9}
    _, base = train(out=here / "base", layers=1, hidden=16, heads=2, **options)
    (base / "model" / "LICENSE").write_text("terms")
    record, more = train(out=here / "more", base=str(base / "model"), attention=["kv_shift", "gated"], **options)
    assert (more / "model" / "LICENSE").read_text() == "terms"
    first = read_record(Training, base / "result.json")
    # The exact starts of both variants: the loss is what it was.
    assert record.curve("eval_loss")[0][1] == pytest.approx(first.curve("eval_loss")[-1][1], rel=1e-5)
    with pytest.raises(StudfinderError, match="are what they are"):
        plan_train(base=str(base / "model"), layers=2, **options)


def test_dry_run_writes_nothing(here, capsys):
    (here / "t.txt").write_text("some text")
    assert run_cli(["train", "--preset", "kv-shift-1.5b", "--text", "t.txt", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "1.56e+03 M parameters, 10 B tokens" in printed
    assert "; text: t.txt\n" in printed
    assert "up to 84 GB of disk" in printed  # 40 bytes a parameter, and two for each of 10.6 B tokens
    assert "kv_shift" in printed
    assert not (here / "runs").exists()


def test_a_preset_that_brings_its_texts(here, monkeypatch):
    """The vehicle, with a tenth of its text and two of its steps."""
    for name in ("text/public_domain_en.txt", "calibration/wikipedia.txt", "wikitext2/wiki.test.raw"):
        file = here / "data" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(f"The quick brown fox of {name} jumps over the lazy dog.\n" * 60)
    monkeypatch.setenv("STUDFINDER_DATA", str(here / "data"))
    small = {"preset": "vehicle-span", "steps": 2, "test": 4, "look_every": 1, "quiet": True}
    record, _ = train(**small)
    assert (record.parameters, record.tokens) == (228_032, 2 * 8 * 65)
    assert (
        record.run.settings["data_source"]
        == "text/public_domain_en.txt (STUDFINDER_DATA) + wikipedia sample (STUDFINDER_DATA)"
    )
    assert {name: record.run.settings[name] for name in ("data_repeat", "model_scaled_init", "schedule")} == {
        "data_repeat": 16,
        "model_scaled_init": True,
        "schedule": "cool-down",
    }
    plans = [plan_train(**small), plan_train(**small, test_text="wikipedia"), plan_train(**small, repeat=8)]
    plans.append(plan_train(**small, text="wikipedia"))
    assert len({str(sorted(plan.settings.items(), key=str)) for plan in plans}) == 4
    assert plans[3].config.test_text is None  # its own last windows
    for settings in ({"repeat": 4}, {"test_text": "wikitext2"}):
        with pytest.raises(StudfinderError, match="a task makes its own sequences"):
            plan_train(**PLAN, **settings)


def test_ctrl_c_and_the_same_command_again(here, capsys, monkeypatch):
    from transformers import TrainerCallback

    import studfinder.verbs.train as verb

    class Press(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    options = ["train", *SMALL, "--steps", "6", "--look-every", "2"]
    assert run_cli([*options, "--out", "whole"]) == 0
    line = verb.LiveLine
    monkeypatch.setattr(verb, "LiveLine", Press)
    assert run_cli([*options, "--out", "r"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (here / "r" / "result.json").exists()
    monkeypatch.setattr(verb, "LiveLine", line)
    assert run_cli([*options, "--out", "r"]) == 0
    whole, again = (read_record(Training, here / name / "result.json") for name in ("whole", "r"))
    assert again.log == whole.log
    assert {"loss", "eval_loss", "outliers/inf_norm"} <= {name for entry in whole.log for name in entry}
    a, b = ((here / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "r"))
    assert a == b


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing to train on; expected one of the two: --task"),
        (["--preset", "toy"], "or --text (a file"),
        (["--task", "recall", "--text", "t.txt"], "one of the two"),
        (["--text", "nowhere.txt"], "there is no text"),
        (["--text", "proof"], "there is no text 'proof'; expected a file, a folder, a name below STUDFINDER_DATA"),
        (["--text", "proof"], "or wikitext2, c4, wikipedia."),
        (["--task", "recall", "--steps", "20", "--warmup", "20"], "a warm-up of 20 steps in a run of 20"),
        (["--text", "short.txt"], "too few for windows of 128"),
        (["--text", "t.txt", "--length", "8", "--batch", "4000"], "shorter than a batch"),
        (["--text", "empty.txt"], "is empty"),
        (["--task", "nothing"], "there is no task 'nothing'"),
        (["--task", "recall", "--attention", "magic"], "there is no attention 'magic'"),
        (["--task", "recall", "--attention", "kv_shift:strength=2"], "attention kv_shift has no setting 'strength'"),
        (["--task", "recall", "--attention", "kv_shift", "--attention", "kv_shift"], "both change"),
        (["--task", "recall", "--preset", "huge"], "there is no preset"),
        (["--task", "recall", "--hidden", "30"], "a width that they divide"),
        (["--task", "recall", "--length", "32"], "a task has its own length"),
        (["--task", "recall", "--schedule", "wavy"], "schedule 'wavy' is unknown"),
        (["--task", "recall", "--micro", "3"], "does not divide"),
        (["--task", "recall", "--lr", "-1"], "lr=-1.0; expected above 0"),
        (["--task", "recall", "--precision", "fp8"], "precision 'fp8' is unknown"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(here, capsys, options, said):
    (here / "t.txt").write_text("some text " * 100)
    (here / "short.txt").write_text("some text")
    (here / "empty.txt").write_text("\n")
    assert run_cli(["train", *options]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert "internal error" not in printed.err
    assert printed.out == ""


def test_tensorboard_that_is_not_installed(here, capsys, monkeypatch):
    monkeypatch.setattr("studfinder.verbs.train.find_spec", lambda name: None)
    assert run_cli(["train", *SMALL, "--steps", "1", "--tensorboard"]) == 2
    assert 'pip install "studfinder[train]"' in capsys.readouterr().err


@pytest.mark.parametrize("kind", [OSError, SafetensorError])
def test_a_full_disk_leaves_no_half_model(here, monkeypatch, capsys, kind):
    def full(*_args, **_kwargs):
        if kind is OSError:
            raise OSError(28, "No space left on device")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    assert run_cli(["train", *SMALL, "--steps", "2", "--out", "r"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (here / "r" / "model").exists()
    assert not (here / "r" / ".model").exists()
    assert not (here / "r" / "result.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run_cli(["train", *SMALL, "--steps", "2", "--out", "r"]) == 0
    assert (here / "r" / "model" / "model.safetensors").is_file()


def test_help_has_examples(capsys):
    assert run_cli(["train", "--help"]) == 0
    assert "accelerate launch" in capsys.readouterr().out


@pytest.fixture
def base(here):
    """A trained model of context 16 and width 16, and a text to go on with."""
    (here / "t.txt").write_text("The quick brown fox jumps over the lazy dog. " * 60)
    return _untrained(here, "llama")


def _untrained(here, architecture):
    shape = ModelShape(architecture=architecture, layers=1, hidden=16, heads=2)
    folder = here / f"base-{architecture}"
    build_model(shape, [], vocabulary=257, length=16, seed=0).save_pretrained(folder)
    train_tokenizer(["a fox"], None).save_pretrained(folder)
    return str(folder)


def test_precision_of_a_trained_model_is_chosen_by_its_own_width(base, monkeypatch):
    asked = []
    monkeypatch.setattr("studfinder.verbs.train_plan.faster_precision", lambda width: asked.append(width) or "fp32")
    plan_train(base=base, text="t.txt", length=16)
    plan_train(text="t.txt", hidden=32)
    assert asked == [16, 32]


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_windows_longer_than_a_trained_models_context(base, here, mistake, architecture):
    model = _untrained(here, architecture)
    said = mistake("train", "--from", model, "--text", "t.txt", "--length", 17, "--out", "r")
    assert "windows of 17 tokens; expected at most 16" in said
    assert not (here / "r").exists()
    assert plan_train(base=model, text="t.txt").length == 16
    with pytest.raises(StudfinderError, match="windows of 128 tokens"):  # a preset that was named means what it says
        plan_train(base=model, text="t.txt", preset="toy")


def test_a_trained_model_without_a_tokenizer_makes_no_folder(base, here, mistake):
    for file in (here / "base-llama").glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in mistake("train", "--from", base, "--text", "t.txt", "--length", 16, "--out", "r")
    assert not (here / "r").exists()


def test_apart_is_refused_where_it_would_do_nothing(base, here, mistake):
    for architecture in ("llama", "opt"):
        scratch = {"text": "t.txt", "length": 16, "apart": True, "architecture": architecture}
        further = {"text": "t.txt", "length": 16, "apart": True, "base": _untrained(here, architecture)}
        if architecture == "llama":
            assert plan_train(**scratch).config.apart
            assert plan_train(**further).config.apart
        else:
            for options in (scratch, further):
                with pytest.raises(StudfinderError, match="does not keep packed documents apart"):
                    plan_train(**options)
    said = mistake("train", "--preset", "opt-125m", "--text", "t.txt", "--apart", "--out", "r")
    assert "does not keep packed documents apart" in said
    assert not (here / "r").exists()
    assert "no documents" in mistake("train", "--task", TASK, "--apart")


def test_a_warm_up_leaves_something_to_train(here, capsys):
    assert plan_train(task=TASK, steps=300).recipe.warmup == 100
    assert plan_train(task=TASK, steps=300).notes == ()
    assert plan_train(task=TASK, steps=60).recipe.warmup == 30
    assert plan_train(task=TASK, steps=60, warmup=59).recipe.warmup == 59  # asked for
    assert run_cli(["train", *SMALL, "--steps", "60", "--dry-run"]) == 0
    assert "note: warm-up of 30 steps, half of the run, instead of the preset's 100" in capsys.readouterr().out


def test_bad_input_leaves_the_folder_to_the_corrected_command(base, here, capsys):
    options = ["--text", "t.txt", *SMALL[2:], "--length", "16", "--steps", "2", "--warmup", "0", "--out", "r"]

    def said(*arguments):
        assert run_cli(["train", *arguments]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "shorter than a batch" in said(*options, "--batch", "4000")
    assert not (here / "r").exists()
    assert "too few for windows" in said(*options, "--length", "5000")
    assert not (here / "r").exists()
    assert "RoPE" in said("--from", _untrained(here, "opt"), *options[:2], *options[-6:], "--attention", "rope")
    assert not (here / "r").exists()
    (here / "b.jsonl").write_text('{"text": "' + "a fox " * 1000 + '"}\n{broken')
    assert "line 2 is not valid JSON" in said(*options, "--text", "b.jsonl")
    assert not (here / "r").exists()
    (here / "r").mkdir()  # an empty folder was somebody's before
    assert "shorter than a batch" in said(*options, "--batch", "4000")
    assert list((here / "r").iterdir()) == []
    assert run_cli(["train", *options]) == 0
    assert (here / "r" / "tokens.npy").is_file()


def test_what_was_tokenized_before_is_kept_by_a_run_that_fails(base, here, monkeypatch, capsys):
    options = ["--text", "t.txt", *SMALL[2:], "--length", "16", "--steps", "2", "--warmup", "0", "--out", "r"]
    assert run_cli(["train", *options]) == 0
    partial = interrupted(here / "r")
    before = sorted(child.name for child in partial.iterdir())

    def broken(*_, **__):
        raise StudfinderError("no such luck")

    monkeypatch.setattr("studfinder.verbs.train.fit", broken)
    assert run_cli(["train", *options]) == 2
    assert "no such luck" in capsys.readouterr().err
    assert sorted(child.name for child in partial.iterdir()) == before


@pytest.mark.parametrize("name", ["tokens.npy", "tokenizer.json"])
def test_a_text_that_is_not_as_it_was_tokenized_is_refused(base, here, capsys, name):
    options = ["--text", "t.txt", *SMALL[2:], "--length", "16", "--steps", "2", "--warmup", "0", "--out", "r"]
    assert run_cli(["train", *options]) == 0
    file = interrupted(here / "r") / name
    whole = file.read_bytes()
    swapped = whole.replace(b"a", b"b", 1) if name == "tokenizer.json" else whole[:-1] + bytes([whole[-1] ^ 1])
    file.write_bytes(swapped)
    assert run_cli(["train", *options]) == 2
    assert f"{name} is not as it was written" in capsys.readouterr().err


def test_tensorboard_shows_what_the_log_holds(here):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    record, folder = train(**PLAN, out=here / "r", quiet=True, tensorboard=True)
    (events,) = folder.rglob("events.out.tfevents.*")
    seen = accumulator.EventAccumulator(str(events), size_guidance={accumulator.SCALARS: 0})
    seen.Reload()
    tags = {"loss": "train/loss", "eval_loss": "eval/loss", "eval_accuracy": "eval/accuracy"}
    names = [name for entry in record.log for name in entry if name.startswith("outliers/")]
    assert "outliers/inf_norm" in names
    tags |= {name: f"train/{name}" for name in names}
    for name, tag in tags.items():
        shown = [(event.step, event.value) for event in seen.Scalars(tag)]
        assert [step for step, _ in shown] == [2, 4] if name != "loss" else [1, 2, 3, 4]
        assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in record.curve(name)], name


def test_a_rank_alone_in_the_environment_trains_and_writes(here, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run_cli(["train", *SMALL, "--steps", "2", "--out", "r"]) == 0
    assert (here / "r" / "result.json").is_file()
    assert (here / "r" / "model" / "config.json").is_file()


def test_the_report_of_a_training_is_drawn_again(here, capsys):
    assert run_cli(["train", *SMALL, "--steps", "4", "--look-every", "2", "--out", "r"]) == 0
    pages = ("report.html", "table.md", "figure-training.png")
    assert all((here / "r" / name).stat().st_size for name in pages)
    for name in pages:
        (here / "r" / name).unlink()
    (here / "r" / "notes.md").write_text("mine")
    capsys.readouterr()
    assert run_cli(["report", "r"]) == 0
    assert "r/report.html" in capsys.readouterr().out
    assert "test loss" in (here / "r" / "table.md").read_text()
    assert (here / "r" / "notes.md").read_text() == "mine"
    assert run_cli(["report", "r/result.json", "--out", "elsewhere"]) == 0
    assert (here / "elsewhere" / "report.html").is_file()
