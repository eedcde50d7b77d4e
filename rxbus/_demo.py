"""The demo: the machine's own life as events, and how well the bus carries them.

Machine samples -> Probe publishes and measures -> observers, from `attach_observers` -> `on_screen` or `as_lines`
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from statistics import fmean
from typing import Any, TypeVar

import msgspec
import psutil
from reactivex import Observable, abc
from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rxbus import Event, EventBus, Topic, only_payload
from rxbus._console import exit_code, noted_signals
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
                yield STARTED, Process(pid, printable(psutil.Process(pid).name()))
            except psutil.Error:  # it has ended already, or is none of our business
                continue


def printable(text: str) -> str:
    """Replaces what could steer a terminal or cannot be encoded: whoever starts a process is free to name it."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


class Row(msgspec.Struct, frozen=True):
    """What has been measured of one topic; p50 and p99 are of the time until all observers have acknowledged."""

    topic: str
    events: int
    rate: float
    observers: int
    p50_ms: float | None
    p99_ms: float | None
    failures: int
    slowest: str | None


class Report(msgspec.Struct, frozen=True):
    """What has been measured up to now, and what is new since the report before."""

    time: float
    topics: list[Row]
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


def milliseconds(times: Collection[float], percent: int) -> float | None:
    """A percentile of durations given in seconds, by nearest rank; None where there are none yet."""
    rank = max(1, math.ceil(percent * len(times) / 100))
    return round(1000 * sorted(times)[rank - 1], 3) if times else None


def slowest(handlers: Iterable[tuple[str, Collection[float]]]) -> str | None:
    """The observer with the longest time by the median; None where there is no observer."""
    return max(((milliseconds(times, 50) or 0.0, name) for name, times in handlers), default=(0.0, None))[1]


class Meter:
    """Measures one topic: publishes and, by the names of the observers, what comes behind `Probe.observe`."""

    LAST = 1000  # durations, in seconds, that the percentiles are taken of
    RECENT = 5.0  # seconds that the rate is taken over

    def __init__(self) -> None:
        self._events = 0
        self._failures = 0
        self._recent: deque[float] = deque()
        self._times: deque[float] = deque(maxlen=self.LAST)
        self.handlers: dict[str, deque[float]] = {}

    def add(self, now: float, seconds: float, failures: int) -> None:
        self._events += 1
        self._failures += failures
        self._recent.append(now)
        self._times.append(seconds)

    def add_handler(self, name: str, seconds: float) -> None:
        self.handlers.setdefault(name, deque(maxlen=self.LAST)).append(seconds)

    def row(self, topic: str, observers: int, now: float, elapsed: float) -> Row:
        while self._recent and self._recent[0] < now - self.RECENT:
            self._recent.popleft()
        rate = round(len(self._recent) / min(self.RECENT, elapsed), 1)
        p50, p99 = milliseconds(self._times, 50), milliseconds(self._times, 99)
        return Row(topic, self._events, rate, observers, p50, p99, self._failures, slowest(self.handlers.items()))


