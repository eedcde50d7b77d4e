"""The tap: what tracers are told, when, and what they cannot harm."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import reactivex as rx
from reactivex import operators as ops
from reactivex.scheduler import EventLoopScheduler

from rxbus import (
    AcknowledgementTimeout,
    BlockingScheduler,
    BusClosed,
    Event,
    EventBus,
    InvalidArgument,
    PublishError,
    Receipt,
    RxBusError,
    StageTracer,
    Tracer,
    defer,
    only_payload,
)
from rxbus.operators import buffered, map_async, tap

PATIENCE = 10.0
Spawn = Callable[..., Future[Any]]


class Book:
    """A tracer that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event[Any]] = []
        self.deliveries: list[tuple[Event[Any], str, float, float, str, BaseException | None]] = []
        self.receipts: list[Receipt] = []
        self.told = threading.Semaphore(0)

    def published(self, event: Event[Any]) -> None:
        self.events.append(event)

    def delivered(
        self, event: Event[Any], observer: str, start: float, end: float, thread: str, error: BaseException | None
    ) -> None:
        self.deliveries.append((event, observer, start, end, thread, error))
        self.told.release()

    def settled(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)

    def to_whom(self) -> list[tuple[Any, str]]:
        return [(delivery[0].payload, delivery[1]) for delivery in self.deliveries]


@pytest.fixture
def book(bus: EventBus) -> Book:
    book = Book()
    bus.trace(book)
    return book


def nothing(event: object) -> None:
    """A handler."""


@pytest.mark.parametrize("observers", [0, 1, 3])
def test_events_deliveries_and_receipts(bus: EventBus, book: Book, observers: int) -> None:
    names = [f"observer {n}" for n in range(observers)]
    for name in names:
        bus.subscribe("a", name=name).subscribe(nothing)
    before = time.time()
    receipt = bus.publish("a", 1)
    assert book.events == [receipt.event]
    assert book.receipts == [receipt]
    assert receipt.acknowledged == observers
    assert book.to_whom() == [(1, name) for name in names]
    for event, _, start, end, thread, error in book.deliveries:
        assert event is receipt.event
        assert before <= event.time <= start <= end <= time.time()
        assert (thread, error) == (threading.current_thread().name, None)


def test_it_is_a_tracer() -> None:
    assert isinstance(Book(), Tracer)
    assert not isinstance(object(), Tracer)


def test_a_failure_is_told_with_its_delivery(bus: EventBus, book: Book) -> None:
    error = ValueError("no")

    def fail(event: object) -> None:
        raise error

    bus.subscribe("a", name="fails").subscribe(fail)
    bus.subscribe("a", name="works").subscribe(nothing)
    with pytest.raises(PublishError) as raised:
        bus.publish("a")
    assert [(name, failure) for _, name, _, _, _, failure in book.deliveries] == [("fails", error), ("works", None)]
    assert book.receipts == [raised.value.receipt]


def test_a_deferred_delivery_ends_when_it_is_acknowledged(bus: EventBus, book: Book, spawn: Spawn) -> None:
    owed = []
    begun = threading.Event()

    def put_off(event: object) -> None:
        owed.append(defer())
        begun.set()

    bus.subscribe("a").subscribe(put_off)
    publishing = spawn(bus.publish, "a")
    assert begun.wait(PATIENCE)
    between = time.time()
    assert book.deliveries == []
    owed[0].ack()
    publishing.result(PATIENCE)
    ((_, _, start, end, thread, error),) = book.deliveries
    assert start <= between <= end
    assert (thread, error) == ("spawned-0", None)


def test_a_nack_is_told(bus: EventBus, book: Book) -> None:
    error = ValueError("no")
    bus.subscribe("a").subscribe(lambda event: defer().nack(error))
    with pytest.raises(PublishError):
        bus.publish("a")
    assert [failure for *_, failure in book.deliveries] == [error]


def test_an_observer_that_leaves_has_ended_its_delivery(bus: EventBus, book: Book) -> None:
    def leave(event: object) -> None:
        defer()
        attached.dispose()

    attached = bus.subscribe("a", name="leaves").subscribe(leave)
    bus.publish("a", 1)
    assert book.to_whom() == [(1, "leaves")]


def test_a_publish_returns_when_all_of_it_has_been_told(bus: EventBus, spawn: Spawn) -> None:
    """Though another thread has ended the delivery, and its tracer dawdles."""
    telling, go = threading.Event(), threading.Event()

    class Dawdling(Book):
        def delivered(self, *delivery: Any) -> None:
            telling.set()
            assert go.wait(PATIENCE)
            super().delivered(*delivery)

    book, owed, begun = Dawdling(), [], threading.Event()
    bus.trace(book)
    bus.subscribe("a").subscribe(lambda event: owed.append(defer()) or begun.set())  # type: ignore[func-returns-value]
    publishing = spawn(bus.publish, "a", 1)
    assert begun.wait(PATIENCE)
    acknowledging = spawn(owed[0].ack)
    assert telling.wait(PATIENCE)
    assert bus.statistics().acknowledged == 1
    assert not publishing.done()
    go.set()
    publishing.result(PATIENCE)
    assert len(book.deliveries) == 1
    acknowledging.result(PATIENCE)


