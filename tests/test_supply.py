"""What is used is what was meant: the cache is the user's alone, converted files are as they were made, and what comes
from the hub is of a commit that is recorded."""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import sys
import types
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints import checkpoint
from studfinder.errors import StudfinderError
from studfinder.measures.tasks import TASKS
from studfinder.measures.tasks.harness import build_task
from studfinder.measures.tasks.run import task_named
from studfinder.models import (
    BUILTINS,
    builtin,
    cached_content_hash,
    keep_private,
    load,
    made,
    model_card,
    private_folder,
)
from studfinder.texts import commit_of, corpus, documents, pinned, split_revision
from test_inside import cached

SMOLLM2 = BUILTINS["smollm2"]
COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("good") / "llama", dtype=torch.bfloat16)


@pytest.fixture
def converted(good, cache, monkeypatch):
    """A built-in model as it was just made."""
    monkeypatch.setattr(builtin, "_fetch", lambda _builtin, work: work / "model.gguf")
    monkeypatch.setattr(builtin, "_convert", lambda _gguf, folder: shutil.copytree(good, folder))
    monkeypatch.setattr(made, "_SEEN", {})
    return builtin.ensure(SMOLLM2)


def modes(folder: Path) -> set[tuple[bool, int]]:
    return {(path.is_dir(), path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}


@pytest.mark.parametrize("before", [None, 0o700, 0o750, 0o755, 0o770, 0o777])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_cache_is_the_users_alone(good, cache, monkeypatch, before, umask):
    for folder in ("", "models", "hashes") if before is not None else ():
        (cache / folder).mkdir()
        (cache / folder).chmod(before)
    old = os.umask(umask)
    try:
        monkeypatch.setattr(builtin, "_fetch", lambda _builtin, work: work / "model.gguf")
        monkeypatch.setattr(builtin, "_convert", lambda _gguf, folder: shutil.copytree(good, folder))
        cached_content_hash(load("smollm2"))
        private_folder("tasks")
    finally:
        os.umask(old)
    assert modes(cache) == {(True, 0o700), (False, 0o600)}
    for path in (cache, *cache.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
    monkeypatch.setattr(made, "_SEEN", {})
    cached_content_hash(load("smollm2"))
    private_folder("tasks")
    assert {mode for _, mode in modes(cache / "models" / "smollm2-1")} == {0o700, 0o600}
    assert {(cache / name).stat().st_mode & 0o777 for name in ("", "models", "hashes", "tasks")} == {0o700}


@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o770, True), (0o757, True), (0o755, False)])
def test_a_cache_that_others_can_write_to_is_not_used(cache, monkeypatch, mode, refused):
    cache.mkdir()
    cache.chmod(mode)
    owner = cache.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0 and not refused:  # the system's own, which only it can write to
        keep_private(cache)
        return
    with pytest.raises(StudfinderError, match=r"others can write|another user's"):
        private_folder("models")


