"""A whole scan of every architecture, from prompts to the page: nothing in it knows one."""

from __future__ import annotations

import random

import pytest

import studfinder as sf
from architected import TYPES, built
from tiny import tokenizer
from tried import NO_TOKENS

pytestmark = pytest.mark.usefixtures("true_figures")
FEW = ("gemma4", "deepseek_v4", "gemma3n_text", "mamba2", "zamba2", "dbrx", "gptj", "jetmoe", "qwen4_exp")


def scans(kind: str, folder) -> None:
    draws = random.Random(kind)
    file = folder / "prompts.txt"
    file.write_text("\n\n".join(" ".join(f"w{draws.randrange(3, 250)}" for _ in range(20)) for _ in range(3)))
    lm = sf.load(built(kind), tokenizer(250))
    findings = sf.scan(lm, prompts=file, prove=False, out=folder / "run")
    assert findings.model.layers == len(lm.anatomy.layers)
    assert (folder / "run" / "report.html").stat().st_size > 10_000
    assert sf.read(folder / "run") == findings


@pytest.mark.parametrize("kind", FEW)
def test_a_scan_from_prompts_to_the_page(kind, tmp_path):
    scans(kind, tmp_path)


@pytest.mark.deep
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in NO_TOKENS])
def test_a_scan_of_every_type(kind, tmp_path):
    scans(kind, tmp_path)
