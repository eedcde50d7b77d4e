"""The contract of EventBus, row by row."""

from __future__ import annotations

import asyncio
import enum
import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest
import reactivex as rx
from reactivex import operators as ops
from reactivex.scheduler import EventLoopScheduler, currentthreadscheduler
from reactivex.scheduler.trampoline import Trampoline
from reactivex.subject import Subject

from rxbus import (
    AcknowledgementTimeout,
    BlockingScheduler,
    BusClosed,
    Event,
    EventBus,
    EventLoopBlocked,
    FeedbackLoop,
    InvalidArgument,
    InvalidTopic,
    PublishError,
    Receipt,
    RxBusError,
    Topic,
    defer,
    only_payload,
)
from rxbus._fan_out import ledger
from rxbus._here import Reentered
from rxbus._workers import Worker
from rxbus.operators import buffered, map_async, observe_on
from rxbus.testing import expect_failure

PRICES = Topic("prices.eur", float)
PATIENCE = 10.0


def test_the_contract_in_ten_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with EventBus() as bus:
        high = bus.subscribe(PRICES).pipe(only_payload).filter(lambda p: p > 100)
        high.subscribe(print)
        receipt = bus.publish(PRICES, 101.5)
        assert receipt.acknowledged == 1
        bus.publish(PRICES, 99.5)
    assert capsys.readouterr().out == "101.5\n"


# -- publish


def test_publish_without_observers_returns_at_once(bus: EventBus) -> None:
    before = time.time()
    receipt = bus.publish("a", 1)
    assert isinstance(receipt, Receipt)
    assert (receipt.acknowledged, receipt.queued) == (0, 0)
    assert isinstance(receipt.event, Event)
    assert (receipt.event.topic, receipt.event.payload, receipt.event.cause) == ("a", 1, None)
    assert before <= receipt.event.time <= time.time()


@pytest.mark.parametrize("observers", [1, 2, 5])
def test_publish_returns_when_all_have_returned(bus: EventBus, observers: int) -> None:
    got: list[Any] = []
    for _ in range(observers):
        bus.subscribe("a").subscribe(got.append)
    receipt = bus.publish("a", None)
    assert got == [receipt.event] * observers
    assert receipt == Receipt(receipt.event, observers)


@pytest.mark.parametrize("payload", [None, False, 0, ""])
def test_falsy_payloads_are_payloads(bus: EventBus, payload: object) -> None:
    got: list[object] = []
    bus.subscribe("a").only_payload().subscribe(got.append)
    bus.publish("a", payload)
    assert got == [payload]


def test_ids_rise_across_topics(bus: EventBus) -> None:
    bus.subscribe("a").subscribe(lambda event: None)
    ids = [bus.publish(topic).event.id for topic in ("a", "b", "a", "c", "a")]
    assert ids == sorted(set(ids))


def test_publish_to_a_str_and_to_a_topic_is_the_same(bus: EventBus) -> None:
    got: list[float] = []
    bus.subscribe("prices.eur").only_payload().subscribe(got.append)
    bus.publish(PRICES, 1.0)
    bus.publish("prices.eur", 2.0)
    assert got == [1.0, 2.0]


@pytest.mark.parametrize("topic", ["", ".", "a..b", "a b", "a.*", "a.>", "x" * 256, "a\n", None, 7, b"a", ["a"]])
@pytest.mark.parametrize("call", ["publish", "topic", "publisher"])
def test_what_is_no_topic_is_refused(bus: EventBus, topic: Any, call: str) -> None:
    with pytest.raises(InvalidTopic):
        getattr(bus, call)(topic)
    assert dict(bus.topics) == {}


@pytest.mark.parametrize("pattern", ["", "a..b", "a.>.b", "a*", "*b", ">a", None, 7])
def test_what_is_no_pattern_is_refused(bus: EventBus, pattern: Any) -> None:
    for call in (bus.subscribe, bus.on):
        with pytest.raises(InvalidTopic):
            call(pattern)


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan")])
def test_a_timeout_that_is_none_is_refused_and_nothing_is_published(bus: EventBus, timeout: float) -> None:
    got: list[Any] = []
    bus.subscribe("a").subscribe(got.append)
    with pytest.raises(ValueError, match="timeout"):
        bus.publish("a", timeout=timeout)
    assert got == []


# -- timeouts


def test_a_timeout_names_who_has_not_acknowledged(bus: EventBus) -> None:
    release, ended = threading.Event(), threading.Event()

    def slow(event: Event[None]) -> None:
        assert release.wait(PATIENCE)
        ended.set()

    bus.subscribe("a", name="the slow one").subscribe(slow)
    bus.subscribe("a", name="the fast one").subscribe(lambda event: None)
    with pytest.raises(AcknowledgementTimeout) as caught:
        bus.publish("a", timeout=0.05)
    assert caught.value.pending == ("the slow one",)
    assert isinstance(caught.value, TimeoutError)
    assert "the slow one" in str(caught.value)
    assert not ended.is_set()
    release.set()
    assert ended.wait(PATIENCE), "the delivery goes on"


def test_a_timeout_that_is_kept_makes_no_difference(bus: EventBus) -> None:
    for _ in range(3):
        bus.subscribe("a").subscribe(lambda event: None)
    assert bus.publish("a", timeout=PATIENCE).acknowledged == 3


def test_timeout_zero_looks_once(bus: EventBus) -> None:
    gate = threading.Event()
    bus.subscribe("a").subscribe(lambda event: gate.wait(PATIENCE))
    with pytest.raises(AcknowledgementTimeout):
        bus.publish("a", timeout=0)
    gate.set()
    assert bus.publish("nobody", timeout=0).acknowledged == 0


@pytest.mark.rxbus_allow("pending")
def test_failure_and_timeout_together(virtual_bus: EventBus) -> None:
    def failing(event: Event[None]) -> None:
        raise ValueError("no good")

    virtual_bus.subscribe("a", name="failing").subscribe(failing)
    virtual_bus.subscribe("a", name="slow").subscribe(lambda event: defer())
    with pytest.raises(AcknowledgementTimeout) as caught:
        virtual_bus.publish("a", timeout=5)
    assert caught.value.pending == ("slow",)
    assert any("no good" in note and "failing" in note for note in caught.value.__notes__)


