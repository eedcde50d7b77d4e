"""What closing waits for besides the lanes: what is scheduled behind buffers, and coroutines."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import reactivex as rx
from reactivex import Observable
from reactivex import operators as ops

from rxbus import AcknowledgementTimeout, BlockingScheduler, BusClosed, EventBus, PublishError, Receipt
from rxbus._closing import _Closing
from rxbus._watch import Watch
from rxbus.operators import buffered, map_async, observe_on
from rxbus.testing import expect_failure
from tests.opener import Opener

PATIENCE = 10.0
MOMENT = 0.05  # seconds in which something that must not happen is given the chance to

Spawn = Callable[..., Future[Any]]
Behind = Callable[[EventBus], Callable[[Observable[Any]], Observable[Any]]]


def own_observe_on(bus: EventBus) -> Callable[[Observable[Any]], Observable[Any]]:
    return observe_on(bus.scheduler)


def rx_observe_on(bus: EventBus) -> Callable[[Observable[Any]], Observable[Any]]:
    return ops.observe_on(bus.scheduler)


def inner_stream(bus: EventBus) -> Callable[[Observable[Any]], Observable[Any]]:
    return ops.concat_map(lambda item: rx.of(item).pipe(ops.subscribe_on(bus.scheduler)))


def twice(bus: EventBus) -> Callable[[Observable[Any]], Observable[Any]]:
    return rx.compose(observe_on(bus.scheduler), buffered(1), observe_on(bus.scheduler))


@pytest.mark.parametrize("behind", [own_observe_on, rx_observe_on, inner_stream, twice])
@pytest.mark.parametrize("max_workers", [None, 0, 1, 2])
def test_what_is_scheduled_behind_a_buffer_is_done(max_workers: int | None, behind: Behind, spawn: Spawn) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    log: list[Any] = []
    go, inside = threading.Event(), threading.Event()

    def handler(item: int) -> None:
        inside.set()
        assert go.wait(PATIENCE)
        log.append(item)

    chain = bus.subscribe("a").only_payload().pipe(buffered(6), behind(bus))
    chain.subscribe(handler, on_completed=lambda: log.append("completed"))
    if max_workers == 0:
        go.set()  # the publisher does all itself
    for n in range(6):
        bus.publish("a", n)
    assert inside.wait(PATIENCE)
    closing = spawn(bus.close)
    if max_workers != 0:
        with pytest.raises(TimeoutError):
            closing.result(MOMENT)
    go.set()
    closing.result(PATIENCE)
    assert log == [0, 1, 2, 3, 4, 5, "completed"]


def test_what_fails_there_is_logged_and_closing_ends() -> None:
    def fail(event: Any) -> None:
        raise ValueError("behind")

    bus = EventBus()
    bus.subscribe("a").pipe(buffered(1), observe_on(bus.scheduler)).subscribe(fail)
    with expect_failure(ValueError):
        bus.publish("a")
        bus.close()


def test_what_is_timed_there_is_given_up() -> None:
    """It may be periodic, and closing would never end."""
    log: list[Any] = []
    with EventBus() as bus:
        ticks = rx.interval(3600, bus.scheduler)
        bus.subscribe("a").pipe(buffered(1), ops.flat_map(lambda _: ticks)).subscribe(log.append)
        bus.publish("a")
    assert log == []


def test_without_workers_closing_waits_for_the_thread_that_hands_on(spawn: Spawn) -> None:
    bus = EventBus(BlockingScheduler(0))
    receipts: list[Receipt] = []
    go, inside = threading.Event(), threading.Event()

    def handler(item: int) -> None:
        inside.set()
        assert go.wait(PATIENCE)
        receipts.append(bus.publish("b", item))

    bus.subscribe("a").only_payload().pipe(buffered(1)).subscribe(handler)
    bus.subscribe("b").subscribe(lambda event: None)
    publisher = spawn(bus.publish, "a", 1)
    assert inside.wait(PATIENCE)
    closing = spawn(bus.close)
    with pytest.raises(TimeoutError):
        closing.result(MOMENT)
    go.set()
    closing.result(PATIENCE)
    publisher.result(PATIENCE)
    assert [receipt.acknowledged for receipt in receipts] == [1]


@pytest.mark.parametrize("looker", ["_outside", "look"])  # of closing, and of the monitor
async def test_coroutines_may_end_while_they_are_counted(looker: str) -> None:
    """Until Python 3.12, the collector may run in the midst of `list(a_dict.items())`, and other threads meanwhile."""
    bus = EventBus()
    outside = bus.scheduler.outside
    go = asyncio.Event()

    async def work(event: Any) -> None:
        await go.wait()

    def strike(phase: str, info: dict[str, int]) -> None:
        if sys._getframe(1).f_code.co_name == looker and len(outside) > 1:
            next(iter(outside)).ack()

    for _ in range(100):
        bus.subscribe("a").subscribe(work)
    publishing = asyncio.create_task(bus.publish_async("a"))
    while len(outside) < 100:
        await asyncio.sleep(0)
    closing = _Closing(bus._registry, bus._hub, bus._crew, [])
    look = closing._outside if looker == "_outside" else Watch(bus.scheduler, 1.0, 1.0).look
    kept = [(None, n) for n in range(3000)]  # what else Python would use again, and have nothing to collect for
    before = gc.get_threshold()
    try:
        gc.callbacks.append(strike)
        gc.set_threshold(1)
        look()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(strike)
    del kept
    go.set()
    assert (await publishing).acknowledged == 100
    await asyncio.to_thread(bus.close)


@pytest.mark.parametrize("far", [False, True])
async def test_coroutines_behind_a_buffer_are_waited_for(far: bool) -> None:
    log: list[Any] = []
    go = asyncio.Event()

    async def work(item: int) -> int:
        await go.wait()
        return item

    async with EventBus() as bus:
        chain = bus.subscribe("a").only_payload().pipe(buffered(6), map_async(work))
        if far:
            chain = chain.pipe(observe_on(bus.scheduler))
        chain.subscribe(log.append, on_completed=lambda: log.append("completed"))
        for n in range(6):
            await bus.publish_async("a", n)
        closing = asyncio.create_task(asyncio.to_thread(bus.close))
        done, _ = await asyncio.wait({closing}, timeout=MOMENT)
        assert not done
        go.set()
        await asyncio.wait_for(closing, PATIENCE)
        assert log == [0, 1, 2, 3, 4, 5, "completed"]


async def test_a_publish_that_waits_for_a_coroutine_is_acknowledged_when_that_is_done() -> None:
    """It is not a deferral, which would count as given."""
    log: list[Any] = []
    go, begun = asyncio.Event(), asyncio.Event()

    async def work(item: int) -> int:
        begun.set()
        await go.wait()
        return item

    bus = EventBus()
    bus.subscribe("a").only_payload().pipe(map_async(work)).subscribe(log.append)
    publisher = asyncio.create_task(bus.publish_async("a", 1))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    closing = asyncio.create_task(asyncio.to_thread(bus.close))
    done, _ = await asyncio.wait({closing, publisher}, timeout=MOMENT)
    assert not done
    go.set()
    receipt = await asyncio.wait_for(publisher, PATIENCE)
    assert (receipt.acknowledged, log) == (1, [1])
    await asyncio.wait_for(closing, PATIENCE)


async def test_a_coroutine_whose_observer_has_left_is_not_waited_for() -> None:
    begun, never = asyncio.Event(), asyncio.Event()

    async def handler(event: Any) -> None:
        begun.set()
        await never.wait()

    async with EventBus() as bus:
        attached = bus.subscribe("a").subscribe(handler)
        publisher = asyncio.create_task(bus.publish_async("a"))
        await asyncio.wait_for(begun.wait(), PATIENCE)
        attached.dispose()
        await asyncio.wait_for(publisher, PATIENCE)
        await asyncio.wait_for(asyncio.to_thread(bus.close), PATIENCE)
    never.set()


@pytest.mark.parametrize("plain", [True, False])
def test_coroutines_of_a_loop_that_nobody_runs_have_failed(plain: bool, spawn: Spawn) -> None:
    loop = asyncio.new_event_loop()
    bus = EventBus()
    go = asyncio.Event()

    async def begin() -> Future[Any]:
        begun = asyncio.Event()

        async def work(event: Any) -> None:
            begun.set()
            await go.wait()

        source = bus.subscribe("a")
        if plain:
            source.subscribe(work)
        else:
            source.pipe(map_async(work)).subscribe()
        publisher = spawn(bus.publish, "a")
        await begun.wait()
        return publisher

    publisher = loop.run_until_complete(begin())
    spawn(bus.close).result(PATIENCE)
    with pytest.raises(PublishError) as caught:
        publisher.result(PATIENCE)
    assert [type(error) for error in caught.value.exceptions] == [BusClosed]
    go.set()
    loop.run_until_complete(asyncio.gather(*asyncio.all_tasks(loop)))
    loop.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("max_workers", [None, 0, 1])
async def test_a_close_that_blocks_the_loop_does_not_hang_with_one_that_waits_for_it(max_workers: int | None) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    begun, go = asyncio.Event(), asyncio.Event()

    async def handler(event: Any) -> None:
        begun.set()
        await go.wait()

    bus.subscribe("a").subscribe(handler)
    publisher = asyncio.create_task(bus.publish_async("a"))
    await asyncio.wait_for(begun.wait(), PATIENCE)
    closing = asyncio.create_task(asyncio.to_thread(bus.close))
    done, _ = await asyncio.wait({closing}, timeout=MOMENT)
    assert not done
    bus.close()
    go.set()
    await asyncio.wait_for(closing, PATIENCE)
    with pytest.raises(PublishError) as caught:
        await asyncio.wait_for(publisher, PATIENCE)
    assert [type(error) for error in caught.value.exceptions] == [BusClosed]


def complete(*operators: Any) -> Any:
    return rx.compose(*operators) if operators else ops.map(lambda event: event)


@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("way", ["plain", "buffered", "observe_on", "both"])
def test_what_flushes_on_completion_reaches_those_attached_before(max_workers: int | None, way: str) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    seen: list[int] = []
    bus.subscribe("x").only_payload().subscribe(seen.append)
    behind = {
        "plain": [],
        "buffered": [buffered(10)],
        "observe_on": [observe_on(bus.scheduler)],
        "both": [buffered(10), observe_on(bus.scheduler)],
    }
    chain = bus.subscribe("a").pipe(complete(*behind[way]), ops.buffer_with_count(10))
    chain.subscribe(lambda events: bus.publish("x", len(events)) and None)
    for _ in range(5):
        bus.publish("a")
    bus.close()
    assert seen == [5]


@pytest.mark.parametrize("shared", [False, True])
async def test_the_completion_has_come_when_close_returns_though_the_scheduler_goes_on(shared: bool) -> None:
    scheduler = BlockingScheduler()
    other = EventBus(scheduler)
    for _ in range(20):
        log: list[Any] = []

        async def work(item: int) -> int:
            await asyncio.sleep(0)
            return item

        async with EventBus(scheduler if shared else None) as bus:
            chain = bus.subscribe("a").only_payload().pipe(map_async(work), observe_on(bus.scheduler))
            chain.subscribe(log.append, on_completed=lambda log=log: log.append("completed"))
            publishers = [asyncio.create_task(bus.publish_async("a", n)) for n in range(3)]
            await asyncio.sleep(0)
        assert log == [0, 1, 2, "completed"]
        await asyncio.gather(*publishers)
    other.close()


@pytest.mark.rxbus_allow("failures")
def test_items_of_a_loop_that_nobody_runs_are_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    bus = EventBus()
    completed = threading.Event()

    async def work(event: Any) -> None:
        await asyncio.Event().wait()

    async def begin() -> None:
        bus.subscribe("a").pipe(buffered(3), map_async(work)).subscribe(on_completed=completed.set)
        for _ in range(3):
            await bus.publish_async("a")
        while len(bus.scheduler.outside) < 3:
            await asyncio.sleep(0)

    loop.run_until_complete(begin())
    bus.close()
    assert [record.getMessage() for record in caplog.records] == ["an item behind a buffer, on topic 'a'"] * 3
    assert not bus.scheduler.outside
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.parametrize("max_workers", [None, 1])
@pytest.mark.parametrize(
    "way", ["behind a buffer", "left by its publisher", "its end is late", "behind a buffer and a far side"]
)
def test_closing_that_takes_long_is_told_as_a_publish_is(
    way: str, max_workers: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    opener = Opener("closing")
    bus = EventBus(BlockingScheduler(max_workers, stall_after=0.05))
    source = bus.subscribe("a", name="slow")
    if way == "behind a buffer":
        source.pipe(buffered(2)).subscribe(opener.wait)
        bus.publish("a")
    elif way == "left by its publisher":
        source.subscribe(opener.wait)
        with pytest.raises(AcknowledgementTimeout):
            bus.publish("a", timeout=0.01)
    elif way == "its end is late":
        source.pipe(observe_on(bus.scheduler)).subscribe(on_completed=lambda: opener.wait(None))
    else:
        source.pipe(buffered(2), ops.observe_on(bus.scheduler)).subscribe(opener.wait)
        bus.publish("a")
    bus.close()
    opener.close()
    [told] = [text for text in caplog.messages if text.startswith("closing the bus has waited 0.")]
    assert told.split(" s for ", 1)[1].startswith("slow, ")
    assert told.endswith("on topic 'a'")
