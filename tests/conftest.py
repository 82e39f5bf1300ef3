"""What every test shares: one thread a worker, quiet libraries, a cache of its own, and where the large things are."""

from __future__ import annotations

import os
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import transformers

import axes

axes.install()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a background job of a shell; some tests interrupt themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache folder, so that a unit test neither reads nor writes the user's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("STUDFINDER_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def gradients():
    """A signal that interrupts torch's own `no_grad` leaves gradients off for whatever comes after it."""
    yield
    torch.set_grad_enabled(True)


@pytest.fixture
def whole_scans() -> None:
    """For tests of what a scan proves: with the census that it takes by default."""


@pytest.fixture(autouse=True)
def scans_without_a_census(request, monkeypatch) -> None:
    """It takes five times as long as the rest of a small scan."""
    if "whole_scans" not in request.fixturenames:
        monkeypatch.setattr("studfinder.verbs.scan._has_gradients", lambda _: False)


@pytest.fixture
def true_figures() -> None:
    """For tests of what is in the files of figures."""


@pytest.fixture(autouse=True)
def figures_in_pages_alone(request, monkeypatch) -> None:
    """Drawing is half of a small run: figures are drawn for the page, but not again for files of their own."""
    if "true_figures" not in request.fixturenames:
        for module in ("report", "results"):
            for name in ("rendered", "sharing_card"):
                monkeypatch.setattr(f"studfinder.verbs.{module}.{name}", lambda *_, **__: b"a figure")


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Figures take most of a small run: files of the same names are written in their place."""
    from studfinder.verbs import report, results

    for module in (report, results):
        monkeypatch.setattr(module, "rendered", lambda *_, **__: b"a figure")
        monkeypatch.setattr(module, "sharing_card", lambda *_, **__: b"a figure")
    monkeypatch.setattr(report.figures, "draw", lambda *_, **__: None)
    monkeypatch.setattr(report, "page", lambda *_, **__: "a page")
    monkeypatch.setattr(results, "html_sheet", lambda *_, **__: "a page")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of evaluation texts."""
    given = os.environ.get("STUDFINDER_DATA")
    if not given:
        pytest.skip("STUDFINDER_DATA is not set")
    if not Path(given).is_dir():
        pytest.skip(f"STUDFINDER_DATA is {given}, which is no folder")
    return Path(given)


@pytest.fixture(scope="session")
def small_models() -> Path:
    """The folder of checkpoints that come beside the evaluation texts."""
    given = os.environ.get("STUDFINDER_MODELS")
    data = os.environ.get("STUDFINDER_DATA")
    folder = Path(given) if given else Path(data).parent / "models" if data else None
    if folder is None or not folder.is_dir():
        pytest.skip("there is no folder of checkpoints: set STUDFINDER_MODELS")
    return folder


@pytest.fixture
def mistake(capsys):
    """Runs the command line and returns the one line it must say."""

    def said(*arguments: object) -> str:
        from studfinder.cli.app import run_cli

        capsys.readouterr()
        code = run_cli([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert code == 2, printed.err
        assert printed.out == ""
        assert printed.err.count("\n") == 1, printed.err
        assert printed.err.startswith("studfinder: error: ")
        assert "Traceback" not in printed.err
        return printed.err

    return said


@pytest.fixture
def fresh_process() -> None:
    """For tests that verify checkpoints as a user's command does: each in a process of its own."""


@pytest.fixture(autouse=True)
def reloaded_here(request, monkeypatch) -> None:
    """Checkpoints are verified by the same function, but not each in a process of its own: that costs seconds."""
    if "fresh_process" in request.fixturenames:
        return

    def here(folder, ask):
        from studfinder.quantizers import plain, verify

        try:
            return plain.reload(str(folder), dict(ask))
        except Exception as error:
            raise verify.cannot_run(error) from error

    monkeypatch.setattr("studfinder.quantizers.verify.fresh", here)
