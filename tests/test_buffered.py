"""Rings through full buffers that go by coroutines, far sides and blocked event loops; the others: test_operators."""

from __future__ import annotations

import asyncio
import threading

import pytest
from reactivex import operators as ops
from reactivex.scheduler import ThreadPoolScheduler

from rxbus import (
    BlockingScheduler,
    BufferOverflow,
    Event,
    EventBus,
    EventLoopBlocked,
    PublishError,
    Receipt,
)
from rxbus.operators import buffered, map_async, observe_on

PATIENCE = 10.0


class Book:
    """What handlers have been told of, and have seen."""

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.errors: list[type[Exception]] = []
        self.seen: list[int] = []

    def note(self, error: PublishError) -> None:
        self.errors += [type(one) for one in error.exceptions]

    def publish(self, topic: str, n: int) -> None:
        try:
            self.bus.publish(topic, n)
        except EventLoopBlocked as error:
            self.errors.append(type(error))
        except PublishError as error:
            self.note(error)

    async def publish_async(self, topic: str, n: int) -> None:
        try:
            await self.bus.publish_async(topic, n)
        except PublishError as error:
            self.note(error)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", ["async handler", "map_async", "map_async, observe_on", "observe_on"])
@pytest.mark.parametrize("max_workers", [None, 1, 2])
async def test_a_handler_waits_for_its_own_full_buffer_on_no_way(max_workers: int | None, way: str) -> None:
    """`there` publishes into the buffer that `back` empties, who waits for what stands in line behind `there`."""
    bus = EventBus(BlockingScheduler(max_workers))
    book = Book(bus)

    async def there(event: Event[int]) -> Event[int]:
        book.seen.append(event.payload)
        for n in range(4 if event.payload == 0 else 0):
            await book.publish_async("b", n)
        return event

    def there_plainly(event: Event[int]) -> None:
        book.seen.append(event.payload)
        for n in range(4 if event.payload == 0 else 0):
            book.publish("b", n)

    def back(event: Event[int]) -> None:
        book.publish("a", event.payload + 10)

    source = bus.subscribe("a")
    pool = ThreadPoolScheduler(2)
    if way == "async handler":
        source.subscribe(there)
    elif way == "observe_on":
        source.pipe(observe_on(pool)).subscribe(there_plainly)
    elif way == "map_async":
        source.pipe(map_async(there)).subscribe()
    else:
        source.pipe(map_async(there), observe_on(bus.scheduler)).subscribe()
    bus.subscribe("b").pipe(buffered(1)).subscribe(back)
    receipt = await asyncio.wait_for(bus.publish_async("a", 0), PATIENCE)
    assert receipt.acknowledged == 1
    await asyncio.wait_for(asyncio.to_thread(bus.close), PATIENCE)
    pool.executor.shutdown()
    assert set(book.errors) <= {BufferOverflow}  # none, where `back` happens to be quick each time
    assert len(book.seen) == len(set(book.seen))
    assert book.seen[0] == 0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("max_workers", [None, 0, 1, 2])
@pytest.mark.parametrize("plain", [True, False])
async def test_a_publish_that_blocks_the_loop_does_not_wait_for_who_waits_for_the_loop(
    max_workers: int | None, plain: bool
) -> None:
    """As a notebook's cell does: the handler that has to make room publishes to an async one."""
    bus = EventBus(BlockingScheduler(max_workers))
    book = Book(bus)

    async def work(event: Event[int]) -> None:
        book.seen.append(event.payload)

    if plain:
        bus.subscribe("a").subscribe(work)
    else:
        bus.subscribe("a").pipe(map_async(work)).subscribe()
    bus.subscribe("b").pipe(buffered(1)).subscribe(lambda event: book.publish("a", event.payload))
    for n in range(4):
        book.publish("b", n)
    await asyncio.wait_for(asyncio.to_thread(bus.close), PATIENCE)
    assert set(book.errors) <= {BufferOverflow, EventLoopBlocked}
    assert book.errors
    assert len(book.seen) + len(book.errors) == 4


