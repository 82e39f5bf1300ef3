"""A checkpoint of a gigabyte scanned in 400 MB more than the interpreter takes with its libraries, and two blocks of it
quantised by GPTQ in the memory of two blocks and three of the largest Hessian; all of its weights put into another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from proving import tokenizer as characters

pytestmark = pytest.mark.real
LAYERS, HIDDEN, INNER, HEADS = 16, 1536, 4864, 12

SCAN = """
import json, sys, threading, time
import studfinder as sf
import studfinder.detectors, studfinder.quantizers, studfinder.verbs.scan
import transformers.models.llama.modeling_llama
from studfinder.diagnosis.losses import losses_of
from studfinder.edits import zero
from studfinder.measures import effects_of
from studfinder.quantizers import GPTQ, Scheme, quantized, skip

def own():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10

before, peak, done = own(), [0], threading.Event()
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], own())
        time.sleep(0.02)
threading.Thread(target=watch, daemon=True).start()
what = sys.argv[2]
lm = sf.load(sys.argv[1], dtype="auto" if what == "put-back" else "float32", memory=sys.argv[3])
if what == "put-back":
    other = sf.load(sys.argv[1], memory=sys.argv[3])
    numbers = {name: one.detach() for name, one in other.model.named_parameters() if ".layers." in name}
    kl = losses_of(other, lm, [list(range(3, 35))], [numbers]).kl_WT.mean()
    said = {"kl": float(kl)}
elif what == "scan":
    found = sf.scan(lm, prompt=["a load bearing number"], prove=False)
    weight = found.super_weights[0]
    effects = effects_of(lm, [list(range(3, 67))] * 2, [zero(weight)])
    said = {"place": [weight.layer, *weight.index], "kl": float(effects.kl.mean())}
else:
    windows = [[(7 * row + 3 * at) % 90 + 3 for at in range(256)] for row in range(8)]
    later = [f"model.layers.{number}.*" for number in range(2, len(lm.anatomy.layers))]
    with quantized(lm, GPTQ(scheme=Scheme(element="int4", block=64)), keep=skip(*later), windows=windows) as bench:
        said = {"quantised": len(bench.done)}
done.set()
print(json.dumps({**said, "streamed": lm.memory.streamed, "more": peak[0] - before}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """1.02 GB in bf16, with one super weight in the last block but one."""
    place = tmp_path_factory.mktemp("large") / "model"
    tokenizer = characters()
    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(place)
    tokenizer.save_pretrained(place)
    draw = torch.Generator().manual_seed(0)
    pool = (torch.randn(1 << 23, generator=draw) * 0.02).to(torch.bfloat16)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        start = int(torch.randint(1 << 18, (), generator=draw))
        return pool[start : start + rows * columns].view(rows, columns).clone()

    where: dict[str, str] = {}
    for layer in range(-1, LAYERS):
        own = f"model.layers.{layer}."
        if layer < 0:
            tensors = {"model.embed_tokens.weight": matrix(len(tokenizer), HIDDEN) * 50}
            tensors |= {"lm_head.weight": matrix(len(tokenizer), HIDDEN)}
            tensors |= {"model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)}
        else:
            tensors = {own + f"self_attn.{one}_proj.weight": matrix(HIDDEN, HIDDEN) for one in "qkvo"}
            tensors |= {own + f"mlp.{one}_proj.weight": matrix(INNER, HIDDEN) for one in ("gate", "up")}
            tensors[own + "mlp.down_proj.weight"] = matrix(HIDDEN, INNER)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[own + f"{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        if layer == LAYERS - 2:
            for one in ("gate", "up"):
                tensors[own + f"mlp.{one}_proj.weight"][11] *= 8
            tensors[own + "mlp.down_proj.weight"][7, 11] = 30.0
        name = f"model-{layer + 1:05d}.safetensors"
        save_file(tensors, place / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, name))
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert sum(path.stat().st_size for path in place.glob("*.safetensors")) > 1_000_000_000
    return place


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory of its own is read from /proc")
@pytest.mark.parametrize("what", ["scan", "gptq", "put-back"])
def test_a_gigabyte_in_little_memory(folder: Path, what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCAN, str(folder), what, "1.1GB"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["streamed"]
    if what == "scan":
        assert said["more"] < 400_000_000
        assert said["place"] == [LAYERS - 2, 7, 11]
        assert said["kl"] > 0.01
    elif what == "put-back":  # numbers written into mapped weights stay in memory
        assert said["more"] < 400_000_000
        assert said["kl"] == 0
    else:
        block, hessian = 4 * (4 * HIDDEN**2 + 3 * HIDDEN * INNER), 4 * INNER**2
        states = 8 * 256 * HIDDEN * 4
        assert said["more"] < 2 * block + 2 * states + 3 * hessian
        assert said["quantised"] == 14
