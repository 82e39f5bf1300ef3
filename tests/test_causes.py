# ruff: noqa: E501
"""A failure names its cause, and what to do names only what the verb has."""

from __future__ import annotations

import ast
import errno
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers.models.auto.tokenization_auto  # noqa: F401 (binds its names before a test replaces them)

import studfinder
from checkpoints import checkpoint
from studfinder.errors import StudfinderError, Unavailable, WriteFailed
from studfinder.hub import hub_failure

SOURCES = Path(studfinder.__file__).parent

# --- the hub ---

hub = pytest.importorskip("huggingface_hub.errors")
http = sys.modules[hub.HfHubHTTPError.__mro__[1].__module__.split(".")[0]]  # the client that huggingface_hub uses


def answered(kind: str, status: int) -> Exception:
    """The hub's exception for an answer with this status."""
    response = http.Response(status, request=http.Request("GET", "https://huggingface.co/owner/name"))
    return getattr(hub, kind)("the hub's own words, in several\nlines", response=response)


def connection(kind: str) -> Exception:
    return getattr(http, kind)("the connection's own words")


def caused(outer: Exception, inner: Exception) -> Exception:
    """As transformers does it: another exception, from the first."""
    try:
        raise outer from inner
    except Exception as error:
        return error


FAILURES = {
    "no repository": (lambda: answered("RepositoryNotFoundError", 404), StudfinderError, "there is no repository owner/name on the hub, or it is private", "HF_TOKEN"),
    "hidden repository": (lambda: answered("RepositoryNotFoundError", 401), StudfinderError, "there is no repository owner/name on the hub, or it is private", "spelling"),
    "gated": (lambda: answered("GatedRepoError", 403), Unavailable, "owner/name is gated", "https://huggingface.co/owner/name"),
    "taken down": (lambda: answered("DisabledRepoError", 403), Unavailable, "taken owner/name down", "another copy"),
    "no revision": (lambda: answered("RevisionNotFoundError", 404), StudfinderError, "owner/name has no revision 'v9'", "tree/main"),
    "rate limit": (lambda: answered("HfHubHTTPError", 429), Unavailable, "no more requests for now (429", "is kept"),
    "token refused": (lambda: answered("HfHubHTTPError", 403), Unavailable, "does not let this token read owner/name (403)", "HF_TOKEN"),
    "hub down": (lambda: answered("HfHubHTTPError", 503), Unavailable, "the hub itself fails (503)", "is kept"),
    "hub down, 500": (lambda: answered("HfHubHTTPError", 500), Unavailable, "the hub itself fails (500)", "Try later"),
    "offline mode": (lambda: hub.OfflineModeIsEnabled("x"), Unavailable, "HF_HUB_OFFLINE forbids fetching it", "give its folder"),
    "unreachable": (lambda: connection("ConnectError"), Unavailable, "the hub cannot be reached", "Check the network"),
    "no answer": (lambda: connection("ConnectTimeout"), Unavailable, "the hub cannot be reached", "Check the network"),
    "proxy": (lambda: connection("ProxyError"), Unavailable, "the hub cannot be reached", "Check the network"),
    "not cached": (lambda: hub.LocalEntryNotFoundError("x"), Unavailable, "is not in the hub's cache", "Check the network"),
    "cut off": (lambda: connection("ReadError"), Unavailable, "the download of owner/name was cut off", "is kept"),
    "stalled": (lambda: connection("ReadTimeout"), Unavailable, "the download of owner/name was cut off", "fetches the rest"),
    "closed": (lambda: connection("RemoteProtocolError"), Unavailable, "the download of owner/name was cut off", "is kept"),
    "reset": (lambda: ConnectionResetError(104, "reset"), Unavailable, "the download of owner/name was cut off", "is kept"),
    "short": (lambda: OSError("Consistency check failed: file should be of size 5 but has size 3"), Unavailable, "was cut off", "is kept"),
    "xet": (lambda: hub.XetDownloadError("x"), Unavailable, "was cut off", "is kept"),
    "disk full": (lambda: OSError(errno.ENOSPC, "No space left on device"), WriteFailed, "the disk is full", "Make room"),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_failures_of_the_hub_are_told_apart(failure, depth):
    make, kind, what, do = FAILURES[failure]
    error = make()
    for _ in range(depth):
        error = caused(OSError("Can't load the configuration of 'owner/name'"), error)
    found = hub_failure("owner/name", error, "v9")
    assert type(found) is kind
    assert what in str(found)
    assert do in str(found)
    assert "own words" not in str(found)
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("y"), OSError("no file named config.json"), RuntimeError("z")]
)
def test_what_is_not_of_the_hub_is_none_of_it(error):
    assert hub_failure("owner/name", caused(ValueError("w"), error)) is None


