"""When the publisher's wait ends, per kind of operator.

    transforming, filtering   when the chain has returned
    combining, holding        when the value is held; the publish that releases it waits for the chain
    inner streams             when what they emit at once has passed the chain; hot ones are observers of their own
    time-shifting             when the value is queued; on `bus.scheduler` when the far side is done
    rxbus.operators           observe_on and map_async: when the far side is done; buffered: on entry

Nothing here sleeps to wait for something: what is to be waited for is a deferral that the test itself settles, and a
publish with a timeout shows that it waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest
import reactivex as rx
from reactivex import Observable, abc
from reactivex import operators as ops
from reactivex.scheduler import (
    CurrentThreadScheduler,
    EventLoopScheduler,
    ImmediateScheduler,
    NewThreadScheduler,
    ThreadPoolScheduler,
)
from reactivex.subject import Subject
from reactivex.testing import TestScheduler

from rxbus import (
    Acknowledgement,
    AcknowledgementTimeout,
    BlockingScheduler,
    Event,
    EventBus,
    PublishError,
    Receipt,
    defer,
    operators,
)
from rxbus.testing import expect_failure

PATIENCE = 10.0  # seconds for what is to happen
MEETING = 3.0  # seconds for what would never happen without the promise under test
SOON = 0.04  # seconds after which a publish that waits is looked at
SHIFT = 0.01  # seconds by which operators shift on the bus's scheduler

Operator = Callable[[Observable[Any]], Observable[Any]]
OnBus = Callable[[EventBus], Operator]
Names = dict[str, Any]


def parametrize(name: str, values: Names) -> pytest.MarkDecorator:
    """Runs a test for each of several named values."""
    return pytest.mark.parametrize(name, values.values(), ids=values)


def fail(value: Any) -> Any:
    """A handler, or a mapper, that fails."""
    raise ValueError(value)


def told(publish: Callable[[], object]) -> list[str]:
    """The failures that a publish reports."""
    with pytest.raises(PublishError) as raised:
        publish()
    return [repr(error) for error in raised.value.exceptions]


def attach(bus: EventBus, operator: Operator, *callbacks: Callable[[Any], object]) -> abc.DisposableBase:
    """Attaches callbacks to the payloads of topic `t` behind an operator."""
    return bus.subscribe("t").only_payload().pipe(operator).subscribe(*callbacks)


@pytest.fixture
def aside() -> Iterator[Executor]:
    """A second thread."""
    with ThreadPoolExecutor(1) as thread:
        yield thread


# -- what a publisher waits for: operators behind which a handler is as near as if it were attached directly

SYNCHRONOUS: dict[str, Operator] = {
    "map": ops.map(lambda v: v),
    "filter": ops.filter(lambda v: v > 0),
    "scan": ops.scan(lambda _, v: v, 0),
    "pairwise": lambda s: s.pipe(ops.start_with(0), ops.pairwise(), ops.map(lambda pair: pair[1])),
    "take": ops.take(9),
    "materialize": lambda s: s.pipe(ops.materialize(), ops.dematerialize()),
    "share": ops.share(),
    "replay": lambda s: s.pipe(ops.replay(buffer_size=1), ops.ref_count()),
    "group_by": lambda s: s.pipe(ops.group_by(lambda v: v % 2), ops.merge_all()),
    "window": lambda s: s.pipe(ops.window_with_count(2), ops.merge_all()),
    "full buffer": lambda s: s.pipe(ops.buffer_with_count(1), ops.map(lambda items: items[0])),
    "merge": lambda s: rx.merge(s.pipe(ops.start_with(0), ops.skip(1)), rx.never()),
    "zip": lambda s: s.pipe(ops.zip_with_iterable(range(9)), ops.map(lambda pair: pair[0])),
    "combine_latest": lambda s: rx.combine_latest(s, rx.of(0)).pipe(ops.map(lambda pair: pair[0])),
    "with_latest_from": lambda s: s.pipe(ops.with_latest_from(rx.of(0)), ops.map(lambda pair: pair[0])),
    "flat_map": ops.flat_map(lambda v: rx.of(v)),
    "concat_map": ops.concat_map(lambda v: rx.of(v)),
    "switch_latest": lambda s: s.pipe(ops.map(lambda v: rx.of(v)), ops.switch_latest()),
    "catch": lambda s: s.pipe(ops.flat_map(lambda v: rx.throw(KeyError()).pipe(ops.catch(rx.of(v))))),
    "observe_on the current thread": lambda s: s.pipe(ops.observe_on(CurrentThreadScheduler.singleton())),
    "observe_on at once": ops.observe_on(ImmediateScheduler.singleton()),
}

ON_BUS_SCHEDULER: dict[str, OnBus] = {
    "observe_on": lambda bus: ops.observe_on(bus.scheduler),
    "delay": lambda bus: ops.delay(SHIFT, scheduler=bus.scheduler),
    "subscribe_on": lambda bus: ops.flat_map(lambda v: rx.of(v).pipe(ops.subscribe_on(bus.scheduler))),
    "timer": lambda bus: ops.flat_map(lambda v: rx.timer(SHIFT, scheduler=bus.scheduler).pipe(ops.map(lambda _: v))),
    "delay, twice": lambda bus: (
        lambda s: s.pipe(ops.delay(SHIFT, scheduler=bus.scheduler), ops.delay(SHIFT, scheduler=bus.scheduler))
    ),
    "observe_on, then delay": lambda bus: (
        lambda s: s.pipe(ops.observe_on(bus.scheduler), ops.delay(SHIFT, scheduler=bus.scheduler))
    ),
}

POOL = ThreadPoolScheduler(8)

OWN_OBSERVE_ON: dict[str, OnBus] = {
    "NewThreadScheduler": lambda bus: operators.observe_on(NewThreadScheduler()),
    "ThreadPoolScheduler": lambda bus: operators.observe_on(POOL),
    "EventLoopScheduler": lambda bus: operators.observe_on(EventLoopScheduler(exit_if_empty=True)),
    "the bus's scheduler": lambda bus: operators.observe_on(bus.scheduler),
    "one behind another": lambda bus: lambda s: s.pipe(operators.observe_on(POOL), operators.observe_on(POOL)),
}

AWAITED: dict[str, OnBus] = {
    **{name: lambda bus, operator=operator: operator for name, operator in SYNCHRONOUS.items()},
    **{f"on bus.scheduler: {name}": operator for name, operator in ON_BUS_SCHEDULER.items()},
    **{f"rxbus observe_on: {name}": operator for name, operator in OWN_OBSERVE_ON.items()},
}


@parametrize("operator", AWAITED)
def test_publish_returns_when_the_handler_behind_has(threaded_bus: EventBus, operator: OnBus) -> None:
    seen: list[int] = []
    attach(threaded_bus, operator(threaded_bus), seen.append)
    for value in (1, 2, 3):
        receipt = threaded_bus.publish("t", value)
        assert (seen[-1], receipt.acknowledged, receipt.queued) == (value, 1, 0)
    assert seen == [1, 2, 3]


@parametrize("operator", AWAITED)
def test_publish_waits_for_what_the_handler_behind_defers(
    threaded_bus: EventBus, aside: Executor, operator: OnBus
) -> None:
    held: list[Acknowledgement] = []
    deferred = threading.Semaphore(0)
    attach(threaded_bus, operator(threaded_bus), lambda _: (held.append(defer()), deferred.release()))
    with pytest.raises(AcknowledgementTimeout):
        threaded_bus.publish("t", 1, timeout=SOON)
    second = aside.submit(threaded_bus.publish, "t", 2)
    for n in range(2):
        assert deferred.acquire(timeout=PATIENCE)
        held[n].ack()
    assert second.result(PATIENCE).acknowledged == 1


@parametrize("operator", AWAITED)
def test_a_failure_of_the_handler_behind_fails_the_publish(threaded_bus: EventBus, operator: OnBus) -> None:
    neighbour: list[int] = []
    attach(threaded_bus, operator(threaded_bus), fail)
    attach(threaded_bus, ops.map(lambda v: v), neighbour.append)
    assert told(lambda: threaded_bus.publish("t", 1)) == ["ValueError(1)"]
    assert neighbour == [1]


@parametrize("operator", AWAITED)
def test_a_handler_behind_may_publish_to_itself_and_is_not_re_entered(threaded_bus: EventBus, operator: OnBus) -> None:
    steps: list[tuple[str, int]] = []

    def handler(value: int) -> None:
        steps.append(("in", value))
        if value < 3:
            assert threaded_bus.publish("t", value + 1).queued == 1
        steps.append(("out", value))

    attach(threaded_bus, operator(threaded_bus), handler)
    threaded_bus.publish("t", 1)
    assert steps == [(way, value) for value in (1, 2, 3) for way in ("in", "out")]


@parametrize("operator", SYNCHRONOUS)
def test_a_chain_survives_a_failing_handler_where_it_does_on_a_bare_subject(
    any_bus: EventBus, operator: Operator
) -> None:
    """Not all do: behind an inner cold source, RxPY makes an `on_error` of a handler's failure."""

    def outcome(stream: Observable[Any], emit: Callable[[int], object]) -> list[object]:
        log: list[object] = []
        stream.pipe(operator).subscribe(lambda v: fail(v) if v == 1 else log.append(v))
        for value in (1, 2, 3):
            try:
                emit(value)
            except Exception as error:
                log += map(repr, getattr(error, "exceptions", [error]))
        return log

    bare: Subject[int] = Subject()
    on_bus = any_bus.subscribe("t").only_payload()
    assert outcome(on_bus, lambda value: any_bus.publish("t", value)) == outcome(bare, bare.on_next)


