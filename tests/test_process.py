"""The command line as a process: terminals of other encodings, closed streams, readers that go away, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from checkpoints import checkpoint

ENCODINGS = ("latin-1", "ascii", "cp1252", "cp437", "koi8-r", "iso8859-5", "utf-16", "utf-8")


def process(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A line of a shell, in which $S is the command line."""
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        env={**os.environ, "S": f"{sys.executable} -m studfinder", **environment},
        check=False,
    )


@pytest.mark.parametrize(
    "encoding", ["latin-1", "ascii", *(pytest.param(e, marks=pytest.mark.deep) for e in ENCODINGS[2:])]
)
def test_terminals_of_other_encodings(encoding):
    done = process("$S ls ./中文é😀$'\\xff'; $S ls models", PYTHONIOENCODING=encoding)
    said = done.stderr.decode(encoding)
    assert said.count("\n") == 1, said
    assert said.startswith("studfinder: error: there")
    assert done.returncode == 0  # of ls
    assert "SmolLM2" in done.stdout.decode(encoding)


@pytest.mark.parametrize("text", ["é", "中文", "😀", "𝟘", "a\udcffb", "\ud800", "\u202e", "é中😀", "\x7f", "\xa0"])
def test_what_an_encoding_lacks_stays_json(text):
    import codecs

    from studfinder.cli.process import _as_json

    codecs.register_error("studfinder", _as_json)
    for encoding in ENCODINGS:
        line = json.dumps({"a": text}, ensure_ascii=False).encode(encoding, "studfinder").decode(encoding)
        assert json.loads(line)["a"].encode("utf-16", "surrogatepass") == text.encode("utf-16", "surrogatepass")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("$S ls models >&-", 0),
        ("$S ls models >&- 2>&-", 0),
        ("$S ls models <&- >/dev/null", 0),
        ("$S ls nonsense 2>&-", 2),
        ("$S ls detectors | true; exit ${PIPESTATUS[0]}", 0),
        ("$S ls models >/dev/full", 2),
    ],
)
def test_streams_that_are_closed_or_full(command, code):
    done = process(command)
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr
    assert done.stderr.count(b"\n") == (1 if "full" in command else 0)


@pytest.mark.deep
def test_ctrl_c_at_any_moment(tmp_path):
    """From 60 ms on: before that the interpreter itself has not started, and none of our code runs."""
    model = checkpoint(tmp_path / "model")
    command = [sys.executable, "-m", "studfinder", "scan", str(model), "--prompt", "w3 w4 w5", "--out"]
    for number in range(60):
        moment = 0.06 + 0.01 * number if number < 30 else 0.36 + 0.15 * (number - 30)
        place = tmp_path / f"out{number}"
        running = subprocess.Popen(
            [*command, str(place)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        time.sleep(moment)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
        if running.returncode == 0:  # it was done
            continue
        # Python ends by the signal itself where it went through compiled text (exec): a shell calls both 130.
        assert running.returncode in (130, -signal.SIGINT), said
        assert said.decode() == "studfinder: interrupted; nothing that existed was lost\n", moment
        assert not place.exists()
