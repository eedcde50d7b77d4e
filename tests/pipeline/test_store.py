"""Builds on disk: what a crash leaves, what other processes do, what does not belong there."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import rxbus
from rxbus import EventBus
from rxbus.pipeline import _disk, _files
from rxbus.pipeline._disk import DiskStore
from rxbus.pipeline._results import Result, StepId
from rxbus.pipeline._state import State
from rxbus.pipeline._structure import StepStructure
from rxbus.pipeline.errors import DamagedState, UnknownBuild
from rxbus.pipeline.topics import (
    PIPELINE_FINISHED,
    STEP_RESULT_UPDATE_CONSUMED,
    STEP_RESULT_UPDATED,
    PipelineFinished,
    StepResultUpdated,
)
from tests.processes import rest_of

PATIENCE = 20.0
KILLS = 20
UPDATES = 12  # in a build of the process that is killed

PRELUDE = """
import os, sys
from pathlib import Path
from rxbus import EventBus
from rxbus.pipeline._state import State
from rxbus.pipeline.topics import *

bus, home = EventBus(), Path(sys.argv[1])
state = State(bus, home, int(sys.argv[2]) if len(sys.argv) > 2 else None)

def update(number, step_id, **result):
    bus.publish(STEP_RESULT_UPDATED, StepResultUpdated(number, step_id, result))

def finish(number):
    bus.publish(PIPELINE_FINISHED, PipelineFinished(number, "success", {}))

def say(*words):
    print(*words, flush=True)
"""

STRUCTURE = (StepStructure((1,), "compile", "step"),)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "builds"


@pytest.fixture
def open_state(home: Path) -> Iterator[Callable[..., State]]:
    """Opens a state component on the same home, each with a bus of its own."""
    opened: list[tuple[EventBus, State]] = []

    def open_one(max_builds: int | None = None) -> State:
        bus = EventBus()
        opened.append((bus, State(bus, home, max_builds)))
        return opened[-1][1]

    yield open_one
    for bus, state in opened:
        state.close()
        bus.close()


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """Starts a process that has a state component on the same home: `start("say(state.new_build(()))")`."""
    started: list[subprocess.Popen[str]] = []

    def start_one(code: str, *arguments: object) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(rxbus.__file__).parents[1])}
        command = [sys.executable, "-c", PRELUDE + code, str(home), *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        rest_of(process)


def update(state: State, number: int, step_id: StepId, **result: Any) -> None:
    state._bus.publish(STEP_RESULT_UPDATED, StepResultUpdated(number, step_id, result))


def finish(state: State, number: int) -> None:
    state._bus.publish(PIPELINE_FINISHED, PipelineFinished(number, "success", {}))  # type: ignore[arg-type]


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen[str]) -> list[str]:
    """Kills a process and gives what it had said by then."""
    process.kill()
    return rest_of(process)[0].split("\n")[:-1]  # the last line may be torn


def untimed(results: dict[StepId, Result]) -> dict[StepId, Result]:
    for result in results.values():
        del result["first_updated_at"], result["most_recent_update_at"]
    return results


def build(home: Path, number: int, **files: str) -> Path:
    """Makes a build's directory by hand."""
    path = home / f"build-{number}"
    path.mkdir(parents=True)
    for name, text in {"structure": "[]", **files}.items():
        (path / {"structure": _disk.STRUCTURE, "log": _files.LOG, "state": _files.STATE}[name]).write_text(text)
    return path


# -- Files


def test_a_running_build_has_a_log_of_one_line_per_update(home: Path, open_state: Any) -> None:
    state = open_state()
    number = state.new_build(STRUCTURE, {"summary": "nightly"})
    log, known = home / "build-1" / "build-log.jsonl", b""
    for count in range(50):
        update(state, number, (1, 2), status="running", count=count, out="a\nb")
        assert log.read_bytes().startswith(known)
        known = log.read_bytes()
        assert known.count(b"\n") == count + 1
    assert not (home / "build-1" / "build-state.json").exists()
    assert json.loads(known.splitlines()[-1])["1-2"]["count"] == 49