@parametrize("operator", OWN_OBSERVE_ON)
def test_behind_rxbus_observe_on_the_chain_survives_a_failing_handler(threaded_bus: EventBus, operator: OnBus) -> None:
    seen: list[int] = []
    attach(threaded_bus, operator(threaded_bus), lambda v: fail(v) if v == 1 else seen.append(v))
    assert told(lambda: threaded_bus.publish("t", 1)) == ["ValueError(1)"]
    threaded_bus.publish("t", 2)
    assert seen == [2]


def test_a_value_that_is_filtered_out_is_acknowledged(any_bus: EventBus) -> None:
    seen: list[int] = []
    attach(any_bus, ops.filter(lambda v: v > 1), seen.append)
    assert [any_bus.publish("t", value).acknowledged for value in (1, 2)] == [1, 1]
    assert seen == [2]


def test_handlers_behind_one_share_are_one_observer(any_bus: EventBus) -> None:
    seen: list[int] = []
    shared = any_bus.subscribe("t").only_payload().pipe(ops.share())
    for factor in (1, 10):
        shared.pipe(ops.map(lambda v, factor=factor: v * factor)).subscribe(seen.append)
    assert any_bus.publish("t", 1).acknowledged == 1
    assert any_bus.statistics().observers == 1
    assert seen == [1, 10]


