"""--push-to-hub, against a stand-in for the hub: what is uploaded, and a card that its own library reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from checkpoints import checkpoint
from studfinder.cli.app import run_cli
from studfinder.errors import Unavailable
from studfinder.verbs.publish import publish


class StandIn:
    """What `HfApi` is asked to do, done to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def create_repo(self, name, *, private, exist_ok):
        assert private
        assert exist_ok
        self.place = self.folder / name
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns, commit_message):
        assert commit_message
        shutil.copytree(folder_path, self.folder / repo_id, ignore=shutil.ignore_patterns(*ignore_patterns))

    def create_commit(self, *, repo_id, operations, commit_message):
        for one in operations:
            (self.folder / repo_id / one.path_in_repo).write_bytes(one.path_or_fileobj)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: StandIn(tmp_path / "hub"))
    return tmp_path / "hub"


def test_a_quantised_checkpoint_is_published_with_its_card(tmp_path, hub, capsys):
    source = checkpoint(tmp_path / "m")
    words = ["quantize", str(source), "--group", "channel", "--score", "--out", str(tmp_path / "w4")]
    assert run_cli([*words, "--push-to-hub", "me/m-w4"]) == 0
    assert "published https://hub/me/m-w4 (private" in capsys.readouterr().err
    place = hub / "me" / "m-w4"
    assert {"config.json", "model.safetensors", "README.md", "studfinder.json"} <= {p.name for p in place.iterdir()}
    assert not {"run.json", "report.html"} & {path.name for path in place.iterdir()}
    data = ModelCard.load(place / "README.md").data
    assert data.base_model is None  # a path of this machine says nothing there
    assert data.tags == ["studfinder", "compressed-tensors"]
    assert {one.metric_type for one in data.eval_results} >= {"kl-divergence", "perplexity"}
    assert all(one.metric_value >= 0 for one in data.eval_results)
    own = ModelCard.load(tmp_path / "w4" / "README.md").data
    assert own.base_model == str(source)


def test_a_base_model_of_the_hub_is_named(tmp_path, hub):
    (tmp_path / "q").mkdir()
    head = "---\nlibrary_name: transformers\nbase_model: Qwen/Qwen3-8B\nbase_model_relation: quantized\n---\n# q\n"
    (tmp_path / "q" / "README.md").write_text(head)
    publish(tmp_path / "q", "me/q")
    assert ModelCard.load(hub / "me" / "q" / "README.md").data.base_model == "Qwen/Qwen3-8B"


@pytest.mark.parametrize("name", ["m", "a/b/c", "me/..", "me/x y", ""])
def test_a_name_that_is_no_repository_is_said_before_any_work(tmp_path, mistake, name):
    assert "--push-to-hub" in mistake("quantize", "./nowhere", "--out", str(tmp_path / "q"), "--push-to-hub", name)


def test_what_cannot_be_uploaded_is_still_there(tmp_path, monkeypatch):
    class Broken(StandIn):
        def upload_folder(self, **_):
            raise OSError("no")

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Broken(tmp_path / "hub"))
    (tmp_path / "q").mkdir()
    with pytest.raises(Unavailable, match="It is whole where it is"):
        publish(tmp_path / "q", "me/q")
