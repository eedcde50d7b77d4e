"""The step that runs a command: output, exit codes, kills, and that nothing is left behind."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from time import monotonic, process_time, sleep
from typing import Any

import psutil
import pytest

from rxbus.errors import InvalidArgument
from rxbus.pipeline import _shell
from rxbus.pipeline._shell import shell
from tests.conftest import PATIENCE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell and process groups")

Spawn = Callable[..., Future[Any]]


class FakeContext:
    """What `shell` needs of a step's context; `on_update` is called with each `out`."""

    def __init__(self, cwd: Path, on_update: Callable[[str], object] = lambda out: None) -> None:
        self._cwd = cwd
        self._on_update = on_update
        self._news = threading.Condition()
        self.outs: list[str] = []
        self.kill = threading.Event()

    @property
    def cwd(self) -> Path:
        return self._cwd

    @property
    def killed(self) -> bool:
        return self.kill.is_set()

    def wait_killed(self, timeout: float | None) -> bool:
        return self.kill.wait(timeout)

    def update(self, **fields: Any) -> None:
        assert fields.keys() == {"out"}
        with self._news:
            self.outs.append(fields["out"])
            self._news.notify_all()
        self._on_update(fields["out"])

    def wait_for(self, text: str) -> str:
        """Waits until an update holds a text; gives the latest `out`."""
        with self._news:
            assert self._news.wait_for(lambda: any(text in out for out in self.outs), PATIENCE), self.outs
            return self.outs[-1]


class Gate:
    """A FIFO at which a command waits: `: < {gate}`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)

    def __str__(self) -> str:
        return shlex.quote(str(self._path))

    def open(self) -> None:
        """Lets the command go on, once it has come to the gate."""
        self._path.write_bytes(b"")


@pytest.fixture
def ctx(tmp_path: Path) -> FakeContext:
    return FakeContext(tmp_path)


@pytest.fixture
def gates(tmp_path: Path) -> tuple[Gate, Gate]:
    return Gate(tmp_path / "gate-1"), Gate(tmp_path / "gate-2")


@pytest.fixture(autouse=True)
def _nothing_left(spawn: Spawn) -> Iterator[None]:
    """Fails a test that leaves a child (zombies too), a file descriptor or a thread behind."""
    me = psutil.Process()
    children, descriptors, threads = set(me.children()), me.num_fds(), set(threading.enumerate())
    yield
    assert set(me.children()) <= children
    assert me.num_fds() <= descriptors
    assert all(thread.name.startswith("spawned-") for thread in set(threading.enumerate()) - threads)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: no process groups, and a pipe that one cannot wait for."""
    monkeypatch.setattr(_shell, "POSIX", False)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # somebody else's to reap
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(*pids: int) -> None:
    ends = monotonic() + PATIENCE
    while not all(map(is_gone, pids)):
        assert monotonic() < ends, [pid for pid in pids if not is_gone(pid)]
        sleep(0.01)


def end(pid: int) -> None:
    """Ends a child in the background that has outlived its shell, as it should."""
    assert not is_gone(pid)
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)


def run(command: Any, ctx: Any, **named: Any) -> dict[str, Any]:
    return shell(command, **named)({}, ctx)


# What a command gets


def test_a_line_runs_in_the_shell(ctx: FakeContext) -> None:
    assert run("echo one | tr o O && echo two", ctx) == {"status": "success", "exit": 0, "out": "One\ntwo\n"}


def test_a_sequence_runs_without_a_shell(ctx: FakeContext) -> None:
    assert run(("echo", "$HOME", "a  b", "|", "*"), ctx)["out"] == "$HOME a  b | *\n"


def test_no_output_is_an_empty_out_without_updates(ctx: FakeContext) -> None:
    assert run("true", ctx) == {"status": "success", "exit": 0, "out": ""}
    assert ctx.outs == []