class Probe:
    """A bus with stopwatches: all that the demo publishes and observes goes through here.

    There is no lock, thanks to the bus: each number is written by one observer, which is never entered twice at a time,
    or by the loop in `run`, and read in that loop between two samples, when every observer has acknowledged.
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._begin = time.perf_counter()
        self._meters = {topic.name: Meter() for topic in (LOAD, MEMORY, STARTED, AVERAGE, ALERT)}

    def publish(self, topic: Topic[T], payload: T) -> None:
        """Publishes and measures the time until all have acknowledged. Failures are counted, and the show goes on."""
        meter = self._meters.setdefault(topic.name, Meter())
        failures = 0
        begin = time.perf_counter()
        try:
            self._bus.publish(topic, payload)
        except PublishError as error:
            failures = len(error.exceptions)
        end = time.perf_counter()
        meter.add(end, end - begin, failures)

    def observe(self, topic: str | Topic[T], name: str) -> Observable[Event[T]]:
        """Subscribes under a name, and times whatever follows."""
        source: Observable[Event[T]] = self._bus.subscribe(topic, name=name)

        def subscribe(observer: abc.ObserverBase[Event[T]], scheduler: abc.SchedulerBase | None) -> abc.DisposableBase:
            def on_next(event: Event[T]) -> None:
                begin = time.perf_counter()
                try:
                    observer.on_next(event)
                finally:
                    self._meters[event.topic].add_handler(name, time.perf_counter() - begin)

            return source.subscribe(on_next, observer.on_error, observer.on_completed, scheduler=scheduler)

        return Observable(subscribe)

    def report(self, news: list[str]) -> Report:
        now = time.perf_counter()
        rows = [
            meter.row(name, len(self._bus.topic(name).observers), now, now - self._begin)
            for name, meter in self._meters.items()
        ]
        return Report(time.time(), rows, news)

    def summary(self) -> Summary:
        bus, seconds = self._bus.statistics(), round(time.perf_counter() - self._begin, 3)
        handlers = itertools.chain.from_iterable(meter.handlers.items() for meter in self._meters.values())
        return Summary(seconds, bus.published, bus.acknowledged, bus.failed, slowest(handlers))


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
    probe.observe(">", "news").subscribe(news.on_next)

    loads: Observable[float] = probe.observe("machine.cpu.*", "moving average").pipe(only_payload)
    windows = loads.buffer_with_count(AVERAGED * processors, processors)
    whole = windows.filter(lambda window: len(window) == AVERAGED * processors)  # the last ones, on closing, are not
    whole.map(fmean).subscribe(lambda percent: probe.publish(AVERAGE, percent))

    alerts = probe.observe(AVERAGE, "alert").pipe(only_payload).map(lambda percent: Alert(percent, percent > HIGH))
    alerts.distinct_until_changed(lambda alert: alert.high).subscribe(lambda alert: probe.publish(ALERT, alert))

    probe.observe(MEMORY, "slow observer").subscribe(lambda _: time.sleep(SLOW))

    turns = itertools.count(1)

    def fail_now_and_then(_: object) -> None:
        if next(turns) % FLAKY == 0:
            raise RuntimeError("not in the mood")

    probe.observe(LOAD, "flaky observer").subscribe(fail_now_and_then)


Show = Callable[[Report], None]


@contextmanager
def as_lines(summary: Callable[[], Summary]) -> Iterator[Show]:
    """Shows reports, and in the end the summary, as JSON lines; in UTF-8, whatever the locale is."""

    def write(value: object) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
        sys.stdout.buffer.flush()

    yield write
    write({"summary": summary()})


FOOTER = "p50 and p99: until every observer has acknowledged. Ctrl-C ends the demo."


@contextmanager
def on_screen(summary: Callable[[], Summary]) -> Iterator[Show]:
    """Shows reports as a live table, which the news pass by above, and in the end the summary."""
    with Live(auto_refresh=False) as live:

        def show(report: Report) -> None:
            for line in report.news:
                live.console.print(Text(line, "dim"))
            live.update(Group(table(report.topics), Text(FOOTER, "dim")), refresh=True)

        yield show
    live.console.print(Text(str(summary())))


def table(rows: list[Row]) -> Table:
    """Draws rows, in 80 columns. Names are drawn as `Text`, in which square brackets are no markup."""
    drawn = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    drawn.add_column("topic", no_wrap=True)
    for heading in ("events", "rate /s", "observers", "p50 ms", "p99 ms", "failures"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("slowest observer")
    for row in rows:
        drawn.add_row(
            Text(row.topic),
            f"{row.events:,}",
            f"{row.rate:.1f}",
            f"{row.observers}",
            *("" if ms is None else f"{ms:.2f}" for ms in (row.p50_ms, row.p99_ms)),
            Text(f"{row.failures:,}", "bold red" if row.failures else ""),
            Text(row.slowest or ""),
        )
    return drawn


def run(seconds: float | None, as_json: bool) -> int:
    """Runs the demo, for some time or until a signal comes.

    Returns:
        The exit code: 0 or, as shells have it, 128 and the signal's number.
    """
    console = Console()
    lively = sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal and not as_json
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
