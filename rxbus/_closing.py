"""Closing: how a bus comes to its end without losing anything, and without waiting for what cannot come."""

from __future__ import annotations

from asyncio import _get_running_loop
from functools import partial
from time import sleep

from rxbus._bell import Bell
from rxbus._fan_out import serve_owed
from rxbus._here import Here, local, places
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
    # Coroutines of the loop that this very thread blocks are not waited for: they cannot go on.
    closing.wait_until_quiet({one.lane for one in attachments if one.loop is None or one.loop is not closing.loop})


def is_inside(here: Here, hub: Hub) -> bool:
    """Whether a thread is inside a handler of a bus."""
    feed = here.feed  # once: it is another thread's
    return feed is not None and feed.log.hub is hub


class _Closing:
    def __init__(self, registry: Registry, hub: Hub, crew: Crew) -> None:
        self._registry = registry
        self._hub = hub
        self._crew = crew
        self.loop = _get_running_loop()
        self._here = local.here

    def wait_until_quiet(self, leaving: set[Lane]) -> None:
        """Waits until a whole round over the lanes, and those that are leaving, finds nothing that came since it began.

        What is deferred counts as given, whenever it turns up. Coroutines of an event loop that runs on this very
        thread cannot go on before it does: they have failed, and their observers leave.
        """
        while True:
            lanes, before = leaving | self._lanes(), self._published()
            flush = _Flush(lanes)
            while flush.left:
                flush.left -= self._let_go()
                if not self._crew.time.skip():
                    flush.wait(None if self.loop is None and not self._here.owed else LOOK)
            _give_what_is_deferred(lanes)
            while not self._crew.join(LOOK) or self._is_anybody_inside():
                self._let_go()
                _give_what_is_deferred(lanes)
                sleep(LOOK / 10)
            lanes -= self._let_go()
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
        """Completes the observers that coroutines of the loop keep busy, whose deliveries fail; gives their lanes.

        What publishes of this very thread have to do is done, which a signal handler or the loop keeps from doing it.
        """
        serve_owed(self._here)
        if self.loop is None:
            return set()
        with self._registry.lock:
            attached = list(self._registry.attachments)
        lanes = {attachment.lane for attachment in attached if attachment.loop is self.loop}
        cut_off = [d for lane in lanes for d in lane.all_deliveries() if d.holds and d.feed.loop is self.loop]
        error = BusClosed("the bus was closed before the handler's coroutine was done: `async with` would have waited")
        for delivery in cut_off:
            delivery.leave(error)
        busy = {delivery.feed.attachment for delivery in cut_off}
        for attachment in busy:
            attachment.finish()
        return {attachment.lane for attachment in busy}

    def _is_anybody_inside(self) -> bool:
        """Whether a handler is running still, though its observer has left."""
        threads = [(here, here.delivery) for here in list(places.values())]
        return any(is_inside(here, self._hub) and (one is None or one.inside) for here, one in threads)


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


def _give_what_is_deferred(lanes: set[Lane]) -> None:
    """Counts open deferrals as given."""
    for delivery in [delivery for lane in lanes for delivery in lane.all_deliveries()]:
        if not delivery.holds and not delivery.inside:
            delivery.leave()
