"""Replaying: everything in its order and at its distance, in real and in virtual time."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from typing import Any

import pytest
from reactivex.scheduler import EventLoopScheduler, HistoricalScheduler, VirtualTimeScheduler
from reactivex.testing import TestScheduler

from rxbus import BusClosed, Event, EventBus, InvalidArgument, PublishError
from rxbus.recording import Recording
from tests.recording.conftest import Wound

PATIENCE = 10.0
Spawn = Callable[..., Future[Any]]


@pytest.fixture
def stream(wound: Wound) -> Recording:
    """Four events within 2.5 s, in two trees; the last one's cause is not recorded."""
    return wound(
        [
            Event("a", "first", 11, 1000.0),
            Event("b", "effect", 12, 1000.5, 11),
            Event("a", None, 13, 1000.5),
            Event("c.d", [1], 15, 1002.5, 14),
        ]
    )


@pytest.fixture
def heard(bus: EventBus) -> list[tuple[str, Any]]:
    heard: list[tuple[str, Any]] = []
    bus.subscribe(">").subscribe(lambda event: heard.append((event.topic, event.payload)))
    return heard


def test_at_once(stream: Recording, bus: EventBus, heard: list[Any]) -> None:
    replay = stream.replay(bus, math.inf)
    assert heard == [("a", "first"), ("b", "effect"), ("a", None), ("c.d", [1])]
    assert (replay.published, replay.acknowledged, replay.failed, replay.done) == (4, 4, 0, True)
    assert repr(replay) == "<Replay done, published: 4 of 4, failed: 0>"


def test_what_has_no_topic_is_left_out_and_what_it_caused_is_not(bus: EventBus, wound: Wound, heard: list[Any]) -> None:
    recording = wound([Event("a b", 1, 1, 1.0), Event("b", 2, 2, 1.0, 1), Event("c", 3, 3, 1.0, 2)])
    replay = recording.replay(bus, math.inf, causes="outermost")
    assert (heard, replay.skipped, replay.done) == ([("b", 2)], 1, True)


def test_only_what_no_recorded_event_has_caused(stream: Recording, bus: EventBus, heard: list[Any]) -> None:
    bus.subscribe("a").subscribe(lambda event: bus.publish("b", "of a handler") if event.payload else None)
    with bus.record() as recording:
        stream.replay(bus, math.inf, causes="outermost")
    assert heard == [("a", "first"), ("b", "of a handler"), ("a", None), ("c.d", [1])]
    assert [event.cause for event in recording.events] == [None, 1, None, None]


@pytest.mark.parametrize("speed", [0.5, 1, 10.0])
def test_in_virtual_time(stream: Recording, bus: EventBus, speed: float) -> None:
    scheduler = TestScheduler()
    times: list[tuple[Any, float]] = []
    bus.subscribe(">").subscribe(lambda event: times.append((event.payload, scheduler.clock)))
    replay = stream.replay(bus, speed, scheduler=scheduler)
    assert (times, replay.published, replay.done) == ([], 0, False)
    assert repr(replay) == "<Replay going on, published: 0 of 4, failed: 0>"
    VirtualTimeScheduler.start(scheduler)
    assert replay.done
    assert times == [("first", 0.0), ("effect", 0.5 / speed), (None, 0.5 / speed), ([1], 2.5 / speed)]


def test_step_by_step(stream: Recording, bus: EventBus, heard: list[Any]) -> None:
    scheduler = HistoricalScheduler(datetime(2024, 2, 29))
    replay = stream.replay(bus, scheduler=scheduler)
    scheduler.advance_by(0.25)
    assert (len(heard), replay.published) == (1, 1)
    scheduler.advance_by(0.25)
    assert (len(heard), replay.published) == (3, 3)
    replay.dispose()
    scheduler.advance_by(100)
    assert len(heard) == 3
    assert repr(replay) == "<Replay ended, published: 3 of 4, failed: 0>"


def test_many_at_once_do_not_push_a_virtual_clock(bus: EventBus, wound: Wound) -> None:
    scheduler = TestScheduler()
    recording = wound([Event("a", id, id, 1000.0 + id) for id in range(300)])
    replay = recording.replay(bus, math.inf, scheduler=scheduler)
    scheduler.advance_by(1e-3)
    assert replay.published == 300


