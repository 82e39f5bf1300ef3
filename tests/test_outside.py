"""What people type or own ends in one line, without a traceback, a hang, or anything left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from checkpoints import PROMPT, checkpoint
from outside import DOCUMENTS, IRREGULAR, NUMBERS, put, quick_and_deep
from studfinder.cli import app
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError, WriteFailed, known
from studfinder.records.outside import irregular, parse_json, read_text, whole_number

SCAN = ("--prompt", PROMPT, "--no-prove")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def scanned(good, tmp_path_factory):
    """A finished scan and a finished measurement, with their folders."""
    folder = tmp_path_factory.mktemp("runs")
    assert run_cli(["scan", str(good), *SCAN, "--out", str(folder / "scan")]) == 0
    assert (
        run_cli(["measure", str(good), "--measures", "perplexity", "--limit", "2", "--out", str(folder / "card")]) == 0
    )
    return folder


@pytest.fixture
def model(good, tmp_path, monkeypatch, cache):
    """A copy of a good checkpoint, to be damaged, and an alarm for what hangs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def too_long(*_):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield shutil.copytree(good, tmp_path / "model")
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def ends(model, tmp_path, capsys):
    """Runs the command line: exit code 2 with one line and nothing new on disk, or 0 if that is allowed."""

    def said(*arguments: object, fine: bool = False) -> str:
        def there() -> set:
            return {path for path in tmp_path.rglob("*") if path.relative_to(tmp_path).parts[0] != "cache"}

        before = there()
        capsys.readouterr()
        code = run_cli([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        if fine and code == 0:
            shutil.rmtree(tmp_path / "runs", ignore_errors=True)
            return ""
        assert code == 2, printed.err
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if not line.startswith("training ")]
        assert len(lines) == 1, printed.err
        assert lines[0].startswith("studfinder: error: ")
        assert len(lines[0]) < 1000
        assert there() == before
        return lines[0]

    return said


# --- JSON of another type, or none ------------------------------------------------------------------------------------

OPTIONAL = ("generation_config.json", "tokenizer_config.json", "adapter_config.json", "model.safetensors.index.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", *OPTIONAL])
@pytest.mark.parametrize("document", quick_and_deep(DOCUMENTS, "list", "deep object", "latin-1"))
def test_json_of_a_model(model, ends, name, document):
    (model / name).write_bytes(DOCUMENTS[document])
    ends("scan", model, *SCAN, "--dry-run", fine=name in OPTIONAL)


@pytest.mark.parametrize("document", quick_and_deep(DOCUMENTS, "list", "deep object", "latin-1"))
def test_json_of_an_index_of_shards(model, ends, document):
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / "model.safetensors.index.json").write_bytes(DOCUMENTS[document])
    ends("scan", model, *SCAN)
    ends("quantize", model, "--out", "q")


@pytest.mark.parametrize("document", quick_and_deep(DOCUMENTS, "list", "deep object", "latin-1"))
def test_json_of_a_record(scanned, tmp_path, ends, document):
    for folder, name in (("scan", "findings.json"), ("card", "scorecard.json")):
        place = tmp_path / folder
        shutil.copytree(scanned / folder, place)
        (place / name).write_bytes(DOCUMENTS[document])
        ends("report", place)
        ends("report", place / name)
    other = tmp_path / "result.json"
    other.write_bytes(DOCUMENTS[document])
    ends("report", other)


@pytest.mark.parametrize("document", quick_and_deep(DOCUMENTS, "list", "deep object", "latin-1"))
def test_json_of_a_manifest_makes_the_folder_nobodys(scanned, model, tmp_path, ends, document):
    place = tmp_path / "scan"
    shutil.copytree(scanned / "scan", place)
    (place / "run.json").write_bytes(DOCUMENTS[document])
    assert "not a studfinder run" in ends("scan", model, *SCAN, "--out", place, "--overwrite")


@pytest.mark.parametrize("document", quick_and_deep(DOCUMENTS, "list", "deep object", "latin-1"))
def test_json_lines_of_texts(model, tmp_path, monkeypatch, ends, document):
    lines = tmp_path / "lines.jsonl"
    lines.write_bytes(b'{"text": "w3 w4 w5"}\n' * (document not in ("empty", "blank")) + DOCUMENTS[document])
    ends("scan", model, "--prompts", lines)
    ends("measure", model, "--measures", f"perplexity:{lines}")
    ends("train", "--text", lines, "--layers", "1", "--hidden", "16", "--heads", "2", "--out", "t")


@pytest.mark.parametrize("document", quick_and_deep(DOCUMENTS, "list", "deep object", "latin-1"))
def test_json_lines_of_facts_and_lists_of_texts(tmp_path, monkeypatch, document):
    from studfinder.texts import documents
    from studfinder.texts.relations import relations

    monkeypatch.setenv("STUDFINDER_DATA", str(tmp_path))
    (tmp_path / "facts").mkdir()
    (tmp_path / "facts" / "P36.jsonl").write_bytes(DOCUMENTS[document])
    if document not in ("empty", "blank"):
        with pytest.raises(StudfinderError):
            relations("trex")
    (tmp_path / "texts.json").write_bytes(DOCUMENTS[document])
    with pytest.raises(StudfinderError):
        list(documents(tmp_path / "texts.json")[1])


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_json_of_the_right_type_or_a_mistake(content):
    with contextlib.suppress(StudfinderError):
        assert isinstance(parse_json(content, name="it"), dict)


