"""sf.quantize: the checkpoint on disk, its card, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import checkpoint
from scanned import a_scan, findings_for
from studfinder.cli.app import run_cli
from studfinder.edits import Weights
from studfinder.errors import StudfinderError
from studfinder.measures.effects import between
from studfinder.measures.perplexity import perplexity, windows_of
from studfinder.models import load
from studfinder.quantizers import RTN, SCHEMES, Clip, Scheme, Split, hold_out, quantize_weight, quantized, skip, targets
from studfinder.quantizers.activations import ActivationScheme, WithActivations
from studfinder.quantizers.checkpoint import TensorGroup, shards, write_shard
from studfinder.records import MassiveValue, Quantization, read_record
from studfinder.records.json import to_json
from studfinder.runs import write_text
from studfinder.verbs.quantize import quantize
from studfinder.verbs.quantize_plan import default_scheme
from tiny import D, tiny, token_ids, tokenizer

BF16 = torch.bfloat16
W4 = RTN(scheme=Scheme(block=16, zero="integer"), clip=Clip(steps=3))
PLAIN = """
import json, sys, torch
sys.modules["studfinder"] = None  # importing it is an error
from transformers import AutoModelForCausalLM, AutoTokenizer
import transformers
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
ids = torch.tensor(json.loads(sys.argv[1]))
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        torch.save(model(ids).logits, folder + "/logits.pt")
"""


def plainly(folders: list[Path]) -> list[torch.Tensor]:
    """Logits of checkpoints by plain transformers, in a process that cannot import studfinder."""
    command = [sys.executable, "-c", PLAIN, json.dumps(token_ids().tolist()), *map(str, folders)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, env=environment)
    return [torch.load(folder / "logits.pt") for folder in folders]


@pytest.mark.real
def test_plain_transformers_gives_the_logits_of_the_model_in_memory(tmp_path):
    ids = token_ids()
    source = checkpoint(tmp_path / "source", dtype=BF16)
    wide = tmp_path / "wide"  # every matrix has inputs in blocks of 32
    quantize(load(source), W4, transforms=Split(neurons=((0, 1),), multiple=32), out=wide, format="dense")
    tied = tmp_path / "tied"
    lm = tiny("llama", dtype=BF16)
    lm.model.config.tie_word_embeddings = True
    lm.model.tie_weights()
    lm.model.save_pretrained(tied)
    tokenizer().save_pretrained(tied)
    cases = [
        (source, W4, "auto", None),
        (source, RTN(scheme=Scheme(element="int3", block="channel")), "auto", None),
        (source, RTN(scheme=Scheme(element="int8", block="channel")), "int-quantized", None),
        (source, RTN(scheme=Scheme(element="fp8", block="channel")), "auto", None),
        (source, RTN(scheme=Scheme(element="int8", block="tensor", zero="integer")), "auto", None),
        (source, RTN(scheme=SCHEMES["nvfp4"]), "auto", None),
        (wide, RTN(scheme=SCHEMES["mxfp4"]), "auto", None),
        (source, W4, "auto", skip("*.1.self_attn.v_proj")),
        (source, RTN(scheme=Scheme(block=7, zero="float", remainder="block", scale="float32")), "dense", None),
        (tied, W4, "auto", None),
        (load(source), W4, "dense", hold_out(fraction=0.02)),  # in memory: findings and held-out numbers
        (checkpoint(tmp_path / "falcon", "falcon", dtype=BF16), RTN(scheme=SCHEMES["w8-channel"]), "auto", None),
        (source, RTN(scheme=SCHEMES["w4-channel"]), "auto", None),
        (load(tied), W4, "auto", hold_out(Weights(parameter="model.layers.1.mlp.down_proj.weight", entries=((3, 4),)))),
    ]
    folders, expected = [], []
    for number, (where, method, form, keep) in enumerate(cases):
        out = tmp_path / f"out-{number}"
        done = quantize(where, method, keep=keep, out=out, format=form)
        lm = load(where)
        names = [skip(name) for name in done.skipped if done.instead]  # skipped because of what was to be kept
        with quantized(lm, method, keep=names or keep) as bench:
            expected.append(lm.model(ids).logits)
            assert done.bits == pytest.approx(bench.bits)
        folders.append(out)
    for number, (found, wanted) in enumerate(zip(plainly(folders), expected, strict=True)):
        assert torch.equal(found, wanted), cases[number]


def test_files_and_memory_make_the_same_tensors(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    quantize(source, W4, out=tmp_path / "files")
    quantize(load(source), W4, out=tmp_path / "memory")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("files", "memory"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("files", "memory")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


def test_what_engines_fuse_shares_one_tensor_scale_and_no_value_changes_by_it(tmp_path):
    lm = tiny("llama", dtype=BF16)
    names = [f"model.layers.0.self_attn.{one}_proj" for one in "qkv"]
    with torch.no_grad():
        lm.model.get_parameter(f"{names[1]}.weight").mul_(20)
        lm.model.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(1e6)  # too far for its gate
    lm.model.save_pretrained(tmp_path / "source")
    tokenizer().save_pretrained(tmp_path / "source")
    method, found = RTN(scheme=SCHEMES["nvfp4"]), {}
    for where, source in (("files", tmp_path / "source"), ("memory", load(tmp_path / "source"))):
        done = quantize(source, method, out=tmp_path / where)
        assert [note.partition(":")[0] for note in done.notes] == ["model.layers.1.mlp.gate_proj+up_proj"]
        found[where] = load_file(tmp_path / where / "model.safetensors")
    assert all(torch.equal(found["files"][name], found["memory"][name]) for name in found["memory"])
    wholes = {found["files"][f"{name}.weight_global_scale"].item() for name in names}
    own = {quantize_weight(lm.model.get_parameter(f"{name}.weight"), method.scheme).grid.tensor_scale for name in names}
    assert wholes == {min(own).item()} < {one.item() for one in own}
    with quantized(load(tmp_path / "source"), method) as bench:
        for name in names:
            made = bench.done[f"{name}.weight"]
            alone = quantize_weight(lm.model.get_parameter(f"{name}.weight"), method.scheme)
            assert torch.equal(made.dequantized(), alone.dequantized())


def test_a_live_model_is_as_before(tmp_path):
    lm = tiny("llama", dtype=BF16)
    before = {name: value.clone() for name, value in lm.model.state_dict().items()}
    quantize(lm, W4, out=tmp_path / "out", keep=hold_out(fraction=0.01), format="dense")
    assert all(torch.equal(value, before[name]) for name, value in lm.model.state_dict().items())


def test_the_card_says_what_was_done_and_how_kept_numbers_are_held(tmp_path):
    lm = tiny("llama", dtype=BF16)
    entry = Weights(parameter="model.layers.1.mlp.down_proj.weight", entries=((3, 4),))
    done = quantize(lm, W4, keep=[hold_out(entry), skip("*.0.mlp.up_proj")], out=tmp_path / "out")
    assert done.instead == ("model.layers.1.mlp.down_proj",)
    assert done.skipped == ("model.layers.0.mlp.gate_proj+up_proj", "model.layers.1.mlp.down_proj")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"{done.bits:.3f}" in card
    assert "no place for single numbers" in card
    for name in done.skipped:
        assert card.count(f"`{name}`") == 1
    ignored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["ignore"]
    assert set(ignored) == {
        "lm_head",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.1.mlp.down_proj",
    }
    record = json.loads((tmp_path / "out" / "studfinder.json").read_text())
    assert record["settings"]["scheme"]["block"] == 16


def test_the_card_says_what_was_lost_as_the_files_are(tmp_path, monkeypatch):
    text = [" ".join(f"w{(i * j) % 90 + 3}" for i in range(60)) for j in range(1, 5)]
    monkeypatch.delenv("STUDFINDER_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)  # there is no network either
    monkeypatch.setattr("studfinder.verbs.quantize_scores.TEXTS", ((text, 16, None), ("wikitext2", 16, None)))
    lm = load(tiny("llama", dtype=BF16).model, tokenizer())
    done = quantize(lm, W4, out=tmp_path / "out", score=True)
    made = load(tmp_path / "out")
    before, after = (perplexity(one, text, window=16).value for one in (lm, made))
    effects = between(lm, made, windows_of(lm, text, window=16)[1])
    kl = effects.kl_interval(0)
    assert 0 < kl.low < kl.value < kl.high
    lines = list(done.scores.values())
    assert lines[0].startswith(f"{kl.value:.4f} nats per token ({kl.low:.4f} to {kl.high:.4f}")
    assert lines[1].startswith(f"{after:.3f}, {after / before:.3f} times the original's {before:.3f} (")
    assert lines[2].startswith("not measured: text 'wikitext2' is not here")
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(line in card for line in lines)


def test_the_default_group_is_the_largest_that_divides():
    assert default_scheme([(8, 256), (8, 1024)], BF16).block == 128
    assert default_scheme([(8, 576), (8, 1536)], BF16).block == 64
    assert default_scheme([(8, 96)], BF16).block == 32
    assert default_scheme([(8, 100)], torch.float16) == Scheme(block="channel", zero="integer", scale="float16")


def test_what_is_refused_leaves_nothing(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    out = tmp_path / "out"
    with pytest.raises(StudfinderError, match=r"weight: blocks of 1 x 128 do not divide"):
        quantize(source, RTN(scheme=Scheme(block=128)), out=out)
    with pytest.raises(StudfinderError, match="no place in compressed-tensors"):
        quantize(source, RTN(scheme=Scheme(block=16, zero="float")), out=out)
    with pytest.raises(StudfinderError, match="everything is skipped"):
        quantize(source, W4, keep=skip("*"), out=out)
    with pytest.raises(StudfinderError, match="every matrix has numbers to hold out"):
        quantize(source, W4, keep=hold_out(fraction=0.1), out=out)
    with pytest.raises(StudfinderError, match="Conv1D"):
        quantize(checkpoint(tmp_path / "gpt2", "gpt2", dtype=BF16), W4, out=out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "source"]


def test_conv1d_goes_into_a_dense_checkpoint(tmp_path):
    source = checkpoint(tmp_path / "gpt2", "gpt2")
    method = RTN(scheme=Scheme(block="channel", scale="float32"))
    quantize(source, method, out=tmp_path / "out", format="dense")
    lm = load(source)
    with quantized(lm, method):
        expected = lm.model(token_ids()).logits
    assert torch.equal(load(tmp_path / "out").model(token_ids()).logits, expected)


def test_a_folder_that_exists_is_kept_unless_it_is_to_be_replaced(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    out = tmp_path / "out"
    quantize(source, W4, out=out)
    old = (out / "model.safetensors").read_bytes()
    made = (out / "studfinder.json").stat().st_mtime_ns
    assert quantize(source, W4, out=out) == read_record(Quantization, out / "studfinder.json")  # shown, not made again
    assert (out / "studfinder.json").stat().st_mtime_ns == made
    with pytest.raises(StudfinderError, match=r"holds another run: scheme was .*--overwrite"):
        quantize(source, RTN(scheme=Scheme(element="int8", block=16)), out=out)
    assert (out / "model.safetensors").read_bytes() == old
    quantize(source, RTN(scheme=Scheme(element="int8", block=16)), out=out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != old
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    with pytest.raises(StudfinderError, match="not a studfinder run"):
        quantize(source, W4, out=mine, overwrite=True)
    with pytest.raises(StudfinderError, match="is a file"):
        quantize(source, W4, out=mine / "thesis.txt")
    assert (mine / "thesis.txt").read_text() == "precious"


def test_a_weight_that_is_not_finite_is_named_and_the_old_folder_stays(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    out = tmp_path / "out"
    quantize(source, W4, out=out)
    old = (out / "model.safetensors").read_bytes()
    file = source / "model.safetensors"
    weights = load_file(file)
    for name in ("model.layers.2.mlp.up_proj.weight", "model.embed_tokens.weight"):
        damaged = {key: value.clone() for key, value in weights.items()}
        damaged[name][1, 1] = float("nan")
        save_file(damaged, file, metadata={"format": "pt"})
        with pytest.raises(StudfinderError, match=f"{name}: a weight is NaN"):
            quantize(source, W4, out=out, overwrite=True)
        assert (out / "model.safetensors").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def sharded(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    model = tiny("llama", dtype=BF16).model
    model.save_pretrained(source, max_shard_size="20KB")
    tokenizer().save_pretrained(source)
    assert len(list(source.glob("*.safetensors"))) > 2
    return source


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [1, 8, 15, 28])
def test_an_interrupted_export_leaves_the_old_and_goes_on_where_it_was(tmp_path, at):
    source, out = sharded(tmp_path), tmp_path / "out"
    quantize(source, RTN(scheme=Scheme(element="int8", block=16)), out=out)
    old = {path.name: path.read_bytes() for path in out.iterdir()}
    counts: list[int] = []

    def killed(_what, done, _total):
        if done == at:
            raise Killed

    with pytest.raises(Killed):
        quantize(source, W4, out=out, overwrite=True, progress=killed)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == old
    quantize(source, W4, out=out, overwrite=True, progress=lambda _w, done, _t: counts.append(done))
    quantize(source, W4, out=tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        if path.name not in ("studfinder.json", "README.md", "run.json"):  # they say when they were made
            assert path.read_bytes() == (out / path.name).read_bytes(), path.name
    if at > 10:  # at least one shard was whole by then
        assert counts[0] > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source", "whole"]


def test_a_checkpoint_of_the_version_before_is_replaced_by_its_own_names_only(tmp_path):
    source, out = checkpoint(tmp_path / "source", dtype=BF16), tmp_path / "out"
    quantize(source, W4, out=out)
    (out / "run.json").unlink()
    (out / "thesis.txt.gz").write_text("precious")
    with pytest.raises(StudfinderError, match=r"also holds thesis\.txt\.gz"):
        quantize(source, W4, out=out, overwrite=True)
    (out / "thesis.txt.gz").unlink()
    quantize(source, W4, out=out, overwrite=True)
    assert (out / "run.json").is_file()


def test_an_interrupted_export_is_not_continued_with_other_settings(tmp_path):
    source, out = sharded(tmp_path), tmp_path / "out"

    def killed(_what, done, _total):
        if done == 20:
            raise Killed

    with pytest.raises(Killed):
        quantize(source, W4, out=out, progress=killed)
    assert not out.exists()
    other = RTN(scheme=Scheme(element="int8", block=16))
    quantize(source, other, out=out)
    quantize(source, other, out=tmp_path / "whole")
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (out / path.name).read_bytes()


def test_a_shard_is_what_safetensors_reads(tmp_path):
    made = {
        "a": torch.arange(6).reshape(2, 3),
        "b": torch.randn(3).to(BF16),
        "c": torch.randn(2, 2).to(torch.float8_e4m3fn),
    }
    entries = [TensorGroup({n: (t.dtype, tuple(t.shape))}, lambda n=n, t=t: {n: t}) for n, t in made.items()]
    write_shard(tmp_path / "x.safetensors", entries)
    found = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name].float(), made[name].float()) for name in made)
    assert [len(part) for part in shards(entries, limit=50)] == [1, 2]


def test_only_one_tensor_is_in_memory(tmp_path):
    """Each entry is made when it is written, after the one before it is gone."""
    import weakref

    alive: list[weakref.ref] = []
    most = 0

    def make(name):
        nonlocal most
        tensor = torch.zeros(8, 8)
        most = max(most, sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(tensor))
        return {name: tensor}

    entries = [TensorGroup({str(i): (torch.float32, (8, 8))}, lambda i=i: make(str(i))) for i in range(5)]
    write_shard(tmp_path / "x.safetensors", entries)
    assert len(alive) == 5
    assert most == 0


def test_findings_of_another_model_are_refused(tmp_path):
    findings, _ = a_scan()
    with pytest.raises(StudfinderError, match="expected findings of this model"):
        quantize(tiny("llama", dtype=BF16), W4, keep=findings, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_quantised_already_is_refused(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    quantize(source, W4, out=tmp_path / "out")
    with pytest.raises(StudfinderError, match="quantised already"):
        quantize(tmp_path / "out", W4, out=tmp_path / "again")
    assert len(targets(load(source))) == 21


def test_the_command_line(tmp_path, capsys):
    source, out = checkpoint(tmp_path / "source", dtype=BF16), tmp_path / "out"

    def says(code: int, *arguments: object) -> str:
        assert run_cli(["quantize", str(source), "--out", str(out), *map(str, arguments)]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    plan = says(0, "--dry-run")
    assert "21 matrices" in plan
    assert "int4 per channel" in plan  # no usual group divides 48
    assert "do not divide a matrix" in says(2, "--group", 32)
    assert "element 'int9' is unknown" in says(2, "--bits", 9)
    assert "there is no scheme 'w5'" in says(2, "--scheme", "w5")
    assert "one or the other" in says(2, "--scheme", "fp8", "--bits", 4)
    assert "there is no method 'guess'" in says(2, "--method", "guess")
    assert not out.exists()
    record = json.loads(says(0, "--group", 16, "--json", "--skip", "*.0.mlp.up_proj"))
    assert record == json.loads((out / "studfinder.json").read_text())
    assert record["skipped"] == ["model.layers.0.mlp.gate_proj+up_proj"]
    assert "holds another run" in says(2, "--group", 16)
    assert "float-quantized" in says(0, "--scheme", "fp8", "--overwrite")


def test_the_command_line_keeps_the_findings_of_a_run(tmp_path):
    source, name = checkpoint(tmp_path / "source", dtype=BF16), "model.layers.1.mlp.down_proj.weight"
    scan = tmp_path / "scan"
    scan.mkdir()
    write_text(scan / "findings.json", to_json(findings_for(load(source), [(name, (3, 4), "proven")])))
    before = load_file(source / "model.safetensors")[name]
    rounded = {}
    for flag in ("", "--keep", "--keep-columns"):
        out = tmp_path / f"out{flag}"
        kept = [flag, str(scan)] if flag else []
        command = ["quantize", str(source), "--out", str(out), "--bits", "3", "--format", "dense"]
        assert run_cli([*command, *kept]) == 0
        rounded[flag] = (load_file(out / "model.safetensors")[name] != before).nonzero().tolist()
    assert [3, 4] in rounded[""]
    assert [3, 4] not in rounded["--keep"]
    assert {row for row, col in rounded["--keep"] if col == 4} == {row for row, col in rounded[""] if col == 4} - {3}
    assert {col for _, col in rounded["--keep-columns"]} == {col for _, col in rounded[""]} - {4}


@pytest.mark.parametrize(("said", "whole"), [("", "qk"), ("#key", "k"), ("#query", "q")])
def test_the_command_line_keeps_the_rows_of_massive_values(said, whole, tmp_path):
    source, out, scan = checkpoint(tmp_path / "source", dtype=BF16), tmp_path / "out", tmp_path / "scan"
    scan.mkdir()
    values = [MassiveValue(layer=1, tensor=one, head=1, dim=1, norm=1.0, ratio=9.0) for one in ("query", "key")]
    found = replace(findings_for(load(source), []), massive_values=tuple(values))
    write_text(scan / "findings.json", to_json(found))
    command = ["quantize", str(source), "--out", str(out), "--bits", "3", "--format", "dense"]
    assert run_cli([*command, "--keep-massive", f"{scan}{said}"]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
    for letter in "qk":
        name = f"model.layers.1.self_attn.{letter}_proj.weight"
        same = (before[name] == after[name]).all(dim=1).nonzero().flatten().tolist()
        rows = [D + 1, D + 1 + D // 2] if letter in whole else []  # and the dim that rotates together with it
        assert set(rows) <= set(same)
        assert len(same) <= len(rows) + 1


def test_keeping_massive_values_of_what_has_none_is_refused(tmp_path, capsys):
    source, scan = checkpoint(tmp_path / "source", dtype=BF16), tmp_path / "scan"
    scan.mkdir()
    write_text(scan / "findings.json", to_json(findings_for(load(source), [])))
    command = ["quantize", str(source), "--out", str(tmp_path / "out"), "--format", "dense", "--keep-massive"]
    assert run_cli([*command, str(scan)]) == 2
    assert "has no massive values of query or key" in capsys.readouterr().err
    assert run_cli([*command, f"{scan}#value"]) == 2
    assert "there are no rows of 'value'" in " ".join(capsys.readouterr().err.split())


def test_the_command_line_rebalances_what_a_run_has_proven(tmp_path, capsys):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    name = "model.layers.1.mlp.down_proj.weight"
    findings = findings_for(load(source), [(name, (3, 4), "proven")])
    scan, out = tmp_path / "scan", tmp_path / "out"
    scan.mkdir()
    command = ["quantize", str(source), "--out", str(out), "--skip", "*.1.mlp.*", "--rebalance", str(scan)]
    for model, code in ((replace(findings.model, content_hash="another"), 2), (findings.model, 0)):
        write_text(scan / "findings.json", to_json(replace(findings, model=model)))
        assert run_cli(command) == code
    assert "expected findings of this model" in capsys.readouterr().err
    before, after = (load_file(folder / "model.safetensors") for folder in (source, out))
    up = name.replace("down", "up")
    assert torch.equal(after[name][:, 4], 8 * before[name][:, 4])
    assert torch.equal(after[name][:, 5:], before[name][:, 5:])
    assert torch.equal(after[up][4], before[up][4] / 8)


def test_the_model_itself_is_never_replaced(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    before = (source / "model.safetensors").read_bytes()
    for model in (source, load(source)):
        with pytest.raises(StudfinderError, match=r"overlaps .* which is read"):
            quantize(model, W4, out=tmp_path / "x" / ".." / "source", overwrite=True)
    assert (source / "model.safetensors").read_bytes() == before


def test_other_files_beside_the_checkpoint_are_not_part_of_it(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    (source / "consolidated.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    quantize(source, W4, out=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors*")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("model.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "is truncated or damaged"),
        ("model.safetensors", b"", "is truncated or damaged"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("config.json", b"{}", "does not know the model_type of"),
    ],
)
def test_damaged_files_are_named(tmp_path, capsys, file, text, message):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    (source / file).write_bytes(text)
    if "index" in file:  # which is not looked at beside a single file
        (source / "model.safetensors").unlink()
    assert run_cli(["quantize", str(source), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_out_folder_of_a_dot_is_the_folder_one_is_in(tmp_path, monkeypatch):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run_cli(["quantize", str(source), "--out", "."]) == 0
    assert (tmp_path / "here" / "config.json").is_file()


def test_a_dense_checkpoint_does_not_promise_rounded_inputs(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    done = quantize(source, WithActivations(), out=tmp_path / "out", format="dense")
    assert done.notes == ("a dense checkpoint holds weights only: whoever loads it does not round inputs",)
    lm, ids = load(source), token_ids()
    with quantized(lm, WithActivations().weights), torch.no_grad():
        expected = lm.model(ids).logits
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "out").model(ids).logits, expected)


def test_the_card_says_what_came_of_what_was_to_be_kept(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    done = quantize(source, W4, keep=hold_out(fraction=0.01), out=tmp_path / "out", format="dense")
    numbers = sum(int(0.01 * t.weight(load(source)).numel()) for t in targets(load(source)))
    assert done.kept == (
        "held out: the largest 1.000% of each matrix",
        f"in all {numbers:,} numbers of 21 matrices are held out",
    )


def test_activations_that_a_checkpoint_cannot_tell_of_are_refused_before_any_work(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    static = WithActivations(activations=ActivationScheme(range="static", scope="tensor"))

    def progress(*_):
        raise AssertionError("work was done")

    with pytest.raises(StudfinderError, match="only symmetric dynamic activations"):
        quantize(source, static, out=tmp_path / "out", samples=2, length=8, progress=progress)
    assert not (tmp_path / "out").exists()


@pytest.mark.real
def test_a_checkpoint_with_rounded_activations_loads_and_rounds_them(tmp_path):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    ids = token_ids()
    method = WithActivations(weights=RTN(scheme=Scheme(element="int8", block="channel")))
    done = quantize(source, method, out=tmp_path / "out")
    assert done.stored_as == "int-quantized"
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert config["group_0"]["input_activations"]["dynamic"] is True
    (found,) = plainly([tmp_path / "out"])
    lm = load(source)
    with quantized(lm, method.weights), torch.no_grad():
        unrounded = lm.model(ids).logits
    with quantized(lm, method), torch.no_grad():
        rounded = lm.model(ids).logits
    # compressed-tensors steps by max / 127.5 and in bf16, SmoothQuant's reference and ours by max / 127 in fp32.
    assert not torch.equal(found, unrounded)
    assert (found - rounded).norm() < 0.05 * rounded.norm()


def test_the_report_of_a_quantised_checkpoint_is_drawn(tmp_path, capsys):
    source = checkpoint(tmp_path / "source", dtype=BF16)
    quantize(source, W4, out=tmp_path / "out")
    assert run_cli(["report", str(tmp_path / "out")]) == 0
    assert "int4" in (tmp_path / "out" / "table.md").read_text()
    assert load(tmp_path / "out").model is not None
    (tmp_path / "out" / "run.json").unlink()  # what is left of a copy of it
    assert run_cli(["report", str(tmp_path / "out" / "studfinder.json"), "--out", str(tmp_path / "page")]) == 0
    assert run_cli(["report", str(tmp_path / "out"), str(source)]) == 2
    assert "holds no record" in capsys.readouterr().err
