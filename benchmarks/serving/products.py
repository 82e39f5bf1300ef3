"""What findings gain in other tools: files made by their own commands from recipes that ours wrote.

    python benchmarks/serving/products.py --findings RUN [llm-compressor ...]

Each tool quantises the built-in model plainly; with the matrices spared that a scan proves (`studfinder recipe write
RUN`); and, as controls, with as many matrices of the same kind in other layers spared, drawn at random.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import BUILD, HERE, environment
from in_llama_cpp import gguf, measured, quantized, unquantised
from kept import command, in_transformers, in_vllm, keep, made, original, record, say, studfinder

import studfinder as sf
from studfinder.quantizers import calibration_windows
from studfinder.records import Recipe, read_record, to_json
from studfinder.verbs.configs import RecipeConfig
from studfinder.verbs.recipe import write_recipe

MODEL = "smollm2"
CONTROLS = 5
"""How many draws of other matrices."""
SPARED_AS = {"llm-compressor": "16", "llama.cpp": "int8-g32"}
"""Of llama.cpp q8_0, as its own mixtures have it: 1 % more of the file."""
USUAL = {"RTN": "int4-g64-zero", "GPTQ": "int4-g64-zero", "Q4_0": "int4-g32", "Q4_K_M": "int4-g32-zero"}
CALIBRATION, LENGTH = 32, 512


@dataclass(frozen=True)
class Product:
    """One file.

    Attributes:
        row: how it is quantised, e.g. "Q4_0 with imatrix".
        spared: "plain", "found", or "other 1" and so on.
    """

    row: str
    spared: str

    @property
    def tool(self) -> str:
        """Whose it is."""
        return "llm-compressor" if self.kind in ("RTN", "GPTQ") else "llama.cpp"

    @property
    def kind(self) -> str:
        """The tool's name for how it quantises."""
        return self.row.removesuffix(" with imatrix")

    @property
    def imatrix(self) -> bool:
        """Whether it is told what its inputs are like."""
        return self.row.endswith(" with imatrix")

    @property
    def file(self) -> str:
        """A name for its files."""
        return f"{self.row} {self.spared}".replace(" ", "-").lower()


ROWS = ("RTN", "GPTQ", "Q4_0", "Q4_K_M", "Q4_0 with imatrix", "Q4_K_M with imatrix")


def products(rows: tuple[str, ...] = ROWS) -> Iterator[Product]:
    """All of them, the most telling first."""
    for spared in ("plain", "found", *(f"other {draw}" for draw in range(1, CONTROLS + 1))):
        yield from (Product(row, spared) for row in rows)


# --- recipes --------------------------------------------------------------------------------------------------------


def recipe(product: Product, findings: Path) -> Path | None:
    """The file of rules of a product, by our commands; None for llama.cpp's plain ones, which need none."""
    if product.tool == "llama.cpp" and product.spared == "plain":
        return None
    folder = BUILD / "recipes" / f"{product.tool}-{USUAL[product.kind]}-{product.spared}".replace(" ", "-")
    if not folder.exists():
        asked: dict[str, Any] = {}
        source = findings
        if product.spared.startswith("other"):
            found = recipe(Product(product.row, "found"), findings)
            assert found is not None
            source = folder.with_suffix(".json")
            source.write_text(to_json(elsewhere(read_record(Recipe, found.parent / "recipe.json"), product)), "utf-8")
        else:
            spare = "none" if product.spared == "plain" else "proven"
            asked = {"format": USUAL[product.kind], "spare": spare, "spare_as": SPARED_AS[product.tool]}
            asked["model"] = str(original(MODEL))
        with made(folder) as partial:
            write_recipe(source, RecipeConfig(tools=(product.tool,), out=partial, **asked))
    return next(path for path in folder.iterdir() if path.name != "recipe.json")


def elsewhere(found: Recipe, product: Product) -> Recipe:
    """The recipe with as many groups spared, of the same kind in layers drawn at random."""
    usual = next(group.stored_as for group in found.groups if not group.why)
    spared = [group for group in found.groups if group.why]
    draw = random.Random(int(product.spared.split()[1]))
    chosen: dict[str, str] = {}
    for group in spared:
        leaf = group.name.rpartition(".")[2]
        like = [one.name for one in found.groups if one.name.endswith(leaf) and not one.why and one.name not in chosen]
        chosen[draw.choice(like)] = group.stored_as
    groups = [
        dataclasses.replace(
            group,
            stored_as=chosen.get(group.name, usual if group.why else group.stored_as),
            why="drawn at random" if group.name in chosen else "",
        )
        for group in found.groups
    ]
    return dataclasses.replace(found, groups=tuple(groups), decided="matrices drawn at random: a control")


# --- their commands -------------------------------------------------------------------------------------------------


def calibration() -> Path:
    """Windows that GPTQ and the imatrix are made of."""
    path = BUILD / "calibration.json"
    if not path.exists():
        _, found = calibration_windows(sf.load(MODEL), count=CALIBRATION, length=LENGTH)
        path.write_text(json.dumps([list(ids) for ids in found]), "utf-8")
    return path


def by_llm_compressor(product: Product, findings: Path) -> Path:
    """A checkpoint by `oneshot`."""
    folder = BUILD / "products" / product.file
    if not folder.exists():
        file = recipe(product, findings)
        assert file is not None
        text = file.read_text("utf-8")
        if product.kind == "GPTQ":  # as the file's own head says
            text = text.replace("    QuantizationModifier:", "    GPTQModifier:")
        asked = BUILD / "recipes" / f"{product.file}.yaml"
        asked.write_text(text, "utf-8")
        windows = [calibration()] if product.kind == "GPTQ" else []
        with made(folder) as partial:
            python = environment("llm-compressor")
            command([python, HERE / "with_llm_compressor.py", original(MODEL), asked, partial, *windows])
    return folder


def by_llama_cpp(product: Product, findings: Path) -> Path:
    """A GGUF file by `llama-quantize`."""
    matrix = imatrix() if product.imatrix else None
    rules = recipe(product, findings)
    return quantized(unquantised(MODEL), product.file, product.kind, recipe=rules, imatrix=matrix)


def imatrix() -> Path:
    """What each matrix's inputs are like, by `studfinder recipe imatrix`."""
    path = gguf(f"{MODEL}-imatrix")
    if not path.exists():
        with made(path) as partial:
            studfinder(
                "recipe", "imatrix", original(MODEL), "--dtype", "float32", "--samples", CALIBRATION, "--out", partial
            )
    return path


def run(findings: Path, rows: tuple[str, ...]) -> None:
    """Make what is missing and measure it, each in what it was made for; of llm-compressor's also in vLLM."""
    checkpoints = []
    for product in products(rows):
        names = ("product", product.row, product.spared)
        if record(*names) is not None:
            continue
        say(f"{product.row}, {product.spared}")
        if product.tool == "llama.cpp":
            answer: dict[str, Any] = measured(by_llama_cpp(product, findings), MODEL)
            keep(answer, *names)
        else:
            folder = by_llm_compressor(product, findings)
            in_transformers([(MODEL, folder, names)])
            checkpoints.append((product, folder))
    in_vllm(
        [(MODEL, folder, ("vllm product", one.row, one.spared)) for one, folder in checkpoints if one.spared == "found"]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--findings", type=Path, required=True)
    parser.add_argument("rows", nargs="*", default=ROWS)
    given = parser.parse_args()
    run(given.findings, tuple(given.rows))