@pytest.mark.parametrize("failure", FAILURES)
def test_a_model_of_the_hub_that_cannot_be_had(failure, mistake, monkeypatch, cache, tmp_path):
    make, _, what, do = FAILURES[failure]

    def fails(*_, **__):
        raise caused(OSError("We couldn't connect"), make())

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("studfinder.models.places.check_reached", lambda _: None)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fails)
    monkeypatch.setattr("transformers.utils.hub.cached_file", fails)
    line = mistake("scan", "owner/name", "--revision", "v9")
    assert what in line
    assert do in line


def test_a_text_of_the_hub_that_cannot_be_had(monkeypatch):
    datasets = pytest.importorskip("datasets")
    from studfinder.texts import corpora

    for make, _, what, _do in FAILURES.values():

        def fails(*_, make=make, **__):
            raise caused(ConnectionError("x"), make())

        monkeypatch.setattr(datasets, "load_dataset", fails)
        with pytest.raises(StudfinderError, match="text 'wikitext2'") as said:
            list(corpora._hub("wikitext2", ("owner/name", "", "test"), "v9", 1))
        assert what in str(said.value)


# --- tokenizers ---


@pytest.mark.parametrize(
    ("files", "gone", "package"),
    [
        ({"tokenizer.model": b"\n\x05abc"}, ("sentencepiece",), "sentencepiece"),
        ({"tokenizer.model": b"\n\x05abc"}, ("sentencepiece", "google.protobuf"), "sentencepiece and protobuf"),
        ({"tokenizer.model": b"IQ== 0\n"}, ("tiktoken",), "tiktoken"),
        ({"tiktoken.model": b"IQ== 0\n"}, ("tiktoken",), "tiktoken"),
    ],
)
def test_the_package_that_a_tokenizer_needs_is_named(files, gone, package, tmp_path, mistake, monkeypatch, cache):
    for name in gone:
        monkeypatch.setitem(sys.modules, name, None)
    model = checkpoint(tmp_path / "m")
    for path in model.glob("tokenizer*"):
        path.unlink()
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    for name, content in files.items():
        (model / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    line = mistake("scan", model)
    assert f"needs {package}, which" in line
    assert f"pip install {package.replace(' and ', ' ')}" in line
    from studfinder.models import load

    lm = load(model)  # it can be fed token ids
    assert lm.tokenizer is None
    assert isinstance(lm.source.no_tokenizer, Unavailable)


def test_a_damaged_tokenizer_is_named(tmp_path, mistake, monkeypatch, cache):
    model = checkpoint(tmp_path / "m")
    (model / "tokenizer.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    assert f"the tokenizer of {model} cannot be loaded" in mistake("scan", model)


# --- advice ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_advice_on_range_fits_the_dtype(dtype):
    from studfinder.quantizers.finite import of_range

    assert ("bfloat16" in of_range(dtype)) == (dtype is torch.float16)


@pytest.mark.parametrize(
    "matrices", ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj", "_proj", "layernorm"]
)
def test_awq_takes_matrices_of_zeros(matrices):
    from studfinder.quantizers import Clip, Scheme, quantized
    from studfinder.quantizers.awq import AWQ
    from tiny import prompts, tiny

    lm = tiny("llama")
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if matrices in name and ".0." in name:
                parameter.zero_()
    scheme = Scheme(element="int3", block=16, zero="integer", scale="float32")
    for clip in (None, Clip(steps=4, lowest=0.6)):
        with quantized(lm, AWQ(scheme=scheme, candidates=4, clip=clip), windows=prompts((9,))):
            assert torch.isfinite(lm.model(torch.tensor([[3, 4, 5]])).logits).all()


VERBS = {
    # By module, the verbs that can raise what it says; a folder stands for all of its files.
    "models/": ("scan", "measure", "plan", "quantize", "train", "experiment"),
    "models/memory.py": ("scan", "measure", "plan", "quantize", "experiment"),
    "hub.py": ("scan", "measure", "plan", "quantize", "train", "experiment"),
    "quantizers/": ("quantize",),
    "verbs/quantize": ("quantize",),
    "verbs/configs.py": ("measure", "experiment"),
    "records/findings.py": ("scan",),
    "studies/": ("experiment",),
    "verbs/train_plan.py": ("train",),
    "verbs/train.py": ("train",),
    "verbs/measure.py": ("measure",),
    "verbs/report.py": ("report",),
    "verbs/gallery.py": ("gallery",),
    "verbs/publish.py": ("quantize", "equalize"),
    "training/": ("train",),
    "runs/": ("scan", "measure", "plan", "quantize", "train", "experiment"),
    "runs/run.py": ("scan", "measure", "plan", "quantize", "train", "experiment"),
    "detectors/observe.py": ("scan", "experiment"),
    "measures/": ("measure", "experiment"),
    "measures/registry.py": ("measure",),
    "models/original.py": ("diagnose",),
    "diagnosis/": ("diagnose",),
    "verbs/diagnose.py": ("diagnose",),
    "verbs/gate.py": ("measure", "diagnose"),
    "cli/diagnose.py": ("diagnose",),
    "quantizers/equal.py": ("equalize",),
    "quantizers/key_bias.py": ("equalize",),
    "verbs/equalize.py": ("equalize",),
    "cli/equalize.py": ("equalize",),
    "quantizers/budget.py": ("plan",),
    "verbs/recipe": ("recipe write",),
    "verbs/recipe_imatrix.py": ("recipe imatrix",),
    "cli/recipe.py": ("recipe write", "recipe check", "recipe imatrix"),
    "experiments/": ("experiment",),
    "cli/ls.py": ("quantize",),
    "cli/scan.py": ("scan",),
    "cli/measure.py": ("measure",),
    "cli/plan.py": ("plan",),
    "verbs/plan": ("plan",),
    "cli/quantize.py": ("quantize",),
    "cli/report.py": ("report",),
    "verbs/scan.py": ("scan",),
    "cli/train.py": ("train",),
    "cli/experiment.py": ("experiment",),
    "cli/options.py": ("measure", "experiment"),
    "cli/shown.py": ("scan", "measure", "plan", "train", "experiment"),
    "errors.py": ("scan", "measure", "plan", "quantize", "train", "experiment"),
    "cli/app.py": ("scan", "measure", "plan", "quantize", "train", "experiment"),
}
OF_OTHERS = {
    "--config": "every verb's: it is read before any of them",
    "--merge": "llama-gguf-split's",
    "--no-deps": "pip's",
    "--only-binary": "pip's",
    "--disable-pip-version-check": "pip's",
}
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z]")


def _mentions() -> list[tuple[str, int, str, str]]:
    """(module, line, option, text) of every message that names an option: in what is raised or said."""
    found = []
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        if name.startswith("attention/"):
            continue
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if OPTION.search(text) else ():
            if isinstance(node, ast.Call) and not ast.unparse(node.func).endswith(("typer.Option", "option")):
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        found += [(name, part.lineno, option, part.value) for option in OPTION.findall(part.value)]
    return sorted(set(found))


def _options() -> dict[str, set[str]]:
    import typer.main

    from studfinder.cli.app import app

    commands = dict(typer.main.get_command(app).commands)
    for verb in [verb for verb, command in commands.items() if hasattr(command, "commands")]:
        commands |= {f"{verb} {name}": command for name, command in commands.pop(verb).commands.items()}
    return {
        verb: {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--debug", "--help"}
        for verb, command in commands.items()
    }


@pytest.mark.parametrize(("module", "line", "option", "text"), _mentions())
def test_advice_names_only_options_that_the_verb_has(module, line, option, text):
    if option in OF_OTHERS:
        return
    place = max((known for known in VERBS if module.startswith(known)), key=len, default=None)
    assert place is not None, f"{module}:{line} names {option}: which verbs can say so?"
    options = _options()
    said = [verb for verb in options if re.search(rf"\b{verb}\b.*{option}\b", text)]  # it says of which verb
    for verb in said or VERBS[place]:
        assert option in options[verb], f"{module}:{line} advises {option}, which `{verb}` lacks: {text!r}"