def test_it_runs_in_the_steps_directory(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    assert run("pwd", FakeContext(tmp_path / "below"))["out"].strip() == str((tmp_path / "below").resolve())


def test_env_adds_to_the_environment(ctx: FakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "kept")
    monkeypatch.setenv("CHANGED", "before")
    env = {"ADDED": "added", "CHANGED": "after"}
    step: Any = shell('echo "$KEPT $ADDED $CHANGED"', env=env)
    env.clear()
    assert step({}, ctx)["out"] == "kept added after\n"


def test_stdin_is_empty(ctx: FakeContext) -> None:
    assert run("cat; echo end", ctx)["out"] == "end\n"


def test_stderr_comes_with_stdout_in_order(ctx: FakeContext) -> None:
    assert run("echo 1; echo 2 >&2; echo 3", ctx)["out"] == "1\n2\n3\n"


def test_it_leads_a_process_group_and_session_of_its_own(ctx: FakeContext) -> None:
    code = "import os; print(os.getpid(), os.getpgid(0), os.getsid(0))"
    pid, group, session = run([sys.executable, "-c", code], ctx)["out"].split()
    assert pid == group == session


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("ruff check .", "shell: ruff check ."),
        (["echo", "a b"], "shell: echo 'a b'"),
        ("\n  make\n  make test\n", "shell: make …"),
        ("", "shell: "),
    ],
)
def test_its_name_says_what_it_runs(command: str | list[str], name: str) -> None:
    assert shell(command).__name__ == name


@pytest.mark.parametrize("command", [[], ["echo", 1], b"ls"])
def test_what_cannot_be_a_command_is_refused(command: Any) -> None:
    with pytest.raises(InvalidArgument):
        shell(command)


# How it ends


def test_the_exit_code_decides(ctx: FakeContext) -> None:
    assert run("echo no; exit 3", ctx) == {"status": "failure", "exit": 3, "out": "no\n"}


def test_ended_by_a_signal_it_is_a_failure(ctx: FakeContext) -> None:
    assert run("echo ow; kill -9 $$", ctx) == {"status": "failure", "exit": -9, "out": "ow\n"}


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["no-such-program"], "'no-such-program'"),
        (["./not-executable"], "'./not-executable'"),
        ("echo \0", "null byte"),
        (["echo", "\0"], "null byte"),
    ],
)
def test_what_cannot_be_started_is_a_failure_that_says_why(command: Any, why: str, ctx: FakeContext) -> None:
    (ctx.cwd / "not-executable").touch()
    result = run(command, ctx)
    assert (result["status"], result["exit"]) == ("failure", 127)
    assert why in result["out"]


def test_a_missing_directory_is_a_failure_that_says_so(tmp_path: Path) -> None:
    result = run("echo never", FakeContext(tmp_path / "missing"))
    assert (result["status"], result["exit"]) == ("failure", 127)
    assert str(tmp_path / "missing") in result["out"]


def test_what_the_shell_does_not_find_is_a_failure(ctx: FakeContext) -> None:
    result = run("no-such-program", ctx)
    assert (result["status"], result["exit"]) == ("failure", 127)
    assert "no-such-program" in result["out"]


def test_an_environment_that_makes_no_sense_is_a_failure(ctx: FakeContext) -> None:
    assert run("true", ctx, env={"A=B": "c"})["status"] == "failure"


def test_a_process_that_closes_its_output_is_waited_for(
    ctx: FakeContext, gates: tuple[Gate, Gate], spawn: Spawn
) -> None:
    future = spawn(run, f"echo out; exec >&- 2>&-; : < {gates[0]}; exit 4", ctx)
    ctx.wait_for("out")
    sleep(3 * _shell.TICK)  # so that it is waited for more than once
    gates[0].open()
    result = future.result(PATIENCE)
    assert (result["status"], result["out"]) == ("failure", "out\n")
    assert result["exit"] == 4


# Output


def test_output_streams_before_a_newline_and_into_silence(
    ctx: FakeContext, gates: tuple[Gate, Gate], spawn: Spawn
) -> None:
    future = spawn(run, f"printf a; : < {gates[0]}; printf b; : < {gates[1]}; printf c", ctx)
    assert ctx.wait_for("a") == "a"
    gates[0].open()  # so that b may come too early for an update of its own, and silence follows
    opened = monotonic()
    assert ctx.wait_for("b") == "ab"
    assert monotonic() - opened < 1
    gates[1].open()
    assert future.result(PATIENCE)["out"] == "abc"


