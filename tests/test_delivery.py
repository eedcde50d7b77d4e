"""The guarantees: what a publisher waits for, in which order observers are called, who is held up by whom."""

from __future__ import annotations

import contextvars
import gc
import logging
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing, suppress
from itertools import pairwise
from typing import Any

import pytest
import reactivex as rx
from reactivex import operators as ops
from reactivex.subject import Subject

from rxbus import (
    AcknowledgementTimeout,
    BlockingScheduler,
    Event,
    EventBus,
    PublishError,
    Receipt,
    RxBusError,
    _handover,
    defer,
)
from rxbus._fan_out import FanOut, Wait
from rxbus._here import Here, Once, local, places
from rxbus._lane import COMBINED, Lane, LockedLane
from rxbus._observer import Feed
from rxbus._put_off import PutOff, pass_on_later, run_later
from rxbus.operators import buffered
from tests.opener import Opener

PATIENCE = 10.0
MOMENT = 0.02  # seconds in which something that must not happen is given the chance to
Handler = Callable[[Event[Any]], None]


@pytest.fixture(params=["slot", "lock"])
def turns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of turn: with a GIL and without one."""
    monkeypatch.setattr("rxbus._lane.GIL", request.param == "slot")
    monkeypatch.setattr("rxbus._log.GIL", request.param == "slot")


def run(*functions: Callable[[], object]) -> None:
    """Runs functions on threads of their own, to the end."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "hangs"


def nothing(event: Event[Any]) -> None:
    """A handler."""


# -- 1: all acknowledged


def test_an_outermost_publish_waits_for_its_whole_tree(bus: EventBus) -> None:
    gate, ended = threading.Event(), []

    def leaf(event: Event[Any]) -> None:
        gate.wait(PATIENCE)
        ended.append("leaf")

    bus.subscribe("leaf").subscribe(leaf)
    bus.subscribe("trunk").subscribe(lambda event: bus.publish("leaf") and None)
    bus.subscribe("trunk").subscribe(lambda event: gate.set())
    bus.publish("trunk")
    assert ended == ["leaf"]


def test_a_queued_event_belongs_to_the_outermost_publish(bus: EventBus) -> None:
    got: list[int] = []
    receipts: list[Receipt] = []

    def handler(event: Event[int]) -> None:
        got.append(event.payload)
        if event.payload < 3:
            receipts.append(bus.publish("a", event.payload + 1))
            assert got[-1] == event.payload, "the next one comes only after this one"

    bus.subscribe("a").subscribe(handler)
    receipt = bus.publish("a", 0)
    assert got == [0, 1, 2, 3]
    assert [(one.acknowledged, one.queued) for one in receipts] == [(0, 1)] * 3
    assert (receipt.acknowledged, receipt.queued) == (1, 0)


def test_the_outermost_publisher_waits_for_what_another_thread_is_to_deliver(bus: EventBus) -> None:
    """The handler's event is queued at an observer that another publisher holds: who waits is the outermost one."""
    held, gate, ended = threading.Event(), threading.Event(), threading.Event()
    got: list[str] = []

    def busy(event: Event[str]) -> None:
        got.append(event.payload)
        if event.payload == "first":
            held.set()
            assert gate.wait(PATIENCE)

    bus.subscribe("b").subscribe(busy)
    bus.subscribe("a").subscribe(lambda event: queued.append(bus.publish("b", "second").queued))
    queued: list[int] = []
    first = threading.Thread(target=bus.publish, args=("b", "first"))
    first.start()
    assert held.wait(PATIENCE)
    second = threading.Thread(target=lambda: (bus.publish("a"), ended.set()))
    second.start()
    while not queued:
        second.join(0.001)
    assert not ended.is_set(), "the nested publish has returned, the outermost one waits"
    gate.set()
    assert ended.wait(PATIENCE)
    assert (got, queued) == (["first", "second"], [1])
    run(first.join, second.join)


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit])
@pytest.mark.parametrize("leading", [0, 2])
def test_a_base_exception_takes_nothing_from_the_others(
    bus: EventBus, leading: int, error: type[BaseException]
) -> None:
    seen: list[Event[Any]] = []

    def fail(event: Event[Any]) -> None:
        raise error

    for _ in range(leading):
        bus.subscribe("a").subscribe(seen.append)
    bus.subscribe("a").subscribe(fail)
    for _ in range(3):
        bus.subscribe("a").subscribe(seen.append)
    with pytest.raises(error):
        bus.publish("a")
    assert len(seen) == leading + 3, "when it returned"


# -- 2: parallel


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_eight_handlers_meet_at_a_barrier(bus: EventBus, timeout: float | None) -> None:
    barrier = threading.Barrier(8)
    for _ in range(8):
        bus.subscribe("a").subscribe(lambda event: barrier.wait(PATIENCE) and None)
    for _ in range(3):
        assert bus.publish("a", timeout=timeout).acknowledged == 8


