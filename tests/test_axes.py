"""What checks the axes that names have: functions, methods, nested functions and returns, in what a loader loads."""

from __future__ import annotations

import sys
import textwrap

import numpy as np
import pytest
import torch

import axes
from studfinder.attention.dense import scores

MODULE = '''
from __future__ import annotations
import torch

def function(x_BTC, scale_C=None, *rest, mask_BT=None):
    return x_BTC

def mean_C(x_NC):
    """Wrong where asked to be."""
    return x_NC.mean(dim=0) if x_NC[0, 0] == 0 else x_NC

def maker():
    def inner(x_HD):
        return x_HD
    return inner

class Holder:
    def method(self, x_TD, other_TD):
        return x_TD
    @staticmethod
    def static(x_TD):
        return x_TD
    @classmethod
    def of(cls, x_TD):
        return cls()
    @property
    def norm_HD(self):
        return torch.zeros(3)
'''


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The module above as the loader loads modules of the package."""
    folder = tmp_path_factory.mktemp("axes")
    (folder / "named.py").write_text(textwrap.dedent(MODULE))
    namespace: dict = {"__name__": "named"}
    exec(axes._Loader("named", str(folder / "named.py")).get_code("named"), namespace)
    return namespace


RIGHT = {
    "a function": lambda m: m["function"](torch.ones(2, 3, 4), torch.ones(4), 1, 2, mask_BT=torch.ones(2, 3)),
    "a mask for all sequences": lambda m: m["function"](torch.ones(2, 3, 4), mask_BT=torch.ones(1, 3)),
    "no tensor": lambda m: m["function"]([1, 2], None),
    "numpy": lambda m: m["function"](np.ones((2, 3, 4)), np.ones(4)),
    "a return": lambda m: m["mean_C"](torch.zeros(2, 3)),
    "sizes of another call": lambda m: [m["mean_C"](torch.zeros(2, size)) for size in (3, 4)],
}
WRONG = {
    "an axis too few": (lambda m: m["function"](torch.ones(3, 4)), r"x_BTC has the shape \(3, 4\), not \(B T C\)"),
    "another size": (lambda m: m["function"](torch.ones(2, 3, 4), torch.ones(5)), r"scale_C has the shape \(5,\)"),
    "by name": (lambda m: m["function"](x_BTC=torch.ones(2, 3, 4), scale_C=torch.ones(5)), "scale_C"),
    "after what has no name": (
        lambda m: m["function"](torch.ones(2, 3, 4), torch.ones(4), 1, mask_BT=torch.ones(2, 4)),
        "mask_BT",
    ),
    "numpy": (lambda m: m["function"](np.ones((2, 3))), "x_BTC"),
    "a return": (lambda m: m["mean_C"](torch.ones(2, 3)), r"mean_C: what it returns has the shape \(2, 3\)"),
    "a nested function": (lambda m: m["maker"]()(torch.ones(2)), "inner: x_HD"),
    "a method": (lambda m: m["Holder"]().method(torch.ones(2, 3), torch.ones(3, 3)), "Holder.method: other_TD"),
    "a static method": (lambda m: m["Holder"].static(torch.ones(2)), "Holder.static: x_TD"),
    "a class method": (lambda m: m["Holder"].of(torch.ones(2)), "Holder.of: x_TD"),
    "a property": (lambda m: m["Holder"]().norm_HD, r"norm_HD: what it returns has the shape \(3,\), not \(H D\)"),
}


@pytest.mark.parametrize("call", RIGHT.values(), ids=RIGHT)
def test_what_is_as_it_is_named_passes(loaded, call):
    call(loaded)


@pytest.mark.parametrize(("call", "words"), WRONG.values(), ids=WRONG)
def test_what_is_not_as_it_is_named_is_caught(loaded, call, words):
    with pytest.raises(AssertionError, match=words):
        call(loaded)


def test_the_package_is_checked():
    """Every test runs it so: `conftest.py` puts the loader before the usual one."""
    assert sys.meta_path[0] is axes._Finder
    query, key = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 5)
    with pytest.raises(AssertionError, match=r"attention/dense\.py:\d+: scores: key_BGSD"):
        scores(query, key, None, 1.0)
