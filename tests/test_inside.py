"""Names from outside are never paths: nothing is read out of the model's folder, nothing is written out of --out."""

from __future__ import annotations

import json
import ntpath
import os
import pickle
import posixpath
import random
import shutil
import string
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints import checkpoint
from studfinder.cli.app import run_cli
from studfinder.errors import StudfinderError
from studfinder.models import load
from studfinder.models.adapters import adapter_at, without_adapter
from studfinder.models.beside import put_beside
from studfinder.models.files import check_folder, held_in, weights_of
from studfinder.models.inside import check_distinct, inside, leads_in, linked, outward, plain_name
from studfinder.models.lm import Source
from studfinder.quantizers.source import stored_files
from studfinder.runs import check_place

OUTWARD = (
    "../secret.safetensors",
    "../../secret.safetensors",
    "a/../../secret.safetensors",
    "./../secret.safetensors",
    "..\\secret.safetensors",
    "sub/model.safetensors",
    "sub\\model.safetensors",
    "C:model.safetensors",
    "C:\\model.safetensors",
    "\\\\host\\share\\model.safetensors",
    "//host/model.safetensors",
    "/etc/passwd.safetensors",
    "/dev/stdin.safetensors",
    "~/x/.safetensors",
    "model.safetensors\0.safetensors",
    "model\n.safetensors",
    "\x1b[2J.safetensors",
    "\x85.safetensors",
    "\udc80.safetensors",
    "x" * 244 + ".safetensors",
    "é" * 122 + ".safetensors",
    "x" * 100_000 + ".safetensors",
    "/",
    "/.safetensors",
    "./model.safetensors",
    "model.safetensors/",
    "model.safetensors/.",
    "../.bashrc",
    "../../.bashrc",
    "",
    ".",
    "..",
)
OURS = (
    "config.json",
    "run.json",
    "steps.jsonl",
    "studfinder.json",
    "README.md",
    "tokenizer.json",
    "model.py",
    "LICENSE",
)
NO_NAMES = (None, 3, 1.5, True, [], ["model.safetensors"], {"a": 1})


def pieces() -> st.SearchStrategy[str]:
    """Names that are made of what paths are made of."""
    parts = (
        "..",
        ".",
        "/",
        "\\",
        ":",
        "\0",
        "~",
        "a",
        "B",
        " ",
        "\n",
        "é",
        "C",
        ".safetensors",
        "x" * 60,
        "\udcff",
        "\x7f",
    )
    return st.lists(st.sampled_from(parts), max_size=8).map("".join)


@given(st.one_of(pieces(), st.text(max_size=40)))
def test_a_name_that_is_taken_is_one_file_of_a_folder_on_every_system(name):
    try:
        plain_name(name, "an index")
    except StudfinderError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert said.isprintable()
        assert len(said) < 400
        return
    for system, root in ((posixpath, "/models/x"), (ntpath, "C:\\models\\x")):
        path = system.normpath(system.join(root, name))
        assert system.dirname(path) == root
        assert path != root
    assert 0 < len(name.encode()) <= 255
    assert not any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in name)


@given(
    st.text(string.ascii_letters + string.digits + "-_. ", min_size=1, max_size=80).filter(lambda name: name.strip("."))
)
def test_usual_names_are_taken(name):
    assert plain_name(name, "an index") == name


@pytest.mark.parametrize("name", [*OUTWARD, *NO_NAMES], ids=lambda name: ascii(name)[:30])
def test_every_outward_name_is_refused(name):
    with pytest.raises(StudfinderError, match=r"the plain name of a file"):
        plain_name(name, "an index")


@given(st.lists(st.sampled_from(("Model", "model", "MODEL", "é", "e\u0301", "É", "ß", "ss", "x", "y")), max_size=4))
def test_names_that_differ_in_case_only_are_one(names):
    folded = {name.casefold().replace("e\u0301", "é") for name in set(names)}
    if len(folded) == len(set(names)):
        check_distinct(names, "an index")
    else:
        with pytest.raises(StudfinderError, match="hold for one"):
            check_distinct(names, "an index")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("good") / "llama", dtype=torch.bfloat16)


@pytest.fixture
def home(good, tmp_path, monkeypatch, cache):
    """A folder that holds a model in shards, and beside it what nobody may read or write."""
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(good, tmp_path / "home" / "model")
    weights = load_file(model / "model.safetensors")
    save_file(weights, tmp_path / "home" / "secret.safetensors", metadata={"format": "pt"})
    (tmp_path / "home" / ".bashrc").write_text("mine")
    (tmp_path / "secret.txt").write_text("SECRET")
    return model