# -- held: publish returns though the handler has not been called, and whoever releases it waits for the handler


def _go(bus: EventBus) -> Observable[Any]:
    return bus.subscribe("go").only_payload()


HOLDING: dict[str, tuple[OnBus, str]] = {  # and the topic whose next event releases what is held
    "buffer_with_count": (lambda bus: ops.buffer_with_count(2), "t"),
    "pairwise": (lambda bus: ops.pairwise(), "t"),
    "skip_last": (lambda bus: ops.skip_last(1), "t"),
    "zip with itself": (lambda bus: lambda s: rx.zip(s, s.pipe(ops.skip(1))), "t"),
    "buffer": (lambda bus: ops.buffer(_go(bus)), "go"),
    "zip": (lambda bus: lambda s: rx.zip(s, _go(bus)), "go"),
    "combine_latest": (lambda bus: lambda s: rx.combine_latest(s, _go(bus)), "go"),
    "sample": (lambda bus: ops.sample(_go(bus)), "go"),
    "delay_with_mapper": (lambda bus: ops.delay_with_mapper(lambda _: _go(bus)), "go"),
    "flat_map to a hot stream": (lambda bus: ops.flat_map(lambda _: _go(bus)), "go"),
    "concat_map to a hot stream": (lambda bus: ops.concat_map(lambda _: _go(bus)), "go"),
    "switch_latest of hot streams": (lambda bus: ops.flat_map_latest(lambda _: _go(bus)), "go"),
}


@pytest.mark.parametrize(("operator", "release"), HOLDING.values(), ids=HOLDING)
def test_what_an_operator_holds_is_acknowledged(any_bus: EventBus, operator: OnBus, release: str) -> None:
    seen: list[object] = []
    attach(any_bus, operator(any_bus), seen.append)
    receipt = any_bus.publish("t", 1)
    assert (seen, receipt.queued, any_bus.statistics().pending) == ([], 0, 0)
    any_bus.publish(release, 2)
    assert len(seen) == 1


@pytest.mark.parametrize(("operator", "release"), HOLDING.values(), ids=HOLDING)
def test_the_publish_that_releases_what_is_held_gets_the_failure(
    any_bus: EventBus, operator: OnBus, release: str
) -> None:
    attach(any_bus, operator(any_bus), lambda _: fail("late"))
    any_bus.publish("t", 1)
    assert told(lambda: any_bus.publish(release, 2)) == ["ValueError('late')"]


# -- shifted in time on a scheduler that is not the bus's: acknowledged when queued

FOREIGN: dict[str, Callable[[TestScheduler], Operator]] = {
    "delay": lambda time: ops.delay(10.0, scheduler=time),
    "observe_on": lambda time: ops.observe_on(time),
    "debounce": lambda time: ops.debounce(10.0, scheduler=time),
    "sample": lambda time: ops.sample(10.0, scheduler=time),
    "buffer_with_time": lambda time: (
        lambda s: s.pipe(ops.buffer_with_time(10.0, scheduler=time), ops.filter(bool), ops.map(lambda items: items[-1]))
    ),
    "timer": lambda time: ops.flat_map_latest(lambda v: rx.timer(10.0, scheduler=time).pipe(ops.map(lambda _: v))),
    "subscribe_on": lambda time: ops.flat_map_latest(lambda v: rx.of(v).pipe(ops.subscribe_on(time))),
}


@parametrize("operator", FOREIGN)
def test_what_is_queued_on_a_foreign_scheduler_is_acknowledged(
    any_bus: EventBus, operator: Callable[[TestScheduler], Operator]
) -> None:
    time = TestScheduler()
    seen: list[int] = []
    attach(any_bus, operator(time), seen.append)
    receipts = [any_bus.publish("t", value) for value in (1, 2)]
    assert [receipt.acknowledged for receipt in receipts] == [1, 1]
    assert seen == []
    time.advance_by(20.0)
    assert seen[-1] == 2


def test_stock_observe_on_another_thread_does_not_hold_the_publisher(any_bus: EventBus) -> None:
    go_on, done = threading.Event(), threading.Event()
    attach(any_bus, ops.observe_on(NewThreadScheduler()), lambda _: go_on.wait(PATIENCE) and done.set())
    assert any_bus.publish("t", 1).acknowledged == 1
    assert not done.is_set()
    go_on.set()
    assert done.wait(PATIENCE)


# -- shifted on the bus's scheduler


@parametrize("operator", {**ON_BUS_SCHEDULER, **OWN_OBSERVE_ON})
def test_with_workers_the_far_side_is_another_thread(bus: EventBus, operator: OnBus) -> None:
    threads: list[int] = []
    attach(bus, operator(bus), lambda _: threads.append(threading.get_ident()))
    bus.publish("t", 1)
    assert threads != [threading.get_ident()]