def test_a_character_in_two_halves_stays_whole(ctx: FakeContext, gates: tuple[Gate, Gate], spawn: Spawn) -> None:
    future = spawn(run, rf"printf 'a\303'; : < {gates[0]}; printf '\251z'", ctx)
    assert ctx.wait_for("a") == "a"
    gates[0].open()
    assert future.result(PATIENCE)["out"] == "aéz"
    assert not any("\ufffd" in out for out in ctx.outs)


def test_what_is_not_utf8_is_replaced(ctx: FakeContext) -> None:
    assert run(r"printf 'a\377b\0c\r\n'; printf '\303'", ctx)["out"] == "a\ufffdb\0c\r\n\ufffd"


def test_large_output_comes_whole_with_few_updates(ctx: FakeContext) -> None:
    begun = monotonic()
    result = run("seq -f %049.0f 1000000", ctx)  # 50 MB
    took = monotonic() - begun
    assert result["out"] == "".join(f"{n:049}\n" for n in range(1, 1_000_001))
    assert len(ctx.outs) <= took / _shell.INTERVAL + 1
    assert all(len(before) < len(after) for before, after in pairwise(ctx.outs))
    assert all(result["out"].startswith(out) for out in ctx.outs)


def test_costly_updates_become_rare(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, lambda out: sleep(0.1))
    begun = monotonic()
    run("for n in 1 2 3 4 5 6 7 8 9 10; do echo $n; sleep 0.1; done", ctx)
    assert len(ctx.outs) <= (monotonic() - begun) / (0.1 * _shell.EFFORT) + 1


def test_a_slow_update_loses_nothing(tmp_path: Path) -> None:
    ctx = FakeContext(tmp_path, lambda out: sleep(0.3))
    assert run("seq 100000", ctx)["out"] == "".join(f"{n}\n" for n in range(1, 100_001))


# Children in the background


def test_a_child_that_keeps_the_pipe_open_does_not_hold_the_step(ctx: FakeContext) -> None:
    begun = monotonic()
    result = run("sleep 1000 & echo $!", ctx)
    assert monotonic() - begun < PATIENCE
    end(int(result["out"]))
    assert (result["status"], result["exit"]) == ("success", 0)


def test_a_child_that_writes_on_and_on_does_not_hold_the_step(ctx: FakeContext) -> None:
    result = run("yes & echo begun; exit 5", ctx)  # yes ends as its pipe does
    assert (result["status"], result["exit"]) == ("failure", 5)
    assert "begun\n" in result["out"]


def test_all_that_the_process_has_written_comes_with_a_child_in_the_background(ctx: FakeContext) -> None:
    result = run("sleep 1000 & echo $!; seq 9000; echo last", ctx)
    pid, *rest = result["out"].split()
    end(int(pid))
    assert rest == [*map(str, range(1, 9001)), "last"]


# Kills


def test_killed_before_it_starts_it_does_not_start(ctx: FakeContext) -> None:
    ctx.kill.set()
    assert run("touch started", ctx) == {"status": "killed", "out": ""}
    assert not (ctx.cwd / "started").exists()


def test_killed_while_it_starts(tmp_path: Path) -> None:
    class KilledAtStart(FakeContext):
        @property
        def cwd(self) -> Path:
            self.kill.set()
            return super().cwd

    begun = monotonic()
    result = run(["sleep", "1000"], KilledAtStart(tmp_path))
    assert result == {"status": "killed", "exit": -signal.SIGTERM, "out": ""}
    assert monotonic() - begun < PATIENCE


