"""The backward pass block by block against one graph over the model's own forward pass."""

from __future__ import annotations

import pytest
import torch
import transformers

from architected import PARTS, TYPES, built
from carried import FORTY, texts
from outside import quick_and_deep
from patching import difference, traces
from studfinder.models import LM, load
from studfinder.passes import gradients, likelihood
from studfinder.texts import Batch
from tried import STATES


@pytest.fixture(scope="module", params=quick_and_deep(TYPES, *FORTY))
def kind(request) -> str:
    if not hasattr(transformers, PARTS[request.param]["cls"]):
        pytest.skip(f"transformers {transformers.__version__} has no {request.param} yet")
    return request.param


@pytest.fixture(scope="module")
def lm(kind: str) -> LM:
    return load(built(kind))


def floating(lm: LM) -> dict[str, torch.nn.Parameter]:
    return {name: one for name, one in lm.model.named_parameters() if one.is_floating_point()}


def log_likelihood(lm: LM, batch: Batch) -> torch.Tensor:
    """Of the text itself, by the model's own forward pass."""
    logs_BTV = lm.model(input_ids=batch.input_ids_BT, use_cache=False).logits.float().log_softmax(-1)
    rows = [(row, place) for row, length in enumerate(batch.lengths) for place in range(length - 1)]
    return torch.stack([logs_BTV[row, at, batch.input_ids_BT[row, at + 1]] for row, at in rows]).sum()


def of_autograd(lm: LM, batch: Batch) -> dict[str, torch.Tensor]:
    """Gradients of every parameter in one graph."""
    named = floating(lm)
    flags = {name: one.requires_grad for name, one in named.items()}
    for one in named.values():
        one.requires_grad_()
    found = torch.autograd.grad(
        log_likelihood(lm, batch), list(named.values()), materialize_grads=True, allow_unused=True
    )
    for name, one in named.items():
        one.requires_grad_(flags[name])
    return dict(zip(named, found, strict=True))


def close(one: torch.Tensor, other: torch.Tensor, share: float = 2e-5) -> bool:
    """Up to rounding in the largest entries."""
    return one.shape == other.shape and bool(((one - other).abs() <= share * other.abs().amax() + 1e-7).all())


def test_gradients_are_those_of_one_graph(kind: str, lm: LM):
    """Of every parameter, once, and nothing is left."""
    batch = texts(lm, 9, 6)[:1]
    expected, before = of_autograd(lm, batch[0]), traces(lm)
    found: dict[str, torch.Tensor] = {}
    for piece in gradients(lm, batch, likelihood()):
        assert not found.keys() & piece.parameters.keys()
        found |= piece.parameters
    if kind not in STATES:
        assert difference(before, traces(lm)) == []
    assert [name for name in expected if not close(found[name], expected[name])] == []
    assert found.keys() == expected.keys()
