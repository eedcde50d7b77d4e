"""`bus.top()`: where it draws, when, and how it ends; and the thread that draws."""

from __future__ import annotations

import gc
import io
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from html.parser import HTMLParser
from typing import Any

import pytest
import rich
from rich.console import Console

from rxbus import BusClosed, EventBus, PublishError
from rxbus.display import Top, _live, _top
from rxbus.display._live import PERIOD, SHARE, Live, require
from rxbus.display._meter import Frame, Row
from rxbus.errors import MissingExtra

PATIENCE = 10.0
Spawn = Callable[..., Future[Any]]

HOSTILE = Row("a.[red]<b>&", 12345, 1234.56, 2, 3, 4, 0.0123, 12.345, "\x1b[31m<i>'\"\n" + "x" * 100, 1.5)
PLAIN = Row("b", 0, 0.0, 0, 0, 0, None, None, None, None)


class Drawn(Live):
    """A view that keeps what it has drawn."""

    kind = "drawn"

    def __init__(self, bus: EventBus) -> None:
        super().__init__(bus)
        self.frames: list[tuple[str, Frame, str]] = []
        self.told = threading.Semaphore(0)
        self.fails = False

    def _note(self, what: str, frame: Frame) -> None:
        self.frames.append((what, frame, threading.current_thread().name))
        self.told.release()
        if self.fails:
            raise ValueError("no picture")

    def _begin(self, frame: Frame) -> None:
        self._note("begin", frame)

    def _draw(self, frame: Frame) -> None:
        self._note("draw", frame)

    def _close(self, frame: Frame) -> None:
        self._note("close", frame)

    def events(self) -> list[tuple[str, int]]:
        return [(what, sum(row.events for row in frame.rows)) for what, frame, _ in self.frames]

    def wait(self, frames: int) -> None:
        for _ in range(frames):
            assert self.told.acquire(timeout=PATIENCE)


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_live, "PERIOD", 0.001)
    monkeypatch.setattr(_live, "thread_time", lambda: 0.0)


