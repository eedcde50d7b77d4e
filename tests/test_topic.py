"""Topics as Subjects, subscriptions as Observables, and the registry."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import re
import threading
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any

import pytest
import reactivex as rx
from reactivex import operators as ops
from reactivex.internal.exceptions import DisposedException
from reactivex.observer import Observer
from reactivex.subject import Subject

from rxbus import (
    Acknowledgement,
    AcknowledgementTimeout,
    BusClosed,
    Event,
    EventBus,
    PublishError,
    Receipt,
    RxBusError,
    Subscription,
    Topic,
    TopicSubject,
    _topic,
    defer,
    only_payload,
)
from rxbus._log import Log as InnerLog
from rxbus._registry import Registry
from rxbus.errors import InvalidArgument
from rxbus.operators import map_async, observe_on

PATIENCE = 10.0
MOMENT = 0.02  # seconds in which something that must not happen is given the chance to

Spawn = Callable[..., Future[Any]]


class Log(list[Any]):
    """An observer that notes the payloads it is given; the end is noted as the error, or as "completed"."""

    def listen(self, source: rx.Observable[Event[Any]]) -> rx.abc.DisposableBase:
        return source.subscribe(self.note, self.append, lambda: self.append("completed"))

    def note(self, event: Event[Any]) -> None:
        self.append(event.payload)


class Deferring(Log):
    """One that defers every acknowledgement."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = threading.Semaphore(0)
        self.owed: list[Acknowledgement] = []

    def note(self, event: Event[Any]) -> None:
        self.owed.append(defer())
        super().note(event)
        self.noted.release()

    def wait(self) -> None:
        assert self.noted.acquire(timeout=PATIENCE)


def here() -> int:
    """The line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def name_in(bus: EventBus, topic: str = "a") -> str:
    """How the one observer, which fails, is called."""
    with pytest.raises(PublishError) as caught:
        bus.publish(topic)
    (error,) = caught.value.exceptions
    found = re.fullmatch(rf"in (.*), on topic '{topic}'", error.__notes__[0])
    assert found is not None
    return found[1]


# -- Subscription


def test_a_subscription_is_lazy(bus: EventBus) -> None:
    subscription = bus.subscribe("a")
    behind = subscription.pipe(only_payload, ops.map(str))
    assert bus.publish("a").acknowledged == 0
    assert bus.statistics().observers == 0
    behind.subscribe()
    assert bus.publish("a").acknowledged == 1
    assert bus.statistics().observers == 1


def test_several_observers_attach_and_each_acknowledges_for_itself(bus: EventBus, spawn: Spawn) -> None:
    subscription = bus.subscribe("a")
    logs = [Deferring(), Deferring()]
    for log in logs:
        log.listen(subscription)
    publisher = spawn(bus.publish, "a", 1)
    for log in logs:
        log.wait()
    logs[0].owed[0].ack()
    with pytest.raises(TimeoutError):
        publisher.result(MOMENT)
    logs[1].owed[0].ack()
    assert publisher.result(PATIENCE).acknowledged == 2


def test_disposing_detaches_that_observer_only(bus: EventBus) -> None:
    subscription = bus.subscribe("a")
    first, second = Log(), Log()
    attached = first.listen(subscription)
    second.listen(subscription)
    attached.dispose()
    attached.dispose()
    assert bus.publish("a", 1).acknowledged == 1
    assert (first, second) == ([], [1])


def test_a_subscription_tells_its_topic(bus: EventBus) -> None:
    subscription = bus.subscribe(Topic("a.b", int))
    assert isinstance(subscription, Subscription)
    assert subscription.topic == "a.b"
    subscription.subscribe()
    assert repr(subscription) == "<Subscription on 'a.b', observers: 1>"
    assert bus.subscribe("a.*").topic == "a.*"


def test_its_lock_is_its_own(bus: EventBus) -> None:
    """Operators call downstream under their source's lock: two observers must not share it."""
    assert bus.subscribe("a").lock is not bus.subscribe("a").lock


# -- names


@pytest.mark.rxbus_allow("pending")
def test_a_given_name_is_what_reports_call_the_observers(bus: EventBus) -> None:
    def fail(_: object) -> None:
        raise ValueError

    subscription = bus.subscribe("a", name="prices")
    attached = subscription.pipe(only_payload).subscribe(fail)
    assert name_in(bus) == "prices"
    attached.dispose()
    Deferring().listen(subscription)
    with pytest.raises(AcknowledgementTimeout) as caught:
        bus.publish("a", timeout=0)
    assert caught.value.pending == ("prices",)


