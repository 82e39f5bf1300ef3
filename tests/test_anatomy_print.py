"""`studfinder anatomy`: what is printed of a model's parts."""

from __future__ import annotations

import json

import pytest

from architected import built
from studfinder.cli.app import run_cli
from studfinder.models import anatomy_of
from studfinder.verbs.anatomy import anatomy_in_words
from tiny import tiny

SAID = {
    "qwen3_5_text": {
        "layers 0-2, 4": ("linear_attn: no softmax", "skipped"),
        "layer 3": ("4 heads of 16, 2 for keys and values", "after RoPE", "times what attention gives", "1 + weight"),
    },
    "deepseek_v3": {
        "layer 0": ("values of 16", "from 16 on", "kv_b_proj, rows 16-31, 48-63 and so on, a piece a head"),
        "layers 1-4": ("4 in mlp.experts.down_proj", "mlp.experts.gate_up_proj, from row 48 on", "mlp.gate"),
    },
    "gpt_oss": {"layers 0-4": ("mlp.experts.down_proj (stored in, out)", "every 2nd row from 1 on")},
    "zamba2": {"layers 1, 3": ("unknown: probing could not confirm it", "mamba_decoder.mamba", "no RoPE")},
    "gemma3n_text": {"gemma3n_text": ("4 residual streams of 64",)},
    "bloom": {"layers 0-1": ("outside transformers' AttentionInterface", "query_key_value, rows 16-31, 64-79")},
    "mamba": {"layers 0-4": ("nowhere to look for super weights",)},
    "smollm3": {"layer 3": ("self_attn: softmax, 4 heads of 16", "no RoPE")},
}


@pytest.mark.parametrize("kind", SAID)
def test_every_kind_of_layer_has_a_paragraph(kind: str):
    said = {heading: " ".join(map(" ".join, parts)) for heading, parts in anatomy_in_words(anatomy_of(built(kind)))}
    for heading, phrases in SAID[kind].items():
        assert all(phrase in said[heading] for phrase in phrases), said


def test_it_is_printed_and_as_json_it_is_the_record(tmp_path, capsys):
    tiny("llama").model.save_pretrained(tmp_path / "m")
    capsys.readouterr()
    assert run_cli(["anatomy", str(tmp_path / "m")]) == 0
    printed = capsys.readouterr().out
    assert "layers 0-2" in printed
    assert f"Next: studfinder scan {tmp_path / 'm'}" in " ".join(printed.split())
    assert run_cli(["anatomy", str(tmp_path / "m"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [layer["mixers"][0]["output"]["parameter"] for layer in record["layers"]] == [
        f"model.layers.{number}.self_attn.o_proj.weight" for number in range(3)
    ]