@parametrize("operator", ON_BUS_SCHEDULER)
def test_without_workers_the_far_side_is_the_publishing_thread(operator: OnBus) -> None:
    threads: list[int] = []
    with EventBus(BlockingScheduler(max_workers=0)) as bus:
        attach(bus, operator(bus), lambda _: threads.append(threading.get_ident()))
        bus.publish("t", 1)
    assert threads == [threading.get_ident()]


@parametrize("operator", {**ON_BUS_SCHEDULER, **OWN_OBSERVE_ON})
def test_far_sides_of_several_observers_work_at_the_same_time(bus: EventBus, operator: OnBus) -> None:
    met: list[int] = []
    meeting = threading.Barrier(4, action=lambda: met.append(4))
    for _ in range(4):
        attach(bus, operator(bus), lambda _: meeting.wait(MEETING))
    bus.publish("t", 1)
    assert met == [4]


@parametrize("operator", {**ON_BUS_SCHEDULER, **OWN_OBSERVE_ON})
def test_with_many_publishers_nothing_is_lost_doubled_or_entered_twice(threaded_bus: EventBus, operator: OnBus) -> None:
    count = 8
    seen: list[tuple[int, int]] = []
    inside = threading.Lock()

    def handler(value: tuple[int, int]) -> None:
        assert inside.acquire(blocking=False)
        seen.append(value)
        inside.release()

    attach(threaded_bus, operator(threaded_bus), handler)
    in_parallel(lambda publisher: [threaded_bus.publish("t", (publisher, n)) for n in range(count)], 2)
    for publisher in range(2):
        assert [n for who, n in seen if who == publisher] == list(range(count))


def in_parallel(work: Callable[[int], object], threads: int) -> None:
    """Runs some work in several threads that begin together, and raises what fails in them."""
    begin = threading.Barrier(threads)
    failed: list[BaseException] = []

    def run(number: int) -> None:
        begin.wait(PATIENCE)
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(PATIENCE)
    assert [thread for thread in running if thread.is_alive()] == []
    assert failed == []


def test_a_whole_chain_may_be_attached_on_bus_scheduler(any_bus: EventBus) -> None:
    seen: list[int] = []
    attach(any_bus, ops.subscribe_on(any_bus.scheduler), seen.append)
    any_bus.scheduler.join()
    assert any_bus.publish("t", 1).acknowledged == 1
    assert seen == [1]


@parametrize("operator", {"observe_on": ON_BUS_SCHEDULER["observe_on"], "delay": ON_BUS_SCHEDULER["delay"]})
def test_stock_far_sides_are_broken_by_a_failing_handler(any_bus: EventBus, operator: OnBus) -> None:
    """RxPY's own hand on nothing more, without a word, on any scheduler; `rxbus.operators.observe_on` goes on."""
    seen: list[int] = []
    attach(any_bus, operator(any_bus), lambda v: fail(v) if v == 1 else seen.append(v))
    assert told(lambda: any_bus.publish("t", 1)) == ["ValueError(1)"]
    any_bus.publish("t", 2)
    assert seen == []


# -- guards: on the bus's scheduler the publisher waits for the guard itself


def test_a_debounce_on_bus_scheduler_lets_everything_pass(any_bus: EventBus) -> None:
    """Each publish waits until the time of silence is over; nothing can come in between."""
    seen: list[int] = []
    attach(any_bus, ops.debounce(SHIFT, scheduler=any_bus.scheduler), seen.append)
    for value in (1, 2, 3):
        any_bus.publish("t", value)
        assert seen[-1:] == [value]
    assert seen == [1, 2, 3]


def test_a_debounce_on_a_scheduler_of_its_own_does_its_work(any_bus: EventBus) -> None:
    time = TestScheduler()
    seen: list[int] = []
    attach(any_bus, ops.debounce(10.0, scheduler=time), seen.append)
    for value in (1, 2, 3):
        any_bus.publish("t", value)
    time.advance_by(20.0)
    assert seen == [3]


def test_a_timeout_on_bus_scheduler_always_strikes(any_bus: EventBus) -> None:
    """The publisher waits for the timer that its own value has set, so no value can come in time."""
    errors: list[Exception] = []
    attach(any_bus, ops.timeout(SHIFT, scheduler=any_bus.scheduler), lambda _: None, errors.append)
    any_bus.publish("t", 1)
    assert [str(error) for error in errors] == ["Timeout"]


def test_a_timeout_on_a_scheduler_of_its_own_strikes_when_nothing_comes(any_bus: EventBus) -> None:
    time = TestScheduler()
    errors: list[Exception] = []
    attach(any_bus, ops.timeout(10.0, scheduler=time), lambda _: None, errors.append)
    any_bus.publish("t", 1)
    assert errors == []
    time.advance_by(20.0)
    assert [str(error) for error in errors] == ["Timeout"]


TICKING: dict[str, Callable[[abc.SchedulerBase], Observable[Any]]] = {
    "interval": lambda scheduler: rx.interval(SHIFT, scheduler=scheduler),
    "sample": lambda scheduler: rx.never().pipe(ops.sample(SHIFT, scheduler=scheduler)),
    "buffer_with_time": lambda scheduler: rx.never().pipe(ops.buffer_with_time(SHIFT, scheduler=scheduler)),
}


