"""Every measure by name, as the command line and scorecards call it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from studfinder.errors import StudfinderError, unknown
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


_FACTS = "built-in (default), trex, or of trex: cities, sports, art, technology, celebrities"

MEASURES: dict[str, Measure] = {
    "perplexity": Measure(
        "fluency",
        "studfinder.measures.perplexity:perplexity_of",
        "perplexity on windows of 512 tokens",
        "proof (default), wikitext2, c4, a file, a folder or a data set of the hub",
    ),
    "kl": Measure(
        "fluency",
        "studfinder.measures.beside:kl_beside",
        "KL from the baseline, nats per token: with --against or --edit",
        "proof (default), wikitext2, c4, a file, a folder or a data set of the hub",
    ),
    "agreement": Measure(
        "fluency",
        "studfinder.measures.beside:agreement_beside",
        "how often the likeliest token is the baseline's: with --against or --edit",
        "proof (default), wikitext2, c4, a file, a folder or a data set of the hub",
    ),
    "repetition": Measure(
        "fluency",
        "studfinder.measures.repetition:repetition",
        "distinct-2 and loops of greedy continuations",
        "tokens to write (64)",
    ),
    "passkey": Measure(
        "context",
        "studfinder.measures.passkey:passkey",
        "a number hidden in a text, over length and depth",
        "prompt lengths in tokens (128,256,512,1024)",
    ),
    "lookup": Measure(
        "context",
        "studfinder.measures.lookup:lookup",
        "key-value recall, over pairs",
        "pairs in the prompt (2,4,8,16)",
    ),
    "facts-in-context": Measure(
        "context",
        "studfinder.measures.matched_facts:facts_in_context",
        "facts about invented subjects, stated in the prompt",
        "facts in the prompt (4)",
    ),
    "in-context": Measure(
        "context",
        "studfinder.measures.in_context:in_context",
        "going on as the examples in the prompt do",
        "words (default) or numbers",
    ),
    "knowledge-conflict": Measure(
        "context",
        "studfinder.measures.knowledge_conflict:knowledge_conflict",
        "answers from a false statement in the prompt against what is known",
        _FACTS,
    ),
    "induction": Measure(
        "context",
        "studfinder.measures.induction:induction",
        "accuracy on the second half of repeated random tokens",
        "tokens that are repeated (64)",
    ),
    "in-context-learning": Measure(
        "context",
        "studfinder.measures.induction:in_context_learning",
        "loss late in a window minus early",
        "proof (default), wikitext2, c4, .jsonl (a plain file is one document), a folder or a data set of the hub",
    ),
    "facts": Measure(
        "memory",
        "studfinder.measures.facts:facts",
        "facts against wrong answers of the same relation",
        _FACTS,
    ),
    "yes-no": Measure(
        "memory",
        "studfinder.measures.facts:yes_no",
        "facts against false statements, by yes and no",
        _FACTS,
    ),
    "facts-parametric-matched": Measure(
        "memory",
        "studfinder.measures.matched_facts:facts_parametric_matched",
        "real facts in the format and after the prompts of facts-in-context",
        "facts in the prompt (4)",
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
    if name not in MEASURES:
        raise unknown("there is no measure", name, MEASURES)
    measure = MEASURES[name]
    if colon and not (measure.argument and argument):
        raise StudfinderError(
            f"measure {text!r}", expected=f"{name}" + (f":{measure.argument}" * bool(measure.argument))
        )
    if name == "tasks" and colon:
        import_module("studfinder.measures.tasks.run").task_named(argument)
    module, function = measure.place.split(":")
    found = getattr(import_module(module), function)
    if not colon:
        return found

    def with_argument(lm: object, **options: object) -> Scores:
        return found(lm, argument, **options)

    return with_argument