def test_an_ended_build_has_one_readable_file(home: Path, open_state: Any) -> None:
    state = open_state()
    number = state.new_build(STRUCTURE, {"summary": "nightly"})
    update(state, number, (1,), status="success")
    update(state, number, (1, 2, 3), status="failure", out="ä")
    finish(state, number)
    names = sorted(path.name for path in (home / "build-1").iterdir())
    assert names == ["build-metadata.json", "build-state.json", "pipeline-structure.json"]
    text = (home / "build-1" / "build-state.json").read_text("utf-8")
    assert {key: one["status"] for key, one in json.loads(text).items()} == {"1": "success", "1-2-3": "failure"}
    assert '\n    "out": "ä"' in text
    assert json.loads((home / "build-1" / "build-metadata.json").read_text()) == {
        "args": {"summary": "nightly"},
        "lost_args": [],
    }


def test_it_is_on_disk_when_it_is_consumed(home: Path, open_state: Any) -> None:
    state = open_state()
    number = state.new_build(())
    seen: list[bytes] = []
    log = home / "build-1" / "build-log.jsonl"
    state._bus.subscribe(STEP_RESULT_UPDATE_CONSUMED).subscribe(lambda event: seen.append(log.read_bytes()))
    for count in range(3):
        update(state, number, (1,), status="running", count=count)
    assert [json.loads(data.splitlines()[-1])["1"]["count"] for data in seen] == [0, 1, 2]


class FullDisk:
    """The module os, on whose disk only a few bytes more have room."""

    room = 10

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, file: int, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        self.room -= (written := os.write(file, data[: self.room]))
        return written