def test_the_timeout_of_an_outermost_publish_covers_its_tree(bus: EventBus) -> None:
    gate = threading.Event()
    bus.subscribe("b", name="leaf").subscribe(lambda event: gate.wait(PATIENCE))
    bus.subscribe("a", name="trunk").subscribe(lambda event: bus.publish("b") and None)
    with pytest.raises(AcknowledgementTimeout) as caught:
        bus.publish("a", timeout=0.5)
    gate.set()
    assert set(caught.value.pending) == {"trunk", "leaf"}


def test_a_failure_after_the_timeout_is_logged(bus: EventBus) -> None:
    gate = threading.Event()

    def late(event: Event[None]) -> None:
        assert gate.wait(PATIENCE)
        raise ValueError("too late")

    bus.subscribe("a", name="late").subscribe(late)
    with pytest.raises(AcknowledgementTimeout):
        bus.publish("a", timeout=0.01)
    with expect_failure(ValueError, match="too late") as failed:
        gate.set()
    assert "publisher had gone" in failed.messages[0]


@pytest.mark.parametrize("timeout", [1e10, 1e300, float("inf")])
def test_a_huge_timeout_is_for_ever(bus: EventBus, timeout: float) -> None:
    begun = threading.Event()
    bus.subscribe("a").subscribe(lambda event: begun.set() or time.sleep(0.02))  # slow, so that there is a wait
    assert bus.publish("a", timeout=timeout).acknowledged == 1
    assert begun.is_set()


@pytest.mark.parametrize("timeout", ["1", [], object()])
def test_a_timeout_that_is_no_number_is_refused(bus: EventBus, timeout: Any) -> None:
    with pytest.raises(InvalidArgument):
        bus.publish("a", timeout=timeout)


def test_a_name_that_is_no_string_is_refused(bus: EventBus) -> None:
    with pytest.raises(InvalidArgument):
        bus.subscribe("a", name=3)  # type: ignore[arg-type]


class _Name(str, enum.Enum):  # noqa: UP042 # not a StrEnum: str() of its members is not their value
    EUR = "prices.eur"


class _Hostile(str):
    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 1


@pytest.mark.parametrize("name", [_Name.EUR, _Hostile("prices.eur"), Topic(_Name.EUR)])
def test_a_kind_of_string_is_the_name_it_holds(bus: EventBus, name: Any) -> None:
    got: list[str] = []
    bus.subscribe("prices.eur").subscribe(lambda event: got.append(event.topic))
    bus.subscribe(name).subscribe(lambda event: got.append(event.topic))
    for topic in (name, "prices.eur"):
        assert bus.publish(topic).acknowledged == 2
    assert got == ["prices.eur"] * 4
    assert list(bus.topics) == ["prices.eur"]
    assert all(type(topic) is str for topic in got)


# -- subscriptions


def test_a_subscription_is_lazy_and_each_observer_counts(bus: EventBus) -> None:
    subscription = bus.subscribe("a")
    assert bus.publish("a").acknowledged == 0
    subscription.subscribe(lambda event: None)
    subscription.subscribe(lambda event: None)
    assert bus.publish("a").acknowledged == 2


def test_patterns(bus: EventBus) -> None:
    got: list[tuple[str, str]] = []
    for pattern in ("a.*", "a.>", "*.b", ">", "a.b"):
        bus.subscribe(pattern).subscribe(lambda event, pattern=pattern: got.append((pattern, event.topic)))
    counts = {topic: bus.publish(topic).acknowledged for topic in ("a.b", "a", "a.c", "a.b.c", "x.b")}
    assert counts == {"a.b": 5, "a": 1, "a.c": 3, "a.b.c": 2, "x.b": 2}
    assert len(got) == sum(counts.values())


def test_unsubscribe_completes_and_frees(bus: EventBus) -> None:
    completed: list[str] = []
    inside, let_go = threading.Event(), threading.Event()

    def handler(event: Event[None]) -> None:
        defer()
        inside.set()

    subscription = bus.subscribe("a")
    subscription.subscribe(handler, on_completed=lambda: completed.append("one"))
    subscription.subscribe(lambda event: None, on_completed=lambda: completed.append("two"))
    publisher = threading.Thread(target=lambda: (bus.publish("a"), let_go.set()))
    publisher.start()
    assert inside.wait(PATIENCE)
    bus.unsubscribe("a", subscription)
    assert let_go.wait(PATIENCE), "a publisher that waits is freed"
    publisher.join()
    assert sorted(completed) == ["one", "two"]
    bus.unsubscribe("a", subscription)
    assert len(completed) == 2
    assert bus.publish("a").acknowledged == 0
    subscription.subscribe(lambda event: None, on_completed=lambda: completed.append("late"))
    assert completed[-1] == "late"


def test_unsubscribe_refuses_what_is_not_its_own(bus: EventBus) -> None:
    subscription = bus.subscribe("a")
    subscription.subscribe(lambda event: None)
    with pytest.raises(ValueError, match="'a'"):
        bus.unsubscribe("b", subscription)
    with EventBus() as other, pytest.raises(InvalidArgument):
        other.unsubscribe("a", subscription)
    with pytest.raises(InvalidArgument):
        bus.unsubscribe("a", rx.never())  # type: ignore[arg-type]
    assert bus.publish("a").acknowledged == 1, "nothing is lost by it"


def test_on_attaches_and_returns_the_function(bus: EventBus) -> None:
    got: list[int] = []

    @bus.on("a.*")
    def handler(event: Event[int]) -> None:
        got.append(event.payload)

    bus.publish("a.b", 1)
    handler(Event("a.b", 2, 0, 0.0))
    assert got == [1, 2]


# -- topics


def test_a_topic_is_a_subject_in_the_registry(bus: EventBus) -> None:
    subject = bus.topic("a")
    assert isinstance(subject, Subject)
    assert bus.topic(Topic("a")) is subject
    assert dict(bus.topics) == {"a": subject}
    with pytest.raises(TypeError):
        bus.topics["b"] = subject  # type: ignore[index]


