"""Recording: what is kept, what is let go of, under threads, and until when."""

from __future__ import annotations

import gc
import re
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
import reactivex as rx
from reactivex import operators as ops

from rxbus import (
    Acknowledgement,
    AcknowledgementTimeout,
    BusClosed,
    Event,
    EventBus,
    InvalidArgument,
    InvalidTopic,
    StageTracer,
    Topic,
    defer,
    only_payload,
)
from rxbus.operators import tap
from rxbus.recording import Delivery, Passage, Recording
from rxbus.testing import virtual_bus

PATIENCE = 10.0
Spawn = Callable[..., Future[Any]]


def nothing(event: object) -> None:
    """A handler."""


class Payload:
    """One that can be referred to weakly."""


def test_events_and_deliveries(bus: EventBus) -> None:
    bus.subscribe("a", name="one").subscribe(nothing)
    bus.subscribe("*", name="other").subscribe(nothing)
    with bus.record() as recording:
        assert recording.ended is None
        events = [bus.publish("a", object()).event, bus.publish("b").event]
        assert recording.events == events
    bus.publish("a")
    assert recording.events == events
    assert [(one.event, one.observer) for one in recording.deliveries] == [(1, "one"), (1, "other"), (2, "other")]
    assert recording.ended is not None
    for event, one in zip([events[0], events[0], events[1]], recording.deliveries, strict=True):
        assert recording.began <= event.time <= one.start <= one.end <= recording.ended
        assert (one.thread, one.error) == (threading.current_thread().name, None)
    assert isinstance(recording, StageTracer)


def test_failures_and_stages(chain: Recording) -> None:
    failed = [one for one in chain.deliveries if one.error is not None]
    assert [(one.observer, one.error) for one in failed] == [("fails", "ValueError('one too many')")] * 2
    assert [event.cause for event in chain.events] == [None, 1, 1, 1, None, 5, 5, 5]
    assert [(one.stage, one.kind, one.value, one.event) for one in chain.passages] == [
        ("stage", "next", {"from": "first"}, 2),
        ("stage", "next", {"from": None}, 6),
    ]
    assert chain.deliveries == sorted(chain.deliveries, key=lambda one: one.start)


def test_errors_and_completions_pass_stages(bus: EventBus) -> None:
    class Odd(Exception):
        def __repr__(self) -> str:
            raise RuntimeError

    def fail(_: object) -> object:
        raise Odd

    with bus.record() as recording:
        bus.subscribe("a").pipe(ops.map(fail), tap("failed")).subscribe(on_error=nothing)
        bus.subscribe("b").pipe(tap("ended")).subscribe()
        bus.publish("a")
        bus.topic("b").on_completed()
    assert [(one.stage, one.kind, one.value, one.event) for one in recording.passages] == [
        ("failed", "error", "<Odd, whose repr raises RuntimeError>", 1),
        ("ended", "completed", None, None),
    ]


@pytest.mark.parametrize(
    ("pattern", "topics"),
    [
        (">", ["a", "a.b", "a.c.d", "b"]),
        ("a.>", ["a.b", "a.c.d"]),
        ("*", ["a", "b"]),
        ("a", ["a"]),
        (Topic("b"), ["b"]),
    ],
    ids=str,
)
def test_a_pattern(bus: EventBus, pattern: Any, topics: list[str]) -> None:
    bus.subscribe(">").pipe(tap("all")).subscribe()
    with bus.record(pattern) as recording:
        for topic in ("a", "a.b", "a.c.d", "b"):
            bus.publish(topic)
    ids = [event.id for event in recording.events]
    assert [event.topic for event in recording.events] == topics
    assert [one.event for one in recording.deliveries] == [one.event for one in recording.passages] == ids
    assert recording.pattern == str(pattern)


def test_the_ring_keeps_the_latest_and_counts_the_others(bus: EventBus) -> None:
    bus.subscribe("a").pipe(tap("stage")).subscribe()
    bus.subscribe("a").subscribe(nothing)
    recording = bus.record(maxlen=3)
    payloads = [Payload() for _ in range(10)]
    first = weakref.ref(payloads[0])
    for payload in payloads:
        bus.publish("a", payload)
    for _ in range(2):  # going on, and when it is over
        assert [event.payload for event in recording.events] == payloads[-3:]
        assert [one.event for one in recording.deliveries] == [8, 8, 9, 9, 10, 10]
        assert [one.event for one in recording.passages] == [8, 9, 10]
        assert (recording.dropped, recording.dropped_passages) == (7, 0)
        recording.stop()
    del payloads, payload
    gc.collect()
    assert first() is None


