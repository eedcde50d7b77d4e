"""Where the system has no thread left: what can be done on the calling thread is; nothing hangs, is lost or doubled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from rxbus import BlockingScheduler, Event, EventBus, PublishError
from rxbus._workers import _Thread
from rxbus.errors import BufferOverflow
from rxbus.operators import buffered, observe_on
from tests.stress.topology import Habits, Topology, buses, switching

PATIENCE = 10.0

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the names of the threads begin with that cannot be started; tests may change them."""
    names = ["rxbus-"]
    start = threading.Thread.start

    def start_but(thread: threading.Thread) -> None:
        if thread.name.startswith(tuple(names)):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(_Thread, "start", start_but)
    return names


@pytest.fixture
def bus(refused: list[str]) -> Iterator[EventBus]:
    with EventBus() as bus:
        yield bus


def make_slow(bus: EventBus, *topics: str) -> None:
    """Has the observers of topics count as slow, as those that have blocked do: they go to workers at once."""
    for topic in topics:
        for feed in bus._registry.logs[topic].feeds:
            feed.lane.found_slow()


def test_a_handler_behind_a_buffer_that_publishes_back_waits_for_the_turn_that_feeds_it(bus: EventBus) -> None:
    seen: list[int] = []

    def handle(event: Event[int]) -> None:
        seen.append(event.payload)
        if event.payload < 5:
            bus.publish("a", event.payload + 1)

    bus.subscribe("a").pipe(buffered(1)).subscribe(handle)
    assert bus.publish("a", 0).acknowledged == 1
    assert seen == [0, 1, 2, 3, 4, 5]


@pytest.mark.rxbus_allow("failures")
def test_a_handler_that_would_wait_for_itself_gets_an_error(bus: EventBus) -> None:
    """Its first publish fills the buffer, its second would wait for room that only its return makes."""
    errors: list[BaseException] = []
    seen: list[int] = []

    def handle(event: Event[int]) -> None:
        seen.append(event.payload)
        if event.payload == 0:
            bus.publish("a", 1)
            try:
                bus.publish("a", 2)
            except PublishError as error:
                errors.extend(error.exceptions)

    bus.subscribe("a").pipe(buffered(1)).subscribe(handle)
    bus.publish("a", 0)
    assert [type(error) for error in errors] == [BufferOverflow]
    assert seen == [0, 1]


def test_who_waits_for_room_hands_on_what_another_thread_has_put_off(
    bus: EventBus, spawn: Callable[..., Future[Any]]
) -> None:
    inside, go = threading.Event(), threading.Event()
    seen: list[int] = []

    def handle(event: Event[Any]) -> None:
        bus.publish("a", 0)
        inside.set()
        assert go.wait(PATIENCE)

    bus.subscribe("a").pipe(buffered(1)).subscribe(lambda event: seen.append(event.payload))
    bus.subscribe("b").subscribe(handle)
    other = spawn(bus.publish, "b")
    assert inside.wait(PATIENCE)
    spawn(bus.publish, "a", 1).result(PATIENCE)
    go.set()
    other.result(PATIENCE)
    assert seen == [0, 1]


def test_a_scheduled_action_runs_when_the_handler_has_returned(bus: EventBus) -> None:
    seen: list[str] = []

    def handle(event: Event[Any]) -> None:
        bus.scheduler.schedule(lambda *_: seen.append("action"))
        seen.append("handler")

    bus.subscribe("a").subscribe(handle)
    bus.publish("a")
    assert seen == ["handler", "action"]


def test_a_nested_publish_does_what_it_has_put_off_itself(bus: EventBus) -> None:
    seen: list[str] = []
    for name in ("b1", "b2"):
        bus.subscribe("b").pipe(observe_on(bus.scheduler)).subscribe(lambda event, name=name: seen.append(name))
    bus.subscribe("a").subscribe(lambda event: seen.append(str(bus.publish("b").acknowledged)))
    bus.publish("a")
    bus.publish("b")
    make_slow(bus, "b")
    bus.publish("a")
    assert seen == ["b1", "b2", "2", "b1", "b2", "b1", "b2", "2"]


@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("max_workers", [None, 1])
def test_a_publish_within_waits_for_no_worker(
    refused: list[str], max_workers: int | None, timeout: float | None
) -> None:
    """Behind a buffer it is an outermost one; in a handler a nested one. Neither is given up as late."""
    if max_workers == 1:
        refused.clear()  # the only one there is publishes
    with EventBus(BlockingScheduler(max_workers)) as bus:
        receipts: list[Any] = []
        bus.subscribe("c").subscribe(lambda event: None)
        bus.subscribe("b").subscribe(lambda event: receipts.append(bus.publish("c", timeout=timeout)))
        bus.subscribe("a").pipe(buffered(1)).subscribe(lambda event: receipts.append(bus.publish("b", timeout=timeout)))
        bus.publish("a")
        bus.close()
        assert [receipt.acknowledged for receipt in receipts] == [1, 1]


def test_an_event_loop_inside_a_handler_makes_the_round_itself(bus: EventBus) -> None:
    seen: list[Any] = []
    bus.subscribe("b").subscribe(seen.append)
    bus.subscribe("a").subscribe(lambda event: seen.append(asyncio.run(bus.publish_async("b")).acknowledged))
    bus.publish("a")
    assert len(seen) == 2
    assert seen[1] == 1


def test_the_clock_is_not_kept_from_calling_by_what_it_runs_itself(refused: list[str]) -> None:
    refused[:] = ["rxbus-worker"]
    with EventBus() as bus:
        done = threading.Event()
        chain = bus.subscribe("a")
        chain.subscribe(lambda event: bus.scheduler.schedule_relative(0.001, lambda *_: None))
        bus.scheduler.schedule_relative(0.001, lambda *_: (bus.publish("a"), done.set()))
        assert done.wait(PATIENCE)


@pytest.mark.parametrize("seed", range(4))
def test_topology(refused: list[str], seed: int) -> None:
    """Some of what one publisher leaves is another's business, for whom there is no thread."""
    with switching(1e-5):
        (bus,) = all_buses = buses(1, None)
        topology = Topology(seed, all_buses, topics=3, observers=6, habits=Habits(publish=0.5, schedule=0.05))
        make_slow(bus, *bus._registry.logs)
        topology.run(threads=4, publishes=20, generations=3)
        bus.close()
        topology.check()