def index(model: Path, where: object) -> None:
    """The model in one shard, of which the index says that it is elsewhere."""
    if (model / "model.safetensors").exists():
        (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    names = load_file(model / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, where)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def everything(folder: Path, but: Path) -> dict[str, bytes]:
    """Every file below a folder that is not below another one."""
    return {
        str(path): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_relative_to(but) and "cache" not in path.parts
    }


@pytest.mark.parametrize("name", [*OUTWARD, *OURS, *NO_NAMES], ids=lambda name: ascii(name)[:30])
def test_no_shard_is_read_elsewhere_or_under_one_of_our_names(home, name):
    index(home, name)
    for read in (weights_of, held_in, stored_files, lambda folder: check_folder(folder, allow_pickle=True)):
        with pytest.raises(StudfinderError) as caught:
            read(home)
        assert str(home) in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "../../.bashrc", "config.json", "run.json", "..\\x.safetensors"]
)
@pytest.mark.parametrize("verb", ["scan", "quantize"])
def test_a_verb_says_one_line_and_touches_nothing(home, mistake, tmp_path, verb, name):
    index(home, name)
    before = everything(tmp_path, home)
    out = tmp_path / "out" / "deep" / "er"
    line = mistake(verb, home, "--out", out)
    assert "model.safetensors.index.json" in line
    assert everything(tmp_path, home) == before


def test_shards_that_differ_in_case_only_are_refused(home):
    weights = load_file(home / "model.safetensors")
    names = sorted(weights)
    (home / "model.safetensors").unlink()
    where = {name: "A.safetensors" if number % 2 else "a.safetensors" for number, name in enumerate(names)}
    for file in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == file}, home / file)
    (home / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    with pytest.raises(StudfinderError, match="hold for one"):
        check_folder(home, allow_pickle=False)


@pytest.mark.parametrize("name", [*OUTWARD, *NO_NAMES[1:]], ids=lambda name: ascii(name)[:30])
def test_a_config_names_no_weights_elsewhere(home, name):
    config = json.loads((home / "config.json").read_text())
    (home / "config.json").write_text(json.dumps({**config, "transformers_weights": name}))
    with pytest.raises(StudfinderError, match=r"config\.json (names a file|is not valid JSON)"):
        check_folder(home, allow_pickle=False)


@pytest.mark.parametrize("name", ["../tokenizer.4.0.json", "/x/tokenizer.4.0.json", *NO_NAMES], ids=ascii)
def test_a_tokenizer_names_no_file_elsewhere(home, name):
    config = json.loads((home / "tokenizer_config.json").read_text())
    (home / "tokenizer_config.json").write_text(json.dumps({**config, "fast_tokenizer_files": [name]}))
    with pytest.raises(StudfinderError, match=r"tokenizer_config\.json names a file"):
        check_folder(home, allow_pickle=False)


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "a\\b", "C:x", "a\nb", "x" * 252], ids=lambda n: n[:9])
def test_a_chat_template_is_no_path_before_any_work_is_done(home, name):
    config = json.loads((home / "tokenizer_config.json").read_text())
    templates = [{"name": "default", "template": "x"}, {"name": name, "template": "SECRET"}]
    (home / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": templates}))
    (home / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(StudfinderError, match=r"the tokenizer of .* names a file"):
        load(home)


def links(outside: Path) -> list[str]:
    """Ways to a file outside."""
    return [
        str(outside),
        f"../../{outside.name}",
        f"sub/../../../{outside.name}",
        "hop",
        "missing/../../nowhere",
        "self",
    ]


LED_OUT = r"leads out|has no config|is a link to nothing|is no folder or file"
FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "vocab.txt",
    "LICENSE",
    "chat_template.jinja",
    "additional_chat_templates/a.jinja",
    "adapter_config.json",
)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("way", range(6))
def test_no_link_out_of_the_folder_is_followed(home, tmp_path, file, way):
    outside = tmp_path / "secret.txt"
    path = home / file
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    (home / "sub").mkdir()
    (home / "hop").symlink_to(outside)
    target = links(outside)[way]
    path.symlink_to(path.name if target == "self" else outside if path.parent != home else target)
    with pytest.raises(StudfinderError, match=LED_OUT):
        check_folder(home, allow_pickle=False)
    if file not in ("config.json", "model.safetensors", "adapter_config.json"):
        (home / "hop").unlink()
        (tmp_path / "to").mkdir()
        if path.is_file():
            with pytest.raises(StudfinderError, match="leads out of its folder"):
                put_beside(Source("x", "a local folder", home), tmp_path / "to")
        assert not any(
            "SECRET" in found.read_text("latin-1") for found in (tmp_path / "to").rglob("*") if found.is_file()
        )


def test_links_within_the_folder_and_folders_that_are_links_are_followed(home, tmp_path):
    (home / "store").mkdir()
    (home / "model.safetensors").rename(home / "store" / "blob")
    (home / "model.safetensors").symlink_to("store/blob")
    (home / "runs").symlink_to(tmp_path)  # a folder in it is not read
    (tmp_path / "alias").symlink_to(home)
    for folder in (home, tmp_path / "alias"):
        check_folder(folder, allow_pickle=False)


def cached(model: Path, root: Path, *, shared: bool) -> Path:
    """The model as the hub's client keeps it; `shared`: with the blobs of all repositories in one place."""
    repository = root / "models--some--model"
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(model.iterdir())):
        key = f"{number:064x}"
        blob = root / "blobs" / key[:2] / key if shared else repository / "blobs" / key
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        if shared:
            (repository / "blobs").mkdir(exist_ok=True)
            (repository / "blobs" / key).symlink_to(os.path.relpath(blob, repository / "blobs"))
        (snapshot / path.name).symlink_to(f"../../blobs/{key}")
    return snapshot