async def test_what_was_refused_is_owed_no_more() -> None:
    bus = EventBus()
    book = Book(bus)

    async def there(event: Event[int]) -> None:
        for n in range(4 if event.payload == 0 else 0):
            await book.publish_async("b", n)

    bus.subscribe("a").pipe(map_async(there)).subscribe()
    bus.subscribe("b").pipe(buffered(1)).subscribe(lambda event: book.publish("a", event.payload + 10))
    await asyncio.wait_for(bus.publish_async("a", 0), PATIENCE)
    await asyncio.wait_for(asyncio.to_thread(bus.close), PATIENCE)
    assert book.errors
    assert not bus.scheduler.outside


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", ["async handler", "map_async"])
@pytest.mark.parametrize("max_workers", [None, 1])
async def test_a_coroutine_that_was_refused_does_not_wait_for_itself(max_workers: int | None, way: str) -> None:
    """It goes on in the turn, or the line, of its observer, which is busy: what it publishes is queued there."""
    bus = EventBus(BlockingScheduler(max_workers))
    book = Book(bus)
    begun, go_on = asyncio.Event(), asyncio.Event()
    receipts: list[Receipt] = []

    async def there(event: Event[int]) -> None:
        book.seen.append(event.payload)
        if event.payload == 0:
            begun.set()
            await go_on.wait()
            receipts.append(await bus.publish_async("a", 1))

    def back(event: Event[int]) -> None:
        if event.payload == 0:
            book.publish("a", 0)

    if way == "async handler":
        bus.subscribe("a").subscribe(there)
    else:
        bus.subscribe("a").pipe(map_async(there)).subscribe()
    bus.subscribe("b").pipe(buffered(1)).subscribe(back)
    await bus.publish_async("b", 0)
    await asyncio.wait_for(begun.wait(), PATIENCE)
    for n in (1, 2):  # this blocks the loop until there is room, which `back` makes when it is told no
        bus.publish("b", n)
    go_on.set()
    await asyncio.wait_for(asyncio.to_thread(bus.close), PATIENCE)
    assert book.errors == [BufferOverflow]
    assert book.seen == [0, 1]
    assert [(receipt.acknowledged, receipt.queued) for receipt in receipts] == [(0, 1)]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_coroutine_that_has_given_up_waiting_is_free(cancelled: bool) -> None:
    """What it has published waits for room still, and who has to make it publishes to the observer of the coroutine."""
    bus = EventBus()
    book = Book(bus)
    inside, go, given_up = threading.Event(), threading.Event(), asyncio.Event()

    async def there(event: Event[int]) -> None:
        book.seen.append(event.payload)
        if event.payload == 0:
            late = bus.publish_async("c", 0, timeout=None if cancelled else 0.01)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(late, 0.01 if cancelled else PATIENCE)
            given_up.set()

    def back(event: Event[int]) -> None:
        if event.payload == 0:
            inside.set()
            assert go.wait(PATIENCE)
            book.publish("a", 1)

    bus.subscribe("a").subscribe(there)
    bus.subscribe("b").pipe(buffered(1)).subscribe(back)
    bus.subscribe("c").subscribe(lambda event: book.publish("b", 2))
    await bus.publish_async("b", 0)
    assert await asyncio.to_thread(inside.wait, PATIENCE)
    await bus.publish_async("b", 1)  # it is full
    publishing = asyncio.create_task(bus.publish_async("a", 0))
    await asyncio.wait_for(given_up.wait(), PATIENCE)
    go.set()
    await asyncio.wait_for(publishing, PATIENCE)
    await asyncio.wait_for(asyncio.to_thread(bus.close), PATIENCE)
    assert book.errors == []
    assert book.seen == [0, 1]


@pytest.mark.timeout(60)
def test_a_delivery_stands_in_several_lines(bus: EventBus) -> None:
    """One line's handler is stuck; that the delivery stands in a second line does not hide it."""
    book = Book(bus)
    first, second = ThreadPoolScheduler(2), ThreadPoolScheduler(2)

    def there(event: Event[int]) -> None:
        if event.payload == 0:
            for n in range(4):
                book.publish("b", n)

    shared = bus.subscribe("a").pipe(ops.share())
    shared.pipe(observe_on(first)).subscribe(there)
    shared.pipe(ops.filter(lambda event: event.payload == 0), observe_on(second)).subscribe()
    bus.subscribe("b").pipe(buffered(1)).subscribe(lambda event: book.publish("a", event.payload + 10))
    bus.publish("a", 0)
    bus.close()
    first.executor.shutdown()
    second.executor.shutdown()
    assert set(book.errors) == {BufferOverflow}


@pytest.mark.timeout(60)
def test_a_line_goes_on_when_a_handler_has_returned_though_its_delivery_has_not_ended(bus: EventBus) -> None:
    """What stands in line behind it is not refused: it comes, whatever the handler has scheduled waits for."""
    book = Book(bus)

    def there(event: Event[int]) -> None:
        book.seen.append(event.payload)
        if event.payload == 0:
            bus.scheduler.schedule(lambda *_: [book.publish("b", n) for n in range(1, 5)] and None)

    pool = ThreadPoolScheduler(2)
    bus.subscribe("a").pipe(observe_on(pool)).subscribe(there)
    bus.subscribe("b").pipe(buffered(1)).subscribe(lambda event: book.publish("a", event.payload))
    bus.publish("a", 0)
    bus.close()
    pool.executor.shutdown()
    assert book.errors == []
    assert book.seen == [0, 1, 2, 3, 4]