@pytest.mark.usefixtures("_fast")
class TestLive:
    def test_frames_from_begin_to_end(self, bus: EventBus) -> None:
        view = Drawn.of(bus)
        view.wait(1)
        bus.publish("a")
        view.wait(1)
        bus.close()
        begun, *drawn, closed = [(what, thread) for what, _, thread in view.frames]
        assert begun == ("begin", threading.current_thread().name)
        assert set(drawn) == {("draw", "rxbus-drawn")}  # the rate falls meanwhile
        assert closed == ("close", "rxbus-drawn")
        assert view.events()[-1] == ("close", 1)
        assert not view.running
        assert bus._hub.tracers is None

    def test_there_is_one_until_it_ends(self, bus: EventBus, spawn: Spawn) -> None:
        views = {spawn(Drawn.of, bus).result(PATIENCE) for _ in range(8)}
        (view,) = views
        with EventBus() as other:
            assert Drawn.of(other) is not view
        view.stop()
        view.stop()
        again = Drawn.of(bus)
        assert again is not view
        assert again.running
        assert view.events()[-1][0] == "close"

    def test_not_on_a_closed_bus(self, bus: EventBus) -> None:
        bus.close()
        with pytest.raises(BusClosed):
            Drawn.of(bus)

    def test_nothing_is_drawn_while_nothing_changes(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        ticks = threading.Semaphore(0)
        tick = Drawn._tick

        def counted(self: Drawn, *arguments: Any, **named: Any) -> None:
            tick(self, *arguments, **named)
            ticks.release()

        monkeypatch.setattr(Drawn, "_tick", counted)
        view = Drawn.of(bus)
        for _ in range(10):
            assert ticks.acquire(timeout=PATIENCE)
        assert view.events() == [("begin", 0)]

    @pytest.mark.rxbus_allow("failures")
    def test_a_view_that_fails_ends_and_is_logged(self, bus: EventBus, caplog: pytest.LogCaptureFixture) -> None:
        view = Drawn.of(bus)
        view.fails = True
        with caplog.at_level(logging.ERROR, "rxbus"):
            bus.publish("a")
            view._thread.join(PATIENCE)
        assert not view.running
        assert [record.exc_info is not None for record in caplog.records] == [True, True]
        assert bus._hub.tracers is None
        assert bus.publish("a").acknowledged == 0

    def test_a_bus_that_is_forgotten_ends_it(self) -> None:
        bus = EventBus()
        bus.publish("a")
        view = Drawn.of(bus)
        del bus
        gc.collect()
        view._thread.join(PATIENCE)
        assert not view._thread.is_alive()
        assert view.events()[-1] == ("close", 1)

    def test_stopped_by_its_own_thread(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Drawn, "_draw", lambda self, frame: self.stop())
        view = Drawn.of(bus)
        bus.publish("a")
        view._thread.join(PATIENCE)
        assert view.events()[-1] == ("close", 1)

    def test_a_handler_may_stop_it(self, bus: EventBus) -> None:
        view = Drawn.of(bus)
        bus.subscribe("a").subscribe(lambda event: view.stop())
        assert bus.publish("a").acknowledged == 1
        assert not view._thread.is_alive()

    def test_stopped_before_it_has_started(self, bus: EventBus) -> None:
        view = Drawn(bus)
        bus.close()  # which calls `stop`
        view._start()
        view._thread.join(PATIENCE)
        assert [what for what, _ in view.events()] == ["begin", "close"]


class Pauses:
    """Stands for the bell that ends a view: notes how long the view waits for it, a few times."""

    def __init__(self, times: int) -> None:
        self.pauses: list[float] = []
        self.times = times

    def wait(self, pause: float) -> bool:
        self.pauses.append(pause)
        return len(self.pauses) > self.times

    def ring(self) -> None: ...


@pytest.mark.parametrize(("cost", "pause"), [(0.0, PERIOD), (0.001, PERIOD), (1.0, 1.0 / SHARE)])
def test_costly_frames_come_less_often(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, cost: float, pause: float
) -> None:
    assert PERIOD == 1 / 4
    now = iter(range(10))
    monkeypatch.setattr(_live, "thread_time", lambda: next(now) * cost)
    view: Any = Drawn(bus)
    view._end = pauses = Pauses(3)
    view._run()
    assert pauses.pauses == pytest.approx([PERIOD, pause, pause, pause])


class TestRequire:
    def test_what_is_missing_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "hdrh", None)
        monkeypatch.delitem(sys.modules, "hdrh.histogram", raising=False)
        with pytest.raises(MissingExtra, match=r"bus\.top\(\) needs the extra 'cli'"):
            require("cli", "bus.top()", "rich.live", "hdrh.histogram")

    def test_what_else_is_missing_is_not_taken_for_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def import_module(name: str) -> None:
            raise ModuleNotFoundError("no", name="numbers")

        monkeypatch.setattr(_live, "import_module", import_module)
        with pytest.raises(ModuleNotFoundError) as raised:
            require("cli", "bus.top()", "hdrh.histogram")
        assert not isinstance(raised.value, MissingExtra)

    def test_the_bus_tells_it(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "hdrh.histogram", None)
        with pytest.raises(MissingExtra, match="'cli'"):
            bus.top()
        monkeypatch.undo()
        monkeypatch.setitem(sys.modules, "rich.live", None)
        bus.top().stop()  # not needed here
        terminal(monkeypatch)
        with pytest.raises(MissingExtra, match="a terminal needs the extra 'cli'"):
            bus.top()


class Tty(io.StringIO):
    """A terminal that keeps what is drawn."""

    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Tty:
    """Has the program run in a terminal; no fixture, as pytest sets the output anew when those have been made."""
    tty = Tty()
    monkeypatch.setattr(sys, "stdout", tty)
    monkeypatch.setattr(rich, "_console", None)  # rich's own, which remembers what it was made for
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("LINES", "24")
    return tty


