"""The printed name of a number is read as it is printed, for every parameter of every architecture."""

from __future__ import annotations

import pytest

from architected import TYPES, built
from outside import quick_and_deep
from studfinder.edits import Names, Weights, edited, entry, parse_edits, zero
from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from tiny import ARCHITECTURES, L, tiny
from tried import EIGHT


def corners(lm: LM):
    """The first and the last number of every parameter."""
    for name, parameter in lm.model.named_parameters():
        if parameter.numel():
            yield name, (0,) * parameter.dim()
            yield name, tuple(size - 1 for size in parameter.shape)


def reads_what_it_prints(lm: LM) -> None:
    names = Names(lm)
    printed: dict[str, tuple] = {}
    for name, index in corners(lm):
        text = names.of(name, index)
        assert names.find(text) == Weights(parameter=name, entries=(index,)), text
        assert printed.setdefault(text, (name, index)) == (name, index), f"{text} is the name of two numbers"
        assert names.find(f"{name}[{','.join(map(str, index))}]").parameter == name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_printed_is_read(architecture: str) -> None:
    reads_what_it_prints(tiny(architecture))


@pytest.mark.parametrize("kind", quick_and_deep(TYPES, *EIGHT))
def test_what_is_printed_is_read_in_every_type(kind: str) -> None:
    reads_what_it_prints(load(built(kind)))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gpt_oss", "bloom", "lfm2"])
def test_a_super_weight_is_found_by_its_own_name(architecture: str) -> None:
    lm = tiny(architecture)
    for layer in range(L):
        for writer, ref in enumerate(lm.anatomy.layers[layer].writers):
            expert = "" if ref.expert is None else f".experts.{ref.expert}"
            text = f"layers.{layer}{expert} down_proj[3, 4]"
            weights = entry(lm, layer, 3, 4, writer)
            assert Names(lm).find(text) == weights
            assert Names(lm).of(weights.parameter, weights.entries[0]) == text
            assert parse_edits(lm, f"zero:{text} (call 2)") == zero(weights)


@pytest.mark.parametrize(
    ("text", "parameter", "index"),
    [
        ("layers.2 input_layernorm[17]", "model.layers.2.input_layernorm.weight", (17,)),
        ("layers.0 self_attn.q_proj.bias[3]", "model.layers.0.self_attn.q_proj.bias", (3,)),
        ("layers.0 q_proj[:, 3]", "model.layers.0.self_attn.q_proj.weight", (None, 3)),
        ("embed_tokens[33, 19]", "model.embed_tokens.weight", (33, 19)),
        ("lm_head[11, 8]", "lm_head.weight", (11, 8)),
        ("norm[17]", "model.norm.weight", (17,)),
    ],
)
def test_short_names(text: str, parameter: str, index: tuple) -> None:
    lm = tiny("qwen2")
    weights = Weights(parameter=parameter, entries=(index,))
    assert Names(lm).find(text) == weights
    with edited(lm, f"scale=0.5:{text}"):
        pass


@pytest.mark.parametrize(
    ("architecture", "text", "words"),
    [
        ("llama", "layers.1 dwn_proj[1, 2]", "in layer 1 called 'dwn_proj'; expected down_proj"),
        ("llama", "layers.3 down_proj[1, 2]", "no layer 3; expected 0 to 2"),
        ("llama", "down_proj[1, 2]", r"does not say which layer; expected layers.0 down_proj\[1, 2\]"),
        ("llama", "norms[3]", "expected norm"),
        ("llama", "layers.1.experts.3 down_proj[1, 2]", "no expert 3 in layer 1 .*expected a layer with experts"),
        ("mixtral", "layers.1.experts.4 down_proj[1, 2]", "no expert 4 in layer 1 .*expected experts 0 to 3"),
        ("llama", "model.layers.1.mlp.downproj.weight[1, 2]", "expected model.layers.1.mlp.down_proj.weight"),
        ("gpt2", "layers.1 c_proj[1, 2]", "of 2 parameters; expected layers.1 attn.c_proj or layers.1 mlp.c_proj"),
        ("llama", "layers.1 down_proj[1, 99]", "is not an index into"),
        ("llama", "layers.1 down_proj[1:2, 3]", "expected a whole number"),
        ("llama", "layers.1 down_proj[1]", "is not an index into"),
    ],
)
def test_a_name_of_nothing_says_what_is_called_nearly_so(architecture: str, text: str, words: str) -> None:
    with pytest.raises(StudfinderError, match=words), edited(tiny(architecture), f"zero:{text}"):
        pass
