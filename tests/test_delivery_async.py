"""Publishing without a thread that waits, where workers are few."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest

from rxbus import BlockingScheduler, Event, EventBus, PublishError, Receipt, defer
from rxbus._buffered import _waiting
from rxbus.operators import buffered, map_async

PATIENCE = 10.0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("way", ["nested", "behind a buffer"])
@pytest.mark.parametrize("depth", [1, 2])
async def test_the_only_worker_does_what_the_coroutine_publishes_that_it_waits_for(
    depth: int, way: str, timeout: float | None
) -> None:
    """It is inside a handler whose publish waits for an async one: nobody else could make that one's round."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    seen: list[str] = []
    causes: list[int | None] = []
    async with EventBus(BlockingScheduler(1)) as bus:

        async def go_on(event: Event[Any]) -> None:
            seen.append(event.topic)
            receipt = await bus.publish_async(f"a.{event.payload + 1}", event.payload + 1, timeout=timeout)
            assert receipt.acknowledged == 1

        def last(event: Event[Any]) -> None:
            causes.append(event.cause)
            with defer():  # it is a delivery, though the worker has a buffer's item in hand
                seen.append(event.topic)

        def begin(event: Event[Any]) -> None:
            assert bus.publish("a.0", 0).acknowledged == 1
            loop.call_soon_threadsafe(done.set)

        for number in range(depth):
            bus.subscribe(f"a.{number}").subscribe(go_on)
        bus.subscribe(f"a.{depth}").subscribe(last)
        if way == "nested":
            bus.subscribe("x").subscribe(begin)
        else:
            bus.subscribe("x").pipe(buffered(1)).subscribe(begin)
        receipt: Receipt = await asyncio.wait_for(bus.publish_async("x", timeout=PATIENCE), PATIENCE)
        assert receipt.acknowledged == 1
        await asyncio.wait_for(done.wait(), PATIENCE)
    assert seen == [f"a.{number}" for number in range(depth + 1)]
    assert len(causes) == 1
    assert causes[0] is not None


@pytest.mark.timeout(30)
@pytest.mark.parametrize("timeout", [None, PATIENCE])
@pytest.mark.parametrize("max_workers", [None, 1])
async def test_what_a_coroutine_publishes_does_not_wait_for_who_waits_behind_it(
    max_workers: int | None, timeout: float | None, spawn: Callable[..., Future[Any]]
) -> None:
    """The worker waits behind the coroutine in a line, and the coroutine's publisher for room behind the worker."""
    taken, queued = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    seen: list[str] = []
    async with EventBus(BlockingScheduler(max_workers)) as bus:

        async def in_line(event: Event[None]) -> None:
            if event.topic == "line.first":
                loop.call_soon(taken.set)
                while not (_waiting and bus._scheduler.waiting):  # both wait
                    await asyncio.sleep(0)
                await bus.publish_async("inner", timeout=timeout)
            seen.append(event.topic)

        def fill(event: Event[None]) -> None:
            for n in (1, 2):
                bus.publish("items", n)

        def empty(event: Event[int]) -> None:
            if event.payload == 0:
                assert queued.wait(PATIENCE)
                bus.publish("line.second")

        bus.subscribe("line.*").pipe(map_async(in_line)).subscribe()
        bus.subscribe("line.first").subscribe(fill)
        bus.subscribe("items").pipe(buffered(1)).subscribe(empty)
        bus.subscribe("inner").subscribe(lambda event: seen.append(event.topic))
        await asyncio.to_thread(bus.publish, "items", 0)
        first = spawn(bus.publish, "line.first")
        await asyncio.wait_for(taken.wait(), PATIENCE)
        queued.set()
        receipt: Receipt = await asyncio.wait_for(asyncio.wrap_future(first), PATIENCE)
        assert receipt.acknowledged == 2
    assert seen == ["inner", "line.first", "line.second"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("max_workers", [None, 1])
async def test_a_round_that_outlasts_its_cancelled_publisher_is_waited_for(max_workers: int | None) -> None:
    """By the outermost one, whom it concerns as all that a handler publishes."""
    inside, go, given_up = threading.Event(), threading.Event(), asyncio.Event()
    async with EventBus(BlockingScheduler(max_workers)) as bus:

        async def give_up(event: Event[None]) -> None:
            nested = asyncio.create_task(bus.publish_async("slow"))
            assert await asyncio.to_thread(inside.wait, PATIENCE)
            nested.cancel()
            with suppress(asyncio.CancelledError):
                await nested
            given_up.set()

        def slow(event: Event[None]) -> None:
            inside.set()
            assert go.wait(PATIENCE)
            raise ValueError("slow")

        bus.subscribe("a").subscribe(give_up)
        bus.subscribe("slow").subscribe(slow)
        publishing = asyncio.create_task(bus.publish_async("a"))
        await asyncio.wait_for(given_up.wait(), PATIENCE)
        done, _ = await asyncio.wait({publishing}, timeout=0.02)
        go.set()
        assert not done
        with pytest.raises(PublishError) as caught:
            await asyncio.wait_for(publishing, PATIENCE)
        assert [repr(error) for error in caught.value.exceptions] == ["ValueError('slow')"]
