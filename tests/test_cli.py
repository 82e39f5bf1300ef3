"""The command line: what it prints, where, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

import studfinder as sf
from checkpoints import PROMPT, checkpoint
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.records import Findings, from_json, read_record, to_plain
from tiny import tiny, tokenizer

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch, cache):
    """Default run folders land in a temporary place."""
    monkeypatch.chdir(tmp_path)


def test_a_scan_prints_a_screen_and_leaves_a_complete_run(model, tmp_path, capsys):
    out = tmp_path / "run"
    assert run_cli(["scan", str(model), "--out", str(out), "--prompt", PROMPT]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert len(printed.out.splitlines()) <= 24
    assert "None of the three was found" in printed.out
    assert "1 prompt" in printed.out
    assert "7 tokens, BOS first" in printed.out
    left = {path.name for path in out.iterdir()}
    drawn = {
        f"figure-{name}.{kind}"
        for name in ("depth", "maps", "picture", "ranges", "sinks", "spikes")
        for kind in ("png", "svg")
    }
    assert (
        left
        == {"findings.json", "profile.safetensors", "report.html", "card.png", "massive-dims.json", "run.json"} | drawn
    )
    findings = read_record(Findings, out / "findings.json")
    assert (findings.model.architecture, findings.prompts.bos, findings.prompts.tokens) == ("llama", True, (7,))
    profile = load_file(out / "profile.safetensors")
    assert profile["norm.query"].shape == (3, 4, 8)
    assert profile["residual.median"].shape == (4,)
    assert torch.isfinite(profile["residual.median"]).all()


def test_json_is_the_record_and_nothing_else(model, tmp_path, capsys):
    assert run_cli(["scan", str(model), "--json", "--prompt", PROMPT]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    written = next(tmp_path.glob("runs/*/scan-*/findings.json"))
    assert from_json(Findings, printed.out) == read_record(Findings, written)


def test_the_same_scan_finds_its_folder_again_and_another_is_refused(model, tmp_path, capsys):
    arguments = ["scan", str(model), "--prompt", PROMPT]
    assert run_cli(arguments) == 0
    assert run_cli(arguments) == 0
    assert len(list((tmp_path / "runs").glob("*/scan-*"))) == 1
    assert run_cli([*arguments, "--lam", "4"]) == 0
    assert len(list((tmp_path / "runs").glob("*/scan-*"))) == 2
    out = ["--out", "mine"]
    assert run_cli([*arguments, *out]) == 0
    capsys.readouterr()
    assert run_cli([*arguments, *out, "--lam", "4"]) == 2
    assert "threshold_lam was 5.0 and is now 4.0" in capsys.readouterr().err
    assert run_cli([*arguments, *out, "--lam", "4", "--overwrite"]) == 0


@pytest.mark.parametrize(("flag", "bos", "tokens"), [("--bos", True, 7), ("--no-bos", False, 6)])
def test_bos_is_forced_and_recorded(model, capsys, flag, bos, tokens):
    assert run_cli(["scan", str(model), "--json", flag, "--prompt", PROMPT]) == 0
    prompts = json.loads(capsys.readouterr().out)["prompts"]
    assert (prompts["bos"], prompts["tokens"]) == (bos, [tokens])


def test_sf_scan_gives_what_the_command_gives(model, capsys):
    assert run_cli(["scan", str(model), "--json", "--prompt", PROMPT]) == 0
    told = json.loads(capsys.readouterr().out)
    found = to_plain(sf.scan(sf.load(model), prompts=[PROMPT]))
    for name in ("model", "prompts", "summary", "super_weights", "massive_values", "attention_sinks", "nonfinite"):
        assert told[name] == found[name]
    assert told["run"]["settings"] == found["run"]["settings"]


def test_a_scan_leaves_the_model_as_it_was():
    lm = sf.load(tiny("llama").model, tokenizer())
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    sf.scan(lm, prompts=[PROMPT, "w9 w9"], batch_size=2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


def test_an_overflow_is_said_on_the_screen(tmp_path, capsys):
    lm = tiny("llama", dtype=torch.float16)
    with torch.no_grad():
        for name in ("up_proj", "gate_proj", "down_proj"):
            getattr(lm.model.model.layers[1].mlp, name).weight.mul_(2e3)
    lm.model.save_pretrained(tmp_path / "hot")
    tokenizer().save_pretrained(tmp_path / "hot")
    assert run_cli(["scan", str(tmp_path / "hot"), "--prompt", PROMPT]) == 0
    printed = capsys.readouterr().out
    assert "inf or NaN at residual[1]" in printed
    assert "residual[0]" not in printed


def test_dry_run_says_what_would_be_done_and_does_nothing(model, tmp_path, capsys):
    assert run_cli(["scan", str(model), "--dry-run", "--prompt", PROMPT]) == 0
    assert "would scan" in (printed := capsys.readouterr().out)
    assert "1 prompts, 7 tokens" in printed
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ls"], "smollm2"),
        (["ls", "models"], "Apache-2.0"),
        (["ls", "architectures"], "gpt_oss"),
        (["ls", "methods"], "Minimise the error of each matrix"),
        (["ls", "schemes"], "seen to load in"),
        (["ls", "detectors"], "massive_values"),
        (["env"], "transformers"),
        (["--version"], sf.__version__),
        (["--help"], "scan"),
        (["scan", "--help"], "--overwrite"),
        ([], "Usage"),
    ],
)
def test_small_verbs(arguments, words, capsys):
    assert run_cli(arguments) == 0
    printed = capsys.readouterr()
    assert words in printed.out
    assert printed.err == ""


def test_env_as_json(capsys, cache):
    assert run_cli(["env", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["torch"].startswith(torch.__version__.split("+")[0])
    assert facts["cache"] == str(cache)


@pytest.mark.parametrize(
    "code",
    [
        "import studfinder",
        "import studfinder.records, studfinder.errors",
        "from studfinder.cli.app import run_cli as do; assert do(['--help']) == 0; assert do(['scan', '--help']) == 0",
        "from studfinder.cli.app import run_cli as do; assert do(['scan', '--nonsense']) == 2",
    ],
)
def test_it_starts_without_torch(code):
    check = "; import sys; print('loaded:', *({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_an_interruption_exits_with_130(model, monkeypatch, capsys):
    def interrupt(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("studfinder.verbs.scan.observe", interrupt)
    assert run_cli(["scan", str(model), "--out", "mine", "--prompt", PROMPT]) == 130
    assert capsys.readouterr().err.splitlines() == ["studfinder: interrupted; nothing that existed was lost"]


def test_an_interrupted_scan_is_taken_up_again(model, tmp_path, monkeypatch, capsys):
    arguments = ["scan", str(model), "--out", str(tmp_path / "mine"), "--prompt", PROMPT]
    with monkeypatch.context() as patched:
        patched.setattr("studfinder.verbs.scan.published_for", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_cli(arguments) == 130
    assert not (tmp_path / "mine" / "findings.json").exists()
    assert run_cli(arguments) == 0
    assert (tmp_path / "mine" / "findings.json").exists()


def test_an_internal_error_is_one_line_and_exit_1_unless_debugged(model, monkeypatch, capsys):
    def fail(*_args, **_kwargs):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("studfinder.verbs.scan.observe", fail)
    assert run_cli(["scan", str(model), "--prompt", PROMPT]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(RuntimeError):
        run_cli(["scan", str(model), "--prompt", PROMPT, "--debug"])


def test_debug_shows_the_traceback_of_a_mistake(capsys):
    assert run_cli(["ls", "nonsense", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_went_away_is_no_error():
    command = f"{sys.executable} -m studfinder scan --help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_error_type_reads_as_one_line_and_survives_pickling():
    import pickle

    error = StudfinderError("the wall fell.", expected="a stud", do="Look first")
    assert str(error) == "the wall fell; expected a stud. Look first."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
