"""One library on one machine: what `run.py` starts in that library's own environment. Not to be started by hand.

    python child.py LIBRARY time|peak|check ORDER.json [ROW]

Every row saves the residual stream after each block, Q and K after RoPE, V, and the input and output of the MLP's out
projection, of one prompt at a time, with the library's own calls. A plain pass is the same in every environment: the
model as transformers loads it, no cache, all logits.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def plain(model, **options):
    def run(ids):
        return model(input_ids=ids, use_cache=False, **options).logits

    return run


def plain_rows(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return {"plain": plain(model), "plain, last logits": plain(model, logits_to_keep=1)}


def studfinder_rows(folder, layers):
    import studfinder as sf
    from studfinder.detectors import observe
    from studfinder.detectors.attention_sinks import AttentionSinks
    from studfinder.detectors.massive_activations import MassiveActivations
    from studfinder.detectors.massive_values import MassiveValues
    from studfinder.detectors.super_weights import SuperWeights
    from studfinder.sites import capture

    lm = sf.load(folder, dtype="float32")
    kinds = ("residual", "query", "key", "value", "down_proj.input", "down_proj.output")
    sites = [f"{kind}[{layer}]" for layer in range(layers) for kind in kinds]
    detectors = [kind(lm) for kind in (SuperWeights, MassiveActivations, MassiveValues, AttentionSinks)]

    def save(ids):
        return capture(lm, ids, sites)

    def stream(ids):
        observe(lm, [ids[0].tolist()], detectors)

    return {"capture": save, "observe, 4 detectors": stream}


def transformer_lens_rows(folder, layers):
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    hooks = ("hook_out", "attn.hook_rot_q", "attn.hook_rot_k", "attn.v.hook_out", "mlp.out.hook_in", "mlp.out.hook_out")
    names = [f"blocks.{layer}.{hook}" for layer in range(layers) for hook in hooks]

    def forward(ids):
        bridge(ids, use_cache=False)

    def save(ids):
        _, cache = bridge.run_with_cache(ids, names_filter=names, use_cache=False)
        return dict(cache.items())

    def everything(ids):
        _, cache = bridge.run_with_cache(ids, use_cache=False)
        return dict(cache.items())

    return {"forward, nothing saved": forward, "run_with_cache, names_filter": save, "run_with_cache": everything}


def nnsight_rows(folder, _layers):
    import nnsight

    model = nnsight.TransformersModel(folder, task="text-generation", dtype=torch.float32, dispatch=True)

    def save(ids):
        with model.trace(ids, use_cache=False):
            kept = nnsight.save([])
            for layer in model.model.layers:
                # The call of the attention function inside forward: what it receives is after RoPE.
                attention = layer.self_attn.source.attention_interface_1.inputs[0]
                kept.append((*attention[1:4], layer.mlp.down_proj.input, layer.mlp.down_proj.output, layer.output))
        names = ("query", "key", "value", "down_proj.input", "down_proj.output", "residual")
        return {f"{n}[{i}]": t for i, tensors in enumerate(kept) for n, t in zip(names, tensors, strict=True)}

    def modules(ids):
        with model.trace(ids, use_cache=False):
            kept = nnsight.save([])
            for layer in model.model.layers:
                a, m = layer.self_attn, layer.mlp
                kept.append((a.q_proj.output, a.k_proj.output, a.v_proj.output))
                kept.append((m.down_proj.input, m.down_proj.output, layer.output))
        return {f"{i}.{j}": tensor for i, tensors in enumerate(kept) for j, tensor in enumerate(tensors)}

    return {".source, post-RoPE": save, "module outputs, pre-RoPE": modules}


ROWS = {"studfinder": studfinder_rows, "transformer-lens": transformer_lens_rows, "nnsight": nnsight_rows}
COMPARED = {
    "studfinder": "capture",
    "transformer-lens": "run_with_cache, names_filter",
    "nnsight": ".source, post-RoPE",
}
OURS = {
    "hook_out": "residual",
    "attn.hook_rot_q": "query",
    "attn.hook_rot_k": "key",
    "attn.v.hook_out": "value",
    "mlp.out.hook_in": "down_proj.input",
    "mlp.out.hook_out": "down_proj.output",
}


def canonical(saved):
    """Our names and one shape: (T,C), or (T,H,D) for heads, whatever the library calls and transposes."""
    same = {}
    for name, tensor in saved.items():
        key, lens = name, name.startswith("blocks.")
        if lens:
            _, layer, hook = name.split(".", 2)
            key = f"{OURS[hook]}[{layer}]"
        tensor = tensor[0] if tensor.shape[0] == 1 else tensor
        heads = key.startswith(("query", "key", "value"))
        same[key] = tensor.transpose(0, 1) if heads and not lens else tensor
    return same


def held_megabytes(saved):
    """Memory that the saved tensors keep alive; what several names share counts once."""
    storages = [t.untyped_storage() for t in (saved or {}).values() if isinstance(t, torch.Tensor)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values()) / 2**20


def timed(library, order, prompts):
    rows = plain_rows(order["folder"]) | ROWS[library](order["folder"], order["layers"])
    if library != "studfinder":
        del rows["plain, last logits"]
    held = {name: held_megabytes(run(prompts[0])) if "plain" not in name else 0 for name, run in rows.items()}
    rows["plain"](prompts[0])  # warm, as the line above warms the others
    turns = []
    names = list(rows)
    for turn in range(order["rounds"]):
        for number, ids in enumerate(prompts):
            shift = (turn + number) % len(names)
            seconds = {}
            for name in names[shift:] + names[:shift]:
                start = time.perf_counter()
                kept = rows[name](ids)
                seconds[name] = time.perf_counter() - start
                del kept
            turns.append(seconds)
    return {"turns": turns, "held": held}


def peak(library, order, prompts, row):
    __import__(library.replace("-", "_"))  # the plain pass pays for the import too, so that only the saving differs
    make = plain_rows if row == "plain" else lambda folder: ROWS[library](folder, order["layers"])
    run = make(order["folder"])[row]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading, which would hide all others
    for ids in sorted(prompts, key=lambda ids: ids.shape[1])[-3:]:
        kept = run(ids)
        del kept
    lines = Path("/proc/self/status").read_text().splitlines()
    return {"megabytes": next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024}


def check(library, order, prompts):
    """How far the saved tensors are from ours: the largest |a - b| / |b| (Frobenius) of any tensor, and whether all of
    them were there."""
    with torch.no_grad():
        saved = canonical(ROWS[library](order["folder"], order["layers"])[COMPARED[library]](prompts[0]))
    reference = Path(order["reference"])
    if library == "studfinder":
        torch.save({name: tensor.clone() for name, tensor in saved.items()}, reference)
    ours = torch.load(reference)
    far = {name: ((saved[name] - t).norm() / t.norm()).item() for name, t in ours.items()}
    worst = max(far, key=far.get)
    equal = sum(torch.equal(saved[name], t) for name, t in ours.items())
    return {"tensors": len(saved), "equal": equal, "of": len(ours), "worst": worst, "relative": far[worst]}


def main():
    library, what, order_file, *row = sys.argv[1:]
    order = json.loads(Path(order_file).read_text("utf-8"))
    prompts = [torch.tensor([ids]) for ids in order["ids"]]
    with torch.no_grad():
        if what == "time":
            answer = timed(library, order, prompts)
        elif what == "peak":
            answer = peak(library, order, prompts, row[0])
        else:
            answer = check(library, order, prompts)
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
