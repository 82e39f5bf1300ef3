"""One forward pass per prompt feeds every detector."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch

from studfinder.detectors.detector import Detector
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.sites import BlockOutput, bidirectional, tapped
from studfinder.texts import Batch, batches, check_ids

_HELD_BYTES = 64 << 20
"""How much of the activations may wait to be read."""


def observe(
    lm: LM,
    encoded: Sequence[Sequence[int]],
    detectors: Iterable[Detector],
    *,
    batch_size: int = 1,
    progress: Callable[[int], Any] | None = None,
) -> bool:
    """Run the prompts through the model while the detectors read.

    Args:
        encoded: token ids of each prompt.
        batch_size: prompts a forward pass.
        progress: called with the number of prompts after each batch.

    Returns:
        whether every last-token logit was finite.

    Raises:
        StudfinderError: the blocks of this model see something else than the tokens of the text.
    """
    watching = list(detectors)
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        options["logits_to_keep"] = 1  # nobody reads the others, and the head is a fifth of a small model's work
    masked = bool(bidirectional(lm))
    pad = getattr(lm.model.config.get_text_config(decoder=True), "pad_token_id", None)
    if not isinstance(pad, int) or not 0 <= pad < lm.anatomy.vocabulary:  # -1 is a way to say that there is none
        pad = 0
    finite = True
    queue = _Queue(watching)
    check_ids(lm, encoded)

    def check(event: BlockOutput) -> None:
        places, given = event.hidden_BTC.shape[1], batch.input_ids_BT.shape[1]
        if places != given:
            raise StudfinderError(
                f"the blocks of {lm.anatomy.architecture} see {places} places where the text has {given} tokens: what "
                "is found there has no token",
                expected="one place a token: no patches of bytes, no prefix of the model's own",
            )

    read = {**queue.read, BlockOutput: [check, *queue.read.get(BlockOutput, ())]}
    with torch.no_grad(), tapped(lm, read=read):
        for batch in batches(encoded, batch_size, pad):
            for detector in watching:
                detector.begin(batch)
            try:
                output = _forward(lm, batch, options, masked)
                queue.flush()
            except _ChangedInPlace:
                # Nothing of this batch has been read yet: run it again, reading at once from now on.
                queue.at_once = True
                output = _forward(lm, batch, options, masked)
            finite &= bool(torch.isfinite(output.logits).all())
            if progress is not None:
                progress(len(batch.prompts))
    return finite


def _forward(lm: LM, batch: Batch, options: dict[str, Any], masked: bool) -> Any:
    # Padding is on the right, where a causal model's real tokens cannot see it; a bidirectional one needs a mask.
    if masked and batch.mask_BT is not None:
        options = {**options, "attention_mask": batch.mask_BT.long().to(lm.device)}
    return lm.model(input_ids=batch.input_ids_BT.to(lm.device), **options)


class _ChangedInPlace(Exception):
    """A model wrote into a tensor after showing it, before anything of the batch was read."""


class _Queue:
    """Events that wait to be read until the forward pass is over, or until they hold too much memory.

    Between two layers every cache is cold, and each small operation costs several times what it does when a detector
    takes all layers in one go: on a small model that was most of the cost of observing. PyTorch's version counters tell
    if a model wrote into a tensor in the meantime.
    """

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.at_once = False
        self.readers: dict[type, list[Callable[[list[Any]], None]]] = {}
        for detector in detectors:
            for event, reader in detector.readers.items():
                self.readers.setdefault(event, []).append(reader)
        self.read = {event: [self._take] for event in self.readers}
        self.waiting: list[tuple[Any, list[tuple[torch.Tensor, int]]]] = []
        self.held = 0
        self.flushed = False

    def _take(self, event: Any) -> None:
        if self.at_once:
            for reader in self.readers[type(event)]:
                reader([event])
            return
        tensors = [value for f in fields(event) if isinstance(value := getattr(event, f.name), torch.Tensor)]
        self.waiting.append((event, [(tensor, tensor._version) for tensor in tensors]))
        self.held += sum(tensor.nbytes for tensor in tensors)
        if self.held > _HELD_BYTES:
            self._read_waiting()
            self.flushed = True

    def flush(self) -> None:
        """Read what waits: the batch is over."""
        self._read_waiting()
        self.flushed = False

    def _read_waiting(self) -> None:
        waiting, self.waiting, self.held = self.waiting, [], 0
        if any(tensor._version != version for _, versions in waiting for tensor, version in versions):
            if not self.flushed:
                raise _ChangedInPlace
            raise StudfinderError(
                "this model writes into its activations, which could not be read in time",
                do="Scan it with fewer tokens at a time: shorter prompts, or --batch-size 1",
            )
        for kind, readers in self.readers.items():
            events = [event for event, _ in waiting if type(event) is kind]
            if events:
                for reader in readers:
                    reader(events)
