"""The demo: the machine's own life as events, and how well the bus carries them.

Machine samples -> the bus, measured by a Meter -> observers, from `attach_observers` -> `on_screen` or `as_lines`
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from statistics import fmean
from typing import Any, TypeVar

import msgspec
import psutil
from reactivex import Observable
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from rxbus import Event, EventBus, Topic, only_payload
from rxbus._console import exit_code, is_screen, noted_signals, standard_output, write_line
from rxbus.display._meter import Frame, Meter, Row, Selection
from rxbus.display._top import as_segments, printable
from rxbus.errors import PublishError

T = TypeVar("T")


class Process(msgspec.Struct, frozen=True):
    """A process that has started."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.pid})"


class Alert(msgspec.Struct, frozen=True):
    """The average load of the processors, in percent, has come to be high, or calm again."""

    percent: float
    high: bool

    def __str__(self) -> str:
        return f"{self.percent:.0f} %, {'high' if self.high else 'calm'}"


LOAD = Topic("machine.load", float)  # of the last minute
MEMORY = Topic("machine.memory", float)  # percent in use
STARTED = Topic("machine.process.started", Process)
AVERAGE = Topic("average.cpu", float)  # percent, of all processors
ALERT = Topic("alert.cpu", Alert)

PERIOD = 0.1  # seconds from one sample to the next
AVERAGED = 5  # samples
HIGH = 50.0  # percent
SLOW = 0.02  # seconds that the slow observer takes
FLAKY = 5  # the flaky observer fails every so many events
ALL = Selection(limit=10_000)  # topics


class Machine:
    """Samples the machine; each sample tells what has happened since the one before."""

    def __init__(self) -> None:
        self.processors = len(psutil.cpu_percent(percpu=True))
        self._pids = set(psutil.pids())

    def sample(self) -> Iterator[tuple[Topic[Any], Any]]:
        """Gives what there is to publish: topics with payloads."""
        yield LOAD, psutil.getloadavg()[0]
        yield MEMORY, psutil.virtual_memory().percent
        for number, percent in enumerate(psutil.cpu_percent(percpu=True)):
            yield Topic(f"machine.cpu.{number}", float), percent
        before, self._pids = self._pids, set(psutil.pids())
        for pid in sorted(self._pids - before):
            try:
                # Whoever starts a process is free to name it: in a way that cannot be encoded, too.
                yield STARTED, Process(pid, printable(psutil.Process(pid).name()))
            except psutil.Error:  # it has ended already, or is none of our business
                continue


class Report(msgspec.Struct, frozen=True):
    """What has been measured up to now, and what is new since the report before."""

    time: float
    topics: tuple[Row, ...]
    news: list[str]


class Summary(msgspec.Struct, frozen=True):
    """What it all came to, as the bus itself has counted."""

    seconds: float
    published: int
    acknowledged: int
    failed: int
    slowest: str | None

    def __str__(self) -> str:
        counts = f"{self.published:,} events, {self.acknowledged:,} acknowledged, {self.failed:,} failed"
        return f"{self.seconds:.1f} s: {counts}; slowest observer: {self.slowest}"


