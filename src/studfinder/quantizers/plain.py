"""Load a checkpoint with plain transformers and say what came of it. Run by its path, in a process without studfinder.

    python -P plain.py FOLDER ASK.json ANSWER

writes ANSWER.json (see `reload`) and ANSWER.pt, the logits.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import torch


def reload(folder: str, ask: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor]:
    """What plain transformers makes of a checkpoint folder.

    Args:
        ask: "ids": windows of token ids, of one length; "trust": whether code beside the weights may be run;
            "attention": the implementation, or None; "blocks": how many blocks to load, or None for all of them.

    Returns:
        "missing", "unexpected", "mismatched": names, as transformers reports them; "tensors": by name of everything
        that is in memory after a forward pass (weights are then dense), its dtype and the SHA-256 of its bytes. And the
        logits, (windows, tokens, vocabulary).
    """
    import transformers

    kind: Any = transformers.AutoModelForCausalLM
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=ask["trust"])
    own = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not own:  # a wrapper's type may stand for its text part as well
        kind = getattr(transformers, (config.architectures or [""])[0], kind)
    if ask["blocks"] is not None:
        keep_blocks(config, ask["blocks"])
    options = {} if ask["attention"] is None else {"attn_implementation": ask["attention"]}
    model, info = kind.from_pretrained(
        folder, config=config, trust_remote_code=ask["trust"], output_loading_info=True, **options
    )
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor(ask["ids"]), use_cache=False).logits
    answer: dict[str, Any] = {
        name: sorted(map(str, info[f"{name}_keys"])) for name in ("missing", "unexpected", "mismatched")
    }
    answer["tensors"] = {name: [str(t.dtype), tensor_digest(t)] for name, t in model.state_dict().items()}
    return answer, logits


def keep_blocks(config: Any, blocks: int) -> None:
    """Make a config one of the first blocks only."""
    text = config.get_text_config(decoder=True)
    whole = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == whole and name != "architectures":
            setattr(text, name, value[:blocks])
    text.num_hidden_layers = blocks


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


def _main(folder: str, asked: str, answered: str) -> None:
    from pathlib import Path

    ask = json.loads(Path(asked).read_text(encoding="utf-8"))
    torch.set_num_threads(ask["threads"])
    if ask["variant"]:  # attention of studfinder's own, which no other package has
        import studfinder.attention  # noqa: F401
    else:
        sys.modules["studfinder"] = None  # type: ignore[assignment]
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answer, logits = reload(folder, ask)
    torch.save(logits, f"{answered}.pt")
    Path(f"{answered}.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