class Handler:
    def __call__(self, _: object) -> None:
        raise ValueError

    def method(self, _: object) -> None:
        raise ValueError


def function(_: object) -> None:
    raise ValueError


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: function, "function"),
        (lambda: Handler().method, "Handler.method"),
        (Handler, "Handler"),
        (lambda: functools.partial(function), "function"),
        (lambda: Observer(function), "Observer"),
    ],
)
@pytest.mark.parametrize(
    "behind",
    [
        lambda subscription: subscription,
        lambda subscription: subscription.only_payload(),
        lambda subscription: subscription.pipe(only_payload, ops.map(lambda x: x), ops.share()),
        lambda subscription: rx.merge(rx.never(), subscription.filter(lambda _: True)),
    ],
    ids=["direct", "only_payload", "operators", "merged"],
)
@pytest.mark.parametrize("source", ["subscription", "topic"])
def test_a_default_name_says_the_handler_and_where_it_was_attached(
    bus: EventBus, make: Callable[[], Any], name: str, behind: Callable[[Any], rx.Observable[Any]], source: str
) -> None:
    handler = make()
    observable = behind(bus.subscribe("a") if source == "subscription" else bus.topic("a"))
    line = here() + 1
    observable.subscribe(handler)
    assert name_in(bus).replace("Observer.on_next", "Observer") == f"{name} (test_topic.py:{line})"


def test_a_default_name_of_a_local_function(bus: EventBus) -> None:
    def local(_: object) -> None:
        raise ValueError

    line = here() + 1
    bus.on("a")(local)
    own = "test_a_default_name_of_a_local_function"
    assert name_in(bus) == f"{own}.local (test_topic.py:{line})"
    line = here() + 1
    bus.subscribe("b").subscribe(lambda event: 1 / 0)
    assert name_in(bus, "b") == f"{own}.<lambda> (test_topic.py:{line})"


# -- unsubscribe


@pytest.mark.parametrize("topic", ["a", "*", Topic("a", int)], ids=str)
def test_unsubscribe_completes_every_observer_attached_through_it(bus: EventBus, topic: Any) -> None:
    subscription, other = bus.subscribe(topic), bus.subscribe(topic)
    logs, rest = [Log(), Log()], Log()
    logs[0].listen(subscription)
    logs[1].listen(subscription.pipe(ops.map(lambda event: event)))
    rest.listen(other)
    bus.publish("a", 1)
    bus.unsubscribe(topic, subscription)
    bus.unsubscribe(topic, subscription)  # does nothing
    assert bus.publish("a", 2).acknowledged == 1
    assert logs == [[1, "completed"]] * 2
    assert rest == [1, 2]
    assert bus.statistics().observers == 1


@pytest.mark.parametrize("wrong", ["b", "*", "a.b", Topic("b")], ids=str)
def test_a_topic_other_than_its_own_is_refused(bus: EventBus, wrong: Any) -> None:
    subscription = bus.subscribe("a")
    subscription.subscribe()
    with pytest.raises(ValueError, match="'a'"):
        bus.unsubscribe(wrong, subscription)
    assert bus.publish("a").acknowledged == 1


def test_only_a_subscription_of_this_bus_can_be_unsubscribed(bus: EventBus) -> None:
    with EventBus() as other:
        foreign = other.subscribe("a")
        foreign.subscribe()
        for wrong in (foreign, bus.subscribe("a").only_payload(), bus.topic("a"), None):
            with pytest.raises(ValueError, match="not a subscription of this bus"):
                bus.unsubscribe("a", wrong)  # type: ignore[arg-type]
        assert other.publish("a").acknowledged == 1


def test_who_subscribes_later_is_completed_at_once(bus: EventBus) -> None:
    subscription = bus.subscribe("a")
    bus.unsubscribe("a", subscription)
    direct, behind = Log(), Log()
    direct.listen(subscription)
    behind.listen(subscription.pipe(ops.map(lambda event: event)))
    assert direct == behind == ["completed"]
    assert bus.publish("a").acknowledged == 0


@pytest.mark.parametrize("way", ["unsubscribe", "dispose"])
def test_leaving_frees_publishers_that_wait_for_a_deferral(bus: EventBus, way: str, spawn: Spawn) -> None:
    subscription = bus.subscribe("a")
    log = Deferring()
    attached = log.listen(subscription)
    publisher = spawn(bus.publish, "a", 1)
    log.wait()
    if way == "unsubscribe":
        bus.unsubscribe("a", subscription)
    else:
        attached.dispose()
    publisher.result(PATIENCE)
    log.owed[0].nack(ValueError())  # too late, hence nothing
    assert log == ([1, "completed"] if way == "unsubscribe" else [1])


