"""Law 2 under signals at any moment: nestings of all changes at random, and every step of one edit."""

from __future__ import annotations

import random
import signal
import threading
from functools import partial

import pytest

import patching
from patching import (
    DOWN,
    at_step,
    by_thread,
    by_timer,
    difference,
    interrupted,
    models,
    nest,
    ready,
    traces,
)
from studfinder.edits import edited, entry, zero
from studfinder.models import LM
from studfinder.patches import Journal, interrupts, journal
from tiny import tiny

# A signal may come while the garbage collector ends a context: Python can only print what its handler raises there.
UNRAISABLE = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def tries(count: int, seed: int) -> tuple[list[str], int]:
    """Nest changes at random and interrupt them by real signals; what was left behind, and how many were ended."""
    chance, ended = random.Random(seed), 0
    with ready():
        clean = [(lm, traces(lm)) for lm in models()]
        for number in range(count):
            lm, before = clean[number % len(clean)]
            run = partial(nest, lm, chance.randrange(10**6))
            which = chance.choice([signal.SIGINT, signal.SIGTERM])
            if number % 2:  # at an instruction, drawn from those of the same run
                send, counted = at_step(which, 0)
                interrupted(run, send)
                send, _ = at_step(which, chance.randint(1, counted[0]))
            else:
                delay = chance.uniform(1e-5, 0.06)
                send = chance.choice([by_timer(delay), by_thread(which, delay)])
            error = interrupted(run, send)
            ended += error is not None
            left = difference(before, traces(lm))
            if left or journal._OPEN or journal._SHARED:
                return [f"try {number}, {run.args[1]}: {error!r}", *left], ended
    return [], ended


@UNRAISABLE
def test_signals_in_random_nestings_change_no_bit() -> None:
    left, ended = tries(40, seed=1)
    assert left == []
    assert ended >= 20


@UNRAISABLE
@pytest.mark.deep
def test_signals_in_a_thousand_random_nestings_change_no_bit() -> None:
    left, ended = tries(1000, seed=2)
    assert left == []
    assert ended >= 500


def edit_once(lm: LM) -> None:
    with edited(lm, zero(entry(lm, 1, 3, 4))):
        pass


edit_once.__code__ = edit_once.__code__.replace(co_filename=patching.__file__)  # so that its steps are seen


def left_at_some_step(lm: LM) -> bool:
    """Whether a signal at some step leaves a bit behind, from the last step on."""
    weight, tensor = lm.model.get_parameter(DOWN)[3, 4].item(), lm.model.get_parameter(DOWN)
    send, counted = at_step(signal.SIGINT, 0)
    interrupted(partial(edit_once, lm), send)
    for step in range(counted[0], 0, -1):
        error = interrupted(partial(edit_once, lm), at_step(signal.SIGINT, step)[0])
        if tensor[3, 4].item() != weight:
            return error is not None
    return False


@UNRAISABLE
@pytest.mark.parametrize("taken", ["nobody in front of the handlers", "steps are not held together"])
def test_without_the_shield_a_signal_leaves_something(monkeypatch: pytest.MonkeyPatch, taken: str) -> None:
    """The check of the check."""
    monkeypatch.setattr(interrupts, "_LOCK", threading.RLock())  # may never be released
    if taken == "nobody in front of the handlers":
        monkeypatch.setattr(interrupts, "_guard", lambda: None)
    else:
        monkeypatch.setattr(interrupts._Held, "__enter__", lambda _self: None)
        monkeypatch.setattr(interrupts._Held, "__exit__", lambda _self, *_: None)
    try:
        with ready():
            assert left_at_some_step(tiny("llama"))
    finally:
        interrupts.held.depth = 0
        for left in (interrupts.held.waiting, interrupts.held.open, journal._OPEN):
            left.clear()


@UNRAISABLE
def test_at_no_step_of_an_edit_does_a_signal_leave_a_bit() -> None:
    with ready():
        assert not left_at_some_step(tiny("llama"))


def test_a_handler_that_raises_nothing_disturbs_nothing() -> None:
    lm, seen = tiny("llama"), []
    with ready():
        signal.signal(signal.SIGINT, lambda *_: seen.append(1))
        with edited(lm, zero(entry(lm, 1, 3, 4))):
            signal.raise_signal(signal.SIGINT)
            assert lm.model.get_parameter(DOWN)[3, 4] == 0
        assert seen == [1]


def test_signals_in_a_held_step_come_after_it_each_once() -> None:
    seen = []
    with ready(), pytest.raises(KeyboardInterrupt), Journal():
        signal.signal(signal.SIGTERM, lambda *_: seen.append("term"))
        with pytest.raises(KeyboardInterrupt), interrupts.held:
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            seen.append("held")
    assert seen == ["held", "term"]
