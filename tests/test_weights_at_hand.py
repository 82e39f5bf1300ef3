"""Law 11 for weights that are not in memory: mapped and let go, or offloaded by accelerate, they give bit for bit what
resident ones give, edits of any of them included, and nothing of them stays behind."""

from __future__ import annotations

import gc
import mmap
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload
from huggingface_hub.errors import StrictDataclassError

from architected import PARTS, TYPES, built
from carried import FORTY, drawn, everywhere, loaded, of, same, scaled, texts
from checkpoints import checkpoint, studfinder
from outside import quick_and_deep
from patching import difference, traces
from proving import provable
from studfinder.edits import stream_of
from studfinder.errors import StudfinderError, WriteFailed
from studfinder.measures import log_likelihoods
from studfinder.models import LM, Anatomy, content_hash, load
from studfinder.models.measured import _of
from studfinder.models.memory import MemoryPlan, as_bytes, memory_plan
from studfinder.models.paging import bring, let_go, mapped_places, mapped_spans
from studfinder.models.probe import structure_of
from studfinder.models.twin import twin_of
from studfinder.passes import Blocks, Spool, carry, gradients, likelihood
from studfinder.quantizers import Scheme, quantized
from studfinder.quantizers.gptq import GPTQ
from studfinder.records import to_plain
from studfinder.verbs.scan import scan
from test_carried import QUICK, written
from tried import EIGHT

pytestmark = pytest.mark.filterwarnings("ignore::studfinder.edits.TiedWeightsWarning")
TINY = MemoryPlan(budget=1, weights=1, outside=0, block=0, streamed=True, states=4096, largest=0)


def results(lm: LM, edits, lengths=(6, 4)) -> list[torch.Tensor]:
    """Logits of the clean model and of every edit."""
    found = []
    for ends in carry(lm, texts(lm, *lengths), [stream_of(lm, one) for one in edits]):
        found += [of(ends), *(of(ends, number) for number in range(len(edits)))]
    return found


@pytest.mark.parametrize("kind", quick_and_deep(TYPES, *FORTY))
def test_offloaded_is_resident(kind, tmp_path) -> None:
    if not hasattr(transformers, PARTS[kind]["cls"]):
        pytest.skip(f"transformers {transformers.__version__} has no {kind} yet")
    whole, model = loaded(kind), built(kind)
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    try:
        with torch.no_grad():
            model(input_ids=torch.arange(3, 9)[None], use_cache=False)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        pytest.skip(f"accelerate itself does not run an offloaded {kind}: {error}")
    lm = load(model)
    assert lm.model.get_input_embeddings().weight.is_meta
    edits = [[one] for one in everywhere(whole)] + drawn(whole, kind, 2)
    assert all(map(same, results(lm, edits), results(whole, edits)))
    assert all(one.is_meta for one in lm.model.parameters() if one.numel())
    assert content_hash(lm) == content_hash(whole)


def test_tied_weights_that_are_offloaded_are_edited_together() -> None:
    model = built("gemma3_text")
    whole = load(built("gemma3_text"))
    edits = [[scaled(whole, "model.embed_tokens.weight")]]
    cpu_offload(model, execution_device=torch.device("cpu"))
    lm = load(model)
    assert all(map(same, results(lm, edits), results(whole, edits)))
    assert content_hash(lm) == content_hash(whole)


@pytest.mark.parametrize("kind", QUICK)
def test_mapped_weights_that_are_let_go_are_resident(kind, tmp_path) -> None:
    whole = load(written(kind, tmp_path), dtype="float32", carried=True)
    lm = replace(whole, memory=TINY)
    before = traces(lm)
    edits = [[one] for one in everywhere(whole)] + drawn(whole, kind, 2)
    assert all(map(same, results(lm, edits), results(whole, edits)))
    ours, theirs = (list(gradients(one, texts(one, 6, 4), likelihood())) for one in (lm, whole))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.parameters.keys() == other.parameters.keys()
        assert all(torch.equal(mine.parameters[name], other.parameters[name]) for name in mine.parameters)
    requests = [(list(range(3, 3 + length)), [5, 6]) for length in (4, 9, 7)]
    pair = [log_likelihoods(one, requests, batch_tokens=64) for one in (lm, whole)]
    assert pair[0] == pair[1]
    assert not difference(before, traces(lm))