async def test_coroutines_and_publish_async(bus: EventBus, book: Book) -> None:
    go = asyncio.Event()

    async def handle(event: Event[Any]) -> None:
        await go.wait()

    bus.subscribe("a", name="async").subscribe(handle)
    bus.subscribe("a", name="mapped").pipe(map_async(handle)).subscribe()
    publishing = asyncio.create_task(bus.publish_async("a", 1))
    await asyncio.sleep(0)
    assert [event.payload for event in book.events] == [1]
    assert book.deliveries == []
    go.set()
    receipt = await publishing
    assert sorted(book.to_whom()) == [(1, "async"), (1, "mapped")]
    assert book.receipts == [receipt]
    assert (await bus.publish_async("nobody")) == book.receipts[-1]


def test_nested_and_queued_events(bus: EventBus, book: Book) -> None:
    def again(event: Event[int]) -> None:
        if event.payload < 3:
            bus.publish("a", event.payload + 1)
        if event.payload == 1:
            bus.publish("b", 10)

    bus.subscribe("a", name="again").subscribe(again)
    bus.subscribe("b", name="other").subscribe(nothing)
    bus.publish("a", 1)
    assert sorted(book.to_whom()) == [(1, "again"), (2, "again"), (3, "again"), (10, "other")]
    assert {event.payload: event.cause for event in book.events} == {1: None, 2: 1, 10: 1, 3: 2}
    assert sorted(receipt.event.payload for receipt in book.receipts) == [1, 2, 3, 10]


def test_workers_are_named(book: Book, bus: EventBus) -> None:
    bus.subscribe("a").subscribe(nothing)
    bus.publish("a", timeout=PATIENCE)
    ((*_, thread, _),) = book.deliveries
    assert thread.startswith("rxbus-")


def test_what_is_given_up_is_not_settled(bus: EventBus, book: Book) -> None:
    gate = threading.Event()
    bus.subscribe("a").subscribe(lambda event: gate.wait(PATIENCE))
    with pytest.raises(AcknowledgementTimeout):
        bus.publish("a", 1, timeout=0)
    assert book.receipts == []
    gate.set()
    assert book.told.acquire(timeout=PATIENCE)
    assert [delivery[0].payload for delivery in book.deliveries] == [1]


def test_behind_a_buffer_it_is_delivered_on_entry(bus: EventBus, book: Book) -> None:
    bus.subscribe("a").pipe(buffered(1)).subscribe(nothing)
    bus.publish("a", 1)
    assert [delivery[0].payload for delivery in book.deliveries] == [1]


def test_a_subject_and_a_publisher_are_traced(bus: EventBus, book: Book) -> None:
    bus.subscribe("a", name="x").subscribe(nothing)
    event = Event("a", "raw", 0, 0.0)
    bus.topic("a").on_next(event)
    rx.of("fed").subscribe(bus.publisher("a"))
    assert book.to_whom() == [("raw", "x"), ("fed", "x")]
    bus.topic("a").on_next("no event")  # type: ignore[arg-type]
    assert [event.payload for event in book.events] == ["raw", "fed"]


@pytest.mark.parametrize("workers", [None, 0, 1])
def test_the_order_and_the_turn_are_the_same(workers: int | None, spawn: Spawn) -> None:
    with EventBus(BlockingScheduler(workers)) as bus:
        book, seen = Book(), [[] for _ in range(3)]  # type: ignore[var-annotated]
        for each in seen:
            bus.subscribe("a").subscribe(lambda event, each=each: each.append(event.id))
        bus.trace(book)
        threads = [spawn(lambda: [bus.publish("a") for _ in range(200)]) for _ in range(4)]
        for thread in threads:
            thread.result(PATIENCE)
        assert seen[0] == seen[1] == seen[2] == sorted(event.id for event in book.events)
        assert len(book.deliveries) == 3 * 800
        assert {receipt.acknowledged for receipt in book.receipts} == {3}


def test_detached_it_is_told_no_more(bus: EventBus) -> None:
    book = Book()
    tapped = bus.trace(book)
    bus.subscribe("a").subscribe(nothing)
    bus.publish("a", 1)
    tapped.dispose()
    tapped.dispose()
    bus.publish("a", 2)
    assert [event.payload for event in book.events] == [1]
    assert [event.payload for event, *_ in book.deliveries] == [1]
    bus.trace(book)
    bus.publish("a", 3)
    assert [event.payload for event in book.events] == [1, 3]


