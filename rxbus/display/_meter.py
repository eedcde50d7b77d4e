"""Measures each topic of a bus, in a way that the bus hardly notices.

Counts, rates and failures are the bus's own, and exact. Times are sampled: a publish that is traced takes longer, so a
tracer is attached only until it has seen some hundred publishes and deliveries, once per frame. So a quiet bus is
measured whole, and a busy one goes on as before; there, a topic of few events may wait for its first times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from heapq import nlargest
from statistics import median
from time import monotonic, perf_counter
from typing import Any
from weakref import ref

import msgspec
from reactivex.disposable import SingleAssignmentDisposable

from rxbus import BusClosed, Event, EventBus, Receipt, TopicStatistics

SAMPLED = 200  # publishes and deliveries that are traced per frame
RECENT = 5.0  # seconds that rates are taken over
SPAN = 10.0  # seconds: times are of the latest one to two spans in which any were measured
LATEST = 64  # durations per observer and span
KEPT = 256  # topics whose times are kept, those measured last: a histogram takes 13 KB
LONGEST = 3_600_000_000  # microseconds that a histogram can hold

Duration = tuple[str, str | None, float]  # topic, observer (None: the whole publish), seconds


class Row(msgspec.Struct, frozen=True):
    """What has been measured of one topic.

    Attributes:
        topic: Its name.
        events: How many have been published.
        rate: How many per second, lately.
        observers: How many observers it feeds.
        pending: How many deliveries have not ended.
        failures: How many deliveries have failed.
        p50_ms: Half of the publishes took no longer until all had acknowledged, in milliseconds; None: none was seen.
        p99_ms: So did 99 of 100.
        slowest: The name of the observer whose deliveries take longest, by their median.
        slowest_ms: That median, in milliseconds.
    """

    topic: str
    events: int
    rate: float
    observers: int
    pending: int
    failures: int
    p50_ms: float | None
    p99_ms: float | None
    slowest: str | None
    slowest_ms: float | None


class Selection(msgspec.Struct, frozen=True):
    """Which topics are asked for.

    Attributes:
        limit: How many at the most: the liveliest.
        text: What their names contain.
        topics: Their names, where only some are wanted; none stands for all.
    """

    limit: int = 100
    text: str = ""
    topics: tuple[str, ...] = ()

    def wants(self, topic: str) -> bool:
        return self.text in topic and (not self.topics or topic in self.topics)


class Frame(msgspec.Struct, frozen=True):
    """What is to be drawn: rows in the order of their names, and how many more there would have been."""

    rows: tuple[Row, ...]
    hidden: int


class Meter:
    """Measures a bus from frame to frame. It keeps no bus alive, and is used by one thread at a time.

    Args:
        bus: What is measured.
        clock: Tells the time, in seconds.
    """

    def __init__(self, bus: EventBus, clock: Callable[[], float] = monotonic) -> None:
        self._bus = ref(bus)
        self._clock = clock
        self._durations: deque[Duration] = deque()  # filled by the threads that publish
        self._sample: Sample | None = None
        self._times: dict[str, Times] = {}  # by topic; the one measured last comes last
        self._past = deque([(clock(), bus.topic_statistics())])  # as far as rates look back

    def frame(self, selection: Selection) -> Frame | None:
        """Tells what has happened up to now, and samples until the next frame; None where the bus exists no more."""
        bus = self._bus()
        if bus is None:
            return None
        now, statistics = self._clock(), bus.topic_statistics()
        self._past.append((now, statistics))
        while self._past[1][0] <= now - RECENT:
            self._past.popleft()
        self._take_in(now)
        self._watch(bus)
        return self._frame(selection, now, statistics)

    def close(self) -> None:
        """Detaches what it has attached."""
        if self._sample is not None:
            self._sample.detach()

    def _watch(self, bus: EventBus) -> None:
        if self._sample is None or self._sample.is_spent():
            self.close()
            self._sample = Sample(self._durations)
            try:
                self._sample.attach(bus)
            except BusClosed:  # the last frame
                return
        self._sample.left = SAMPLED

    def _take_in(self, now: float) -> None:
        while self._durations:
            topic, observer, seconds = self._durations.popleft()
            times = self._times.pop(topic, None) or Times(now)
            self._times[topic] = times
            times.add(observer, seconds, now)
        for topic in list(self._times)[:-KEPT]:
            del self._times[topic]

    def _frame(self, selection: Selection, now: float, statistics: dict[str, TopicStatistics]) -> Frame:
        then, past = self._past[0]
        wanted: Collection[str] = statistics
        if selection.text or selection.topics:
            wanted = [topic for topic in statistics if selection.wants(topic)]

        def gain(topic: str) -> int:
            before = past.get(topic)
            return max(0, statistics[topic].published - (0 if before is None else before.published))

        shown: Collection[str] = wanted
        if len(wanted) > selection.limit:
            shown = nlargest(selection.limit, wanted, key=lambda topic: (gain(topic), statistics[topic].published))
        rows = (self._row(topic, statistics[topic], gain(topic) / (now - then or 1.0)) for topic in sorted(shown))
        return Frame(tuple(rows), len(wanted) - len(shown))

    def _row(self, topic: str, told: TopicStatistics, rate: float) -> Row:
        times = self._times.get(topic)
        measured = (None, None, None, None) if times is None else times.measured()
        return Row(topic, told.published, round(rate, 1), told.observers, told.pending, told.failed, *measured)


class Sample:
    """A tracer that detaches itself when it has seen enough. It only notes, on the threads that publish."""

    def __init__(self, durations: deque[Duration]) -> None:
        self._durations = durations
        self._tap = SingleAssignmentDisposable()  # it may be disposed of before it has been assigned
        self._begun: dict[int, float] = {}  # by the identity of events, as ids of a Subject's raw events may repeat
        self.left = SAMPLED  # counted without a lock: a few more do no harm

    def is_spent(self) -> bool:
        """Whether another should go on: it has seen enough, or waits for many publishes that have been given up."""
        # Not by `left`, which may be refilled in the very moment in which a publish has used it up.
        return self._tap.is_disposed or len(self._begun) > SAMPLED

    def attach(self, bus: EventBus) -> None:
        self._tap.disposable = bus.trace(self)

    def detach(self) -> None:
        self._tap.dispose()

    def published(self, event: Event[Any]) -> None:
        self._begun[id(event)] = perf_counter()
        self._count()

    def delivered(
        self, event: Event[Any], observer: str, start: float, end: float, thread: str, error: BaseException | None
    ) -> None:
        self._durations.append((event.topic, observer, max(0.0, end - start)))
        self._count()

    def settled(self, receipt: Receipt) -> None:
        """A publish that was given up is never settled; an event that takes its identity then takes its place, too."""
        begin = self._begun.pop(id(receipt.event), None)
        if begin is not None:
            self._durations.append((receipt.event.topic, None, perf_counter() - begin))

    def _count(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.detach()


class Times:
    """How long the publishes to a topic took lately, and the deliveries of its observers.

    All is noted twice: in the span that is shown, and in the one that takes its place. So there are always enough to
    be shown, and an observer that has left is forgotten; where nothing happens, the last ones stay.
    """

    def __init__(self, now: float) -> None:
        self._shown, self._next, self._since = Span(), Span(), now
        self._measured: tuple[float | None, float | None, str | None, float | None] | None = None

    def add(self, observer: str | None, seconds: float, now: float) -> None:
        """Notes a publish, or the delivery to an observer."""
        if now - self._since >= SPAN:
            self._shown, self._next, self._since = self._next, Span(), now
        for span in (self._shown, self._next):
            span.add(observer, seconds)
        self._measured = None

    def measured(self) -> tuple[float | None, float | None, str | None, float | None]:
        """Gives p50 and p99 of the publishes, and the slowest observer with its median, in milliseconds."""
        if self._measured is None:
            self._measured = (*self._shown.percentiles(), *self._shown.slowest())
        return self._measured


class Span:
    """The durations of some time."""

    def __init__(self) -> None:
        from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]  # here: it belongs to extras

        self._publishes = HdrHistogram(1, LONGEST, 2, word_size=4)
        self._deliveries: dict[str, deque[float]] = {}

    def add(self, observer: str | None, seconds: float) -> None:
        if observer is None:
            self._publishes.record_value(max(1, min(LONGEST, round(seconds * 1e6))))
        else:
            self._deliveries.setdefault(observer, deque(maxlen=LATEST)).append(seconds)

    def percentiles(self) -> tuple[float | None, float | None]:
        if not self._publishes.get_total_count():
            return None, None
        found = self._publishes.get_percentile_to_value_dict([50, 99])
        return found[50] / 1000, found[99] / 1000

    def slowest(self) -> tuple[str | None, float | None]:
        medians = [(median(durations), name) for name, durations in self._deliveries.items()]
        seconds, name = max(medians, default=(None, None))
        return name, None if seconds is None else round(seconds * 1000, 3)
