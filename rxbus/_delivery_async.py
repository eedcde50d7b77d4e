"""Publishing without a thread that waits: the round on a worker, the outcome on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from rxbus._acknowledgement import Delivery, Receipt, coroutine_place, work_for_coroutine
from rxbus._delivery import give_up, round_lanes
from rxbus._fan_out import FanOut, Wait, ledger
from rxbus._handover import hand_over
from rxbus._here import Engine, Once, Time, is_alone, local
from rxbus._lane import Entry
from rxbus._log import Log, Retired
from rxbus._outcome import nobody, outcome
from rxbus._put_off import run_later


async def publish_async(log: Log, payload: Any, timeout: float | None = None) -> Receipt:
    """Publishes and waits without blocking the event loop; see `EventBus.publish_async`."""
    loop = asyncio.get_running_loop()
    here = local.here
    try:
        fan = work_for_coroutine(lambda: log.append(here, payload, False, None))
    except Retired:
        return await publish_async(log.hub.resolve(log.name), payload, timeout)
    event = fan.event
    entry, here.begun = here.begun, None
    if fan.tracers is not None:
        fan.tracers.published(event)
    if not fan.feeds or entry is None:
        return nobody(fan)
    engine = log.hub.engine
    deadline = None if timeout is None else engine.time.monotonic() + timeout
    settled = asyncio.Event()
    count = len(fan.feeds)
    wait = fan.waiting()
    with ledger:
        wait.count += 1  # the round itself
        wait.serves = engine.limit == 0
        wait.wake = lambda: _call_soon(loop, settled.set)
        place = _place_in_pool(engine)
        wait.behind = None if place is None else place.publisher()
    if engine.limit == 0:
        here.owed[fan] = None
    try:
        if timeout is None or engine.limit == 0:
            _begin_round(log, entry, fan, place)
        else:
            hand_over(fan)
            _end_round_async(fan)
        if wait.count > 0:
            engine.monitor.wake()
        if fan.root is None:
            engine.waiting[fan] = None
        in_time = await _wait(wait, settled, deadline, engine.time)
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):
            _round_goes_on(fan, wait)
        wait.leave(engine.submit)
        wait.log_failures()
        raise
    finally:
        here.owed.pop(fan, None)
        engine.waiting.pop(fan, None)
        wait.leave(engine.submit)
        fan.parent = fan.by = None  # its coroutine, which goes on though it may be late, does not wait any more
        if fan.origin is not None:
            fan.origin.fans.pop(fan, None)
    return outcome(log.name, event, fan, count, in_time, timeout)


async def _wait(wait: Wait, rung: asyncio.Event, deadline: float | None, clock: Time) -> bool:
    """Waits until nothing is missing, and does meanwhile what is offered; False when the deadline has passed."""
    while True:
        rung.clear()
        wait.pass_on(lambda job: job())
        if wait.count <= 0 or not await clock.wait_async(rung, deadline):
            return wait.count <= 0


def _place_in_pool(engine: Engine) -> Delivery | None:
    """Where threads are short, all may be waiting for this very coroutine, and have to do its work: what it is of."""
    place = coroutine_place.get()
    pooled = engine.limit != 0 and is_alone(engine)
    return place if pooled and isinstance(place, Delivery) and not place.is_over() else None


def _begin_round(log: Log, entry: Entry, fan: FanOut, place: Delivery | None) -> None:
    context, once = copy_context(), Once()

    def begin() -> None:
        if place is not None:
            place.feed.lane.due.pop(begin, None)
        if once.take():
            context.run(_round_async, log, entry, fan)

    if place is not None:
        _tell(begin, place)
    begun = log.hub.engine.submit(begin)
    if not begun and place is None and (place := _place_in_pool(log.hub.engine)) is not None:
        fan.waiting().behind = place.publisher()  # there has been a thread each time, till now
        _tell(begin, place)
    if not begun and local.here.feed is not None:  # its handler runs this very loop, and all workers may wait for that
        begin()


def _tell(begin: Callable[[], None], place: Delivery) -> None:
    place.publisher().offer(begin)
    place.feed.lane.demand(begin)


def _round_async(log: Log, entry: Entry, fan: FanOut) -> None:
    here = local.here
    before = here.feed, here.event, here.fan, here.delivery, here.origin
    here.origin = None  # it may be a publisher that helps, with a buffer's item in hand
    here.depth += 1
    try:
        round_lanes(log, here, entry, fan)
    except BaseException:  # Ctrl-C, where the round is made on the event loop's own thread
        give_up(fan, fan.feeds)
        raise
    finally:
        here.feed, here.event, here.fan, here.delivery, here.origin = before
        here.depth -= 1
        if here.later:
            run_later(here)
        _end_round_async(fan)


def _end_round_async(fan: FanOut) -> None:
    fan.close_round()
    if fan.origin is not None:
        fan.origin.holder.check(fan.top)
    wait = fan.waiting()
    with ledger:
        wait.count -= 1
    if wait.count <= 0:
        wait.ring()


def _round_goes_on(fan: FanOut, wait: Wait) -> None:
    """Its publisher does not wait for it any more, whose tree would only count it once the round is over."""
    top, owed = fan.top.waiting(), True

    def over() -> None:
        nonlocal owed
        if wait.count <= 0:  # it is rung more often than that
            with ledger:
                top.count -= owed
                owed = False
            fan.ring()

    with ledger:
        if fan.root is not None and fan.missing < 0:
            top.count += 1
            wait.wake = over


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # the loop has been closed: nobody waits there any more
        loop.call_soon_threadsafe(callback)
