"""One forward pass feeds every detector."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any

import torch

from studfinder.detectors.detector import Detector
from studfinder.errors import StudfinderError
from studfinder.models import LM
from studfinder.passes import Blocks, State, in_parts
from studfinder.sites import BlockOutput, PartOutput, bidirectional, tapped
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
        progress: called with how many more prompts are done; in parts of one, added up over blocks.

    Returns:
        whether every last-token logit was finite.

    Raises:
        StudfinderError: the blocks of this model see something else than the tokens of the text.
    """
    watching = list(detectors)
    pad = getattr(lm.model.config.get_text_config(decoder=True), "pad_token_id", None)
    if not isinstance(pad, int) or not 0 <= pad < lm.anatomy.vocabulary:  # -1 is a way to say that there is none
        pad = 0
    check_ids(lm, encoded)
    queue = _Queue(lm, watching)
    every, finite = list(batches(encoded, batch_size, pad)), True
    # Some parts are outside the blocks: only the model's own pass shows them.
    run = _in_one_go if PartOutput in queue.readers else _by_block
    with torch.inference_mode(False), torch.no_grad():
        blocks = Blocks(lm)
        for part in in_parts(blocks, every):
            for batch in part:
                for detector in watching:
                    detector.begin(batch)
            finite &= run(blocks, part, queue, progress or (lambda prompts: None))
    return finite


_Progress = Callable[[int], Any]


def _by_block(blocks: Blocks, part: Sequence[Batch], queue: _Queue, progress: _Progress) -> bool:
    """All prompts through one block, then through the next: what a detector reads of a layer it reads of all."""
    lm, prompts, told = blocks.lm, sum(len(batch.prompts) for batch in part), 0
    with blocks.weights.outside():
        given = [blocks.begin(batch, masked=bool(bidirectional(lm)) or None) for batch in part]
    states: list[State] = [()] * len(part)
    with tapped(lm, read=queue.read):
        for step in range(len(blocks.layers)):

            def run(number: int, step: int = step, states: list[State] = states) -> State:
                return blocks.run(step, given[number], states[number])

            with blocks.weights.at_hand(step):
                states = queue.reading(part, run)
            done = prompts * (step + 1) // len(blocks.layers)
            if done > told:
                progress(done - told)
            told = done
    with blocks.weights.outside():
        ends = [blocks.last(*pair)[:, -1] for pair in zip(given, states, strict=True)]
        return all(bool(torch.isfinite(blocks.logits(end)).all()) for end in ends)


def _in_one_go(blocks: Blocks, part: Sequence[Batch], queue: _Queue, progress: _Progress) -> bool:
    """One pass of the model's own for each batch."""
    lm = blocks.lm
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(lm.model.forward).parameters:
        options["logits_to_keep"] = 1  # nobody reads the others, and the head is a fifth of a small model's work
    finite, ahead = True, bool(bidirectional(lm))
    with tapped(lm, read=queue.read):
        for batch in part:
            # Padding is on the right, where a causal model's real tokens cannot see it.
            mask = batch.mask_BT.long().to(lm.device) if ahead and batch.mask_BT is not None else None
            inputs = {"input_ids": batch.input_ids_BT.to(lm.device), "attention_mask": mask, **options}

            def run(_number: int, inputs: dict[str, Any] = inputs) -> Any:
                return lm.model(**inputs)

            (output,) = queue.reading([batch], run)
            finite &= bool(torch.isfinite(output.logits).all())
            progress(len(batch.prompts))
    return finite


class _ChangedInPlace(Exception):
    """A model wrote into a tensor after showing it, before anything was read."""


class _Queue:
    """Events that wait to be read until all batches are through, or until they hold too much memory.

    Between two matrix products every cache is cold, and each small operation costs several times what it does when a
    detector takes many batches in one go: on a small model that was most of the cost of observing. PyTorch's version
    counters tell if a model wrote into a tensor in the meantime.
    """

    def __init__(self, lm: LM, detectors: Sequence[Detector]) -> None:
        self.lm, self.at_once = lm, False
        self.readers: dict[type, list[Callable[[list[Any]], None]]] = {}
        for detector in detectors:
            for event, reader in detector.readers.items():
                self.readers.setdefault(event, []).append(reader)
        self.read = {event: [self._take] for event in {BlockOutput: None, **self.readers}}
        self.waiting: list[tuple[Batch, Any, list[tuple[torch.Tensor, int]]]] = []
        self.held = 0
        self.flushed = False

    def reading(self, part: Sequence[Batch], run: Callable[[int], Any]) -> list[Any]:
        """What `run` gives for each batch, by its number, with what it shows read in the end."""
        try:
            found = self._run(part, run)
            self._read_waiting()
            self.flushed = False
            return found
        except _ChangedInPlace:
            # Nothing has been read yet: run it again, reading at once from now on.
            self.at_once = True
            return self._run(part, run)

    def _run(self, part: Sequence[Batch], run: Callable[[int], Any]) -> list[Any]:
        found = []
        for number, batch in enumerate(part):
            self.batch = batch
            found.append(run(number))
        return found

    def _take(self, event: Any) -> None:
        if isinstance(event, BlockOutput):
            self._check(event)
        if self.at_once:
            for reader in self.readers.get(type(event), ()):
                reader([(self.batch, event)])
            return
        tensors = [value for f in fields(event) if isinstance(value := getattr(event, f.name), torch.Tensor)]
        self.waiting.append((self.batch, event, [(tensor, tensor._version) for tensor in tensors]))
        self.held += sum(tensor.nbytes for tensor in tensors)
        if self.held > _HELD_BYTES:
            self._read_waiting()
            self.flushed = True

    def _check(self, event: BlockOutput) -> None:
        places, given = event.hidden_BTC.shape[1], self.batch.input_ids_BT.shape[1]
        if places != given:
            raise StudfinderError(
                f"the blocks of {self.lm.anatomy.architecture} see {places} places where the text has {given} tokens: "
                "what is found there has no token",
                expected="one place a token: no patches of bytes, no prefix of the model's own",
            )

    def _read_waiting(self) -> None:
        waiting, self.waiting, self.held = self.waiting, [], 0
        if any(tensor._version != version for *_, versions in waiting for tensor, version in versions):
            if not self.flushed:
                raise _ChangedInPlace
            raise StudfinderError(
                "this model writes into its activations, which could not be read in time",
                do="Scan it with fewer tokens at a time: shorter prompts, or --batch-size 1",
            )
        for kind, readers in self.readers.items():
            seen = [(batch, event) for batch, event, _ in waiting if type(event) is kind]
            if seen:
                for reader in readers:
                    reader(seen)