@parametrize("ticking", TICKING)
def test_what_ticks_on_bus_scheduler_keeps_the_delivery_that_attached_it_open(
    any_bus: EventBus, aside: Executor, ticking: Callable[[abc.SchedulerBase], Observable[Any]]
) -> None:
    attached = attach(any_bus, ops.flat_map(lambda _: ticking(any_bus.scheduler)), lambda _: None)
    with pytest.raises(AcknowledgementTimeout):
        any_bus.publish("t", 1, timeout=SOON)
    second = aside.submit(any_bus.publish, "t", 2)
    attached.dispose()
    assert second.result(PATIENCE).queued == 0


@parametrize("ticking", TICKING)
def test_what_ticks_on_a_scheduler_of_its_own_does_not(
    any_bus: EventBus, ticking: Callable[[abc.SchedulerBase], Observable[Any]]
) -> None:
    attach(any_bus, ops.flat_map(lambda _: ticking(TestScheduler())), lambda _: None)
    assert any_bus.publish("t", 1).acknowledged == 1


def test_an_interval_that_ends_is_waited_for(any_bus: EventBus) -> None:
    seen: list[int] = []
    ticks = rx.interval(SHIFT, scheduler=any_bus.scheduler).pipe(ops.take(3))
    attach(any_bus, ops.flat_map(lambda _: ticks), seen.append)
    any_bus.publish("t", 1)
    assert seen == [0, 1, 2]


# -- map_async and buffered


async def test_map_async_is_waited_for(bus: EventBus) -> None:
    go_on = asyncio.Event()
    seen: list[int] = []

    async def work(value: int) -> int:
        await go_on.wait()
        return value * 10

    attach(bus, operators.map_async(work), seen.append)
    with pytest.raises(AcknowledgementTimeout):
        await bus.publish_async("t", 1, timeout=SOON)
    assert seen == []
    go_on.set()
    await bus.publish_async("t", 2, timeout=PATIENCE)
    assert seen == [10, 20]


async def test_what_follows_map_async_can_fail_the_publish(bus: EventBus) -> None:
    async def work(value: int) -> int:
        return value * 10

    attach(bus, operators.map_async(work), fail)
    with pytest.raises(PublishError) as raised:
        await bus.publish_async("t", 1, timeout=PATIENCE)
    assert [repr(error) for error in raised.value.exceptions] == ["ValueError(10)"]


def test_buffered_acknowledges_on_entry(bus: EventBus) -> None:
    go_on, done = threading.Event(), threading.Event()
    seen: list[int] = []

    def handler(value: int) -> None:
        go_on.wait(PATIENCE)
        seen.append(value)
        if value == 2:
            done.set()

    attach(bus, operators.buffered(2), handler)
    assert [bus.publish("t", value).acknowledged for value in (1, 2)] == [1, 1]
    assert seen == []
    go_on.set()
    assert done.wait(PATIENCE)
    assert seen == [1, 2]


def test_a_failure_behind_buffered_is_logged(bus: EventBus) -> None:
    attach(bus, operators.buffered(1), fail)
    with expect_failure(ValueError) as failed:
        assert bus.publish("t", 1).acknowledged == 1
    assert repr(failed.error) == "ValueError(1)"


# -- errors inside operators

BROKEN: dict[str, OnBus] = {
    "map": lambda bus: ops.map(fail),
    "filter": lambda bus: ops.filter(fail),
    "scan": lambda bus: ops.scan(lambda _, v: fail(v), 0),
    "flat_map": lambda bus: ops.flat_map(fail),
    "inner stream": lambda bus: ops.flat_map(lambda v: rx.throw(ValueError(v))),
    "behind merge": lambda bus: lambda s: rx.merge(s, rx.never()).pipe(ops.map(fail)),
    "behind observe_on(bus.scheduler)": lambda bus: lambda s: s.pipe(ops.observe_on(bus.scheduler), ops.map(fail)),
    "behind delay(bus.scheduler)": lambda bus: lambda s: ON_BUS_SCHEDULER["delay"](bus)(s).pipe(ops.map(fail)),
    "behind rxbus's observe_on": lambda bus: lambda s: s.pipe(operators.observe_on(POOL), ops.map(fail)),
}


@parametrize("operator", BROKEN)
def test_an_operator_error_that_nobody_handles_fails_the_publish_and_ends_the_chain(
    threaded_bus: EventBus, operator: OnBus
) -> None:
    neighbour: list[int] = []
    attach(threaded_bus, operator(threaded_bus), lambda _: None)
    attach(threaded_bus, ops.map(lambda v: v), neighbour.append)
    assert told(lambda: threaded_bus.publish("t", 1)) == ["ValueError(1)"]
    assert threaded_bus.publish("t", 2).acknowledged == 1
    assert neighbour == [1, 2]
    assert threaded_bus.statistics().observers == 1


