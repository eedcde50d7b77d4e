"""The terminal: the real command in processes of its own, and what the demo is made of."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

import rxbus
from rxbus import Event, EventBus, Topic, _console, _demo, cli
from rxbus.display._meter import Row
from tests.processes import rest_of

ENVIRONMENT = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "xterm", "PYTHONUNBUFFERED": ""}
MISSING = "rxbus: the terminal needs the extra 'cli': install rxbus with it, in a clone by pip install '.[cli]'\n"
PATIENCE = 30  # seconds, for what takes a few
SQUEAK = f"squeak{os.getpid()}"  # a process of this run, whatever runs beside it

pytestmark = pytest.mark.timeout(60, method="signal")  # which, unlike a thread, leaves no demo running


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, env=ENVIRONMENT)


@contextmanager
def running(*arguments: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "rxbus", *arguments]
    with subprocess.Popen(command, text=True, env=ENVIRONMENT, **streams) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def running_process(directory: Path, name: str) -> Iterator[int]:
    """A process of any name, until we are done with it; gives its pid."""
    program = directory / name
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    with subprocess.Popen([program], stdin=subprocess.PIPE) as process:
        yield process.pid


def stream(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def read_until(terminal: IO[bytes], text: str | None) -> str:
    """What a terminal shows up to some text, or to its end, where reading a pty fails."""
    seen = b""
    while text is None or text.encode() not in seen:
        try:
            seen += terminal.read(65536)
        except OSError:
            assert text is None, seen
            break
    return seen.decode(errors="replace")  # it may end within a character


def by_topic(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["topic"]: row for row in report["topics"]}


class TestCommand:
    def test_version(self) -> None:
        done = python("-m", "rxbus", "--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"rxbus {rxbus.__version__}\n", "")

    def test_the_entry_point(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(sys, "argv", ["rxbus", "--version"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, capsys.readouterr().out) == (0, f"rxbus {rxbus.__version__}\n")
        monkeypatch.setitem(sys.modules, "typer", None)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code, capsys.readouterr().err) == (2, MISSING)

    @pytest.mark.parametrize(
        ("to", "told"), [(">&-", "standard output is closed"), (">/dev/full", "[Errno 28] No space left on device")]
    )
    def test_nowhere_to_print(self, to: str, told: str) -> None:
        words = shlex.join([sys.executable, "-m", "rxbus", "demo", "--seconds", "0.1"])
        done = subprocess.run(f"{words} {to}", shell=True, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr) == (2, f"rxbus: {told}\n")

    @pytest.mark.parametrize(("arguments", "shown"), [(["--help"], "demo"), (["demo", "--help"], "--seconds")])
    def test_help(self, arguments: list[str], shown: str) -> None:
        done = python("-m", "rxbus", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert shown in done.stdout

    @pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
    def test_seconds_are_a_number_greater_than_0(
        self, seconds: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["rxbus", "demo", "--seconds", seconds])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert "--seconds" in capsys.readouterr().err

    @pytest.mark.parametrize("package", ["typer", "rich", "psutil", "hdrh"])
    def test_a_missing_extra_is_told(self, package: str) -> None:
        done = python("-c", f"import sys; sys.modules[{package!r}] = None; from rxbus.cli import main; main()", "demo")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == MISSING

    def test_what_else_is_missing_is_not_taken_for_the_extra(self) -> None:
        done = python("-c", "import sys; sys.modules['statistics'] = None; from rxbus.cli import main; main()", "demo")
        assert done.returncode == 1
        assert "ModuleNotFoundError: import of statistics" in done.stderr

    def test_an_interrupt_before_the_demo_has_begun(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(cli, "_application", interrupted)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 130


class TestLines:
    def test_a_line_a_second_and_a_summary(self) -> None:
        done = python("-m", "rxbus", "demo", "--seconds", "2")
        assert (done.returncode, done.stderr) == (0, "")
        *reports, last = map(json.loads, done.stdout.splitlines())

        assert 1 <= len(reports) <= 2
        times = [report["time"] for report in reports]
        assert times == sorted(set(times))
        rows = by_topic(reports[-1])
        counts, times = {"topic", "events", "rate", "observers", "pending", "failures"}, {"p50_ms", "p99_ms"}
        shape = counts | times | {"slowest", "slowest_ms"}
        assert all(set(row) == shape for row in rows.values())
        observers = {"machine.cpu.0": 2, "machine.load": 2, "machine.memory": 2, "average.cpu": 2, "alert.cpu": 1}
        for topic, attached in observers.items():
            row = rows[topic]
            assert row["observers"] == attached, topic
            assert row["events"] > 0, topic
            assert row["rate"] > 0, topic
            assert 0 < row["p50_ms"] <= row["p99_ms"], topic
        assert rows["machine.memory"]["slowest"] == "slow observer"
        assert rows["machine.memory"]["p50_ms"] >= 1000 * _demo.SLOW
        assert rows["machine.load"]["failures"] == rows["machine.load"]["events"] // _demo.FLAKY > 0
        news = [line for report in reports for line in report["news"]]
        assert any(line.startswith("alert.cpu <- average.cpu <- machine.cpu.") for line in news)

        summary = last["summary"]
        assert summary["seconds"] >= 2
        assert summary["published"] == sum(row["events"] for row in rows.values())
        assert summary["acknowledged"] > summary["published"]
        assert summary["failed"] == rows["machine.load"]["failures"]
        assert summary["slowest"] == "slow observer"

    def test_a_process_start_is_an_event_and_sigterm_the_end(self, tmp_path: Path) -> None:
        with running("demo", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
            with ExitStack() as processes:
                pids = []
                for line in stream(demo.stdout):
                    if SQUEAK in line:
                        break
                    pids.append(processes.enter_context(running_process(tmp_path, SQUEAK)))
            demo.terminate()
            output, errors = rest_of(demo)
        report = json.loads(line)
        assert {f"machine.process.started: {SQUEAK} ({pid})" for pid in pids} & set(report["news"])
        assert by_topic(report)["machine.process.started"]["events"] > 0
        assert (demo.returncode, errors) == (143, "")
        assert list(json.loads(output.splitlines()[-1])) == ["summary"]

    def test_ctrl_c_ends_it_with_the_summary(self) -> None:
        with running("demo", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
            report = json.loads(stream(demo.stdout).readline())
            assert time.time() - report["time"] < 3  # it was not held back in a buffer
            demo.send_signal(signal.SIGINT)
            output, errors = rest_of(demo)
        assert (demo.returncode, errors) == (130, "")
        assert list(json.loads(output.splitlines()[-1])) == ["summary"]

    def test_a_reader_that_leaves_ends_it_quietly(self) -> None:
        with running("demo", stdout=subprocess.PIPE, stderr=subprocess.PIPE) as demo:
            with stream(demo.stdout) as lines:
                json.loads(lines.readline())
            errors = stream(demo.stderr).read()
            assert (demo.wait(PATIENCE), errors) == (1, "")


class TestTerminal:
    def test_a_live_table_until_ctrl_c(self, tmp_path: Path) -> None:
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        with (
            running("demo", stdin=theirs, stdout=theirs, stderr=theirs) as demo,
            open(ours, "rb", buffering=0) as screen,
        ):
            os.close(theirs)
            seen = read_until(screen, "machine.cpu.0")
            with ExitStack() as processes:
                for _ in range(5):  # one may be seen in the moment before it has its name
                    processes.enter_context(running_process(tmp_path, "[red]x"))
                seen += read_until(screen, "machine.process.started: [red]x (")
            demo.send_signal(signal.SIGINT)
            seen += read_until(screen, None)
            assert demo.wait(PATIENCE) == 130
        for heading in ("topic", "events", "rate /s", "pending", "p50 ms", "p99 ms", "failures", "slowest"):
            assert heading in seen
        assert "machine.process.started" in seen
        assert "slowest observer: slow observer" in seen.splitlines()[-1]
        assert seen.rfind("\x1b[?25h") > seen.rfind("\x1b[?25l") >= 0  # the cursor is there again
        assert "Traceback" not in seen

    def test_json_is_there_to_be_asked_for(self) -> None:
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        with (
            running("demo", "--json", "--seconds", "0.3", stdout=theirs) as demo,
            open(ours, "rb", buffering=0) as screen,
        ):
            os.close(theirs)
            report, summary = map(json.loads, read_until(screen, None).splitlines())
            assert demo.wait(PATIENCE) == 0
        assert (list(report), list(summary)) == (["time", "topics", "news"], ["summary"])


class TestRun:
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_leaves_nothing_behind(
        self, number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Interrupted(_demo.Machine):
            def sample(self) -> Iterator[tuple[Topic[Any], Any]]:
                yield _demo.MEMORY, 1.0
                signal.raise_signal(number)
                yield _demo.MEMORY, 2.0

        monkeypatch.setattr(_demo, "Machine", Interrupted)
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        threads = threading.enumerate()
        assert _demo.run(None, as_json=True) == code
        assert threading.enumerate() == threads
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
        report, summary = map(json.loads, capsys.readouterr().out.splitlines())
        assert by_topic(report)["machine.memory"]["events"] == 2  # the sample was carried to its end
        assert summary["summary"]["published"] == 2

    def test_a_second_ctrl_c_hits_at_once(self) -> None:
        with _console.noted_signals() as noted:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]

    def test_the_command_ends_by_itself(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "argv", ["rxbus", "demo", "--seconds", "1.2"])
        handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
        *_, report, summary = map(json.loads, capsys.readouterr().out.splitlines())
        assert summary["summary"]["published"] == sum(row["events"] for row in report["topics"]) > 0


class TestMachine:
    def test_a_sample_of_each_kind(self, tmp_path: Path) -> None:
        machine = _demo.Machine()
        with running_process(tmp_path, SQUEAK) as pid:
            sample = [(topic.name, payload) for topic, payload in machine.sample()]
            again = [payload for _, payload in machine.sample()]
        cores = [f"machine.cpu.{number}" for number in range(machine.processors)]
        assert [name for name, _ in sample][: 2 + len(cores)] == ["machine.load", "machine.memory", *cores]
        assert ("machine.process.started", _demo.Process(pid, SQUEAK)) in sample
        assert _demo.Process(pid, SQUEAK) not in again

    def test_a_process_that_has_ended_already_is_passed_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            ended.wait(PATIENCE)
        machine = _demo.Machine()
        monkeypatch.setattr(psutil, "pids", lambda: [ended.pid])
        assert _demo.STARTED not in [topic for topic, _ in machine.sample()]


class TestObservers:
    @pytest.fixture
    def news(self) -> _demo.News:
        return _demo.News()

    @pytest.fixture
    def probe(self, bus: EventBus, news: _demo.News) -> _demo.Probe:
        probe = _demo.Probe(bus)
        _demo.attach_observers(probe, news, processors=2)
        return probe

    def test_the_average_moves_and_crossing_the_threshold_alerts(
        self, bus: EventBus, probe: _demo.Probe, news: _demo.News, caplog: pytest.LogCaptureFixture
    ) -> None:
        averages: list[float] = []
        bus.subscribe(_demo.AVERAGE).only_payload().subscribe(averages.append)
        for percent in (100, 100, 100, 100, 100, 100, 0, 0, 0, 0):
            probe.publish(Topic("machine.cpu.0", float), percent)
            probe.publish(Topic("machine.cpu.1", float), percent)
        assert averages == [100, 100, 80, 60, 40, 20]
        chain = "alert.cpu <- average.cpu <- machine.cpu.1"
        assert news.take() == [f"{chain}: 100 %, high", f"{chain}: 40 %, calm"]
        assert news.take() == []
        bus.close()  # the windows begun are no averages
        assert (len(averages), caplog.messages) == (6, [])

    def test_failures_are_counted_and_the_show_goes_on(self, probe: _demo.Probe) -> None:
        for _ in range(2 * _demo.FLAKY):
            probe.publish(_demo.LOAD, 1.0)
        (row,) = (row for row in probe.report([]).topics if row.topic == _demo.LOAD.name)
        assert (row.events, row.failures, row.observers) == (2 * _demo.FLAKY, 2, 2)
        assert probe.summary().failed == 2

    def test_the_slow_observer_is_found(self, probe: _demo.Probe) -> None:
        probe.publish(_demo.LOAD, 1.0)
        probe.publish(_demo.MEMORY, 1.0)
        assert probe.summary().slowest == "slow observer"

    def test_news_are_only_the_latest(self, news: _demo.News) -> None:
        for pid in range(news.LATEST + 4):
            news.on_next(Event(_demo.STARTED.name, _demo.Process(pid, "sh"), id=pid, time=0.0))
        assert news.take() == [f"machine.process.started: sh ({pid})" for pid in range(4, news.LATEST + 4)]


class TestMeasures:
    def test_names_cannot_steer_the_terminal(self) -> None:
        assert _demo.printable("\x1b[31m\udc80\n[red]é") == "\ufffd[31m\ufffd\ufffd[red]é"


class TestTable:
    ROW = Row("topic.[red]", 1234, 10.04, 2, 0, 7, 0.123, None, "[bold]slow", 0.1)

    def test_the_screen_ends_with_the_summary(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("COLUMNS", "120")
        with _demo.on_screen(lambda: _demo.Summary(3.0, 1234, 2468, 7, "[bold]slow")) as show:
            show(_demo.Report(0.0, (self.ROW,), ["news of [red]"]))
        first, *drawn, last = capsys.readouterr().out.splitlines()
        assert first == "news of [red]"
        assert any("topic.[red]" in line and "[bold]slow" in line for line in drawn)
        assert last.endswith("3.0 s: 1,234 events, 2,468 acknowledged, 7 failed; slowest observer: [bold]slow")