def test_a_kill_reaches_the_whole_group(ctx: FakeContext, spawn: Spawn) -> None:
    future = spawn(run, "sleep 1000 & echo $! $$; sh -c 'echo $$ end; sleep 1000; :' | cat; echo done", ctx)
    ctx.wait_for("end")
    ctx.kill.set()
    result = future.result(PATIENCE)
    assert (result["status"], result["exit"]) == ("killed", -signal.SIGTERM)
    assert "done" not in result["out"]
    pids = [int(word) for word in result["out"].split() if word.isdigit()]
    assert len(pids) == 3
    wait_until_gone(*pids)


def test_a_killed_process_may_put_things_in_order(ctx: FakeContext, spawn: Spawn) -> None:
    future = spawn(run, "trap 'echo put in order; exit 3' TERM; echo ready; while :; do sleep 0.01; done", ctx)
    ctx.wait_for("ready")
    ctx.kill.set()
    result = future.result(PATIENCE)
    assert (result["status"], result["exit"]) == ("killed", 3)
    assert result["out"].startswith("ready\n")
    assert result["out"].endswith("put in order\n")


def test_a_killed_process_that_ends_well_is_killed_all_the_same(ctx: FakeContext, spawn: Spawn) -> None:
    future = spawn(run, "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done", ctx)
    ctx.wait_for("ready")
    ctx.kill.set()
    result = future.result(PATIENCE)
    assert (result["status"], result["exit"]) == ("killed", 0)


@pytest.mark.parametrize("forever", ["while :; do sleep 0.01; done", "yes"])
def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(forever: str, ctx: FakeContext, spawn: Spawn) -> None:
    future = spawn(run, f"trap '' TERM; echo $$; {forever}", ctx)
    pid = int(ctx.wait_for("\n").split()[0])
    killed = monotonic()
    ctx.kill.set()
    result = future.result(PATIENCE)
    assert monotonic() - killed >= _shell.GRACE
    assert (result["status"], result["exit"]) == ("killed", -signal.SIGKILL)
    wait_until_gone(pid)


def test_a_child_that_ignores_sigterm_is_killed_after_the_grace(ctx: FakeContext, spawn: Spawn) -> None:
    future = spawn(run, """sh -c 'trap "" TERM; echo $$; exec sleep 1000' & wait""", ctx)
    pid = int(ctx.wait_for("\n"))
    killed = monotonic()
    ctx.kill.set()
    result = future.result(PATIENCE)
    assert monotonic() - killed >= _shell.GRACE
    assert (result["status"], result["exit"]) == ("killed", -signal.SIGTERM)
    wait_until_gone(pid)


def test_the_grace_of_a_silent_child_is_not_spent_spinning(ctx: FakeContext, spawn: Spawn) -> None:
    future = spawn(run, """(trap '' TERM; echo $$; exec sleep 1000 >&- 2>&-) & wait""", ctx)
    ctx.wait_for("\n")
    before = process_time()
    ctx.kill.set()
    assert future.result(PATIENCE)["exit"] == -signal.SIGTERM
    assert process_time() - before < _shell.GRACE / 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs an init that does not reap")