def test_ended_by_a_handler(stream: Recording, bus: EventBus) -> None:
    scheduler = TestScheduler()
    replay = stream.replay(bus, math.inf, scheduler=scheduler)
    bus.subscribe("b").subscribe(lambda event: replay.dispose())
    scheduler.advance_by(1)
    assert replay.published == 2
    assert not replay.done


def test_on_a_thread(stream: Recording, bus: EventBus) -> None:
    last = threading.Event()
    bus.subscribe("c.d").subscribe(lambda event: last.set())
    with EventLoopScheduler() as scheduler:
        stream.replay(bus, 1e6, scheduler=scheduler)
        assert last.wait(PATIENCE)


def test_in_real_time(stream: Recording, bus: EventBus) -> None:
    with bus.record() as recording:
        assert stream.replay(bus, 50).done
    first, _, third, last = (event.time for event in recording.events)
    assert third - first >= 0.5 / 50 - 0.002
    assert last - first >= 2.5 / 50 - 0.002


def test_failures_do_not_end_it(stream: Recording, bus: EventBus) -> None:
    def fail(event: Event[Any]) -> None:
        raise ValueError(event.payload)

    bus.subscribe("a").subscribe(fail)
    bus.subscribe(">").subscribe(lambda event: None)
    replay = stream.replay(bus, math.inf)
    assert (replay.published, replay.acknowledged, replay.failed, replay.done) == (4, 4, 2, True)
    assert [type(error) for error in replay.errors] == [PublishError] * 2


def test_errors_are_bounded(bus: EventBus, wound: Wound) -> None:
    bus.subscribe("a").subscribe(lambda event: 1 / 0)
    replay = wound([Event("a", None, id, 1.0) for id in range(150)]).replay(bus)
    assert (replay.failed, len(replay.errors)) == (150, 100)


def test_of_nothing(bus: EventBus, wound: Wound) -> None:
    assert wound([]).replay(bus).done
    scheduler = TestScheduler()
    replay = wound([]).replay(bus, scheduler=scheduler)
    scheduler.start()
    assert replay.done


def test_what_a_clock_that_was_set_back_has_recorded(bus: EventBus, wound: Wound) -> None:
    assert wound([Event("a", None, 1, 1000.0), Event("a", None, 2, 10.0)]).replay(bus).published == 2


def test_a_closed_bus(stream: Recording, bus: EventBus, wound: Wound) -> None:
    bus.close()
    for recording in (stream, wound([])):
        with pytest.raises(BusClosed):
            recording.replay(bus)
        with pytest.raises(BusClosed):
            recording.replay(bus, scheduler=TestScheduler())


def test_a_bus_that_is_closed_while_it_waits(wound: Wound, bus: EventBus, spawn: Spawn) -> None:
    begun = threading.Event()
    bus.subscribe("a").subscribe(lambda event: begun.set())
    years = wound([Event("a", 1, 1, 0.0), Event("a", 2, 2, 1e12)])
    replaying = spawn(years.replay, bus)
    assert begun.wait(PATIENCE)
    bus.close()
    with pytest.raises(BusClosed):
        replaying.result(PATIENCE)


def test_ctrl_c(wound: Wound, bus: EventBus, spawn: Spawn, heard: list[Any]) -> None:
    here = threading.main_thread().ident
    assert here == threading.get_ident()
    bus.subscribe("a").subscribe(lambda event: spawn(signal.pthread_kill, here, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        wound([Event("a", 1, 1, 0.0), Event("a", 2, 2, 1e12)]).replay(bus)
    bus.publish("b")
    assert ("b", None) in heard
    assert ("a", 2) not in heard


@pytest.mark.parametrize("speed", [0, -1.0, math.nan, -math.inf, "1", None, True])
def test_bad_speeds(stream: Recording, bus: EventBus, speed: Any, heard: list[Any]) -> None:
    with pytest.raises(InvalidArgument, match="speed"):
        stream.replay(bus, speed)
    assert heard == []


def test_bad_causes(stream: Recording, bus: EventBus) -> None:
    with pytest.raises(InvalidArgument, match="outermost"):
        stream.replay(bus, causes="none")  # type: ignore[arg-type]
