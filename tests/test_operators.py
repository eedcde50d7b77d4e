"""Operators that know about acknowledgement."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from queue import SimpleQueue
from typing import Any, Literal, get_args

import pytest
import reactivex as rx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reactivex import Observable, abc, typing
from reactivex import operators as ops
from reactivex.disposable import Disposable
from reactivex.scheduler import (
    CurrentThreadScheduler,
    EventLoopScheduler,
    ImmediateScheduler,
    NewThreadScheduler,
    ThreadPoolScheduler,
    TimeoutScheduler,
)
from reactivex.scheduler.scheduler import Scheduler
from reactivex.subject import Subject

from rxbus import (
    Acknowledgement,
    AcknowledgementTimeout,
    BlockingScheduler,
    BufferOverflow,
    BusClosed,
    Event,
    EventBus,
    EventLoopBlocked,
    FeedbackLoop,
    InvalidArgument,
    PublishError,
    Receipt,
    RxBusError,
    Topic,
    _buffered,
    defer,
    only_payload,
)
from rxbus.operators import Overflow, buffered, map_async, observe_on
from rxbus.operators import only_payload as only_payload_operator
from rxbus.testing import expect_failure

PATIENCE = 10.0
MOMENT = 0.02  # seconds in which something that must not happen is given the chance to

Spawn = Callable[..., Future[Any]]

number: ContextVar[int] = ContextVar("number", default=0)


class Log(list[Any]):
    """An Rx observer that notes what it is given; the end is noted as the error, or as "completed"."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    def listen(self, source: Observable[Any]) -> abc.DisposableBase:
        return source.subscribe(self.append, self.end, lambda: self.end("completed"))

    def end(self, how: object) -> None:
        list.append(self, how)
        self.ended.set()


class Gate(Log):
    """One that stays inside each item until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.left = threading.Semaphore(0)

    def append(self, item: Any) -> None:
        self.inside.release()
        assert self.go.acquire(timeout=PATIENCE)
        super().append(item)
        self.left.release()

    def entered(self) -> None:
        assert self.inside.acquire(timeout=PATIENCE)

    def let_go(self) -> None:
        """Lets one item go and waits until it has been noted."""
        self.go.release()
        assert self.left.acquire(timeout=PATIENCE)


class Manual(Scheduler):
    """A scheduler whose actions the test runs, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.actions: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def schedule(self, action: typing.ScheduledAction[Any], state: Any = None) -> abc.DisposableBase:
        self.actions.put(lambda: self.invoke_action(action, state))
        return Disposable()

    def schedule_relative(self, duetime: Any, action: typing.ScheduledAction[Any], state: Any = None) -> Disposable:
        raise AssertionError("nothing here is scheduled for later")

    schedule_absolute = schedule_relative

    def run(self) -> None:
        self.actions.get(timeout=PATIENCE)()


@contextmanager
def freeing(bus: EventBus, *attached: abc.DisposableBase) -> Iterator[None]:
    """Detaches observers if the test fails: what hangs is set free, and the other tests can go on."""
    try:
        yield
    except BaseException:
        for one in attached:
            one.dispose()
        threading.Thread(target=bus.close, daemon=True).start()
        raise


def payloads(bus: EventBus, topic: str = "a") -> Observable[Any]:
    return bus.subscribe(topic).only_payload()


def failures(error: pytest.ExceptionInfo[PublishError]) -> list[str]:
    return [repr(one) for one in error.value.exceptions]


def fail_at(bad: Any, error: BaseException, log: list[Any]) -> Callable[[Any], None]:
    def handle(item: Any) -> None:
        log.append(item)
        if item == bad:
            raise error

    return handle


# -- only_payload


@pytest.mark.parametrize(
    "form",
    [lambda s: only_payload(s), lambda s: s.pipe(only_payload), lambda s: s.only_payload()],
    ids=["function", "pipe", "fluent"],
)
@pytest.mark.parametrize("source", ["a", Topic("a", object), "*"], ids=str)
def test_only_payload_in_its_three_forms(bus: EventBus, form: Callable[[Any], Observable[Any]], source: Any) -> None:
    subscription = bus.subscribe(source)
    log = Log()
    log.listen(form(subscription))
    for payload in (1, None, False):
        assert bus.publish("a", payload).acknowledged == 1
    bus.unsubscribe(source, subscription)
    assert log == [1, None, False, "completed"]


def test_only_payload_is_the_same_everywhere() -> None:
    assert only_payload is only_payload_operator


def test_only_payload_passes_errors_on_and_can_be_disposed_of(bus: EventBus) -> None:
    log, other = Log(), Log()
    log.listen(bus.topic("a").only_payload())
    other.listen(only_payload(bus.topic("a"))).dispose()
    error = ValueError()
    bus.publish("a", 1)
    bus.topic("a").on_error(error)
    assert log == [1, error]
    assert other == []


def test_only_payload_on_a_plain_source() -> None:
    log = Log()
    log.listen(rx.of(Event("a", 1, 1, 0.0), Event("b", 2, 2, 0.0)).pipe(only_payload))
    assert log == [1, 2, "completed"]


def test_a_handler_behind_only_payload_may_fail_and_stays_attached(bus: EventBus) -> None:
    log: list[int] = []
    payloads(bus).subscribe(fail_at(1, ValueError("one"), log))
    with pytest.raises(PublishError) as caught:
        bus.publish("a", 1)
    assert failures(caught) == ["ValueError('one')"]
    assert bus.publish("a", 2).acknowledged == 1
    assert log == [1, 2]


# -- observe_on


@contextmanager
def a_scheduler(kind: str, bus: EventBus) -> Iterator[abc.SchedulerBase]:
    if kind == "bus":
        yield bus.scheduler
    elif kind == "loop":
        loop = EventLoopScheduler()
        yield loop
        bus.close()  # first: it completes its observers on the far side
        loop.dispose()
    elif kind == "pool":
        pool = ThreadPoolScheduler(2)
        yield pool
        bus.close()
        pool.executor.shutdown()
    else:
        kinds: dict[str, Callable[[], abc.SchedulerBase]] = {
            "immediate": ImmediateScheduler,
            "current": CurrentThreadScheduler,
            "new": NewThreadScheduler,
            "timeout": TimeoutScheduler,
        }
        yield kinds[kind]()


