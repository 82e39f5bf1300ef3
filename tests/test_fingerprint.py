"""The content hash: one bit changes it, a reload does not."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import save

from studfinder.errors import StudfinderError
from studfinder.models import cached_content_hash, content_hash, fingerprint, load
from tiny import tiny


def test_one_bit_changes_the_hash_and_back():
    lm = tiny("llama")
    before = content_hash(lm)
    bits = lm.model.model.layers[1].mlp.down_proj.weight.data.view(torch.int32)
    bits[3, 5] ^= 1
    assert content_hash(lm) != before
    bits[3, 5] ^= 1
    assert content_hash(lm) == before


@pytest.mark.parametrize("architecture", ["llama", "gemma", "mixtral", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_reload_keeps_the_hash(tmp_path, architecture, dtype):  # gemma and gpt2 tie their embeddings
    lm = tiny(architecture, dtype=dtype)
    lm.model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.dtype == dtype
    assert content_hash(again) == content_hash(lm)


def test_dtype_and_places_count():
    lm = tiny("llama")
    wide = content_hash(lm)
    assert content_hash(load(tiny("llama").model.to(torch.bfloat16))) != wide
    layers = lm.model.model.layers
    with torch.no_grad():  # the same bytes under other names
        first, second = layers[0].mlp.down_proj.weight, layers[1].mlp.down_proj.weight
        first.data, second.data = second.data, first.data
    assert content_hash(lm) != wide


def test_an_edit_of_either_name_of_a_tied_tensor_changes_it():
    lm = tiny("gpt2")
    assert lm.model.lm_head.weight is lm.model.transformer.wte.weight
    before = content_hash(lm)
    with torch.no_grad():
        lm.model.lm_head.weight[0, 0] += 1
    assert content_hash(lm) != before


def test_an_offloaded_tensor_has_no_bytes():
    lm = tiny("llama")
    with pytest.raises(StudfinderError, match="has no numbers"):
        content_hash(dataclasses.replace(lm, model=lm.model.to("meta")))


def test_the_remembered_hash_is_of_these_files(tmp_path, cache):
    folder = tmp_path / "model"
    tiny("llama").model.save_pretrained(folder)
    first = cached_content_hash(load(folder))
    assert first == content_hash(load(folder))
    store = next((cache / "hashes").iterdir())
    store.write_text(json.dumps({"hash": "remembered", "sum": fingerprint._sum(store.stem, "remembered")}))
    assert cached_content_hash(load(folder)) == "remembered"
    for damaged in ("damaged", '{"hash": "other"}', store.read_text().replace("remembered", "remembere")):
        store.write_text(damaged)
        assert cached_content_hash(load(folder)) == first
    tiny("llama", seed=1).model.save_pretrained(folder)
    assert cached_content_hash(load(folder)) == content_hash(load(folder)) != first


def test_other_weights_of_the_same_size_and_time_have_another_hash(tmp_path, cache):
    """Written over in place, replaced, or with times set back: what is remembered is never of other bytes."""
    folder = tmp_path / "model"
    tiny("llama").model.save_pretrained(folder)
    file = folder / "model.safetensors"
    before, seen = file.stat(), {cached_content_hash(load(folder))}
    for seed in range(1, 7):
        weights = save({n: t + seed for n, t in tiny("llama").model.state_dict().items()}, {"format": "pt"})
        assert len(weights) == before.st_size
        if seed % 2:
            file.write_bytes(weights)
        else:
            (folder / "other").write_bytes(weights)
            (folder / "other").replace(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        found = cached_content_hash(load(folder))
        assert found == content_hash(load(folder))
        seen.add(found)
    assert len(seen) == 7


def test_where_a_file_systems_times_say_nothing_the_bytes_do(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(fingerprint, "_stat", lambda path: (path.stat().st_size, 0, 0, 0))
    folder = tmp_path / "model"
    tiny("llama").model.save_pretrained(folder)
    first = cached_content_hash(load(folder))
    tiny("llama", seed=1).model.save_pretrained(folder)
    assert cached_content_hash(load(folder)) == content_hash(load(folder)) != first


def test_what_the_weights_do_not_say_is_in_the_hash_of_the_config():
    one, other, again = tiny("llama"), tiny("llama"), tiny("llama", dtype=torch.bfloat16)
    other.model.config.rope_parameters = {**other.model.config.rope_parameters, "rope_theta": 5e5}
    assert content_hash(one) == content_hash(other)
    assert fingerprint.config_hash(one) != fingerprint.config_hash(other)
    assert fingerprint.config_hash(one) == fingerprint.config_hash(again)


def test_a_cache_that_cannot_be_written_is_no_mistake(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STUDFINDER_CACHE", str(tmp_path / "file"))
    tiny("llama").model.save_pretrained(tmp_path / "model")
    assert len(cached_content_hash(load(tmp_path / "model"))) == 64