def test_publishing_alone_makes_no_topic(bus: EventBus) -> None:
    bus.publish("a")
    assert "a" not in bus.topics
    bus.subscribe("b")
    bus.subscribe("c.*")
    assert set(bus.topics) == {"b"}


def test_the_subject_delivers_like_publish(bus: EventBus) -> None:
    got: list[Any] = []
    bus.subscribe("*").subscribe(got.append)
    bus.topic("a").subscribe(got.append)
    event = Event("elsewhere", 1, 5, 0.0)
    bus.topic("a").on_next(event)
    assert got == [event, event]

    def failing(event: Any) -> None:
        raise ValueError("no")

    bus.topic("a").subscribe(failing)
    with pytest.raises(PublishError):
        bus.topic("a").on_next(event)


@pytest.mark.rxbus_allow("failures")
def test_publisher_feeds_a_topic_from_any_source(bus: EventBus, caplog: pytest.LogCaptureFixture) -> None:
    got: list[int] = []
    bus.subscribe("a").only_payload().subscribe(got.append)
    rx.of(1, 2, 3).subscribe(bus.publisher("a"))
    rx.throw(ValueError("broken source")).subscribe(bus.publisher("a"))
    rx.of(4).subscribe(bus.publisher("a"))
    assert got == [1, 2, 3, 4]
    assert "broken source" in caplog.text


# -- statistics


def test_statistics(bus: EventBus) -> None:
    def failing(event: Event[Any]) -> None:
        raise ValueError

    bus.subscribe("a").subscribe(lambda event: None)
    bus.publish("a")
    bus.subscribe("a").subscribe(lambda event: None)
    bus.subscribe("*").subscribe(failing)
    with pytest.raises(PublishError):
        bus.publish("a")
    bus.publish("c.d")
    statistics = bus.statistics()
    assert (statistics.topics, statistics.observers, statistics.published) == (1, 3, 3)
    assert (statistics.acknowledged, statistics.failed, statistics.pending) == (3, 1, 0)
    with pytest.raises(AttributeError):
        statistics.topics = 9  # type: ignore[misc]


def test_statistics_show_what_is_pending(bus: EventBus) -> None:
    deferred = []
    bus.subscribe("a").subscribe(lambda event: deferred.append(defer()))
    seen: list[int] = []
    bus.subscribe("b").subscribe(lambda event: seen.append(bus.statistics().pending))
    bus.publish("b")
    assert seen == [1]
    with pytest.raises(AcknowledgementTimeout):
        bus.publish("a", timeout=0.01)
    assert bus.statistics().pending == 1
    deferred[0].ack()
    assert bus.statistics().pending == 0


def test_reprs_never_subscribe(bus: EventBus) -> None:
    subscription = bus.subscribe("a")
    for thing in (bus, subscription, bus.topic("a")):
        assert repr(thing).startswith("<")
    assert bus.statistics().observers == 0


# -- constructing and closing


@pytest.mark.parametrize(
    "arguments", [{"scheduler": rx.scheduler.ImmediateScheduler()}, {"max_chain": 0}, {"max_chain": "x"}]
)
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        EventBus(**arguments)


def test_close_completes_and_refuses() -> None:
    bus = EventBus()
    ended: list[str] = []
    subscription = bus.subscribe("a")
    subscription.subscribe(lambda event: None, on_completed=lambda: ended.append("one"))
    bus.subscribe("*").subscribe(lambda event: None, on_completed=lambda: ended.append("pattern"))
    bus.topic("a").subscribe(lambda event: None, on_completed=lambda: ended.append("subject"))
    bus.close()
    assert sorted(ended) == ["one", "pattern", "subject"]
    for call in (bus.publish, bus.subscribe, bus.on):
        with pytest.raises(BusClosed):
            call("a")
    with pytest.raises(BusClosed):
        subscription.subscribe(print)
    with pytest.raises(BusClosed):
        asyncio.run(bus.publish_async("a"))
    bus.close()
    assert len(ended) == 3
    assert "closed" in repr(bus)


def test_close_waits_for_running_deliveries_and_lets_their_publishes_through() -> None:
    bus = EventBus()
    inside, gate = threading.Event(), threading.Event()
    got: list[str] = []

    def handler(event: Event[None]) -> None:
        inside.set()
        assert gate.wait(PATIENCE)
        bus.publish("b")
        got.append("a")

    bus.subscribe("a").subscribe(handler)
    bus.subscribe("b").subscribe(lambda event: got.append("b"))
    publisher = threading.Thread(target=bus.publish, args=("a",))
    publisher.start()
    assert inside.wait(PATIENCE)
    closed = threading.Event()
    closer = threading.Thread(target=lambda: (bus.close(), closed.set()))
    closer.start()
    with pytest.raises(BusClosed):
        _publish_until_refused(bus)
    assert not closed.is_set()
    gate.set()
    assert closed.wait(PATIENCE)
    publisher.join()
    closer.join()
    assert got == ["b", "a"]


def _publish_until_refused(bus: EventBus) -> None:
    while True:
        bus.publish("c")


def test_close_counts_what_is_deferred_as_given() -> None:
    bus = EventBus()
    inside = threading.Event()
    bus.subscribe("a").subscribe(lambda event: (defer(), inside.set()))
    publisher = threading.Thread(target=bus.publish, args=("a",))
    publisher.start()
    assert inside.wait(PATIENCE)
    bus.close()
    publisher.join(PATIENCE)
    assert not publisher.is_alive()


@pytest.mark.parametrize("observers", [1, 2])
def test_close_inside_a_handler_is_an_error(bus: EventBus, observers: int) -> None:
    for _ in range(observers):
        bus.subscribe("a").subscribe(lambda event: bus.close())
    with pytest.raises(PublishError) as caught:
        bus.publish("a")
    assert [type(error) for error in caught.value.exceptions] == [RxBusError] * observers
    assert bus.publish("b").acknowledged == 0


