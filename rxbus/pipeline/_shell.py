"""The step that runs a command: its output streams into the result, and a kill reaches all that it has started."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from time import monotonic, sleep
from typing import IO, TYPE_CHECKING, Any, Protocol

from rxbus.errors import InvalidArgument
from rxbus.pipeline._results import Result, Status

if TYPE_CHECKING:
    from rxbus.pipeline._step import StepContext

__all__ = ["shell"]

POSIX = os.name == "posix"
TICK = 0.05  # seconds between two looks at whether the process has ended, or is to be killed
SOON = 0.002  # from one look for the end of a command that writes no more to the next
INTERVAL = 0.05  # seconds between two updates, while they cost little
EFFORT = 4  # an update costs at most one part in so many of the time, as it takes the whole output each time
GRACE = 1.0  # seconds that a killed process has to put things in order
CHUNK = 1 << 16  # bytes; what a pipe holds on Linux
PIPE_LIMIT = 1 << 20  # bytes; what a pipe can be made to hold there
NOT_STARTED = 127  # how a shell exits when it finds no such command
LOST = "\nwith which code it has exited is not known: the program ignores SIGCHLD, or waits for its children elsewhere"


def shell(
    command: str | Sequence[str], *, env: Mapping[str, str] | None = None
) -> Callable[[dict[str, Any], StepContext], Result]:
    """Makes a step that runs a command in the step's `cwd`; it succeeds if the command exits with 0.

    Its result holds `exit` (negative: the signal that ended the command) and `out`: what the command wrote to stdout
    and stderr, as UTF-8 with U+FFFD for what is none. `out` streams, before a newline comes too, and is whole whatever
    its size; large output is held in memory, and updated less often. Stdin is empty. A command that cannot be started
    is a failure whose `out` says why.

    A kill sends SIGTERM to the process group of the command, so to its children too, and SIGKILL a second later to what
    is left of it; the status is then `killed`. A child in the background that outlives the command is neither waited
    for nor killed; what it writes later is lost. An exception in the step's thread kills the group at once.

    On Windows there are no process groups: a kill ends the command alone.

    Args:
        command: A line for `/bin/sh`, or a program and its arguments, run without a shell.
        env: Variables to add to the environment.

    Raises:
        InvalidArgument: It is no command, or the variables are no texts.
    """
    command = command if isinstance(command, str) else _program(command)
    added = _variables(env)

    def step(args: dict[str, Any], ctx: StepContext) -> Result:
        if ctx.killed:
            return {"status": Status.KILLED, "out": ""}
        return _Run(ctx, command, added).result()

    step.__name__ = step.__qualname__ = f"shell: {_in_one_line(command)}"
    step.kind = "shell"  # type: ignore[attr-defined] # see `StepStructure`
    return step


def _program(command: Sequence[str]) -> list[str]:
    words = list(command) if isinstance(command, Sequence) else []
    if not words or not all(isinstance(word, str) for word in words):
        raise InvalidArgument(f"a command is a line for the shell, or a program and its arguments, not {command!r}")
    return words


def _variables(env: Mapping[str, str] | None) -> dict[str, str]:
    if env is not None and not isinstance(env, Mapping):
        raise InvalidArgument(f"variables are a dict of texts, not {env!r}")
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidArgument(f"variables are texts, not {name!r}: {value!r}")
    return dict(env or {})


def _in_one_line(command: str | list[str]) -> str:
    lines = (command if isinstance(command, str) else shlex.join(command)).strip().splitlines() or [""]
    return lines[0] if len(lines) == 1 else f"{lines[0]} …"


class _Run:
    """One run of a command, from its start until nothing is left of it that is to end."""

    def __init__(self, ctx: StepContext, command: str | list[str], env: dict[str, str]) -> None:
        self._ctx = ctx
        self._command = command
        self._env = env
        self._out = _Out(ctx)
        self._grace_ends: float | None = None  # once killed
        self._exited = False
        self._exit: int | None = None  # how; None: that has been told to another, who waits for all, or to nobody

    def result(self) -> Result:
        try:
            process = self._start()
        except (OSError, ValueError) as error:  # ValueError: a null character in it, or a variable's name with =
            return {"status": Status.FAILURE, "exit": NOT_STARTED, "out": f"cannot be started: {error}"}
        running.add(process)
        try:
            self._follow(process)
        except BaseException:  # what a subscriber or Ctrl-C raises here: no command is left behind
            _signal(process, force=True)
            process.wait()
            raise
        finally:
            running.discard(process)
            if POSIX and process.stdout is not None:  # elsewhere closing would wait for the thread's read
                process.stdout.close()
        out = self._out.text()
        ended: Result = {"out": f"{out}{LOST}"} if self._exit is None else {"exit": self._exit, "out": out}
        status = Status.SUCCESS if self._exit == 0 else Status.FAILURE
        return {"status": status if self._grace_ends is None else Status.KILLED, **ended}

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._command,
            shell=isinstance(self._command, str),
            cwd=self._ctx.cwd,
            env={**os.environ, **self._env},
            bufsize=0,  # so that a read takes what is there
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=POSIX,
        )

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        reader = _PipeReader(process.stdout) if POSIX else _ThreadReader(process.stdout)
        while not self._is_over(process):
            self._read(process, reader)
        self._out.add(reader.rest(), final=True)

    def _read(self, process: subprocess.Popen[bytes], reader: _Reader) -> None:
        if chunk := reader.read(TICK):
            self._out.add(chunk)
        elif chunk is not None and not self._exited:  # about to end, as its output has
            sleep(SOON)
        elif chunk is not None:  # killed, and what is left of its group has the rest of the grace
            sleep(TICK)
        self._out.publish_if_due()

    def _is_over(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether all has ended that should. Sees to it on a kill.

        The output does not tell: a process may close it early, or leave it open to a child in the background.
        """
        exited = self._has_exited(process)
        if self._grace_ends is None:
            if exited or not self._ctx.killed:
                return exited
            _signal(process, force=False)
            self._grace_ends = monotonic() + GRACE
            return False
        if exited and not (POSIX and _group_is_left(process)):
            return True
        if monotonic() < self._grace_ends and not (exited and _are_zombies(process.pid)):
            return False
        _signal(process, force=True)  # also for one that was forked while it was looked for
        return exited

    def _has_exited(self, process: subprocess.Popen[bytes]) -> bool:
        if not self._exited:
            try:
                self._exit = _exit_of(process)
                self._exited = self._exit is not None
            except ChildProcessError:
                self._exited = True
        return self._exited


