"""The demo: the machine's own life as events, carried by a bus, and how well it carries them.

Machine -> Probe.publish -> the observers -> Probe.report -> Screen or Lines
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec
import psutil

from rxbus import Topic

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
    """Whoever starts a process names it: what could steer a terminal, or cannot be encoded, is made visible."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


class Times:
    """The last thousand durations of something, in seconds."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=1000)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def milliseconds(self, percent: int) -> float | None:
        """A percentile by nearest rank; None where there is nothing yet."""
        ordered = sorted(self._seconds)
        if not ordered:
            return None
        return round(1000 * ordered[max(0, math.ceil(percent * len(ordered) / 100) - 1)], 3)


def slowest(handlers: Iterable[tuple[str, Times]]) -> tuple[float, str] | tuple[None, None]:
    """The median, in milliseconds, and the name of the observer with the longest one; None where there is none."""
    return max(((times.milliseconds(50) or 0.0, name) for name, times in handlers), default=(None, None))


class Row(msgspec.Struct, frozen=True):
    """What has been measured of one topic: publishes and their acknowledgement, and observers."""

    topic: str
    events: int
    rate: float
    observers: int
    p50_ms: float | None
    p99_ms: float | None
    failures: int
    slowest: str | None
    slowest_ms: float | None


class Report(msgspec.Struct, frozen=True):
    """What has been measured of all topics up to now, and what is new since the report before."""

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
    slowest_ms: float | None

    def __str__(self) -> str:
        text = f"{self.seconds:.1f} s: {self.published:,} events, {self.acknowledged:,} acknowledged, {self.failed:,} failed"
        return text if self.slowest is None else f"{text}; slowest observer: {self.slowest}, {self.slowest_ms:.1f} ms"


class Meter:
    """Measures one topic."""

    RECENT = 5.0  # seconds that the rate is taken over

    def __init__(self) -> None:
        self.events = 0
        self.failures = 0
        self.acknowledgement = Times()
        self.handlers: dict[str, Times] = {}
        self._recent: deque[float] = deque()

    def add(self, now: float, seconds: float, failures: int) -> None:
        self.events += 1
        self.failures += failures
        self.acknowledgement.add(seconds)
        self._recent.append(now)

    def row(self, topic: str, observers: int, now: float, elapsed: float) -> Row:
        while self._recent and self._recent[0] < now - self.RECENT:
            self._recent.popleft()
        rate = round(len(self._recent) / min(self.RECENT, elapsed), 1)
        p50, p99 = (self.acknowledgement.milliseconds(percent) for percent in (50, 99))
        milliseconds, name = slowest(self.handlers.items())
        return Row(topic, self.events, rate, observers, p50, p99, self.failures, name, milliseconds)


class Probe:
    """A bus with stopwatches: all that the demo publishes and observes goes through here.

    There is no lock, and the bus is why: each number is written by one observer, which is never entered twice at a time,
    and read between publishes, when every observer has acknowledged.
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._begin = time.monotonic()
        self._meters = {topic.name: Meter() for topic in (LOAD, MEMORY, STARTED, AVERAGE, ALERT)}

    def publish(self, topic: Topic[T], payload: T) -> None:
        """Publishes and measures the time until all have acknowledged. Failures are counted, and the show goes on."""
        begin = time.monotonic()
        failures = 0
        try:
            self._bus.publish(topic, payload)
        except PublishError as error:
            failures = len(error.exceptions)
        end = time.monotonic()
        self._meter(topic.name).add(end, end - begin, failures)

    def observe(self, topic: str | Topic[T], name: str) -> Observable[Event[T]]:
        """Subscribes, so that whatever follows is timed under that name."""
        source: Observable[Event[T]] = self._bus.subscribe(topic, name=name)

        def subscribe(observer: abc.ObserverBase[Event[T]], scheduler: abc.SchedulerBase | None) -> abc.DisposableBase:
            def on_next(event: Event[T]) -> None:
                begin = time.monotonic()
                try:
                    observer.on_next(event)
                finally:
                    times = self._meter(event.topic).handlers.setdefault(name, Times())
                    times.add(time.monotonic() - begin)

            return source.subscribe(on_next, observer.on_error, observer.on_completed, scheduler=scheduler)

        return Observable(subscribe)

    def report(self, news: list[str]) -> Report:
        now = time.monotonic()
        rows = [
            meter.row(topic, len(self._bus.topic(topic).observers), now, now - self._begin)
            for topic, meter in self._meters.items()
        ]
        return Report(time.time(), rows, news)

    def summary(self) -> Summary:
        bus = self._bus.statistics()
        milliseconds, name = slowest(item for meter in self._meters.values() for item in meter.handlers.items())
        seconds = round(time.monotonic() - self._begin, 3)
        return Summary(seconds, bus.published, bus.acknowledged, bus.failed, name, milliseconds)

    def _meter(self, topic: str) -> Meter:
        return self._meters.setdefault(topic, Meter())