def test_two_buses_share_a_scheduler() -> None:
    scheduler = BlockingScheduler()
    one, two = EventBus(scheduler), EventBus(scheduler)
    barrier = threading.Barrier(2)
    for _ in range(2):
        two.subscribe("a").subscribe(lambda event: barrier.wait(PATIENCE) and None)
    one.close()
    assert two.publish("a").acknowledged == 2
    two.close()


def test_closing_one_bus_leaves_the_timers_of_another_that_shares_its_scheduler() -> None:
    scheduler = BlockingScheduler()
    one, two = EventBus(scheduler), EventBus(scheduler)
    inside = threading.Event()
    acknowledged: list[int] = []

    def later(event: Event[None]) -> None:
        scheduler.schedule_relative(0.05, lambda *_: None)
        inside.set()

    two.subscribe("a").subscribe(later)
    publisher = threading.Thread(target=lambda: acknowledged.append(two.publish("a").acknowledged))
    publisher.start()
    assert inside.wait(PATIENCE)
    one.close()
    publisher.join(PATIENCE)
    assert acknowledged == [1]
    two.close()
    assert [thread for thread in threading.enumerate() if thread.name.startswith("rxbus-")] == []


@pytest.mark.parametrize("max_workers", [None, 0, 1])
def test_closing_the_last_bus_leaves_the_timers_of_one_that_is_made_just_then(
    max_workers: int | None, spawn: Callable[..., Future[Any]]
) -> None:
    """Made when it has been found out that the bus is the last one, and closes the scheduler."""
    scheduler = BlockingScheduler(max_workers)
    one = EventBus(scheduler)
    buses: list[EventBus] = []
    publishing: list[Future[Any]] = []
    seen: list[Any] = []

    class Lock:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None:
            if not buses:
                buses.append(one)
                buses.append(EventBus(scheduler))
                delayed = buses[1].subscribe("a").pipe(ops.delay(0.05, scheduler=scheduler))
                delayed.subscribe(seen.append)
                publishing.append(spawn(buses[1].publish, "a"))
                while not scheduler.time._queue and not seen:
                    pass

    scheduler._lock = Lock()  # type: ignore[assignment]
    spawn(one.close).result(PATIENCE / 2)
    assert publishing[0].result(PATIENCE).acknowledged == 1
    assert len(seen) == 1
    buses[1].close()
    assert [thread for thread in threading.enumerate() if thread.name.startswith("rxbus-")] == []


def test_closing_a_bus_does_not_wait_for_another_that_shares_its_scheduler(spawn: Callable[..., Future[Any]]) -> None:
    scheduler = BlockingScheduler()
    one, two = EventBus(scheduler), EventBus(scheduler)
    inside, go = threading.Event(), threading.Event()

    def handle(event: Event[Any]) -> None:
        inside.set()
        assert go.wait(PATIENCE)

    two.subscribe("a").subscribe(handle)
    with pytest.raises(AcknowledgementTimeout):
        two.publish("a", timeout=0)  # on a worker
    assert inside.wait(PATIENCE)
    spawn(one.close).result(PATIENCE)
    go.set()
    two.close()


def test_close_waits_for_a_running_handler_whose_observer_has_left(spawn: Callable[..., Future[Any]]) -> None:
    bus = EventBus()
    inside, go, ended = threading.Event(), threading.Event(), threading.Event()

    def handle(event: Event[Any]) -> None:
        inside.set()
        assert go.wait(PATIENCE)
        ended.set()

    attached = bus.subscribe("a").subscribe(handle)
    publishing = spawn(bus.publish, "a")
    assert inside.wait(PATIENCE)
    attached.dispose()
    closing = spawn(bus.close)
    with pytest.raises(TimeoutError):
        closing.result(0.2)
    go.set()
    closing.result(PATIENCE)
    assert ended.is_set()
    publishing.result(PATIENCE)


def test_another_bus_may_be_closed_inside_a_handler(bus: EventBus) -> None:
    def handle(event: Event[Any]) -> None:
        with EventBus() as other:
            other.subscribe("b").subscribe(seen.append)
            other.publish("b", event.payload)

    seen: list[Event[Any]] = []
    bus.subscribe("a").subscribe(handle)
    assert bus.publish("a", 1).acknowledged == 1
    assert [event.payload for event in seen] == [1]


def test_close_by_a_handler_of_another_bus_that_its_own_handler_waits_for_is_an_error(bus: EventBus) -> None:
    with EventBus() as other:
        other.subscribe("b").subscribe(lambda event: bus.close())
        bus.subscribe("a").subscribe(lambda event: other.publish("b") and None)
        with pytest.raises(PublishError) as caught:
            bus.publish("a")
    assert "RxBusError" in repr(caught.value.exceptions)


def test_a_fast_observer_needs_one_worker_however_many_publishes_time_out(bus: EventBus) -> None:
    seen: list[Event[Any]] = []
    bus.subscribe("a").subscribe(seen.append)
    for _ in range(300):
        with suppress(AcknowledgementTimeout):
            bus.publish("a", timeout=0)
    assert bus.publish("a", timeout=PATIENCE).acknowledged == 1
    assert len(seen) == 301
    assert bus.statistics().workers <= 3


class _Detaching:
    """Garbage in a cycle, which detaches an observer when it is collected."""

    def __init__(self, bus: EventBus) -> None:
        self.attached = bus.subscribe("a").subscribe(lambda event: None)
        self.itself = self

    def __del__(self) -> None:
        self.attached.dispose()


def test_garbage_may_detach_observers_whenever_it_is_collected(bus: EventBus) -> None:
    bus.subscribe("a").subscribe(lambda event: defer().ack())
    before = gc.get_threshold()
    try:
        for threshold in range(1, 60):  # so that it is collected in the midst of this and that
            gc.set_threshold(threshold)
            for _ in range(10):
                _Detaching(bus)
                bus.publish("a")
                bus.publish("a", timeout=PATIENCE)
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert bus.publish("a").acknowledged == 1


