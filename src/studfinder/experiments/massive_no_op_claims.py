"""What the paper claims of attention to massive activations, and what texts say of it."""

from __future__ import annotations

from collections.abc import Mapping

from studfinder.records import Claim, ClaimResult, Interval
from studfinder.report.words import count
from studfinder.studies import judged

_FIGURES = "figures of layers 3, 15 and 30 of LLaMA2-7B, no number"
_EVERY = {
    "attend": Claim(
        key="massive-activations/attended",
        says="After the layer where they appear, attention concentrates on their tokens.",
        decides="attention mass on massive tokens minus that on as many tokens right beside them, mean over heads",
        published=_FIGURES,
    ),
    "drawn": Claim(
        key="massive-activations/draw-attention",
        says="It is the massive activation that draws the attention.",
        decides="attention mass on massive tokens minus that on the same tokens with their massive entries at zero",
        published="argued from the keys and values after the normalisation, not measured",
    ),
    "queries": Claim(
        key="massive-activations/bias-over-queries",
        says="What those tokens add through V is nearly the same for every query: a bias.",
        decides="variation over queries of what massive tokens add minus that of as many random tokens, as shares of "
        "what they add on average",
        kind="less",
        published=_FIGURES,
    ),
    "attended": Claim(
        key="massive-activations/bias-beyond-attention",
        says="It is steadier also than what other much attended tokens add.",
        decides="variation over queries of what massive tokens add minus that of as many others, those to which each "
        "head attends most",
        kind="less",
        published="no such control",
    ),
    "texts": Claim(
        key="massive-activations/bias-over-texts",
        says="Their values are nearly the same in every text.",
        decides="cosine of two texts' values at their first massive token minus that at random tokens",
        published="values near-constant by the sparse vectors that the normalisation makes of them; no number",
    ),
}
NO_OP_CLAIMS = tuple(_EVERY.values())


def no_op_claims(numbers: Mapping[str, Mapping[str, tuple[Interval, Interval, Interval]]]) -> list[ClaimResult]:
    """Judged with the tokenizer's own habit, which comes first; values across texts without BOS where that was read,
    since BOS has the same value in every text by construction.

    Args:
        numbers: by condition and claim the number that decides, and the two that it contrasts.
    """
    results = []
    for name, claim in _EVERY.items():
        bare = [label for label in numbers if label.startswith("without")] if name == "texts" else []
        own = next(iter([*bare, *numbers]))
        if name not in numbers[own]:
            results.append(judged(claim, None, why=f"{own} nothing could be read in layers after the onset"))
            continue
        number, effect, control = numbers[own][name]
        rest = [f"{label}: {found[name][0]:.3g}" for label, found in numbers.items() if label != own and name in found]
        items = count(
            number.n, "pair of texts" if name == "texts" else "text", "pairs of texts" if name == "texts" else None
        )
        why = f"Judged {own}. The same {'; '.join(rest)}" if rest else f"Judged {own}"
        cost = "all 28 texts, whole (--limit 28 --set window=512), in about four times the time"
        results.append(judged(claim, number, effect=effect, control=control, items=items, why=why, cost=cost))
    return results