# --- files that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", quick_and_deep(IRREGULAR, "pipe", "dangling"))
@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"],
)
def test_files_of_a_model_that_are_none(model, ends, kind, name):
    put(kind, model / name)
    ends("scan", model, *SCAN, "--dry-run", fine=kind == "folder" and name not in ("config.json", "model.safetensors"))
    ends("quantize", model, "--out", "q", "--dry-run", fine=kind == "folder" and name.startswith(("tok", "gen")))


@pytest.mark.parametrize("kind", quick_and_deep(IRREGULAR, "pipe", "dangling"))
def test_files_of_texts_and_runs_that_are_none(model, tmp_path, ends, kind):
    for name in ("p.txt", "p.jsonl"):
        put(kind, tmp_path / name)
        assert "cannot be read" in ends("scan", model, "--prompts", tmp_path / name)
        ends("measure", model, "--measures", f"perplexity:{tmp_path / name}")
        ends("train", "--text", tmp_path / name, "--layers", "1", "--hidden", "16", "--heads", "2", "--out", "t")
        ends("report", tmp_path / name)
        ends("scan", tmp_path / name)
    place = tmp_path / "place"
    place.mkdir()
    put(kind, place / "findings.json")
    ends("report", place)


def test_what_is_regular_and_what_is_not(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    for regular in ("file", "link", "nothing"):
        assert irregular(tmp_path / regular) is None
    assert irregular(tmp_path) == "a folder"
    with pytest.raises(StudfinderError, match="File name too long"):
        read_text(tmp_path / ("x" * 300))


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_in_names_of_measures(number):
    from studfinder.measures import measure_named
    from studfinder.measures.asked import sizes_asked
    from studfinder.measures.induction import induction
    from studfinder.measures.matched_facts import facts_in_context
    from studfinder.measures.repetition import repetition
    from tiny import tiny

    assert whole_number(number) is None
    lm = tiny("llama")
    with pytest.raises(StudfinderError):
        sizes_asked(number, "passkey")
    for measure in (induction, repetition):
        with pytest.raises(StudfinderError):
            measure(lm, number)
    with pytest.raises(StudfinderError):
        facts_in_context(lm, number)
    if number.strip():
        with pytest.raises(StudfinderError):
            measure_named(f"tasks:arithmetic:{number}")(lm)


@given(st.text(max_size=25))
@example("0\x1f")
@example("\u00a07")
@settings(max_examples=500, deadline=None)
def test_a_number_is_what_int_makes_of_its_digits(text):
    try:
        meant = int(text)
    except ValueError:
        meant = None
    plain = text.strip(" \t\r\n")
    if meant is not None and not (plain.isdecimal() and len(plain) <= 18):  # signs, underscores, other spaces
        meant = None
    assert whole_number(text) == meant


@given(st.integers(0, 10**18 - 1), st.sampled_from(["", " ", "\t", "\r\n"]))
def test_every_number_of_up_to_18_digits_is_read(number, space):
    assert whole_number(f"{space}{number}{space}") == number


OPTIONS = [
    *(("scan", option) for option in ("--lam", "--batch-size", "--train-length")),
    *(("measure", option) for option in ("--limit", "--seed", "--batch-size")),
    *(("quantize", option) for option in ("--bits", "--group", "--samples", "--length", "--hold-fraction")),
    *(("train", option) for option in ("--steps", "--batch", "--lr", "--warmup", "--layers", "--hidden", "--seed")),
]


@pytest.mark.deep
@pytest.mark.parametrize(("verb", "option"), OPTIONS)
def test_numbers_of_options(model, ends, verb, option):
    out = {"quantize": ("--out", "q"), "train": ("--task", "induction", "--out", "t")}
    for number in NUMBERS:
        if number in ("-1", " ", "1.5", "1e3", "1_", "nan", "inf"):
            continue  # numbers to some of them
        ends(verb, *(() if verb == "train" else (model,)), option, number, *out.get(verb, ()))


@pytest.mark.parametrize("lam", ["0", "-0", "0.0", "-1", "nan", "-nan", "inf", "-inf", "1e400", "1e308", "1e10", "²"])
def test_thresholds(model, ends, lam):
    ends("scan", model, "--lam", lam)


# --- configs ----------------------------------------------------------------------------------------------------------

SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "head_dim",
)
ABSURD = (0, -1, -(10**12), 10**5, 10**9, 10**12, 10**30, 10**400, 1e12, 0.5, "32", [], {})


@pytest.mark.parametrize("size", quick_and_deep(SIZES, "hidden_size", "num_hidden_layers"))
def test_absurd_sizes(model, ends, size):
    config = json.loads((model / "config.json").read_text())
    for value in ABSURD:
        (model / "config.json").write_text(json.dumps({**config, size: value}))
        ends("scan", model, *SCAN)
        if size not in ("num_key_value_heads", "head_dim"):
            ends("quantize", model, "--out", "q")


