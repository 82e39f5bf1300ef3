"""The patch journal is the only one that hooks, writes into or sets attributes of a model, by the syntax trees."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import studfinder

OWNERS = {
    "patches/journal.py": "the patch journal itself",
    "patches/interrupts.py": "holds signals back",
}
REASONS = {
    "training/interrupt.py": {"signal": "takes Ctrl-C as a wish to stop after the step"},
    "training/fit.py": {"del forward": "takes accelerate's autocast off the trained model for good"},
    "experiments/held_weights.py": {
        "hook": "a gradient hook of a training; the model is trained, not lent",
        "write": "holds weights where they are while an optimiser moves the others",
    },
    "records/public.py": {"setattr": "wraps classes of ours while their module is imported"},
    "cli/process.py": {"signal": "Ctrl-C while modules are imported", "setattr": "streams of the terminal"},
    "models/adapters.py": {"write": "a merged model takes gradients again, as a loaded one does"},
    "quantizers/plain.py": {"setattr": "builds a model in a process of its own"},
    "models/twin.py": {"setattr": "the twin's own copy of a config, before it is built"},
    "models/carried.py": {
        "forward": "a change for good, asked for by the user, before anything else is done with the model",
        "del forward": "the same taken back where the model's code does not let it",
    },
    "models/gguf.py": {"setattr": "builds a model"},
    "quantizers/bench.py": {"write": "into a tensor of its own, which the journal has put in a parameter's place"},
    "attention/install.py": {"write": "convert: a change for good, asked for by the user"},
    "attention/wiring.py": {"hook": "convert: a change for good, asked for by the user"},
    "attention/kv_shift/baichuan.py": {"write": "convert: a change for good, asked for by the user"},
    "attention/differential/layer.py": {"write": "fills a layer of its own that is being built"},
    "attention/gated/layer.py": {"write": "fills a layer of its own that is being built"},
    "training/models.py": {"write": "scales a model of its own before it is trained"},
    "experiments/kv_shift_ablations.py": {"write": "sets up a model of its own before it is trained"},
}


def changes(path: Path) -> set[str]:
    """In which ways a file changes what may be a live model, by its syntax tree."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if re.fullmatch(r"register_(module_)?(\w+_)?hook", name):
                found.add("hook")
            if isinstance(node.func, ast.Attribute) and name == "remove" and not node.args:
                found.add("remove")
            if name in ("setattr", "delattr"):
                found.add("setattr")
            if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in ("signal.signal", "signal.sigaction"):
                found.add("signal")
            if name.endswith("_") and not name.startswith("_") and _parameter(node.func):
                found.add("write")
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Delete):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            for target in targets:
                if isinstance(target, ast.Attribute) and target.attr in ("data", "forward", "_original_forward"):
                    found.add(f"{'del ' * isinstance(node, ast.Delete)}{target.attr.removeprefix('_original_')}")
                if isinstance(target, ast.Subscript) and _parameter(target.value):
                    found.add("write")
    return found


_LIVE = re.compile(
    r"get_parameter\(|_parameters\b|_buffers\b|\bparameter\b|\b(previous|current)\.copy_"
    r"|\.(weight|bias|query_weight|query_bias)\b"
)


def _parameter(node: ast.AST) -> bool:
    """Whether it reads like a parameter of a model."""
    return bool(_LIVE.search(ast.unparse(node)))


def test_the_journal_is_the_only_owner_of_changes() -> None:
    home = Path(studfinder.__file__).parent
    found = {}
    for path in sorted(home.rglob("*.py")):
        name = str(path.relative_to(home))
        ways = changes(path)
        if ways and name not in OWNERS:
            found[name] = ways
    assert found == {name: set(ways) for name, ways in REASONS.items()}