def test_pages_come_and_go_and_changed_ones_stay(tmp_path) -> None:
    folder = written("llama", tmp_path)
    with (folder / "model.safetensors").open("rb") as file:
        os.fsync(file)  # what is not on the disk yet stays in memory
    lm = load(folder)
    weight = lm.model.get_parameter("model.layers.2.mlp.down_proj.weight")
    spans = mapped_spans(lm.model)
    assert spans, "nothing is mapped"
    assert mapped_places([weight.detach().clone(), torch.zeros(1 << 20)]) == []
    with torch.no_grad():
        kept = weight.clone()
        weight[0, 0] = 7.0
    bring(spans)
    assert resident_pages(spans) == pages_in(spans)
    for _ in range(50):  # what another core has just read is on its list first, where it cannot be taken from
        let_go(spans)
        if resident_pages(spans) <= 1:  # the changed one has no other copy
            break
        time.sleep(0.02)
    else:
        pytest.fail(f"{resident_pages(spans)} pages stay")
    assert float(weight.detach()[0, 0]) == 7.0
    assert torch.equal(weight.flatten()[1:], kept.flatten()[1:])


def pages_in(spans) -> int:
    return len({page for first, length in spans for page in range(first, first + length, mmap.PAGESIZE)})


def resident_pages(spans) -> int:
    """Pages of these spans that this process has in its memory, by the kernel's own book of them."""
    pages = {page // mmap.PAGESIZE for first, length in spans for page in range(first, first + length, mmap.PAGESIZE)}
    with open("/proc/self/pagemap", "rb") as book:
        return sum(int.from_bytes(_entry(book, page), "little") >> 63 for page in pages)


def _entry(book, page: int) -> bytes:
    book.seek(8 * page)
    return book.read(8)


def test_states_past_the_limit_lie_in_files_that_nobody_sees(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STUDFINDER_CACHE", str(tmp_path))
    whole = loaded("llama")
    small = Spool(replace(whole, memory=replace(TINY, states=3000)))
    kept = [small.keep((torch.full((10, 50), float(number)), "x")) for number in range(4)]
    assert [bool(mapped_places([one[0]])) for one in kept] == [False, True, True, True]
    assert all(float(one[0].sum()) == 500.0 * number for number, one in enumerate(kept))
    del kept[0]
    gc.collect()
    assert not mapped_places([small.keep(torch.zeros(100))])
    assert list((tmp_path / "states").iterdir()) == []
    lm = replace(whole, memory=replace(TINY, states=1))
    edits = [[one] for one in everywhere(whole)]
    assert all(map(same, results(lm, edits), results(whole, edits)))


def test_a_disk_without_room_for_states_is_said(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("STUDFINDER_CACHE", str(tmp_path))

    def full(*_given) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(WriteFailed, match="the disk is full"):
        Spool(replace(loaded("llama"), memory=replace(TINY, states=1))).keep(torch.zeros(9))
    assert list((tmp_path / "states").iterdir()) == []


def test_what_fits_stays_in_memory_and_what_cannot_is_refused(monkeypatch) -> None:
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(1000, 250), "rest": torch.nn.ModuleList()})
    model["rest"].extend(torch.nn.Linear(5000, 5000, device="meta") for _ in range(40))
    blocks = list(model["rest"])  # 100 MB each, 4 GB in all
    with pytest.raises(StudfinderError, match=r"it takes 4.0 GB of memory: its weights are made as it is loaded"):
        memory_plan("it", model, blocks, 4, 2 << 30)
    assert not memory_plan("it", model, blocks, 4, 2 << 30, asked=False).streamed
    monkeypatch.setattr("studfinder.models.memory._is_mapped", lambda block: True)
    assert not memory_plan("it", model, blocks, 4, 6 << 30).streamed
    plan = memory_plan("it", model, blocks, 4, 2 << 30)
    assert plan.streamed
    assert plan.peak <= 2 << 30
    with pytest.raises(StudfinderError, match=r"it cannot be read in 700 MB .* expected --memory (.*)GB or more") as no:
        memory_plan("it", model, blocks, 4, 700_000_000)
    least = str(no.value).rpartition("--memory ")[2].split()[0]
    assert memory_plan("it", model, blocks, 4, as_bytes(least)).streamed


@pytest.mark.parametrize(("text", "expected"), [("8GB", 8 * 10**9), ("500 MB", 5 * 10**8), ("1GiB", 1 << 30), (7, 7)])
def test_amounts_of_memory(text, expected) -> None:
    assert as_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "8", "lots", "-1GB", "0GB", 0, "GB"])
def test_what_is_no_amount_of_memory(text) -> None:
    with pytest.raises(StudfinderError, match="no amount of memory"):
        as_bytes(text)