@pytest.mark.parametrize("shared", [False, True])
def test_the_hubs_cache_is_read_and_nothing_else_through_it(home, tmp_path, shared):
    snapshot = cached(home, tmp_path / "hub", shared=shared)
    check_folder(snapshot, allow_pickle=False)
    assert put_beside(Source("some/model", "a local folder", snapshot), tmp_path / "to")
    for target in ("../../../../secret.txt", "../../refs/main", "../../../models--other--model/blobs/x", "../../blobs"):
        (snapshot / "LICENSE").symlink_to(target)
        if target != "../../blobs":
            with pytest.raises(StudfinderError, match=LED_OUT):
                check_folder(snapshot, allow_pickle=False)
        (snapshot / "LICENSE").unlink()
    blob = (snapshot / "config.json").parent / os.readlink(snapshot / "config.json")
    blob.unlink()
    blob.symlink_to(tmp_path / "secret.txt")  # a blob that leads on
    with pytest.raises(StudfinderError):
        check_folder(snapshot, allow_pickle=False)


@pytest.mark.parametrize("name", ["snapshots", "Snapshots", "models--x", "blobs"])
def test_what_only_looks_like_the_hubs_cache_is_no_reason(home, tmp_path, name):
    folder = tmp_path / "download" / name / "c"
    shutil.copytree(home, folder)
    (tmp_path / "download" / "blobs").mkdir(exist_ok=True)
    (tmp_path / "download" / "blobs" / "x").write_text("SECRET")
    (folder / "LICENSE").symlink_to("../../blobs/x")
    with pytest.raises(StudfinderError, match=LED_OUT):
        check_folder(folder, allow_pickle=False)


@pytest.mark.parametrize("name", [name for name in OUTWARD if name], ids=lambda name: ascii(name)[:30])
def test_nothing_is_written_out_of_the_folder(tmp_path, name):
    (tmp_path / "out").mkdir()
    before = sorted(tmp_path.rglob("*"))
    try:
        path = outward(tmp_path / "out", name, "a folder")
    except StudfinderError:
        assert sorted(tmp_path.rglob("*")) == before
    else:
        assert path.resolve().is_relative_to((tmp_path / "out").resolve())
        assert "/" in name, "only a folder within it is no plain name"


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "else").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "else")
    (tmp_path / "out" / "file").symlink_to(tmp_path / "else" / "file")
    for name in ("sub/x", "file"):
        with pytest.raises(StudfinderError, match="is a link"):
            outward(tmp_path / "out", name, "a folder")


def test_files_of_a_strangers_folder_do_not_take_our_places(home, tmp_path):
    for name in ("run.json", "steps.jsonl", "studfinder.json", "studfinder-files.json", "README.md", "Config.json"):
        (home / name).write_text('{"theirs": 1}')
    (home / "Run.JSON").write_text("theirs")
    assert run_cli(["quantize", str(home), "--out", str(tmp_path / "out")]) == 0
    assert not any("theirs" in path.read_text("latin-1") for path in (tmp_path / "out").iterdir())


def test_two_files_that_differ_in_case_only_are_not_copied(home, tmp_path):
    (home / "Tokenizer.json").write_text("{}")
    with pytest.raises(StudfinderError, match="hold for one"):
        put_beside(Source("x", "a local folder", home), tmp_path)