class TestFile:
    def test_the_table_is_printed_when_it_ends(self, bus: EventBus, capsys: pytest.CaptureFixture[str]) -> None:
        top = bus.top()
        assert bus.top() is top
        assert isinstance(top, Top)
        assert repr(top) == "<Top, running>"
        bus.subscribe("a", name="[red]").subscribe(lambda event: 1 / 0)
        with pytest.raises(PublishError):
            bus.publish("a")
        assert capsys.readouterr().out == ""
        bus.close()
        assert repr(top) == "<Top, stopped>"
        heading, row, about = capsys.readouterr().out.splitlines()
        assert heading.split("  ")[0] == "topic"
        assert row.split()[:2] == ["a", "1"]
        assert row.split()[5:7] == ["0", "1"]
        assert about == _top.ABOUT
        top.stop()
        top.show()
        assert capsys.readouterr().out == ""

    def test_a_reader_that_has_left(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Left(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        bus.top()
        monkeypatch.setattr(sys, "stdout", Left())
        bus.close()
        assert caplog.records == []

    @pytest.mark.parametrize("coding", ["ascii", "utf-8"])
    def test_names_that_it_cannot_hold(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch, coding: str) -> None:
        out = io.TextIOWrapper(io.BytesIO(), coding)
        monkeypatch.setattr(sys, "stdout", out)
        top = bus.top()
        bus.subscribe("prix.\ud800", name="\ud800").subscribe(lambda event: None)
        bus.publish("prix.\ud800")
        bus.publish("\u202eprix.\N{EURO SIGN}")
        top.stop()
        out.seek(0)
        text = out.read()
        assert "prix." in text
        assert "\u202e" not in text

    def test_an_output_that_is_closed(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        top = bus.top()
        out.close()
        top.stop()
        assert bus.top() is not top  # nor where it is closed before

    def test_a_dumb_terminal_is_no_terminal(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        tty = terminal(monkeypatch)
        monkeypatch.setenv("TERM", "dumb")
        bus.top().stop()
        assert tty.getvalue().splitlines()[-1] == "no topics yet"
        assert "\x1b" not in tty.getvalue()


class TestPrompt:
    @pytest.fixture(autouse=True)
    def _prompt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    def test_each_call_prints_it_as_it_is(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        tty = terminal(monkeypatch)
        bus.publish("a")
        bus.top()
        bus.publish("a")
        bus.top()
        bus.close()
        assert [line.split()[1] for line in tty.getvalue().splitlines() if line.startswith("a ")] == ["1", "2"]
        assert "\x1b" not in tty.getvalue()

    def test_ipython_prints_it_once(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        tty = terminal(monkeypatch)
        monkeypatch.setattr(_top, "running_shell", object)
        bus.top()._ipython_display_()
        assert tty.getvalue().splitlines()[1:] == ["no topics yet", "<Top, running>"]

    def test_only_what_fits_is_printed(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        tty = terminal(monkeypatch)
        monkeypatch.setenv("LINES", "10")
        for n in range(100):
            bus.publish(f"t.{n:02}")
        bus.top()
        assert len(tty.getvalue().splitlines()) == 8
        assert tty.getvalue().splitlines()[-1] == "and 94 more topics, less lively"


class TestTerminal:
    def test_from_begin_to_end(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        tty = terminal(monkeypatch)
        bus.publish("a.[red]")
        bus.top()
        assert sys.stdout is not tty  # what is printed passes above
        print("[bold]printed")
        bus.publish("a.[red]")
        bus.close()
        assert sys.stdout is tty
        seen = tty.getvalue()
        assert "[bold]printed" in seen
        assert seen.index("\x1b[?25l") < seen.index("a.[red]") < seen.rindex("\x1b[?25h")
        assert any(line.split()[1] == "2" for line in seen.splitlines() if line.lstrip("\x1b[2K").startswith("a.[red]"))

    def test_two_buses_share_it(self, bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
        tty = terminal(monkeypatch)
        bus.publish("first")
        bus.top()
        with EventBus() as other:
            other.publish("second")
            other.top()
            tty.truncate(0)
            bus.publish("first")
            bus.top().show()
        assert _top.Terminal._live is not None
        bus.close()
        assert _top.Terminal._live is None
        assert _top.Terminal._tables == {}
        assert tty.getvalue().count("second") >= 1

    def test_stdout_to_a_file_of_errors_is_not_taken(
        self, bus: EventBus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tty = terminal(monkeypatch)
        bus.top()
        print("to the file", file=sys.stderr)
        bus.close()
        assert "to the file" not in tty.getvalue()
        assert capsys.readouterr().err == "to the file\n"

    def test_a_program_that_just_ends_gets_its_cursor_back(self) -> None:
        program = "from rxbus import EventBus; bus = EventBus(); bus.publish('a.b'); bus.top(); print('the end')"
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "24"}
        with subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=environment) as run:
            os.close(theirs)
            seen = b""
            with open(ours, "rb", buffering=0) as screen:
                while True:
                    try:
                        seen += screen.read(65536)
                    except OSError:  # its end
                        break
            assert run.wait(PATIENCE) == 0
        assert b"the end" in seen
        assert b"a.b" in seen
        assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l") >= 0
        assert b"Traceback" not in seen


class Publisher:
    """Stands for what sends a kernel's output to the front end."""

    def __init__(self) -> None:
        self.sent: list[tuple[bool, str, str, dict[str, str]]] = []
        self.updated = threading.Event()

    def publish(self, data: Any, metadata: Any, *, transient: Any, update: bool) -> None:
        self.sent.append((update, transient["display_id"], threading.current_thread().name, data))
        if update:
            self.updated.set()


class Shell:
    """Stands for a notebook's."""

    def __init__(self) -> None:
        self.kernel = object()
        self.execution_count = 1
        self.display_pub = Publisher()


class TestNotebook:
    @pytest.fixture
    def shell(self, monkeypatch: pytest.MonkeyPatch) -> Shell:
        shell = Shell()
        monkeypatch.setattr(_top, "running_shell", lambda: shell)
        return shell

    @pytest.mark.usefixtures("_fast")
    def test_each_cell_shows_it_once_and_all_are_updated(self, bus: EventBus, shell: Shell) -> None:
        sent = shell.display_pub.sent
        top = bus.top()
        top._ipython_display_()
        assert [(update, thread) for update, _, thread, _ in sent] == [(False, threading.current_thread().name)]
        shell.execution_count = 2
        bus.top()
        bus.publish("a.<b")
        assert shell.display_pub.updated.wait(PATIENCE)
        bus.close()
        assert [update for update, *_ in sent][:2] == [False, False]
        assert {(update, thread) for update, _, thread, _ in sent[2:]} == {(True, "rxbus-top")}
        assert len({display_id for _, display_id, _, _ in sent}) == 1
        *_, data = sent[-1]
        assert "a.&lt;b" in data["text/html"]
        assert "a.<b" in data["text/plain"]
        shell.execution_count = 3
        top.show()
        assert (sent[-1][0], sent[-1][3]) == (False, data)

    def test_without_ipython(self) -> None:
        assert _top.running_shell() is None


class Cells(HTMLParser):
    """The texts of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class TestTables:
    def test_cells(self) -> None:
        *cells, slowest = _top.cells(HOSTILE)
        assert cells == ["a.[red]<b>&", "12,345", "1,234.6", "0.012", "12.35", "3", "4"]
        assert slowest.startswith("1.50 ms \ufffd[31m<i>'\"\ufffdxxx")
        assert _top.cells(PLAIN) == ("b", "0", "0.0", "", "", "0", "0", "")

    def test_html(self) -> None:
        parser = Cells()
        parser.feed(_top.as_html(Frame((HOSTILE, PLAIN), 3)))
        assert parser.open == []
        assert parser.texts[:9] == [*_top.HEADINGS, "a.[red]<b>&"]
        assert max(map(len, parser.texts)) == _top.WIDEST
        assert parser.texts[-1] == "and 3 more topics, less lively"

    def test_text(self) -> None:
        heading, first, second, remark = _top.as_text(Frame((HOSTILE, PLAIN), 0)).splitlines()
        assert heading.index("slowest") == first.index("1.50 ms")
        assert first.endswith("x\u2026")
        assert second.split() == ["b", "0", "0.0", "0", "0"]
        assert remark == _top.ABOUT
        assert _top.as_text(Frame((), 0)).splitlines()[1] == "no topics yet"

    @pytest.mark.parametrize("width", [20, 80, 200])
    def test_in_a_terminal(self, width: int) -> None:
        drawn = io.StringIO()
        console = Console(file=drawn, width=width, color_system=None, force_terminal=True)
        console.print(_top.as_segments(Frame((HOSTILE, PLAIN), 0), width), no_wrap=True, crop=True)
        heading, first, second, remark, *_ = drawn.getvalue().splitlines()
        assert max(map(len, (heading, first, second, remark))) <= width
        assert first.startswith("a.[red]<b>&")
        if width >= 80:
            assert "12,345  1,234.6" in first
            assert "1.50 ms \ufffd[31" in first
            assert remark == _top.ABOUT
            assert first.rstrip().endswith("\u2026")

    @pytest.mark.parametrize(("topic", "observer"), [(5, 50), (50, 5), (50, 50), (3, 3)])
    def test_names_share_the_room(self, topic: int, observer: int) -> None:
        row = Row("t" * topic, 1, 1.0, 1, 0, 0, 1.0, 1.0, "o" * (observer - 3), 1.0)
        line = _top.lines(Frame((row,), 0), 80)[1]
        assert (len(_top.GAP.join(line)) == 80) == (topic + observer > 50)
        assert len(_top.GAP.join(line)) <= 80
        names = (line[0].rstrip(), line[-1].rstrip())
        whole = [name for name in names if "\u2026" not in name]
        assert len(whole) == (0 if topic == observer == 50 else 2 if topic == observer else 1)

    def test_failures_stand_out(self) -> None:
        drawn = list(_top.as_segments(Frame((HOSTILE, PLAIN), 0), 80).segments)
        assert [text.strip() for text, style, _ in drawn if style and style.color] == ["4"]