@pytest.mark.parametrize(("left", "status"), [("sleep 1000", "zombies"), ("trap '' TERM; sleep 1000", "alive")])
def test_the_grace_ends_with_the_last_that_lives_and_not_with_its_reaping(left: str, status: str) -> None:
    """Programs that are the first in a container are its init, and most do not reap what they have not started."""
    program = f"""
import ctypes, threading
from rxbus.pipeline import Pipeline, _shell, shell, topics
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: it is the init of what it starts
_shell.GRACE = {PATIENCE * 2 if status == "zombies" else 0.5}
with Pipeline([shell({f"({left}) & echo begun; sleep 1000; true"!r})], updates_per_second=None) as pipeline:
    begun = threading.Event()
    updates = pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).only_payload()
    updates.filter(lambda update: "out" in update.step_result).subscribe(lambda update: begun.set())
    build = pipeline.start()
    assert begun.wait({PATIENCE})
    pipeline.kill(1, (1,))
    print(build.result({PATIENCE}).status)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=3 * PATIENCE)
    assert (done.stdout, done.stderr) == ("killed\n", "")


def test_a_process_that_has_closed_its_output_is_killed(
    ctx: FakeContext, gates: tuple[Gate, Gate], spawn: Spawn
) -> None:
    future = spawn(run, f"exec >&- 2>&-; : < {gates[0]}; exec sleep 1000", ctx)
    gates[0].open()
    ctx.kill.set()
    assert future.result(PATIENCE) == {"status": "killed", "exit": -signal.SIGTERM, "out": ""}


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_exception_in_the_steps_thread_kills_the_group(tmp_path: Path, interrupt: type[BaseException]) -> None:
    def strike(out: str) -> None:
        raise interrupt

    ctx = FakeContext(tmp_path, strike)
    with pytest.raises(interrupt):
        run("trap '' TERM; sleep 1000 & echo $! $$; wait", ctx)
    wait_until_gone(*map(int, ctx.outs[0].split()))


def test_programs_of_others_in_the_group_that_may_not_be_signalled_are_no_error(
    ctx: FakeContext, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(group: int, number: int) -> None:
        raise PermissionError

    future = spawn(run, "echo $$; exec sleep 1000", ctx)
    pid = int(ctx.wait_for("\n"))
    monkeypatch.setattr(os, "killpg", refuse)
    ctx.kill.set()
    with pytest.raises(TimeoutError):
        future.result(0.2)
    os.kill(pid, signal.SIGKILL)
    assert future.result(PATIENCE)["status"] == "killed"


# Windows


@pytest.mark.usefixtures("elsewhere")
def test_without_process_groups_output_streams_and_is_whole(
    ctx: FakeContext, gates: tuple[Gate, Gate], spawn: Spawn
) -> None:
    future = spawn(run, f"printf a; : < {gates[0]}; seq 100000; exit 3", ctx)
    assert ctx.wait_for("a") == "a"
    sleep(3 * _shell.TICK)  # so that it is waited for more than once
    gates[0].open()
    out = "a" + "".join(f"{n}\n" for n in range(1, 100_001))
    assert future.result(PATIENCE) == {"status": "failure", "exit": 3, "out": out}


@pytest.mark.usefixtures("elsewhere")
def test_without_process_groups_a_kill_ends_the_process(ctx: FakeContext, spawn: Spawn) -> None:
    future = spawn(run, "echo ready; exec sleep 1000", ctx)
    ctx.wait_for("ready")
    ctx.kill.set()
    assert future.result(PATIENCE) == {"status": "killed", "exit": -signal.SIGKILL, "out": "ready\n"}


@pytest.mark.usefixtures("elsewhere")
def test_without_process_groups_a_child_in_the_background_does_not_hold_the_step(ctx: FakeContext) -> None:
    result = run("sleep 1000 & echo $!", ctx)
    end(int(result["out"]))
    assert result["status"] == "success"
    for thread in threading.enumerate():
        if thread.name == "rxbus-shell":  # ends with the pipe, so with the child
            thread.join(PATIENCE)


@pytest.mark.parametrize(
    "how", ["signal.signal(signal.SIGCHLD, signal.SIG_IGN)", "threading.Thread(target=reap).start()"]
)
def test_an_exit_code_that_another_has_taken_is_no_success(how: str, tmp_path: Path) -> None:
    program = f"""
import os, signal, threading
from rxbus.pipeline import Pipeline, shell
def reap():
    while True:
        try:
            os.wait()
            return
        except ChildProcessError:
            pass
{how}
with Pipeline([shell("sleep 0.2; exit 3")]) as pipeline:
    result = pipeline.run().outputs[(1,)]
    print(result["status"], result.get("exit"), "is not known" in result["out"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout == "failure None True\n", done.stderr


@pytest.mark.parametrize("command", [5, None, b"ls", [], ["ls", 5]])
def test_what_is_no_command_is_refused(command: Any) -> None:
    with pytest.raises(InvalidArgument):
        shell(command)


@pytest.mark.parametrize("env", [5, {"A": 1}, {1: "a"}, {"A": None}])
def test_what_are_no_variables_is_refused(env: Any) -> None:
    with pytest.raises(InvalidArgument):
        shell("true", env=env)
