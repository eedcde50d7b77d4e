"""Closing: how a bus comes to its end without losing anything, and without waiting for what cannot come."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Iterator
from functools import partial
from time import sleep

from rxbus._acknowledgement import Delivery, Outside
from rxbus._bell import Bell
from rxbus._fan_out import logger, serve_owed
from rxbus._here import Here, Origin, local, places
from rxbus._lane import Lane
from rxbus._log import Hub
from rxbus._registry import Registry
from rxbus._watch import listed
from rxbus._workers import Crew
from rxbus.errors import BusClosed

LOOK = 0.02  # seconds between two looks at what must not be waited for


def complete_all(registry: Registry, hub: Hub, crew: Crew, blocked: list[AbstractEventLoop | None]) -> None:
    """Waits for what is going on, completes all observers, and waits for what that leads to.

    Outermost publishes must be refused already. Can be made again after an interrupt. `blocked` are the event loops
    that threads block which close, this one among them; others may join it meanwhile.
    """
    with registry.lock:
        logs = list(registry.logs.values())
    for log in logs:
        log.reserve()
    closing = _Closing(registry, hub, crew, blocked)
    closing.wait_until_quiet(set())
    with registry.lock:
        attachments = list(registry.attachments)
    for attachment in reversed(attachments):  # what flushes on completion may publish to those attached before
        attachment.finish()
        closing.wait_for_what_is_at_work({attachment.lane})
    closing.wait_until_quiet({one.lane for one in attachments if closing.goes_on(one.loop)})


def is_inside(here: Here, hub: Hub) -> bool:
    """Whether a thread is inside a handler of a bus."""
    feed = here.feed  # once: it is another thread's
    return feed is not None and feed.log.hub is hub


class _Closing:
    def __init__(self, registry: Registry, hub: Hub, crew: Crew, blocked: list[AbstractEventLoop | None]) -> None:
        self._registry = registry
        self._hub = hub
        self._crew = crew
        self._blocked = blocked
        self._here = local.here
        self._since = crew.time.monotonic()
        self._due = self._since + crew.stall_after  # when to warn (again)

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
                self._warn(flush.left)
                if not self._crew.time.skip():
                    flush.wait(LOOK)
            lanes -= self._let_go()
            self._give_what_is_deferred(lanes)
            lanes -= self.wait_for_what_is_at_work(lanes)
            lanes &= leaving | self._lanes()
            if before == self._published() and not any(lane.inbox for lane in lanes):
                return

    def wait_for_what_is_at_work(self, lanes: set[Lane]) -> set[Lane]:
        """Waits for workers, handlers, coroutines, scheduled actions; gives the lanes that it has let go meanwhile."""
        gone: set[Lane] = set()
        while self._is_at_work(lanes - gone):
            gone |= self._let_go()
            self._give_what_is_deferred(lanes - gone)
            self._warn(lanes - gone)
            if not self._crew.join(0):
                self._crew.join(LOOK)
            elif not self._crew.time.skip():
                sleep(LOOK / 10)
        return gone

    def _is_at_work(self, lanes: set[Lane]) -> bool:
        if not self._crew.join(0) or self._is_anybody_inside() or self._outside():
            return True
        # None of these for a moment is what a coroutine hands on to a scheduled action, or that to a coroutine.
        return any(lane.all_deliveries() for lane in lanes)

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
        stuck = self._outside(going_on=False)
        places = [owed._place for owed in stuck]
        # Without an id, it is the end of a stream.
        cut_off = [place for place in places if isinstance(place, Delivery) and place.fan.id and not place.ended]
        error = BusClosed("the bus was closed before the handler's coroutine was done: `async with` would have waited")
        for delivery in cut_off:
            delivery.leave(error)
        busy = {delivery.feed.attachment for delivery in cut_off}
        for attachment in busy:
            attachment.finish()
        self._forget(stuck, error)
        return {attachment.lane for attachment in busy}

    def _forget(self, stuck: dict[Outside, AbstractEventLoop | None], error: BusClosed) -> None:
        """What nobody will do, since nobody runs its event loop, is owed no more; behind a buffer, the log is told."""
        for owed, loop in stuck.items():
            if loop is not None and not loop.is_running():
                owed._give()
                if isinstance(owed._place, Origin) and owed._place.id:  # without one, it is the end of the stream
                    logger.error("an item behind a buffer, on topic %r", owed._place.log.name, exc_info=error)

    def _give_what_is_deferred(self, lanes: set[Lane]) -> None:
        """Counts open deferrals as given, where nothing else is at work."""
        for delivery in [delivery for lane in lanes for delivery in lane.all_deliveries()]:
            if delivery.is_deferred():
                delivery.leave()

    def _outside(self, going_on: bool = True) -> dict[Outside, AbstractEventLoop | None]:
        """What coroutines owe, and scheduled actions behind buffers; or coroutines that cannot go on.

        Not what async handlers owe whose observers have left: nobody waits for those.
        """
        outside = self._crew.outside
        own = [owed for owed in list(outside) if owed._place.engine is self._crew]  # no `items`: see Watch.look
        open_ = [(owed, outside.get(owed)) for owed in own if not (owed._turn and owed._place.ended)]
        return {owed: loop for owed, loop in open_ if self.goes_on(loop) is going_on and owed in outside}

    def goes_on(self, loop: AbstractEventLoop | None) -> bool:
        """Whether what is owed by an event loop, or by none, will come."""
        return loop is None or (loop not in self._blocked and loop.is_running())

    def _is_anybody_inside(self) -> bool:
        """Whether a handler is running still, though its observer has left, or another thread has put something off.

        What has been put off stays in its list until it is done: where there are no workers, a buffer's handing on.
        """
        threads = [(here, here.delivery) for here in list(places.values())]
        busy = any(is_inside(here, self._hub) and (one is None or one.inside) for here, one in threads)
        others = [here for here, _ in threads if here is not self._here]
        return busy or any(one.submit == self._crew.submit for here in others for one in list(here.later))

    def _warn(self, lanes: set[Lane]) -> None:
        """Says what it waits for, as of publishes that take long: that may not end, as an `interval` in a delivery."""
        now = self._crew.time.monotonic()
        if now >= self._due:
            waited = now - self._since
            self._due = now + waited
            logger.warning("closing the bus has waited %.1f s for %s", waited, listed(self._whom(lanes), "workers"))

    def _whom(self, lanes: set[Lane]) -> Iterator[str]:
        threads = [(here.feed, here.origin) for here in list(places.values())]
        feeds = [feed for feed, _ in threads if feed is not None and feed.log.hub is self._hub]
        feeds += [delivery.feed for lane in lanes for delivery in lane.all_deliveries()]
        yield from (f"{feed.name}, on topic {feed.log.name!r}" for feed in feeds)
        origins = [origin for _, origin in threads if origin is not None and origin.log.hub is self._hub]
        origins += [owed._place for owed in self._outside() if isinstance(owed._place, Origin)]
        yield from (f"{one.holder.name}, behind a buffer, on topic {one.log.name!r}" for one in origins)


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
