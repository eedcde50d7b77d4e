"""The meter: what it measures, exactly or of a sample, and how little it asks of the bus."""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from reactivex import abc
from reactivex.disposable import Disposable

from rxbus import AcknowledgementTimeout, BlockingScheduler, Event, EventBus, PublishError, Receipt, Tracer, defer
from rxbus.display import _meter
from rxbus.display._meter import Duration, Frame, Meter, Row, Sample, Selection, Times

PATIENCE = 10.0
ALL = Selection()
Spawn = Callable[..., Future[Any]]


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def meter(bus: EventBus, clock: Clock) -> Meter:
    return Meter(bus, clock)


def frame(meter: Meter, selection: Selection = ALL) -> Frame:
    found = meter.frame(selection)
    assert found is not None
    return found


def row(meter: Meter, topic: str) -> Row:
    (found,) = (row for row in frame(meter).rows if row.topic == topic)
    return found


def is_traced(bus: EventBus) -> bool:
    return bus._hub.tracers is not None


def nothing(event: object) -> None:
    """A handler."""


def fail(event: object) -> None:
    raise ValueError


def names(frame: Frame) -> list[str]:
    return [row.topic for row in frame.rows]


class TestCounts:
    def test_a_bus_of_which_nothing_is_to_be_told(self, meter: Meter) -> None:
        assert frame(meter) == Frame((), 0)

    def test_counts_are_exact(self) -> None:
        with EventBus(BlockingScheduler(max_workers=0)) as bus:
            meter = Meter(bus)
            bus.subscribe("a").subscribe(nothing)
            bus.subscribe("*").subscribe(fail)
            owed: list[Any] = []
            bus.subscribe("b").subscribe(lambda event: owed.append(defer()))
            for _ in range(3):
                with pytest.raises(PublishError):
                    bus.publish("a")
            with pytest.raises(AcknowledgementTimeout):
                bus.publish("b", timeout=0)
            a, b = frame(meter).rows
            assert (a.topic, a.events, a.observers, a.pending, a.failures) == ("a", 3, 2, 0, 3)
            assert (b.topic, b.events, b.observers, b.pending, b.failures) == ("b", 1, 2, 1, 1)
            owed[0].ack()
            assert row(meter, "b").pending == 0

    def test_the_rate_is_of_the_last_seconds(self, bus: EventBus, meter: Meter, clock: Clock) -> None:
        for _ in range(10):
            bus.publish("a")
        clock.now += 2
        assert row(meter, "a").rate == 5.0
        clock.now += 3
        bus.publish("a")
        assert row(meter, "a").rate == 2.2
        clock.now += 4
        assert row(meter, "a").rate == 0.1  # of the last 7 seconds: it goes back to a frame at least 5 seconds ago
        clock.now += 1
        assert row(meter, "a").rate == 0.0

    def test_what_came_before_is_counted_but_no_rate(self, bus: EventBus, clock: Clock) -> None:
        bus.publish("a")
        meter = Meter(bus, clock)
        assert (row(meter, "a").events, row(meter, "a").rate) == (1, 0.0)
        clock.now += 1
        assert (row(meter, "a").events, row(meter, "a").rate) == (1, 0.0)

    def test_a_topic_that_was_swept_out_has_no_negative_rate(
        self, bus: EventBus, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bus.publish("a")
        bus.publish("a")
        meter = Meter(bus, clock)
        monkeypatch.setattr(bus._registry, "_sweep_at", 1)
        for topic in "bcbc":
            bus.publish(topic)
        with bus._registry.lock:
            bus._registry._sweep()
            bus._registry._sweep()
        bus.publish("a")
        clock.now += 1
        assert (row(meter, "a").events, row(meter, "a").rate) == (1, 0.0)

    def test_after_the_end(self, bus: EventBus, meter: Meter) -> None:
        bus.publish("a")
        bus.close()
        assert row(meter, "a").events == 1

    def test_it_keeps_no_bus_alive(self) -> None:
        bus = EventBus()
        meter = Meter(bus)
        bus.publish("a")
        assert row(meter, "a").events == 1
        del bus
        gc.collect()
        assert meter.frame(ALL) is None


class TestSelection:
    @pytest.fixture(autouse=True)
    def _topics(self, bus: EventBus, meter: Meter) -> None:
        for topic, events in {"quiet": 1, "busy": 30, "big": 20, "lively": 10}.items():
            for _ in range(events):
                bus.publish(topic)

    def test_rows_stand_in_the_order_of_names(self, meter: Meter) -> None:
        assert names(frame(meter)) == ["big", "busy", "lively", "quiet"]

    def test_where_there_are_too_many_the_liveliest_stay(self, bus: EventBus, meter: Meter, clock: Clock) -> None:
        found = frame(meter, Selection(limit=2))
        assert (names(found), found.hidden) == (["big", "busy"], 2)
        clock.now += 10
        frame(meter)
        clock.now += 10
        bus.publish("quiet")
        assert names(frame(meter, Selection(limit=2))) == ["busy", "quiet"]  # by what is new, then by all

    def test_a_text(self, meter: Meter) -> None:
        assert frame(meter, Selection(text="l")).hidden == 0
        assert names(frame(meter, Selection(text="l"))) == ["lively"]
        assert names(frame(meter, Selection(text="[b]"))) == []

    def test_topics(self, meter: Meter) -> None:
        found = frame(meter, Selection(topics=("quiet", "big", "unknown")))
        assert (names(found), found.hidden) == (["big", "quiet"], 0)


class TestSampling:
    def test_a_quiet_bus_is_measured_whole(self, bus: EventBus, meter: Meter) -> None:
        bus.subscribe("a", name="one").subscribe(nothing)
        frame(meter)
        assert is_traced(bus)
        for _ in range(50):
            bus.publish("a")
        assert len(meter._durations) == 100
        assert is_traced(bus)
        first = row(meter, "a")
        assert first.p50_ms is not None
        assert first.p99_ms is not None
        assert first.p50_ms <= first.p99_ms
        assert first.slowest == "one"
        assert meter._durations == deque()

    def test_a_busy_bus_is_let_alone_until_the_next_frame(self, bus: EventBus, meter: Meter) -> None:
        bus.subscribe("a").subscribe(nothing)
        for _ in range(3):
            frame(meter)
            for _ in range(_meter.SAMPLED):
                bus.publish("a")
            assert not is_traced(bus)
            # A publish and its delivery count one each; what was begun is told to its end.
            assert _meter.SAMPLED <= len(meter._durations) <= _meter.SAMPLED + 2

    def test_many_observers_are_soon_enough(self, bus: EventBus, meter: Meter) -> None:
        for _ in range(_meter.SAMPLED):
            bus.subscribe("a").subscribe(nothing)
        frame(meter)
        bus.publish("a")
        assert not is_traced(bus)
        assert row(meter, "a").p50_ms is not None

    def test_closing_detaches_it(self, bus: EventBus, meter: Meter) -> None:
        meter.close()
        frame(meter)
        assert is_traced(bus)
        meter.close()
        assert not is_traced(bus)

    def test_a_publish_that_was_given_up_is_not_measured(self, bus: EventBus, meter: Meter) -> None:
        frame(meter)
        owed: list[Any] = []
        bus.subscribe("a", name="late").subscribe(lambda event: owed.append(defer()))
        with pytest.raises(AcknowledgementTimeout):
            bus.publish("a", timeout=0)
        bus.close()
        assert [observer for _, observer, _ in meter._durations] == ["late"]

    def test_publishes_that_were_given_up_do_not_gather(self, bus: EventBus, meter: Meter) -> None:
        frame(meter)
        known = meter._sample
        assert known is not None
        frame(meter)
        assert meter._sample is known  # on a quiet bus, one is enough
        known._begun.update(dict.fromkeys(range(_meter.SAMPLED + 1), 0.0))
        frame(meter)
        assert meter._sample is not known
        assert bus._hub.tracers is not None
        assert bus._hub.tracers.all == (meter._sample,)

    def test_one_that_was_refilled_as_it_detached_itself_is_replaced(self, bus: EventBus, meter: Meter) -> None:
        frame(meter)
        assert meter._sample is not None
        meter._sample.detach()
        meter._sample.left = _meter.SAMPLED
        frame(meter)
        assert is_traced(bus)

    def test_what_was_not_begun_is_not_measured(self) -> None:
        durations: deque[Duration] = deque()
        Sample(durations).settled(Receipt(Event("a", None, 1, 0.0), 0))
        assert not durations

    def test_a_clock_that_was_set_back(self) -> None:
        durations: deque[Duration] = deque()
        Sample(durations).delivered(Event("a", None, 1, 0.0), "x", 10.0, 9.0, "thread", None)
        assert list(durations) == [("a", "x", 0.0)]

    def test_it_may_have_seen_enough_before_it_is_attached(self) -> None:
        detached = threading.Event()

        class Busy(EventBus):
            def trace(self, tracer: Tracer) -> abc.DisposableBase:
                for n in range(_meter.SAMPLED):
                    tracer.published(Event("a", None, n, 0.0))
                return Disposable(detached.set)

        with Busy() as bus:
            Sample(deque()).attach(bus)
        assert detached.is_set()

    def test_events_with_the_same_id(self, bus: EventBus, meter: Meter) -> None:
        frame(meter)

        def nest(event: Event[int]) -> None:
            if event.payload:
                bus.topic("b").on_next(Event("b", 0, 0, 0.0))

        bus.subscribe("a").subscribe(nest)
        bus.topic("a").on_next(Event("a", 1, 0, 0.0))
        assert sorted(topic for topic, observer, _ in meter._durations if observer is None) == ["a", "b"]

    def test_threads_that_publish_while_it_measures(self, bus: EventBus, spawn: Spawn) -> None:
        meter = Meter(bus)
        for name in ("one", "two"):
            bus.subscribe("a.>", name=name).subscribe(nothing)
        start = threading.Barrier(5)

        def publish(topic: str) -> None:
            start.wait(PATIENCE)
            for _ in range(2000):
                bus.publish(topic)

        publishing = [spawn(publish, f"a.{n}") for n in range(4)]
        start.wait(PATIENCE)
        seen: list[int] = []
        while not all(future.done() for future in publishing):
            seen.append(sum(row.events for row in frame(meter).rows))
        for future in publishing:
            future.result(PATIENCE)
        assert seen == sorted(seen)
        rows = frame(meter).rows
        assert [row.events for row in rows] == [2000] * 4
        assert {row.slowest for row in rows} <= {"one", "two", None}
        meter.close()


class TestTimes:
    def test_percentiles(self) -> None:
        times = Times(0.0)
        assert times.measured() == (None, None, None, None)
        for n in range(1, 101):
            times.add(None, n / 1000, 0.0)
        p50, p99, *_ = times.measured()
        assert p50 == pytest.approx(50, rel=0.02)
        assert p99 == pytest.approx(99, rel=0.02)

    @pytest.mark.parametrize(("seconds", "shown"), [(-1.0, 0.001), (0.0, 0.001), (0.25, 250), (1e9, 3.6e6)])
    def test_extremes(self, seconds: float, shown: float) -> None:
        times = Times(0.0)
        times.add(None, seconds, 0.0)
        assert times.measured()[:2] == pytest.approx((shown, shown), rel=0.02)

    def test_the_slowest_goes_by_the_median(self) -> None:
        times = Times(0.0)
        for seconds in (0.001, 9.0, 0.001):
            times.add("once", seconds, 0.0)
            times.add("steady", 0.002, 0.0)
        assert times.measured() == (None, None, "steady", 2.0)

    def test_what_is_long_past_is_forgotten(self) -> None:
        times = Times(0.0)
        times.add("left", 1.0, 0.0)
        times.add(None, 1.0, 0.0)
        times.add("stays", 0.1, 9.0)
        assert times.measured()[2] == "left"
        times.add("stays", 0.1, 10.0)  # what is shown now began at 0
        assert times.measured()[2] == "left"
        times.add("stays", 0.1, 20.0)  # and now at 10
        assert times.measured() == (None, None, "stays", 100.0)

    def test_while_nothing_happens_the_last_ones_stay(self, bus: EventBus, meter: Meter, clock: Clock) -> None:
        frame(meter)
        bus.publish("a")
        before = row(meter, "a").p50_ms
        clock.now += 1000
        assert row(meter, "a").p50_ms == before is not None

    def test_only_so_many_topics_are_kept(self, bus: EventBus, meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_meter, "KEPT", 2)
        frame(meter)
        for topic in ("a", "b", "a", "c"):
            bus.publish(topic)
        assert [(row.topic, row.p50_ms is None) for row in frame(meter).rows] == [
            ("a", False),
            ("b", True),
            ("c", False),
        ]
