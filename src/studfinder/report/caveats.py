"""What to keep in mind about these numbers."""

from __future__ import annotations

from studfinder.records import Findings
from studfinder.report.words import bidirectional_sentence, count, layers_and_experts


def caveats(findings: Findings) -> list[tuple[str, str]]:
    """(what it is about, a sentence or two), always the same subjects, so that reports compare."""
    prompts, model, at = findings.prompts, findings.model, findings.summary.thresholds
    begins = (
        "Every prompt began with the BOS token"
        if prompts.bos
        else "No prompt began with a BOS token (this tokenizer adds none, or it was taken away)"
    )
    template = "a chat template was applied" if prompts.chat_template else "no chat template was applied"
    notes = [
        (
            "first token",
            f"{begins}; {template}. Massive activations and sinks usually sit on the first token: both may move "
            "when this changes.",
        ),
        (
            "prompts",
            f"All statistics come from {count(len(prompts.tokens), 'prompt')} ({prompts.id}, "
            f"{prompts.total:,} tokens). Other text can reach other channels; what never fired here was not seen.",
        ),
        (
            "dtype",
            f"The model ran in {model.dtype}. Sizes differ by a rounding step in another dtype, and an entry near "
            "a threshold can change sides.",
        ),
        (
            "massive values",
            f"λ = {at.get('lam', 5):g} times the head's own mean. How many entries pass depends on the "
            "head dim, so counts compare between models of the same head dim only.",
        ),
        (
            "never turning dims",
            f"Judged by a training length of {model.train_length:,} tokens ({model.train_length_source}).",
        ),
        ("verdicts", _proof(findings)),
        ("census", _census(findings)),
        *layers_and_experts(findings),
    ]
    if findings.summary.bidirectional:
        notes.insert(0, ("bidirectional", bidirectional_sentence(findings)))
    if findings.nonfinite:
        sites = ", ".join(findings.nonfinite[:8]) + (" and more" if len(findings.nonfinite) > 8 else "")
        notes.insert(0, ("overflow", f"inf or NaN appeared at {sites}: those numbers are left out."))
    if findings.summary.unreadable:
        names = ", ".join(findings.summary.unreadable[:4])
        notes.insert(
            0,
            (
                "not searched",
                f"{count(len(findings.summary.unreadable), 'matrix', 'matrices')} could not be "
                f"read entry by entry (quantised): {names}.",
            ),
        )
    return notes


def _proof(findings: Findings) -> str:
    proof = findings.proof
    if proof is None and findings.summary.bidirectional:
        return "Nothing was tested: this model has no likelihood to lose."
    if proof is None:
        return "Nothing was tested: a candidate is a guess until the model has been run without it."
    text = (
        f"{count(proof.tested, 'candidate')} tested on our own text {proof.text} ({count(proof.windows, 'window')}, "
        f"{proof.tokens:,} tokens; clean perplexity {proof.clean_perplexity:.3g}), at level {proof.level:.4g} each, "
        f"floor {proof.floor:g} nats. Proven on this text means proven on this text."
    )
    if proof.skipped:
        text += f" {count(proof.skipped, 'weaker candidate')} beyond the cap stayed untested."
    return text


def _census(findings: Findings) -> str:
    card, settings = findings.census, findings.run.settings
    if card is None:
        why = "it comes with the proof"
        if findings.summary.bidirectional:
            why = "this model has no likelihood whose gradient could be taken"
        elif "census" not in settings:
            why = "this scan is older than it"
        elif settings.get("prove"):
            why = "it was asked not to be, or weights are offloaded and have no gradient"
        return f"Gains, biases, embeddings and other matrices were not searched: there was no census ({why})."
    text = (
        f"Predictions are second order, half of w² times the mean squared gradient, from {card.tokens:,} tokens of the "
        f"prompts ({count(card.draws, 'label')} drawn from the model at each). What the model stands on is "
        "underestimated, up to twenty times; an entry of the embedding is overestimated, for it matters as often as "
        "its token comes. A number is said to carry something only where it was measured."
    )
    if card.pools:
        text += (
            f" The others were set to zero many at a time: {card.pools:,} of {card.pools_of:,} pools were measured, "
            f"{card.loud:,} of them carried more than {card.threshold:g} nats and were taken apart. In a pool "
            "that was measured a number can hide only where the others undo what it does."
        )
    if card.nonfinite:
        names = ", ".join(card.nonfinite[:4]) + (" and more" if len(card.nonfinite) > 4 else "")
        text += f" Nothing is predicted in {names}: the gradient held inf or NaN."
    return text