def _exit_of(process: subprocess.Popen[bytes]) -> int | None:
    """How a process has ended, as `returncode` has it, but not 0 where nobody can tell; None: it has not.

    Raises:
        ChildProcessError: Another has been told, and it cannot be asked for again.
    """
    if process.returncode is not None or not hasattr(os, "waitid"):
        return process.poll()
    try:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        process.poll()  # it must know, too
        raise
    if ended is None:
        return None
    process.poll()
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


class _Out:
    """The output as text, and its updates: each takes the whole, so the longer that is, the fewer there are."""

    def __init__(self, ctx: StepContext) -> None:
        self._ctx = ctx
        self._decode = getincrementaldecoder("utf-8")(errors="replace").decode
        self._parts: list[str] = []
        self._published = True
        self._due = 0.0

    def add(self, chunk: bytes, final: bool = False) -> None:
        """Takes more of it; half a character waits for its other half, but for the final one."""
        if text := self._decode(chunk, final):
            self._parts.append(text)
            self._published = False

    def text(self) -> str:
        """Gives all of it."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    def publish_if_due(self) -> None:
        """Updates the step's result, if there is something new and the last time is long enough ago."""
        begun = monotonic()
        if self._published or begun < self._due:
            return
        self._ctx.update(out=self.text())
        self._published = True
        ended = monotonic()
        self._due = ended + max(INTERVAL, (EFFORT - 1) * (ended - begun))


class _Reader(Protocol):
    """Reads a pipe, without being held by it."""

    def read(self, timeout: float) -> bytes | None:
        """Gives what comes next: None if nothing does in time, and no bytes at the end."""
        ...

    def rest(self) -> bytes:
        """Gives what is there by now, once the process has exited; it is no more than one pipe can hold.

        The end of the pipe may never come: a child in the background may hold it open, and write on and on.
        """
        ...


class _PipeReader:
    """A reader that waits for the pipe itself."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        os.set_blocking(pipe.fileno(), False)
        self._poll = select.poll()  # takes no file descriptor, so it cannot fail for want of one
        self._poll.register(pipe, select.POLLIN)

    def read(self, timeout: float, size: int = CHUNK) -> bytes | None:
        # A raw read from a pipe that does not block gives None if nothing is there.
        return self._pipe.read(size) if self._poll.poll(timeout * 1000) else None

    def rest(self) -> bytes:
        return self.read(0, PIPE_LIMIT) or b""


class _ThreadReader:
    """A reader for Windows, where one cannot wait for a pipe: a thread does, which ends with the pipe."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe
        self._chunks: Queue[bytes] = Queue()
        self._thread = Thread(target=self._take, name="rxbus-shell", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        with self._pipe:
            while chunk := self._pipe.read(CHUNK):
                self._chunks.put(chunk)
            self._chunks.put(b"")

    def read(self, timeout: float) -> bytes | None:
        try:
            return self._chunks.get(timeout=timeout)
        except Empty:
            return None

    def rest(self) -> bytes:
        self._thread.join(TICK)
        return b"".join(self._chunks.get() for _ in range(self._chunks.qsize()))


running: set[subprocess.Popen[bytes]] = set()


def end_all_commands() -> None:
    """Kills the process groups of all commands that run, for a program that ends at once."""
    for process in list(running):
        _signal(process, force=True)


def _signal(process: subprocess.Popen[bytes], *, force: bool) -> None:
    if not POSIX:
        process.kill()
        return
    # Nobody may be left; or only zombies (macOS), or programs of another user, who may not be signalled.
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL if force else signal.SIGTERM)


def _group_is_left(process: subprocess.Popen[bytes]) -> bool:
    """Whether anybody is in the group; zombies count until they are reaped, which is for init to do, if it does."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # there is somebody who may not be signalled
    return True


def _are_zombies(group: int) -> bool:
    """Whether all in a process group have ended; False where it cannot be told, as elsewhere than on Linux."""
    members = list(_members(group))
    return bool(members) and all(state in "ZX" and threads == "1" for state, *_, threads in members)


def _members(group: int) -> Iterator[list[str]]:
    """Gives what Linux says of each process in a group, from its state up to the number of its threads.

    Both count: where the first of a process's threads has ended before the others, its state is a zombie's.
    """
    for path in Path("/proc").glob("[1-9]*"):
        with suppress(OSError):  # it has gone
            if os.getpgid(int(path.name)) == group:
                yield (path / "stat").read_text(errors="replace").rpartition(")")[2].split()[:18]