@pytest.mark.parametrize("way", ["unsubscribe", "dispose"])
def test_leaving_drops_what_is_queued_and_frees_its_publisher(bus: EventBus, way: str, spawn: Spawn) -> None:
    subscription = bus.subscribe("a")
    inside, go, ended = threading.Event(), threading.Event(), threading.Event()
    seen: list[int] = []

    def handle(event: Event[int]) -> None:
        seen.append(event.payload)
        inside.set()
        assert go.wait(PATIENCE)

    attached = subscription.subscribe(handle, on_completed=ended.set)
    first = spawn(bus.publish, "a", 1)
    assert inside.wait(PATIENCE)
    second = spawn(bus.publish, "a", 2)
    with pytest.raises(TimeoutError):
        second.result(MOMENT)
    if way == "unsubscribe":
        bus.unsubscribe("a", subscription)
    else:
        attached.dispose()
    assert second.result(PATIENCE).acknowledged == 0
    assert not ended.is_set()  # the running handler ends first
    go.set()
    first.result(PATIENCE)
    if way == "unsubscribe":
        assert ended.wait(PATIENCE)
    else:
        assert not ended.is_set()
    assert seen == [1]


def test_a_handler_may_unsubscribe_itself(bus: EventBus) -> None:
    subscription = bus.subscribe("a")
    log: list[object] = []

    def handle(event: Event[int]) -> None:
        bus.unsubscribe("a", subscription)
        log.append(event.payload)

    subscription.subscribe(handle, on_completed=lambda: log.append("completed"))
    bus.publish("a", 1)
    bus.publish("a", 2)
    assert log == [1, "completed"]


