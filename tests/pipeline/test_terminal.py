"""`rxbus pipeline`: the real command in processes of its own, and what it is made of."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from rich.console import Console
from typer.testing import CliRunner

from rxbus import Event, EventBus
from rxbus.pipeline import (
    Pipeline,
    PipelineFinished,
    _prompt,
    _report,
    alias,
    flatten_outputs,
    in_parallel,
    parameterized_trigger,
    topics,
    wait_for_manual_trigger,
)
from rxbus.pipeline import _terminal as terminal
from rxbus.pipeline._answers import Listener, NoSocket, sockets
from rxbus.pipeline._results import without_life
from rxbus.pipeline._structure import StepStructure
from tests.processes import rest_of

ROOT = Path(terminal.__file__).parents[2]
ENVIRONMENT = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "xterm", "PYTHONPATH": str(ROOT)}
PATIENCE = 30  # seconds, for what takes a few
COMMAND = [sys.executable, "-m", "rxbus", "pipeline"]

pytestmark = pytest.mark.timeout(60, method="signal")

GOOD = """
def build(args, ctx):
    print("printed by a step")
    ctx.update(out="[red]building")
    return {"status": "success", "tests": 42}
"""
BAD = """
def bad(args, ctx):
    return {"status": "failure", "out": "[bold]oh no"}
"""
LONG = 'long = shell("echo pid $$; exec sleep 1000")'
STUBBORN = """
def stubborn(args, ctx):
    threading.Event().wait()
"""

Write = Callable[..., Path]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def write(tmp_path: Path, home: Path) -> Write:
    """Writes a file with a pipeline of some steps, which come with their definitions."""

    def make(steps: str, *definitions: str, options: str = "home=HOME", name: str = "file.py") -> Path:
        head = ["import os, threading, time", "from rxbus.pipeline import *", f"HOME = {str(home)!r}"]
        path = tmp_path / name
        path.write_text("\n".join([*head, *definitions, f"pipeline = Pipeline([{steps}], {options})", ""]))
        return path

    return make


@pytest.fixture(autouse=True)
def _no_modules_left() -> Iterator[None]:
    """Forgets what files were loaded into this process."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("file"):
            del sys.modules[name]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(terminal.application, list(map(str, arguments)))


