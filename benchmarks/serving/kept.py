"""What was measured: one record a cell, kept under build/serving/records, so that a run goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from environments import BUILD, HERE, environment

import studfinder as sf
from studfinder.measures.perplexity import windows_of
from studfinder.models.builtin import BUILTINS, ensure

WINDOWS, LENGTH = 8, 512
TEXT = "wikitext2"


def record_path(*names: str) -> Path:
    """Where a cell's record is."""
    path = BUILD / "records" / ("--".join(names).replace("/", "_") + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def record(*names: str) -> dict[str, Any] | None:
    """A cell's record, if it was measured."""
    path = record_path(*names)
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def keep(value: Mapping[str, Any], *names: str) -> None:
    """Write a cell's record."""
    path = record_path(*names)
    path.with_suffix(".partial").write_text(json.dumps(value, indent=1), "utf-8")
    path.with_suffix(".partial").rename(path)


def say(text: str) -> None:
    """A line of progress."""
    print(text, file=sys.stderr, flush=True)


def command(words: Iterable[Any], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command quietly. Raises CalledProcessError with what it said, if it fails."""
    line = [str(word) for word in words]
    done = subprocess.run(line, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1500:]
        raise RuntimeError(f"{' '.join(line[:6])} ... ended with {done.returncode}: {said}")
    return done


def studfinder(*words: Any) -> str:
    """Run a command of studfinder's; what it printed."""
    return command([sys.executable, "-m", "studfinder", *words]).stdout


@contextmanager
def made(folder: Path) -> Iterator[Path]:
    """A folder under another name until it is whole."""
    partial = folder.with_name(folder.name + ".partial")
    command(["rm", "-rf", partial])
    partial.parent.mkdir(parents=True, exist_ok=True)
    yield partial
    partial.rename(folder)


@cache
def original(model: str) -> Path:
    """The folder of a model that exports are made of: a built-in one, or the small one."""
    return small() if model == "small" else ensure(BUILTINS[model])


@cache
def windows(model: str) -> list[list[int]]:
    """The text as windows of token ids."""
    path = BUILD / f"windows-{model}.json"
    if not path.exists():
        name = "smollm2" if model == "small" else model
        found = windows_of(sf.load(name), TEXT, window=LENGTH, limit=WINDOWS)[1]
        small = [[id % SMALL_WORDS for id in ids[:128]] for ids in found[:4]]
        path.write_text(json.dumps(small if model == "small" else found), "utf-8")
    return json.loads(path.read_text("utf-8"))


SMALL_WORDS = 512


def small() -> Path:
    """A random Llama of two layers whose sizes are all divided by 128, which those of smollm2 are not."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = BUILD / "small"
    if not folder.exists():
        config = LlamaConfig(
            hidden_size=256,
            intermediate_size=512,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=SMALL_WORDS,
            max_position_embeddings=1024,
            tie_word_embeddings=False,
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for name, weight in model.named_parameters():
            if name.endswith("proj.weight"):
                weight.data.mul_(4)  # so that the blocks say something, and rounding them shows
        with made(folder) as partial:
            model.to(torch.bfloat16).save_pretrained(partial)
            tokenizer = sf.load("smollm2").tokenizer
            tokenizer.save_pretrained(partial)
    return folder


def ask(child: str, python: Path | str, checkpoints: list[dict[str, Any]]) -> None:
    """Have a child answer for each checkpoint. Where it ends without one, that is the answer of the first that
    has none, and the rest is asked for again."""
    left = [one for one in checkpoints if not Path(one["out"]).exists()]
    while left:
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            json.dump({"checkpoints": left}, file)
            file.flush()
            done = subprocess.run([python, HERE / child, file.name], capture_output=True, text=True, check=False)
        if done.returncode < 0:
            raise SystemExit(f"{child} was ended by signal {-done.returncode}; the same command goes on from here")
        still = [one for one in left if not Path(one["out"]).exists()]
        if len(still) == len(left) or (still and done.returncode):
            ended = {"error": f"ended with {done.returncode}: {done.stderr.strip()[-1500:]}"}
            Path(still[0]["out"]).write_text(json.dumps(ended), "utf-8")
            still = still[1:]
        left = still


def in_transformers(cells: list[tuple[str, Path, tuple[str, ...]]]) -> None:
    """Ask plain transformers about (model, checkpoint, names of the record)."""
    order = sorted(cells)  # one original after the other
    ask("in_transformers.py", sys.executable, [{**_cell(*one), "original": str(original(one[0]))} for one in order])


def in_vllm(cells: list[tuple[str, Path, tuple[str, ...]]], dtype: str = "float32") -> None:
    """Ask vLLM about the same."""
    ask("in_vllm.py", environment("vllm"), [{**_cell(*one), "dtype": dtype} for one in cells])


def _cell(model: str, folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    return {"folder": str(folder), "windows": windows(model), "out": str(record_path(*names))}