KINDS = ["immediate", "current", "loop", "new", "pool", "timeout", "bus"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_publisher_waits_for_the_far_side_on_any_scheduler(bus: EventBus, kind: str) -> None:
    with a_scheduler(kind, bus) as scheduler:
        log: list[tuple[int, threading.Thread]] = []
        payloads(bus).pipe(observe_on(scheduler)).subscribe(lambda item: log.append((item, threading.current_thread())))
        for n in range(20):
            assert bus.publish("a", n).acknowledged == 1
            assert [item for item, _ in log] == list(range(n + 1))
        here = threading.current_thread()
        assert all((thread is here) == (kind in ("immediate", "current")) for _, thread in log)


@pytest.mark.parametrize("kind", KINDS)
def test_the_far_side_keeps_the_order_and_is_one_at_a_time(bus: EventBus, kind: str, spawn: Spawn) -> None:
    order: list[int] = []
    far: list[int] = []
    turn = threading.Lock()

    def handle(event: Event[int]) -> None:
        assert turn.acquire(blocking=False)
        far.append(event.id)
        turn.release()

    def publish() -> None:
        barrier.wait(PATIENCE)
        for n in range(25):
            bus.publish("a", n)

    barrier = threading.Barrier(3)
    with a_scheduler(kind, bus) as scheduler:
        bus.subscribe("a").subscribe(lambda event: order.append(event.id))
        bus.subscribe("a").pipe(observe_on(scheduler)).subscribe(handle)
        for publisher in [spawn(publish) for _ in range(3)]:
            publisher.result(PATIENCE)
    assert far == order == sorted(order)
    assert len(far) == 75


def test_the_publisher_waits_until_the_far_side_has_run(bus: EventBus, spawn: Spawn) -> None:
    far = Manual()
    log = Log()
    log.listen(payloads(bus).pipe(observe_on(far)))
    publisher = spawn(bus.publish, "a", 1)
    action = far.actions.get(timeout=PATIENCE)
    assert not publisher.done()
    assert log == []
    action()
    assert publisher.result(PATIENCE).acknowledged == 1
    assert log == [1]


def test_the_turn_is_free_while_the_far_side_is_at_work(bus: EventBus, spawn: Spawn) -> None:
    far, log = Manual(), Log()
    near = threading.Semaphore(0)
    log.listen(payloads(bus).pipe(ops.do_action(lambda _: near.release()), observe_on(far)))
    publishers = [spawn(bus.publish, "a", 0)]
    assert near.acquire(timeout=PATIENCE)
    publishers += [spawn(bus.publish, "a", 0) for _ in range(3)]
    assert all(near.acquire(timeout=PATIENCE) for _ in range(3))
    assert log == []
    for n in range(4):
        far.run()
        assert len(log) == n + 1
    assert [publisher.result(PATIENCE).acknowledged for publisher in publishers] == [1] * 4


@pytest.mark.parametrize("kind", ["immediate", "loop", "pool", "bus"])
def test_what_fails_on_the_far_side_fails_the_publish(bus: EventBus, kind: str) -> None:
    log: list[int] = []
    with a_scheduler(kind, bus) as scheduler:
        payloads(bus).pipe(observe_on(scheduler)).subscribe(fail_at(1, ValueError("far"), log))
        assert bus.publish("a", 0).acknowledged == 1
        with pytest.raises(PublishError) as caught:
            bus.publish("a", 1)
        assert failures(caught) == ["ValueError('far')"]
        assert caught.value.receipt.acknowledged == 0
        assert "fail_at" in caught.value.exceptions[0].__notes__[0]
        assert bus.publish("a", 2).acknowledged == 1
    assert log == [0, 1, 2]


def test_a_base_exception_on_the_far_side_is_raised_at_the_publisher(bus: EventBus) -> None:
    with a_scheduler("loop", bus) as scheduler:
        payloads(bus).pipe(observe_on(scheduler)).subscribe(fail_at(1, SystemExit("far"), []))
        with pytest.raises(SystemExit, match="far"):
            bus.publish("a", 1)
        assert bus.publish("a", 2).acknowledged == 1


def test_disposing_frees_the_publishers_and_drops_what_is_queued(bus: EventBus, spawn: Spawn) -> None:
    far, log = Manual(), Log()
    near = threading.Semaphore(0)
    attached = log.listen(payloads(bus).pipe(ops.do_action(lambda _: near.release()), observe_on(far)))
    publishers = [spawn(bus.publish, "a", n) for n in range(3)]
    assert all(near.acquire(timeout=PATIENCE) for _ in range(3))
    attached.dispose()
    for publisher in publishers:
        publisher.result(PATIENCE)
    far.run()
    assert log == []
    assert bus.publish("a").acknowledged == 0


def test_disposing_from_the_far_side(bus: EventBus) -> None:
    log: list[int] = []
    with a_scheduler("loop", bus) as scheduler:
        payloads(bus).pipe(observe_on(scheduler), ops.take(1)).subscribe(log.append)
        assert bus.publish("a", 1).acknowledged == 1
        assert bus.publish("a", 2).acknowledged == 0
    assert log == [1]


@pytest.mark.rxbus_allow("failures")
def test_a_scheduler_that_refuses_fails_the_publish(bus: EventBus) -> None:
    pool = ThreadPoolScheduler(1)
    pool.executor.shutdown()
    payloads(bus).pipe(observe_on(pool)).subscribe()
    for _ in range(2):
        with pytest.raises(PublishError) as caught:
            bus.publish("a", 1)
        assert isinstance(caught.value.exceptions[0], RuntimeError)


def test_observe_on_brings_the_end_after_the_items(bus: EventBus) -> None:
    error = ValueError()
    log = Log()
    with a_scheduler("loop", bus) as scheduler:
        log.listen(bus.topic("a").only_payload().pipe(observe_on(scheduler)))
        bus.publish("a", 1)
        bus.topic("a").on_error(error)
        assert log.ended.wait(PATIENCE)
    assert log == [1, error]


@pytest.mark.parametrize("kind", KINDS)
def test_observe_on_behind_a_plain_source(bus: EventBus, kind: str) -> None:
    with a_scheduler(kind, bus) as scheduler:
        log, other = Log(), Log()
        log.listen(rx.of(*range(20)).pipe(observe_on(scheduler)))
        error = ValueError()
        other.listen(rx.of(1).pipe(ops.concat(rx.throw(error)), observe_on(scheduler)))
        assert log.ended.wait(PATIENCE)
        assert other.ended.wait(PATIENCE)
    assert log == [*range(20), "completed"]
    assert other == [1, error]


def test_what_fails_behind_a_plain_source_is_the_far_scheduler_s() -> None:
    far = Manual()
    log: list[int] = []
    source: Subject[int] = Subject()
    attached = source.pipe(observe_on(far)).subscribe(fail_at(0, ValueError("far"), log))
    source.on_next(0)
    source.on_next(1)
    with pytest.raises(ValueError, match="far"):
        far.run()
    far.run()
    assert log == [0, 1]
    source.on_next(2)
    attached.dispose()
    far.run()
    source.on_next(3)
    assert log == [0, 1]
    assert far.actions.empty()


def test_a_publish_on_the_far_side_belongs_to_the_tree(bus: EventBus, spawn: Spawn) -> None:
    far = Manual()
    causes: list[tuple[str, int | None]] = []
    held: list[Any] = []
    deferred = threading.Event()

    def last(event: Event[Any]) -> None:
        held.append(defer())
        causes.append((event.topic, event.cause))
        deferred.set()

    with a_scheduler("loop", bus) as loop:
        bus.subscribe("a").pipe(observe_on(loop)).subscribe(lambda _: bus.publish("b"))
        bus.subscribe("b").pipe(observe_on(far)).subscribe(lambda _: bus.publish("c"))
        bus.subscribe("c").subscribe(last)
        publisher = spawn(bus.publish, "a")
        running = spawn(far.run)
        assert deferred.wait(PATIENCE)
        assert not publisher.done()
        held.pop().ack()
        receipt = publisher.result(PATIENCE)
        running.result(PATIENCE)
    assert receipt.acknowledged == 1
    assert causes == [("c", receipt.event.id + 1)]


def test_a_failure_below_the_far_side_reaches_the_outermost_publisher(bus: EventBus) -> None:
    with a_scheduler("loop", bus) as loop:
        bus.subscribe("a").pipe(observe_on(loop)).subscribe(lambda _: bus.publish("b", 1))
        payloads(bus, "b").pipe(observe_on(bus.scheduler)).subscribe(fail_at(1, ValueError("deep"), []))
        with pytest.raises(PublishError) as caught:
            bus.publish("a")
        (inner,) = caught.value.exceptions
        assert isinstance(inner, PublishError)
        assert repr(inner.exceptions[0]) == "ValueError('deep')"


@pytest.mark.parametrize("kind", KINDS)
def test_the_far_side_sees_the_publisher_s_context(bus: EventBus, kind: str) -> None:
    log: list[int] = []
    with a_scheduler(kind, bus) as scheduler:
        bus.subscribe("a").pipe(observe_on(scheduler)).subscribe(lambda _: log.append(number.get()))
        token = number.set(7)
        bus.publish("a")
        number.reset(token)
        bus.publish("a")
    assert log == [7, 0]


# -- map_async


class Coroutines:
    """Coroutines that wait to be let go, each by its item."""

    def __init__(self) -> None:
        self.go: defaultdict[Any, asyncio.Event] = defaultdict(asyncio.Event)
        self.begun: asyncio.Queue[Any] = asyncio.Queue()
        self.running = self.most = 0
        self.cancelled: list[Any] = []

    async def __call__(self, item: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.put_nowait(item)
        try:
            await self.go[item].wait()
        except asyncio.CancelledError:
            self.cancelled.append(item)
            raise
        finally:
            self.running -= 1
        if isinstance(item, Exception):
            raise item
        return item

    async def next(self, count: int = 1) -> list[Any]:
        """The next ones that have begun."""
        return [await asyncio.wait_for(self.begun.get(), PATIENCE) for _ in range(count)]


async def soon(*awaitables: Any) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*awaitables), PATIENCE)


async def several(bus: EventBus, *items: Any) -> list[asyncio.Task[Any]]:
    """Publishes items in order, each by a task of its own."""
    return [asyncio.create_task(bus.publish_async("a", item)) for item in items]