def test_what_is_delivered_once_its_event_has_gone_is_not_kept(bus: EventBus) -> None:
    owed: list[Acknowledgement] = []
    begun = threading.Semaphore(0)

    def put_off(event: object) -> None:
        owed.append(defer())
        begun.release()

    bus.subscribe("a").subscribe(put_off)
    recording = bus.record(maxlen=5)
    for _ in range(50):
        with pytest.raises(AcknowledgementTimeout):
            bus.publish("a", timeout=0)
        assert begun.acquire(timeout=PATIENCE)
    for one in owed:
        one.ack()
    assert [event.id for event in recording.events] == [46, 47, 48, 49, 50]
    assert [one.event for one in recording.deliveries] == [46, 47, 48, 49, 50]
    assert recording.dropped == 45


def test_told_in_any_order(bus: EventBus) -> None:
    """As threads may tell it: deliveries before their event, events after those that come behind them."""
    recording = bus.record(maxlen=2)
    events = [Event("a", None, id, float(id)) for id in range(6)]

    def deliver(id: int) -> None:
        recording.delivered(events[id], "observer", float(id), float(id), "thread", None)

    for id in (2, 1, 3):
        deliver(id)
    assert recording.deliveries == []
    recording.published(events[2])
    recording.published(events[1])
    assert [event.id for event in recording.events] == [1, 2]
    assert [one.event for one in recording.deliveries] == [1, 2]
    recording.published(events[4])
    recording.published(events[3])  # lower than the highest, but higher than what has gone
    assert [event.id for event in recording.events] == [3, 4]
    assert [one.event for one in recording.deliveries] == [3]
    recording.published(events[0])
    deliver(0)
    recording.passed("stage", "next", 1, events[0], 0.0)
    assert [event.id for event in recording.events] == [3, 4]
    assert (recording.dropped, len(recording.deliveries), recording.passages) == (3, 1, [])
    recording.stop()
    recording.published(events[5])
    deliver(4)
    recording.passed("stage", "next", 1, events[4], 0.0)
    assert [event.id for event in recording.events] == [3, 4]
    assert (recording.dropped, len(recording.deliveries), recording.passages) == (3, 1, [])


def test_passages_of_no_event_go_with_their_time(bus: EventBus) -> None:
    recording = bus.record(maxlen=2)
    for id in range(4):
        recording.passed("stage", "next", id, None, float(id))
        recording.published(Event("a", None, id, id + 0.5))
    assert [one.value for one in recording.passages] == [3]  # those after the oldest event that is kept
    assert recording.dropped_passages == 0


def test_a_flood_of_passages_is_bounded_and_counted(bus: EventBus) -> None:
    bus.subscribe("a").pipe(ops.flat_map(lambda _: rx.range(2500)), tap("many")).subscribe()
    with bus.record(maxlen=1) as recording:
        bus.publish("a")
    assert [one.value for one in recording.passages] == [*range(1500, 2500)]
    assert recording.dropped_passages == 1500
    assert recording.dropped == 0


@pytest.mark.parametrize("maxlen", [100_000, 150])
def test_exact_under_threads(bus: EventBus, spawn: Spawn, maxlen: int) -> None:
    recording = bus.record("a.*", maxlen=maxlen)
    for number in range(3):
        bus.subscribe("a.*", name=f"observer {number}").subscribe(nothing)
    chained = bus.subscribe("b.*", name="chained")
    chained.subscribe(lambda event: bus.publish("a.chained", event.payload))
    names = ["a.1", "a.2", "b.1", "c.1"]
    threads = [spawn(lambda name: [bus.publish(name, n) for n in range(100)], name) for name in names]
    for thread in threads:
        thread.result(PATIENCE)
    recording.stop()
    ids = [event.id for event in recording.events]
    assert ids == sorted(set(ids))
    assert len(ids) == min(maxlen, 300)
    assert recording.dropped == 300 - len(ids)
    assert {event.topic for event in recording.events} <= {"a.1", "a.2", "a.chained"}
    each = {id: {f"observer {number}" for number in range(3)} for id in ids}
    assert {id: {one.observer for one in recording.deliveries if one.event == id} for id in ids} == each
    assert len(recording.deliveries) == 3 * len(ids)


def test_read_while_it_is_written(bus: EventBus, spawn: Spawn) -> None:
    bus.subscribe("a").subscribe(nothing)
    recording = bus.record(maxlen=50)
    writers = [spawn(lambda: [bus.publish("a") for _ in range(300)]) for _ in range(2)]
    while not all(writer.done() for writer in writers):
        ids = [event.id for event in recording.events]
        assert ids == sorted(set(ids))
        assert len(ids) <= 50
        tape = recording.tape()
        assert {one.event for one in tape.deliveries} <= {event.id for event in tape.events}
    assert (len(recording.events), recording.dropped) == (50, 550)


def test_it_can_be_stopped_twice_and_in_a_handler(bus: EventBus) -> None:
    recording = bus.record()
    bus.subscribe("a").subscribe(lambda event: recording.stop())
    bus.publish("a", 1)
    ended = recording.ended
    recording.stop()
    bus.publish("a", 2)
    assert [event.payload for event in recording.events] == [1]
    assert recording.deliveries == []  # it was going on when the recording was stopped
    assert recording.ended == ended is not None


