"""Every experiment that takes a model, at its smallest settings on types that are unlike each other.

It runs, or refuses what the type lacks by name.
"""

from __future__ import annotations

import re

import pytest
from typed import NAMED, TYPES, excerpts, tried

from studfinder.errors import StudfinderError

_NO_SPIKE = "has no massive activation on our prompts"
LACKS = {
    "gemma3_text": (_NO_SPIKE,),  # a norm behind each part lets no spike through
    "zamba2": (_NO_SPIKE, "it has no RoPE"),
    "gpt2": ("it has no RoPE",),
    "mamba": (
        _NO_SPIKE,
        "no super weight is proven",
        "nothing to hold out",  # what the census ranks first lies in no matrix that is rounded
        "no layer of .* has an attention",
    ),
}
"""What a type may be refused for; what is not named here, it may not."""
SMALL = "no other dim in the rotary band"  # heads of 16 dims: see `MatchedDims`
FEW = (
    ("super-weight/stopwords", "gpt_neox"),
    ("super-weight/case", "mamba"),
    ("massive-activations/where", "zamba2"),
    ("massive-values/layers", "deepseek_v3"),
    ("massive-values/map", "mamba"),
    ("massive-values/rope", "falcon_h1"),
)


@pytest.fixture(scope="module")
def place(data, tmp_path_factory):
    """Where all of them are run, so that a type's experiments share its scan."""
    folder = tmp_path_factory.mktemp("types")
    excerpts(data, folder / "data")
    return folder


@pytest.fixture(autouse=True)
def here(place, monkeypatch, undrawn):
    monkeypatch.chdir(place)
    monkeypatch.setenv("STUDFINDER_DATA", str(place / "data"))
    monkeypatch.setenv("STUDFINDER_CACHE", str(place / "cache"))


def runs_or_refuses(name: str, kind: str) -> None:
    try:
        result = tried(name, kind)
    except StudfinderError as error:
        if not re.search("|".join((*LACKS.get(kind, ()), SMALL)), str(error)):
            raise
    else:
        assert any(table.rows for table in result.tables)


@pytest.mark.parametrize(("name", "kind"), FEW)
def test_an_experiment_on_a_type(name, kind):
    runs_or_refuses(name, kind)


@pytest.mark.deep
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMED)
def test_every_experiment_on_every_type(name, kind):
    runs_or_refuses(name, kind)