def test_close_in_a_scheduled_action_is_an_error() -> None:
    bus = EventBus()
    told: list[BaseException] = []
    done = threading.Event()

    def close(*_: object) -> None:
        try:
            bus.close()
        except RxBusError as error:
            told.append(error)
        done.set()

    bus.scheduler.schedule(close)
    assert done.wait(PATIENCE)
    assert len(told) == 1
    bus.close()


def test_close_leaves_no_timer_thread() -> None:
    bus = EventBus()
    bus.scheduler.schedule_relative(1000.0, lambda *_: None)
    bus.close()
    assert [thread for thread in threading.enumerate() if thread.name.startswith("rxbus-")] == []


# -- destructors and signal handlers, which strike in the midst of the bus's own work


class _Publishing:
    """Garbage in a cycle, which publishes when it is collected."""

    def __init__(self, bus: EventBus, told: list[object]) -> None:
        self.bus, self.told = bus, told
        self.itself = self

    def __del__(self) -> None:
        try:
            self.told.append(self.bus.publish("a", "from the grave"))
        except RxBusError as error:
            self.told.append(error)


def test_garbage_may_publish_while_rx_makes_a_thread_s_trampoline(
    bus: EventBus, spawn: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def make() -> Trampoline:
        _Publishing(bus, told).__del__()
        return Trampoline()

    with monkeypatch.context() as patch:
        patch.setattr(currentthreadscheduler, "Trampoline", make)
        spawn(bus.publish, "a").result(PATIENCE)
    assert [type(one) for one in told] == [Reentered]


@pytest.mark.parametrize("observers", [1, 3])
def test_garbage_may_publish_whenever_it_is_collected(bus: EventBus, observers: int) -> None:
    """Where it would wait for what its own thread holds, it gets an error."""
    told: list[object] = []
    for _ in range(observers):
        bus.subscribe("a").subscribe(lambda event: None)
    before = gc.get_threshold()
    try:
        for threshold in range(1, 60):
            gc.set_threshold(threshold)
            for _ in range(10):
                _Publishing(bus, told)
                bus.publish("a")
    finally:
        gc.set_threshold(*before)
    end = time.monotonic() + PATIENCE
    while len(told) < 590 and time.monotonic() < end:
        gc.collect()  # which does nothing while another thread is in the midst of it
    assert len(told) == 590
    assert bus.publish("a", timeout=PATIENCE).acknowledged == observers


@pytest.mark.parametrize("observers", [1, 3])
def test_a_signal_handler_may_publish(bus: EventBus, observers: int) -> None:
    told: list[object] = []

    def handle(number: int, frame: object) -> None:
        try:
            told.append(bus.publish("a"))
        except RxBusError as error:
            told.append(error)

    for number in range(observers):
        bus.subscribe("a").subscribe(lambda event, slow=number == 2: defer().ack() if slow else None)
    ending = threading.Event()
    main = threading.get_ident()

    def strike() -> None:
        while not ending.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)
            ending.wait(0.0002)

    before = signal.signal(signal.SIGUSR1, handle)
    striking = threading.Thread(target=strike)
    striking.start()
    try:
        while len(told) < 300:
            bus.publish("a")
    finally:
        ending.set()
        striking.join()
        signal.signal(signal.SIGUSR1, before)
    assert bus.publish("a", timeout=PATIENCE).acknowledged == observers


def test_close_in_a_signal_handler_in_the_midst_of_close_does_nothing() -> None:
    bus = EventBus()
    calls: list[str] = []

    class Completed:
        def on_next(self, event: Event[Any]) -> None: ...
        def on_error(self, error: Exception) -> None: ...
        def on_completed(self) -> None:
            signal.raise_signal(signal.SIGUSR1)

    def handle(number: int, frame: object) -> None:
        try:
            bus.close()
            calls.append("closed")
        except RxBusError:
            calls.append("refused")

    bus.subscribe("a").subscribe(Completed())  # type: ignore[arg-type]
    before = signal.signal(signal.SIGUSR1, handle)
    try:
        bus.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(calls) == 1
    with pytest.raises(BusClosed):
        bus.publish("a")