@pytest.mark.rxbus_allow("failures")
def test_what_fails_at_the_end_is_logged(bus: EventBus, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("at the end")

    subscription = bus.subscribe("a", name="endless")
    log = Log()
    subscription.subscribe(on_completed=fail)
    log.listen(subscription)
    bus.unsubscribe("a", subscription)
    assert log == ["completed"]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("rxbus", logging.ERROR)
    assert "endless" in record.getMessage()


def test_attaching_after_close_is_refused() -> None:
    bus = EventBus()
    subscription, topic = bus.subscribe("a"), bus.topic("a")
    bus.close()
    for source in (subscription, topic):
        with pytest.raises(BusClosed):
            source.subscribe()
    log = Log()
    log.listen(subscription.pipe(ops.map(lambda event: event)))  # Rx gives it to who handles errors
    assert [type(item) for item in log] == [BusClosed]


# -- TopicSubject


def test_a_topic_is_a_subject(bus: EventBus) -> None:
    topic = bus.topic(Topic("a", int))
    assert isinstance(topic, Subject)
    assert isinstance(topic, TopicSubject)
    assert topic is bus.topic("a")
    assert (topic.name, topic.observers, topic.exception, topic.is_disposed) == ("a", [], None, False)


def test_a_topic_delivers_what_it_is_given_as_publish_does(bus: EventBus, spawn: Spawn) -> None:
    log = Deferring()
    log.listen(bus.topic("a"))
    everything = Log()
    everything.listen(bus.subscribe(">"))
    event = Event("other", 1, -5, 0.0)
    publisher = spawn(bus.topic("a").on_next, event)
    log.wait()
    assert not publisher.done()
    log.owed[0].ack()
    publisher.result(PATIENCE)
    assert log == everything == [1]


def test_what_fails_behind_on_next_is_raised_there(bus: EventBus) -> None:
    bus.subscribe("a").subscribe(function)
    with pytest.raises(PublishError):
        bus.topic("a").on_next(Event("a", 1, 1, 0.0))
    assert bus.topic("a").exception is None


def test_a_topic_can_be_given_to_a_source(bus: EventBus) -> None:
    log = Log()
    log.listen(bus.topic("a"))
    rx.of(1, 2).pipe(ops.map(lambda n: Event("a", n, n, 0.0))).subscribe(bus.topic("a"))
    assert log == [1, 2, "completed"]


def test_its_observers_are_listed_and_can_be_called(bus: EventBus) -> None:
    log = Log()
    log.listen(bus.topic("a"))
    log.listen(bus.subscribe("*"))
    observers = bus.topic("a").observers
    assert len(observers) == 2
    for observer in observers:
        observer.on_next(Event("a", 5, 1, 0.0))
    assert log == [5, 5]


END: dict[str, Callable[[TopicSubject[Any]], None]] = {
    "completed": lambda topic: topic.on_completed(),
    "error": lambda topic: topic.on_error(ValueError("end")),
    "disposed": lambda topic: topic.dispose(),
}


@pytest.mark.parametrize("end", END)
def test_pattern_observers_outlive_the_end_of_a_topic(bus: EventBus, end: str) -> None:
    own, pattern, late = Log(), Log(), Log()
    topic = bus.topic("a.b")
    own.listen(topic)
    own.listen(bus.subscribe("a.b"))
    pattern.listen(bus.subscribe("a.*"))
    bus.publish("a.b", 1)
    END[end](topic)
    END[end](topic)  # a second time does nothing
    late.listen(bus.subscribe(">"))
    assert bus.publish("a.b", 2).acknowledged == 2
    assert bus.publish("a.c", 3).acknowledged == 2
    assert own[:2] == [1, 1]
    assert {"completed": ["completed"] * 2, "error": ["end"] * 2, "disposed": []}[end] == [str(how) for how in own[2:]]
    assert pattern == [1, 2, 3]
    assert late == [2, 3]
    assert bus.topic("a.b") is topic
    assert bus.topics["a.b"] is topic
    assert bus.statistics().observers == 2


@pytest.mark.parametrize("end", ["completed", "error"])
def test_who_attaches_to_an_ended_topic_is_told_at_once(bus: EventBus, end: str) -> None:
    topic = bus.topic("a")
    END[end](topic)
    for source in (topic, bus.subscribe("a"), topic.pipe(ops.map(lambda event: event))):
        log = Log()
        log.listen(source)
        assert [str(item) for item in log] == [end if end == "completed" else "end"]
    assert (topic.exception is None) == (end == "completed")
    assert bus.publish("a").acknowledged == 0
    assert bus.topics["a"].observers == []


def test_a_disposed_topic_refuses_everything_but_publish(bus: EventBus) -> None:
    topic = bus.topic("a")
    topic.dispose()
    calls: list[Callable[[], object]] = [
        topic.subscribe,
        lambda: topic.on_next(Event("a", 1, 1, 0.0)),
        topic.on_completed,
        lambda: topic.on_error(ValueError()),
    ]
    for call in calls:
        with pytest.raises(DisposedException):
            call()
    assert bus.publish("a").acknowledged == 0


def test_events_published_before_the_end_come_before_it(bus: EventBus, spawn: Spawn) -> None:
    log = Log()
    inside, go = threading.Event(), threading.Event()

    def handle(event: Event[int]) -> None:
        log.note(event)
        inside.set()
        assert go.wait(PATIENCE)

    bus.topic("a").subscribe(handle, on_completed=lambda: log.append("completed"))
    first = spawn(bus.publish, "a", 1)
    assert inside.wait(PATIENCE)
    second = spawn(bus.publish, "a", 2)
    with pytest.raises(TimeoutError):
        second.result(MOMENT)
    bus.topic("a").on_completed()
    assert log == [1]
    go.set()
    assert (first.result(PATIENCE).acknowledged, second.result(PATIENCE).acknowledged) == (1, 1)
    assert log == [1, 2, "completed"]


def test_a_topic_s_repr_tells_its_state(bus: EventBus) -> None:
    topic = bus.topic("a")
    topic.subscribe()
    assert repr(topic) == "<TopicSubject 'a', open, observers: 1>"
    topic.on_completed()
    assert repr(topic) == "<TopicSubject 'a', ended, observers: 0>"
    topic.dispose()
    assert repr(topic) == "<TopicSubject 'a', disposed, observers: 0>"


# -- the registry


def test_topics_is_a_read_only_view(bus: EventBus) -> None:
    topics: Any = bus.topics
    assert topics == {}
    bus.topic("a")
    bus.subscribe("b")
    assert set(topics) == {"a", "b"}
    assert topics["a"] is bus.topic("a")
    with pytest.raises(TypeError):
        topics["c"] = topics["a"]
    with pytest.raises(TypeError):
        del topics["a"]


def test_publishing_alone_and_patterns_create_no_topic(bus: EventBus) -> None:
    bus.subscribe(">").subscribe()
    bus.publish("a")
    bus.publisher("b").on_next(1)
    assert bus.topics == {}
    assert bus.statistics().topics == 0


def test_patterns_attach_to_topics_made_earlier_and_later(bus: EventBus) -> None:
    logs: defaultdict[str, Log] = defaultdict(Log)
    bus.topic("a.1")
    bus.publish("a.2", "nobody listens")
    attached = {pattern: logs[pattern].listen(bus.subscribe(pattern)) for pattern in ("a.*", ">", "a.1", "b.>")}
    for topic in ("a.1", "a.2", "a.3", "a.3.x", "b", "b.c.d"):
        bus.publish(topic, topic)
    assert logs == {
        "a.*": ["a.1", "a.2", "a.3"],
        ">": ["a.1", "a.2", "a.3", "a.3.x", "b", "b.c.d"],
        "a.1": ["a.1"],
        "b.>": ["b.c.d"],
    }
    attached[">"].dispose()
    assert [bus.publish(topic).acknowledged for topic in ("a.1", "a.4", "c")] == [2, 1, 0]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """Has the registry sweep after so many topics that nobody asked for."""
    monkeypatch.setattr(Registry, "SWEEP", 16)
    return 16


@pytest.mark.parametrize("observers", [0, 1, 2])
def test_quiet_topics_that_nobody_asked_for_are_swept_out(small: int, observers: int) -> None:
    logs = [Log() for _ in range(observers)]
    with EventBus() as bus:
        for log in logs:
            log.listen(bus.subscribe(">"))
        asked = bus.topic("asked")
        for n in range(2000):
            assert bus.publish(f"quiet.{n}", n).acknowledged == observers
            assert len(bus._registry.logs) <= 3 * small
        assert bus.topic("asked") is asked
        statistics = bus.statistics()
        assert (statistics.published, statistics.acknowledged) == (2000, 2000 * observers)
        assert statistics.pending == 0
        assert bus.publish("quiet.0", "again").acknowledged == observers
    assert logs == [[*range(2000), "again", "completed"]] * observers


def test_memory_stays_bounded_at_the_real_size(bus: EventBus) -> None:
    for n in range(4 * Registry.SWEEP):
        bus.publish(f"quiet.{n}")
    assert len(bus._registry.logs) <= 2 * Registry.SWEEP + 1
    assert bus.statistics().published == 4 * Registry.SWEEP


def test_busy_topics_are_kept_and_counted(small: int) -> None:
    log = Log()
    with EventBus() as bus:
        log.listen(bus.subscribe("busy.*"))
        for n in range(500):
            bus.publish("busy.1", n)
            bus.publish(f"quiet.{n}")
        assert log == list(range(500))
        assert bus.statistics().published == 1000


def test_a_topic_is_not_swept_out_under_an_open_delivery(small: int, spawn: Spawn) -> None:
    with EventBus() as bus:
        log = Deferring()
        log.listen(bus.subscribe("open.*"))
        publisher = spawn(bus.publish, "open.1", 1)
        log.wait()
        for n in range(10 * small):
            bus.publish(f"quiet.{n}")
        assert not publisher.done()
        assert bus.statistics().pending == 1
        log.owed[0].ack()
        assert publisher.result(PATIENCE).acknowledged == 1


def test_a_topic_is_not_swept_out_under_a_running_handler(small: int, spawn: Spawn) -> None:
    """A handler that makes the registry sweep, while others wait for it."""
    with EventBus() as bus:
        log, arrived = Log(), threading.Semaphore(0)
        inside, go = threading.Event(), threading.Event()

        def handle(event: Event[int]) -> None:
            log.note(event)
            if event.payload == 1:
                inside.set()
                assert go.wait(PATIENCE)
                for n in range(10 * small):
                    bus.publish(f"quiet.{n}")

        bus.subscribe("open.*").subscribe(handle)
        bus.subscribe("open.*").subscribe(lambda event: arrived.release())
        publishers = [spawn(bus.publish, "open.1", 1)]
        assert inside.wait(PATIENCE)
        publishers += [spawn(bus.publish, f"open.{n}", n) for n in (1, 2, 2, 3)]
        assert all(arrived.acquire(timeout=PATIENCE) for _ in publishers)  # all are queued for the first one
        go.set()
        for publisher in publishers:
            assert publisher.result(PATIENCE).acknowledged == 2
        assert Counter(log) == {1: 2, 2: 2, 3: 1}


@pytest.mark.parametrize("observers", [1, 3])
def test_who_publishes_in_the_midst_of_a_sweep_waits_for_its_end(
    small: int, observers: int, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log that it has found is retired, and has not been taken off yet."""
    publishing: list[Future[Receipt]] = []
    retire = InnerLog.retire

    def retire_and_wait(log: InnerLog) -> bool:
        retired = retire(log)
        if retired and not publishing:
            publishing.append(spawn(bus.publish, log.name))
            with pytest.raises(TimeoutError):
                publishing[0].result(MOMENT)
        return retired

    monkeypatch.setattr(InnerLog, "retire", retire_and_wait)
    with EventBus() as bus:
        for _ in range(observers):
            bus.subscribe(">").subscribe(lambda event: None)
        for n in range(4 * small):
            bus.publish(f"quiet.{n}")
        assert publishing[0].result(PATIENCE).acknowledged == observers
        assert bus.statistics().published == 4 * small + 1


@pytest.mark.parametrize("observers", [1, 3])
def test_a_sweep_that_was_interrupted_leaves_no_topic_that_cannot_be_published_to(
    small: int, observers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    retire = InnerLog.retire

    def retire_and_strike(log: InnerLog) -> bool:
        if retire(log) and not names:
            names.append(log.name)
            raise KeyboardInterrupt
        return log.retired

    monkeypatch.setattr(InnerLog, "retire", retire_and_strike)
    with EventBus() as bus:
        for _ in range(observers):
            bus.subscribe(">").subscribe(lambda event: None)
        done: list[Receipt] = []
        with pytest.raises(KeyboardInterrupt):
            done.extend(bus.publish(f"quiet.{n}") for n in range(4 * small))
        assert bus.publish(names[0]).acknowledged == observers
        assert bus.statistics().published == len(done) + 1


@pytest.mark.parametrize("observers", [1, 3])
def test_sweeping_loses_nothing_while_others_publish(small: int, observers: int, spawn: Spawn) -> None:
    """Threads publish to the same few names again and again, which are swept out under their hands."""
    threads, rounds, names = 4, 150, 40
    seen: list[dict[str, list[Event[Any]]]] = [defaultdict(list) for _ in range(observers)]
    barrier = threading.Barrier(threads)
    with EventBus() as bus:
        for mine in seen:
            bus.subscribe("t.*").subscribe(lambda event, mine=mine: mine[event.topic].append(event))

        def publish(thread: int) -> None:
            barrier.wait(PATIENCE)
            for n in range(rounds):
                receipt = bus.publish(f"t.{(n * 7 + thread) % names}", (thread, n))
                assert receipt.acknowledged == observers
                bus.publish(f"quiet.{thread}.{n}")  # drives the sweeping

        for publisher in [spawn(publish, thread) for thread in range(threads)]:
            publisher.result(3 * PATIENCE)
        assert bus.statistics().published == 2 * threads * rounds
        assert bus.statistics().acknowledged == observers * threads * rounds
    for mine in seen:
        for events in mine.values():
            assert [event.id for event in events] == sorted({event.id for event in events})
            for thread in range(threads):
                own = [event.payload[1] for event in events if event.payload[0] == thread]
                assert own == sorted(own)
        assert sum(map(len, mine.values())) == threads * rounds
    assert all(
        [event.id for event in mine[topic]] == [event.id for event in seen[0][topic]] for mine in seen for topic in mine
    )


# -- async for


def test_without_async_it_is_an_error(bus: EventBus) -> None:
    for source in (bus.subscribe("a"), bus.topic("a")):
        with pytest.raises(TypeError, match="not iterable"):
            iter(source)  # type: ignore[call-overload] # pyright: ignore


@pytest.fixture
async def abus() -> AsyncIterator[EventBus]:
    """A bus that is closed while its event loop still runs."""
    bus = EventBus()
    yield bus
    await asyncio.to_thread(bus.close)


async def soon(awaitable: Any) -> Any:
    return await asyncio.wait_for(awaitable, PATIENCE)


async def turns() -> None:
    """Lets everything that is ready run: a loop that was left ends by a task of the event loop's own."""
    for _ in range(20):
        await asyncio.sleep(0)


class Reader:
    """A task that reads events, each one when it is let go."""

    def __init__(self, source: Subscription[Any] | TopicSubject[Any], free: bool = False) -> None:
        self.seen: list[Any] = []
        self.free = free
        self.ready = asyncio.Semaphore(0)
        self.go = asyncio.Semaphore(0)
        self.task = asyncio.create_task(self._read(source))

    async def _read(self, source: Any) -> None:
        async for event in source:
            self.seen.append(event.payload)
            self.ready.release()
            if not self.free:
                await self.go.acquire()

    async def attached(self, bus: EventBus, count: int = 1) -> Reader:
        while bus.statistics().observers < count:
            await asyncio.sleep(0)
        return self


@pytest.mark.parametrize("source", ["subscription", "pattern", "topic"])
async def test_a_subscription_can_be_iterated_over(abus: EventBus, source: str) -> None:
    observable = abus.topic("a") if source == "topic" else abus.subscribe("*" if source == "pattern" else "a")
    reader = await Reader(observable, free=True).attached(abus)
    for n in range(5):
        assert (await soon(abus.publish_async("a", n))).acknowledged == 1
    await soon(asyncio.to_thread(abus.close))
    await soon(reader.task)
    assert reader.seen == list(range(5))


async def test_each_iteration_is_an_observer_of_its_own(abus: EventBus) -> None:
    subscription = abus.subscribe("a")
    readers = [await Reader(subscription, free=True).attached(abus, n + 1) for n in range(3)]
    assert (await soon(abus.publish_async("a", 1))).acknowledged == 3
    abus.unsubscribe("a", subscription)
    for reader in readers:
        await soon(reader.task)
        assert reader.seen == [1]


async def test_publishers_wait_when_the_loop_body_is_slow(abus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_topic, "STREAM_CAPACITY", 2)
    reader = await Reader(abus.subscribe("a")).attached(abus)
    await soon(abus.publish_async("a", 0))
    await soon(reader.ready.acquire())
    for n in (1, 2):
        await soon(abus.publish_async("a", n))
    waiting = asyncio.create_task(abus.publish_async("a", 3))
    assert (await asyncio.wait([waiting], timeout=MOMENT))[1] == {waiting}
    reader.go.release()
    await soon(reader.ready.acquire())
    assert (await soon(waiting)).acknowledged == 1
    reader.task.cancel()


def test_how_much_is_held_for_a_slow_loop_body() -> None:
    assert _topic.STREAM_CAPACITY == 64


@pytest.mark.parametrize("end", ["unsubscribe", "completed", "close", "error"])
async def test_what_is_held_comes_before_the_end(abus: EventBus, end: str) -> None:
    subscription = abus.subscribe("a")
    reader = await Reader(subscription).attached(abus)
    for n in range(4):
        await soon(abus.publish_async("a", n))
    await soon(reader.ready.acquire())
    if end == "unsubscribe":
        abus.unsubscribe("a", subscription)
    elif end == "close":
        await soon(asyncio.to_thread(abus.close))
    else:
        END[end](abus.topic("a"))
    for _ in range(4):
        reader.go.release()
    if end == "error":
        with pytest.raises(ValueError, match="end"):
            await soon(reader.task)
    else:
        await soon(reader.task)
    assert reader.seen == [0, 1, 2, 3]
    assert abus.statistics().observers == 0


@pytest.mark.parametrize("end", ["unsubscribe", "completed", "close", "error"])
async def test_an_iteration_that_waits_is_ended(abus: EventBus, end: str) -> None:
    subscription = abus.subscribe("a")
    reader = await Reader(subscription).attached(abus)
    if end == "unsubscribe":
        abus.unsubscribe("a", subscription)
    elif end == "close":
        await soon(asyncio.to_thread(abus.close))
    else:
        END[end](abus.topic("a"))
    if end == "error":
        with pytest.raises(ValueError, match="end"):
            await soon(reader.task)
    else:
        await soon(reader.task)
    assert reader.seen == []


@pytest.mark.parametrize("way", ["break", "raise", "aclose", "cancel"])
async def test_leaving_the_loop_detaches(abus: EventBus, way: str) -> None:
    subscription = abus.subscribe("a")

    async def read() -> None:
        if way == "aclose":
            async with aclosing(aiter(subscription)) as events:  # type: ignore[type-var]
                async for _ in events:
                    break
            assert abus.statistics().observers == 0
            return
        async for _ in subscription:
            if way == "break":
                break
            raise ValueError("in the body")

    task = asyncio.create_task(read())
    while not abus.statistics().observers:
        await asyncio.sleep(0)
    if way == "cancel":
        task.cancel()
    else:
        await soon(abus.publish_async("a"))
    outcome = (await soon(asyncio.gather(task, return_exceptions=True)))[0]
    assert type(outcome) is {"raise": ValueError, "cancel": asyncio.CancelledError}.get(way, type(None))
    del task, outcome
    await turns()
    assert abus.statistics().observers == 0
    assert (await soon(abus.publish_async("a"))).acknowledged == 0


async def test_leaving_the_loop_frees_publishers_and_leaves_no_task(
    abus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_topic, "STREAM_CAPACITY", 1)
    before = asyncio.all_tasks()
    reader = await Reader(abus.subscribe("a")).attached(abus)
    publishers = [asyncio.create_task(abus.publish_async("a", n)) for n in range(5)]
    await soon(reader.ready.acquire())
    await soon(publishers[1])
    reader.task.cancel()
    for publisher in publishers:
        await soon(publisher)
    await turns()
    assert reader.seen == [0]
    assert asyncio.all_tasks() - before == set()


async def test_a_publisher_on_another_thread_waits_for_a_slow_loop(
    abus: EventBus, monkeypatch: pytest.MonkeyPatch, spawn: Spawn
) -> None:
    monkeypatch.setattr(_topic, "STREAM_CAPACITY", 1)
    reader = await Reader(abus.subscribe("a")).attached(abus)

    def publish() -> int:
        return sum(abus.publish("a", n).acknowledged for n in range(10))

    publisher = asyncio.wrap_future(spawn(publish))
    for n in range(10):
        await soon(reader.ready.acquire())
        assert reader.seen == list(range(n + 1))
        assert publisher.done() <= (n >= 7)
        reader.go.release()
    assert await soon(publisher) == 10
    reader.task.cancel()


# -- publisher


def test_a_publisher_publishes_what_it_is_given(bus: EventBus) -> None:
    log = Log()
    log.listen(bus.subscribe("a"))
    publisher = bus.publisher(Topic("a", object))
    rx.of(1, None, False).subscribe(publisher)
    assert log == [1, None, False]


@pytest.mark.rxbus_allow("failures")
def test_the_end_of_a_source_leaves_the_topic_open(bus: EventBus, caplog: pytest.LogCaptureFixture) -> None:
    log = Log()
    log.listen(bus.subscribe("a"))
    done, failed = bus.publisher("a"), bus.publisher("a")
    rx.of(1).subscribe(done)
    assert caplog.records == []
    error = ValueError("the source")
    rx.of(2).pipe(ops.concat(rx.throw(error))).subscribe(failed)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("rxbus", logging.ERROR)
    assert "'a'" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    for ended in (done, failed):
        ended.on_next(3)  # Rx's grammar: nothing after the end
    bus.publish("a", 4)
    bus.publisher("a").on_next(5)
    assert log == [1, 2, 4, 5]


def test_a_source_is_slowed_down_to_the_observers(bus: EventBus, spawn: Spawn) -> None:
    log = Deferring()
    log.listen(bus.subscribe("a"))
    source: Subject[int] = Subject()
    source.subscribe(bus.publisher("a"))
    pushed = spawn(source.on_next, 1)
    log.wait()
    assert not pushed.done()
    log.owed[0].ack()
    pushed.result(PATIENCE)


def test_a_source_is_told_what_failed(bus: EventBus) -> None:
    bus.subscribe("a").subscribe(function)
    source: Subject[int] = Subject()
    source.subscribe(bus.publisher("a"))
    for _ in range(2):
        with pytest.raises(PublishError):
            source.on_next(1)


def test_a_publisher_of_a_closed_bus_refuses(bus: EventBus) -> None:
    publisher = bus.publisher("a")
    bus.close()
    with pytest.raises(BusClosed):
        publisher.on_next(1)


# -- what cannot be a handler


async def an_async_handler(event: object) -> None:
    """Would never be awaited."""


@pytest.mark.parametrize("handler", [an_async_handler, functools.partial(an_async_handler)], ids=["plain", "partial"])
@pytest.mark.parametrize(
    "behind",
    [lambda source: source.only_payload(), lambda source: source.pipe(ops.map(lambda x: x), ops.share())],
    ids=["only_payload", "operators"],
)
def test_an_async_handler_behind_an_operator_is_refused(bus: EventBus, behind: Any, handler: Any) -> None:
    with pytest.raises(RxBusError, match=r"an_async_handler.*map_async"):
        behind(bus.subscribe("a")).subscribe(handler)
    assert bus.publish("a").acknowledged == 0


@pytest.mark.parametrize(
    "attach",
    [
        lambda bus: bus.subscribe("a").subscribe(5),
        lambda bus: bus.subscribe("a").only_payload().subscribe(5),
        lambda bus: bus.topic("a").subscribe("five"),
        lambda bus: bus.on("a")(5),
        lambda bus: bus.subscribe("a").pipe(observe_on(3)),
        lambda bus: bus.subscribe("a").pipe(map_async(3)),
    ],
    ids=["subscribe", "only_payload", "topic", "on", "observe_on", "map_async"],
)
def test_what_cannot_be_called_is_refused_at_once(bus: EventBus, attach: Any) -> None:
    with pytest.raises(InvalidArgument):
        attach(bus)
    assert bus.publish("a").acknowledged == 0


def test_a_topic_and_a_subscription_tell_the_names_of_their_observers(bus: EventBus) -> None:
    subscription = bus.subscribe("a.b", name="mine")
    assert subscription.observer_names == bus.topic("a.b").observer_names == ()
    subscription.subscribe(print)
    first = subscription.subscribe(print)
    bus.subscribe("a.>", name="all").subscribe(print)
    assert subscription.observer_names == ("mine", "mine")
    assert bus.topic("a.b").observer_names == ("mine", "mine", "all")
    first.dispose()
    assert subscription.observer_names == ("mine",)
    assert bus.topic("a.b").observer_names == ("mine", "all")