def test_it_ends_with_the_bus() -> None:
    bus = EventBus()
    recording = bus.record()
    bus.subscribe("a").pipe(tap("stage")).subscribe()
    bus.publish("a", 1)
    bus.close()
    assert recording.ended is not None
    assert [one.kind for one in recording.passages] == ["next", "completed"]
    recording.stop()
    with pytest.raises(BusClosed):
        bus.record()


def test_several_at_once(bus: EventBus) -> None:
    with bus.record("a") as one, bus.record("b", maxlen=1) as other:
        for topic in ("a", "b", "a", "b"):
            bus.publish(topic)
    assert [event.id for event in one.events] == [1, 3]
    assert [event.id for event in other.events] == [4]


def test_it_keeps_no_bus_alive() -> None:
    bus = EventBus()
    known = weakref.ref(bus)
    recording = bus.record()
    bus.publish("a", 1)
    del bus
    gc.collect()
    assert known() is None
    assert len(recording.events) == 1
    recording.stop()
    assert recording.ended is not None


def test_once_it_is_over_no_bus_keeps_it(bus: EventBus) -> None:
    recording = bus.record()
    bus.publish("a", Payload())
    known = weakref.ref(recording.events[0].payload)
    recording.stop()
    bus.publish("a")
    del recording
    gc.collect()
    assert known() is None


def test_a_cell_that_runs_again_lets_go_of_its_recording(bus: EventBus) -> None:
    for number in range(2):
        with bus.cell("cell"):
            recording = bus.record()
        bus.publish("a", number)
        if number == 0:
            first = recording
    assert first.ended is not None
    assert [event.payload for event in first.events] == [0]
    assert [event.payload for event in recording.events] == [1]
    known = weakref.ref(first)
    del first
    gc.collect()
    assert known() is None


def test_a_failure_keeps_no_stack_alive(bus: EventBus) -> None:
    recording = bus.record(maxlen=1)
    known: list[weakref.ref[Payload]] = []

    def fail(event: Event[Any]) -> None:
        local = Payload()
        known.append(weakref.ref(local))
        raise ValueError(event)

    bus.subscribe("a").subscribe(fail)
    with pytest.raises(ExceptionGroup):
        bus.publish("a")
    gc.collect()
    assert recording.deliveries[0].error is not None
    assert known[0]() is None


def test_bad_input(bus: EventBus) -> None:
    for maxlen in (0, -1, 1.5, None, True):
        with pytest.raises(InvalidArgument, match="maxlen"):
            bus.record(maxlen=maxlen)  # type: ignore[arg-type]
    with pytest.raises(InvalidTopic):
        bus.record("a..b")
    bus.publish("a")
    assert bus.topic_statistics()["a"].published == 1


def test_its_repr_is_one_line(bus: EventBus) -> None:
    with bus.record("a.*", maxlen=1) as recording:
        bus.publish("a.b", "\n" * 100)
        assert repr(recording) == "<Recording 'a.*', going on, events: 1, dropped: 0>"
        bus.publish("a.c")
    assert re.fullmatch(r"<Recording 'a\.\*', \d+\.\d\d\d s, events: 1, dropped: 1>", repr(recording))


def test_its_lists_are_copies(chain: Recording) -> None:
    for of in ("events", "deliveries", "passages"):
        before = list(getattr(chain, of))
        getattr(chain, of).clear()
        assert getattr(chain, of) == before


def test_records_are_values() -> None:
    assert Delivery(1, "o", 1.0, 2.0, "t") == Delivery(1, "o", 1.0, 2.0, "t", None)
    assert Passage("s", "next", 1, 1.0) != Passage("s", "error", 1, 1.0)


def test_payloads_alone(bus: EventBus) -> None:
    seen: list[object] = []
    only_payload(bus.subscribe("a")).subscribe(seen.append)
    payload = {"kept": ["as it is"]}
    with bus.record() as recording:
        bus.publish("a", payload)
    assert recording.events[0].payload is payload


def test_it_is_drawn_by_the_display(chain: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = SimpleNamespace(marbles=lambda recording, **options: SimpleNamespace(svg=(recording, options)))
    monkeypatch.setitem(sys.modules, "rxbus.display", drawn)
    assert chain.to_svg(width=100) == (chain, {"width": 100})


def test_in_virtual_time_it_goes_by_that() -> None:
    with virtual_bus() as (bus, clock):
        clock.advance_to(10)
        recording = bus.record()
        clock.advance_to(12)
        bus.publish("a")
        recording.stop()
    assert (recording.began, recording.events[0].time, recording.ended) == (10.0, 12.0, 12.0)