@pytest.fixture
async def abus() -> AsyncIterator[EventBus]:
    """A bus that is closed while its event loop still runs."""
    bus = EventBus()
    yield bus
    await asyncio.to_thread(bus.close)


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
async def test_results_keep_the_order_of_the_items(abus: EventBus, limit: int) -> None:
    work, log = Coroutines(), Log()
    log.listen(payloads(abus).pipe(map_async(work, limit)))
    tasks = await several(abus, *range(6))
    for first in range(0, 6, limit):
        batch = list(range(first, min(first + limit, 6)))
        assert await work.next(len(batch)) == batch
        for item in reversed(batch):
            assert log == list(range(first))
            work.go[item].set()
            if item != first:  # its result waits for those before
                assert not tasks[item].done()
        await soon(*(tasks[item] for item in batch))
        assert log == list(range(first + len(batch)))
    assert [receipt.acknowledged for receipt in await soon(*tasks)] == [1] * 6
    assert work.most == min(limit, 6)


async def test_publish_async_waits_for_the_coroutine_and_what_follows(abus: EventBus) -> None:
    work, log = Coroutines(), Log()
    log.listen(payloads(abus).pipe(map_async(work), ops.map(lambda item: item + 1)))
    (task,) = await several(abus, 1)
    await work.next()
    assert not task.done()
    work.go[1].set()
    assert (await soon(task))[0].acknowledged == 1
    assert log == [2]


async def test_a_publisher_on_another_thread_waits_for_the_coroutine(abus: EventBus, spawn: Spawn) -> None:
    work = Coroutines()
    payloads(abus).pipe(map_async(work)).subscribe()
    publisher = spawn(abus.publish, "a", 1)
    await work.next()
    assert not publisher.done()
    work.go[1].set()
    receipt = await asyncio.wait_for(asyncio.wrap_future(publisher), PATIENCE)
    assert receipt.acknowledged == 1


async def test_results_are_handed_on_by_the_loop_s_thread_in_the_publisher_s_context(abus: EventBus) -> None:
    log: list[tuple[int, int, threading.Thread]] = []

    async def work(item: int) -> tuple[int, int]:
        return item, number.get()

    payloads(abus).pipe(map_async(work)).subscribe(lambda pair: log.append((*pair, threading.current_thread())))
    number.set(5)
    await abus.publish_async("a", 1)
    assert log == [(1, 5, threading.current_thread())]


async def test_a_coroutine_that_raises_ends_the_chain(abus: EventBus) -> None:
    work, log = Coroutines(), Log()
    error = ValueError("one")
    log.listen(payloads(abus).pipe(map_async(work, 3)))
    tasks = await several(abus, 0, error, 2, 3)
    assert await work.next(3) == [0, error, 2]
    work.go[error].set()
    work.go[0].set()
    await soon(*tasks)  # the error was handled; nobody waits for the others any more
    assert log == [0, error]
    await asyncio.sleep(0)
    assert work.cancelled == [2]
    assert work.running == 0
    assert work.begun.empty()
    assert (await abus.publish_async("a", 4)).acknowledged == 0


async def test_an_error_that_nobody_handles_fails_the_publish(abus: EventBus) -> None:
    async def work(item: int) -> int:
        raise ValueError(item)

    payloads(abus).pipe(map_async(work)).subscribe()
    with pytest.raises(PublishError) as caught:
        await abus.publish_async("a", 1)
    assert failures(caught) == ["ValueError(1)"]
    assert (await abus.publish_async("a", 2)).acknowledged == 0


async def test_a_coroutine_that_was_cancelled_is_an_error(abus: EventBus) -> None:
    async def work(item: int) -> int:
        raise asyncio.CancelledError

    log = Log()
    log.listen(payloads(abus).pipe(map_async(work)))
    await abus.publish_async("a", 1)
    assert [type(item) for item in log] == [RxBusError]
    assert "cancelled" in str(log[0])


async def test_what_fails_behind_map_async_fails_the_publish_and_the_chain_goes_on(abus: EventBus) -> None:
    async def work(item: int) -> int:
        return item

    log: list[int] = []
    payloads(abus).pipe(map_async(work)).subscribe(fail_at(1, ValueError("behind"), log))
    with pytest.raises(PublishError) as caught:
        await abus.publish_async("a", 1)
    assert failures(caught) == ["ValueError('behind')"]
    assert (await abus.publish_async("a", 2)).acknowledged == 1
    assert log == [1, 2]


@pytest.mark.parametrize("way", ["dispose", "unsubscribe"])
async def test_leaving_cancels_what_runs_and_frees_the_publishers(abus: EventBus, way: str) -> None:
    work, log = Coroutines(), Log()
    subscription = abus.subscribe("a")
    attached = log.listen(subscription.pipe(only_payload, map_async(work, 2)))
    tasks = await several(abus, 0, 1, 2)
    await work.next(2)
    if way == "dispose":
        attached.dispose()
        await soon(*tasks)
        await asyncio.sleep(0)
        assert sorted(work.cancelled) == [0, 1]
        assert (work.running, log) == (0, [])
    else:  # completion waits for what runs, publishers need not
        abus.unsubscribe("a", subscription)
        await soon(*tasks)
        assert log == []
        for item in range(3):
            work.go[item].set()
        assert await asyncio.to_thread(log.ended.wait, PATIENCE)
        assert log[-1] == "completed"
    assert (await abus.publish_async("a", 4)).acknowledged == 0


async def test_completion_waits_for_running_coroutines(abus: EventBus) -> None:
    work, log = Coroutines(), Log()
    log.listen(abus.topic("a").only_payload().pipe(map_async(work)))
    tasks = await several(abus, 0, 1)
    await work.next()
    abus.topic("a").on_completed()
    assert log == []
    work.go[0].set()
    assert await work.next() == [1]
    assert "completed" not in log
    work.go[1].set()
    assert await asyncio.to_thread(log.ended.wait, PATIENCE)
    assert log == [0, 1, "completed"]
    await soon(*tasks)


async def test_an_error_of_the_source_cancels_what_runs(abus: EventBus) -> None:
    work, log = Coroutines(), Log()
    error = ValueError("source")
    log.listen(abus.topic("a").only_payload().pipe(map_async(work)))
    tasks = await several(abus, 0, 1)
    await work.next()
    abus.topic("a").on_error(error)
    await soon(*tasks)
    assert await asyncio.to_thread(log.ended.wait, PATIENCE)
    assert log == [error]
    assert work.cancelled == [0]


async def test_closing_the_bus_on_the_loop_s_own_thread_does_not_hang(spawn: Spawn) -> None:
    work, log = Coroutines(), Log()
    with EventBus() as bus:
        log.listen(payloads(bus).pipe(map_async(work)))
        publisher = spawn(bus.publish, "a", 1)
        await work.next()
    with pytest.raises(PublishError) as caught:  # what was not done is not acknowledged
        await asyncio.wait_for(asyncio.wrap_future(publisher), PATIENCE)
    assert [type(error) for error in caught.value.exceptions] == [BusClosed]
    work.go[1].set()
    assert await asyncio.to_thread(log.ended.wait, PATIENCE)
    assert log == [1, "completed"]


def test_without_a_running_loop_map_async_cannot_be_attached(bus: EventBus) -> None:
    log = Log()
    with pytest.raises(RxBusError, match="event loop"):
        payloads(bus).pipe(map_async(Coroutines())).subscribe()
    log.listen(payloads(bus).pipe(map_async(Coroutines())))  # where errors are handled, it is one
    assert [type(item) for item in log] == [RxBusError]
    assert bus.publish("a").acknowledged == 0


@pytest.mark.parametrize("limit", [0, -1])
def test_a_concurrency_of_less_than_one_is_refused(limit: int) -> None:
    with pytest.raises(InvalidArgument, match=f"at least 1, not {limit}"):
        map_async(Coroutines(), limit)


async def test_a_blocking_publish_on_that_loop_is_refused_at_once(abus: EventBus) -> None:
    work = Coroutines()
    seen: list[Event[Any]] = []
    abus.subscribe("a").subscribe(seen.append)
    abus.subscribe("a", name="mapper").pipe(map_async(work)).subscribe()
    abus.subscribe("b").subscribe(lambda event: abus.publish("a"))
    with pytest.raises(EventLoopBlocked, match="mapper"):
        abus.publish("a")
    with pytest.raises(PublishError) as caught:
        abus.publish("b")  # not from within a handler either
    assert isinstance(caught.value.exceptions[0], EventLoopBlocked)
    assert seen == []
    assert work.begun.empty()