def test_nested_publishes_are_parallel_too(bus: EventBus) -> None:
    barrier = threading.Barrier(4)
    for _ in range(4):
        bus.subscribe("inner").subscribe(lambda event: barrier.wait(PATIENCE) and None)
    bus.subscribe("outer").subscribe(lambda event: receipts.append(bus.publish("inner")))
    receipts: list[Receipt] = []
    for _ in range(3):
        bus.publish("outer")
    assert [receipt.acknowledged for receipt in receipts] == [4] * 3


def test_a_handler_stuck_in_a_nested_publish_does_not_keep_its_neighbours(bus: EventBus) -> None:
    neighbour = threading.Event()
    bus.subscribe("inner").subscribe(lambda event: results.append(neighbour.wait(PATIENCE)))
    results: list[bool] = []
    bus.subscribe("outer").subscribe(lambda event: bus.publish("inner") and None)
    bus.subscribe("outer").subscribe(lambda event: neighbour.set())
    bus.publish("outer")
    assert results == [True]


def test_a_nested_publisher_waits_for_what_is_just_being_handed_over(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor has taken its neighbours off the stuck round, and has not given them to workers yet."""
    taken, left, returned = threading.Event(), threading.Event(), threading.Event()
    hand = _handover.hand

    def late(feed: Feed, fan: FanOut) -> None:
        taken.set()
        assert left.wait(PATIENCE)
        returned.wait(MOMENT)  # it must not
        hand(feed, fan)

    def stuck(event: Event[Any]) -> None:
        assert taken.wait(PATIENCE)
        left.set()

    def nest(event: Event[Any]) -> None:
        receipts.append(bus.publish("inner"))
        returned.set()

    monkeypatch.setattr(_handover, "hand", late)
    receipts: list[Receipt] = []
    bus.subscribe("outer").subscribe(nest)
    bus.subscribe("inner").subscribe(stuck)
    bus.subscribe("inner").subscribe(nothing)
    bus.publish("outer")
    assert [(receipt.acknowledged, receipt.queued) for receipt in receipts] == [(2, 0)]


def test_with_a_full_pool_publishers_do_it_themselves() -> None:
    with EventBus(BlockingScheduler(max_workers=1)) as bus:
        got: list[str] = []
        slow = threading.Event()
        for name in "abcd":
            bus.subscribe("x").subscribe(lambda event, name=name: (slow.wait(0.002), got.append(name)))
        bus.subscribe("outer").subscribe(lambda event: bus.publish("x") and None)
        for _ in range(3):
            bus.publish("outer")
        assert sorted(got) == sorted("abcd" * 3)
        assert bus.statistics().workers <= 1


def test_without_workers_all_runs_here_in_order_of_attachment() -> None:
    with EventBus(BlockingScheduler(max_workers=0)) as bus:
        got: list[tuple[str, int]] = []
        for name in "abc":
            bus.subscribe("x").subscribe(lambda event, name=name: got.append((name, threading.get_ident())))
        for _ in range(20):
            bus.publish("x")
        assert got == [(name, threading.get_ident()) for name in "abc"] * 20
        assert bus.statistics().workers == 0


# -- 3 and 4: one at a time, one order


@pytest.mark.usefixtures("turns")
@pytest.mark.parametrize("max_workers", [None, 0, 2])
@pytest.mark.parametrize("observers", [1, 3])
def test_many_publishers_one_order_and_no_re_entry(max_workers: int | None, observers: int) -> None:
    with EventBus(BlockingScheduler(max_workers)) as bus:
        seen: list[list[Event[tuple[int, int]]]] = [[] for _ in range(observers)]
        entered = [threading.Lock() for _ in range(observers)]

        def handler(number: int) -> Handler:
            def handle(event: Event[Any]) -> None:
                assert entered[number].acquire(blocking=False), "entered twice"
                seen[number].append(event)
                entered[number].release()

            return handle

        for number in range(observers):
            bus.subscribe("a").subscribe(handler(number))

        def publish(thread: int) -> None:
            for number in range(200):
                assert bus.publish("a", (thread, number)).acknowledged == observers

        run(*(lambda thread=thread: publish(thread) for thread in range(6)))
    ids = [event.id for event in seen[0]]
    assert ids == sorted(set(ids))
    assert len(ids) == 1200
    assert all(events == seen[0] for events in seen)
    for thread in range(6):
        own = [event.payload[1] for event in seen[0] if event.payload[0] == thread]
        assert own == list(range(200)), "each publishing thread's own order is kept"


def test_nested_events_come_after_the_one_that_caused_them(bus: EventBus) -> None:
    early: list[int] = []
    late: list[int] = []

    def first(event: Event[int]) -> None:
        early.append(event.payload)
        if event.payload == 1:
            bus.publish("a", 2)

    bus.subscribe("a").subscribe(first)
    bus.subscribe("a").only_payload().subscribe(late.append)
    bus.publish("a", 1)
    assert early == late == [1, 2]


def test_merged_topics_are_one_observer(bus: EventBus) -> None:
    """Also where one of them is attached later, from the trampoline: `a.start_with(0)`."""
    inside = threading.Lock()
    twice: list[object] = []
    meeting = threading.Barrier(2)

    def handler(item: object) -> None:
        if not inside.acquire(blocking=False):
            twice.append(item)
            return
        time.sleep(0.001)  # a slow handler, so that the other publisher meets it inside
        inside.release()

    rx.merge(bus.subscribe("a").pipe(ops.start_with(0)), bus.subscribe("b")).subscribe(handler)
    assert bus.statistics().observers == 1

    def publish(topic: str) -> None:
        meeting.wait(PATIENCE)
        for _ in range(20):
            bus.publish(topic)

    run(lambda: publish("a"), lambda: publish("b"))
    assert twice == []


@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("watching", ["pattern", "merge"])
def test_no_observer_sees_an_effect_before_its_cause(max_workers: int | None, slow: bool, watching: str) -> None:
    """Also where they are of different topics, and whoever was attached first."""
    with EventBus(BlockingScheduler(max_workers)) as bus:
        seen: list[list[int]] = [[] for _ in range(4)]
        turn = threading.Event()

        def follow(topic: str) -> Callable[[Event[Any]], None]:
            return lambda event: bus.publish(topic, event.payload) and None

        def watch(number: int) -> None:
            source = rx.merge(*(bus.subscribe(name) for name in "cab")) if watching == "merge" else bus.subscribe(">")

            def handle(event: Event[Any]) -> None:
                if slow and number % 2:
                    turn.wait(0.002)
                seen[number].append(event.id)

            source.subscribe(handle)

        watch(0)
        bus.subscribe("a").subscribe(follow("b"))
        watch(1)
        watch(2)
        bus.subscribe("b").subscribe(follow("c"))
        watch(3)
        for number in range(20):
            bus.publish("a", number)
            bus.publish("a", number, timeout=PATIENCE)
        for one in seen:
            assert len(one) == 120
            assert one == sorted(one)


def test_a_cause_that_came_when_an_observer_was_just_leaving_is_not_for_it(bus: EventBus) -> None:
    """It is between two steps of leaving: the log of one topic has let go of it, the other has not."""
    seen: list[str] = []
    bus.subscribe(">").subscribe(lambda event: seen.append(event.topic))
    gate = threading.Event()
    bus.subscribe("a").subscribe(lambda event: bus.publish("b") and None)
    bus.subscribe("a").subscribe(lambda event: gate.wait(PATIENCE) and None)
    bus.subscribe("b").subscribe(nothing)
    log = bus._registry.logs["a"]
    log.remove(next(feed for feed in log.feeds if feed.lane.is_fed_by_several()))
    publishing = threading.Thread(target=bus.publish, args=("a",))
    publishing.start()
    publishing.join(0.2)
    assert publishing.is_alive(), "one observer has not acknowledged"
    gate.set()
    publishing.join(PATIENCE)
    assert seen == ["b"]


# -- 5: no deadlock


@pytest.mark.parametrize("max_workers", [None, 0, 1])
def test_handlers_that_publish_to_each_other_from_two_threads(max_workers: int | None) -> None:
    with EventBus(BlockingScheduler(max_workers)) as bus:
        meeting = threading.Barrier(2)
        count = {"a": 0, "b": 0}

        def handler(own: str, other: str) -> Handler:
            def handle(event: Event[int]) -> None:
                count[own] += 1
                if event.payload == 2 and max_workers != 0:
                    meeting.wait(PATIENCE)  # both are inside now, and publish to each other
                if event.payload:
                    bus.publish(other, event.payload - 1)

            return handle

        bus.subscribe("a").subscribe(handler("a", "b"))
        bus.subscribe("b").subscribe(handler("b", "a"))
        run(lambda: bus.publish("a", 2), lambda: bus.publish("b", 2))
        assert count == {"a": 3, "b": 3}


def test_buses_that_feed_each_other() -> None:
    with EventBus() as one, EventBus() as two:
        got: list[tuple[str, int]] = []

        def handler(name: str, other: EventBus) -> Handler:
            def handle(event: Event[int]) -> None:
                got.append((name, event.payload))
                if event.payload:
                    other.publish("x", event.payload - 1)

            return handle

        one.subscribe("x").subscribe(handler("one", two))
        two.subscribe("x").subscribe(handler("two", one))
        run(lambda: one.publish("x", 5), lambda: two.publish("x", 5))
        assert len(got) == 12


@pytest.mark.parametrize("max_workers", [None, 0])
def test_deep_chains_do_not_recurse(max_workers: int | None) -> None:
    with EventBus(BlockingScheduler(max_workers), max_chain=5000) as bus:
        got: list[int] = []

        def link(event: Event[int]) -> None:
            got.append(event.payload)
            if event.payload < 2000:
                bus.publish(f"chain.{event.payload % 100}", event.payload + 1)

        for number in range(100):  # each link has an observer of its own, free until the chain comes round again
            bus.subscribe(f"chain.{number}").subscribe(link)
        bus.publish("chain.99", 0)
        assert got == list(range(2001))


def test_a_lane_with_an_open_deferral_is_busy(bus: EventBus) -> None:
    """An event for it is handed in, but the nested publish does not wait: its own handler may be who acknowledges."""
    open_: list[Any] = []
    bus.subscribe("deferring").subscribe(lambda event: open_.append(defer()))
    receipts: list[Receipt] = []

    def handler(event: Event[Any]) -> None:
        first = bus.publish  # the first delivery is opened by another publisher
        receipts.append(first("deferring"))
        for one in open_:
            one.ack()

    bus.subscribe("a").subscribe(handler)
    opener = threading.Thread(target=bus.publish, args=("deferring",))
    opener.start()
    while not open_:
        opener.join(0.001)
    bus.publish("a")
    run(opener.join)
    assert [(one.acknowledged, one.queued) for one in receipts] == [(0, 1)]


# -- 6: isolation


@pytest.mark.parametrize("observers", [1, 4])
def test_failures_are_told_together_and_the_observer_stays(bus: EventBus, observers: int) -> None:
    def failing(event: Event[Any]) -> None:
        raise ValueError(event.payload)

    got: list[int] = []
    for number in range(observers):
        bus.subscribe("a", name=f"failing {number}").subscribe(failing)
    bus.subscribe("a").only_payload().subscribe(got.append) if observers > 1 else None
    for payload in (1, 2):
        with pytest.raises(PublishError) as caught:
            bus.publish("a", payload)
        notes = [error.__notes__[0] for error in caught.value.exceptions]
        assert notes == [f"in failing {number}, on topic 'a'" for number in range(observers)]
        assert caught.value.receipt.acknowledged == len(got[:1])
        assert isinstance(caught.value, ExceptionGroup)
    assert got == ([1, 2] if observers > 1 else [])


def test_a_queued_failure_goes_to_the_outermost_publisher(bus: EventBus) -> None:
    def handler(event: Event[int]) -> None:
        if event.payload == 0:
            bus.publish("a", 1)
        else:
            raise ValueError("queued")

    bus.subscribe("a").subscribe(handler)
    with pytest.raises(PublishError, match="1 failed") as caught:
        bus.publish("a", 0)
    assert str(caught.value.exceptions[0]) == "queued"


def test_a_nested_failure_goes_to_the_handler_that_published(bus: EventBus) -> None:
    caught: list[PublishError] = []

    def outer(event: Event[Any]) -> None:
        try:
            bus.publish("inner")
        except PublishError as error:
            caught.append(error)

    def inner(event: Event[Any]) -> None:
        raise ValueError("inner")

    bus.subscribe("outer").subscribe(outer)
    bus.subscribe("inner").subscribe(inner)
    assert bus.publish("outer").acknowledged == 1
    assert [str(one.exceptions[0]) for one in caught] == ["inner"]


@pytest.mark.parametrize("neighbours", [0, 2])
@pytest.mark.parametrize("slow", [False, True])
def test_a_base_exception_is_raised_again_at_the_publisher(bus: EventBus, neighbours: int, slow: bool) -> None:
    got = [threading.Event() for _ in range(neighbours)]

    def leaving(event: Event[Any]) -> None:
        if slow:
            time.sleep(0.005)  # a slow handler
        raise SystemExit(3)

    bus.subscribe("a").subscribe(leaving)
    for one in got:
        bus.subscribe("a").subscribe(lambda event, one=one: one.set())
    for _ in range(2):
        with pytest.raises(SystemExit):
            bus.publish("a")
        assert all(one.wait(PATIENCE) for one in got), "the others get it all the same"
        for one in got:
            one.clear()
    assert bus.publish("b").acknowledged == 0


@pytest.mark.rxbus_allow("pending")
def test_failures_beside_a_base_exception_are_noted(virtual_bus: EventBus) -> None:
    def failing(event: Event[Any]) -> None:
        raise ValueError("me too")

    def leaving(event: Event[Any]) -> None:
        raise SystemExit(3)

    virtual_bus.subscribe("a", name="failing").subscribe(failing)
    virtual_bus.subscribe("a").subscribe(leaving)
    virtual_bus.subscribe("a").subscribe(lambda event: defer() and None)
    with pytest.raises(SystemExit) as caught:
        virtual_bus.publish("a", timeout=5)
    assert any("me too" in note and "in failing" in note for note in caught.value.__notes__)


# -- 7: clean edges


def test_attached_after_the_publish_began(bus: EventBus) -> None:
    late: list[int] = []

    def attaching(event: Event[int]) -> None:
        if event.payload == 0:
            bus.subscribe("a").only_payload().subscribe(late.append)

    bus.subscribe("a").subscribe(attaching)
    assert bus.publish("a", 0).acknowledged == 1
    assert late == []
    assert bus.publish("a", 1).acknowledged == 2
    assert late == [1]


def test_detached_in_its_own_handler(bus: EventBus) -> None:
    got: list[int] = []
    bus.subscribe("a").only_payload().pipe(ops.take(2)).subscribe(got.append)
    assert [bus.publish("a", number).acknowledged for number in range(3)] == [1, 1, 0]
    assert got == [0, 1]


def test_detaching_drops_what_is_queued_and_frees_who_waits(bus: EventBus) -> None:
    inside, gate, freed = threading.Event(), threading.Event(), threading.Event()
    got: list[int] = []

    def handler(event: Event[int]) -> None:
        got.append(event.payload)
        inside.set()
        assert gate.wait(PATIENCE)

    attached = bus.subscribe("a").subscribe(handler)
    first = threading.Thread(target=bus.publish, args=("a", 0))
    first.start()
    assert inside.wait(PATIENCE)
    second = threading.Thread(target=lambda: (receipts.append(bus.publish("a", 1)), freed.set()))
    receipts: list[Receipt] = []
    second.start()
    while bus.statistics().pending < 2:
        second.join(0.001)
    attached.dispose()
    assert freed.wait(PATIENCE), "a queued delivery is dropped while the handler still runs"
    assert receipts[0].acknowledged == 0
    gate.set()
    run(first.join, second.join)
    assert got == [0]
    assert bus.statistics().pending == 0


def test_detaching_one_that_runs_on_a_worker_frees_its_publisher(bus: EventBus) -> None:
    inside, gate, freed = threading.Event(), threading.Event(), threading.Event()

    def stuck(event: Event[Any]) -> None:
        inside.set()
        gate.wait(PATIENCE)

    attached = bus.subscribe("a").subscribe(stuck)
    publisher = threading.Thread(target=lambda: (bus.publish("a", timeout=PATIENCE), freed.set()))
    publisher.start()
    assert inside.wait(PATIENCE)
    attached.dispose()
    assert freed.wait(PATIENCE)
    gate.set()
    run(publisher.join)


def test_detaching_gives_what_is_deferred(bus: EventBus) -> None:
    inside, freed = threading.Event(), threading.Event()
    attached = bus.subscribe("a").subscribe(lambda event: (defer(), inside.set()))
    publisher = threading.Thread(target=lambda: (bus.publish("a"), freed.set()))
    publisher.start()
    assert inside.wait(PATIENCE)
    attached.dispose()
    assert freed.wait(PATIENCE)
    run(publisher.join)


# -- 8: no waste


def test_fast_handlers_start_no_worker(bus: EventBus) -> None:
    for _ in range(4):
        bus.subscribe("a").subscribe(nothing)
    for _ in range(2000):
        bus.publish("a")
    assert bus.statistics().workers == 0


def test_close_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    bus = EventBus()
    barrier = threading.Barrier(3)
    for _ in range(3):
        bus.subscribe("a").subscribe(lambda event: barrier.wait(PATIENCE) and None)
    bus.publish("a")
    assert set(threading.enumerate()) > before
    bus.close()
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("observers", [0, 1, 3])
def test_publishes_leave_no_memory(bus: EventBus, observers: int) -> None:
    for _ in range(observers):
        bus.subscribe("a").subscribe(nothing)

    def publish(count: int) -> int:
        for _ in range(count):
            bus.publish("a", "payload")
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        left = [publish(count) for count in (500, 5000, 5000, 5000)]
        # A leak grows each time; what is made when it is needed first (a worker, on a busy machine) does not.
        assert min(after - before for before, after in pairwise(left)) < 5000
    finally:
        tracemalloc.stop()


class Big:
    """A payload that can be weakly referred to."""


@pytest.mark.parametrize("observers", [1, 2])
@pytest.mark.parametrize("way", ["plain", "nested", "deferred", "failing", "failing at last"])
def test_a_quiet_topic_pins_no_payload(bus: EventBus, observers: int, way: str) -> None:
    def handler(event: Event[Any]) -> None:
        if way == "nested":
            bus.publish("b", event.payload)
        if way == "deferred":
            with defer():
                pass
        if way == "failing":
            raise ValueError
        if way == "failing at last":
            defer().nack(ValueError())

    for _ in range(observers):
        bus.subscribe("a").subscribe(handler)
        bus.subscribe("b").subscribe(nothing)
    payload = Big()
    gone = weakref.ref(payload)
    with suppress(PublishError):
        bus.publish("a", payload)
    del payload
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("way", ["plain", "nested"])
@pytest.mark.rxbus_allow("failures")
def test_what_failed_before_the_publisher_was_interrupted_is_logged(
    bus: EventBus, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    def failing(event: Event[Any]) -> None:
        raise ValueError("the one before")

    def interrupted(event: Event[Any]) -> None:
        raise KeyboardInterrupt

    bus.subscribe("inner").subscribe(failing)
    bus.subscribe("inner").subscribe(interrupted)
    if way == "nested":
        bus.subscribe("outer").subscribe(lambda event: bus.publish("inner"))
    with pytest.raises(KeyboardInterrupt):
        bus.publish("inner" if way == "plain" else "outer")
    (record,) = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the one before"


def test_a_long_backlog_is_freed_without_recursion(bus: EventBus) -> None:
    inside, gate, flooded = threading.Event(), threading.Event(), threading.Event()

    def slow(event: Event[int]) -> None:
        if event.payload == 0:
            inside.set()
            assert gate.wait(60)

    def flood(event: Event[Any]) -> None:
        for number in range(50_000):
            bus.publish("a", number + 1)
        flooded.set()

    attached = bus.subscribe("a").subscribe(slow)
    bus.subscribe("a").subscribe(nothing)
    bus.subscribe("flood").subscribe(flood)
    first = threading.Thread(target=bus.publish, args=("a", 0))
    first.start()
    assert inside.wait(PATIENCE)
    flooder = threading.Thread(target=bus.publish, args=("flood",))
    flooder.start()
    assert flooded.wait(60)
    attached.dispose()
    gate.set()
    run(first.join, flooder.join)
    assert bus.statistics().pending == 0


# -- 9: telling


@pytest.mark.parametrize("observers", [1, 2])
def test_a_stalled_publish_is_told(caplog: pytest.LogCaptureFixture, observers: int) -> None:
    told, gate = threading.Event(), threading.Event()

    class Tell(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.set()

    logger = logging.getLogger("rxbus")
    handler = Tell()
    logger.addHandler(handler)
    try:
        with EventBus(BlockingScheduler(stall_after=0.05)) as bus:
            for _ in range(observers):
                bus.subscribe("tele.phone", name="the stuck one").subscribe(lambda event: gate.wait(PATIENCE) and None)
            publisher = threading.Thread(target=bus.publish, args=("tele.phone",))
            publisher.start()
            assert told.wait(PATIENCE)
            told.clear()
            assert told.wait(PATIENCE), "again, once the time has doubled"
            gate.set()
            run(publisher.join)
    finally:
        logger.removeHandler(handler)
    text = caplog.records[0].getMessage()
    assert "the stuck one" in text
    assert "'tele.phone'" in text
    assert "line " in text
    assert "test_delivery.py" in text
    waits = [float(record.getMessage().split("waited ")[1].split(" s")[0]) for record in caplog.records[:2]]
    assert waits[1] + 0.05 >= 2 * (waits[0] - 0.05)  # they are told to a tenth


@pytest.mark.rxbus_allow("pending")
def test_a_stall_for_a_deferral_is_told(virtual_bus: EventBus, caplog: pytest.LogCaptureFixture) -> None:
    virtual_bus.subscribe("a", name="forgetful").subscribe(lambda event: defer())
    with pytest.raises(AcknowledgementTimeout):
        virtual_bus.publish("a", timeout=9.0)
    (told,) = caplog.messages
    what = "forgetful, on topic 'a', whose deferred acknowledgement is not done"
    assert told == f"publish to 'a' has waited 5.0 s for {what}"


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_stall_tells_who_waits_in_a_publish_of_its_own(
    caplog: pytest.LogCaptureFixture, timeout: float | None
) -> None:
    with closing(Opener("publish")) as opener, EventBus(BlockingScheduler(stall_after=0.05)) as bus:
        bus.subscribe("a", name="outer").subscribe(lambda event: bus.publish("b"))
        bus.subscribe("b", name="inner").subscribe(opener.wait)
        bus.publish("a", timeout=timeout)
    assert "for inner, on topic 'b', at line " in caplog.messages[0]
    assert caplog.messages[0].endswith("; outer, on topic 'a', which waits in a publish of its own")


def test_a_stall_at_a_full_buffer_is_told_as_that(caplog: pytest.LogCaptureFixture) -> None:
    with closing(Opener("publish")) as opener, EventBus(BlockingScheduler(stall_after=0.05)) as bus:
        bus.subscribe("a", name="held").pipe(buffered(1)).subscribe(opener.wait)
        for _ in range(3):
            bus.publish("a")
    assert "for held, on topic 'a', at line " in caplog.messages[0]
    assert ", waiting for room in a buffer (thread " in caplog.messages[0]


# -- 10: context


def test_handlers_see_the_publishers_context(bus: EventBus) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    barrier = threading.Barrier(3)
    seen: list[str] = []

    def handler(event: Event[Any]) -> None:
        barrier.wait(PATIENCE)
        seen.append(variable.get())

    for _ in range(3):
        bus.subscribe("a").subscribe(handler)
    variable.set("mine")
    for _ in range(2):
        bus.publish("a")
    assert seen == ["mine"] * 6


@pytest.mark.parametrize("observers", [1, 2])
def test_on_the_publishers_thread_it_is_the_very_context(bus: EventBus, observers: int) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    for _ in range(observers):
        bus.subscribe("a").subscribe(lambda event: variable.set("set by the handler") and None)
    found: list[str] = []
    contextvars.copy_context().run(lambda: (bus.publish("a"), found.append(variable.get())))
    assert found[-1] == "set by the handler"


def test_a_queued_event_brings_its_own_context(bus: EventBus) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=-1)
    seen: list[int] = []

    def handler(event: Event[int]) -> None:
        seen.append(variable.get())
        if event.payload < 2:
            variable.set(event.payload)
            bus.publish("a", event.payload + 1)

    bus.subscribe("a").subscribe(handler)
    contextvars.copy_context().run(bus.publish, "a", 0)
    assert seen == [-1, 0, 1]


# -- turns


@pytest.mark.parametrize("kind", [Lane, LockedLane])
def test_a_turn_is_taken_once(kind: type[Lane]) -> None:
    lane = kind(BlockingScheduler())
    del lane.free
    with pytest.raises(AttributeError):
        del lane.free
    lane.free = True
    del lane.free


def test_cold_sources_do_not_put_off_what_handlers_subscribe_to(bus: EventBus) -> None:
    got: list[int] = []
    after: list[int] = []
    bus.subscribe("a").only_payload().pipe(ops.flat_map(lambda n: rx.of(n, n * 10))).subscribe(got.append)

    def source(observer: Any, scheduler: Any = None) -> Any:
        for number in (1, 2):
            bus.publisher("a").on_next(number)
            after.append(len(got))

    rx.create(source).subscribe()
    assert after == [2, 4]
    assert got == [1, 10, 2, 20]


# -- jobs that two threads take off


def test_a_publisher_that_is_offered_the_same_again_and_again_sees_that_it_need_not_wait() -> None:
    wait = Wait()
    looked: list[int] = []

    def come_back() -> None:  # as a lane does whose first mail is for another thread
        looked.append(wait.count)
        assert len(looked) < 10
        wait.count = 0
        wait.offer(come_back)

    wait.count = 1
    wait.offer(come_back)
    assert wait.sleep(None, EventBus().scheduler.time)
    assert looked == [1]


def test_a_job_that_two_have_done_takes_none_off_that_was_offered_anew() -> None:
    """The monitor passes on what a publisher does at the same time; equal jobs are not the same."""
    wait, lane = Wait(), Lane(EventBus().scheduler)
    done: list[object] = []

    def also_done_by_the_publisher(job: Callable[[], object]) -> None:
        done.append(job)
        if len(done) == 1:
            wait.pass_on(done.append)
            wait.offer(lane.visit)

    wait.offer(lane.visit)
    wait.pass_on(also_done_by_the_publisher)
    assert len(done) == 2
    wait.pass_on(done.append)
    assert len(done) == 3


def test_a_job_put_off_that_two_have_done_takes_none_off_that_was_put_off_anew() -> None:
    here, lane = Here(), Lane(EventBus().scheduler)
    done: list[object] = []

    def also_done_by_the_thread(job: Callable[[], object]) -> None:
        done.append(job)
        if len(done) == 1:
            run_later(here)
            here.later.append(PutOff(lane.visit, also_done_by_the_thread))

    here.later.append(PutOff(lane.visit, also_done_by_the_thread))
    pass_on_later(here)
    places[here.thread] = local.here  # as it was
    assert len(done) == 2


def test_a_cause_comes_first_though_the_observer_attached_in_between(bus: EventBus) -> None:
    """It knows nothing of the topic of the middle one: that one's own causes count nevertheless."""
    seen: list[str] = []
    inside, go = threading.Event(), threading.Event()
    late: Subject[Any] = Subject()

    def middle(event: Event[Any]) -> None:
        attaching = threading.Thread(target=late.on_next, args=(None,))
        attaching.start()
        attaching.join(PATIENCE)
        bus.publish("c", "effect")
        go.set()

    def observer(event: Event[Any]) -> None:
        seen.append(event.payload)
        if event.payload == "block":
            inside.set()
            assert go.wait(PATIENCE)

    bus.subscribe("b").subscribe(lambda event: event.payload == "cause" and bus.publish("a", "middle"))
    bus.subscribe("a").subscribe(middle)
    joined = rx.merge(bus.subscribe("b"), bus.subscribe("c"), late.pipe(ops.flat_map(lambda _: bus.subscribe("a"))))
    joined.subscribe(observer)
    first = threading.Thread(target=bus.publish, args=("b", "block"))
    first.start()
    assert inside.wait(PATIENCE)
    bus.publish("b", "cause")
    first.join(PATIENCE)
    assert seen == ["block", "cause", "effect"]


@pytest.mark.timeout(30)
def test_a_full_pool_that_waits_for_an_observer_serves_it() -> None:
    """Before the worker's event lies one whose publisher has gone: nobody else would come for the mail."""
    first, go, inside = threading.Event(), threading.Event(), threading.Event()
    published = threading.Event()
    with EventBus(BlockingScheduler(1)) as bus:

        def slow(event: Event[int]) -> None:
            if event.payload == 1:
                inside.set()
                assert first.wait(PATIENCE)

        def worker(event: Event[Any]) -> None:
            assert go.wait(PATIENCE)
            bus.publish("a", 3)
            published.set()

        bus.subscribe("a").subscribe(slow)
        bus.subscribe("a").subscribe(nothing)
        bus.subscribe("b").pipe(buffered(1)).subscribe(worker)
        bus.publish("b")
        one = threading.Thread(target=bus.publish, args=("a", 1))
        one.start()
        assert inside.wait(PATIENCE)
        with pytest.raises(AcknowledgementTimeout):
            bus.publish("a", 2, timeout=0.01)
        go.set()
        while not bus._scheduler.waiting:  # the worker's publish
            pass
        first.set()
        one.join(PATIENCE)
        assert published.wait(PATIENCE)


@pytest.mark.timeout(30)
def test_a_publisher_that_waits_for_nothing_passes_on_no_mail_to_itself(spawn: Callable[..., Future[Any]]) -> None:
    """What it waited for has lapsed, what comes before it is another's, and the only worker is busy elsewhere."""
    inside, go, elsewhere = threading.Event(), threading.Event(), threading.Event()
    with EventBus(BlockingScheduler(1)) as bus:

        def slow(event: Event[int]) -> None:
            if event.payload == 1:
                inside.set()
                assert go.wait(PATIENCE)

        def part(event: Event[int]) -> None:
            if event.payload == 3:
                leaving.dispose()
                go.set()
                one.join(PATIENCE)  # it has passed on the mail

        bus.scheduler.schedule(lambda *_: elsewhere.wait(3 * PATIENCE) and None)
        leaving = bus.subscribe("a").subscribe(slow)
        bus.subscribe("a").subscribe(part)
        one = threading.Thread(target=bus.publish, args=("a", 1))
        one.start()
        assert inside.wait(PATIENCE)
        for _ in range(COMBINED + 1):  # more than `one` does for others
            with pytest.raises(AcknowledgementTimeout):
                bus.publish("a", 2, timeout=0)
        assert spawn(bus.publish, "a", 3).result(PATIENCE).acknowledged == 1
        elsewhere.set()


def test_a_delivery_is_refused_or_made_not_both(
    bus: EventBus, spawn: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins in the very moment in which a buffer refuses it."""
    inside, go = threading.Event(), threading.Event()
    seen: list[int] = []

    def handle(event: Event[int]) -> None:
        seen.append(event.payload)
        if event.payload == 1:
            inside.set()
            assert go.wait(PATIENCE)

    bus.subscribe("a").subscribe(handle)
    bus.subscribe("a").subscribe(nothing)
    publishing = [spawn(bus.publish, "a", 1)]
    assert inside.wait(PATIENCE)
    publishing.append(spawn(bus.publish, "a", 2))
    (attachment, _) = bus._registry.attachments
    (feed,) = attachment.feeds.values()
    while not (waiting := [fan for fan in list(bus._scheduler.waiting) if fan.id == 2]):
        pass
    fail = FanOut.fail

    def begin_and_fail(self: FanOut, *arguments: Any) -> None:
        go.set()
        publishing[0].result(PATIENCE)
        while not (feed.cursor.id == 2 and getattr(feed.lane, "free", False)):
            pass
        fail(self, *arguments)

    monkeypatch.setattr(FanOut, "fail", begin_and_fail)
    waiting[0].refuse(feed, RuntimeError("refused"))
    with pytest.raises(PublishError, match="1 failed"):
        publishing[1].result(PATIENCE)
    assert seen == [1]
    assert (bus.statistics().acknowledged, bus.statistics().failed, bus.statistics().pending) == (3, 1, 0)


def test_a_right_is_taken_once() -> None:
    right = Once()
    assert [right.take(), right.take(), right.take()] == [True, False, False]


def test_ctrl_c_in_a_nested_publish_for_another_thread_is_not_that_one_s(bus: EventBus) -> None:
    """Its nested publisher has gone: the outermost one, on a thread of its own, is told, but not interrupted."""
    bus.subscribe("a").subscribe(lambda event: None)
    log = bus._registry.log("a")
    (feed,) = log.feeds
    top, nested = FanOut(log, None, 1, (feed,)), FanOut(log, None, 2, (feed,))
    nested.root = top
    nested.waiting().gone = True
    nested.fail(KeyboardInterrupt(), feed, nested.waiting())
    (told,) = top.waiting().take_failures()
    assert isinstance(told, RxBusError)
    assert isinstance(told.__cause__, KeyboardInterrupt)
