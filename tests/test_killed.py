"""A scan that is killed at any moment leaves a run folder that is absent, resumable or complete, never wrong."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from proving import provable
from studfinder.records import Findings, read_record
from studfinder.verbs.scan import plan_scan, run_scan


def _scan(out: Path) -> None:
    lm, _ = provable("llama", planted=True)
    run_scan(plan_scan(lm), out=out)


@pytest.mark.real  # fifty scans take their time
@pytest.mark.timeout(600)
def test_fifty_kills(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    _scan(tmp_path / "whole")
    reference = read_record(Findings, tmp_path / "whole" / "findings.json")
    started = time.monotonic()
    process = context.Process(target=_scan, args=(tmp_path / "timing",))
    process.start()
    process.join()
    whole = time.monotonic() - started
    chance, complete, partial = random.Random(0), 0, 0
    for number in range(50):
        out = tmp_path / f"run{number % 5}"  # folders are met again: what a kill left must be usable
        process = context.Process(target=_scan, args=(out,))
        process.start()
        time.sleep(chance.uniform(0, 1.2 * whole))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        result = out / "findings.json"
        if not result.exists():
            partial += out.exists()
            continue
        complete += 1
        assert read_record(Findings, result).super_weights == reference.super_weights
    assert complete > 0
    assert partial > 0
    for number in range(5):  # and every one of them can be finished
        _scan(tmp_path / f"run{number}")
        found = read_record(Findings, tmp_path / f"run{number}" / "findings.json")
        assert found.super_weights == reference.super_weights
