"""What quantising cost, measured on the checkpoint that was written: KL and perplexity beside the original's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from studfinder.errors import NotApplicable, Unavailable
from studfinder.measures.effects import between
from studfinder.measures.perplexity import windows_of
from studfinder.models import LM
from studfinder.quantizers.verify import fits_again

TEXTS = (("proof", 256, None), ("wikitext2", 512, 16))
"""Our own text, whole, and the beginning of a public one: name, tokens of a window, how many windows."""


def scores_of(lm: LM, folder: Path) -> dict[str, str]:
    """By name, a line each: KL(original || files) and perplexity, with intervals; what cannot be scored says why.

    Args:
        lm: the original, with a tokenizer.
        folder: the checkpoint that was made from it.

    Raises:
        StudfinderError: the checkpoint cannot be loaded, or there is no tokenizer.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in lm.model.state_dict().values())
    if not fits_again(size):
        return {"KL(original || quantised)": "not measured: the model does not fit into memory twice"}
    # As plain transformers runs it, which rounds inputs too where the scheme does: a dequantised copy would not.
    made = replace(lm, model=type(lm.model).from_pretrained(folder).to(lm.device).eval())
    lines: dict[str, str] = {}
    for text, window, limit in TEXTS:
        try:
            name, windows = windows_of(lm, text, window=min(window, lm.anatomy.max_positions or window), limit=limit)
        except (NotApplicable, Unavailable) as error:
            if text == "proof":
                raise
            lines[f"perplexity of {text}"] = f"not measured: {error}"
            continue
        effects = between(lm, made, windows)
        kl, ratio = effects.kl_interval(0), effects.perplexity_ratio(0)
        of = f"{len(windows)} windows of up to {len(windows[0])} tokens"
        lines[f"KL(original || quantised) on {name}"] = (
            f"{kl.value:.4f} nats per token ({kl.low:.4f} to {kl.high:.4f}, bootstrap over {of})"
        )
        lines[f"perplexity of {name}"] = (
            f"{effects.clean_perplexity * ratio.value:.3f}, {ratio.value:.3f} times the original's "
            f"{effects.clean_perplexity:.3f} ({ratio.low:.3f} to {ratio.high:.3f}, paired bootstrap)"
        )
    return lines
