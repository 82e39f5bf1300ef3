"""What was loaded is what the checkpoint holds: whatever else is refused in one line, or listed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints import PROMPT, checkpoint
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.models import LM, cached_content_hash, check_checkpoint, content_hash, load, model_card, pretrained
from studfinder.models.loading import Judgement
from tampered import KINDS, Bench, Case
from tiny import ARCHITECTURES, CONFIGS, tiny, token_ids

TOKENS = token_ids(1, 7)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench.at(tmp_path_factory.mktemp("tampered"))


def logits(lm: LM) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(TOKENS).logits


def silent(bench: Bench, case: Case) -> bool:
    """Whether a case passes without a word and computes something else than what its files mean."""
    try:
        lm = load(bench.put(case.family, case.weights))
    except StudfinderError as error:
        return "\n" in str(error) or case.family not in str(error)  # one line, and the folder is named
    found = logits(lm)
    meant = logits(load(bench.put(case.family, case.meant)))
    return not torch.equal(found, meant)


def unnoticed(bench: Bench, kind: str, count: int) -> list[str]:
    return [case.what for case in bench.cases(kind, count) if silent(bench, case)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_tampering_is_silent(bench, kind):
    assert unnoticed(bench, kind, 8) == []


@pytest.mark.deep
@pytest.mark.parametrize("kind", KINDS)
def test_no_tampering_is_silent_in_any_of_many(bench, kind):
    assert unnoticed(bench, kind, 200) == []


def _blind(monkeypatch) -> None:
    monkeypatch.setattr(pretrained, "judge", lambda source, said: Judgement())


@pytest.mark.parametrize("count", [pytest.param(3, id="few"), pytest.param(30, id="many", marks=pytest.mark.deep)])
def test_without_the_check_nearly_all_would_be_silent(bench, monkeypatch, count):
    _blind(monkeypatch)
    # Only cases that the check notices: a base model's prefix is mended by transformers, a float cast is right.
    cases = [case for kind in KINDS for case in bench.cases(kind, count) if _told(bench, case, monkeypatch)]
    passed = 0
    for case in cases:
        try:
            load(bench.put(case.family, case.weights))
        except StudfinderError:
            continue
        passed += 1
    assert len(cases) > 5 * count
    assert passed >= 0.9 * len(cases), f"{passed} of {len(cases)}"


def _told(bench: Bench, case: Case, monkeypatch) -> bool:
    with monkeypatch.context() as seeing:
        from studfinder.models.judging import judge

        seeing.setattr(pretrained, "judge", judge)
        try:
            return bool(load(bench.put(case.family, case.weights)).source.notes)
        except StudfinderError as error:
            # What transformers itself stops at (experts that do not stack) is no work of the check.
            return error.__cause__ is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_good_checkpoint_passes_without_a_word(tmp_path, capsys, architecture, dtype):
    tiny(architecture, dtype=dtype).model.save_pretrained(tmp_path)
    capsys.readouterr()
    lm = load(tmp_path)
    assert lm.source.notes == lm.source.allowed == ()
    assert capsys.readouterr().err == ""
    assert check_checkpoint(tmp_path) == ()


# --- what may be left out, and is listed ----------------------------------------------------------------------------

_LAYER = {f"model.layers.3.{leaf}": torch.ones(32) for leaf in ("input_layernorm.weight", "enorm.weight")}
LISTED = {
    "scales of a cache": ("llama", {f"model.layers.{i}.self_attn.k_scale": torch.ones(1) for i in range(3)}),
    "scales of a cache, by projection": ("llama", {"model.layers.0.self_attn.v_proj.output_scale": torch.ones(1)}),
    "heads that predict further": ("llama", {**_LAYER, "model.layers.3.eh_proj.weight": torch.ones(32, 64)}),
    "heads of their own name": ("llama", {"mtp.layers.0.mlp.down_proj.weight": torch.ones(32, 48)}),
    "a vision tower": (
        "llama",
        {"vision_tower.layers.0.fc1.weight": torch.ones(4, 4), "visual.a.weight_scale": torch.ones(1)},
    ),
    "masks, which the class ignores by name": ("gpt2", {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8)}),
    "old frequencies": ("llama", {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
}


@pytest.mark.parametrize("what", LISTED)
def test_what_need_not_be_in_memory_is_listed_once(bench, capsys, what):
    family, more = LISTED[what]
    good = logits(load(bench.put(family, bench.weights[family])))
    capsys.readouterr()
    lm = load(bench.put(family, {**bench.weights[family], **more}))
    (line,) = lm.source.notes
    assert line.startswith("not loaded, ")
    assert f"{len(more)} tensor" in line
    assert capsys.readouterr().err.count(line) <= 1
    assert torch.equal(logits(lm), good)
    assert model_card(lm, content_hash(lm)).notes == (line,)


def test_a_whole_layer_too_many_is_no_head_that_predicts_further(bench):
    good = bench.weights["llama"]
    more = {name.replace(".2.", ".3."): tensor for name, tensor in good.items() if ".layers.2." in name}
    with pytest.raises(StudfinderError, match=r"config\.json says 3 layers, the files hold 4"):
        load(bench.put("llama", {**good, **more}))


def test_a_tied_head_that_is_another_tensor_is_listed(bench):
    good = bench.weights["gpt2"]
    lm = load(bench.put("gpt2", {**good, "lm_head.weight": good["transformer.wte.weight"] * 2}))
    assert "both are used" in lm.source.notes[0]


# --- causes ---------------------------------------------------------------------------------------------------------

CAUSES: dict[str, tuple[Callable, str]] = {
    "torch.compile": (lambda w: {f"_orig_mod.{n}": t for n, t in w.items()}, "Strip the prefix '_orig_mod.'"),
    "DataParallel": (lambda w: {f"module.{n}": t for n, t in w.items()}, "Strip the prefix 'module.'"),
    "peft": (lambda w: {f"base_model.model.{n}": t for n, t in w.items()}, "Strip the prefix 'base_model.model.'"),
    "an adapter inside": (
        lambda w: {n.replace("q_proj.", "q_proj.base_layer."): t for n, t in w.items()},
        "An adapter is mixed into the weights",
    ),
    "a reward model": (
        lambda w: {n.replace("lm_head", "score"): t[:1] if "lm_head" in n else t for n, t in w.items()},
        "reward or classification model",
    ),
    "no head": (lambda w: {n: t for n, t in w.items() if "lm_head" not in n}, "embedding or headless model"),
    "fp8": (
        lambda w: {
            n: t
            for name, tensor in w.items()
            for n, t in ((name, tensor.to(torch.float8_e4m3fn)), (f"{name}_scale", tensor.max()))
        },
        "a quantization_config in config.json",
    ),
    "one lost": (lambda w: dict(sorted(w.items())[:-1]), "--allow-missing"),
}


@pytest.mark.parametrize("what", CAUSES)
def test_the_likely_cause_is_named(bench, mistake, what):
    made, words = CAUSES[what]
    assert words in mistake("scan", bench.put("llama", made(bench.weights["llama"])))


def test_an_unknown_quantisation_method_is_named(tmp_path, mistake):
    folder = checkpoint(tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "exl9"}}))
    weights = load_file(folder / "model.safetensors")
    save_file({f"{name}.trellis": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    assert "does not know the quantisation method 'exl9'" in mistake("scan", folder)


# --- shards ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path):
    tiny("llama").model.save_pretrained(tmp_path / "m", max_shard_size=20_000)
    return tmp_path / "m"


def test_shards_that_are_lost_doubled_or_of_another_version(sharded, mistake):
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    load(sharded)
    name, tensor = next(iter(load_file(first).items()))
    there, kept = load_file(second), second.read_bytes()
    save_file({**there, name: tensor + 1}, second)
    assert f"tensor {name} is in two shards" in mistake("scan", sharded)
    gone = min(there)
    save_file({n: t for n, t in there.items() if n != gone}, second)
    assert f"lack {gone}" in mistake("scan", sharded)
    second.unlink()
    assert f"lacks {second.name}" in mistake("scan", sharded)
    second.write_bytes(kept)
    shutil.copy(first, sharded / "model.safetensors")
    assert "holds weights twice" in mistake("scan", sharded)
    (sharded / "model.safetensors").unlink()
    (sharded / "model.safetensors.index.json").unlink()
    assert "but no model.safetensors.index.json" in mistake("scan", sharded)


@pytest.mark.parametrize("stale", ["lm_head.scale", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.7.x"])
def test_an_index_may_name_what_is_not_there_and_not_needed(sharded, stale, mistake):
    index = sharded / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    files = list(good["weight_map"].values())
    index.write_text(json.dumps({**good, "weight_map": {**good["weight_map"], stale: files[-1]}}))
    assert load(sharded).source.notes == (f"named in its index and held by no shard: 1 tensor: {stale}",)
    elsewhere = dict(zip(good["weight_map"], [*files[4:], *files[:4]], strict=True))  # the shards' own headers count
    index.write_text(json.dumps({**good, "weight_map": elsewhere}))
    assert load(sharded).source.notes == ()
    index.write_text(json.dumps({"weight_map": good["weight_map"]}))
    assert "has no metadata, which transformers reads" in mistake("scan", sharded)


TIED = ("gemma", "gpt2", "qwen2", "bloom", "falcon", "mixtral")


@pytest.mark.parametrize("kept", ["embedding", "head", "both"])
@pytest.mark.parametrize("architecture", TIED)
def test_a_tied_weight_may_be_stored_under_either_name(tmp_path, architecture, kept):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(architecture, **CONFIGS[architecture])
    config.tie_word_embeddings = True
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    tied = model.get_input_embeddings().weight
    embedding, head = (name for name, one in model.named_parameters(remove_duplicate=False) if one is tied)
    rest = {name: tensor for name, tensor in weights.items() if name not in (embedding, head)}
    names = {"embedding": [embedding], "head": [head], "both": [embedding, head]}[kept]
    save_file({**rest, **{name: tied.detach().clone() for name in names}}, tmp_path / "model.safetensors")
    lm = load(tmp_path)
    assert lm.source.notes == ()
    assert torch.equal(logits(lm), model(TOKENS).logits)


@pytest.mark.parametrize("where", [{}, [], None, {"a": 1}, {"a": "../../etc/passwd"}])
def test_an_index_that_is_no_index(sharded, mistake, where):
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    mistake("scan", sharded)


# --- allowed, and recorded ------------------------------------------------------------------------------------------


def test_random_numbers_are_allowed_by_flag_recorded_and_hashed_as_they_are(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = checkpoint(tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    gone = "model.layers.1.mlp.up_proj.weight"
    save_file({n: t for n, t in weights.items() if n != gone}, folder / "model.safetensors", metadata={"format": "pt"})
    fills = [load(folder, allow_missing=True) for _ in range(3)]
    assert len({cached_content_hash(lm) for lm in fills}) == 3, "two random fills never share one hash"
    assert not (cache / "hashes").exists()
    card = model_card(fills[0], "x")
    assert gone in card.allowed_missing[0]
    assert "but random" in card.allowed_missing[0]
    assert run_cli(["scan", str(folder), "--allow-missing", "--no-prove", "--prompt", PROMPT, "--out", "run"]) == 0
    assert gone in json.loads((tmp_path / "run" / "findings.json").read_text())["model"]["allowed_missing"][0]


def test_casts_without_a_scale_and_doubles_are_never_allowed(bench):
    good = bench.weights["llama"]
    name = "model.layers.1.mlp.up_proj.weight"
    for bad in ({**good, name: good[name].to(torch.int8)}, {**good, name.removeprefix("model."): good[name] + 1}):
        with pytest.raises(StudfinderError):
            load(bench.put("llama", bad), allow_missing=True)


def test_a_rope_that_is_scaled_is_part_of_the_hash():
    from transformers import AutoConfig, AutoModelForCausalLM

    hashes = set()
    for rope in (
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "linear", "factor": 4.0},
    ):
        config = AutoConfig.for_model("llama", **CONFIGS["llama"], rope_parameters={"rope_theta": 10_000.0, **rope})
        torch.manual_seed(0)
        hashes.add(content_hash(load(AutoModelForCausalLM.from_config(config))))
    assert len(hashes) == 3