def test_a_shard_with_the_longest_name_is_quantised(home, tmp_path):
    name = "é" * 121 + "x.safetensors"
    assert len(name.encode()) == 255
    (home / "model.safetensors").rename(home / "model-00001-of-00001.safetensors")
    (home / "model-00001-of-00001.safetensors").rename(home / name)
    weights = dict.fromkeys(load_file(home / name), name)
    (home / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": weights})
    )
    assert run_cli(["quantize", str(home), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / name).is_file()


def test_links_that_were_made_here_are_followed_and_no_others(home, tmp_path):
    (home / "adapter_config.json").write_text("{}")
    with without_adapter(home) as made:
        check_folder(made, allow_pickle=False)
        assert not (made / "adapter_config.json").exists()
        (made / "LICENSE").symlink_to(tmp_path / "secret.txt")
        assert not leads_in(made, made / "LICENSE")
    (home / "LICENSE").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(StudfinderError, match="leads out"), linked(home, ["LICENSE"]):
        pass
    with pytest.raises(StudfinderError, match=LED_OUT):
        adapter_at(Source("x", "a local folder", home))


def test_a_manifest_removes_nothing_through_a_link(tmp_path):
    """A stranger's folder says that it is a run whose files are elsewhere."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub").symlink_to(tmp_path / "mine")
    for name in ("sub/thesis.txt", "../mine/thesis.txt", str(tmp_path / "mine" / "thesis.txt"), "a\0b"):
        manifest = {
            "format": "studfinder.run",
            "version": 1,
            "state": "done",
            "files": [name],
            "verb": "scan",
            "key": "x",
        }
        (out / "run.json").write_text(json.dumps(manifest))
        with pytest.raises(StudfinderError, match="not a studfinder run"):
            check_place(out, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


# Pickles.


class Runs:
    """Code that a pickle runs as it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


SAFE = ("model.safetensors",)
LAYOUTS = (
    # beside the decoys: the index's name, where it says that the weights are, what else holds pickles
    ("pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"),
    ("model.safetensors.index.json", "pytorch_model-00001-of-00001.bin"),
    ("model.safetensors.index.json", "model.bin"),
    ("model.safetensors.index.json", "model.pt"),
    ("model.safetensors.index.json", "model.safetensors.pth"),
    (None, "pytorch_model.bin"),
    ("config.json", "adapter_model.bin"),
)
DECOYS = ("decoy.safetensors", "consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors", "")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout)))
@pytest.mark.parametrize("decoy", DECOYS)
@pytest.mark.parametrize("hostile", [False, True])
def test_what_is_read_decides_whether_pickles_are(home, tmp_path, mistake, layout, decoy, hostile):
    place, name = layout
    weights = load_file(home / "model.safetensors")
    if decoy:
        (home / "model.safetensors").rename(home / decoy)
    else:
        (home / "model.safetensors").unlink()
    mark = tmp_path / "it-ran"
    (home / name).write_bytes(pickle.dumps(Runs(mark))) if hostile else torch.save(weights, home / name)
    if place == "config.json":
        config = json.loads((home / place).read_text())
        (home / place).write_text(json.dumps({**config, "transformers_weights": name}))
    elif place is not None:
        where = dict.fromkeys(weights, name)
        (home / place).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    with pytest.raises(StudfinderError, match=r"pickle weights .* which can run code") as caught:
        check_folder(home, allow_pickle=False)
    assert name in str(caught.value)
    if hostile:
        with pytest.raises(StudfinderError, match="without running code"):
            check_folder(home, allow_pickle=True)
    else:
        check_folder(home, allow_pickle=True)
        assert set(held_in(home)) == set(weights)
    with pytest.raises(StudfinderError, match="is a pickle"):
        stored_files(home)
    assert not mark.exists()