@parametrize("operator", BROKEN)
def test_an_operator_error_that_is_handled_fails_nothing_and_ends_the_chain(
    threaded_bus: EventBus, operator: OnBus
) -> None:
    errors: list[str] = []
    attach(threaded_bus, operator(threaded_bus), lambda _: None, lambda error: errors.append(repr(error)))
    assert threaded_bus.publish("t", 1).acknowledged == 1
    assert errors == ["ValueError(1)"]
    assert threaded_bus.publish("t", 2).acknowledged == 0


@parametrize("operator", BROKEN)
def test_an_operator_error_that_is_caught_in_the_chain_fails_nothing(threaded_bus: EventBus, operator: OnBus) -> None:
    seen: list[str] = []
    attach(
        threaded_bus,
        lambda s: operator(threaded_bus)(s).pipe(ops.catch(lambda error, _: rx.of(repr(error)))),
        seen.append,
    )
    threaded_bus.publish("t", 1)
    assert seen == ["ValueError(1)"]


def test_a_handler_of_errors_that_fails_fails_the_publish(any_bus: EventBus) -> None:
    attach(any_bus, ops.map(fail), lambda _: None, lambda error: fail("on_error"))
    assert told(lambda: any_bus.publish("t", 1)) == ["ValueError('on_error')"]


def test_retry_attaches_again_and_gets_the_next_event(any_bus: EventBus) -> None:
    seen: list[int] = []
    attach(any_bus, lambda s: s.pipe(ops.map(lambda v: fail(v) if v == 1 else v), ops.retry()), seen.append)
    assert [any_bus.publish("t", value).acknowledged for value in (1, 2)] == [1, 1]
    assert seen == [2]


# -- a cold source that publishes while it is being subscribed to

INNER: dict[str, Callable[[EventBus, Callable[[int], object]], object]] = {
    "flat_map": lambda bus, note: attach(bus, ops.flat_map(lambda v: rx.of(10 * v, 10 * v + 1)), note),
    "concat_map": lambda bus, note: attach(bus, ops.concat_map(lambda v: rx.of(10 * v, 10 * v + 1)), note),
    "start_with": lambda bus, note: attach(
        bus, ops.flat_map_latest(lambda v: rx.of(10 * v + 1).pipe(ops.start_with(10 * v))), note
    ),
    "subscribe in the handler": lambda bus, note: attach(
        bus, ops.map(lambda v: rx.of(10 * v, 10 * v + 1)), lambda inner: inner.subscribe(note)
    ),
    "replay": lambda bus, note: attach(
        bus,
        lambda s: s.pipe(ops.replay(buffer_size=1), ops.ref_count(), ops.flat_map(lambda v: rx.of(10 * v, 10 * v + 1))),
        note,
    ),
    "observe_on the current thread": lambda bus, note: attach(
        bus,
        lambda s: s.pipe(
            ops.flat_map(lambda v: rx.of(10 * v, 10 * v + 1)), ops.observe_on(CurrentThreadScheduler.singleton())
        ),
        note,
    ),
    "observe_on(bus.scheduler)": lambda bus, note: attach(
        bus, lambda s: s.pipe(ops.observe_on(bus.scheduler), ops.flat_map(lambda v: rx.of(10 * v, 10 * v + 1))), note
    ),
    "another cold source that publishes": lambda bus, note: (
        attach(bus, ops.map(lambda v: rx.of(10 * v, 10 * v + 1)), lambda s: s.subscribe(bus.publisher("inner"))),
        bus.subscribe("inner").only_payload().pipe(ops.flat_map(lambda v: rx.of(v))).subscribe(note),
    ),
}

FEEDING: dict[str, Callable[[EventBus, Observable[int]], object]] = {
    "publisher": lambda bus, source: source.subscribe(bus.publisher("t")),
    "topic": lambda bus, source: source.pipe(ops.map(lambda v: Event("t", v, v, 0.0))).subscribe(bus.topic("t")),
    "publish in a handler": lambda bus, source: source.subscribe(lambda v: bus.publish("t", v)),
    "publish in an operator": lambda bus, source: source.pipe(ops.map(lambda v: bus.publish("t", v))).subscribe(),
    "publish with a timeout": lambda bus, source: source.subscribe(lambda v: bus.publish("t", v, timeout=PATIENCE)),
}


@pytest.mark.parametrize("observers", [1, 2])
@parametrize("feed", FEEDING)
@parametrize("inner", INNER)
def test_what_handlers_subscribe_to_has_emitted_before_a_cold_source_goes_on(
    any_bus: EventBus,
    inner: Callable[[EventBus, Callable[[int], object]], object],
    feed: Callable[[EventBus, Observable[int]], object],
    observers: int,
) -> None:
    log: list[object] = []
    inner(any_bus, log.append)
    for _ in range(observers - 1):
        attach(any_bus, ops.filter(lambda _: False), fail)
    feed(any_bus, rx.of(1, 2, 3).pipe(ops.do_action(lambda v: log.append(f"source {v}"))))
    assert log == ["source 1", 10, 11, "source 2", 20, 21, "source 3", 30, 31]


def test_a_cold_source_is_slowed_down_to_the_pace_of_its_observers(any_bus: EventBus) -> None:
    log: list[str] = []
    for n in range(2):
        attach(any_bus, ops.observe_on(any_bus.scheduler), lambda v, n=n: log.append(f"{n} got {v}"))
    rx.of(1, 2).pipe(ops.do_action(lambda v: log.append(f"source {v}"))).subscribe(any_bus.publisher("t"))
    assert [log[0], log[3]] == ["source 1", "source 2"]
    assert [sorted(log[1:3]), sorted(log[4:])] == [["0 got 1", "1 got 1"], ["0 got 2", "1 got 2"]]


