"""Closing: how a bus comes to its end without losing anything, and without waiting for what cannot come."""

from __future__ import annotations

from asyncio import AbstractEventLoop, _get_running_loop
from functools import partial
from time import sleep

from rxbus._acknowledgement import Delivery
from rxbus._bell import Bell
from rxbus._fan_out import serve_owed
from rxbus._here import Here, Origin, local, places
from rxbus._lane import Lane
from rxbus._log import Hub
from rxbus._registry import Registry
from rxbus._workers import Crew
from rxbus.errors import BusClosed

LOOK = 0.02  # seconds between two looks at what must not be waited for


def complete_all(registry: Registry, hub: Hub, crew: Crew) -> None:
    """Waits for what is going on, completes all observers, and waits for what that leads to.

    Outermost publishes must be refused already. Can be made again after an interrupt.
    """
    with registry.lock:
        logs = list(registry.logs.values())
    for log in logs:
        log.reserve()
    closing = _Closing(registry, hub, crew)
    closing.wait_until_quiet(set())
    with registry.lock:
        attachments = list(registry.attachments)
    for attachment in reversed(attachments):  # what flushes on completion may publish to those attached before
        attachment.finish()
    closing.wait_until_quiet({one.lane for one in attachments if closing.goes_on(one.loop)})


def is_inside(here: Here, hub: Hub) -> bool:
    """Whether a thread is inside a handler of a bus."""
    feed = here.feed  # once: it is another thread's
    return feed is not None and feed.log.hub is hub


class _Closing:
    def __init__(self, registry: Registry, hub: Hub, crew: Crew) -> None:
        self._registry = registry
        self._hub = hub
        self._crew = crew
        self._loop = _get_running_loop()
        self._here = local.here

    def wait_until_quiet(self, leaving: set[Lane]) -> None:
        """Waits until a whole round over the lanes, and those that are leaving, finds nothing that came since it began.

        What is deferred counts as given, whenever it turns up. Coroutines of an event loop that this very thread
        blocks, or that nobody runs, cannot go on: they have failed, and their observers leave.
        """
        while True:
            lanes, before = leaving | self._lanes(), self._published()
            flush = _Flush(lanes)
            while flush.left:
                flush.left -= self._let_go()
                if not self._crew.time.skip():
                    flush.wait(LOOK)
            lanes -= self._let_go()
            self._give_what_is_deferred(lanes)
            while not self._crew.join(LOOK) or self._is_anybody_inside() or self._outside():
                lanes -= self._let_go()
                self._give_what_is_deferred(lanes)
                sleep(LOOK / 10)
            lanes &= leaving | self._lanes()
            if before == self._published() and not any(lane.inbox for lane in lanes):
                return

    def _lanes(self) -> set[Lane]:
        with self._registry.lock:
            attachments = [*self._registry.attachments]
        return {attachment.lane for attachment in attachments}

    def _published(self) -> int:
        with self._registry.lock:
            logs = [*self._registry.logs.values()]
        return sum(log.published for log in logs)

    def _let_go(self) -> set[Lane]:
        """Completes the observers that coroutines keep busy which cannot go on; gives their lanes.

        What publishes of this very thread have to do is done, which a signal handler or the loop keeps from doing it.
        """
        serve_owed(self._here)
        stuck = [place for place in self._outside(going_on=False) if isinstance(place, Delivery)]
        cut_off = [delivery for delivery in stuck if delivery.fan.id]  # without one, it is the end of a stream
        error = BusClosed("the bus was closed before the handler's coroutine was done: `async with` would have waited")
        for delivery in cut_off:
            delivery.leave(error)
        busy = {delivery.feed.attachment for delivery in cut_off}
        for attachment in busy:
            attachment.finish()
        return {attachment.lane for attachment in busy}

    def _give_what_is_deferred(self, lanes: set[Lane]) -> None:
        """Counts open deferrals as given, but for those of coroutines that go on."""
        open_ = [delivery for lane in lanes for delivery in lane.all_deliveries()]
        deferred = [delivery for delivery in open_ if not delivery.holds and not delivery.inside]
        going_on = self._outside()  # after that: what a handler owes is written down before it returns
        for delivery in deferred:
            if delivery not in going_on:
                delivery.leave()

    def _outside(self, going_on: bool = True) -> set[Delivery | Origin]:
        """What coroutines work for, and scheduled actions behind buffers; or coroutines that cannot go on."""
        outside = [(owed._place, loop) for owed, loop in list(self._crew.outside.items())]
        own = [(place, loop) for place, loop in outside if place.engine is self._crew and not place.ended]
        return {place for place, loop in own if self.goes_on(loop) is going_on}

    def goes_on(self, loop: AbstractEventLoop | None) -> bool:
        """Whether what is owed by an event loop, or by none, will come."""
        return loop is None or (loop is not self._loop and loop.is_running())

    def _is_anybody_inside(self) -> bool:
        """Whether a handler is running still, though its observer has left, or another thread has put something off.

        What has been put off stays in its list until it is done: where there are no workers, a buffer's handing on.
        """
        threads = [(here, here.delivery) for here in list(places.values())]
        busy = any(is_inside(here, self._hub) and (one is None or one.inside) for here, one in threads)
        others = [here for here, _ in threads if here is not self._here]
        return busy or any(one.submit == self._crew.submit for here in others for one in list(here.later))


class _Flush:
    """Asks each lane to say when it has handled the mail it has now."""

    def __init__(self, lanes: set[Lane]) -> None:
        self.left = set(lanes)
        self._said = Bell()
        for lane in lanes:
            lane.post(partial(self._say, lane))

    def _say(self, lane: Lane) -> None:
        self.left.discard(lane)
        self._said.ring()

    def wait(self, timeout: float | None) -> None:
        """Waits for the next to say so, or for so many seconds; not at all where all have."""
        if self.left:
            self._said.wait(timeout)
