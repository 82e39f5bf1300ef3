"""Runs: the old result or the new one, one owner at a time, and nothing touched that is not the run's own."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from studfinder.errors import StudfinderError, WriteFailed
from studfinder.runs import first_process, key_of, kind_of, lock, record_file, run, run_of, write_bytes, write_text
from studfinder.runs.manifest import drawn, remove

SETTINGS = {"model": "m", "dtype": "float32", "lam": 5.0, "bos": None}


def opened(folder, settings=SETTINGS, verb="scan", **options):
    return run_of(verb, "m", settings, result="findings.json", out=folder, **options)


def made(folder, text="{}", settings=SETTINGS, more=(), verb="scan", **options):
    """A finished run."""
    one = opened(folder, settings, verb)
    with one.work(**options) as work:
        for name in more:
            (work.path / name).parent.mkdir(parents=True, exist_ok=True)
            (work.path / name).write_text(name)
        write_text(work.path / "findings.json", text)
    return one


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "table.md"
    write_text(path, "old")

    def half(temporary):
        temporary.write_text("ne")
        raise error

    with pytest.raises(WriteFailed if isinstance(error, OSError) else error):
        write_bytes(path, half)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["table.md"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_files_have_the_users_own_permissions(tmp_path):
    old = os.umask(0o077)
    try:
        write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(WriteFailed, match=r"nowhere.*cannot be written"):
        write_text(tmp_path / "nowhere" / "table.md", "x")


# --- identity and place ---------------------------------------------------------------------------------------------


def test_the_same_settings_find_the_same_folder_and_asking_writes_nothing(tmp_path):
    options = {"result": "findings.json", "root": tmp_path / "runs"}
    first = run_of("scan", "owner/model", SETTINGS, **options)
    again = run_of("scan", "owner/model", dict(reversed(SETTINGS.items())), **options)
    other = run_of("scan", "owner/model", {**SETTINGS, "lam": 4.0}, **options)
    assert first.path == again.path != other.path
    assert first.path == tmp_path / "runs" / "owner-model" / f"scan-{key_of(SETTINGS)}"
    assert first.finished() is None
    first.check(sources=[tmp_path])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../../etc", "/abs/olute", "a b:c", "./m", "..", ".", "", "-", "x" * 500, "a\0b"])
def test_the_default_folder_stays_below_its_root(tmp_path, name):
    path = run_of("scan", name, SETTINGS, result="findings.json", root=tmp_path).path
    assert path.resolve().parent.parent == tmp_path.resolve()
    with run_of("scan", name, SETTINGS, result="findings.json", root=tmp_path).work() as work:
        write_text(work.path / "findings.json", "{}")
    assert path.is_dir()


def test_a_run_is_finished_when_it_is_in_place(tmp_path):
    one = opened(tmp_path / "run")
    with one.work() as work:
        write_text(work.path / "findings.json", "{}")
        assert one.finished() is None
        assert not one.path.exists()
    assert one.finished() == tmp_path / "run"
    assert sorted(os.listdir(tmp_path)) == ["run"]
    (tmp_path / "run" / "findings.json").unlink()
    assert one.finished() is None


def test_another_run_is_refused_by_the_field_that_differs_and_overwritten_on_request(tmp_path):
    made(tmp_path / "run", "old", more=["model/a.bin", "figure-x.png"])
    before = tree(tmp_path)
    with pytest.raises(StudfinderError, match=r"lam was 5\.0 and is now 4\.0.*--overwrite"):
        opened(tmp_path / "run", {**SETTINGS, "lam": 4.0}).finished()
    with (
        pytest.raises(StudfinderError, match="verb was 'scan' and is now 'measure'"),
        opened(tmp_path / "run", verb="measure").work(),
    ):
        pass
    assert tree(tmp_path) == before
    made(tmp_path / "run", "new", {**SETTINGS, "lam": 4.0}, overwrite=True)
    assert sorted(tree(tmp_path)) == ["run/findings.json", "run/run.json"]
    assert (tmp_path / "run" / "findings.json").read_text() == "new"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "text", [None, "{", "[]", "{}", '{"verb": "scan"}', '{"format": "studfinder.run"}', "[" * 10**5]
)
def test_a_folder_of_other_files_is_never_touched(tmp_path, overwrite, text):
    place = tmp_path / "mine"
    place.mkdir()
    (place / "thesis.txt").write_text("years of work")
    if text is not None:
        (place / "run.json").write_text(text)
    before = tree(tmp_path)
    with pytest.raises(StudfinderError, match="not a studfinder run"), opened(place).work(overwrite=overwrite):
        pass
    assert tree(tmp_path) == before


def test_a_file_beside_the_results_stops_overwriting(tmp_path):
    made(tmp_path / "run")
    (tmp_path / "run" / "notes.md").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(StudfinderError, match=r"also holds notes\.md"), opened(tmp_path / "run").work(overwrite=True):
        pass
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["run.partial", "run.replaced", ".run.lock.d", ".run.old", ".run.partial"])
def test_folders_with_names_like_ours_that_are_not_ours_are_never_touched(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("years of work")
    made(tmp_path / "other")  # and not by a run of another name either
    if name == "run.partial":
        with pytest.raises(StudfinderError, match="in the way"):
            made(tmp_path / "run")
    else:
        made(tmp_path / "run")
        made(tmp_path / "run", overwrite=True)
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


def test_a_manifest_that_lists_files_outside_is_nobodys(tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("x")
    for name in ("../victim.txt", str(victim), "a/../../victim.txt"):
        folder = tmp_path / "run"
        made(folder)
        manifest = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps({**manifest, "files": [name]}))
        with pytest.raises(StudfinderError), opened(folder).work(overwrite=True):
            pass
        assert victim.exists()
        (folder / "run.json").write_text(json.dumps(manifest))
        remove(folder)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(StudfinderError, match="is a file; expected a folder"):
            opened(tmp_path / name).finished()
    with pytest.raises(StudfinderError, match="cannot be written"), opened(tmp_path / "file" / "below").work():
        pass


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("out", "source", "refused"),
    [("m", "m", True), ("m", "m/checkpoint-100", True), ("m/out", "m", True), ("m2", "m", False), ("x/m", "m", False)],
)
def test_source_and_target_never_overlap(tmp_path, out, source, refused, overwrite):
    (tmp_path / source).mkdir(parents=True)
    (tmp_path / source / "model.safetensors").write_text("weights")
    before = tree(tmp_path)
    if refused:
        with (
            pytest.raises(StudfinderError, match="overlaps"),
            opened(tmp_path / out).work(overwrite=overwrite, sources=[None, tmp_path / source]),
        ):
            pass
        assert tree(tmp_path) == before
    else:
        made(tmp_path / out, sources=[tmp_path / source], overwrite=overwrite)


# --- working --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, StudfinderError("x"), SystemExit])
@pytest.mark.parametrize("there", ["nothing", "empty", "old"])
def test_a_run_that_fails_before_its_first_step_leaves_nothing(tmp_path, error, there):
    place = tmp_path / "a" / "b" / "run"
    if there == "empty":
        place.mkdir(parents=True)
    if there == "old":
        made(place, "old")
    before = sorted(tmp_path.rglob("*"))
    kind = error if isinstance(error, type) else type(error)
    with pytest.raises(kind), opened(place).work(overwrite=True) as work:
        (work.path / "half.txt").write_text("x")
        raise error
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_run_goes_on_from_its_steps_and_overwrite_begins_anew(tmp_path):
    place, calls = tmp_path / "run", []

    def attempt(stop, overwrite=False, settings=SETTINGS):
        with opened(place, settings).work(overwrite=overwrite) as work:
            value = work.steps.once("x", lambda: calls.append(1) or len(calls))
            if stop:
                raise KeyboardInterrupt
            write_text(work.path / "findings.json", str(value))

    for overwrite in (False, True):  # the same, when a result is there already
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            attempt(True, overwrite)
        attempt(False, overwrite)
        assert (len(calls), (place / "findings.json").read_text()) == (1, "1")
    calls.clear()
    attempt(False, overwrite=True)  # with the same settings, not with the values of before
    assert len(calls) == 1
    with pytest.raises(KeyboardInterrupt):
        attempt(True, overwrite=True)
    attempt(False, True, {**SETTINGS, "lam": 1.0})  # nothing of another run's steps
    assert len(calls) == 3


def test_half_written_files_of_a_killed_process_never_ship(tmp_path):
    one = opened(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), one.work() as work:
        work.keep()
        (work.path / ".model.safetensors.abc.studfinder-tmp").write_text("half")
        raise KeyboardInterrupt
    made(tmp_path / "run")
    assert sorted(tree(tmp_path)) == ["run/findings.json", "run/run.json"]


def test_without_an_exchange_of_folders_it_is_done_in_two_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "exchange", lambda one, other: False)
    made(tmp_path / "run", "old", more=["figure-a.png"])
    made(tmp_path / "run", "new", overwrite=True)
    assert (tmp_path / "run" / "findings.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["run"]
    (tmp_path / "run").rename(tmp_path / "run.replaced")  # killed between the two
    made(tmp_path / "run", "newer", overwrite=True)
    assert (tmp_path / "run" / "findings.json").read_text() == "newer"
    assert os.listdir(tmp_path) == ["run"]


def test_drawing_again_removes_only_the_runs_own_figures(tmp_path):
    made(tmp_path / "run", more=["figure-old.png", "table-2.csv", "figure-kept.svg"])
    (tmp_path / "run" / "figure-mine.png").write_text("drawn by somebody")
    write_text(tmp_path / "run" / "figure-new.png", "x")
    drawn(tmp_path / "run", ["figure-new.png", "figure-kept.svg"])
    here = sorted(os.listdir(tmp_path / "run"))
    assert here == ["figure-kept.svg", "figure-mine.png", "figure-new.png", "findings.json", "run.json"]
    with pytest.raises(StudfinderError, match=r"figure-mine\.png"):
        opened(tmp_path / "run").check(overwrite=True)


# --- killed at every file operation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("fallback", [False, True])
def test_killed_before_each_file_operation_it_is_the_old_or_the_new(tmp_path, overwrite, fallback, monkeypatch):
    """In a forked child that ends without a word before its n-th file operation, for every n."""
    if fallback:
        monkeypatch.setattr(run, "exchange", lambda one, other: False)
    seen = set()
    for number in range(200):
        place = tmp_path / str(number) / "run"
        if overwrite:
            made(place, "old", more=["figure-a.png", "model/b.bin"])
        child = os.fork()
        if child == 0:
            count = iter(range(10**9))

            def hook(event, _arguments, count=count, number=number):
                if event in _OPERATIONS and next(count) == number:
                    os._exit(9)

            sys.addaudithook(hook)
            made(place, "new", more=["figure-a.png"], overwrite=overwrite)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        one = opened(place)
        found = one.finished() if one.path.exists() else None
        seen.add(None if found is None else (found / "findings.json").read_text())
        assert found is not None or not overwrite or fallback
        made(place, "newest", overwrite=True)  # never stuck
        assert (place / "findings.json").read_text() == "newest"
        assert os.listdir(place.parent) == ["run"], os.listdir(place.parent)
        if code == 0:
            break
    else:
        pytest.fail("it never came to its end")
    assert number > 10
    assert seen >= ({"old", "new"} if overwrite else {None, "new"})


_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.utime"} | {
    "tempfile.mkstemp",
    "fcntl.flock",
    "ctypes.dlsym",
}


# --- one owner ------------------------------------------------------------------------------------------------------


def test_the_second_is_told_who_is_working(tmp_path):
    place = tmp_path / "run"
    with opened(place).work() as work:
        with pytest.raises(StudfinderError, match=rf"process {os.getpid()} on .* is working"), opened(place).work():
            pass
        with pytest.raises(StudfinderError, match="is working"), opened(place, verb="x").work(overwrite=True):
            pass
        write_text(work.path / "findings.json", "{}")
    assert opened(place).finished()
    assert os.listdir(tmp_path) == ["run"]


def test_of_many_processes_one_works_at_a_time(tmp_path):
    """Forty that start together; each writes both halves of a result, and no result is ever mixed."""
    place, children = tmp_path / "run", []
    for number in range(40):
        child = os.fork()
        if child == 0:
            code = 0
            try:
                with opened(place).work(overwrite=True) as work:
                    (work.path / "one").write_text(str(number))
                    time.sleep(random.Random(number).random() / 50)
                    (work.path / "two").write_text(str(number))
                    write_text(work.path / "findings.json", str(number))
            except StudfinderError:
                code = 3
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert set(codes) == {0, 3}
    assert len({(place / name).read_text() for name in ("one", "two", "findings.json")}) == 1
    assert os.listdir(tmp_path) == ["run"]


def test_a_dead_owners_lock_is_taken_over_and_a_live_ones_is_not(tmp_path):
    path = tmp_path / ".run.lock"
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    me = {"host": socket.gethostname(), "pid": os.getpid(), "born": lock._born(os.getpid()), "since": "now"}
    other = {**me, "host": "elsewhere"}
    for owner, silent, taken in [
        ({**me, "pid": dead.pid}, False, True),
        ({**me, "born": "1"}, False, True),  # its number is used again
        (me, True, False),
        (other, False, False),
        (other, True, True),
        ({}, False, True),
        ([], False, True),
    ]:
        path.write_text(json.dumps(owner))
        if silent:
            os.utime(path, (time.time() - 2 * lock.SILENT,) * 2)
        if taken:
            made(tmp_path / "run", overwrite=True)
            assert not path.exists()
        else:
            with pytest.raises(StudfinderError, match="is working"):
                made(tmp_path / "run", overwrite=True)


def test_who_lost_the_place_while_asleep_replaces_nothing(tmp_path):
    made(tmp_path / "run", "old")
    with pytest.raises(WriteFailed, match="taken over"), opened(tmp_path / "run").work(overwrite=True) as work:
        write_text(work.path / "findings.json", "late")
        lock_file = tmp_path / ".run.lock"
        lock_file.write_text(json.dumps({**json.loads(lock_file.read_text()), "pid": 1}))
    assert (tmp_path / "run" / "findings.json").read_text() == "old"


@pytest.mark.parametrize("given", [{"RANK": "1"}, {"RANK": "1", "WORLD_SIZE": "2"}, {"RANK": "x"}])
def test_a_rank_alone_in_the_environment_is_no_launch(monkeypatch, given):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert first_process()
    launch = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    assert not first_process()


# --- what the version before wrote ----------------------------------------------------------------------------------


def earlier(folder: Path, *, finished: bool = True, settings=SETTINGS) -> Path:
    folder.mkdir(parents=True)
    ledger = {"verb": "scan", "key": key_of(settings), "settings": settings}
    (folder / "run.json").write_text(json.dumps(ledger))
    (folder / "items.jsonl").write_text('{"key": "x", "value": 1}\n')
    if finished:
        (folder / "findings.json").write_text("{}")
    return folder


def test_finished_runs_of_the_version_before_are_found_and_read(tmp_path):
    old = earlier(tmp_path / "m" / f"scan-{key_of(SETTINGS)}")
    now = {**SETTINGS, "device": "cpu", "scoring": 1}
    one = run_of("scan", "m", now, result="findings.json", root=tmp_path, before=SETTINGS)
    assert one.path != old
    assert one.finished() == old
    assert run_of("scan", "m", {**now, "lam": 4.0}, result="findings.json", root=tmp_path).finished() is None
    given = opened(earlier(tmp_path / "given"), now)
    assert given.finished() == tmp_path / "given"


def test_unfinished_runs_of_the_version_before_are_not_gone_on_with(tmp_path):
    place = earlier(tmp_path / "run", finished=False)
    with opened(place).work() as work:
        assert work.steps.values == {}
        write_text(work.path / "findings.json", "new")
    assert sorted(tree(tmp_path)) == ["run/findings.json", "run/run.json"]
    mine = earlier(tmp_path / "mine")
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(StudfinderError, match=r"thesis\.txt"), opened(mine).work(overwrite=True):
        pass
    assert (mine / "findings.json").exists()


def test_records_are_found_in_a_folder_or_as_a_file_and_know_their_kind(tmp_path):
    with pytest.raises(StudfinderError, match=r"holds no findings\.json"):
        record_file(tmp_path, "findings.json")
    with pytest.raises(StudfinderError, match="holds no record"):
        kind_of(tmp_path)
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "run").work() as work:
        work.keep()
        raise KeyboardInterrupt
    with pytest.raises(StudfinderError, match="did not finish"):
        record_file(tmp_path / "run", "findings.json")
    made(tmp_path / "run", '{"format": "studfinder.findings"}')
    path = tmp_path / "run" / "findings.json"
    assert record_file(path, "findings.json") == record_file(path.parent, "findings.json") == path
    assert kind_of(path) == kind_of(path.parent) == ("studfinder.findings", path)
    path.write_text('{"format": "x"}')
    with pytest.raises(StudfinderError, match="format 'x'"):
        kind_of(path)
