"""Measures of two models: what one says held against what the other says. A grid takes them (`studies.Beside`)."""

from __future__ import annotations

from typing import Any

from studfinder.errors import NotApplicable
from studfinder.measures.scores import Scores

BESIDE = ("kl", "agreement")
"""Measures that need a baseline."""


def kl_beside(lm: Any, text: str = "proof", **_options: Any) -> Scores:
    """KL(baseline || model) in nats per token. Raises StudfinderError: one model alone has none."""
    raise NotApplicable("kl holds a model against another, and there is none", expected="a baseline")


def agreement_beside(lm: Any, text: str = "proof", **_options: Any) -> Scores:
    """How often both find the same token likeliest. Raises StudfinderError: one model alone has none."""
    raise NotApplicable("agreement holds a model against another, and there is none", expected="a baseline")
