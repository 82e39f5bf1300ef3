"""What an engine said of prompts, beside what the weights say of the same tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from studfinder.errors import StudfinderError
from studfinder.measures.effects import batched
from studfinder.models import LM
from studfinder.passes import carry
from studfinder.records.diagnosis import EngineDiagnosis
from studfinder.texts import check_ids

LIMIT = 0.1
"""Nats: two right implementations in 16 bits differ by a tenth of it."""
_RUN = 8
"""Positions in a row, most of which must be off, for it to begin there."""


def engine_outputs(path: Path) -> tuple[list[list[int]], list[list[float]]]:
    """Prompts and the log-probability of each of their tokens but the first, from a file of JSON lines:
    {"token_ids": [1, 5, 9], "logprobs": [null, -2.1, -0.3]}.

    Raises:
        StudfinderError: the file cannot be read so.
    """
    ids: list[list[int]] = []
    said: list[list[float]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = f"{path} cannot be read ({type(error).__name__})"
        raise StudfinderError(why, expected="a file of JSON lines") from None
    for number, line in enumerate(filter(str.strip, lines), 1):
        try:
            plain = json.loads(line)
            tokens, logs = plain["token_ids"], plain["logprobs"]
            logs = logs[1:] if len(logs) == len(tokens) else logs
            own = [float("nan") if one is None else float(one) for one in logs]
            right = len(own) == len(tokens) - 1 > 0 and all(type(token) is int for token in tokens)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            right = False
        if not right:
            raise StudfinderError(
                f"line {number} of {path} is not a prompt with its log-probabilities",
                expected='{"token_ids": [1, 5, 9], "logprobs": [null, -2.1, -0.3]}',
            )
        ids.append(tokens)
        said.append(own)
    if not ids:
        raise StudfinderError(f"{path} is empty", expected="a line for each prompt")
    return ids, said


def engine_beside(lm: LM, ids: Sequence[Sequence[int]], said: Sequence[Sequence[float]]) -> EngineDiagnosis:
    """How far an engine is from a model's own weights on the same tokens."""
    check_ids(lm, ids)
    off: dict[int, list[float]] = {}
    every: list[float] = []
    for prompt, own in _log_likelihoods(lm, ids):
        for position, (one, other) in enumerate(zip(own, said[prompt], strict=True), 1):
            if math.isfinite(other):
                off.setdefault(position, []).append(abs(one - other))
                every.append(abs(one - other))
    if not every:
        raise StudfinderError("the outputs hold no log-probability", expected="numbers")
    far = float(np.percentile(every, 95))
    return EngineDiagnosis(
        prompts=len(ids),
        tokens=len(every),
        off=float(np.median(every)),
        far=far,
        begins=None if far <= LIMIT else _begins(off),
        agrees=far <= LIMIT,
    )


def _begins(off: dict[int, list[float]]) -> int | None:
    wrong = [float(np.mean(off[position])) > LIMIT for position in sorted(off)]
    places = sorted(off)
    for place in range(len(wrong)):
        run = wrong[place : place + _RUN]
        if wrong[place] and sum(run) * 2 > len(run):
            return places[place]
    return None


def _log_likelihoods(lm: LM, ids: Sequence[Sequence[int]]) -> Iterator[tuple[int, list[float]]]:
    from studfinder.measures.divergence import Clean

    for ends in carry(lm, batched(ids)):
        for row, (prompt, length) in enumerate(zip(ends.batch.prompts, ends.batch.lengths, strict=True)):
            clean = Clean(ends.pieces((row, slice(0, length - 1))), ends.batch.input_ids_BT[row, 1:length])
            yield prompt, (-clean.nll_T).tolist()
