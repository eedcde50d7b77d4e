"""Publishing without a thread that waits, where workers are few."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rxbus import BlockingScheduler, Event, EventBus, Receipt, defer
from rxbus.operators import buffered

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