@pytest.mark.rxbus_allow("failures")
def test_a_full_disk_leaves_no_half_line(
    home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = open_state()
    number = state.new_build(())
    seen: list[Any] = []
    state._bus.subscribe(STEP_RESULT_UPDATE_CONSUMED).subscribe(lambda e: seen.append(e.payload.step_result["count"]))
    update(state, number, (1,), status="running", count=1)
    with monkeypatch.context() as patch:
        patch.setattr(_disk, "os", FullDisk())
        update(state, number, (1,), status="running", count=2)
        update(state, number, (2,), status="running", count=3)
    assert "No space left" in caplog.text
    assert open_state().step_results(number)[1,]["count"] == 1
    update(state, number, (1,), status="success", count=4)
    assert seen == [1, 4]
    assert untimed(open_state().step_results(number)) == {  # what could not be logged is, with what comes next
        (1,): {"status": "success", "count": 4},
        (2,): {"status": "running", "count": 3},
    }
    finish(state, number)
    assert untimed(open_state().step_results(number)) == {
        (1,): {"status": "success", "count": 4},
        (2,): {"status": "dead", "count": 3},
    }


@pytest.mark.rxbus_allow("failures")
def test_a_state_that_cannot_be_written_whole_leaves_the_log(
    home: Path, open_state: Any, caplog: pytest.LogCaptureFixture
) -> None:
    state = open_state()
    ended, closed = state.new_build(()), state.new_build(())
    for number in (ended, closed):
        update(state, number, (1,), status="success")
        (home / f"build-{number}" / "build-state.json.tmp").mkdir()
    finish(state, ended)
    state.close()
    assert "the end of build 1 cannot be written" in caplog.text
    assert "cannot be written as a whole; its log stays" in caplog.text
    for reader in (state, open_state()):
        for number in (ended, closed):
            assert reader.step_results(number)[1,]["status"] == "success"


# -- Crashes

WRITER = f"""
while True:
    number = state.new_build(())
    say(number, -1)
    for count in range({UPDATES}):
        status = "running" if count < {UPDATES - 3} else "success"
        update(number, (count % 3 + 1,), status=status, count=count, out="x" * (count * 37))
        say(number, count)
    finish(number)
    say(number, {UPDATES})
"""


def expected(count: int) -> dict[StepId, Result]:
    """What the writer has written by then; nobody runs it any more."""
    results: dict[StepId, Result] = {}
    for one in range(count + 1):
        status = "dead" if one < UPDATES - 3 else "success"
        results[one % 3 + 1,] = {"status": status, "count": one, "out": "x" * (one * 37)}
    return results


@pytest.mark.parametrize("before", ["", "from rxbus.pipeline import _disk; _disk.SHORT = 300\n"])
def test_a_kill_at_any_moment_leaves_a_whole_prefix(start: Start, open_state: Any, before: str) -> None:
    """Also where logs are compacted all the time."""
    moments = random.Random(20240229)
    highest = 0
    for _ in range(KILLS):
        process = start(before + WRITER, 4)
        said = [line(process) for _ in range(moments.randrange(1, 60))]
        said += kill(process)
        acknowledged = {int(number): int(count) for number, count in map(str.split, said)}
        assert min(acknowledged) > highest  # numbers go on
        highest = max(acknowledged)
        state = open_state()
        numbers = state.build_numbers()
        assert numbers == sorted(set(numbers))
        for number in numbers:
            results = untimed(state.step_results(number))
            count = max((result["count"] for result in results.values()), default=-1)
            assert results == expected(count)
            assert count >= min(acknowledged.get(number, -1), UPDATES - 1)
        ended = [number for number, count in acknowledged.items() if count == UPDATES]
        assert set(ended[-3:]) <= set(numbers)
        highest = max(highest, *numbers)


def test_what_a_kill_has_left_is_cleared_away(home: Path, open_state: Any) -> None:
    (home / (_disk.REMOVED + "x") / "build").mkdir(parents=True)
    state = open_state(1)
    assert state.build_numbers() == []
    finish(state, state.new_build(()))
    assert [path.name for path in home.iterdir() if path.name.startswith(_disk.REMOVED)] == []


def test_a_log_does_not_grow_without_bound(home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_disk, "SHORT", 1000)
    state, reader = open_state(), open_state()
    number = state.new_build(())
    logs = []
    for count in range(200):
        out = "x" * 10 * count
        update(state, number, (1,), status="running", out=out)
        update(state, number, (count + 2,), status="success")
        logs.append((home / "build-1" / _files.LOG).stat().st_size)
        if count % 20 == 0:
            results = reader.step_results(number)
            assert len(results) == count + 2
            assert results[1,]["out"] == out
    whole = (home / "build-1" / _files.STATE).stat().st_size
    assert max(logs) < 6 * whole
    assert min(logs[100:]) < whole  # it begins anew
    finish(state, number)
    assert len(open_state().step_results(number)) == 201


@pytest.mark.rxbus_allow("failures")
def test_a_log_that_cannot_be_compacted_goes_on(
    home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_disk, "SHORT", 100)
    state = open_state()
    number = state.new_build(())
    (home / "build-1" / (_files.STATE + ".tmp")).mkdir()  # in the way
    for count in range(20):
        update(state, number, (1,), status="running", count=count)
        assert open_state().step_results(number)[1,]["count"] == count
    assert 0 < caplog.text.count("cannot be compacted") < 10  # not at each update


def test_what_a_process_has_left_is_compacted(home: Path, start: Start, open_state: Any) -> None:
    process = start(
        "number = state.new_build(()); update(number, (1,), status='running'); update(number, (2,), status='success')\n"
        "os.mkdir(home / 'workspace-1-2-1-abc'); say(number); sys.stdin.readline()"
    )
    line(process)
    open_state()
    assert {path.name for path in home.glob("*-1*")} == {"build-1", "workspace-1-2-1-abc"}  # it lives
    kill(process)
    state = open_state()
    assert {path.name for path in home.glob("*-1*")} == {"build-1"}
    names = {path.name for path in (home / "build-1").iterdir()}
    assert names == {"build-metadata.json", "build-state.json", "pipeline-structure.json"}
    assert [result["status"] for result in state.step_results(1).values()] == ["dead", "success"]


@pytest.mark.rxbus_allow("failures")
def test_what_is_damaged_is_not_compacted(home: Path, open_state: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = build(home, 1, log='{"1":\n')
    (path / _disk.LOCK).touch()
    state = open_state()
    assert "stays as it is" in caplog.text
    with pytest.raises(DamagedState):
        state.step_results(1)


def test_half_a_build_is_removed_and_what_is_foreign_is_not(home: Path, open_state: Any) -> None:
    for name in ("build-1", "build-2", "workspace-notes", "workspace-x-1-y", "workspace-9-1-abc", "build-2024"):
        (home / name).mkdir(parents=True)
    (home / "build-1" / _disk.LOCK).touch()
    state = open_state()
    assert {path.name for path in home.iterdir() if path.is_dir()} == {
        *("build-2", "workspace-notes", "workspace-x-1-y", "build-2024"),
    }
    assert [state.new_build(()), state.new_build(())] == [1, 3]
    assert state.build_numbers() == [1, 3]


def test_a_build_that_may_not_be_looked_at(home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        build(home, number, state='{"1":{"status":"success"}}')
    exists, read_bytes = Path.exists, Path.read_bytes

    def refuse(ask: Any) -> Any:
        def asked(path: Path) -> Any:
            if path.parent.name == "build-1":
                raise PermissionError(13, "Permission denied")
            return ask(path)

        return asked

    monkeypatch.setattr(Path, "exists", refuse(exists))
    monkeypatch.setattr(Path, "read_bytes", refuse(read_bytes))
    state = open_state()
    assert state.build_numbers() == [1, 2]
    assert state.step_results(2) == {(1,): {"status": "success"}}
    for ask in (state.step_results, state.structure, state.args):
        with pytest.raises(DamagedState, match="Permission denied"):
            ask(1)


@pytest.mark.rxbus_allow("failures")
def test_a_home_that_cannot_be_tidied_can_be_read(
    home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build(home, 1, state='{"1":{"status":"success"}}')
    (home / _disk.LAST_NUMBER).mkdir()
    assert open_state().step_results(1) == {(1,): {"status": "success"}}
    assert "what crashed processes have left" in caplog.text


def test_trees_that_are_write_protected_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may be root, for whom nothing is; so the first attempt is kept from it."""
    deep = tmp_path / "tree" / "a" / "b"
    deep.mkdir(parents=True)
    deep.chmod(0o500)
    attempts: list[int] = []
    rmtree = _files.shutil.rmtree

    def remove(path: Path, ignore_errors: bool) -> None:
        attempts.append(deep.stat().st_mode & 0o777)
        if len(attempts) > 1:
            rmtree(path)

    monkeypatch.setattr(_files.shutil, "rmtree", remove)
    _files.remove_tree(tmp_path / "tree")
    assert attempts == [0o500, 0o700]
    assert not deep.exists()


def test_a_tree_that_cannot_be_removed_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_files.shutil, "rmtree", lambda path, ignore_errors: None)
    _files.remove_tree(tmp_path)
    assert "cannot be removed" in caplog.text


def test_a_directory_without_structure_is_no_build(home: Path, open_state: Any) -> None:
    build(home, 1)
    (home / "build-2").mkdir()
    state = open_state(2)
    assert state.build_numbers() == [1]
    with pytest.raises(UnknownBuild):
        state.step_results(2)
    assert state.new_build(()) == 3  # the directory is there, whosever it is
    finish(state, 3)
    assert state.build_numbers() == [1, 3]


def test_a_build_that_cannot_be_written_is_none(home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state = open_state()

    def fail(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_disk, "write_whole", fail)
        with pytest.raises(OSError, match="No space left"):
            state.new_build(())
    assert state.build_numbers() == []
    assert state.new_build(()) == 2


@pytest.mark.parametrize("fails", ["write", "open_log"])
def test_a_build_that_cannot_be_begun_leaves_nothing(
    home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Not its directory either: without a lock in it nobody could tell that it is not foreign."""
    state = open_state()

    def fail(*args: object) -> int:
        raise OSError(28, "No space left on device")

    open_files = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patch:
        patch.setattr(_disk.os if fails == "write" else _disk, fails, fail)
        with pytest.raises(OSError, match="No space left"):
            state.new_build(())
    assert [path.name for path in home.iterdir()] == ["last-build-number"]
    assert len(os.listdir("/dev/fd")) == open_files


@pytest.mark.rxbus_allow("failures")
def test_a_state_that_could_not_be_written_is_at_the_shutdown(home: Path, open_state: Any) -> None:
    state = open_state()
    number, removed = state.new_build(()), state.new_build(())
    for one in (number, removed):
        (home / f"build-{one}" / "build-state.json.tmp").mkdir()
        update(state, one, (1,), status="success")
        (home / f"build-{one}" / _files.LOG).write_text("")  # the disk was full
        finish(state, one)
    assert untimed(open_state().step_results(number)) == {}
    (home / f"build-{number}" / "build-state.json.tmp").rmdir()
    _disk.shutil.rmtree(home / f"build-{removed}")  # by another process
    state.close()
    assert untimed(open_state().step_results(number)) == {(1,): {"status": "success"}}
    assert open_state().build_numbers() == [number]


def test_a_number_is_not_used_again(home: Path, open_state: Any) -> None:
    state = open_state()
    numbers = [state.new_build(()) for _ in range(3)]
    state.close()
    _disk.shutil.rmtree(home / "build-3")  # by hand
    assert open_state().new_build(()) == numbers[-1] + 1
    (home / "last-build-number").write_text("no number, and rather long")
    assert open_state().new_build(()) == numbers[-1] + 2
    assert (home / "last-build-number").read_text() == "5\n"


def test_a_torn_last_line_was_never_written(home: Path, open_state: Any) -> None:
    whole = '{"1":{"status":"success"}}\n'
    torn = '{"1":{"status":"failure","out":"ä"}}'
    for number in range(1, len(torn.encode()) + 1):
        (build(home, number) / _files.LOG).write_bytes((whole + torn).encode()[: len(whole) + number])
    state = open_state()
    assert len(state.build_numbers()) == len(torn.encode())
    for number in state.build_numbers():
        assert state.step_results(number) == {(1,): {"status": "success"}}


def test_a_crash_between_compacting_and_deleting_the_log(home: Path, open_state: Any) -> None:
    build(home, 1, state='{"1":{"status":"success"},"2":{"status":"failure"}}', log='{"1":{"status":"success"}}\n')
    assert open_state().step_results(1) == {(1,): {"status": "success"}, (2,): {"status": "failure"}}


def test_a_reader_does_not_see_half_a_compaction(home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state = open_state()
    number = state.new_build(())
    update(state, number, (1,), status="success")
    read_log = _files._read_log

    def compact_first(path: Path) -> dict[StepId, msgspec.Raw]:
        finish(state, number)
        return read_log(path)

    monkeypatch.setattr(_files, "_read_log", compact_first)
    assert untimed(open_state().step_results(number)) == {(1,): {"status": "success"}}


def test_a_build_that_is_removed_while_it_is_read(home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    build(home, 1, state='{"1":{"status":"success"}}')
    build(home, 2)

    def remove_first(path: Path) -> dict[StepId, msgspec.Raw]:
        DiskStore(home).truncate(1)
        return {}

    monkeypatch.setattr(_files, "_read_log", remove_first)
    with pytest.raises(UnknownBuild):
        open_state().step_results(1)


# -- Damage


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state", ""),
        ("state", "{"),
        ("state", "[]"),
        ("state", '{"1":5}'),
        ("state", '{"one":{}}'),
        ("state", '{"1":{"out":"\udcff"}}'),
        ("log", "{\n"),
        ("log", "\n"),
        ("log", '{"1":{}}\n{"1":\n{"1":{}}\n'),
        ("log", '{"1":{}}{"1":{}}\n'),
        ("log", '{"1":{}}\n\x00\x00\x00\n'),
    ],
)
def test_a_damaged_file_is_named(home: Path, open_state: Any, name: str, text: str) -> None:
    build(home, 1, state='{"1":{"status":"success"}}')
    path = build(home, 2) / {"state": _files.STATE, "log": _files.LOG}[name]
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    state = open_state()
    with pytest.raises(DamagedState) as caught:
        state.step_results(2)
    assert caught.value.path == path
    assert str(path) in str(caught.value)
    assert state.structure(2) == ()
    assert state.step_results(1) == {(1,): {"status": "success"}}
    assert state.build_numbers() == [1, 2]
    assert state.new_build(()) == 3


@pytest.mark.parametrize("text", ["[]", '{"args":[]}', '{"args":{}', "\x00"])
def test_damaged_metadata_are_named(home: Path, open_state: Any, text: str) -> None:
    path = build(home, 1) / _disk.METADATA
    path.write_text(text)
    with pytest.raises(DamagedState) as caught:
        open_state().args(1)
    assert caught.value.path == path


def test_a_build_without_metadata_has_no_arguments(home: Path, open_state: Any) -> None:
    (build(home, 1) / _disk.METADATA).unlink(missing_ok=True)
    assert open_state().args(1) == {}


@pytest.mark.parametrize("text", ["", "{}", '[{"step_id":["a"]}]'])
def test_a_damaged_structure_is_named(home: Path, open_state: Any, text: str) -> None:
    path = build(home, 1, structure=text, state='{"1":{"status":"success"}}') / _disk.STRUCTURE
    state = open_state()
    with pytest.raises(DamagedState) as caught:
        state.structure(1)
    assert caught.value.path == path
    assert state.step_results(1) == {(1,): {"status": "success"}}


def test_a_directory_in_the_place_of_a_file(home: Path, open_state: Any) -> None:
    path = build(home, 1) / _files.STATE
    path.mkdir()
    with pytest.raises(DamagedState) as caught:
        open_state().step_results(1)
    assert caught.value.path == path


def test_what_is_foreign_is_ignored(home: Path, open_state: Any) -> None:
    for name in ("build-", "build-0", "build-01", "build-1a", "build--1", "build-1.bak", "abuild-1", "Build-9", "x"):
        (home / name).mkdir(parents=True)
        (home / name / _disk.STRUCTURE).write_text("[]")
    (home / "build-2").write_text("a file")
    (home / "build-3").symlink_to(home / "x")
    before = {path.name for path in home.iterdir()}
    state = open_state(1)
    assert state.build_numbers() == []
    assert [state.new_build(()) for _ in range(3)] == [1, 4, 5]
    for number in (1, 4, 5):
        finish(state, number)
    assert state.build_numbers() == [5]
    assert {path.name for path in home.iterdir()} == before | {"build-5", "last-build-number"}


@pytest.mark.rxbus_allow("failures")
def test_a_build_that_cannot_be_removed_stays(
    home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(FullDisk):
        def rename(self, *arguments: object) -> None:
            raise PermissionError("not yours")

    state = open_state(1)
    first, second = state.new_build(()), state.new_build(())
    finish(state, first)
    assert state.build_numbers() == [second]
    third = state.new_build(())
    with monkeypatch.context() as patch:
        patch.setattr(_disk, "os", Stubborn())
        finish(state, second)
    assert "build 2 cannot be removed" in caplog.text
    assert state.build_numbers() == [second, third]
    finish(state, third)
    assert state.build_numbers() == [third]


# -- Several threads and processes


def test_readers_see_each_update_whole(open_state: Any, spawn: Any) -> None:
    state, other = open_state(), open_state()
    number = state.new_build(())
    ended = threading.Event()

    def read(reader: State) -> list[int]:
        counts = []
        while not ended.is_set():
            result = reader.step_results(number).get((1,), {"count": 0, "out": ""})
            assert len(result["out"]) == result["count"]
            counts.append(result["count"])
        return counts

    reading = [spawn(read, reader) for reader in (state, other)]
    for count in range(300):
        update(state, number, (1,), status="running", count=count, out="x" * count)
    finish(state, number)
    ended.set()
    for future in reading:
        counts = future.result(PATIENCE)
        assert counts == sorted(counts)


def test_numbers_are_unique_among_processes(home: Path, start: Start, open_state: Any) -> None:
    processes = [
        start(
            "say('ready'); sys.stdin.readline()\n"
            "for _ in range(25):\n    number = state.new_build(()); finish(number); say(number)",
            *arguments,
        )
        for arguments in ((), (), (3,), (3,))  # two of them remove builds meanwhile
    ]
    for process in processes:
        assert line(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    made = [int(number) for process in processes for number in rest_of(process, 60)[0].split()]
    assert sorted(made) == list(range(1, 101))
    assert open_state().new_build(()) == 101


def test_a_build_of_another_process_lives_as_long_as_that(start: Start, open_state: Any) -> None:
    process = start(
        "number = state.new_build(()); update(number, (1,), status='running'); update(number, (2,), status='waiting')\n"
        "say(number); sys.stdin.readline()"
    )
    number = int(line(process))
    state = open_state(1)

    def statuses() -> list[str]:
        return [result["status"] for result in state.step_results(number).values()]

    assert statuses() == ["running", "waiting"]
    finish(state, state.new_build(()))
    assert statuses() == ["running", "waiting"]  # not removed
    kill(process)
    assert statuses() == ["dead", "dead"]
    finish(state, state.new_build(()))
    assert state.build_numbers() == [number + 2]


def test_an_update_to_a_build_that_another_process_has_removed(home: Path, open_state: Any) -> None:
    state, other = open_state(), open_state(1)
    number = state.new_build(())
    finish(state, number)
    finish(other, other.new_build(()))
    update(state, number, (1,), status="success")
    assert not (home / "build-1").exists()
    with pytest.raises(UnknownBuild):
        state.step_results(number)


def test_a_process_that_runs_a_build_may_start_others(start: Start, open_state: Any) -> None:
    """A child of the one that is killed does not keep the build alive."""
    process = start(
        "import subprocess; number = state.new_build(()); update(number, (1,), status='running')\n"
        "child = subprocess.Popen(['sleep', '60'], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)\n"
        "say(number, child.pid); sys.stdin.readline()"
    )
    number, child = map(int, line(process).split())
    try:
        kill(process)
        assert open_state().step_results(number)[1,]["status"] == "dead"
    finally:
        os.kill(child, 9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_leaves_its_parents_builds_alone(home: Path, start: Start, open_state: Any) -> None:
    process = start(
        "import warnings; warnings.simplefilter('ignore')\n"
        "number = state.new_build(()); update(number, (1,), status='running'); child = os.fork()\n"
        "if child == 0:\n"
        "    say('child', state.step_results(number)[1,]['status']); state.close(); os._exit(0)\n"
        "os.waitpid(child, 0); update(number, (2,), status='running'); say('parent', number); sys.stdin.readline()"
    )
    assert line(process) == "child running"
    assert line(process) == "parent 1"
    state = open_state()
    assert [result["status"] for result in state.step_results(1).values()] == ["running", "running"]
    kill(process)
    assert [result["status"] for result in state.step_results(1).values()] == ["dead", "dead"]


def test_without_locks_on_files(home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "fcntl", None)
    state, other = open_state(1), open_state()
    running, ended = state.new_build(()), state.new_build(())
    update(state, running, (1,), status="running")
    finish(state, ended)
    assert state.build_numbers() == [running, ended]
    assert state.step_results(running)[1,]["status"] == "running"
    assert other.step_results(running)[1,]["status"] == "dead"


def test_a_file_system_without_locks(home: Path, open_state: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, what: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(_files.fcntl, "flock", refuse)
    state, other = open_state(), open_state()
    assert [state.new_build(()), other.new_build(())] == [1, 2]
    update(state, 1, (1,), status="running")
    assert state.step_results(1)[1,]["status"] == "running"
    assert other.step_results(1)[1,]["status"] == "dead"


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        DiskStore(tmp_path / "file")