def test_a_failure_stops_a_cold_source_that_publishes(any_bus: EventBus) -> None:
    log: list[int] = []
    attach(any_bus, ops.map(lambda v: v), lambda v: fail(v) if v == 2 else log.append(v))
    assert told(lambda: rx.of(1, 2, 3).subscribe(lambda v: any_bus.publish("t", v))) == ["ValueError(2)"]
    assert log == [1]


def test_what_a_cold_source_s_handler_attaches_are_observers_of_their_own(bus: EventBus) -> None:
    """Each `subscribe` in it is an outermost one of its own: none of them is behind an operator."""
    met: list[int] = []
    meeting = threading.Barrier(3, action=lambda: met.append(3))
    rx.of(1, 2, 3).subscribe(lambda _: bus.subscribe("t").subscribe(lambda _: meeting.wait(MEETING)))
    with contextlib.suppress(PublishError):
        bus.publish("t", 1)
    assert (bus.statistics().observers, met) == (3, [3])


# -- attached inside a delivery: observers of their own

FLATTENING: dict[str, tuple[Operator, int, int]] = {  # inner observers after one outer event, and after two
    "flat_map": (ops.merge_all(), 1, 2),
    "switch_latest": (ops.switch_latest(), 1, 1),
    "concat_map": (ops.merge(max_concurrent=1), 1, 1),
    "exclusive": (ops.exclusive(), 1, 1),
}


@pytest.mark.parametrize(("flatten", "one", "two"), FLATTENING.values(), ids=FLATTENING)
@pytest.mark.rxbus_allow("failures")
def test_inner_subscriptions_are_observers_of_their_own(
    any_bus: EventBus, flatten: Operator, one: int, two: int
) -> None:
    seen: list[object] = []
    attach(any_bus, lambda s: s.pipe(ops.map(lambda _: any_bus.subscribe("inner")), flatten), seen.append)
    for inner in (one, two):
        assert any_bus.publish("t").acknowledged == 1
        assert any_bus.publish("inner").acknowledged == inner
        assert any_bus.statistics().observers == 1 + inner
    assert len(seen) == one + two


def test_inner_subscriptions_are_that_too_where_a_cold_source_publishes(any_bus: EventBus) -> None:
    seen: list[object] = []
    attach(any_bus, ops.flat_map(lambda _: any_bus.subscribe("inner")), seen.append)
    rx.of(1, 2).subscribe(any_bus.publisher("t"))
    assert any_bus.statistics().observers == 3
    assert any_bus.publish("inner").acknowledged == len(seen) == 2


@pytest.mark.parametrize("flatten", [FLATTENING[name][0] for name in ("flat_map", "switch_latest")])
def test_the_outer_observer_is_free_while_an_inner_one_is_busy(bus: EventBus, flatten: Operator) -> None:
    receipts: list[Receipt] = []
    meeting = threading.Barrier(2)
    done = threading.Event()

    def neighbour(_: object) -> None:
        meeting.wait(MEETING)
        receipts.append(bus.publish("t"))
        done.set()

    attach(
        bus,
        lambda s: s.pipe(ops.map(lambda _: bus.subscribe("inner")), flatten),
        lambda _: (meeting.wait(MEETING), done.wait(MEETING)),
    )
    bus.publish("t")
    bus.subscribe("inner").subscribe(neighbour)
    bus.publish("inner")
    assert [(receipt.acknowledged, receipt.queued) for receipt in receipts] == [(1, 0)]


def test_an_inner_subscription_on_the_same_topic_gets_the_next_event_first(any_bus: EventBus) -> None:
    seen: list[int] = []
    same = any_bus.subscribe("t").only_payload()
    attach(any_bus, lambda s: s.pipe(ops.take(1), ops.flat_map(lambda _: same)), seen.append)
    for value in (1, 2, 3):
        any_bus.publish("t", value)
    assert seen == [2, 3]


# -- several topics that feed one observer

Two = Callable[[Observable[Any], Observable[Any]], Observable[Any]]

JOINED: dict[str, Two] = {
    "merge": lambda a, b: rx.merge(a, b),
    "merge, one attached later": lambda a, b: rx.merge(a.pipe(ops.start_with(0)), b),
    "merge, the other attached later": lambda a, b: rx.merge(a, b.pipe(ops.start_with(0))),
    "combine_latest": lambda a, b: rx.combine_latest(a.pipe(ops.start_with(0)), b.pipe(ops.start_with(0))),
    "with_latest_from": lambda a, b: a.pipe(ops.with_latest_from(b.pipe(ops.start_with(0)))),
    "take_until": lambda a, b: a.pipe(ops.take_until(b)),
    "share of a merge": lambda a, b: rx.merge(a.pipe(ops.start_with(0)), b).pipe(ops.share()),
}


