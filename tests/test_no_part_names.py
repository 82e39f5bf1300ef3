"""Where the parts of a model are is measured: outside `models/` no file looks for one by its name or by its class."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from test_house import trees

PARTS = {
    *("q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "c_attn", "query_key_value", "in_proj_qkv", "kv_b_proj"),
    *("down_proj", "up_proj", "gate_proj", "gate_up_proj", "c_proj", "c_fc", "fc1", "fc2", "w1", "w2", "w3"),
    *("dense_h_to_4h", "dense_4h_to_h", "out_proj", "self_attn", "self_attention", "attn", "mlp", "feed_forward"),
    *("embed_tokens", "wte", "lm_head", "embed_out", "input_layernorm", "post_attention_layernorm", "ln_1", "ln_2"),
    *("layernorm", "self_attn_layer_norm", "final_layer_norm", "experts", "shared_expert", "block_sparse_moe"),
}
"""What transformers' files call parts of their models."""

OWN = re.compile(r"down_proj(\.(input|output)\[?)?|\.?experts\.?")
"""Words of ours that are the same: sites, a field of anatomy, a name in print."""

ALLOWED = {
    "errors": "the class of an error, whose library need not be installed",
    "cli.app": "the class of an error that two libraries have",
    "attention.gated.layer": "a kind of gate is called so",
    "experiments.kv_shift_theory": "a model that this file makes itself",
    "recipes.auto_round": "what AutoRound itself calls the head",
    "recipes.bitsandbytes": "what transformers itself skips",
    "recipes.mlx": "what mlx itself calls the matrices of experts",
    "verbs.recipe_outline": "what vLLM itself calls what it fuses",
}
"""Files and rooms that may, each with its reason."""


def named(tree: ast.Module) -> Iterator[str]:
    """Parts that a file looks for by name, and comparisons with a class's name."""
    said = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in PARTS and not OWN.fullmatch(node.attr):
            yield f"line {node.lineno}: .{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in said:
            if set(node.value.split(".")) & PARTS and " " not in node.value and not OWN.fullmatch(node.value):
                yield f"line {node.lineno}: {node.value!r}"
        elif isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(ast.unparse(one).endswith((").__name__", ".__class__.__name__")) for one in sides):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def excused(name: str, reasons: tuple[str, ...] | dict[str, str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in reasons)


MODULES = {
    name.removeprefix("studfinder."): tree for name, tree in trees().items() if not name.startswith("studfinder.models")
}


@pytest.mark.parametrize("name", [name for name in MODULES if not excused(name, ALLOWED)])
def test_no_part_is_looked_for_by_its_name(name: str):
    assert list(named(MODULES[name])) == []


@pytest.mark.parametrize("reason", list(ALLOWED))
def test_every_exception_is_one(reason: str):
    assert any(list(named(tree)) for name, tree in MODULES.items() if excused(name, (reason,)))


def test_what_is_looked_for_is_seen():
    tree = ast.parse(
        '"""q_proj"""\nx.q_proj\ngetattr(x, "mlp.up_proj")\nif type(x).__name__ == "Conv1D": pass\n"a mlp here"'
    )
    assert sorted(line.split(": ")[0] for line in named(tree)) == ["line 2", "line 3", "line 4"]