async def test_what_a_coroutine_publishes_belongs_to_the_tree(abus: EventBus) -> None:
    inner = Coroutines()
    causes: list[tuple[str, int | None]] = []

    async def work(event: Event[Any]) -> str:
        await asyncio.sleep(0)
        await abus.publish_async("b", 1)
        return event.topic

    abus.subscribe("a").pipe(map_async(work)).subscribe(lambda _: abus.publish("c"))
    payloads(abus, "b").pipe(map_async(inner)).subscribe()
    abus.subscribe(">").subscribe(lambda event: causes.append((event.topic, event.cause)))
    (task,) = await several(abus, 1)
    await inner.next()
    assert not task.done()
    inner.go[1].set()
    (receipt,) = await soon(task)
    first = receipt.event.id
    assert causes == [("a", None), ("b", first), ("c", first)]


@pytest.mark.rxbus_allow("failures")
async def test_map_async_behind_a_plain_source(caplog: pytest.LogCaptureFixture) -> None:
    async def work(item: int) -> int:
        return item * 2

    seen: list[int] = []
    done = asyncio.Event()
    rx.of(1, 2, 3).pipe(map_async(work, 2)).subscribe(fail_at(4, ValueError("behind"), seen), None, done.set)
    await asyncio.wait_for(done.wait(), PATIENCE)
    assert seen == [2, 4, 6]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("rxbus", logging.ERROR)
    assert record.exc_info is not None
    assert repr(record.exc_info[1]) == "ValueError('behind')"


def test_when_the_loop_has_been_closed_the_publish_fails(bus: EventBus) -> None:
    async def attach() -> None:
        payloads(bus).pipe(map_async(Coroutines())).subscribe()

    asyncio.run(attach())
    with pytest.raises(PublishError) as caught:
        bus.publish("a", 1)
    assert isinstance(caught.value.exceptions[0], RxBusError)
    assert "not running" in str(caught.value.exceptions[0])


# -- buffered: a simple model

POLICIES: tuple[Overflow, ...] = get_args(Overflow)


class Model:
    """What a buffer is: an item in hand, those held, and what has come out."""

    def __init__(self, capacity: int, overflow: Overflow) -> None:
        self.capacity, self.overflow = capacity, overflow
        self.held: list[int] = []
        self.hand: int | None = None
        self.waiting: int | None = None  # of the publisher that is blocked
        self.out: list[int] = []

    def put(self, item: int) -> Literal["taken", "held", "dropped", "error", "blocked"]:
        if self.hand is None:
            self.hand = item
            return "taken"
        if len(self.held) == self.capacity:
            if self.overflow == "drop_newest":
                return "dropped"
            if self.overflow == "error":
                return "error"
            if self.overflow == "block":
                self.waiting = item
                return "blocked"
            del self.held[0]
        self.held.append(item)
        return "held"

    def take(self) -> None:
        assert self.hand is not None
        self.out.append(self.hand)
        self.hand = self.held.pop(0) if self.held else None
        if self.waiting is not None:
            self.held.append(self.waiting)
            self.waiting = None

    @property
    def all(self) -> list[int]:
        rest = [self.hand, *self.held, self.waiting]
        return self.out + [item for item in rest if item is not None]


@pytest.mark.parametrize("overflow", POLICIES)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    capacity=st.integers(1, 3),
    steps=st.lists(st.sampled_from(["put", "put", "take"]), max_size=15),
    end=st.sampled_from(["completed", "unsubscribed", "closed"]),
)
def test_a_buffer_does_what_the_model_does(
    overflow: Overflow, capacity: int, steps: list[str], end: str, spawn: Spawn
) -> None:
    with EventBus() as bus:
        gate, model = Gate(), Model(capacity, overflow)
        blocked: Future[Any] | None = None
        subscription = bus.subscribe("a")
        gate.listen(subscription.pipe(only_payload, buffered(capacity, overflow)))
        for n, step in enumerate(steps):
            if step == "put" and model.waiting is None:
                how = model.put(n)
                if how == "error":
                    with pytest.raises(PublishError) as caught:
                        bus.publish("a", n)
                    (error,) = caught.value.exceptions
                    assert isinstance(error, BufferOverflow)
                    assert error.capacity == capacity
                elif how == "blocked":
                    blocked = spawn(bus.publish, "a", n)
                else:
                    assert bus.publish("a", n).acknowledged == 1
                if how == "taken":
                    gate.entered()
            elif step == "take" and model.hand is not None:
                if blocked is not None:
                    with pytest.raises(TimeoutError):
                        blocked.result(0.002)
                model.take()
                gate.let_go()
                if model.hand is not None:
                    gate.entered()
                if blocked is not None:
                    assert blocked.result(PATIENCE).acknowledged == 1
                    blocked = None
            assert gate == model.out
        gate.go.release(100)
        if blocked is not None:
            assert blocked.result(PATIENCE).acknowledged == 1
        if end == "completed":
            bus.topic("a").on_completed()
        elif end == "unsubscribed":
            bus.unsubscribe("a", subscription)
        if end == "closed":
            bus.close()
        else:
            assert gate.ended.wait(PATIENCE)
        assert gate == [*model.all, "completed"]


# -- buffered: one by one


def test_a_full_buffer_blocks_the_publisher_and_lets_it_go(bus: EventBus, spawn: Spawn) -> None:
    gate = Gate()
    gate.listen(payloads(bus).pipe(buffered(2)))
    bus.publish("a", 0)
    gate.entered()
    bus.publish("a", 1)  # the one in hand is not counted
    bus.publish("a", 2)
    publisher = spawn(bus.publish, "a", 3)
    with pytest.raises(TimeoutError):
        publisher.result(MOMENT)
    assert gate == []
    gate.let_go()
    assert publisher.result(PATIENCE).acknowledged == 1
    assert gate == [0]
    gate.go.release(3)


def test_one_publisher_waits_while_others_publish_elsewhere(bus: EventBus, spawn: Spawn) -> None:
    gate, log = Gate(), Log()
    gate.listen(payloads(bus).pipe(buffered(1)))
    log.listen(payloads(bus))
    log.listen(payloads(bus, "b"))
    bus.publish("a", 0)
    gate.entered()
    bus.publish("a", 1)
    publishers = [spawn(bus.publish, "a", 2), spawn(bus.publish, "a", 2)]
    bus.publish("b", "elsewhere")
    assert "elsewhere" in log
    gate.go.release(4)
    for publisher in publishers:
        assert publisher.result(PATIENCE).acknowledged == 2


def test_an_overflow_is_an_error_of_the_publish_and_the_observer_stays(bus: EventBus) -> None:
    gate = Gate()
    gate.listen(bus.subscribe("a", name="small").pipe(only_payload, buffered(1, "error")))
    bus.publish("a", 0)
    gate.entered()
    bus.publish("a", 1)
    for n in (2, 3):
        with pytest.raises(PublishError) as caught:
            bus.publish("a", n)
        (error,) = caught.value.exceptions
        assert isinstance(error, BufferOverflow)
        assert (error.capacity, caught.value.receipt.acknowledged) == (1, 0)
        assert "small" in error.__notes__[0]
    gate.go.release()
    gate.entered()
    assert bus.publish("a", 4).acknowledged == 1
    gate.go.release(2)
    bus.close()
    assert gate == [0, 1, 4, "completed"]


@pytest.mark.parametrize("end", ["completed", "error", "unsubscribed", "closed"])
def test_the_end_comes_after_what_is_held(bus: EventBus, end: str) -> None:
    gate = Gate()
    error = ValueError()
    source = bus.subscribe("a") if end == "unsubscribed" else bus.topic("a")
    gate.listen(source.pipe(only_payload, buffered(3)))
    for n in range(4):
        bus.publish("a", n)
        if n == 0:
            gate.entered()
    if end == "completed":
        bus.topic("a").on_completed()
    elif end == "error":
        bus.topic("a").on_error(error)
    elif end == "unsubscribed":
        bus.unsubscribe("a", source)  # type: ignore[arg-type]
    assert gate == []
    gate.go.release(4)
    bus.close()
    assert gate == [0, 1, 2, 3, error if end == "error" else "completed"]


