"""What `scan` would see, at every evaluation of a model in training: one forward pass, the same detectors."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from studfinder.detectors import observe
from studfinder.detectors.attention_sinks import AttentionSinks
from studfinder.detectors.massive_activations import MassiveActivations
from studfinder.detectors.massive_values import MassiveValues
from studfinder.errors import StudfinderError
from studfinder.models import LM, load
from studfinder.records.outside import json_lines
from studfinder.runs import write_text
from studfinder.training.moments import Moments
from studfinder.training.streams import SequenceRows, SequenceSource

PREFIX = "outliers/"
SEQUENCES = 8
"""Test sequences of each look."""


@dataclass(frozen=True)
class Look:
    """What was seen at one step.

    Attributes:
        summary: numbers by name:
            inf_norm, kurtosis, paper_inf_norm, paper_kurtosis: see `Moments`;
            massive_activations: residual entries that pass Sun et al.'s rule (at most 32 a layer), top_activation,
            top_layer, top_dim and top_position: the largest |a| and where it is; top_ratio: the largest |a| over its
            layer's median;
            massive_queries, massive_keys: entries of M above 5 times their head's mean; top_query, top_key: the largest
            ratio;
            sink_share: heads whose mean attention to the first token exceeds 0.3, top_sink: the largest such mean.
        layers: by name, one number a layer (or one list a layer: "sink" holds a number for each head).
    """

    summary: dict[str, float]
    layers: dict[str, list[Any]]


def look(lm: LM, encoded: Sequence[Sequence[int]]) -> Look:
    """Observe a model on sequences of one length, in one forward pass, in the precision that this pass has: that of its
    weights, or of autocast where it is trained so."""
    activations, values, sinks, moments = MassiveActivations(lm), MassiveValues(lm), AttentionSinks(lm), Moments()
    observe(lm, encoded, (activations, values, sinks, moments), batch_size=len(encoded))
    blocks = range(len(lm.anatomy.layers))
    top = [activations.top(layer, k=1) for layer in blocks]
    largest = [abs(entry[0].value) if entry else 0.0 for entry in top]
    ratios = [entry[0].ratio if entry else 0.0 for entry in top]
    highest = max((entry for layer in top for entry in layer), key=lambda entry: abs(entry.value), default=None)
    found = values.found()
    strengths = {layer: sinks.strength_H(layer) for layer in sorted(sinks.totals)}
    summary = {
        "inf_norm": moments.inf_norm,
        "kurtosis": moments.kurtosis,
        "paper_inf_norm": moments.paper_inf_norm,
        "paper_kurtosis": moments.paper_kurtosis,
        "massive_activations": float(len(activations.found())),
        "top_activation": max(largest),
        **{f"top_{axis}": float(getattr(highest, axis, "nan")) for axis in ("layer", "dim", "position")},
        "top_ratio": max(ratios),
        "massive_queries": float(sum(entry.tensor == "query" for entry in found)),
        "massive_keys": float(sum(entry.tensor == "key" for entry in found)),
        "top_query": _top(values, "query"),
        "top_key": _top(values, "key"),
    }
    if sinks.heads:
        summary["sink_share"] = len(sinks.found()) / sinks.heads
        summary["top_sink"] = max(float(strength.max()) for strength in strengths.values() if strength is not None)
    layers: dict[str, list[Any]] = {
        "inf_norm": [moments.norms[layer].value for layer in blocks],
        "kurtosis": [moments.tails[layer].value for layer in blocks],
        "top_activation": largest,
        "top_ratio": ratios,
        "sink": [strength.tolist() for strength in strengths.values() if strength is not None],
    }
    return Look(summary, layers)


def _top(values: MassiveValues, tensor: str) -> float:
    return max((float(values.ratio_HD(tensor, layer).max()) for layer in values.layers(tensor)), default=0.0)


class OutlierCallback(TrainerCallback):
    """A Trainer callback that looks at each evaluation: into Trainer's log (names begin with "outliers/"), from there
    into TensorBoard and whatever else reports, and, by layer, into outliers.jsonl.

    `Trainer(..., callbacks=[sf.training.OutlierCallback()])` is all that it takes. Every process of a distributed run
    looks at the same sequences, so that sharded models work too; the first reports.

    Args:
        source: test sequences come from here; or lists of token ids; the default is the first batch that Trainer
            evaluates, cut to one length.
        file: where to write one JSON line a look; None writes nothing.
        sequences: how many.
    """

    def __init__(
        self,
        source: SequenceSource | Sequence[Sequence[int]] | None = None,
        *,
        file: Path | None = None,
        sequences: int = SEQUENCES,
    ) -> None:
        self.encoded: list[list[int]] = []
        if source is not None and not isinstance(source, Sequence):
            rows = SequenceRows(source, "test", 0, sequences)
            self.encoded = [rows[index]["input_ids"].tolist() for index in range(len(rows))]
        elif source is not None:
            self.encoded = _alike([list(ids) for ids in source][:sequences])
        self.file, self.sequences = file, sequences
        self.looks: dict[int, Look] = {}
        self.lm: LM | None = None
        self._handler: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.lm = load(model)
        if self.file is not None and self.file.is_file():  # what was seen after the checkpoint will be seen again
            self.looks |= {step: seen for step, seen in looks_in(self.file).items() if step <= state.global_step}

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any = None, eval_dataloader: Any = None, **_: Any
    ) -> None:
        if not self.encoded:
            self.encoded = _first_of(eval_dataloader, self.sequences)
        lm = self.lm if self.lm is not None and self.lm.model is model else load(model)
        model.eval()
        with torch.no_grad():
            seen = look(lm, self.encoded)
        self.looks[state.global_step] = seen
        self._log(args, state, control, {PREFIX + name: value for name, value in seen.summary.items()})
        if self.file is not None and state.is_world_process_zero:
            lines = [
                json.dumps({"step": step, "summary": seen.summary, "layers": seen.layers})
                for step, seen in sorted(self.looks.items())
            ]
            write_text(self.file, "\n".join(lines) + "\n")

    def _log(self, args: Any, state: Any, control: Any, logs: dict[str, float]) -> None:
        """As `Trainer.log`: into its history and to all that reports. transformers gives a callback no way to its
        trainer, so the handler that calls it is looked for, once."""
        if self._handler is None or self not in self._handler.callbacks:
            every = (one for one in gc.get_objects() if type(one) is CallbackHandler)
            self._handler = next((one for one in every if self in one.callbacks), None)
        epoch = {} if state.epoch is None else {"epoch": state.epoch}
        state.log_history.append({**logs, **epoch, "step": state.global_step})
        if self._handler is not None:
            self._handler.on_log(args, state, control, {**logs, **epoch})


def _first_of(batches: Any, sequences: int) -> list[list[int]]:
    """Rows of the first batch of a loader, without padding. Raises StudfinderError if it holds no token ids."""
    batch = next(iter(batches), None) if batches is not None else None
    if batch is None or "input_ids" not in batch:
        raise StudfinderError("Trainer evaluates nothing that has input_ids", do="Give OutlierCallback token ids")
    rows = batch["input_ids"][:sequences]
    masks = batch.get("attention_mask")
    masks = torch.ones_like(rows) if masks is None else masks[:sequences]
    return _alike([ids[mask.bool()].tolist() for ids, mask in zip(rows, masks, strict=True)])


def _alike(rows: list[list[int]]) -> list[list[int]]:
    """Rows cut to the length of the shortest that is no stub. Raises StudfinderError if there is none."""
    longest = max(map(len, rows), default=0)
    kept = [ids for ids in rows if len(ids) >= max(2, longest // 2)]
    if not kept:
        raise StudfinderError("there is nothing to look at", expected="sequences of at least two tokens")
    return [ids[: min(map(len, kept))] for ids in kept]


def looks_in(file: Path) -> dict[int, Look]:
    """What was seen, by step, as `OutlierCallback` wrote it. Raises StudfinderError if a line is damaged."""
    looks = {}
    for number, kept in json_lines(file):
        try:
            looks[int(kept["step"])] = Look(dict(kept["summary"]), kept["layers"])
        except (KeyError, ValueError, TypeError, OverflowError, StudfinderError):
            raise StudfinderError(f"{file} line {number} is damaged", do="Begin again with --overwrite") from None
    return looks
