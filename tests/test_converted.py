"""Checkpoints whose tensors transformers converts as it loads, written in their models' own names and loaded mapped."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import revert_weight_conversion

from architected import PARTS, TYPES, built
from studfinder.errors import StudfinderError, WriteFailed
from studfinder.models import LM, config_hash, content_hash, load
from studfinder.models.converted import in_own_names
from studfinder.models.loading import destinations
from test_architectures import FORTY


def saved(folder: Path, kind: str = "mixtral", dtype: torch.dtype = torch.bfloat16) -> Path:
    built(kind, dtype=dtype).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)  # which one tiny configuration has, and its numbers have not
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rewritten(folder: Path, change) -> None:
    """The tensors of a checkpoint in one file, changed."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def made(cache: Path) -> list[Path]:
    """The folders of checkpoints in own names; nothing else may be there but their locks."""
    left = list((cache / "own-names").glob("*")) if (cache / "own-names").is_dir() else []
    assert all(path.suffix == ".lock" or re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{16}", path.name) for path in left)
    return [path for path in left if path.is_dir()]


def check_same(one: LM, other: LM) -> None:
    """The same numbers in the same dtypes under the same names, and the same words about them."""
    first, second = one.model.state_dict(), other.model.state_dict()
    assert list(first) == list(second)
    assert [n for n in first if first[n].dtype is not second[n].dtype or not torch.equal(first[n], second[n])] == []
    assert content_hash(one) == content_hash(other)
    assert one.source == other.source
    assert one.model.name_or_path == other.model.name_or_path
    assert config_hash(one) == config_hash(other)
    assert _saved_as(one) == _saved_as(other)
    assert one.model.config.dtype is other.model.config.dtype
    assert one.model.generation_config.to_dict() == other.model.generation_config.to_dict()


def _saved_as(lm: LM) -> list[str]:
    """The names that a model's tensors are saved under."""
    return list(revert_weight_conversion(lm.model, lm.model.state_dict()))


def unmapped(lm: LM, folder: Path) -> list[str]:
    """The parameters in their files' dtype that do not lie where a file of a folder is mapped into memory."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    places = [[int(end, 16) for end in line[0].split("-")] for line in lines if str(folder) in line[-1]]
    ranges = [range(*place) for place in places]
    stored = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            stored |= {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    return [
        name
        for name, one in lm.model.named_parameters()
        if one.dtype is stored.get(name) and not any(one.data_ptr() in place for place in ranges)
    ]


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.real if kind in FORTY else pytest.mark.deep) for kind in TYPES]
)
def test_every_type_is_loaded_as_ever_and_mapped(tmp_path, cache, kind):
    if not hasattr(transformers, PARTS[kind]["cls"]):
        pytest.skip(f"transformers {transformers.__version__} has no {kind} yet")
    folder = saved(tmp_path / "m", kind)
    try:
        plain = load(folder)
    except StudfinderError as error:
        with pytest.raises(StudfinderError, match=re.escape(str(error)[:100])):
            load(folder, own_names=True)
        return
    check_same(load(folder, own_names=True), plain)
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        steps = destinations(plain.model, file.keys())
    own = kind == "qwen3_vl_moe"  # it turns matrices that are not as it wants them, and saves them as it wants them
    assert len(made(cache)) == (any(step for _, step in steps.values()) and not own)
    if made(cache) and sys.platform == "linux":
        assert unmapped(load(folder, own_names=True), made(cache)[0]) == []
        assert in_own_names(made(cache)[0], plain.model) == made(cache)[0]


KINDS = ("mixtral", "hrm_text", "qwen3_vl_moe")
"""Matrices that are stacked, split and turned."""


def source(folder: Path, kind: str) -> Path:
    saved(folder, kind)

    def turned(tensors):
        for name in tensors:
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                tensors[name] = tensors[name].transpose(1, 2).contiguous()

    rewritten(folder, turned)
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"dtype": "float32"}, {"dtype": "float32", "carried": True}])
def test_whatever_else_is_asked_of_the_load(tmp_path, cache, kind, options):
    folder = source(tmp_path / "m", kind)
    check_same(load(folder, own_names=True, **options), load(folder, **options))
    assert len(made(cache)) == 1
    if "carried" in options:
        assert {one.dtype for one in load(folder, own_names=True, **options).model.parameters()} > {torch.bfloat16}


@pytest.mark.parametrize("where", ["shards", "hub", "another name", "no dtype"])
def test_wherever_the_files_are(tmp_path, cache, where, monkeypatch):
    folder = asked = saved(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    if where == "shards":
        (folder / "model.safetensors").unlink()
        built("mixtral", dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="100KB")
        assert len(list(folder.glob("*.safetensors"))) > 3
    elif where == "hub":
        repository = tmp_path / "hub" / "models--some--model"
        shutil.copytree(folder, repository / "snapshots" / ("c" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("c" * 40)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        asked = "some/model"
    elif where == "another name":
        (folder / "model.safetensors").rename(folder / "weights.safetensors")
        (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "weights.safetensors"}))
    else:  # the first tensor of the file says it, which is another one than the first in the model's own names

        def wide(tensors):
            tensors["lm_head.weight"] = tensors["lm_head.weight"].float()

        rewritten(folder, wide)
        (folder / "config.json").write_text(json.dumps({n: v for n, v in config.items() if n != "dtype"}))
    check_same(load(asked, own_names=True), load(asked))
    assert len(made(cache)) == 1


def ahead(tensors):
    tensors["model.layers.5.eh_proj.weight"] = torch.ones(4, 4, dtype=torch.bfloat16)


def lost(tensors):
    del tensors["model.layers.0.self_attn.q_proj.weight"]


def gap(tensors):
    del tensors["model.layers.1.block_sparse_moe.experts.2.w1.weight"]


def wide(tensors):
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    tensors[name] = torch.cat([tensors[name]] * 2)


def single(tensors):
    tensors["model.layers.1.block_sparse_moe.experts.2.w3.weight"] = torch.tensor(1.0)


def mixed(tensors):
    for name in list(tensors):
        if name.endswith(("w3.weight", "norm.weight")):
            tensors[name] = tensors[name].float()


@pytest.mark.parametrize("change", [ahead, lost, gap, wide, single, mixed])
@pytest.mark.parametrize("options", [{}, {"allow_missing": True}], ids=["strict", "allowed"])
def test_what_is_refused_and_noted_is_that_of_the_checkpoint(tmp_path, cache, change, options):
    folder = saved(tmp_path / "m")
    rewritten(folder, change)

    def outcome(**more):
        torch.manual_seed(0)  # what is missing is random
        try:
            return load(folder, **options, **more)
        except StudfinderError as error:
            return str(error)

    plain, own = outcome(), outcome(own_names=True)
    if isinstance(plain, LM):
        assert isinstance(own, LM), own
        assert own.source == plain.source
        assert change is lost or content_hash(own) == content_hash(plain)
    else:
        assert own == plain
        assert change is lost or made(cache) == []  # what does not fit is not written


def test_it_is_written_once_and_its_size_is_said_before(tmp_path, cache, capsys):
    folder = saved(tmp_path / "m")
    load(folder, own_names=True)
    (one,) = made(cache)
    said = capsys.readouterr().err
    assert re.search(rf"writing {re.escape(str(folder))} in its model's own names, [\d.]+ GB, to .* GB free\)", said)
    before = {path: path.stat().st_mtime_ns for path in one.iterdir()}
    load(folder, own_names=True)
    assert made(cache) == [one]
    assert before == {path: path.stat().st_mtime_ns for path in one.iterdir()}
    assert "writing" not in capsys.readouterr().err


def test_every_converter_has_a_file_of_its_own(tmp_path, cache):
    """So no more than one converter's tensors are made at a time."""
    load(saved(tmp_path / "m"), own_names=True)
    names = []
    for path in sorted(made(cache)[0].glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names.append(list(file.keys()))
    layers = built("mixtral").config.num_hidden_layers
    assert [len(own) for own in names[:-1]] == [1] * 2 * layers
    assert not any("experts" in name for name in names[-1])


def cut(folder: Path) -> None:
    path = next(folder.glob("model-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-8])


def flipped(folder: Path) -> None:
    path = next(folder.glob("model-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def gone(folder: Path) -> None:
    next(folder.glob("model-*.safetensors")).unlink()


def unmarked(folder: Path) -> None:
    (folder / "studfinder-marks.json").write_text("[" * 100_000)


def another(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flipped, gone, unmarked, another])
def test_a_damaged_one_is_made_anew(tmp_path, cache, damage):
    folder = saved(tmp_path / "m")
    load(folder, own_names=True)
    damage(made(cache)[0])
    check_same(load(folder, own_names=True), load(folder))
    assert len(made(cache)) == 1


@pytest.mark.parametrize("changed", ["weights", "config", "transformers"])
def test_an_outdated_one_is_removed(tmp_path, cache, changed, monkeypatch):
    folder = saved(tmp_path / "m")
    load(folder, own_names=True)
    (first,) = made(cache)
    if changed == "weights":
        rewritten(folder, lambda tensors: tensors["model.norm.weight"].mul_(2))
    elif changed == "config":
        (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    else:
        monkeypatch.setattr(sys.modules["transformers"], "__version__", "0")
    check_same(load(folder, own_names=True), load(folder))
    assert len(made(cache)) == 1
    assert made(cache) != [first]


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
def test_an_interruption_leaves_nothing(tmp_path, cache, stopped, monkeypatch):
    folder, count = saved(tmp_path / "m"), 0
    (cache / "own-names").mkdir(mode=0o700, parents=True)

    def save(tensors, path, **more):
        nonlocal count
        count += 1
        if count == 3:
            raise stopped
        return save_file(tensors, path, **more)

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", save)
        with pytest.raises(KeyboardInterrupt if stopped is KeyboardInterrupt else StudfinderError):
            load(folder, own_names=True)
    assert made(cache) == []
    lock = next((cache / "own-names").glob("*.lock"))
    (cache / "own-names" / f".{lock.stem}.killed" / "model").mkdir(parents=True)  # by a signal that nobody catches
    check_same(load(folder, own_names=True), load(folder))
    assert len(made(cache)) == 1


def test_a_full_disk_is_said_before(tmp_path, cache, monkeypatch):
    folder = saved(tmp_path / "m")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(WriteFailed, match=r"no room for .* its model's own names, [\d.]+ GB, in .*: 0\.00 GB are free"):
        load(folder, own_names=True)
    assert made(cache) == []


@pytest.mark.parametrize("kind", ["pickle", "nothing to convert"])
def test_what_is_loaded_as_ever(tmp_path, cache, kind):
    folder = saved(tmp_path / "m", "mixtral" if kind == "pickle" else "llama")
    if kind == "pickle":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    check_same(load(folder, own_names=True, allow_pickle=True), load(folder, allow_pickle=True))
    assert made(cache) == []
