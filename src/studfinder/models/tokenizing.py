"""A checkpoint's tokenizer, or why there is none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from studfinder.errors import StudfinderError, Unavailable, in_a_line
from studfinder.hub import hub_failure
from studfinder.models.inside import check_distinct, plain_name
from studfinder.models.pretrained import unsaid

_FILES = ("tokenizer*.json", "*.model", "*.tiktoken", "tekken.json", "vocab.*", "merges.txt")
_PACKAGES = {
    "sentencepiece": "sentencepiece",
    "google": "protobuf",
    "protobuf": "protobuf",
    "tiktoken": "tiktoken",
    "blobfile": "blobfile",
    "mistral_common": "mistral-common",
    "jieba": "jieba",
    "rjieba": "rjieba",
    "fugashi": "fugashi",
    "ipadic": "ipadic",
    "sacremoses": "sacremoses",
}
"""What tokenizers import, and the name to install it by."""


def tokenizer_at(where: str | Path, trust_remote_code: bool, revision: str | None = None) -> Any:
    """The tokenizer; None where there is none; or the StudfinderError to raise once it is needed, for a model can be
    fed token ids as well."""
    from transformers import AutoTokenizer

    try:
        with unsaid("tokenization_utils_tokenizers", "Could not extract SentencePiece"):
            found = AutoTokenizer.from_pretrained(
                where, trust_remote_code=trust_remote_code, revision=revision or "main"
            )
        found("a", verbose=False)  # settings of a wrong type are noticed when a text is read
    except Exception as error:
        folder = Path(where)
        if not folder.is_dir():
            return hub_failure(str(where), error, revision) or _missing(str(where), None, error)
        if not any(path.is_file() for pattern in _FILES for path in folder.glob(pattern)):
            return None
        return _missing(str(where), folder, error) or StudfinderError(
            f"the tokenizer of {where} cannot be loaded ({in_a_line(error)})",
            do="Download or save its tokenizer again",
        )
    if (differs := _misread(found, str(where))) is not None:
        return differs
    if isinstance(found.chat_template, dict):  # saving it makes a file of each
        check_distinct(
            [plain_name(f"{name}.jinja", f"the tokenizer of {where}") for name in found.chat_template], where
        )
    return found


def _misread(found: Any, where: str) -> StudfinderError | None:
    """What to raise where only SentencePiece's own file is there, and the tokenizer that transformers made of it, of a
    class that it chose, cuts texts otherwise than SentencePiece: it loses spaces, or the mark before the first word."""
    own_file = Path(str(getattr(found, "vocab_file", None) or "."))  # of a hub repository, in its cache
    file = next(iter(sorted(Path(where).glob("*.model"))), own_file)
    if file.suffix != ".model" or (file.parent / "tokenizer.json").is_file() or file.read_bytes()[:1] != b"\n":
        return None
    from sentencepiece import SentencePieceProcessor

    try:
        own = SentencePieceProcessor(model_file=str(file))
    except RuntimeError as error:
        return StudfinderError(
            f"the tokenizer of {where} cannot be loaded ({in_a_line(error)})", do="Download or save its tokenizer again"
        )
    words = [word for i in range(len(own)) if (word := own.id_to_piece(i).strip("▁")).isalnum() and len(word) > 1]
    for i in range(0, len(words), len(words) // 8 + 1):
        text = " ".join(words[i : i + 3])
        meant = own.encode(text, out_type=str)
        read = found.convert_ids_to_tokens(found.encode(text, add_special_tokens=False))
        if read != meant:
            return StudfinderError(
                f"the tokenizer of {where}, which transformers makes of {file.name} as a {type(found).__name__}, reads "
                f"{text!r} as {read}, and SentencePiece as {meant}",
                do="Name the right tokenizer_class in tokenizer_config.json, or put its tokenizer.json there",
            )
    return None


def _missing(name: str, folder: Path | None, error: BaseException) -> Unavailable | None:
    """The packages to install, if that is what it takes."""
    wanted = list(dict.fromkeys(_wanted(folder, error)))
    if not wanted:
        return None
    return Unavailable(
        f"the tokenizer of {name} needs {' and '.join(wanted)}, which {'is' if len(wanted) == 1 else 'are'} not here",
        do=f"pip install {' '.join(wanted)}",
    )


def _wanted(folder: Path | None, error: BaseException) -> Iterator[str]:
    # transformers tries one reader after the other and speaks of the last; the file says which one it takes.
    for path in sorted(folder.glob("*.model")) if folder is not None else ():
        with path.open("rb") as file:
            packages = ("sentencepiece", "protobuf") if file.read(1) == b"\n" else ("tiktoken",)
        if gone := [package for package in packages if not _here(package)]:
            yield from gone
            return
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, ModuleNotFoundError) and one.name and (package := _PACKAGES.get(one.name.split(".")[0])):
            yield package
        for word in re.findall(r"requires the (\w+) library|pip install ([\w-]+)|`(\w+)` is required", str(one)):
            package = _PACKAGES.get("".join(word).lower().replace("-", "_"))
            if package is not None and not _here(package):
                yield package
        one = one.__cause__ or one.__context__


def _here(package: str) -> bool:
    module = next(module for module, name in _PACKAGES.items() if name == package)
    try:
        return find_spec("google.protobuf" if module == "google" else module) is not None
    except (ImportError, ValueError):  # blocked, or without its parent
        return False