@pytest.mark.parametrize("error", [ValueError("behind"), SystemExit("behind"), KeyboardInterrupt("behind")], ids=repr)
@pytest.mark.rxbus_allow("failures")
def test_what_fails_behind_a_buffer_is_logged_and_does_not_end_it(
    bus: EventBus, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []
    payloads(bus).pipe(buffered(1, "drop_newest")).subscribe(fail_at(0, error, seen))
    assert bus.publish("a", 0).acknowledged == 1
    bus.scheduler.join()
    assert [record.exc_info[1] for record in caplog.records if record.exc_info is not None] == [error]
    assert re.search(r"in fail_at.* \(test_operators.py:\d+\), on topic 'a'", caplog.text)
    assert bus.publish("a", 1).acknowledged == 1
    bus.close()
    assert seen == [0, 1]


def test_an_operator_error_behind_a_buffer_ends_the_chain(bus: EventBus) -> None:
    log = Log()
    log.listen(payloads(bus).pipe(buffered(1), ops.map(lambda item: 1 / item)))
    bus.publish("a", 0)
    assert log.ended.wait(PATIENCE)
    assert [type(item) for item in log] == [ZeroDivisionError]
    assert bus.publish("a", 1).acknowledged == 0


@pytest.mark.parametrize("capacity", [0, -1, 1.5, None, "3"])
def test_a_capacity_is_a_number_from_one_on(capacity: Any) -> None:
    with pytest.raises(ValueError, match="capacity"):
        buffered(capacity)


@pytest.mark.parametrize("overflow", ["", "drop", "BLOCK", None])
def test_an_unknown_overflow_is_refused(overflow: Any) -> None:
    with pytest.raises(InvalidArgument, match="drop_oldest"):
        buffered(1, overflow)


def test_disposing_frees_the_publisher_and_drops_what_is_held(bus: EventBus, spawn: Spawn) -> None:
    gate = Gate()
    arrived = threading.Semaphore(0)
    attached = gate.listen(payloads(bus).pipe(ops.do_action(lambda _: arrived.release()), buffered(1)))
    bus.publish("a", 0)
    gate.entered()
    bus.publish("a", 1)
    publisher = spawn(bus.publish, "a", 2)
    assert all(arrived.acquire(timeout=PATIENCE) for _ in range(3))
    attached.dispose()
    publisher.result(PATIENCE)
    gate.go.release(3)
    bus.close()
    assert gate in ([], [0])  # the one in hand; Rx does not pass it on, or it had been passed on


def test_a_buffer_keeps_the_order_of_many_publishers(bus: EventBus, spawn: Spawn) -> None:
    direct: list[int] = []
    behind: list[int] = []
    bus.subscribe("a").subscribe(lambda event: direct.append(event.id))
    bus.subscribe("a").pipe(buffered(2)).subscribe(lambda event: behind.append(event.id))
    barrier = threading.Barrier(4)

    def publish() -> None:
        barrier.wait(PATIENCE)
        for _ in range(50):
            bus.publish("a")

    for publisher in [spawn(publish) for _ in range(4)]:
        publisher.result(PATIENCE)
    bus.close()
    assert len(behind) == 200
    assert behind == direct == sorted(direct)


def test_a_chain_of_buffers_flushes_through(bus: EventBus) -> None:
    log = Log()
    log.listen(payloads(bus).pipe(buffered(1), ops.map(lambda n: n + 1), buffered(2), buffered(1)))
    for n in range(20):
        bus.publish("a", n)
    bus.close()
    assert log == [*range(1, 21), "completed"]


def test_a_chain_of_buffers_behind_a_merge_is_its_bus_s() -> None:
    """A merge subscribes to its sources later on, so that buffers hear of their bus only by what comes to them."""
    with EventBus(BlockingScheduler(0)) as bus:
        seen: list[tuple[int, threading.Thread]] = []
        sources = rx.merge(payloads(bus, "a"), payloads(bus, "b"))
        chain = sources.pipe(buffered(1), buffered(1))
        chain.subscribe(lambda n: seen.append((n, threading.current_thread())))
        for n in range(3):
            bus.publish("a", n)
        assert seen == [(n, threading.current_thread()) for n in range(3)]


def test_what_follows_sees_the_publisher_s_context(bus: EventBus) -> None:
    seen: list[int] = []
    bus.subscribe("a").pipe(buffered(3)).subscribe(lambda _: seen.append(number.get()))
    for n in (1, 2):
        token = number.set(n)
        bus.publish("a")
        number.reset(token)
    bus.close()
    assert seen == [1, 2]


# -- buffered: plain sources


@pytest.mark.parametrize("overflow", POLICIES)
def test_a_buffer_behind_a_plain_source(overflow: Overflow, spawn: Spawn) -> None:
    source: Subject[int] = Subject()
    gate = Gate()
    gate.listen(source.pipe(buffered(1, overflow)))
    source.on_next(0)
    gate.entered()
    source.on_next(1)
    if overflow == "error":
        with pytest.raises(BufferOverflow):
            source.on_next(2)
    else:
        pushed = spawn(source.on_next, 2)
        if overflow == "block":
            with pytest.raises(TimeoutError):
                pushed.result(MOMENT)
            gate.go.release()
        pushed.result(PATIENCE)
    source.on_completed()
    gate.go.release(3)
    assert gate.ended.wait(PATIENCE)
    rest = {"block": [1, 2], "drop_oldest": [2], "drop_newest": [1], "error": [1]}
    assert gate == [0, *rest[overflow], "completed"]


def test_a_cold_source_is_slowed_down() -> None:
    log = Log()
    log.listen(rx.range(0, 100).pipe(buffered(1)))
    assert log.ended.wait(PATIENCE)
    assert log == [*range(100), "completed"]


def test_a_plain_source_s_error_comes_after_what_is_held() -> None:
    log = Log()
    error = ValueError()
    log.listen(rx.of(1, 2).pipe(ops.concat(rx.throw(error)), buffered(5)))
    assert log.ended.wait(PATIENCE)
    assert log == [1, 2, error]


def test_a_buffer_behind_a_merge_of_a_plain_source_and_the_bus(bus: EventBus) -> None:
    log = Log()
    log.listen(rx.merge(rx.of(0), payloads(bus), rx.never()).pipe(buffered(2)))
    bus.publish("a", 1)
    bus.publish("a", 2)
    bus.close()
    assert sorted(log) == [0, 1, 2]


def test_closing_waits_for_a_buffer_whose_source_met_the_bus_late(bus: EventBus, spawn: Spawn) -> None:
    sources: Subject[Observable[Any]] = Subject()
    gate = Gate()
    gate.listen(sources.pipe(ops.switch_latest(), buffered(3)))
    sources.on_next(payloads(bus))
    for n in range(3):
        bus.publish("a", n)
    gate.entered()
    closing = spawn(bus.close)
    with pytest.raises(TimeoutError):
        closing.result(MOMENT)
    gate.go.release(3)
    closing.result(PATIENCE)
    assert gate == [0, 1, 2]


# -- buffered: what handlers behind it publish


def test_the_cause_is_kept_behind_a_buffer(bus: EventBus) -> None:
    events: list[Event[Any]] = []
    bus.subscribe("a").pipe(buffered(1)).subscribe(lambda event: bus.publish("b", event.payload))
    bus.subscribe("b").pipe(buffered(1)).subscribe(lambda event: bus.publish("c"))
    bus.subscribe(">").subscribe(events.append)
    receipt = bus.publish("a", 1)
    bus.close()
    first = receipt.event.id
    assert sorted((event.topic, event.cause) for event in events) == [("a", None), ("b", first), ("c", first + 1)]


def test_the_cause_is_kept_on_the_far_side_behind_a_buffer(bus: EventBus) -> None:
    causes: SimpleQueue[int | None] = SimpleQueue()
    with a_scheduler("loop", bus) as loop:
        bus.subscribe("a").pipe(buffered(1), observe_on(loop)).subscribe(lambda event: bus.publish("b"))
        bus.subscribe("b").subscribe(lambda event: causes.put(event.cause))
        receipt = bus.publish("a", 1)
        assert causes.get(timeout=PATIENCE) == receipt.event.id


async def test_the_cause_is_kept_in_a_coroutine_behind_a_buffer(abus: EventBus) -> None:
    causes: asyncio.Queue[int | None] = asyncio.Queue()

    async def work(event: Event[Any]) -> None:
        await abus.publish_async("b")

    async def note(event: Event[Any]) -> None:
        causes.put_nowait(event.cause)

    abus.subscribe("a").pipe(buffered(1), map_async(work)).subscribe()
    abus.subscribe("b").subscribe(note)
    receipt = await abus.publish_async("a", 1)
    assert await asyncio.wait_for(causes.get(), PATIENCE) == receipt.event.id


def test_behind_a_buffer_a_publish_is_an_outermost_one(bus: EventBus, spawn: Spawn) -> None:
    """It waits for observers that are busy, where a nested one would count them as queued."""
    gate = Gate()
    receipts: list[Any] = []
    gate.listen(payloads(bus, "b"))
    bus.subscribe("a").pipe(buffered(1)).subscribe(lambda event: receipts.append(bus.publish("b", "second")))
    publisher = spawn(bus.publish, "b", "first")
    gate.entered()
    bus.publish("a")  # is not held up by what follows the buffer
    assert receipts == []
    gate.go.release(2)
    publisher.result(PATIENCE)
    bus.close()
    assert [(receipt.acknowledged, receipt.queued) for receipt in receipts] == [(1, 0)]
    assert gate == ["first", "second", "completed"]


@pytest.mark.parametrize("topics", [("a",), ("a", "b"), ("a", "b", "c")], ids="-".join)
@pytest.mark.parametrize("max_workers", [None, 1, 0])
def test_a_feedback_loop_through_buffers_is_found(
    topics: tuple[str, ...], max_workers: int | None, spawn: Spawn
) -> None:
    bus = EventBus(BlockingScheduler(max_workers), max_chain=20)
    seen: list[int | None] = []
    errors: list[FeedbackLoop] = []
    attached = []
    for here, there in zip(topics, (*topics[1:], topics[0]), strict=True):

        def hand_over(event: Event[Any], there: str = there) -> None:
            seen.append(event.cause)
            try:
                bus.publish(there)
            except FeedbackLoop as error:
                errors.append(error)

        attached.append(bus.subscribe(here).pipe(buffered(1)).subscribe(hand_over))
    with freeing(bus, *attached):
        spawn(bus.publish, topics[0]).result(PATIENCE / 2)
        spawn(bus.close).result(PATIENCE / 2)
    (error,) = errors
    assert len(seen) == 21
    assert set(error.topics) == set(topics)
    assert len(error.topics) == len(topics)
    assert error.max_chain == 20


class Overflows(list[str]):
    """Publishes for a handler and notes how that ended."""

    def publish(self, bus: EventBus, topic: str, payload: object) -> None:
        try:
            bus.publish(topic, payload)
            self.append("done")
        except PublishError as error:
            leaf: BaseException = error
            while isinstance(leaf, BaseExceptionGroup):
                leaf = leaf.exceptions[0]
            self.append(type(leaf).__name__)


@pytest.mark.parametrize("max_workers", [None, 2])
@pytest.mark.parametrize("way", [(), ("b",), ("b", "c")], ids=len)
@pytest.mark.parametrize("bystanders", [0, 2])
def test_a_handler_that_publishes_into_its_own_full_buffer_gets_an_error(
    way: tuple[str, ...], max_workers: int | None, bystanders: int, spawn: Spawn
) -> None:
    """Directly, or by way of other topics, whose handlers run on other threads where there are several."""
    bus = EventBus(BlockingScheduler(max_workers))
    gate, outcomes = Gate(), Overflows()
    chain = [*way, "a"]

    def handle(n: int) -> None:
        gate.append(n)
        if n == 0:
            outcomes.publish(bus, chain[0], 9)

    attached = payloads(bus).pipe(buffered(1)).subscribe(handle)
    for here, there in zip(way, chain[1:], strict=True):
        for _ in range(bystanders):
            bus.subscribe(here).subscribe(lambda event: None)
        payloads(bus, here).subscribe(lambda n, there=there: bus.publish(there, n))
    bus.publish("a", 0)
    gate.entered()
    bus.publish("a", 1)
    gate.go.release(3)
    with freeing(bus, attached):
        spawn(bus.close).result(PATIENCE / 2)
    assert outcomes == ["BufferOverflow"]
    assert gate == [0, 1]


@pytest.mark.parametrize("way", ["a", "b"])
def test_neither_does_it_hang_when_another_publisher_waits_for_room_already(
    bus: EventBus, way: str, spawn: Spawn
) -> None:
    """That one holds the turn of an observer on the way: the handler behind the buffer waits for it, and vice versa."""
    gate, outcomes = Gate(), Overflows()
    arrived = threading.Semaphore(0)

    def handle(n: int) -> None:
        gate.append(n)
        if n == 0:
            outcomes.publish(bus, way, 9)

    attached = payloads(bus).pipe(ops.do_action(lambda _: arrived.release()), buffered(1)).subscribe(handle)
    payloads(bus, "b").subscribe(lambda n: bus.publish("a", n))
    bus.publish("a", 0)
    gate.entered()
    bus.publish("a", 1)
    publisher = spawn(bus.publish, way, 2)
    assert all(arrived.acquire(timeout=PATIENCE) for _ in range(3))
    with pytest.raises(TimeoutError):
        publisher.result(MOMENT)
    gate.go.release(4)
    with freeing(bus, attached):
        publisher.result(PATIENCE / 2)
        spawn(bus.close).result(PATIENCE / 2)
    assert len(outcomes) == 1
    assert sorted(gate) == ([0, 1, 2] if outcomes == ["BufferOverflow"] else [0, 1, 2, 9])


@pytest.mark.parametrize("max_workers", [None, 2])
@pytest.mark.parametrize("waiting", [False, True], ids=["", "others wait already"])
def test_two_full_buffers_in_a_ring_do_not_wait_for_each_other(
    max_workers: int | None, waiting: bool, spawn: Spawn
) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    gates = {"a": Gate(), "b": Gate()}
    outcomes = Overflows()
    attached = []
    arrived = threading.Semaphore(0)
    for here, there in (("a", "b"), ("b", "a")):

        def handle(n: int, here: str = here, there: str = there) -> None:
            gates[here].append(n)
            if n == 0:
                outcomes.publish(bus, there, 9)

        near = payloads(bus, here).pipe(ops.do_action(lambda _: arrived.release()))
        attached.append(near.pipe(buffered(1)).subscribe(handle))
    for topic, gate in gates.items():
        bus.publish(topic, 0)
        gate.entered()
        bus.publish(topic, 1)
    publishers = [spawn(bus.publish, topic, 2) for topic in gates if waiting]
    assert all(arrived.acquire(timeout=PATIENCE) for _ in range(4 + len(publishers)))
    for publisher in publishers:
        with pytest.raises(TimeoutError):
            publisher.result(MOMENT)
    for gate in gates.values():
        gate.go.release(4)
    with freeing(bus, *attached):
        for publisher in publishers:
            publisher.result(PATIENCE / 2)
        spawn(bus.close).result(PATIENCE / 2)
    assert len(outcomes) == 2
    assert waiting or "BufferOverflow" in outcomes


def test_items_come_through_to_a_bus_without_workers(bus: EventBus) -> None:
    arrived: SimpleQueue[Event[Any]] = SimpleQueue()
    with EventBus(BlockingScheduler(0)) as other:
        other.subscribe("b").pipe(buffered(1)).subscribe(arrived.put)
        bus.subscribe("a").pipe(buffered(1)).subscribe(lambda event: other.publish("b", event.payload))
        bus.publish("a", "item")
        assert arrived.get(timeout=PATIENCE).payload == "item"


def test_a_buffer_does_not_wait_for_what_its_handler_has_published_to_a_bus_without_workers(bus: EventBus) -> None:
    second = threading.Event()
    seen: list[bool] = []

    def pass_on(event: Event[int]) -> None:
        if event.payload == 2:
            second.set()
        else:
            other.publish("b")

    with EventBus(BlockingScheduler(0)) as other:
        other.subscribe("b").pipe(buffered(1)).subscribe(lambda _: seen.append(second.wait(PATIENCE)))
        bus.subscribe("a").pipe(buffered(1)).subscribe(pass_on)
        for number in (1, 2):
            bus.publish("a", number)
        bus.close()
    assert seen == [True]


@pytest.mark.timeout(30)
def test_mail_is_not_left_with_a_publisher_that_waits_for_room(spawn: Spawn) -> None:
    """It has slept before, and its bus has no workers; room there is once somebody has read that mail."""
    without, bus = EventBus(BlockingScheduler(0)), EventBus(BlockingScheduler(handoff_after=60.0))  # no monitor helps
    in_hand, go = threading.Event(), threading.Event()
    outcomes, log = Overflows(), Log()

    def handle(n: int) -> None:
        if n == 0:
            in_hand.set()
            assert go.wait(PATIENCE)
            outcomes.publish(bus, "a", 3)  # the second observer has not come to 2 yet

    def relay(event: Event[Any]) -> None:
        bus.publish("elsewhere", timeout=PATIENCE)  # on a worker: this thread sleeps
        bus.publish("a", 2)

    bus.subscribe("elsewhere").subscribe(lambda event: None)
    attached = [payloads(bus).pipe(buffered(1)).subscribe(handle), log.listen(payloads(bus))]
    for handler in (relay, lambda event: None):
        without.subscribe("start").subscribe(handler)
    bus.publish("a", 0)
    assert in_hand.wait(PATIENCE)
    bus.publish("a", 1)  # the buffer is full
    publisher = spawn(without.publish, "start")
    while not _buffered._waiting:
        pass
    go.set()
    with freeing(bus, *attached):
        publisher.result(PATIENCE / 2)
        without.close()
        spawn(bus.close).result(PATIENCE / 2)
    assert outcomes == ["BufferOverflow"]
    assert log == [0, 1, 2, 3, "completed"]


async def test_items_of_coroutines_come_through_to_a_bus_without_workers(bus: EventBus) -> None:
    seen: list[str] = []
    with EventBus(BlockingScheduler(0)) as other:
        other.subscribe("b").pipe(only_payload, buffered(1)).subscribe(seen.append)

        @bus.on("a")
        async def pass_on(event: Event[str]) -> None:
            other.publish("b", event.payload)
            assert seen == ["item"]

        await bus.publish_async("a", "item")


# -- buffered: few workers


def test_without_workers_the_publisher_hands_on_itself() -> None:
    with EventBus(BlockingScheduler(0)) as bus:
        seen: list[tuple[int, threading.Thread]] = []
        log = Log()
        source = payloads(bus).pipe(buffered(1))
        source.subscribe(lambda n: seen.append((n, threading.current_thread())))
        log.listen(source)
        for n in range(5):
            assert bus.publish("a", n).acknowledged == 2
        assert seen == [(n, threading.current_thread()) for n in range(5)]
    assert log == [0, 1, 2, 3, 4, "completed"]


def test_a_deferral_is_not_refused_where_its_observer_waits_for_room(bus: EventBus, spawn: Spawn) -> None:
    """Its delivery has begun, and needs the observer no longer: refused too, it would end twice."""
    owed: SimpleQueue[Acknowledgement] = SimpleQueue()
    receipts: list[Receipt] = []

    def relay(event: Event[Any]) -> None:
        if event.topic == "relay.deferred":
            owed.put(defer())
        else:
            bus.publish("items", 2)

    def handle(n: int) -> None:
        if n == 0:
            receipts.append(bus.publish("relay.deferred"))

    attached = [payloads(bus, "items").pipe(buffered(1)).subscribe(handle), bus.subscribe("relay.*").subscribe(relay)]
    with freeing(bus, *attached):
        bus.publish("items", 0)
        deferred = owed.get(timeout=PATIENCE)
        bus.publish("items", 1)  # the buffer is full
        waiting = spawn(bus.publish, "relay.blocked")
        while not _buffered._waiting:
            threading.Event().wait(0.001)
        assert receipts == []
        deferred.ack()
        assert waiting.result(PATIENCE).acknowledged == 1
        spawn(bus.close).result(PATIENCE)
    assert [receipt.acknowledged for receipt in receipts] == [1]


@pytest.mark.parametrize("max_workers", [0, 1])
def test_with_few_workers_a_handler_may_publish_to_its_own_topic(max_workers: int, spawn: Spawn) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    seen: list[int] = []

    def handle(n: int) -> None:
        seen.append(n)
        if n < 3:
            bus.publish("a", n + 1)

    attached = payloads(bus).pipe(buffered(1)).subscribe(handle)
    publisher = spawn(bus.publish, "a", 0)
    with freeing(bus, attached):
        publisher.result(PATIENCE / 2)
        spawn(bus.close).result(PATIENCE / 2)
    assert seen == [0, 1, 2, 3]


@pytest.mark.timeout(30)
def test_a_full_pool_does_not_keep_an_action_from_a_publisher_on_a_bus_without_a_limit(
    bus: EventBus, spawn: Spawn
) -> None:
    """Its tree spans both, and waits for an event of its own bus first; the nested publisher has gone."""
    owed: SimpleQueue[Acknowledgement] = SimpleQueue()
    ran = threading.Event()
    full, busy = EventBus(BlockingScheduler(1)), Gate()

    def start(event: Event[Any]) -> None:
        for one, topic in ((bus, "deferred"), (full, "late")):
            with pytest.raises(AcknowledgementTimeout):
                one.publish(topic, timeout=0)

    def act_later(event: Event[Any]) -> None:
        full.scheduler.schedule_relative(MOMENT, lambda *_: ran.set())

    busy.listen(payloads(full, "busy"))
    full.subscribe("late").subscribe(act_later)
    bus.subscribe("deferred").subscribe(lambda event: owed.put(defer()))
    bus.subscribe("start").subscribe(start)

    publishers = [spawn(full.publish, "busy", timeout=60)]
    busy.entered()
    publishers.append(spawn(bus.publish, "start"))
    try:
        assert ran.wait(PATIENCE / 2)
    finally:
        busy.go.release()
        owed.get(timeout=PATIENCE).ack()
        for publisher in publishers:
            publisher.result(PATIENCE)
        full.close()


@pytest.mark.parametrize("overflow", POLICIES)
@pytest.mark.parametrize("republish", [False, True], ids=["", "republishing"])
def test_publishers_do_not_wait_for_the_only_worker(overflow: Overflow, republish: bool, spawn: Spawn) -> None:
    """The worker is busy elsewhere: who blocks the publisher hands on by its own hand."""
    bus = EventBus(BlockingScheduler(1))
    busy, log = Gate(), Log()
    busy.listen(payloads(bus, "busy"))
    elsewhere = spawn(bus.publish, "busy", timeout=60)  # a publish with a timeout runs on workers
    busy.entered()

    def handle(n: int) -> None:
        log.append(n)
        if republish and n == 0:
            Overflows().publish(bus, "a", 9)

    attached = payloads(bus).pipe(buffered(2, overflow)).subscribe(handle)

    def publish() -> list[str]:
        outcomes = Overflows()
        for n in range(5):
            outcomes.publish(bus, "a", n)
        return outcomes

    try:
        with freeing(bus, attached):
            outcomes = spawn(publish).result(PATIENCE / 2)
    finally:
        busy.go.release()
    elsewhere.result(PATIENCE)
    spawn(bus.close).result(PATIENCE)
    assert outcomes == ["done"] * 2 + ["BufferOverflow" if overflow == "error" else "done"] * 3
    kept = {"block": [0, 1, 2, 3, 4], "drop_oldest": [3, 4], "drop_newest": [0, 1], "error": [0, 1]}
    assert [n for n in log if n != 9] == kept[overflow]
    assert log.count(9) <= republish


@pytest.mark.timeout(30)
def test_a_ring_that_closes_while_the_publish_waits_is_found(bus: EventBus, spawn: Spawn) -> None:
    """A second handler publishes into the full buffer after all others have begun to wait."""
    first, door, waits, handed = (threading.Event() for _ in range(4))

    def handle(event: Event[int]) -> None:
        if event.payload == 1:
            first.set()
            assert door.wait(PATIENCE)
            with pytest.raises(PublishError):
                bus.publish("y")

    def into_it(event: Event[Any]) -> None:
        handed.set()
        assert waits.wait(PATIENCE)
        bus.publish("x", 4)

    bus.subscribe("x").pipe(buffered(1)).subscribe(handle)
    bus.subscribe("y").subscribe(lambda event: handed.wait(PATIENCE) and None)
    bus.subscribe("y").subscribe(into_it)  # on a worker, since the first is slow
    bus.publish("x", 1)
    assert first.wait(PATIENCE)
    bus.publish("x", 2)
    third = spawn(bus.publish, "x", 3)  # waits for room
    while not _buffered._waiting:
        pass
    door.set()
    while not bus._scheduler.waiting:  # "y" has begun to wait
        pass
    waits.set()
    third.result(PATIENCE)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("max_workers", [None, 1, 0])
def test_a_handler_that_gives_back_another_s_turn_waits_for_what_is_done_in_it(
    max_workers: int | None, spawn: Spawn
) -> None:
    """Disposing of an action lets its lane go on, on this thread: with an event of others, whose handler wants room."""
    bus = EventBus(BlockingScheduler(max_workers, handoff_after=60.0))
    in_hand, go = threading.Event(), threading.Event()
    actions: list[abc.DisposableBase] = []
    outcomes = Overflows()

    def handle(n: int) -> None:
        if n == 0:
            in_hand.set()
            assert go.wait(PATIENCE)
            actions[0].dispose()

    def keep_or_publish(what: str) -> None:
        if what == "keep":  # the turn
            actions.append(bus.scheduler.schedule_relative(60.0, lambda *_: None))
        else:
            outcomes.publish(bus, "a", 2)

    attached = [payloads(bus).pipe(buffered(1)).subscribe(handle), payloads(bus, "b").subscribe(keep_or_publish)]
    bus.subscribe("b").subscribe(lambda event: None)
    publishers = [spawn(bus.publish, "a", 0)]
    assert in_hand.wait(PATIENCE)
    bus.publish("a", 1)  # the buffer is full
    for number, what in enumerate(("keep", "publish"), start=1):
        publishers.append(spawn(bus.publish, "b", what))
        while sum(fan.log.name == "b" for fan in list(bus._scheduler.waiting)) < number:
            pass
    go.set()
    with freeing(bus, *attached):
        for publisher in publishers:
            publisher.result(PATIENCE / 2)
        spawn(bus.close).result(PATIENCE / 2)
    assert outcomes == ["BufferOverflow"]


@pytest.mark.timeout(30)
def test_a_handler_whose_nested_publish_gave_up_does_not_wait_for_room(bus: EventBus, spawn: Spawn) -> None:
    """It is busy with another event when what makes room publishes to it: a delay, and no ring."""
    in_hand, door, gave_up, busy, gate = (threading.Event() for _ in range(5))
    seen = []

    def handle(event: Event[str]) -> None:
        seen.append(event.payload)
        if event.payload == "nest":
            with pytest.raises(AcknowledgementTimeout):
                bus.publish("x", timeout=0.01)
            gave_up.set()
        elif event.payload == "stay":
            busy.set()
            assert gate.wait(PATIENCE)

    def make_room(event: Event[Any]) -> None:
        if not in_hand.is_set():
            in_hand.set()
            assert door.wait(PATIENCE)
            bus.publish("a", "from behind the buffer")

    bus.subscribe("a").subscribe(handle)
    bus.subscribe("x").pipe(buffered(1)).subscribe(make_room)
    bus.publish("x")
    assert in_hand.wait(PATIENCE)
    bus.publish("x")
    publishers = [spawn(bus.publish, "a", "nest")]
    assert gave_up.wait(PATIENCE)  # while the event of "x" waits for room still
    publishers.append(spawn(bus.publish, "a", "stay"))
    assert busy.wait(PATIENCE)
    door.set()
    while not any(fan.log.name == "a" and fan.origin for fan in list(bus._scheduler.waiting)):
        assert bus.statistics().failed == 0
    gate.set()
    for publisher in publishers:
        publisher.result(PATIENCE)
    assert seen == ["nest", "stay", "from behind the buffer"]


@pytest.mark.timeout(30)
def test_what_a_buffer_drops_is_let_go_of_outside_its_lock(bus: EventBus, spawn: Spawn) -> None:
    users, gate, inside = threading.Lock(), threading.Event(), threading.Event()
    dying = threading.Event()

    class Payload:
        def __del__(self) -> None:
            dying.set()
            assert users.acquire(timeout=PATIENCE)
            users.release()

    def handle(event: Event[Any]) -> None:
        inside.set()
        assert gate.wait(PATIENCE)

    bus.subscribe("a").pipe(buffered(1, "drop_oldest")).subscribe(handle)
    bus.subscribe("b").pipe(buffered(9)).subscribe(lambda event: None)
    bus.publish("a")
    assert inside.wait(PATIENCE)
    bus.publish("a", Payload())

    def other() -> None:
        with users:
            assert dying.wait(PATIENCE)
            bus.publish("b")

    others = spawn(other)
    while not users.locked():
        pass
    bus.publish("a")  # drops it
    others.result(PATIENCE)
    gate.set()


@pytest.mark.timeout(30)
async def test_a_task_that_cannot_be_made_fails_the_publish(abus: EventBus) -> None:
    async def handle(event: Event[Any]) -> None: ...

    def refuse(loop: Any, coroutine: Any, **named: Any) -> Any:
        raise TypeError("no such task")

    abus.subscribe("a").subscribe(handle)
    abus.subscribe("b").pipe(map_async(handle)).subscribe()
    loop = asyncio.get_running_loop()
    loop.set_task_factory(refuse)
    try:
        for topic in ("a", "b"):
            with pytest.raises(PublishError) as caught:
                await abus.publish_async(topic)
            assert "no such task" in str(caught.value.exceptions[0])
    finally:
        loop.set_task_factory(None)


@pytest.mark.timeout(30)
@pytest.mark.rxbus_allow("failures")
def test_a_ring_is_seen_though_an_action_of_its_handler_publishes_too(
    bus: EventBus, spawn: Callable[..., Future[Any]]
) -> None:
    held, ring, action, go = (threading.Event() for _ in range(4))
    errors: list[BaseException] = []

    def hold(event: Event[Any]) -> None:
        if event.payload == "hold":
            held.set()
            assert action.wait(PATIENCE)
            bus.publish("a", 1)
            bus.publish("a", 2)  # waits for room, in the turn that the handler of the item in hand waits for

    def act(*_: Any) -> None:
        assert ring.wait(PATIENCE)
        bus.publish("c")

    def handle(event: Event[Any]) -> None:
        if event.payload == 0:
            bus.scheduler.schedule(act)
            with pytest.raises(PublishError) as caught:
                bus.publish("b", "ring")
            errors.extend(caught.value.exceptions)

    bus.subscribe("a").pipe(buffered(1)).subscribe(handle)
    bus.subscribe("b").subscribe(hold)
    bus.subscribe("b").subscribe(lambda event: ring.set() if event.payload == "ring" else None)
    bus.subscribe("c").subscribe(lambda event: (action.set(), go.wait(PATIENCE)))
    holding = spawn(bus.publish, "b", "hold")
    assert held.wait(PATIENCE)
    bus.publish("a", 0)
    holding.result(PATIENCE)
    go.set()
    assert [type(error) for error in errors] == [BufferOverflow]


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_s_error_that_nobody_handles_behind_observe_on_is_logged(bus: EventBus, kind: str) -> None:
    """By it the observer has left: its publisher does not wait for the far side any more."""
    with a_scheduler(kind, bus) as scheduler, expect_failure(ZeroDivisionError):
        payloads(bus).pipe(ops.map(lambda n: 1 // n), observe_on(scheduler)).subscribe()
        bus.publish("a", 0)


async def test_an_operator_s_error_that_nobody_handles_behind_map_async_is_logged(abus: EventBus) -> None:
    async def work(n: int) -> int:
        return n

    payloads(abus).pipe(ops.map(lambda n: 1 // n), map_async(work)).subscribe()
    with expect_failure(ZeroDivisionError):
        await abus.publish_async("a", 0)
        await asyncio.sleep(0)


@pytest.mark.parametrize("max_workers", [None, 0, 1])
async def test_a_publisher_does_not_wait_for_the_far_side_of_later_events(max_workers: int | None) -> None:
    """Behind `map_async`, where they queue up at a far side on the bus's own scheduler: it would wait for ever."""
    bus = EventBus(BlockingScheduler(max_workers))
    inside = [threading.Event(), threading.Event()]
    go = [threading.Event(), threading.Event()]
    emitted = asyncio.Event()

    async def emit(event: Event[int]) -> int:
        while not bus.scheduler.waiting:  # till the turn is over, which the far side would keep
            await asyncio.sleep(0)
        if event.payload == 1:
            asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, emitted.set)
        return event.payload

    def handle(n: int) -> None:
        inside[n].set()
        assert go[n].wait(PATIENCE)

    bus.subscribe("a").pipe(map_async(emit), observe_on(bus.scheduler)).subscribe(handle)
    first = asyncio.create_task(asyncio.to_thread(bus.publish, "a", 0))
    assert await asyncio.to_thread(inside[0].wait, PATIENCE)
    second = asyncio.create_task(asyncio.to_thread(bus.publish, "a", 1))
    await asyncio.wait_for(emitted.wait(), PATIENCE)
    go[0].set()
    assert await asyncio.to_thread(inside[1].wait, PATIENCE)
    try:
        await asyncio.wait_for(first, PATIENCE)
    finally:
        go[1].set()
    await second
    await asyncio.to_thread(bus.close)