def lines_in(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def refusal(*arguments: object) -> str:
    """What a command says that cannot be done: one line, without a traceback."""
    ended = invoke(*arguments)
    assert (ended.exit_code, ended.stderr.count("\n"), type(ended.exception)) == (2, 1, SystemExit), ended.output
    assert ended.stderr.startswith("rxbus: ")
    return ended.stderr


@contextmanager
def running(*arguments: object, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams
    with subprocess.Popen([*COMMAND, *map(str, arguments)], text=True, env=ENVIRONMENT, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


def stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def line_with(pipe: IO[str] | None, text: str) -> str:
    for line in stream(pipe):
        if text in line:
            return line
    raise AssertionError(f"{text!r} has not come")


class Terminal:
    """The side of a pseudo-terminal where somebody sits."""

    def __init__(self, *arguments: object) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], env=ENVIRONMENT, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self._shown = b""
        self._read = 0  # how much of that has been

    @property
    def seen(self) -> str:
        """All that has been shown, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self._shown.decode(errors="replace"))

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._ours)

    def read_until(self, text: str | None) -> None:
        """Reads up to some text that has not been read before, or to the end, where reading a pty fails."""
        while text is None or (found := self._shown.find(text.encode(), self._read)) < 0:
            try:
                self._shown += os.read(self._ours, 65536)
            except OSError:
                assert text is None, self._shown[self._read :]
                self._read = len(self._shown)
                return
        self._read = found + len(text.encode())

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> tuple[int, list[str]]:
        """Gives the exit code, and the lines that are on the screen in the end, below the last live picture."""
        self.read_until(None)
        assert "Traceback" not in self.seen
        assert self.seen.rfind("\x1b[?25h") >= self.seen.rfind("\x1b[?25l")  # the cursor is there again
        last = re.split(r"\x1b\[2K|\x1b\[\d*A", self.seen)[-1]
        return self.process.wait(PATIENCE), [line.rstrip() for line in last.splitlines()]


class TestRun:
    def test_events_as_lines_and_a_summary(self, write: Write) -> None:
        with running("run", write("build", GOOD)) as process:
            output, errors = rest_of(process)
        assert (process.returncode, errors) == (0, "printed by a step\n")
        *events, last = lines_in(output)
        updated = "step-result-updated"
        told = [(event["topic"], event.get("step_id"), event.get("status")) for event in events]
        assert told[:2] == [("pipeline-started", None, None), (updated, "1", "running")]
        assert told[2] == ("step-started", "1", None)
        assert told[-3:-1] == [(updated, "1", "success"), ("step-finished", "1", "success")]
        assert told[-1] == ("pipeline-finished", None, "success")
        assert {event["build_number"] for event in events} == {1}
        assert events[-1]["outputs"]["1"]["tests"] == 42
        assert last["summary"].pop("seconds") >= 0
        assert last == {"summary": {"build_number": 1, "status": "success", "failed_steps": []}}

    def test_a_failure(self, write: Write) -> None:
        ended = invoke("run", write("run(build, bad)", GOOD, BAD))
        assert ended.exit_code == 1
        summary = lines_in(ended.stdout)[-1]["summary"]
        assert (summary["status"], summary["failed_steps"]) == ("failure", [{"step_id": "2-1", "name": "bad"}])

    def test_modules_next_to_the_file_can_be_imported(self, write: Write, tmp_path: Path) -> None:
        (tmp_path / "file_neighbour.py").write_text(GOOD)
        assert invoke("run", write("build", "from file_neighbour import build")).exit_code == 0

    def test_a_file_called_like_a_module(self, write: Write) -> None:
        assert invoke("run", write("build", GOOD, name="json.py")).exit_code == 0
        assert sys.modules["json"] is json

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            (None, "there is no file"),
            ("", "has no rxbus.pipeline.Pipeline as its global 'pipeline', but nothing of that name"),
            ("pipeline = 3", "but a int"),
            ("\nraise ValueError('[red]boom\\n\\x07')", "fails in line 2: ValueError: [red]boom \ufffd"),
            ("import sys; sys.exit(3)", "fails in line 1: SystemExit: 3"),
            ("pipeline = = 3", "fails: SyntaxError"),
            ("from rxbus.pipeline import *\nwith Pipeline([]) as pipeline: pass", "has been shut down"),
        ],
    )
    def test_a_file_that_cannot_be_used(self, text: str | None, told: str, tmp_path: Path) -> None:
        path = tmp_path / "file.py"
        if text is not None:
            path.write_text(text)
        assert told in refusal("run", path)

    def test_a_home_that_cannot_be_made(self, write: Write, home: Path) -> None:
        home.write_text("a file")
        assert "FileExistsError" in refusal("run", write("build", GOOD))

    def test_what_children_print_is_not_among_the_lines(self, write: Write) -> None:
        raw = """
def raw(args, ctx):
    os.system("echo raw")
    ctx.bus.publish("step-started", {"not": "ours"})
    return {"status": "success"}
"""
        with running("run", write("raw", raw)) as process:
            output, errors = rest_of(process)
        assert (process.returncode, errors) == (0, "raw\n")
        assert lines_in(output)[-1]["summary"]["status"] == "success"

    def test_output_is_told_once(self, write: Write) -> None:
        grows = """
def grows(args, ctx):
    for out in ("one ", "one two ", "one two ", "other", "other three"):
        ctx.update(out=out)
    return {"status": "success"}
"""
        lines = lines_in(invoke("run", write("grows", grows, options="updates_per_second=None")).stdout)
        results = [line["step_result"] for line in lines if line.get("topic") == "step-result-updated"]
        assert [(one.get("out"), one.get("out_added")) for one in results] == [
            *((None, None), ("one ", None), (None, "two "), (None, None), ("other", None), (None, " three")),
            (None, None),
        ]

    @pytest.mark.parametrize("command", ["run", "builds"])
    def test_nowhere_to_print(self, write: Write, home: Path, command: str) -> None:
        home.mkdir()
        words = shlex.join([*COMMAND, command, str(write("build", GOOD) if command == "run" else home)])
        ended = subprocess.run(
            f"{words} >&-", shell=True, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert (ended.returncode, ended.stderr) == (2, "rxbus: standard output is closed\n")


class TestSignals:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    def test_a_signal_kills_the_steps_and_ends_it(self, number: int, code: int, write: Write, home: Path) -> None:
        if signal.getsignal(number) is signal.SIG_IGN:
            pytest.skip("the tests run under nohup, whose children ignore it too")
        with running("run", write("in_parallel(long), build", GOOD, LONG)) as process:
            pid = int(re.findall(r"pid (\d+)", line_with(process.stdout, "pid "))[0])
            process.send_signal(number)
            output, errors = rest_of(process)
        assert (process.returncode, errors) == (code, "")
        assert not psutil.pid_exists(pid)
        assert lines_in(output)[-1]["summary"]["status"] == "killed"
        assert sockets(home) == []
        assert terminal.Reader(home).row(1).status == "killed"

    def test_a_step_that_takes_no_notice(self, write: Write) -> None:
        with running("run", write("stubborn", STUBBORN, options="shutdown_timeout=0.1")) as process:
            line_with(process.stdout, "step-started")
            process.send_signal(signal.SIGINT)
            output, errors = rest_of(process)
        assert (process.returncode, "Traceback" in errors) == (130, False)
        assert lines_in(output)[-1]["summary"]["status"] == "dead"

    def test_the_second_ctrl_c_hits_at_once(self, write: Write) -> None:
        with running("run", write("stubborn", STUBBORN, options="shutdown_timeout=1000")) as process:
            line_with(process.stdout, "step-started")
            process.send_signal(signal.SIGINT)
            line_with(process.stdout, "received_kill")
            process.send_signal(signal.SIGINT)
            _, errors = rest_of(process)
        assert (process.returncode, errors) == (130, "")

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
    def test_the_second_one_leaves_no_command_alive(self, number: int, code: int, write: Write) -> None:
        stubborn = """stubborn = shell("trap '' TERM; echo pid $$; while true; do sleep 0.1; done")"""
        with running("run", write("stubborn", stubborn)) as process:
            pid = int(re.findall(r"pid (\d+)", line_with(process.stdout, "pid "))[0])
            process.send_signal(number)
            line_with(process.stdout, "received_kill")
            process.send_signal(number)
            rest_of(process)
        assert process.returncode == code
        with suppress(psutil.NoSuchProcess):  # it has been killed; somebody may still have to take note of that
            psutil.Process(pid).wait(PATIENCE)

    def test_a_reader_that_leaves_ends_it_quietly(self, write: Write) -> None:
        chatty = 'chatty = shell("echo pid $$; while sleep 0.05; do echo more; done")'
        with running("run", write("chatty", chatty)) as process:
            with stream(process.stdout) as lines:
                pid = int(re.findall(r"pid (\d+)", line_with(lines, "pid "))[0])
            errors = stream(process.stderr).read()
            assert (process.wait(PATIENCE), errors) == (1, "")
        assert not psutil.pid_exists(pid)


class TestScreen:
    def test_a_live_tree_and_what_has_failed(self, write: Write) -> None:
        steps = 'in_parallel(shell("echo [bold]hi; sleep 0.3"), alias("x[/]", build)), bad, build'
        with Terminal("run", write(steps, GOOD, BAD)) as screen:
            code, lines = screen.end()
        assert code == 1
        assert "▶ in_parallel (1) running" in screen.seen
        assert "printed by a step" in screen.seen
        drawn = [re.sub(r"\d+\.\d s", "0.0 s", line) for line in lines]
        assert drawn == [
            "✗ build 1 failure 0.0 s",
            "├── ✓ in_parallel (1) success 0.0 s  [red]building",
            "│   ├── ✓ shell: echo [bold]hi; sleep 0.3 (1-1) success 0.0 s  [bold]hi",
            "│   └── ✓ x[/] (2-1) success 0.0 s  [red]building",
            "│       └── ✓ build (1-2-1) success 0.0 s  [red]building",
            "├── ✗ bad (2) failure 0.0 s  [bold]oh no",
            "└── · build (3)",
            "",
            "bad (2):",
            "  [bold]oh no",
            "build 1: failure, 0.0 s; failed: bad (2)",
        ]

    def test_ctrl_c(self, write: Write) -> None:
        with Terminal("run", write("long", LONG)) as screen:
            screen.read_until("pid ")
            screen.process.send_signal(signal.SIGINT)
            code, lines = screen.end()
        assert code == 130
        assert lines[-1].startswith("build 1: killed")

    def test_json_is_there_to_be_asked_for(self, write: Write) -> None:
        with Terminal("run", "--json", write("build", GOOD)) as screen:
            screen.read_until(None)
            assert screen.process.wait(PATIENCE) == 0
        assert '{"summary":' in screen.seen
        assert "├" not in screen.seen

    def test_a_prompt_asks_for_each_parameter(self, write: Write, home: Path) -> None:
        parameters = '{"version": {"desc": "[red]which"}, "where": None}'
        with Terminal("run", write(f"parameterized_trigger({parameters}), build", GOOD)) as screen:
            screen.read_until("version, [red]which: ")
            screen.type("7.1\n")
            screen.read_until("where: ")
            screen.type("there\n")
            code, _ = screen.end()
        assert code == 0
        result = terminal.Reader(home).build(1)[1][(1,)]
        assert (result["version"], result["where"]) == ("7.1", "there")
        assert f"waits for a trigger; from another terminal: rxbus pipeline trigger {home}" in screen.seen

    def test_enter_answers_what_has_no_parameters(self, write: Write) -> None:
        both = "in_parallel(wait_for_manual_trigger, wait_for_manual_trigger)"
        with Terminal("run", write(both, options="")) as screen:
            screen.read_until("Enter triggers it: ")
            screen.type("n\n")
            screen.read_until("only that triggers it; Ctrl-C kills the build")
            for _ in range(2):
                screen.read_until("Enter triggers it: ")
                screen.type("\n")
            code, _ = screen.end()
        assert code == 0
        assert "the pipeline has no home, so no other terminal can answer it" in screen.seen

    def test_another_terminal_is_faster(self, write: Write, home: Path) -> None:
        with Terminal("run", write("wait_for_manual_trigger, long", LONG)) as screen:
            screen.read_until("Enter triggers it: ")
            assert invoke("trigger", home).exit_code == 0
            screen.read_until("wait_for_manual_trigger (1) of build 1 does not wait any more")
            screen.read_until("pid ")
            screen.process.send_signal(signal.SIGINT)
            assert screen.end()[0] == 130

    def test_the_end_of_input_leaves_it_to_others(self, write: Write, home: Path) -> None:
        with Terminal("run", write("wait_for_manual_trigger")) as screen:
            screen.read_until("Enter triggers it: ")
            screen.type("\x04")
            screen.read_until("no more answers from here")
            assert invoke("trigger", home).exit_code == 0
            assert screen.end()[0] == 0


@pytest.fixture
def begin_waiting(home: Path) -> Iterator[Callable[..., Future[PipelineFinished]]]:
    """Runs steps that wait, side by side in this process, with a socket as `run` has one; gives what it comes to."""
    with ExitStack() as ending:

        def begin(*steps: Any) -> Future[PipelineFinished]:
            pipeline = ending.enter_context(Pipeline([in_parallel(*steps)], home=home))
            triggers = _prompt.Triggers(pipeline)
            all_wait = threading.Event()

            def hear(event: Event[topics.StepResultUpdated]) -> None:
                triggers.take(event.payload)
                if len(triggers.waiting()) == len(steps):
                    all_wait.set()

            pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(hear)
            ending.callback(Listener(home, triggers.reply).close)
            future = pipeline.start()
            assert all_wait.wait(PATIENCE)
            return future

        yield begin


class TestTrigger:
    def test_the_only_one(self, begin_waiting: Callable[..., Future[PipelineFinished]], home: Path) -> None:
        future = begin_waiting(parameterized_trigger({"version": {}, "empty": {}}))
        assert "'verison' is none of its parameters: version, empty" in refusal("trigger", home, "verison=1")
        ended = invoke("trigger", home, "version=1=2", "empty=")
        (told,) = lines_in(ended.stdout)
        assert (ended.exit_code, told["step_id"], told["build_number"]) == (0, "1-1", 1)
        assert told["parameters"] == {"version": {}, "empty": {}}
        result = future.result(PATIENCE).outputs[(1,)]
        assert (result["version"], result["empty"], result["status"]) == ("1=2", "", "success")
        assert "waits for a trigger" in refusal("trigger", home)

    def test_one_of_several(self, begin_waiting: Callable[..., Future[PipelineFinished]], home: Path) -> None:
        future = begin_waiting(wait_for_manual_trigger, alias("other", wait_for_manual_trigger))
        ended = invoke("trigger", home)
        assert (ended.exit_code, ended.stderr) == (2, "rxbus: 2 steps wait for a trigger: say which\n")
        told = {line["step_id"]: line["trigger_id"] for line in lines_in(ended.stdout)}
        assert told.keys() == {"1-1", "1-2-1"}
        for step, trigger_id in told.items():
            ended = invoke("trigger", home, trigger_id, f"who={step}")
            assert (ended.exit_code, lines_in(ended.stdout)[0]["step_id"]) == (0, step)
        results = flatten_outputs(future.result(PATIENCE).outputs)
        assert (results[(1, 1)]["who"], results[(1, 2, 1)]["who"]) == ("1-1", "1-2-1")

    def test_what_cannot_be_triggered(self, home: Path, tmp_path: Path) -> None:
        assert "there is no directory" in refusal("trigger", home)
        home.mkdir()
        assert "waits for a trigger" in refusal("trigger", home)
        assert "waits for the trigger 1234" in refusal("trigger", home, "1234", "key=value")
        assert "'b' is no parameter" in refusal("trigger", home, "1234", "a=1", "b")
        assert "'=b' is no parameter" in refusal("trigger", home, "=b")

    def test_a_trigger_is_answered_once(self, bus: EventBus) -> None:
        with Pipeline([wait_for_manual_trigger], bus=bus) as pipeline:
            triggers = _prompt.Triggers(pipeline)
            told = {"status": "waiting", "trigger_id": "x", "parameters": "none that can be asked for"}
            update = topics.StepResultUpdated(7, (1,), told)
            received: list[topics.ManualTriggerReceived] = []
            bus.subscribe(topics.MANUAL_TRIGGER_RECEIVED).subscribe(lambda event: received.append(event.payload))
            triggers.take(update)
            assert triggers.waiting() == [_prompt.Waiting("x", 7, "1", "a step")]
            assert [triggers.answer("x", {"a": 1}), triggers.answer("x", None)] == [True, False]
            triggers.take(update)  # as when it is told again, with a kill that has come
            assert triggers.waiting() == []
            assert received == [topics.ManualTriggerReceived("x", {"a": 1})]

    def test_a_subscriber_that_fails_does_not_matter(self, bus: EventBus) -> None:
        def fail(event: object) -> None:
            raise ValueError

        bus.subscribe(topics.MANUAL_TRIGGER_RECEIVED).subscribe(fail)
        with Pipeline([], bus=bus) as pipeline:
            triggers = _prompt.Triggers(pipeline)
            triggers.take(topics.StepResultUpdated(7, (1,), {"status": "waiting", "trigger_id": "x"}))
            assert triggers.answer("x", None)

    def test_a_process_that_does_not_answer_keeps_nobody_from_the_others(
        self, begin_waiting: Callable[..., Future[PipelineFinished]], home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(terminal, "LISTING", 0.2)
        home.mkdir()
        with socket.socket(socket.AF_UNIX) as silent:  # that of one that has been stopped
            silent.bind(str(home / "rxbus-0.sock"))
            silent.listen()
            assert "timed out" in refusal("trigger", home)
            future = begin_waiting(wait_for_manual_trigger)
            ended = invoke("trigger", home)
        assert (ended.exit_code, "timed out" in ended.stderr) == (0, True)
        assert future.result(PATIENCE).status == "success"

    def test_nonsense_at_the_socket(self, tmp_path: Path) -> None:
        with Pipeline([]) as pipeline:
            assert _prompt.Triggers(pipeline).reply(b"nonsense") == b'{"waiting":[],"answered":false}'
        with closing(Listener(tmp_path, lambda request: b"nonsense")):
            assert "what it answers is none" in refusal("trigger", tmp_path)

    def test_nobody_at_the_terminal_and_no_home_is_told(self, write: Write) -> None:
        with running("run", write("wait_for_manual_trigger", options="")) as process:
            told = stream(process.stderr).readline()
            process.send_signal(signal.SIGINT)
            rest_of(process)
        told_of, why = told.rstrip().split("; ")
        assert told_of == "wait_for_manual_trigger (1) of build 1 waits for a trigger"
        assert why == "the pipeline has no home, so no other terminal can answer it"
        assert process.returncode == 130

    def test_no_socket_can_be_made(self, write: Write, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        def refuse(path: Path) -> None:
            raise NoSocket(path, "not here")

        monkeypatch.setattr("rxbus.pipeline._answers._listening", refuse)
        assert invoke("run", write("build", GOOD)).exit_code == 0


class TestReading:
    @pytest.fixture
    def built(self, write: Write, home: Path) -> Path:
        """A home with a build that has failed."""
        assert invoke("run", write("in_parallel(build, bad), build", GOOD, BAD)).exit_code == 1
        return home

    def test_builds(self, built: Path) -> None:
        assert invoke("run", built.parent / "file.py").exit_code == 1
        (built / "build-2" / "build-state.json").write_text("{")
        (built / "build-9").mkdir()  # something foreign
        ended = invoke("builds", built)
        good, damaged = lines_in(ended.stdout)
        assert (ended.exit_code, good["build_number"], good["status"]) == (0, 1, "failure")
        assert datetime.fromisoformat(good["started"]) <= datetime.now(UTC)
        assert good["seconds"] >= 0
        assert good["failed_steps"] == [{"step_id": "2-1", "name": "bad"}]
        assert (damaged["build_number"], damaged["status"]) == (2, "damaged")
        assert "build-state.json is damaged" in damaged["reason"]

    def test_show(self, built: Path) -> None:
        ended = invoke("show", built, 1)
        rows = lines_in(ended.stdout)
        told = [(row["step_id"], row["name"], row["kind"], row["status"]) for row in rows]
        assert told == [
            ("1", "in_parallel", "in_parallel", "failure"),
            ("1-1", "build", "step", "success"),
            ("2-1", "bad", "step", "failure"),
            ("2", "build", "step", None),
        ]
        assert (rows[1]["result"]["out"], rows[1]["result"]["tests"]) == ("[red]building", 42)
        assert rows[3]["result"] == {}

    def test_what_cannot_be_shown(self, built: Path, tmp_path: Path) -> None:
        assert "there is no build 7" in refusal("show", built, 7)
        assert "there is no directory" in refusal("builds", tmp_path / "none")
        assert not (tmp_path / "none").exists()
        (built / "build-1" / "pipeline-structure.json").write_text("{")
        assert "pipeline-structure.json is damaged" in refusal("show", built, 1)

    def test_a_build_that_runs_stays_somebody_elses(
        self, begin_waiting: Callable[..., Future[PipelineFinished]], home: Path
    ) -> None:
        future = begin_waiting(wait_for_manual_trigger)
        output = subprocess.run([*COMMAND, "builds", home], capture_output=True, text=True, env=ENVIRONMENT).stdout
        assert lines_in(output)[0]["status"] == "waiting"
        assert invoke("trigger", home).exit_code == 0
        assert future.result(PATIENCE).status == "success"

    def test_on_a_screen(self, built: Path) -> None:
        with Terminal("show", built, "1") as screen:
            code, lines = screen.end()
        assert code == 0
        assert [re.sub(r"\d+\.\d s", "0.0 s", line) for line in lines] == [
            "✗ build 1 failure 0.0 s",
            "├── ✗ in_parallel (1) failure 0.0 s",
            "│   ├── ✓ build (1-1) success 0.0 s",
            "│   │     [red]building",
            "│   │     tests: 42",
            "│   └── ✗ bad (2-1) failure 0.0 s",
            "│         [bold]oh no",
            "└── · build (2)",
            "build 1: failure, 0.0 s; failed: bad (2-1)",
        ]
        with Terminal("builds", built) as screen:
            code, (heading, row) = screen.end()
        assert code == 0
        assert heading.split() == ["build", "status", "started", "duration", "failed", "steps"]
        assert row.split()[:3] == ["1", "✗", "failure"]
        assert row.endswith("bad (2-1)")

    def test_a_reader_that_leaves_ends_it_quietly(self, built: Path) -> None:
        ours, theirs = os.pipe()
        os.close(ours)
        with running("show", built, 1, stdout=theirs) as process:
            os.close(theirs)
            assert (rest_of(process)[1], process.returncode) == ("", 1)


class TestRetrigger:
    def test_it_goes_on_from_a_step(self, write: Write, home: Path) -> None:
        path = write("build, run(bad, build)", GOOD, 'def bad(args, ctx): return {"status": os.environ["FILE_STATUS"]}')
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FILE_STATUS", "failure")
            assert invoke("run", path).exit_code == 1
            patch.setenv("FILE_STATUS", "success")
            again = Path(os.path.relpath(home))
            ended = invoke("retrigger", again, path, 1, "1-2")
        assert ended.exit_code == 0
        *events, last = lines_in(ended.stdout)
        assert last["summary"]["build_number"] == 2
        assert [event["topic"] for event in events if event.get("step_id") == "1"] == [
            "step-result-updated", "step-started", "step-finished",
        ]  # fmt: skip
        assert {row["status"] for row in lines_in(invoke("builds", home).stdout)} == {"failure", "success"}

    def test_what_cannot_be_retriggered(self, write: Write, home: Path, tmp_path: Path) -> None:
        path = write("build, bad, build", GOOD, BAD)
        assert invoke("run", path).exit_code == 1
        assert f"the home of the pipeline in {path} is not {tmp_path}" in refusal("retrigger", tmp_path, path, 1, "1")
        assert "there is no build 8" in refusal("retrigger", home, path, 8, "1")
        assert "has no step 3, or" in refusal("retrigger", home, path, 1, "3")
        for step in ("1.2", "", "1-", "01", "one", "\uff11"):
            assert "is no step" in refusal("retrigger", home, path, 1, step)
        assert "had other steps" in refusal("retrigger", home, write("build", GOOD), 1, "1")
        assert "but none" in refusal("retrigger", home, write("build", GOOD, options=""), 1, "1")


class TestParts:
    def test_the_command_is_part_of_rxbus(self) -> None:
        done = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, env=ENVIRONMENT, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, "")
        for command in ("run", "retrigger", "trigger", "builds", "show"):
            assert f" {command} " in done.stdout

    @pytest.mark.parametrize(
        ("out", "lines"),
        [
            ("", [""]),
            ("one\ntwo\r\n\n", ["one", "two"]),
            ("10 %\r50 %\r100 %\n", ["100 %"]),
            ("\x1b[1;31mred\x1b[0m\x1b[2K [b]\t.", ["red [b]    ."]),
            ("\x1b]0;title\x07", ["\ufffd]0;title\ufffd"]),
            (7, ["7"]),
        ],
    )
    def test_output_cannot_steer_the_terminal(self, out: object, lines: list[str]) -> None:
        assert _report.lines_of(out) == lines

    def test_what_json_cannot_hold_is_left_out(self) -> None:
        line = _report.json_line({"topic": "step-finished", "step_id": "1", "final_result": {"out": "\udc80"}})
        assert json.loads(line) == {"topic": "step-finished", "step_id": "1", "left_out": ["final_result"]}
        assert [_report.json_text(value) for value in ("a", [1], "\udc80", {"a": "\udc80"})] == [
            "a", "[1]", "\udc80", "{'a': '\\udc80'}",
        ]  # fmt: skip

    def test_durations(self) -> None:
        assert [_report.duration(seconds) for seconds in (None, 0.04, 59.94, 61.9, 3600)] == [
            "", "0.0 s", "59.9 s", "1 min 1 s", "60 min 0 s",
        ]  # fmt: skip

    def test_how_a_build_is_doing(self) -> None:
        structure = tuple(StepStructure((number,), "x", "step") for number in (1, 2))

        def status(running: bool, *statuses: str) -> str:
            results = {(number,): {"status": status} for number, status in enumerate(statuses, 1)}
            return _report.build_status(structure, without_life(results) if not running else results, running)

        assert [status(True), status(True, "success"), status(True, "waiting")] == ["running", "running", "waiting"]
        assert [status(False, "success", "success"), status(False, "failure")] == ["success", "failure"]
        assert status(False, "success", "killed") == "killed"
        assert [status(False), status(False, "success"), status(False, "success", "running")] == ["dead"] * 3
        assert _report.build_status((), {}, False) == "success"

    def test_steps_that_do_not_count_as_failed(self) -> None:
        loser = StepStructure((1, 1), "loser", "step")
        race = StepStructure((1,), "either", "either", (loser, StepStructure((2, 1), "winner", "step")))
        results: dict[tuple[int, ...], dict[str, Any]] = {(1,): {"status": "success"}, (1, 1): {"status": "failure"}}
        assert list(_report.failed((race,), results)) == []
        results[(1,)] = {"status": "failure"}
        assert list(_report.failed((race,), results)) == [_report.NamedStep("1-1", "loser")]
        assert list(_report.failed((race,), {(1,): {"status": "failure"}})) == [_report.NamedStep("1", "either")]

    def test_a_mocked_steps_time_does_not_count(self) -> None:
        now = datetime.now(UTC)
        times = {"first_updated_at": now, "most_recent_update_at": now}
        old = {key: time - timedelta(days=1) for key, time in times.items()}
        structure = tuple(StepStructure((number,), "x", "step") for number in (1, 2))
        results = {
            (1,): {"status": "success", "retrigger_mock_for_build_number": 1, **old},
            (2,): {"status": "success", **times},
        }
        row = _report.build_row(2, structure, results, running=False)
        assert (row.started, row.seconds) == (now, 0.0)

    def test_where_there_is_little_room_what_is_alike_is_drawn_in_one_line(self) -> None:
        inner = tuple(StepStructure((number, 4), f"inner {number}", "step") for number in range(1, 6))
        structure = tuple(
            StepStructure((number,), f"step {number}", "step", inner if number == 4 else ()) for number in range(1, 9)
        )
        done = {(number,): {"status": "success", "out": "well"} for number in (1, 2, 3)}
        results: dict[Any, Any] = done | {(4,): {"status": "running"}, (1, 4): {"status": "failure", "out": "oh no"}}
        row = _report.build_row(1, structure, results, running=True)
        drawn = io.StringIO()
        Console(file=drawn, width=100).print(_report.tree_of(row, structure, results, room=10))
        assert [line.strip("│├└─ ") for line in drawn.getvalue().splitlines()] == [
            "▶ build 1 running",
            "✓ 3 steps (1 to 3) success",
            "▶ step 4 (4) running",
            "✗ inner 1 (1-4) failure  oh no",
            "· 4 steps (2-4 to 5-4)",
            "· 4 steps (5 to 8)",
        ]
        drawn = io.StringIO()
        Console(file=drawn, width=100).print(_report.tree_of(row, structure, results, room=20))
        assert len(drawn.getvalue().splitlines()) == 14

    def test_times_without_a_zone_do_not_count(self) -> None:
        naive = {"first_updated_at": datetime(2020, 1, 1), "most_recent_update_at": datetime(2020, 1, 1)}
        now = datetime.now(UTC)
        times = {"first_updated_at": now, "most_recent_update_at": now}
        assert _report.times_of([{"status": "success", **naive}, {"status": "success", **times}]) == (now, 0.0)

    def test_a_damaged_build_and_markup_in_the_table(self) -> None:
        rows = [
            _report.BuildRow(1, "damaged", reason="[red]file is damaged"),
            _report.BuildRow(2, "failure", failed_steps=[_report.NamedStep("1", "[bold]x")]),
        ]
        drawn = io.StringIO()
        Console(file=drawn, width=100).print(terminal.builds_table(rows))
        first, second = drawn.getvalue().splitlines()[1:]
        assert first.rstrip().endswith("[red]file is damaged")
        assert second.rstrip().endswith("[bold]x (1)")