@pytest.mark.parametrize("seed", range(6))
def test_safetensors_are_read_whatever_pickles_lie_beside(home, tmp_path, seed):
    draw = random.Random(seed)
    names = (
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "training_args.bin",
        "optimizer.pt",
        "model.pth",
        "x.pkl",
    )
    for name in draw.sample(names, 3):
        (home / name).write_bytes(pickle.dumps(Runs(tmp_path / "it-ran")))
    check_folder(home, allow_pickle=False)
    assert weights_of(home).files == SAFE
    assert run_cli(["quantize", str(home), "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "it-ran").exists()
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_a_pickled_adapter_does_not_run(home, tmp_path):
    from studfinder.models.adapters import _held

    (home / "adapter_model.bin").write_bytes(pickle.dumps(Runs(tmp_path / "it-ran")))
    for allowed, words in ((False, "which can run code"), (True, "without running code")):
        with pytest.raises(StudfinderError, match=words):
            _held(home, allowed)
    assert not (tmp_path / "it-ran").exists()


def test_a_name_is_read_inside_only(home):
    assert inside(home, "config.json") == home / "config.json"
    for name in (name for name in OUTWARD if not name.startswith(("sub/", "~"))):
        with pytest.raises(StudfinderError):
            inside(home, name)


# Many more, drawn.

_OPENED: list[str] = []
_LISTENS = [False]


def _hear(event: str, arguments: tuple) -> None:
    if _LISTENS[0] and event == "open" and isinstance(arguments[0], str | bytes):
        _OPENED.append(os.fsdecode(arguments[0]))


sys.addaudithook(_hear)


@contextmanager
def opened() -> Iterator[list[str]]:
    """The names of the files that are opened meanwhile, as they are given to the system."""
    _OPENED.clear()
    _LISTENS[0] = True
    try:
        yield _OPENED
    finally:
        _LISTENS[0] = False


def drawn_name(draw: random.Random) -> str:
    """A name that is made of what paths are made of, at times with a usual ending."""
    parts = (
        "..",
        ".",
        "/",
        "\\",
        ":",
        "\0",
        "~",
        "a",
        "B",
        " ",
        "\n",
        "é",
        "C",
        "x" * 60,
        "\x7f",
        "\u202e",
        "home",
        "etc",
    )
    name = "".join(draw.choice(parts) for _ in range(draw.randrange(7)))
    return name + draw.choice((".safetensors", ".safetensors", ".bin", ".json", "", "/model.safetensors"))


def names_in_an_index(model: Path, count: int, seed: int) -> int:
    """How many drawn names of shards were refused for what they are; the rest is only not there."""
    draw, refused = random.Random(seed), 0
    index(model, "x.safetensors")
    for _ in range(count):
        where = {"a": drawn_name(draw), "b": drawn_name(draw)}
        (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        with opened() as files, pytest.raises(StudfinderError) as caught:
            held_in(model)
        refused += "names a file" in str(caught.value) or "names weights" in str(caught.value)
        outside = [file for file in files if not os.path.abspath(file).startswith(f"{model}/")]
        assert outside == [], where
    return refused


def drawn_links(folder: Path, count: int, seed: int) -> tuple[int, int]:
    """Files and links to each other, in and out of a folder; how many lead in and out, as the system itself says."""
    draw, found = random.Random(seed), [0, 0]
    for number in range(count):
        root = folder / str(number)
        model = root / "model"
        (model / "sub").mkdir(parents=True)
        names = ["a", "b", "sub/c", "sub/d", "sub"]
        for place in ("model/file", "model/sub/file", "secret", "model.safetensors"):
            (root / place).write_text(place)
        targets = [
            "file",
            "sub/file",
            "../secret",
            "../model",
            "..",
            "../model/file",
            "../model.safetensors",
            "a",
            "b",
            "c",
        ]
        targets += [
            "sub/c",
            "sub/../file",
            "sub/../../secret",
            str(root / "secret"),
            str(model / "file"),
            "nowhere",
            ".",
        ]
        made = draw.sample(names[:4], draw.randrange(1, 4))
        for name in made:
            (model / name).symlink_to(draw.choice(targets))
        for name in made:
            target = os.path.realpath(model / name)
            real = os.path.realpath(model)
            within = target == real or target.startswith(f"{real}{os.sep}")
            try:
                (model / name).stat()
            except FileNotFoundError:
                pass  # it may still lead out
            except OSError:  # a circle
                assert not leads_in(model, model / name)
                continue
            assert leads_in(model, model / name) is within
            found[not within] += 1
        shutil.rmtree(root)
    return found[0], found[1]


def test_drawn_names_open_nothing_outside(home):
    assert names_in_an_index(home, 400, 1) > 300


@pytest.mark.deep
def test_many_drawn_names_open_nothing_outside(home):
    assert names_in_an_index(home, 20_000, 2) > 15_000


def test_drawn_links_lead_where_the_system_says(tmp_path):
    within, without = drawn_links(tmp_path, 200, 1)
    assert min(within, without) > 50


@pytest.mark.deep
def test_many_drawn_links_lead_where_the_system_says(tmp_path):
    within, without = drawn_links(tmp_path, 5_000, 2)
    assert min(within, without) > 1_000
