"""Errors are told apart: what may be passed over, and what ends the run."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest

import studfinder
from studfinder.errors import NotApplicable, NoWorkers, StudfinderError, Unavailable, WriteFailed

HOME = Path(studfinder.__file__).parent
PLAIN = {
    "quantizers/folds.py": "a look at the model's parts",
    "measures/tasks/cache.py": "hashing, which writes nothing",
    "models/pretrained.py": "raises it again",
    "verbs/quantize_write.py": "raises the last one again",
    "models/checkpoint.py": "a look at the headers of files",
    "models/gguf.py": "raises it again",
    "experiments/massive_values_quantization.py": "is measured, and refused, again",
    "experiments/quantize_kv_cache.py": "a look at the findings",
    "experiments/massive_values_keep.py": "a look at the findings",
    "experiments/massive_activations_heads.py": "a look at activations",
    "experiments/massive_onset.py": "a look at activations",
    "experiments/outlier_free_finetune.py": "puts variants into a model",
    "studies/swept.py": "asks whether an edit changed anything",
    "verbs/diagnose_mend.py": "a recipe in memory; whether the checkpoint's own formats have a name",
    "verbs/diagnose_stored.py": "a look at the checkpoint's own rules",
    "cli/app.py": "prints it",
    "recipes/auto_round.py": "names a format that is none of ours in the tool's words",
    "recipes/gptqmodel.py": "names a format that is none of ours in the tool's words",
    "recipes/llm_compressor.py": "names a format that is none of ours in the tool's words",
    "recipes/mlx.py": "names a format that is none of ours in the tool's words",
    "recipes/model_optimizer.py": "names a format that is none of ours in the tool's words",
    "recipes/torchao.py": "names a format that is none of ours in the tool's words",
}
"""Where passing over a StudfinderError can hide no failed write."""


@pytest.mark.parametrize("kind", [StudfinderError, NotApplicable, Unavailable, WriteFailed, NoWorkers])
def test_every_kind_survives_between_processes(kind) -> None:
    error = kind("a thing", expected="another", do="Mend it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == "a thing; expected another. Mend it."


def handlers(path: Path) -> list[tuple[int, bool]]:
    """Lines where StudfinderError is caught and not raised again, and whether failed writes were let through before."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Try):
            continue
        let_through = False
        for handler in node.handlers:
            names = {name.id for name in ast.walk(handler.type or ast.Tuple([])) if isinstance(name, ast.Name)}
            if "WriteFailed" in names:
                let_through = isinstance(handler.body[-1], ast.Raise)
            if "StudfinderError" in names and not isinstance(handler.body[-1], ast.Raise):
                found.append((handler.lineno, let_through))
    return found


def test_a_failed_write_is_nowhere_taken_for_a_refusal() -> None:
    hidden = {
        f"{path.relative_to(HOME)}:{line}"
        for path in HOME.rglob("*.py")
        for line, let_through in handlers(path)
        if not let_through and str(path.relative_to(HOME)) not in PLAIN
    }
    assert not hidden
