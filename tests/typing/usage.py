"""Typical user code, for the type checkers: it has to pass `mypy --strict` and pyright. Not run by the tests."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, assert_type

import reactivex as rx
from reactivex import Observable, Subject
from reactivex import operators as ops
from reactivex.abc import DisposableBase

from rxbus import (
    Acknowledgement,
    BlockingScheduler,
    Event,
    EventBus,
    PublishError,
    Receipt,
    Subscription,
    Topic,
    TopicSubject,
    defer,
    only_payload,
)
from rxbus.operators import buffered, map_async, observe_on
from rxbus.recording import Cause, Recording, Replay
from rxbus.testing import assert_marbles, expect, virtual_bus

PRICES = Topic("prices.eur", float)
ANYTHING = Topic("anything")
NOTHING = Topic("nothing", type(None))
PERHAPS: Topic[float | None] = Topic("perhaps", float | None)
CALLS: Topic[Callable[[int], str]] = Topic("calls", Callable[[int], str])


def publishing(bus: EventBus) -> None:
    assert_type(PRICES, Topic[float])
    assert_type(ANYTHING, Topic[object])
    assert_type(bus.publish(PRICES, 1.5), Receipt)
    bus.publish("prices.eur", 1.5, timeout=2)
    bus.publish(ANYTHING)
    bus.publish(ANYTHING, 3)
    bus.publish(NOTHING)
    bus.publish(NOTHING, None)
    bus.publish(PERHAPS)
    bus.publish(PERHAPS, 1.5)
    bus.publish(CALLS, hex)
    bus.publish(PRICES)  # type: ignore[arg-type] # pyright: ignore[reportCallIssue, reportArgumentType]
    bus.publish(PERHAPS, "much")  # type: ignore[misc] # pyright: ignore[reportCallIssue, reportArgumentType]
    bus.publish(PRICES, "much")  # type: ignore[misc] # pyright: ignore[reportArgumentType, reportCallIssue]
    try:
        bus.publish("nothing")
    except PublishError as error:
        assert_type(error.receipt, Receipt)
        assert_type(error.exceptions[0], Exception | ExceptionGroup[Exception])


def composing(bus: EventBus) -> DisposableBase:
    subscription = bus.subscribe(PRICES)
    assert_type(subscription, Subscription[float])
    assert_type(only_payload(subscription), Observable[float])
    assert_type(subscription.only_payload(), Observable[float])
    assert_type(subscription.pipe(only_payload), Observable[float])
    high = subscription.pipe(only_payload).filter(lambda price: price > 100)
    assert_type(high.map(str), Observable[str])
    held: Observable[float] = subscription.only_payload().pipe(buffered(10, overflow="drop_oldest"))
    far = high.pipe(observe_on(bus.scheduler), ops.delay(1.0, scheduler=bus.scheduler))
    return rx.merge(high, held, far).subscribe(print)


def handling(bus: EventBus) -> None:
    def handler(event: Event[float]) -> None:
        assert_type(event.payload, float)
        assert_type(defer(), Acknowledgement)
        with defer():
            pass

    bus.subscribe(PRICES, name="handler").subscribe(handler)
    bus.subscribe(PRICES).subscribe(lambda event: bus.publish("again", event.payload))

    @bus.on("prices.*")
    def decorated(event: Event[float]) -> int:
        return round(event.payload)

    assert_type(decorated, Callable[[Event[float]], int]) if False else None

    @bus.on(PRICES, name="rounding")
    def typed(event: Event[float]) -> int:
        return round(event.payload)

    assert_type(typed(Event("prices.eur", 1.5, 1, 0.0)), int)

    @bus.on(PRICES)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
    def mistyped(event: Event[str]) -> None: ...

    subject = bus.topic(PRICES)
    assert_type(subject, TopicSubject[float])
    as_subject: Subject[Event[float]] = subject
    as_subject.subscribe(handler)
    rx.of(1.0, 2.0).subscribe(bus.publisher(PRICES))


def recording(bus: EventBus) -> None:
    with bus.record(PRICES, maxlen=10) as recording:
        assert_type(recording, Recording)
        bus.publish(PRICES, 1.0)
    assert_type(recording.events, list[Event[Any]])
    assert_type(recording.replay(bus, 2), Replay)
    assert_type([(one.id, one.effects) for one in recording.causes()], list[tuple[int, tuple[Cause, ...]]])
    recording.save(os.devnull)


async def on_a_loop(bus: EventBus) -> None:
    async def fetch(price: float) -> str:
        await asyncio.sleep(0)
        return str(price)

    @bus.on(PRICES)
    async def handler(event: Event[float]) -> None:
        await bus.publish_async("again", event.payload)

    assert_type(bus.subscribe(PRICES).only_payload().pipe(map_async(fetch, max_concurrency=2)), Observable[str])
    assert_type(await bus.publish_async(PRICES, 1.0), Receipt)
    async for event in bus.subscribe(PRICES):
        assert_type(event, Event[float])


def testing() -> None:
    with virtual_bus() as (bus, clock):
        with expect(bus, PRICES, lambda event: event.payload > 1.0) as found:
            bus.publish(PRICES, 1.5)
        assert_type(found.event, Event[float])
        assert_type(expect(bus, "prices.*"), expect[Any])
        assert_marbles(found.events, "a", {"a": 1.5}, topic=PRICES, unit=1.0)
        bus.subscribe(PRICES).debounce(1.0, scheduler=clock).subscribe(print)
        assert_type(clock.seconds, float)


if __name__ == "__main__":
    with EventBus(BlockingScheduler(max_workers=2), max_chain=10) as bus:
        publishing(bus)
        composing(bus)
        handling(bus)
        recording(bus)