def tampered(folder: Path, draw: random.Random) -> str:
    """One thing changed in a converted model."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    manner = draw.randrange(5)
    path = draw.choice([path for path in files if manner not in (0, 4) or path.name != made.LIST])
    if manner == 0:
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        return f"a bit of {path.name}"
    if manner == 1:
        path.unlink()
        return f"without {path.name}"
    if manner == 2:
        name = draw.choice(("adapter_config.json", "modeling.py", "merges.txt", "model-00001-of-00002.safetensors"))
        (folder / name).write_text("{}")
        return f"with {name}"
    if manner == 3:
        (folder.parent / path.name).write_bytes(path.read_bytes())
        path.unlink()
        path.symlink_to(folder.parent / path.name)
        return f"{path.name} a link"
    path.write_bytes(path.read_bytes() + b" ")
    return f"{path.name} and a blank"


@pytest.mark.parametrize("seed", [*range(24), *(pytest.param(seed, marks=pytest.mark.deep) for seed in range(24, 200))])
def test_a_converted_model_is_checked_each_time_it_is_opened(converted, seed, mistake):
    assert builtin.ensure(SMOLLM2) == converted
    what = tampered(converted, random.Random(seed))
    if not (converted / "config.json").is_file():
        return  # it is made anew
    for _ in range(2):
        with pytest.raises(StudfinderError, match="is not as it was made") as caught:
            builtin.ensure(SMOLLM2)
        assert "Remove that folder" in str(caught.value), what
    if seed == 0:
        assert "is not as it was made" in mistake("scan", "smollm2")


def test_a_model_that_was_made_of_another_file_is_not_opened(converted):
    noted = json.loads((converted / made.LIST).read_text())
    (converted / made.LIST).write_text(json.dumps({**noted, "source": "0" * 64}))
    with pytest.raises(StudfinderError, match="it was made from another file"):
        builtin.ensure(SMOLLM2)


def test_one_of_an_earlier_version_is_held_against_a_hash_that_is_known(converted, monkeypatch):
    (converted / made.LIST).unlink()
    with pytest.raises(StudfinderError, match=r"studfinder-files\.json is missing"):
        builtin.ensure(SMOLLM2)
    known = made.weights_hash(converted / "model.safetensors")
    monkeypatch.setattr(builtin, "BUILTINS", {})
    ours = types.SimpleNamespace(**{**vars(SMOLLM2), "weights": known})
    assert builtin.ensure(ours) == converted
    assert (converted / made.LIST).is_file()
    made._SEEN.clear()
    assert builtin.ensure(SMOLLM2) == converted


@pytest.mark.real
@pytest.mark.parametrize("name", BUILTINS)
def test_the_recorded_hashes_are_those_of_the_weights(name):
    folder = builtin.ensure(BUILTINS[name])
    assert made.weights_hash(folder / "model.safetensors") == BUILTINS[name].weights


# Revisions.


@given(st.text(max_size=12), st.text(max_size=30))
def test_a_revision_is_taken_from_a_name_or_refused(name, revision):
    try:
        plain, found = split_revision(f"{name.replace('@', '')}@{revision}")
    except StudfinderError:
        return
    assert plain == name.replace("@", "")
    assert found == revision
    assert ".." not in found
    assert all(sign.isalnum() or sign in "_./-" for sign in found)


@pytest.mark.parametrize("name", ["wikitext2", "c4", "a/b:c", "piqa", ""])
def test_a_name_without_a_revision_stays_as_it_is(name):
    assert split_revision(name) == (name, None)


@pytest.fixture
def hub(monkeypatch):
    """The hub's data sets, which have one commit each and tell which one was asked for."""
    asked: list[tuple] = []

    class Api:
        def dataset_info(self, repository, revision=None, timeout=None):
            if repository == "offline":
                raise OSError("no network")
            return types.SimpleNamespace(sha=COMMIT)

    def load_dataset(path, name=None, *, split=None, revision=None, **_):
        asked.append((path, revision))
        row = {"text": "some text", "sentence": "x", "label": 1, "question": "q", "answer": True, "passage": "p"}
        return [row, row]

    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv("STUDFINDER_DATA", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    return asked


@pytest.mark.parametrize("name", ["wikitext2", "c4", "wikipedia"])
@pytest.mark.parametrize("revision", [None, "main", "v1.0", "f" * 40])
def test_a_text_is_read_at_a_commit_and_says_which(hub, name, revision, monkeypatch, tmp_path):
    monkeypatch.setenv("STUDFINDER_DATA", str(tmp_path) if revision else "")
    if revision:  # what is here is of no known revision
        (tmp_path / "wikitext2").mkdir()
        (tmp_path / "wikitext2" / "wiki.test.raw").write_text("another text")
    said, found = corpus(f"{name}@{revision}" if revision else name)
    commit = revision if revision == "f" * 40 else COMMIT
    assert said == f"{name} (hub, commit {commit[:12]})"
    assert found == ["some text"] * 2
    assert [revision for _, revision in hub] == [commit]


def test_a_text_whose_commit_is_not_known_says_what_was_asked(hub, monkeypatch):
    monkeypatch.setattr(pinned, "commit_of", lambda *_: None)
    monkeypatch.setattr("studfinder.texts.corpora.commit_of", lambda *_: None)
    assert corpus("c4@v2")[0] == "c4 (hub, revision v2)"
    assert corpus("c4")[0] == "c4 (hub)"
    assert hub == [("allenai/c4", "v2"), ("allenai/c4", None)]
    assert commit_of("offline", None) is None


def test_a_data_set_is_streamed_or_held_up_to_five_thousand_documents(hub, monkeypatch):
    taken = []

    def rows(*_, **__):
        for number in range(20_000):
            taken.append(number)
            yield {"text": str(number)}

    monkeypatch.setattr("datasets.load_dataset", rows)
    assert list(islice(documents("owner/name")[1], 3)) == ["0", "1", "2"]
    assert taken == [0, 1, 2]
    assert corpus("owner/name")[1] == [str(number) for number in range(5000)]
    assert len(list(documents("c4")[1])) == 5000
    assert sum(1 for _ in documents("owner/name")[1]) == 20_000


@pytest.mark.parametrize("revision", [None, "v1.0", "f" * 40])
def test_a_data_set_is_read_at_a_commit_in_every_room(hub, revision):
    commit = revision if revision == "f" * 40 else COMMIT
    for read in (documents, corpus):
        source, found = read(f"owner/name:config@{revision}" if revision else "owner/name:config")
        assert source == f"owner/name:config (hub, commit {commit[:12]})"
        assert list(found) == ["some text"] * 2
        assert hub[-1] == ("owner/name", commit)


@pytest.mark.parametrize("name", ["boolq-nopassage"])
@pytest.mark.parametrize("revision", [None, "v1.0", "f" * 40])
def test_a_task_is_read_at_a_commit_and_says_which(hub, name, revision):
    pytest.importorskip("lm_eval")
    task, _, pinned_to = task_named(f"{name}@{revision}" if revision else name)
    built = build_task(name, task, revision=pinned_to)
    commit = revision if revision == "f" * 40 else COMMIT
    assert f"commit {commit[:12]}" in built.source
    assert hub == [(TASKS[name].hub.split(":")[0], commit)]


@pytest.mark.parametrize(
    "name", ["arithmetic@main", "piqa@", "piqa@../x", "piqa@a b", "nonsense@main", "arithmetic:5@main"]
)
def test_a_task_without_such_a_revision_is_refused(name):
    with pytest.raises(StudfinderError):
        task_named(name)


@pytest.fixture
def hubs_cache(good, tmp_path, monkeypatch):
    """A model of the hub in its client's cache, without network."""
    pytest.importorskip("huggingface_hub.constants")
    snapshot = cached(good, tmp_path / "hub", shared=False)
    renamed = snapshot.rename(snapshot.with_name(COMMIT))
    refs = renamed.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)
    for place, value in (("HF_HUB_CACHE", str(tmp_path / "hub")), ("HF_HUB_OFFLINE", True)):
        for module in [
            module for name, module in sys.modules.items() if name.split(".")[0] in ("huggingface_hub", "transformers")
        ]:
            if place in vars(module):
                monkeypatch.setattr(module, place, value)
    return renamed


