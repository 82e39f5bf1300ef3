"""What the words on a page mean."""

from __future__ import annotations

import re

_WORDS: dict[str, tuple[str, str]] = {
    "attention sink": (
        "sinks?",
        "A token, mostly the first, that a head pays much of its attention to when it has nothing else to look at.",
    ),
    "bits a weight": (
        "bits a weight",
        "Size of the stored matrices in bits, scales, zero points and kept numbers included, over their weights.",
    ),
    "BOS": ("BOS", "The token that marks the beginning of a text. Some models behave differently without it."),
    "census": ("census|predicted KL", "Every number of the model, ranked by the KL that a backward pass predicts."),
    "concentration": (
        "concentration",
        "How much of a head's norm lies in few dims: 0 where all are alike, 1 where there is only one.",
    ),
    "control": (
        "controls?",
        "A number of the same parameter, as large or as active, that is taken out in the same way.",
    ),
    "down_proj": (
        "down_proj|down projection",
        "The matrix by which a feed-forward block writes into the residual stream.",
    ),
    "floor": ("floor", "The KL below which nothing is said to matter."),
    "fused group": ("fused groups?", "Matrices that serving engines fuse, and that must share a format."),
    "headroom": (
        "headroom",
        "Room to get worse: a measure at chance before an edit can show nothing after it.",
    ),
    "interval": ("intervals?", "Where the value lies with 95 % confidence, windows or items resampled."),
    "KL": (
        "KL",
        "How far a model's next-token distributions move from the clean model's, on average over tokens. "
        "0.01 nats is hardly felt, 0.1 is, 1 is another model.",
    ),
    "massive activation": (
        "massive activations?",
        "A number in the residual stream above 100 and above 1,000 times its layer's median. It acts as a fixed bias.",
    ),
    "massive value": (
        "massive values?",
        "A dim of a head's queries, keys or values that is more than five times its head's mean.",
    ),
    "nats": ("nats?", "The unit of KL and of loss: natural logarithms. One nat is 1.44 bits."),
    "null edit": (
        "null edit",
        "Every number that is edited, moved to its neighbour in the dtype: what any change does.",
    ),
    "perplexity": ("perplexity", "How many tokens the model hesitates between: the exponential of its loss in nats."),
    "proven": ("proven", "Shown to matter more than the floor and than every control, with its interval."),
    "residual stream": ("residual", "The vector of each token that every block adds to."),
    "rotary dims that never turn": (
        "never turns?|never completes",
        "Dims whose rotary angle stays within one turn over the whole training context.",
    ),
    "scale": ("scales", "The factor by which a group of rounded numbers is multiplied back."),
    "share": ("share", "What one weight's term is of the output it belongs to."),
    "spike": ("spikes?", "A value far above all others of its layer."),
    "super weight": (
        "super[- ]weights?",
        "A single weight of a down_proj whose removal is shown to change the model.",
    ),
}
"""A regular expression of how each is written, and what it means."""


def glossary(text: str) -> list[tuple[str, str]]:
    """The words that a page's text uses, each with what it means."""
    return [
        (word, meaning)
        for word, (pattern, meaning) in _WORDS.items()
        if re.search(rf"\b(?:{pattern})\b", text, re.IGNORECASE if word.islower() else 0)
    ]
