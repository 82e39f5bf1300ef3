# ruff: noqa: E501
"""Every reader of a user's file, registered under the kind of file it reads: what the fuzzer walks.

A reader is `make`, which writes a good file (or a folder of them) and returns the files to damage, and `read`, which
reads it as the program does and returns something to compare. Records are found by themselves: every dataclass of
`studfinder.records` that has a `format`. What `covers` names are the functions of the sources that open the file;
tests/test_fuzz.py walks the sources and fails if one that opens a file is covered by no reader here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from studfinder import records
from studfinder.records.diagnosis import PartDiagnosis

Files = list[Path]


@dataclasses.dataclass(frozen=True)
class Reader:
    """One kind of file. `cost`: how many cheap mutations one of its own is worth. `same`:
    whatever is in the file, no other answer may come of it."""

    kind: str
    make: Callable[[Path], Files]
    read: Callable[[Path], Any]
    covers: tuple[str, ...]
    cost: int = 1
    same: bool = False


READERS: dict[str, Reader] = {}


def reader(kind: str, make: Callable[[Path], Files], *covers: str, cost: int = 1, same: bool = False) -> Callable:
    """Register the function that reads a kind of file."""

    def register(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
        READERS[kind] = Reader(kind, make, read, covers, cost, same)
        return read

    return register


# --- records: all there are ---


def _samples() -> dict[str, Any]:
    from test_visible import card_of, quantization_of, scan_of

    findings = scan_of("x")[0]
    run = findings.run
    score = records.Interval(value=1.0, low=0.5, high=1.5, level=0.95, n=3, method="bootstrap")
    table = records.Table(title="t", columns=("a", "b"), rows=(("x", 1.5),))
    return {
        "Findings": findings,
        "Scorecard": card_of("x"),
        "Quantization": quantization_of("x"),
        "Result": records.Result(
            name="n", paper="p", shows="s", models=(findings.model,), run=run, tables=(table,), data={"x": [1, 2.0]}
        ),
        "Diagnosis": records.Diagnosis(
            model=findings.model,
            original=findings.model,
            ill=True,
            cause="scaled",
            culprit="a.o",
            verdict="a.o is broken.",
            mend="",
            text="t",
            kl=score,
            back=score,
            agreement=score,
            perplexity=score,
            by_position=((1, 0.5),),
            parts=(
                PartDiagnosis(
                    name="a.o",
                    members=("a.o",),
                    layer=0,
                    pattern="scaled",
                    words="x",
                    breaks=True,
                    error=0.5,
                    won=score,
                ),
            ),
            run=run,
        ),
        "Equivalence": records.Equivalence(
            model=findings.model,
            changes=(
                records.EqualChange(
                    kind="key bias",
                    layer=0,
                    parameter="a.k.bias",
                    words="x",
                    exact=False,
                    head=0,
                    dims=(1, 2),
                    bound=0.1,
                ),
            ),
            checks=(records.EqualCheck(tokens=8, windows=2, kl=score, largest=0.5, equal=False),),
            gains=(records.EqualGain(stored_as="KV int8", before=score, after=score, less=score),),
            context=8,
            text="t",
            judged_on="u",
            verdict="1 change.",
            run=run,
        ),
        "Recipe": records.Recipe(
            model=findings.model,
            decided="by hand",
            run=run,
            groups=(
                records.RecipeGroup(name="a.q+k", members=("a.q", "a.k"), shapes=((4, 8), (2, 8)), stored_as="int4-g4"),
                records.RecipeGroup(name="a.o", members=("a.o",), stored_as="16", why="proven", layer=0),
            ),
            left_out=(records.LeftOut(module="lm_head", why="the head"),),
            versions={"studfinder": "0"},
        ),
        "Plan": records.Plan(
            model=findings.model,
            run=run,
            budget="4.5 bits a weight",
            method="rtn",
            text="t",
            judged_on="u",
            solutions=(
                records.Solution(
                    formats=("int4-g4", "16"),
                    groups=(
                        records.PlannedGroup(
                            name="a.o",
                            layer=0,
                            modules=("a.o",),
                            shapes=((4, 8),),
                            stored_as="int4-g4",
                            bits=8.0,
                            kl=0.1,
                        ),
                    ),
                    bits=8.0,
                    size=32,
                    predicted=0.1,
                    gap=0.0,
                    kl=score,
                    rivals=(records.Rival(name="all 16", kind="uniform", bits=16.0, kl=score, less=score),),
                    better=False,
                    verdict="no",
                ),
            ),
        ),
        "Sensitivity": records.Sensitivity(
            model=findings.model,
            run=run,
            text="t",
            tokens=7,
            groups=(
                records.GroupCosts(
                    name="a.o",
                    layer=0,
                    modules=("a.o",),
                    shapes=((4, 8),),
                    costs=(
                        records.FormatCost(
                            stored_as="int4-g4", bits=8.0, kl=0.1, error=0.01, together=0.2, measured=score
                        ),
                    ),
                ),
            ),
        ),
        "Training": records.Training(
            run=run, parameters=1, tokens=2, loss=score, accuracy=score, log=({"step": 1, "eval_loss": 2.0},)
        ),
    }


FORMATS = {
    name: kind
    for name in records.__all__
    if dataclasses.is_dataclass(kind := getattr(records, name))
    and "format" in {f.name for f in dataclasses.fields(kind)}
}


def _record(name: str) -> None:
    kind = FORMATS[name]
    file = "record.json"

    def make(folder: Path) -> Files:
        (folder / file).write_text(records.to_json(_samples()[name]), encoding="utf-8")
        return [folder / file]

    def read(folder: Path) -> Any:
        from studfinder.runs import kind_of

        kind_of(folder / file)
        return records.to_json(records.read_record(kind, folder / file))

    READERS[f"record {name}"] = Reader(
        f"record {name}",
        make,
        read,
        ("records/json.py:read_record", "records/json.py:from_json", "runs/found.py:kind_of"),
    )


for _name in FORMATS:
    _record(_name)


# --- runs ---


def _text(name: str, *contents: str) -> Callable[[Path], Files]:
    def make(folder: Path) -> Files:
        (folder / name).write_text("\n".join(contents) + "\n", encoding="utf-8")
        return [folder / name]

    return make


def _steps(folder: Path) -> Files:
    from studfinder.runs.steps import Steps

    steps = Steps(folder / "steps.jsonl", run="r", under="u")
    for number in range(4):
        steps.once(f"s{number}", lambda number=number: {"x": [number, 0.5]})
    return [folder / "steps.jsonl"]


@reader("steps.jsonl", _steps, "runs/steps.py:Steps._read", "runs/steps.py:Steps._believed")
def _(folder: Path) -> Any:
    from studfinder.runs.steps import Steps

    return Steps(folder / "steps.jsonl", run="r", under="u").values


def _format() -> str:
    from studfinder.runs.run import FORMAT

    return FORMAT


def _run(folder: Path) -> Files:
    content = {"verb": "scan", "format": _format(), "key": "k", "identity": {"a": 1}, "state": "done"}
    content |= {"files": ["x.json"], "made with": [{}]}
    (folder / "run.json").write_text(json.dumps(content))
    return [folder / "run.json"]


@reader("run.json", _run, "runs/earlier.py:_run", "runs/manifest.py:read_plain")
def _(folder: Path) -> Any:
    from studfinder.runs import check_place
    from studfinder.runs.earlier import is_earlier

    is_earlier(folder)
    is_earlier(folder, "scan", {"a": 1})
    return check_place(folder, False, [])


@reader(
    "lock",
    _text("x.lock", json.dumps({"host": "h", "pid": 1, "born": 5, "since": "2020"})),
    "runs/lock.py:_read",
    "runs/lock.py:_guarded",
    "runs/lock.py:Lock.check",
)
def _(folder: Path) -> Any:
    import os

    from studfinder.runs.lock import Lock

    os.utime(folder / "x.lock", (1, 1))
    lock = Lock(folder / "x.lock")
    lock.take()
    lock.check()
    return lock.release()


# --- models ---


def _model(*damaged: str, shards: bool = False) -> Callable[[Path], Files]:
    def make(folder: Path) -> Files:
        from tiny import tiny, tokenizer

        tiny("llama").model.save_pretrained(folder, max_shard_size="50KB" if shards else "1GB")
        tokenizer().save_pretrained(folder)
        return [next(iter(sorted(folder.glob(name)))) for name in damaged]

    return make


def _loaded(folder: Path) -> Any:
    from studfinder.models import content_hash, load

    lm = load(folder)
    if lm.tokenizer is not None:
        from studfinder.texts.prompts import Text, encode

        encode(lm, [Text("t", "w3 w4 w5")])
    return content_hash(lm)


for _kind, _files, _shards in (
    ("config.json", ("config.json",), False),
    ("model.safetensors", ("model.safetensors",), False),
    ("index", ("model.safetensors.index.json",), True),
    ("tokenizer", ("tokenizer.json", "tokenizer_config.json"), False),
    ("generation_config.json", ("generation_config.json",), False),
):
    READERS[_kind] = Reader(
        _kind,
        _model(*_files, shards=_shards),
        _loaded,
        (
            "models/files.py:check_folder",
            "models/files.py:check_names",
            "models/files.py:weights_of",
            "models/files.py:_check_no_second_copy",
            "models/files.py:held_in",
            "models/files.py:_held",
            "models/pretrained.py:from_pretrained",
            "models/tokenizing.py:_wanted",
        ),
        cost=6,
    )


def _mixture(folder: Path) -> Files:
    from tiny import tiny

    tiny("mixtral").model.save_pretrained(folder, max_shard_size="50KB")
    names = ("config.json", "model.safetensors.index.json", "model-00001-of-*.safetensors")
    return [next(iter(sorted(folder.glob(name)))) for name in names]


@reader(
    "a checkpoint for its model's own names",
    _mixture,
    "models/converted.py:in_own_names",
    "models/converted.py:_key",
    "models/converted.py:_write",
    cost=16,
)
def _(folder: Path) -> Any:
    from studfinder.models import content_hash, load

    return content_hash(load(folder, own_names=True))


@reader(
    "options of a command",
    _text("run.yaml", "command: scan\nmodel: ./mine\ndtype: float32\nprove: false\nprompt: [one, two]\n"),
    "cli/given.py:_arguments",
)
def _(folder: Path) -> Any:
    from studfinder.cli.given import with_config

    return with_config(["--config", str(folder / "run.yaml")])


_RULES = """config_groups:
  a:
    targets: ['re:.*_proj', 'lm_head']
    weights: {num_bits: 4, group_size: 8, symmetric: false}
