"""Runs: files are the old or the new, and a folder belongs to one run."""

from __future__ import annotations

import errno
import os

import pytest

from studfinder.errors import StudfinderError
from studfinder.runs import find_findings, key_of, open_run, write_bytes, write_text

SETTINGS = {"model": "m", "dtype": "float32", "lam": 5.0, "bos": None}


def opened(folder, settings=SETTINGS, verb="scan", **options):
    return open_run(verb, "m", settings, result="findings.json", out=folder, **options)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "table.md"
    write_text(path, "old")

    def half(temporary):
        temporary.write_text("ne")
        raise error

    with pytest.raises(StudfinderError if isinstance(error, OSError) else error):
        write_bytes(path, half)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.md"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(StudfinderError, match=r"nowhere.*cannot be written"):
        write_text(tmp_path / "nowhere" / "table.md", "x")


def test_the_same_settings_find_the_same_folder(tmp_path):
    first = open_run("scan", "owner/model", SETTINGS, result="findings.json", root=tmp_path)
    again = open_run("scan", "owner/model", dict(reversed(SETTINGS.items())), result="findings.json", root=tmp_path)
    other = open_run("scan", "owner/model", {**SETTINGS, "lam": 4.0}, result="findings.json", root=tmp_path)
    assert first.path == again.path != other.path
    assert first.path.parent == tmp_path / "owner-model"
    assert first.path.name == f"scan-{key_of(SETTINGS)}"


@pytest.mark.parametrize("name", ["../../etc", "/abs/olute", "a b:c", "./m"])
def test_the_default_folder_stays_below_its_root(tmp_path, name):
    path = open_run("scan", name, SETTINGS, result="findings.json", root=tmp_path).path
    assert path.resolve().parent.parent == tmp_path.resolve()


def test_a_run_is_complete_when_its_result_is_there(tmp_path):
    run = opened(tmp_path / "run")
    assert not run.complete
    write_text(run.path / "findings.json", "{}")
    assert run.complete
    assert opened(tmp_path / "run").complete  # reopening keeps what is there


def test_another_run_is_refused_by_the_field_that_differs_and_overwritten_on_request(tmp_path):
    opened(tmp_path / "run")
    (tmp_path / "run" / "findings.json").write_text("{}")
    with pytest.raises(StudfinderError, match=r"lam was 5\.0 and is now 4\.0.*--overwrite"):
        opened(tmp_path / "run", {**SETTINGS, "lam": 4.0})
    with pytest.raises(StudfinderError, match="verb was 'scan' and is now 'measure'"):
        opened(tmp_path / "run", verb="measure")
    assert (tmp_path / "run" / "findings.json").exists()
    assert not opened(tmp_path / "run", {**SETTINGS, "lam": 4.0}, overwrite=True).complete


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StudfinderError, match="not a studfinder run"):
        opened(tmp_path, overwrite=overwrite)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StudfinderError, match="is a file; expected a folder"):
        opened(tmp_path / "file")
    with pytest.raises(StudfinderError, match="cannot be made"):
        opened(tmp_path / "file" / "below")


def test_what_a_killed_process_left_is_taken_over(tmp_path):
    (tmp_path / ".run.json.abc").write_text("{")
    assert opened(tmp_path).path == tmp_path


def test_a_damaged_ledger_is_another_run(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(StudfinderError, match="holds another run"):
        opened(tmp_path)


@pytest.mark.parametrize("mine", [False, True])
def test_a_run_that_fails_at_once_leaves_nothing_of_its_own(tmp_path, mine):
    folder = tmp_path / "run"
    if mine:
        folder.mkdir()
    with pytest.raises(ValueError), opened(folder).held():
        raise ValueError
    assert folder.exists() == mine
    assert not mine or not list(folder.iterdir())


def test_findings_are_found_in_a_folder_or_as_a_file(tmp_path):
    with pytest.raises(StudfinderError, match=r"holds no findings\.json"):
        find_findings(tmp_path)
    opened(tmp_path / "run")
    with pytest.raises(StudfinderError, match="did not finish"):
        find_findings(tmp_path / "run")
    path = tmp_path / "run" / "findings.json"
    path.write_text("{}")
    assert find_findings(path) == find_findings(path.parent) == path
