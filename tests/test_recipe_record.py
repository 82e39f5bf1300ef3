"""The record of a recipe, and the grammar of formats: one name, one meaning, there and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import studfinder as sf
from readers import _samples
from studfinder.errors import StudfinderError
from studfinder.quantizers import SCHEMES, Scheme
from studfinder.records import Format, Inputs, LeftOut, Recipe, RecipeGroup, format_named, scheme_named, to_json
from studfinder.verbs.configs import RecipeConfig
from studfinder.verbs.recipe import recipe_of

SIZES = st.integers(1, 10**6)


@st.composite
def schemes(draw):
    element = draw(st.sampled_from(["int2", "int3", "int4", "int5", "int6", "int7", "int8", "fp8", "fp4"]))
    zero = draw(st.sampled_from(["none", "integer", "float"])) if element.startswith("int") else "none"
    scales = ["float32", "bfloat16", "float16"] + ["e8m0", "e4m3"] * (zero != "float")
    return Scheme(
        element=element,
        block=draw(st.one_of(st.sampled_from(["tensor", "channel"]), SIZES, st.tuples(SIZES, SIZES))),
        zero=zero,
        scale=draw(st.sampled_from(scales)),
        narrow=draw(st.booleans()) and zero == "none" and element.startswith("int"),
        remainder=draw(st.sampled_from(["error", "block"])),
    )


@st.composite
def inputs(draw):
    element = draw(st.sampled_from(["int4", "int8", "fp8", "fp4"]))
    scope = st.sampled_from([16, 32]) if element == "fp4" else st.one_of(st.sampled_from(["token", "tensor"]), SIZES)
    return Inputs(element=element, scope=draw(scope))


@given(
    st.one_of(
        st.just(Format()), st.builds(Format, weights=schemes(), inputs=st.none() | inputs(), kept=st.floats(0, 0.4))
    )
)
@settings(deadline=None)
def test_every_format_has_a_name_that_is_read_back(format):
    assert format_named(format.name) == format
    if format.weights is not None:
        assert scheme_named(format.weights.name) == format.weights
        assert format_named(format.plain.name) == Format(weights=format.weights, inputs=format.inputs)


def test_the_names_of_schemes_are_the_grammar():
    for name, scheme in SCHEMES.items():
        assert scheme_named(name) == scheme
    assert len({scheme.name for scheme in SCHEMES.values()}) == len(SCHEMES)
    assert scheme_named("int4-g64") == Scheme(element="int4", block=64)
    assert scheme_named("w4-g64") == Scheme(element="int4", block=64, zero="integer") == scheme_named("int4-g64-zero")
    assert format_named("fp8+fp8") == Format(weights=SCHEMES["fp8"], inputs=Inputs(element="fp8"))
    assert format_named("nvfp4+nvfp4").inputs == Inputs(element="fp4", scope=16)
    assert format_named("16") == Format()


BAD = (
    "|int9-g64|int4|int4-g0|int4-g٣|fp8-g64-zero|int4-zero-g64|16+int8|fp8+|fp8+fp4|w4-g32|int4-g64-keep|"
    "int4-g64-keep0%|int4-g64-keep60%|int4-g64-keep1|16-keep1%"
)


@pytest.mark.parametrize("name", BAD.split("|"))
def test_what_is_no_format_is_said_in_a_line(name):
    with pytest.raises(StudfinderError, match=r"there (is|are) no|zero point"):
        format_named(name)


def test_a_recipe_is_read_back_by_its_folder(tmp_path):
    recipe = _samples()["Recipe"]
    (tmp_path / "recipe.json").write_text(to_json(recipe, indent=1))
    assert sf.read(tmp_path) == sf.read(tmp_path / "recipe.json") == recipe
    assert recipe.formats == {"a.q": "int4-g4", "a.k": "int4-g4", "a.o": "16", "lm_head": "16"}
    assert dict(recipe.by_format()) == {"int4-g4": ("a.q", "a.k"), "16": ("a.o",)}
    assert recipe.groups[0].weights == 4 * 8 + 2 * 8


def test_a_recipe_names_a_matrix_once_and_in_a_known_format(tmp_path):
    recipe = _samples()["Recipe"]
    with pytest.raises(ValueError, match="is in the recipe twice"):
        replace(recipe, left_out=(LeftOut(module="a.k", why=""),))
    with pytest.raises(ValueError, match="no scheme 'int9'"):
        RecipeGroup(name="g", members=("a",), stored_as="int9")
    with pytest.raises(ValueError, match="1 shapes for 2 members"):
        RecipeGroup(name="g", members=("a", "b"), shapes=((1, 2),), stored_as="16")
    with pytest.raises(ValueError, match="and not which"):
        RecipeGroup(name="g", members=("a",), stored_as="int4-g64-keep0.1%")
    (tmp_path / "recipe.json").write_text(to_json(recipe).replace('"int4-g4"', '"int4-q4"'))
    with pytest.raises(StudfinderError, match=r"does not fit its format at 'groups.0'.*int4-q4"):
        sf.read(tmp_path, Recipe)


def test_a_plan_is_written_for_its_tool(tmp_path):
    plan, file = _samples()["Plan"], tmp_path / "plan.json"
    one = plan.solutions[0]
    both = replace(plan, solutions=(replace(one, tool="llm-compressor"), replace(one, tool="torchao", bits=5.0)))
    for made, tools, bits in ((plan, (), one.bits), (both, ("torchao",), 5.0)):
        file.write_text(to_json(made), "utf-8")
        assert f"{bits:.4g} bits a weight" in recipe_of(file, RecipeConfig(tools=tools)).decided
    for tools in ((), ("mlx",), ("llm-compressor", "torchao")):
        with pytest.raises(StudfinderError, match="--for"):
            recipe_of(file, RecipeConfig(tools=tools))