def test_absurd_positions(tmp_path, cache, mistake):
    folder = checkpoint(tmp_path / "gpt2", "gpt2")
    config = json.loads((folder / "config.json").read_text())
    for value in (0, -1, -(10**12), 10**9, 10**12, 10**30):
        (folder / "config.json").write_text(json.dumps({**config, "n_positions": value}))
        assert "n_positions=" in mistake("scan", folder)


# --- the boundary -----------------------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """As torch's, of an accelerator."""


class SafetensorError(Exception):
    """As safetensors'."""


NO_MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 7.45 GiB for an array"),
    OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000000 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("unable to mmap 8589934592 bytes from file <m>: Cannot allocate memory (12)"),
    OSError(12, "Cannot allocate memory"),
]
FULL = [
    OSError(28, "No space left on device"),
    OSError(28, "No space left on device", "out/model.safetensors"),
    OSError(122, "Disk quota exceeded"),
    OSError(27, "File too large"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos: No space left on device"),
]
OTHER = [
    (EOFError(), "empty, or ends before it should"),
    (EOFError("Ran out of input"), "empty, or ends before it should"),
    (PermissionError(13, "Permission denied", "a/b"), "a/b cannot be read or written (Permission denied)"),
    (FileNotFoundError(2, "No such file or directory", "a/b"), "a/b cannot be read or written"),
    (OSError(40, "Too many levels of symbolic links", "a/b"), "a/b cannot be read or written"),
    (OSError(36, "File name too long", "a/b"), "a/b cannot be read or written"),
]
KINDS = [
    *((error, "there is not enough memory. Use a smaller model") for error in NO_MEMORY),
    *((error, "the disk is full") for error in FULL),
    *OTHER,
]


@pytest.mark.parametrize(("error", "words"), KINDS)
@pytest.mark.parametrize(
    "place",
    quick_and_deep(
        ["verbs.load.load", "verbs.scan.observe_model", "verbs.scan.published_for", "verbs.report.write_report"],
        "verbs.load.load",
    ),
)
def test_what_the_boundary_knows(model, ends, monkeypatch, error, words, place):
    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(f"studfinder.{place}", fail)
    line = ends("scan", model, *SCAN, "--out", "r")
    assert words in line


@pytest.mark.parametrize("error", NO_MEMORY[:-1])
def test_memory_that_ends_while_a_model_is_loaded(model, ends, monkeypatch, error):
    import transformers

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    assert "not enough memory" in ends("scan", model, *SCAN)


def test_real_memory_that_ends(model, ends, monkeypatch):
    from studfinder.verbs import scan

    monkeypatch.setattr(scan, "observe_model", lambda *_args, **_options: torch.empty(1 << 60))
    assert "not enough memory" in ends("scan", model, *SCAN)


def test_a_full_disk_whoever_writes(tmp_path):
    from studfinder.runs import write_bytes

    for error in FULL:

        def fail(_path, error=error):
            raise error

        with pytest.raises(WriteFailed):
            write_bytes(tmp_path / "file", fail)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error", [ValueError("x"), RuntimeError("size mismatch"), KeyError("a"), RecursionError("x"), OSError("no number")]
)
def test_what_it_does_not_know_is_an_internal_error(model, monkeypatch, capsys, error):
    assert known(error) is None

    def fail(*_args, **_options):
        raise error

    monkeypatch.setattr("studfinder.verbs.load.load", fail)
    assert run_cli(["scan", str(model)]) == 1
    assert "internal error" in capsys.readouterr().err


def test_ctrl_c_is_no_empty_file(model, monkeypatch, capsys):
    def fail(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("studfinder.verbs.load.load", fail)
    assert run_cli(["scan", str(model)]) == 130
    assert capsys.readouterr().err == "studfinder: interrupted; nothing that existed was lost\n"


def test_every_verb_is_bounded():
    for command in app.app.registered_commands:
        assert command.callback.__wrapped__.__module__.startswith("studfinder.cli.")


# --- permissions ------------------------------------------------------------------------------------------------------


@pytest.mark.deep
@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o027, 0o077])
def test_what_is_written_has_the_permissions_that_were_asked_for(model, tmp_path, mask):
    before = os.umask(mask)
    try:
        assert run_cli(["scan", str(model), *SCAN, "--out", "s"]) == 0
        assert run_cli(["measure", str(model), "--measures", "perplexity", "--limit", "2", "--out", "m"]) == 0
        assert run_cli(["quantize", str(model), "--out", "q"]) == 0
        assert run_cli(["report", "s", "--out", "p"]) == 0
    finally:
        os.umask(before)
    for folder in ("s", "m", "q", "p"):
        for path in [tmp_path / folder, *(tmp_path / folder).rglob("*")]:
            wanted = (0o777 if path.is_dir() else 0o666) & ~mask
            assert path.stat().st_mode & 0o777 == wanted, path