class News:
    """Observes everything, and tells of alerts and process starts, with the chain of causes that led to each."""

    REMEMBERED = 10_000  # events that causes are looked up in

    def __init__(self) -> None:
        self._events: dict[int, Event[Any]] = {}
        self._latest: deque[Event[Any]] = deque(maxlen=5)

    def on_next(self, event: Event[Any]) -> None:
        self._events[event.id] = event
        if len(self._events) > self.REMEMBERED:
            del self._events[next(iter(self._events))]
        if event.topic in (ALERT.name, STARTED.name):
            self._latest.append(event)

    def take(self) -> list[str]:
        """The latest since the last call. Not told at once: an event may come here before the one that caused it."""
        told = [f"{' <- '.join(self._trail(event))}: {event.payload}" for event in self._latest]
        self._latest.clear()
        return told

    def _trail(self, event: Event[Any]) -> Iterator[str]:
        yield event.topic
        while event.cause is not None and event.cause in self._events:
            event = self._events[event.cause]
            yield event.topic


def attach_observers(probe: Probe, news: News, processors: int) -> None:
    """Attaches what the demo is about: observers, composed with operators, that publish, dawdle and fail."""
    probe.observe(">", "news").subscribe(news.on_next)

    averages = probe.observe("machine.cpu.*", "moving average").pipe(only_payload)
    averages.buffer_with_count(AVERAGED * processors, processors).map(fmean).subscribe(
        lambda percent: probe.publish(AVERAGE, percent)
    )

    alerts = probe.observe(AVERAGE, "alert").pipe(only_payload).map(lambda percent: Alert(percent, percent > HIGH))
    alerts.distinct_until_changed(lambda alert: alert.high).subscribe(lambda alert: probe.publish(ALERT, alert))

    probe.observe(MEMORY, "slow observer").subscribe(lambda _: time.sleep(SLOW))

    turns = itertools.count(1)

    def fail_now_and_then(_: object) -> None:
        if next(turns) % FLAKY == 0:
            raise RuntimeError("not in the mood")

    probe.observe(LOAD, "flaky observer").subscribe(fail_now_and_then)


class Lines:
    """Shows reports as JSON lines, in UTF-8 whatever the locale is."""

    EVERY = 1.0  # seconds

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, report: Report) -> None:
        self._write(report)

    def end(self, summary: Summary) -> None:
        self._write({"summary": summary})

    def _write(self, value: object) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
        sys.stdout.buffer.flush()


class Screen:
    """Shows reports as a live table, the news passing by above it."""

    EVERY = 0.25  # seconds

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def show(self, report: Report) -> None:
        for line in report.news:
            self._console.print(Text(line, "dim"))
        self._live.update(table(report.topics), refresh=True)

    def end(self, summary: Summary) -> None:
        self._live.stop()
        self._console.print(Text(str(summary)))


def table(rows: list[Row]) -> Table:
    """Draws rows. Names are `Text`, in which square brackets are no markup."""
    drawn = Table("topic", caption="Ctrl-C ends it")
    for heading in ("events", "rate /s", "observers", "p50 ms", "p99 ms", "failures"):
        drawn.add_column(heading, justify="right")
    drawn.add_column("slowest observer")
    for row in rows:
        drawn.add_row(
            Text(row.topic),
            f"{row.events:,}",
            f"{row.rate:.1f}",
            f"{row.observers}",
            *("" if ms is None else f"{ms:.2f}" for ms in (row.p50_ms, row.p99_ms)),
            Text(f"{row.failures:,}", "bold red" if row.failures else ""),
            Text("" if row.slowest is None else f"{row.slowest}, {row.slowest_ms:.2f} ms"),
        )
    return drawn


class Signals:
    """Notes Ctrl-C and SIGTERM, to end between two samples, not in the middle of a line. The second one hits as ever."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()


def run(seconds: float | None, as_json: bool) -> int:
    """Runs the demo, for some time or until a signal comes.

    Returns:
        The exit code: 0 or, as shells have it, 128 and the signal's number.
    """
    console = Console()
    on_screen = sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal and not as_json
    with Signals() as signals, EventBus() as bus, Screen(console) if on_screen else Lines() as output:
        probe, news, machine = Probe(bus), News(), Machine()
        attach_observers(probe, news, machine.processors)
        now = time.monotonic()
        end, due = now + (math.inf if seconds is None else seconds), now + output.EVERY
        while now < end and signals.received is None:
            for topic, payload in machine.sample():
                probe.publish(topic, payload)
            if now >= due:
                output.show(probe.report(news.take()))
                due += output.EVERY
            time.sleep(max(0.0, min(now + PERIOD, end) - time.monotonic()))
            now = time.monotonic()
        output.show(probe.report(news.take()))
        output.end(probe.summary())
    return 0 if signals.received is None else 128 + signals.received