@parametrize("join", JOINED)
def test_what_several_topics_feed_is_one_observer(bus: EventBus, join: Two) -> None:
    """While it is inside for topic `a`, it is busy for topic `b` too: another thread's publish leaves it mail."""
    queued: list[int] = []
    meeting = threading.Barrier(2)
    done = threading.Event()
    armed = threading.Event()

    def handler(_: object) -> None:
        if armed.is_set() and not done.is_set():
            meeting.wait(MEETING)
            done.wait(MEETING)

    def neighbour(_: object) -> None:
        meeting.wait(MEETING)
        queued.append(bus.publish("b", 2).queued)
        done.set()

    join(bus.subscribe("a").only_payload(), bus.subscribe("b").only_payload()).subscribe(handler)
    assert bus.statistics().observers == 1
    bus.subscribe("a").subscribe(neighbour)
    armed.set()
    bus.publish("a", 1)
    assert queued == [1]


STEPWISE: dict[str, tuple[Callable[[EventBus], Operator], str | None]] = {  # how `a` is attached, and what completes it
    "start_with": (lambda bus: ops.start_with(0), None),
    "subscribe_on": (lambda bus: ops.subscribe_on(bus.scheduler), None),
    "start_with on a scheduler": (
        lambda bus: lambda a: a.pipe(ops.start_with(0), ops.subscribe_on(bus.scheduler)),
        None,
    ),
    "concat": (lambda bus: lambda a: rx.concat(_go(bus), a), "go"),
}


@pytest.mark.parametrize(("later", "complete"), STEPWISE.values(), ids=STEPWISE)
def test_an_observer_that_is_attached_in_steps_is_one_and_is_not_re_entered(
    any_bus: EventBus, later: Callable[[EventBus], Operator], complete: str | None
) -> None:
    """The steps are none of a delivery: what attaches later is on a scheduler, or waits for another to complete."""
    steps: list[tuple[str, int]] = []

    def handler(value: int) -> None:
        steps.append(("in", value))
        if value == 1:
            any_bus.publish("b", 2)
        steps.append(("out", value))

    a, b = (any_bus.subscribe(name).only_payload() for name in "ab")
    rx.merge(later(any_bus)(a), b).subscribe(handler)
    any_bus.scheduler.join()
    if complete:
        any_bus.topic(complete).on_completed()
    any_bus.publish("a", 1)
    assert steps[-4:] == [("in", 1), ("out", 1), ("in", 2), ("out", 2)]


def test_a_merge_is_never_entered_twice_and_loses_nothing(any_bus: EventBus) -> None:
    count = 100
    seen: list[tuple[int, int]] = []
    inside = threading.Lock()

    def handler(value: tuple[int, int]) -> None:
        assert inside.acquire(blocking=False)
        seen.append(value)
        inside.release()

    a, b = (any_bus.subscribe(name).only_payload() for name in "ab")
    rx.merge(a.pipe(ops.start_with((2, 0))), b).subscribe(handler)
    in_parallel(lambda topic: [any_bus.publish("ab"[topic], (topic, n)) for n in range(count)], 2)
    assert seen[0] == (2, 0)
    for topic in range(2):
        assert [n for who, n in seen if who == topic] == list(range(count))


# -- operators that call what follows under the lock of their source (with_latest_from, delay, ...)

SOURCES: dict[str, Callable[[EventBus], list[Observable[Any]]]] = {
    "two subscriptions": lambda bus: [bus.subscribe("t"), bus.subscribe("t")],
    "one subscription": lambda bus: [bus.subscribe("t")] * 2,
    "payloads of one subscription": lambda bus: [source.only_payload() for source in [bus.subscribe("t")] * 2],
    "the topic": lambda bus: [bus.topic("t")] * 2,
}

LOCKING: dict[str, OnBus] = {
    "with_latest_from": lambda bus: ops.with_latest_from(rx.of(0)),
    "delay": lambda bus: ops.delay(SHIFT, scheduler=bus.scheduler),
}


@parametrize("sources", SOURCES)
@parametrize("operator", LOCKING)
def test_two_chains_on_one_source_run_in_parallel(
    bus: EventBus, operator: OnBus, sources: Callable[[EventBus], list[Observable[Any]]]
) -> None:
    """They share no operator, so neither may wait for the other."""
    met: list[int] = []
    meeting = threading.Barrier(2, action=lambda: met.append(2))
    for source in sources(bus):
        source.pipe(operator(bus)).subscribe(lambda _: meeting.wait(MEETING))
    with contextlib.suppress(PublishError):
        bus.publish("t", 1)
    assert met == [2]


@parametrize("operator", LOCKING)
def test_feeding_a_topic_does_not_wait_for_the_lock_of_a_chain_on_it(bus: EventBus, operator: OnBus) -> None:
    """Else two handlers, one behind such an operator and one that feeds the topic, could wait for each other."""
    in_time: list[bool] = []
    meeting = threading.Barrier(2)
    fed = threading.Event()
    topic = bus.topic("t")

    def handler(_: object) -> None:
        if not in_time:
            meeting.wait(MEETING)
            in_time.append(fed.wait(MEETING))

    def neighbour(value: object) -> None:
        if value == 1:
            meeting.wait(MEETING)
            topic.on_next(2)
            fed.set()

    topic.pipe(operator(bus)).subscribe(handler)
    topic.subscribe(neighbour)
    topic.on_next(1)
    assert in_time == [True]