def test_an_event_is_traced_whole_or_not_at_all(bus: EventBus) -> None:
    book = Book()

    def attach(event: Event[Any]) -> None:
        if event.payload == 1:
            bus.trace(book)

    bus.subscribe("a").subscribe(attach)
    bus.subscribe("a").subscribe(nothing)
    bus.publish("a", 1)
    assert (book.events, book.deliveries, book.receipts) == ([], [], [])
    bus.publish("a", 2)
    assert (len(book.events), len(book.deliveries), len(book.receipts)) == (1, 2, 1)


def test_several_tracers(bus: EventBus) -> None:
    one, other = Book(), Book()
    first = bus.trace(one)
    bus.trace(other)
    bus.publish("a", 1)
    first.dispose()
    bus.publish("a", 2)
    assert [event.payload for event in one.events] == [1]
    assert [event.payload for event in other.events] == [1, 2]


@pytest.mark.parametrize("where", ["published", "delivered", "settled"])
@pytest.mark.rxbus_allow("failures")
def test_a_tracer_that_raises_is_detached_and_logged(
    bus: EventBus, book: Book, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Book()

    def fail(*_: object) -> None:
        raise ValueError("a bad tracer")

    setattr(bad, where, fail)
    bus.trace(bad)
    handled: list[Any] = []
    bus.subscribe("a").subscribe(handled.append)
    with caplog.at_level(logging.ERROR, "rxbus"):
        assert bus.publish("a").acknowledged == 1
        assert bus.publish("a").acknowledged == 1
    assert len(handled) == len(book.deliveries) == len(book.receipts) == 2
    assert ["detached" in record.getMessage() for record in caplog.records] == [True]


def test_what_a_tracer_publishes_is_not_traced(bus: EventBus) -> None:
    class Loud(Book):
        def published(self, event: Event[Any]) -> None:
            super().published(event)
            bus.publish("noise", event.payload)

    loud, heard = Loud(), []
    bus.subscribe("noise").subscribe(lambda event: heard.append(event.payload))
    bus.trace(loud)
    bus.publish("a", 1)
    assert ([event.topic for event in loud.events], heard) == (["a"], [1])


def test_bad_input(bus: EventBus) -> None:
    with pytest.raises(InvalidArgument, match="published"):
        bus.trace(object())  # type: ignore[arg-type]
    book = Book()
    bus.trace(book)
    with pytest.raises(InvalidArgument, match="attached already"):
        bus.trace(book)
    bus.close()
    with pytest.raises(BusClosed):
        bus.trace(Book())


def test_nothing_is_pinned(bus: EventBus) -> None:
    class Payload:
        """One that can be referred to weakly."""

    class Deaf(Book):
        def published(self, event: Event[Any]) -> None:
            """Keeps nothing."""

        def delivered(self, *_: object) -> None: ...

        def settled(self, receipt: Receipt) -> None: ...

    tracer = Deaf()
    known = weakref.ref(tracer)
    bus.trace(tracer).dispose()
    del tracer
    gc.collect()
    assert known() is None
    bus.trace(Deaf())
    bus.subscribe("a").subscribe(nothing)
    payload = Payload()
    seen = weakref.ref(payload)
    bus.publish("a", payload)
    del payload
    gc.collect()
    assert seen() is None


def test_what_takes_it_off_keeps_no_bus_alive() -> None:
    bus = EventBus()
    known, taken = weakref.ref(bus), (bus.trace(Book()), bus.on_close(print))
    del bus
    gc.collect()
    assert known() is None
    for one in taken:
        one.dispose()


# -- stages


class Stages(Book):
    """A tracer that keeps what passes stages, too."""

    def __init__(self) -> None:
        super().__init__()
        self.passages: list[tuple[str, str, Any, Any]] = []

    def passed(self, stage: str, kind: str, value: Any, event: Event[Any] | None, time: float) -> None:
        self.passages.append((stage, kind, value, None if event is None else event.payload))


def test_stages(bus: EventBus, book: Book) -> None:
    stages = Stages()
    assert isinstance(stages, StageTracer)
    assert not isinstance(book, StageTracer)
    seen: list[int] = []
    bus.subscribe("a").pipe(only_payload, tap("in"), ops.map(lambda n: 2 * n), tap("out")).subscribe(seen.append)
    bus.publish("a", 1)
    tapped = bus.trace(stages)
    bus.publish("a", 2)
    bus.topic("a").on_completed()
    tapped.dispose()
    assert stages.passages == [
        ("in", "next", 2, 2),
        ("out", "next", 4, 2),
        ("in", "completed", None, None),
        ("out", "completed", None, None),
    ]
    assert seen == [2, 4]


def test_errors_pass_stages(bus: EventBus) -> None:
    stages, caught = Stages(), []
    bus.trace(stages)
    error = ValueError("no")

    def fail(_: object) -> object:
        raise error

    bus.subscribe("a").pipe(ops.map(fail), tap("failed")).subscribe(on_error=caught.append)
    bus.publish("a", 1)
    assert stages.passages == [("failed", "error", error, 1)]
    assert caught == [error]


def test_a_stage_on_another_thread_belongs_to_its_bus(bus: EventBus) -> None:
    stages, done = Stages(), threading.Event()
    bus.trace(stages)
    with EventLoopScheduler() as far:
        bus.subscribe("a").pipe(ops.observe_on(far), tap("far")).subscribe(lambda _: done.set())
        bus.publish("a", 1)
        assert done.wait(PATIENCE)
        assert [(stage, event) for stage, _, _, event in stages.passages] == [("far", None)]
        bus.close()  # first: it completes its observer on the far side


def test_what_a_source_emits_at_once_passes_a_stage_in_a_delivery_only(bus: EventBus) -> None:
    stages = Stages()
    bus.trace(stages)
    rx.of(1).pipe(tap("no bus")).subscribe()
    bus.subscribe("a").pipe(ops.flat_map(lambda _: rx.of(2).pipe(tap("inner")))).subscribe()
    bus.publish("a", 1)
    assert [stage for stage, *_ in stages.passages] == ["inner", "inner"]


def test_one_chain_with_stages_is_one_observer(bus: EventBus) -> None:
    left, right = (bus.subscribe(name).pipe(tap(name)) for name in "ab")
    rx.merge(left, right).subscribe()
    assert bus.statistics().observers == 1


@pytest.mark.parametrize("name", ["", None, 3])
def test_a_stage_has_a_name(name: Any) -> None:
    with pytest.raises(InvalidArgument):
        tap(name)


# -- the end of a bus


def test_a_bus_that_closes_in_the_moment_in_which_something_is_hung_on_its_end(bus: EventBus) -> None:
    class Late(dict[object, Callable[[], object]]):
        def __setitem__(self, key: object, callback: Callable[[], object]) -> None:
            bus.close()  # as another thread may
            super().__setitem__(key, callback)

    told: list[str] = []
    bus._at_close = Late()
    with pytest.raises(BusClosed):
        bus.on_close(lambda: told.append("never"))
    assert not told


def test_what_is_called_at_the_end_may_take_back_others(bus: EventBus) -> None:
    told: list[str] = []
    bus.on_close(lambda: taken_back.dispose())
    taken_back = bus.on_close(lambda: told.append("never"))
    bus.on_close(lambda: told.append("last"))
    bus.close()
    assert told == ["last"]


@pytest.mark.rxbus_allow("failures")
def test_callbacks_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    told: list[str] = []
    bus.subscribe("a").subscribe(on_completed=lambda: told.append("completed"))
    bus.on_close(lambda: told.append("first"))
    bus.on_close(lambda: 1 / 0)
    taken_back = bus.on_close(lambda: told.append("never"))
    bus.on_close(lambda: told.append("last"))
    taken_back.dispose()
    taken_back.dispose()
    with caplog.at_level(logging.ERROR, "rxbus"):
        bus.close()
        bus.close()
    assert told == ["completed", "first", "last"]
    assert len(caplog.records) == 1
    with pytest.raises(RxBusError):
        bus.on_close(nothing)  # type: ignore[arg-type]


# -- statistics by topic


def test_statistics_by_topic(bus: EventBus) -> None:
    def fail(event: object) -> None:
        raise ValueError

    owed = []
    bus.subscribe("a").subscribe(nothing)
    bus.subscribe("a").subscribe(fail)
    bus.subscribe("*").subscribe(lambda event: owed.append(defer()) if event.topic == "b" else None)
    for _ in range(2):
        with pytest.raises(PublishError):
            bus.publish("a")
    with pytest.raises(AcknowledgementTimeout):
        bus.publish("b", timeout=0.1)
    bus.publish("unasked.for")
    by_topic = bus.topic_statistics()
    a, b, nobody = by_topic["a"], by_topic["b"], by_topic["unasked.for"]
    assert (a.observers, a.published, a.acknowledged, a.failed, a.pending) == (3, 2, 4, 2, 0)
    assert (b.observers, b.published, b.acknowledged, b.failed, b.pending) == (1, 1, 0, 0, 1)
    assert (nobody.observers, nobody.published, nobody.acknowledged) == (0, 1, 0)
    whole = bus.statistics()
    assert (whole.published, whole.failed, whole.pending) == (4, 2, 1)
    owed[0].ack()
    assert bus.topic_statistics()["b"].acknowledged == 1