@pytest.mark.parametrize("module", ["rxbus._workers", "rxbus._clock"])
def test_close_in_a_signal_handler_in_the_midst_of_starting_a_thread_is_an_error(
    module: str, spawn: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread would wait for the lock that is held while it is started, and `close` for the thread."""
    bus = EventBus()
    told: list[RxBusError] = []

    class Struck(Worker):
        def start(self) -> bool:
            started = super().start()
            with pytest.raises(RxBusError) as refused:
                bus.close()
            told.append(refused.value)
            return started

    bus.subscribe("a").pipe(ops.delay(0.001, scheduler=bus.scheduler)).subscribe()
    monkeypatch.setattr(f"{module}.Worker", Struck)
    assert spawn(bus.publish, "a").result(PATIENCE).acknowledged == 1
    spawn(bus.close).result(PATIENCE)
    assert told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("held", ["nothing", "a turn", "the ledger", "the order"])
def test_a_forked_child_finds_its_inherited_bus_closed_and_may_make_another(
    held: str, spawn: Callable[..., Future[Any]]
) -> None:
    bus = EventBus()
    inside, go = threading.Event(), threading.Event()

    def hold(event: Event[Any] | None = None) -> None:
        inside.set()
        assert go.wait(PATIENCE)

    def hold_the_order() -> None:
        del log.free
        hold()
        log.free = True

    def hold_the_ledger() -> None:
        with ledger:
            hold()

    bus.subscribe("a").subscribe(hold if held == "a turn" else lambda event: None)
    if held != "a turn":
        bus.publish("a")
    used = threading.Event()
    bus.scheduler.schedule_relative(0.001, lambda *_: used.set())  # it has a clock, and a worker
    assert used.wait(PATIENCE)
    log = bus._registry.logs["a"]
    holding = {"a turn": lambda: bus.publish("a"), "the ledger": hold_the_ledger, "the order": hold_the_order}
    if held in holding:
        holder = spawn(holding[held])
        assert inside.wait(PATIENCE)
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # a hang is a failure
        told = 0
        for call in (lambda: bus.publish("a"), lambda: bus.publish("new"), lambda: bus.subscribe("a")):
            try:
                call()
            except BusClosed as error:
                told += "forked" in str(error)
        bus.close()
        with EventBus(bus.scheduler) as own:  # its threads exist in the parent only
            own.subscribe("a").pipe(buffered(1)).subscribe(lambda event: None)
            own.subscribe("a").pipe(ops.delay(0.01, scheduler=own.scheduler)).subscribe(lambda event: None)
            told += own.publish("a").acknowledged // 2
        os._exit(40 + told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 44
    go.set()
    if held in holding:
        holder.result(PATIENCE)
    bus.close()


# -- causes


def test_causes_are_recorded(bus: EventBus) -> None:
    inner: list[Event[Any]] = []
    bus.subscribe("b").subscribe(inner.append)
    bus.subscribe("a").subscribe(lambda event: bus.publish("b") and None)
    outer = bus.publish("a").event
    assert (outer.cause, inner[0].cause) == (None, outer.id)


def test_a_feedback_loop_is_told_with_its_topics(caplog: pytest.LogCaptureFixture) -> None:
    count = 0

    def ping(event: Event[Any]) -> None:
        nonlocal count
        count += 1
        bus.publish("pong")

    with EventBus(max_chain=30) as bus:
        bus.subscribe("ping").subscribe(ping)
        bus.subscribe("pong", name="ponger").subscribe(lambda event: bus.publish("ping") and None)
        with pytest.raises(PublishError) as caught:
            bus.publish("ping")
    loops, others = caught.value.split(FeedbackLoop)
    assert loops is not None
    error = loops.exceptions[0]
    while isinstance(error, PublishError):
        error = error.exceptions[0]
    assert isinstance(error, FeedbackLoop)
    assert set(error.topics) == {"ping", "pong"}
    assert others is None
    assert count == 16
    assert "ping -> pong" in str(error) or "pong -> ping" in str(error)


def test_a_handler_that_publishes_to_itself_for_ever_is_stopped() -> None:
    with EventBus(max_chain=100) as bus:
        count = 0

        def again(event: Event[Any]) -> None:
            nonlocal count
            count += 1
            bus.publish("a")

        bus.subscribe("a").subscribe(again)
        with pytest.raises(PublishError) as caught:
            bus.publish("a")
    assert count == 101
    assert caught.value.exceptions[0].topics == ("a",)  # type: ignore[attr-defined]


# -- the event loop


async def test_publish_async_waits_without_blocking(bus: EventBus) -> None:
    gate = threading.Event()
    bus.subscribe("a").subscribe(lambda event: gate.wait(PATIENCE) and None)
    task = asyncio.ensure_future(bus.publish_async("a", 1))
    await asyncio.sleep(0)
    assert not task.done()
    gate.set()
    receipt = await asyncio.wait_for(task, PATIENCE)
    assert (receipt.acknowledged, receipt.event.payload) == (1, 1)


async def test_async_handlers_are_waited_for_one_at_a_time(bus: EventBus) -> None:
    running, most, got = 0, 0, []

    @bus.on("a")
    async def handler(event: Event[int]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        running -= 1
        got.append(event.payload)

    receipts = await asyncio.gather(*(bus.publish_async("a", number) for number in range(5)))
    assert got == [0, 1, 2, 3, 4]
    assert most == 1
    assert [receipt.acknowledged for receipt in receipts] == [1] * 5


async def test_a_blocking_publish_on_the_loop_of_a_handler_is_refused_at_once(bus: EventBus) -> None:
    got: list[Any] = []

    @bus.on("a")
    async def handler(event: Event[Any]) -> None:
        got.append(event.payload)

    bus.subscribe("a").subscribe(lambda event: got.append("sync"))
    with pytest.raises(EventLoopBlocked) as caught:
        bus.publish("a")
    assert "handler" in caught.value.observer
    assert got == [], "checked before anything is queued"
    await asyncio.to_thread(bus.publish, "a", 1)
    assert sorted(map(str, got)) == ["1", "sync"]


async def test_nested_publishes_that_would_block_the_loop_are_refused(bus: EventBus) -> None:
    gate = threading.Event()

    @bus.on("inner")
    async def handler(event: Event[Any]) -> None: ...

    bus.subscribe("outer").subscribe(lambda event: bus.publish("inner") and None)
    bus.subscribe("outer").subscribe(lambda event: gate.wait(0.01) and None)
    for _ in range(3):  # from the second time on, on a worker
        with pytest.raises(PublishError) as caught:
            bus.publish("outer")
        assert caught.value.split(EventLoopBlocked)[0] is not None


async def test_async_handlers_may_publish(bus: EventBus) -> None:
    got: list[Event[Any]] = []

    @bus.on("a")
    async def handler(event: Event[int]) -> None:
        got.append(event)
        if event.payload:
            receipt = await bus.publish_async("a", event.payload - 1)
            assert (receipt.acknowledged, receipt.queued) == (0, 1)
            assert (await bus.publish_async("b")).acknowledged == 1

    bus.subscribe("b").subscribe(got.append)
    await bus.publish_async("a", 2)
    assert [event.topic for event in got] == ["a", "b", "a", "b", "a"]
    assert [event.cause for event in got] == [None, got[0].id, got[0].id, got[2].id, got[2].id]


async def test_async_failures_reach_the_publisher(bus: EventBus) -> None:
    @bus.on("a")
    async def handler(event: Event[Any]) -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(PublishError) as caught:
        await bus.publish_async("a")
    assert isinstance(caught.value.exceptions[0], ValueError)
    assert (await bus.publish_async("b")).acknowledged == 0


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
async def test_a_base_exception_is_raised_at_the_asynchronous_publisher(
    bus: EventBus, error: type[BaseException]
) -> None:
    seen: list[int] = []

    def leaving(event: Event[Any]) -> None:
        raise error

    bus.subscribe("a").subscribe(leaving)
    bus.subscribe("a").only_payload().subscribe(seen.append)
    raised: list[BaseException] = []
    try:  # not pytest.raises: a task that ends with one of these ends the loop
        await bus.publish_async("a", 1, timeout=PATIENCE)
    except BaseException as caught:
        raised.append(caught)
    assert [type(one) for one in raised] == [error]
    bus._scheduler.join()
    assert seen == [1]


async def test_a_cancelled_handler_is_a_failure(bus: EventBus) -> None:
    @bus.on("a")
    async def handler(event: Event[Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(PublishError, match="1 failed"):
        await bus.publish_async("a")


async def test_cancelling_ends_the_waiting_not_the_deliveries(bus: EventBus) -> None:
    inside, gate, ended = threading.Event(), threading.Event(), threading.Event()

    def handler(event: Event[Any]) -> None:
        inside.set()
        assert gate.wait(PATIENCE)
        ended.set()

    bus.subscribe("a").subscribe(handler)
    task = asyncio.ensure_future(bus.publish_async("a"))
    assert await asyncio.to_thread(inside.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not ended.is_set()
    gate.set()
    assert await asyncio.to_thread(ended.wait, PATIENCE)


@pytest.mark.rxbus_allow("failures")
async def test_what_failed_before_the_publish_was_cancelled_is_logged(
    bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    inside, gate = threading.Event(), threading.Event()

    def failing(event: Event[Any]) -> None:
        raise ValueError("the one before")

    def slow(event: Event[Any]) -> None:
        inside.set()
        assert gate.wait(PATIENCE)

    bus.subscribe("a").subscribe(failing)
    bus.subscribe("a").subscribe(slow)
    task = asyncio.ensure_future(bus.publish_async("a"))
    assert await asyncio.to_thread(inside.wait, PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.set()
    (record,) = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the one before"


async def test_publish_async_times_out(bus: EventBus) -> None:
    gate = threading.Event()
    bus.subscribe("a", name="slow").subscribe(lambda event: gate.wait(PATIENCE) and None)
    with pytest.raises(AcknowledgementTimeout) as caught:
        await bus.publish_async("a", timeout=0.02)
    assert caught.value.pending == ("slow",)
    gate.set()
    with pytest.raises(InvalidArgument):
        await bus.publish_async("a", timeout=-1)


async def test_close_on_the_loop_does_not_wait_for_its_own_coroutines() -> None:
    bus = EventBus()
    gate, begun = asyncio.Event(), asyncio.Event()

    @bus.on("a")
    async def handler(event: Event[Any]) -> None:
        begun.set()
        await gate.wait()

    task = asyncio.ensure_future(bus.publish_async("a"))
    await begun.wait()
    bus.close()
    with pytest.raises(PublishError) as caught:  # it has not been done, and nobody may say so
        await asyncio.wait_for(task, PATIENCE)
    assert [type(error) for error in caught.value.exceptions] == [BusClosed]
    gate.set()


async def test_async_with_waits_for_coroutines() -> None:
    begun, ended = asyncio.Event(), []
    async with EventBus() as bus:

        @bus.on("a")
        async def handler(event: Event[Any]) -> None:
            begun.set()
            await asyncio.sleep(0.01)
            ended.append(event.payload)

        task = asyncio.ensure_future(bus.publish_async("a", 1))
        await begun.wait()
    assert ended == [1]
    assert (await task).acknowledged == 1
    with pytest.raises(BusClosed):
        bus.publish("a")


@pytest.mark.rxbus_allow("failures")
async def test_close_on_the_loop_hands_on_what_a_buffer_holds_for_an_async_handler() -> None:
    """The buffer's far side publishes to a handler that needs the loop which `close` blocks."""
    with EventBus() as bus:

        @bus.on("q")
        async def handler(event: Event[Any]) -> None:
            await asyncio.sleep(0)

        bus.subscribe("in").pipe(buffered(10)).subscribe(lambda event: bus.publish("q") and None)
        await bus.publish_async("in")
        await bus.publish_async("in")


def test_close_gives_what_a_buffers_far_side_waits_for() -> None:
    bus = EventBus()
    deferred = threading.Event()
    bus.subscribe("q").subscribe(lambda event: (defer(), deferred.set()))
    bus.subscribe("in").pipe(buffered(10)).subscribe(lambda event: bus.publish("q") and None)
    bus.publish("in")
    closer = threading.Thread(target=bus.close, daemon=True)
    closer.start()
    closer.join(PATIENCE)
    assert not closer.is_alive()
    assert deferred.is_set()


async def test_publish_async_without_workers_runs_on_the_loop() -> None:
    with EventBus(BlockingScheduler(max_workers=0)) as bus:
        threads: list[int] = []
        bus.subscribe("a").subscribe(lambda event: threads.append(threading.get_ident()))
        assert (await bus.publish_async("a")).acknowledged == 1
        assert threads == [threading.get_ident()]


def test_async_handlers_need_a_loop(bus: EventBus) -> None:
    async def handler(event: Event[Any]) -> None: ...

    with pytest.raises(RxBusError, match="event loop"):
        bus.on("a")(handler)
    assert bus.statistics().observers == 0


@pytest.mark.parametrize("behind", [None, map_async], ids=["async handler", "map_async"])
@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_loop_that_is_closed_before_it_has_run_what_it_took_fails_the_publish(
    behind: Any, max_workers: int | None, timeout: float | None, spawn: Callable[..., Future[Any]]
) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    loop = asyncio.new_event_loop()
    inside, accepted = threading.Event(), threading.Event()

    async def handle(event: Event[Any]) -> None:
        """Is never run."""

    def stop() -> None:
        inside.set()
        assert accepted.wait(PATIENCE)
        loop.stop()  # what has come meanwhile stays where it is

    async def attach() -> None:
        source = bus.subscribe("a")
        source.subscribe(handle) if behind is None else source.pipe(behind(handle)).subscribe()
        loop.call_soon(stop)

    def run() -> None:
        attaching = loop.create_task(attach())
        loop.run_forever()
        assert attaching.done()
        loop.close()

    running = spawn(run)
    assert inside.wait(PATIENCE)
    call_soon = loop.call_soon_threadsafe
    loop.call_soon_threadsafe = lambda *args, **named: (call_soon(*args, **named), accepted.set())[0]  # type: ignore
    with pytest.raises(PublishError) as caught:
        bus.publish("a", timeout=timeout)
    assert "loop was closed" in str(caught.value.exceptions[0])
    running.result(PATIENCE)
    bus.close()


def test_a_handler_whose_loop_is_closed_fails(bus: EventBus) -> None:
    async def attach() -> None:
        @bus.on("a")
        async def handler(event: Event[Any]) -> None: ...

    asyncio.run(attach())
    with pytest.raises(PublishError) as caught:
        bus.publish("a")
    assert "not running" in str(caught.value.exceptions[0])


# -- what an attacker found


@pytest.mark.parametrize("max_workers", [None, 0, 1])
async def test_publish_async_waits_for_what_is_deferred_beside_scheduled_actions(max_workers: int | None) -> None:
    async with EventBus(BlockingScheduler(max_workers)) as bus:
        open_: list[Any] = []
        bus.subscribe("a").subscribe(lambda event: open_.append(defer()))
        bus.subscribe("a").pipe(ops.observe_on(bus.scheduler)).subscribe(lambda event: None)
        publishing = asyncio.ensure_future(bus.publish_async("a"))
        while not open_:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert not publishing.done()
        open_[0].ack()
        receipt = await publishing
        assert (receipt.acknowledged, receipt.queued) == (2, 0)


@pytest.mark.parametrize("max_workers", [0, 1])
async def test_a_timeout_of_publish_async_looks_once(max_workers: int) -> None:
    async with EventBus(BlockingScheduler(max_workers)) as bus:
        bus.subscribe("a").subscribe(lambda event: None)
        for _ in range(100):
            late: tuple[str, ...] = ()
            try:
                receipt = await bus.publish_async("a", timeout=0)
                assert receipt.acknowledged == 1
            except AcknowledgementTimeout as error:
                late = error.pending
                assert late
            assert not (late and max_workers == 0)


def test_a_nested_publish_with_a_timeout_does_not_wait_for_a_place_in_the_pool() -> None:
    with EventBus(BlockingScheduler(1)) as bus:
        receipts: list[Receipt] = []
        bus.subscribe("b").subscribe(lambda event: None)
        bus.subscribe("a").subscribe(lambda event: receipts.append(bus.publish("b", timeout=PATIENCE)))
        bus.publish("a", timeout=PATIENCE)
        assert [receipt.acknowledged for receipt in receipts] == [1]


@pytest.mark.parametrize("max_workers", [None, 0, 1])
def test_behind_a_buffer_a_publish_is_outermost_whoever_hands_on(
    max_workers: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    told: list[str] = []

    def fail(event: Event[int]) -> None:
        raise ValueError(event.payload)

    def behind(event: Event[int]) -> None:
        try:
            bus.publish("out", event.payload)
        except PublishError as error:
            told.append(str(error.exceptions[0]))

    bus.subscribe("out").subscribe(fail)
    bus.subscribe("in").pipe(buffered(1)).subscribe(behind)
    for number in range(6):
        assert bus.publish("in", number).acknowledged == 1
    bus.close()
    assert told == [str(number) for number in range(6)]


@pytest.mark.parametrize("max_workers", [0, 1])
def test_a_buffer_behind_a_foreign_thread_loses_nothing(max_workers: int) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    seen: list[int] = []
    foreign = EventLoopScheduler()
    bus.subscribe("a").only_payload().pipe(observe_on(foreign), buffered(10)).subscribe(seen.append)
    for number in range(5):
        bus.publish("a", number)
    bus.close()
    foreign.dispose()
    assert seen == list(range(5))


@pytest.mark.rxbus_allow("failures")  # the publish of what flushes is told that the coroutine could not go on
async def test_close_on_the_loop_does_not_wait_for_a_coroutine_that_completion_begins() -> None:
    """What flushes on completion publishes to an async handler, whose loop this very call blocks."""
    bus = EventBus()

    @bus.on("q")
    async def handler(event: Event[Any]) -> None:
        await asyncio.sleep(0)

    def flush(events: list[Event[Any]]) -> None:
        bus.publish("q", len(events))

    bus.subscribe("in").pipe(ops.buffer_with_count(100), buffered(1)).subscribe(flush)
    await bus.publish_async("in")
    bus.close()
    assert bus.statistics().observers == 0


def test_a_decorator_without_its_topic_says_how_to_write_it(bus: EventBus) -> None:
    with pytest.raises(InvalidTopic, match=r"write @bus\.on\(topic\)"):

        @bus.on  # type: ignore[arg-type]
        def handle(event: Event[Any]) -> None: ...


@pytest.mark.parametrize("observers", [1, 2])
@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_a_plain_function_around_an_async_one_fails(bus: EventBus, observers: int, timeout: float | None) -> None:
    """Nobody would run what it returns, and the event would count as acknowledged."""

    async def handle(event: Event[Any]) -> None: ...

    for _ in range(observers):
        bus.subscribe("a").subscribe(lambda event: handle(event))
    with pytest.raises(PublishError) as raised:
        bus.publish("a", timeout=timeout)
    assert len(raised.value.exceptions) == observers
    assert "attach the async function itself" in str(raised.value.exceptions[0])
    bus.subscribe("b").subscribe(lambda event: "anything else")
    assert bus.publish("b").acknowledged == 1


@pytest.mark.timeout(30)
@pytest.mark.parametrize("observers", [1, 2])
def test_a_destructor_may_publish_on_a_thread_that_has_just_been_started(
    bus: EventBus, observers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a publisher that holds the very turn which the destructor waits for."""
    come = threading.Thread._set_ident  # type: ignore[attr-defined]
    seen: list[Any] = []
    collected = threading.Event()

    def collect(self: threading.Thread) -> None:
        come(self)
        if self.name == "rxbus-monitor":
            bus.publish("a", "from the grave")
            collected.set()

    monkeypatch.setattr(threading.Thread, "_set_ident", collect)
    for _ in range(observers):
        bus.subscribe("a").subscribe(lambda event: seen.append(event.payload))
    bus.publish("a", 1)
    assert collected.wait(PATIENCE)
    bus.close()
    assert sorted(map(str, seen)) == sorted(["1", "from the grave"] * observers)