def test_a_device_map_with_a_disk_is_resident(tmp_path) -> None:
    """Over several places through accelerate, here the CPU and a disk: hash, gradients and edits are as ever."""
    folder = checkpoint(tmp_path / "model")
    whole = load(folder)
    here = ["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"]
    places = dict.fromkeys(here, "cpu") | {layer.block: "disk" for layer in whole.anatomy.layers}
    places["model.layers.0"] = "cpu"
    lm = load(folder, device_map=places)
    assert mapped_spans(lm.model.model.layers[1])
    assert content_hash(lm) == content_hash(whole)
    edits = [[one] for one in everywhere(whole)]
    assert all(map(same, results(lm, edits), results(whole, edits)))
    pairs = zip(*(gradients(one, texts(one, 6), likelihood()) for one in (lm, whole)), strict=True)
    assert all(torch.equal(a.parameters[name], b.parameters[name]) for a, b in pairs for name in a.parameters)
    assert Blocks(lm).after == Blocks(whole).after


def test_memory_at_the_command_line(tmp_path) -> None:
    folder = checkpoint(tmp_path / "model")
    for asked, words in (("none", "no amount of memory"), ("5MB", "cannot be read in 5 MB of memory")):
        done = studfinder("scan", folder, "--memory", asked, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
    assert Path(folder).exists()


def test_findings_are_those_of_the_resident_model(tmp_path) -> None:
    """Observed, counted by the census and proven; a live object that is offloaded has no gradients, and no census."""
    planted, _ = provable("llama", planted=True)
    folder = tmp_path / "model"
    planted.model.save_pretrained(folder)
    planted.tokenizer.save_pretrained(folder)
    whole = load(folder)
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    mapped = load(folder, device_map=places | {layer.block: "disk" for layer in whole.anatomy.layers})
    live = load(folder).model
    disk_offload(live, tmp_path / "away", execution_device=torch.device("cpu"))
    live = load(live, whole.tokenizer)
    how = {"most": 3, "pools": 2}

    def plain(lm: LM, **more) -> dict:
        found = to_plain(scan(lm, **how, **more))
        return {name: one for name, one in found.items() if name not in ("run", "model")}

    expected = plain(whole, census=True)
    assert expected["super_weights"][0]["verdict"] == "proven"
    assert expected["census"] is not None
    nothing = {"continuation_prompt": None, "continuations": []}  # each token of it would read all weights
    silent = {name: one for name, one in expected.items() if name not in nothing}
    found = plain(replace(whole, memory=TINY), census=True)
    assert expected["continuations"]
    assert not found["continuations"]
    assert {name: one for name, one in found.items() if name not in nothing} == silent
    assert plain(mapped, census=True) == expected
    assert plain(live, census=False) == plain(whole, census=False)


@pytest.mark.parametrize("kind", quick_and_deep(TYPES, *EIGHT, *QUICK))
def test_a_twin_with_fewer_words_has_the_same_parts(kind) -> None:
    if not hasattr(transformers, PARTS[kind]["cls"]):
        pytest.skip(f"transformers {transformers.__version__} has no {kind} yet")
    if kind == "bitnet":
        pytest.skip("what its twin looks like depends on the numbers drawn, with any vocabulary")
    lm = loaded(kind)
    depths = {path: len(part) for path, part in lm.model.named_modules() if isinstance(part, torch.nn.ModuleList)}

    def seen(words: int | None, whole: bool) -> Anatomy:
        twin, structures = twin_of(lm.model, structure_of, words=words, whole=whole)
        return _of(lm.model, twin, depths, structures)

    try:
        expected, whole = seen(None, False), False
    except (IndexError, AttributeError, RuntimeError):  # some look up a block by its number
        expected, whole = seen(None, True), True
    try:
        few = seen(41, whole)
    except (StrictDataclassError, RuntimeError) as error:  # its config or its class wants its own
        pytest.skip(f"it is measured with all its words: {error}")
    assert few == expected


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3_moe", "deepseek_v3"])
def test_gptq_of_weights_that_are_let_go_is_that_of_resident_ones(kind, dtype, tmp_path) -> None:
    folder = written(kind, tmp_path / "model", torch.float32 if dtype == "auto" else torch.bfloat16)
    whole = load(folder, dtype=dtype)
    lm = replace(load(folder, dtype=dtype, carried=True), memory=TINY)
    windows = [[(5 * row + 3 * at) % 90 + 3 for at in range(32)] for row in range(4)]
    before, found = traces(lm), []
    for one in (whole, lm):
        with (
            quantized(one, GPTQ(scheme=Scheme(element="int3", block=8, zero="integer")), windows=windows) as bench,
            torch.no_grad(),
        ):
            logits = one.model(input_ids=torch.tensor(windows), use_cache=False).logits
            found.append((bench.done, logits))
            if one is lm:
                assert mapped_places(made.codes_RC for made in bench.done.values())
    for name, made in found[0][0].items():
        assert torch.equal(made.codes_RC, found[1][0][name].codes_RC)
        assert torch.equal(made.dequantized(), found[1][0][name].dequantized())
    assert torch.equal(found[0][1], found[1][1])
    assert not difference(before, traces(lm))
