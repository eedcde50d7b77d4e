"""`rxbus replay` and `rxbus report`: the commands themselves; what a page holds is tested in display/test_report.py."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import tty
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rxbus import Event, EventBus, _recordings, cli
from rxbus.recording import Recording
from tests.processes import rest_of
from tests.recordings import HOSTILE, HOSTILE_TOPIC, delivery, event, made, write
from tests.test_cli import ENVIRONMENT, PATIENCE, python, read_until, running, stream

pytestmark = pytest.mark.timeout(60, method="signal")

Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; gives its exit code and what it has written."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["rxbus", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [
        event(1, "a.b", time=1.0, payload={"x": "é\u2028"}),
        event(2, HOSTILE_TOPIC, time=1.001, payload=HOSTILE, cause=1),
        {"type": "event", "id": 3, "topic": "a.c", "time": 1.002, "repr": "<socket>"},
        delivery(1, start=1.0, end=1.001),
    ]
    return write(tmp_path / "file.rec", lines)


class TestReplay:
    LINES = (
        {"time": 1.0, "id": 1, "topic": "a.b", "payload": {"x": "é\u2028"}},
        {"time": 1.001, "id": 2, "topic": HOSTILE_TOPIC, "cause": 1, "payload": HOSTILE},
        {"time": 1.002, "id": 3, "topic": "a.c", "repr": "<socket>"},
    )

    def test_a_line_for_each_event(self, run: Run, file: Path) -> None:
        code, out, errors = run("replay", file)
        assert (code, errors) == (0, "")
        assert [json.loads(line) for line in out.split("\n")[:-1]] == [*self.LINES]

    @pytest.mark.parametrize(("pattern", "ids"), [("a.*", [1, 3]), ("a.c", [3]), ("*", [2]), (">", [1, 2, 3])])
    def test_of_some_topics_only(self, pattern: str, ids: list[int], run: Run, file: Path) -> None:
        _, out, _ = run("replay", file, "--topic", pattern, "--speed", "inf", "--json")
        assert [json.loads(line)["id"] for line in out.split("\n")[:-1]] == ids

    def test_lines_are_utf_8_whatever_the_locale(self, file: Path) -> None:
        environment = {**ENVIRONMENT, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        command = [sys.executable, "-m", "rxbus", "replay", str(file), "--topic", "a.b"]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
        assert '"é\u2028"'.encode() in done.stdout

    @pytest.mark.parametrize(("speed", "seconds"), [(1.0, [5.0, 2.5]), (10.0, [0.5, 0.25])])
    def test_at_its_distances_in_time(
        self, speed: float, seconds: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[float] = []

        def replay(self: Recording, bus: EventBus, speed: float) -> None:
            asked.append(speed)
            for one in self.events:
                bus.publish(one.topic, one.payload)

        monkeypatch.setattr(Recording, "replay", replay)
        shown: list[Event[Any]] = []
        recording = made(tmp_path, [event(1), event(2, time=5.0), event(3, time=7.5)])
        assert _recordings.play(recording, speed, lambda topic: True, shown.append) == 0
        assert (asked, shown) == ([speed], recording.events)

    def test_what_has_no_topic_is_told_and_left_out(self, run: Run, tmp_path: Path) -> None:
        file = write(tmp_path / "file.rec", [event(1, "a"), event(2, "b c"), event(3, "d")])
        code, out, errors = run("replay", file, "--speed", "inf")
        assert (code, [json.loads(line)["topic"] for line in out.splitlines()]) == (0, ["a", "d"])
        assert errors.endswith("no topic, cannot be replayed: line 3\n")

    @pytest.mark.parametrize("speed", ["0", "-1", "nan", "fast"])
    def test_a_speed_that_cannot_be_meant(self, speed: str, run: Run, file: Path) -> None:
        code, out, errors = run("replay", file, "--speed", speed)
        assert (code, out) == (2, "")
        assert "--speed" in errors

    def test_a_pattern_that_is_none(self, run: Run, file: Path) -> None:
        code, out, errors = run("replay", file, "--topic", "a..[red]b")
        assert (code, out) == (2, "")
        assert errors.startswith("rxbus: 'a..[red]b' is not a topic")
        assert errors.count("\n") == 1

    def test_ctrl_c_ends_it_while_it_waits(self, tmp_path: Path) -> None:
        file = write(tmp_path / "file.rec", [event(1), event(2, time=1e6)])
        with running("replay", str(file), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as replay:
            assert json.loads(stream(replay.stdout).readline())["id"] == 1
            replay.send_signal(signal.SIGINT)
            assert rest_of(replay) == ("", "")
        assert replay.returncode == 130

    def test_a_reader_that_leaves_ends_it_quietly(self, tmp_path: Path) -> None:
        file = write(tmp_path / "file.rec", [event(id, payload="x" * 100) for id in range(10_000)])
        command = ("replay", str(file), "--speed", "inf")
        with running(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as replay:
            with stream(replay.stdout) as lines:
                json.loads(lines.readline())
            errors = stream(replay.stderr).read()
            assert (replay.wait(PATIENCE), errors) == (1, "")

    def test_what_cannot_be_shown_ends_it(self, tmp_path: Path) -> None:
        seen: list[int] = []

        def show(event: Event[Any]) -> None:
            seen.append(event.id)
            raise OSError("the disk is full")

        with pytest.raises(OSError, match="the disk is full"):
            _recordings.play(made(tmp_path, [event(1), event(2)]), 1.0, lambda topic: True, show)
        assert seen == [1]


class TestScreen:
    def lines(self, file: Path, *arguments: str) -> list[str]:
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        with (
            running("replay", str(file), "--speed", "inf", *arguments, stdout=theirs) as replay,
            open(ours, "rb", buffering=0) as screen,
        ):
            os.close(theirs)
            seen = read_until(screen, None)
            assert replay.wait(PATIENCE) == 0
        return re.sub(r"\x1b\[[0-9;]*m", "", seen).split("\n")[:-1]

    def test_events_on_a_terminal(self, file: Path) -> None:
        first, second, third = self.lines(file)
        assert first.endswith('  a.b  #1  {"x":"é\ufffd"}')
        assert _recordings.plain(HOSTILE_TOPIC) in second
        assert "[red]" in second
        assert "\x1b" not in second
        assert third.endswith("  a.c  #3  <socket>")

    def test_json_is_there_to_be_asked_for(self, file: Path) -> None:
        assert [json.loads(line)["id"] for line in self.lines(file, "--topic", "a.*", "--json")] == [1, 3]

    def draw(self, events: Iterable[Event[Any]], width: int = 100) -> list[str]:
        drawn = io.StringIO()
        show = _recordings.Drawn(Console(file=drawn, width=width))
        for one in events:
            show(one)
        return drawn.getvalue().splitlines()

    def test_a_line_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (line,) = self.draw([Event("a", "x" * 1_000_000, id=7, time=0.0, cause=5)], width=60)
        assert len(line) == 60
        assert line.endswith("…")
        (line,) = self.draw([Event("a", "one\ntwo", id=7, time=0.0, cause=5)])
        assert line.endswith('a  #7 <- #5  "one\\ntwo"')

    def test_times_that_no_clock_gives(self) -> None:
        (line,) = self.draw([Event("a", None, id=7, time=1e300)])
        assert line == "1e+300  a  #7  null"


class TestReport:
    def test_to_a_file_that_is_replaced(self, run: Run, file: Path, tmp_path: Path) -> None:
        page = tmp_path / "report.html"
        page.write_text("old")
        page.chmod(0o640)
        assert run("report", file, "-o", page) == (0, "", "")
        assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
        assert stat.S_IMODE(page.stat().st_mode) == 0o640
        assert sorted(os.listdir(tmp_path)) == ["file.rec", "report.html"]

    @pytest.mark.parametrize("arguments", [(), ("-o", "-")], ids=["nowhere", "dash"])
    def test_to_standard_output(self, arguments: tuple[str, ...], run: Run, file: Path) -> None:
        code, out, errors = run("report", file, *arguments)
        assert (code, errors) == (0, "")
        assert out.startswith("<!DOCTYPE html>")
        assert out.endswith("</html>\n")

    def test_not_to_a_terminal(self, file: Path) -> None:
        ours, theirs = pty.openpty()
        tty.setraw(theirs)
        with running("report", str(file), stdout=theirs, stderr=subprocess.PIPE) as report:
            os.close(theirs)
            assert stream(report.stderr).read() == (
                "rxbus: a page is nothing for a terminal: say where to write it, by -o report.html\n"
            )
            assert report.wait(PATIENCE) == 2
        os.close(ours)

    def test_where_nothing_can_be_written(self, run: Run, file: Path, tmp_path: Path) -> None:
        code, out, errors = run("report", file, "-o", tmp_path / "no" / "report.html")
        assert (code, out) == (2, "")
        assert errors.startswith("rxbus: [Errno 2] No such file or directory")

    def test_the_recording_may_be_replaced_by_no_page(self, run: Run, file: Path, monkeypatch: Any) -> None:
        before = file.read_bytes()
        monkeypatch.setattr(_recordings, "make_report", lambda recording: 1 / 0)
        monkeypatch.setattr(sys, "argv", ["rxbus", "report", str(file), "-o", str(file)])
        with pytest.raises(ZeroDivisionError):
            cli.main()
        assert file.read_bytes() == before


@pytest.mark.parametrize("command", ["replay", "report"])
class TestFiles:
    def test_what_is_no_recording(self, command: str, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "[red]\x1b[31mnone"
        assert run(command, file)[0] == 2
        file.write_text("{}")
        code, out, errors = run(command, file)
        assert (code, out) == (2, "")
        assert errors.startswith("rxbus: ")
        assert errors.endswith("[red]none is not a recording that can be loaded: its first line is not a recording's\n")

    def test_what_is_damaged_is_told_and_the_rest_shown(self, command: str, run: Run, file: Path) -> None:
        with file.open("ab") as damaged:
            damaged.write(b'{"type":"event","id":9,"topic":"a.')
        code, out, errors = run(command, file)
        assert code == 0
        assert errors.startswith(f"rxbus: {file} is damaged; ")
        assert errors.count("\n") == 1
        assert "a.b" in out

    def test_without_the_extra(self, command: str) -> None:
        code = "import sys; sys.modules['rich'] = None; from rxbus.cli import main; main()"
        done = python("-c", code, command, "file.rec")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("rxbus: the terminal needs the extra 'cli': ")