def test_which_commit_of_a_hub_model_was_read_is_recorded(hubs_cache, cache):
    for revision in (None, "main", COMMIT):
        lm = load("some/model", revision=revision)
        assert lm.source.revision == COMMIT
        assert lm.tokenizer is not None
        assert model_card(lm, cached_content_hash(lm)).revision == COMMIT
    assert model_card(load(hubs_cache), "x").revision is None


def test_a_hub_model_is_held_against_its_files_too(hubs_cache, cache):
    path = (hubs_cache / "model.safetensors").resolve()
    weights = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**weights, name: (weights[name] * 100).to(torch.int8)}, path, metadata={"format": "pt"})
    with pytest.raises(StudfinderError, match="without a scale"):
        load("some/model")


@pytest.mark.parametrize("base", ["../../else", "/etc", "./x", "~/x", "a/b/c"])
def test_an_adapter_of_the_hub_names_no_folder_of_this_disk(hubs_cache, cache, base):
    (hubs_cache / "config.json").unlink()
    config = {"peft_type": "LORA", "base_model_name_or_path": base}
    (hubs_cache / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(StudfinderError, match="no folder or file"):
        load("some/model", merge_adapter=True)


def test_an_adapter_of_the_hub_does_not_take_a_folder_of_that_name_here(hubs_cache, cache, monkeypatch, tmp_path):
    shutil.copytree(hubs_cache, tmp_path / "here" / "other" / "model")
    monkeypatch.chdir(tmp_path / "here")
    (hubs_cache / "config.json").unlink()
    config = {"peft_type": "LORA", "base_model_name_or_path": "other/model"}
    (hubs_cache / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(StudfinderError, match="a folder here has that name"):
        load("some/model", merge_adapter=True)


def calls(source: str) -> list[str]:
    """The calls of torch.load in a module, as they are written."""
    tree = ast.parse(source)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
    return [ast.unparse(node) for node in found]


def test_no_file_is_unpickled_with_code():
    """Ours, and those of a checkpoint of training that Trainer goes on from."""
    import transformers.trainer

    ours = [path.read_text("utf-8") for path in (Path(__file__).parent.parent / "src").rglob("*.py")]
    found = [call for text in (*ours, Path(transformers.trainer.__file__).read_text("utf-8")) for call in calls(text)]
    assert len(found) > 5
    assert [call for call in found if "weights_only=True" not in call] == []
    assert not any("import pickle" in text or "allow_pickle=True)" in text.replace(" ", "") for text in ours)
