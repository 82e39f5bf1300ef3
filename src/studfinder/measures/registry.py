"""Every measure by name, as the command line and scorecards call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from studfinder.errors import StudfinderError
from studfinder.measures.scores import Scores

Kind = Literal["fluency", "context", "memory", "reasoning"]


@dataclass(frozen=True)
class Measure:
    """A measure's entry.

    Attributes:
        kind: what it is about.
        place: "module:function"; the function takes (lm, [argument], *, limit, seed, progress) and returns Scores.
        summary: a line for `studfinder ls measures`.
        argument: what may follow the name after a colon, e.g. a text; empty if nothing.
    """

    kind: Kind
    place: str
    summary: str
    argument: str = ""


REGISTRY: dict[str, Measure] = {
    "perplexity": Measure(
        "fluency",
        "studfinder.measures.perplexity:perplexity_of",
        "perplexity on windows of 512 tokens",
        "proof (default), wikitext2, c4 or a text file",
    ),
    "tasks": Measure(
        "reasoning",
        "studfinder.measures.tasks:tasks",
        "public benchmark tasks, scored by lm-eval (each with a kind of its own: studfinder ls tasks)",
        "a task, e.g. piqa, lambada, arithmetic:100",
    ),
}


def measure_named(text: str) -> Callable[..., Scores]:
    """The function that a name stands for: `perplexity`, or `perplexity:wikitext2` with its argument filled in.

    Raises:
        StudfinderError: there is no such measure, or it takes no argument.
    """
    name, colon, argument = text.partition(":")
    if name not in REGISTRY:
        raise StudfinderError(f"there is no measure {name!r}", expected=", ".join(REGISTRY))
    measure = REGISTRY[name]
    if colon and not (measure.argument and argument):
        raise StudfinderError(
            f"measure {text!r}", expected=f"{name}" + (f":{measure.argument}" * bool(measure.argument))
        )
    module, function = measure.place.split(":")
    found = getattr(import_module(module), function)
    if not colon:
        return found

    def with_argument(lm: object, **options: object) -> Scores:
        return found(lm, argument, **options)

    return with_argument