ignore: ['re:.*down_proj']
"""


@reader(
    "a tool's recipe", _text("r.yaml", _RULES), "recipes/registry.py:read_rules_file", "recipes/registry.py:_parsed"
)
def _(folder: Path) -> Any:
    from studfinder.recipes import NamedMatrix, read_rules_file, rule_set

    rules = rule_set(read_rules_file(folder / "r.yaml"))
    return [rules.format_of(NamedMatrix(f"a.{name}")) for name in ("q_proj", "down_proj", "lm_head")]


@reader(
    "a model's outline",
    _model("config.json", "model.safetensors.index.json", shards=True),
    "models/shell.py:shell_of",
    "models/shell.py:_names",
    cost=8,
)
def _(folder: Path) -> Any:
    from studfinder.records.loading import SourceConfig
    from studfinder.verbs.recipe_outline import outline_of

    return outline_of(str(folder), SourceConfig()).matrices


def _sources(folder: Path) -> Files:
    return _model("config.json", "model.safetensors.index.json", "model-00001-of-*.safetensors", shards=True)(folder)


@reader(
    "quantize's files", _sources, "quantizers/source.py:Files.read", "quantizers/source.py:stored_files", "quantizers/source.py:open_files", "verbs/quantize.py:_from_files", cost=4,
)  # fmt: skip
def _(folder: Path) -> Any:
    from studfinder.quantizers.source import stored_files

    files = stored_files(folder)
    return [int(files.read(name).view(torch.uint8).long().sum()) for name in files.stored]


@reader(
    "tensors in the files",
    _sources,
    "models/checkpoint.py:CheckpointFiles._index",
    "models/checkpoint.py:CheckpointFiles.files",
    cost=8,
)
def _(folder: Path) -> Any:
    from studfinder.models.checkpoint import CheckpointFiles
    from studfinder.models.lm import LM, Source
    from tiny import tiny

    lm = tiny("llama")
    found = CheckpointFiles(LM(lm.model, None, lm.anatomy, Source("x", "a local folder", folder)))
    return sorted(found.files)


def _gguf(folder: Path) -> Files:
    from gguf_files import described, tensors_of, write_gguf
    from tiny import tiny

    model = tiny("llama").model
    write_gguf(folder / "m.gguf", described(model), tensors_of(model))
    return [folder / "m.gguf"]


@reader("gguf", _gguf, "models/gguf.py:_opened", cost=6)
def _(folder: Path) -> Any:
    from studfinder.models import content_hash, load

    return content_hash(load(folder / "m.gguf"))


def _adapter(folder: Path) -> Files:
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "b", "r": 4})
    )
    return [folder / "adapter_config.json"]


@reader("adapter_config.json", _adapter, "models/adapters.py:adapter_at")
def _(folder: Path) -> Any:
    from studfinder.models.adapters import adapter_at
    from studfinder.models.lm import Source

    found = adapter_at(Source("a", "a local folder", folder))
    return None if found is None else (found.kind, found.base)


def _adapter_weights(folder: Path) -> Files:
    from safetensors.torch import save_file

    save_file({"a.lora_A.weight": torch.ones(2, 3)}, folder / "adapter_model.safetensors")
    return [folder / "adapter_model.safetensors"]


@reader("adapter weights", _adapter_weights, "models/adapters.py:_held")
def _(folder: Path) -> Any:
    from studfinder.models.adapters import _held

    return {name: tensor.tolist() for name, tensor in _held(folder, False).items()}


def _made(folder: Path) -> Files:
    from studfinder.models import made

    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    made.note_made(folder / "model", "s")
    return [folder / "model" / made.LIST]


@reader("list of a built-in model", _made, "models/made.py:_difference")
def _(folder: Path) -> Any:
    from studfinder.models import made

    made._SEEN.clear()
    return made._difference(folder / "model", "s") or "as it was made"


def _hash_kept(folder: Path) -> Files:
    import os

    from studfinder.models import cached_content_hash, load

    os.environ["STUDFINDER_CACHE"] = str(folder / "cache")
    _model("config.json")(folder)
    cached_content_hash(load(folder))
    return sorted((folder / "cache" / "hashes").glob("*.json"))


@reader("content hash that was kept", _hash_kept, "models/fingerprint.py:cached_content_hash", cost=6, same=True)
def _(folder: Path) -> Any:
    import os

    from studfinder.models import cached_content_hash, load

    os.environ["STUDFINDER_CACHE"] = str(folder / "cache")
    return cached_content_hash(load(folder))


def _anatomy_kept(folder: Path) -> Files:
    import os

    from studfinder.models import measured
    from tiny import tiny

    os.environ["STUDFINDER_CACHE"] = str(folder / "cache")
    measured._KEPT.clear()
    tiny("llama")
    return sorted((folder / "cache" / "anatomy").glob("*.json"))


@reader("anatomy that was kept", _anatomy_kept, "models/measured.py:_read", cost=6, same=True)
def _(folder: Path) -> Any:
    import os

    from studfinder.models import measured
    from tiny import tiny

    os.environ["STUDFINDER_CACHE"] = str(folder / "cache")
    measured._KEPT.clear()
    return repr(tiny("llama").anatomy)


def _quantised(folder: Path) -> Files:
    from test_packed import pack

    path, _ = pack(folder, "llama", "gptq")
    return [path / "config.json", path / "model.safetensors"]


@reader("quantised checkpoint", _quantised, "models/packed.py:plain_view", cost=8)
def _(folder: Path) -> Any:
    return _loaded(next(path.parent for path in sorted(folder.rglob("config.json")) if "plain" not in str(path)))


def _pieces(folder: Path) -> Files:
    import io

    import sentencepiece

    _model()(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    file, words = io.BytesIO(), [f"w{n} w{n + 1} w{n % 7}" for n in range(90)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=file, vocab_size=60, minloglevel=2, hard_vocab_limit=False
    )
    (folder / "tokenizer.model").write_bytes(file.getvalue())
    return [folder / "tokenizer.model"]


READERS["tokenizer.model"] = Reader("tokenizer.model", _pieces, _loaded, ("models/tokenizing.py:_misread",), cost=8)


@reader("code beside a model", _text("config.json", '{"auto_map": {"A": "b.C"}}'), "models/beside.py:_brings_code")
def _(folder: Path) -> Any:
    from studfinder.models.beside import _brings_code

    return _brings_code(folder / "config.json")


# --- texts ---

_LINES = [json.dumps({"text": f"some text {number}", "n": [number, None]}) for number in range(4)]


def _prompts(folder: Path) -> Any:
    from studfinder.texts.prompts import read_prompts

    return [read_prompts(path) for path in sorted(folder.glob("*.txt")) + sorted(folder.glob("*.jsonl"))]


READERS["prompts.txt"] = Reader(
    "prompts.txt", _text("p.txt", "one", "zwei", "三"), _prompts, ("texts/prompts.py:read_prompts",)
)
READERS["prompts.jsonl"] = Reader(
    "prompts.jsonl", _text("p.jsonl", *_LINES), _prompts, ("texts/prompts.py:read_prompts",)
)


def _documents(folder: Path) -> Any:
    from studfinder.texts import corpus

    return [corpus(path) for path in sorted(folder.iterdir())]


for _suffix, _content in (
    (".txt", ["one", "zwei", "三"]),
    (".jsonl", _LINES),
    (".json", [json.dumps(["a", {"text": "b"}, {"story": "c"}])]),
):
    READERS[f"text {_suffix}"] = Reader(
        f"text {_suffix}", _text(f"d{_suffix}", *_content), _documents, ("texts/corpora.py:_documents_of",)
    )


@reader("text by name", _text("c4.txt", "one", "<doc id>", "三"), "texts/corpora.py:_lines")
def _(folder: Path) -> Any:
    from studfinder.texts.corpora import _lines

    return list(_lines(folder / "c4.txt"))


@reader(
    "facts",
    _text("P36.jsonl", *(json.dumps({"subject": f"s{n}", "object": "o"}) for n in range(4))),
    "texts/relations.py:_read",
)
def _(folder: Path) -> Any:
    from studfinder.texts.relations import _read

    return _read(folder / "P36.jsonl")


@reader(
    "task data",
    _text("t.jsonl", *(json.dumps({"question": "g", "choices": ["a", "b"], "label": 0}) for _ in range(3))),
    "measures/tasks/harness.py:_read",
)
def _(folder: Path) -> Any:
    from studfinder.measures.tasks.catalogue import TASKS
    from studfinder.measures.tasks.harness import _read

    return _read(folder / "t.jsonl", TASKS["piqa"])


# --- what a diagnosis and a plan read ---


@reader(
    "engine's log-probabilities",
    _text("out.jsonl", *(json.dumps({"token_ids": [1, 5, 9], "logprobs": [None, -2.0, -0.5]}) for _ in range(3))),
    "diagnosis/outputs.py:engine_outputs",
)
def _(folder: Path) -> Any:
    from studfinder.diagnosis.outputs import engine_outputs

    return engine_outputs(folder / "out.jsonl")


@reader(
    "card that names the original",
    _text("README.md", "---", "library_name: transformers", "base_model: owner/name", "---", "# A model"),
    "models/original.py:_named",
)
def _(folder: Path) -> Any:
    from studfinder.models.original import original_named

    return original_named(folder)


def _kept(folder: Path) -> Files:
    import torch

    from studfinder.verbs.plan_costs import write_kept

    write_kept(folder / "kept.safetensors", {("int4-g4-keep1%", "a.weight"): torch.tensor([1, 5, 9])})
    return [folder / "kept.safetensors"]


@reader("kept.safetensors", _kept, "verbs/plan_costs.py:read_kept")
def _(folder: Path) -> Any:
    from studfinder.verbs.plan_costs import read_kept

    return {name: places.tolist() for name, places in read_kept(folder / "kept.safetensors").items()}


# --- training and arrays ---


def _mark(folder: Path) -> Files:
    from studfinder.training import checkpoints

    place = folder / "checkpoint-5"
    place.mkdir()
    (place / "a.bin").write_bytes(b"abc")
    mark = {"key": "k", "data": {"a": 1}, "loss_since_log": 0.5, "logged": 3, "files": checkpoints._hashes(place)}
    (place / checkpoints._MARK).write_text(json.dumps(mark))
    return [place / checkpoints._MARK]


@reader(
    "checkpoint mark",
    _mark,
    "training/checkpoints.py:latest",
    "training/checkpoints.py:_hashes",
    "training/checkpoints.py:Checkpoints.on_train_begin",
)
def _(folder: Path) -> Any:
    from studfinder.training.checkpoints import latest

    return latest(folder, "k", {"a": 1})


def _looks(folder: Path) -> Files:
    lines = [json.dumps({"step": n, "summary": {"a": 1.0}, "layers": {"sink": [1.0]}}) for n in range(3)]
    return _text("outliers.jsonl", *lines)(folder)


@reader("outliers.jsonl", _looks, "training/outliers.py:looks_in")
def _(folder: Path) -> Any:
    from studfinder.training.outliers import looks_in

    return looks_in(folder / "outliers.jsonl")


def _arrays(folder: Path) -> Files:
    import numpy as np
    from safetensors.numpy import save_file

    from scanned import a_scan

    findings, profile = a_scan()
    (folder / "findings.json").write_text(records.to_json(findings), encoding="utf-8")
    save_file({name: np.ascontiguousarray(value) for name, value in profile.items()}, folder / "profile.safetensors")
    return [folder / "profile.safetensors"]


@reader("profile.safetensors", _arrays, "verbs/report.py:read_run", "quantizers/massive.py:row_weights")
def _(folder: Path) -> Any:
    from studfinder.verbs.report import read_run

    return {name: value.tobytes() for name, value in read_run(folder).profile.items()}