class Probe:
    """A bus that is measured. It is read between two samples, when every observer has acknowledged."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self._begin = time.perf_counter()
        self._meter = Meter(bus)
        self._rows()  # from here on, times are measured

    def publish(self, topic: Topic[T], payload: T) -> None:
        """Publishes. The bus counts failures, and the show goes on."""
        with suppress(PublishError):
            self.bus.publish(topic, payload)

    def report(self, news: list[str]) -> Report:
        return Report(time.time(), self._rows(), news)

    def summary(self) -> Summary:
        bus, seconds = self.bus.statistics(), round(time.perf_counter() - self._begin, 3)
        slowest = max(self._rows(), key=lambda row: row.slowest_ms or 0.0, default=None)
        name = None if slowest is None else slowest.slowest
        return Summary(seconds, bus.published, bus.acknowledged, bus.failed, name)

    def _rows(self) -> tuple[Row, ...]:
        frame = self._meter.frame(ALL)
        return () if frame is None else frame.rows


class News:
    """Observes all events, and tells of alerts and process starts, with the chain of causes that led there."""

    LATEST = 20  # how many are told at a time

    def __init__(self) -> None:
        self._events: dict[int, Event[Any]] = {}  # since the last `take`
        self._latest: deque[Event[Any]] = deque(maxlen=self.LATEST)

    def on_next(self, event: Event[Any]) -> None:
        self._events[event.id] = event
        if event.topic in (ALERT.name, STARTED.name):
            self._latest.append(event)

    def take(self) -> list[str]:
        """The latest since the last call. (Only now is it sure that the causes have come, too.)"""
        lines = [f"{' <- '.join(self._trail(event))}: {event.payload}" for event in self._latest]
        self._events.clear()
        self._latest.clear()
        return lines

    def _trail(self, event: Event[Any]) -> Iterator[str]:
        yield event.topic
        if event.cause is not None:
            yield from self._trail(self._events[event.cause])


def attach_observers(probe: Probe, news: News, processors: int) -> None:
    """Attaches what the demo is about: observers, composed with operators, that publish, dawdle and fail."""
    probe.bus.subscribe(">", name="news").subscribe(news.on_next)

    loads: Observable[float] = probe.bus.subscribe("machine.cpu.*", name="moving average").pipe(only_payload)
    windows = loads.buffer_with_count(AVERAGED * processors, processors)
    whole = windows.filter(lambda window: len(window) == AVERAGED * processors)  # the last ones, on closing, are not
    whole.map(fmean).subscribe(lambda percent: probe.publish(AVERAGE, percent))

    alerts = (
        probe.bus.subscribe(AVERAGE, name="alert")
        .pipe(only_payload)
        .map(lambda percent: Alert(percent, percent > HIGH))
    )
    alerts.distinct_until_changed(lambda alert: alert.high).subscribe(lambda alert: probe.publish(ALERT, alert))

    probe.bus.subscribe(MEMORY, name="slow observer").subscribe(lambda _: time.sleep(SLOW))

    turns = itertools.count(1)

    def fail_now_and_then(_: object) -> None:
        if next(turns) % FLAKY == 0:
            raise RuntimeError("not in the mood")

    probe.bus.subscribe(LOAD, name="flaky observer").subscribe(fail_now_and_then)


Show = Callable[[Report], None]


@contextmanager
def as_lines(summary: Callable[[], Summary]) -> Iterator[Show]:
    """Shows reports, and in the end the summary, as JSON lines; in UTF-8, whatever the locale is."""

    out = standard_output()

    def write(value: object) -> None:
        write_line(out, msgspec.json.encode(value))

    yield write
    write({"summary": summary()})


@contextmanager
def on_screen(summary: Callable[[], Summary]) -> Iterator[Show]:
    """Shows reports as a live table, which the news pass by above, and in the end the summary."""
    with Live(auto_refresh=False) as live:

        def show(report: Report) -> None:
            for line in report.news:
                live.console.print(Text(line, "dim"))
            table = as_segments(Frame(report.topics, 0), live.console.width)
            live.update(Group(table, Text("Ctrl-C ends the demo.", "dim")), refresh=True)

        yield show
    live.console.print(Text(str(summary())))


def run(seconds: float | None, as_json: bool) -> int:
    """Runs the demo, for some time or until a signal comes.

    Returns:
        The exit code: 0 or, as shells have it, 128 and the signal's number.
    """
    console = Console()
    lively = is_screen(as_json) and console.is_terminal and not console.is_dumb_terminal
    with noted_signals() as signals, EventBus() as bus:
        probe, news, machine = Probe(bus), News(), Machine()
        attach_observers(probe, news, machine.processors)
        with (on_screen if lively else as_lines)(probe.summary) as show:
            now = time.perf_counter()
            end, every = now + (math.inf if seconds is None else seconds), 0.25 if lively else 1.0
            due = now + every
            while now < end and not signals:
                for topic, payload in machine.sample():
                    probe.publish(topic, payload)
                if now >= due:
                    show(probe.report(news.take()))
                    due += every
                time.sleep(max(0.0, min(now + PERIOD, end) - time.perf_counter()))
                now = time.perf_counter()
            show(probe.report(news.take()))
    return exit_code(signals)
