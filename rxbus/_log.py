"""Logs: a topic's events in their one order, and the observers they go to.

Appending to a topic's log, a linked list, fixes the order of its events for all observers at once.
"""

from __future__ import annotations

import itertools
import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial, wraps
from time import sleep, time
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from rxbus._acknowledgement import current_fan_out
from rxbus._event import Event
from rxbus._fan_out import FanOut, ledger
from rxbus._here import Engine, Here, Origin, Reentered, Trail, local
from rxbus._lane import Entry
from rxbus._observer import Attachment, Feed
from rxbus._trace import Tracer, Tracers
from rxbus._turn import GIL, LockTurn
from rxbus.errors import BusClosed, EventLoopBlocked, FeedbackLoop

P = ParamSpec("P")
R = TypeVar("R")


class Retired(Exception):
    """The log has been swept out of the registry: its topic has another one now."""


class Hub:
    """What the topics of one bus share."""

    __slots__ = (
        *("_lock", "closed", "closing", "dropped", "engine", "failed"),
        *("guards", "ids", "max_chain", "resolve", "time", "tracers", "why"),
    )

    def __init__(self, engine: Engine, max_chain: int) -> None:
        self.engine = engine
        self.max_chain = max_chain
        self.time: Callable[[], float] = engine.time.time
        self.resolve: Callable[[str], Log]  # the log of a topic name; set by the registry
        self.ids = itertools.count(1)
        self.guards: list[Any] = [ledger, *engine.guards]  # locks that no thread may hold while it waits
        self.closing = False  # outermost publishes are refused; set before each log's lock has been taken once
        self.closed = False
        self.why = "the bus is closed"
        self._lock = threading.RLock()  # guards changes of `tracers`; nothing is called under it
        self.failed = 0  # deliveries, also of logs that have been swept out; under the ledger
        self.dropped = 0
        self.tracers: Tracers | None = None  # who is told what happens; read without a lock by every publish

    def trace(self, tracer: Tracer) -> bool:
        """Tells a tracer of what is published from now on; False where it is told already."""
        with self._lock:
            known = () if self.tracers is None else self.tracers.all
            if any(one is tracer for one in known):
                return False
            self.tracers = Tracers((*known, tracer), self.untrace, self.time)
            return True

    def untrace(self, tracer: Tracer) -> None:
        """Tells it of no further event."""
        with self._lock:
            left = () if self.tracers is None else tuple(one for one in self.tracers.all if one is not tracer)
            self.tracers = Tracers(left, self.untrace, self.time) if left else None


def _in_order(method: Callable[Concatenate[Log, P], R]) -> Callable[Concatenate[Log, P], R]:
    """Has a method hold the order lock."""

    @wraps(method)
    def ordered(self: Log, *args: P.args, **kwargs: P.kwargs) -> R:
        here = local.here
        while True:
            try:
                del self.free
                self.owner = here
            except AttributeError:
                if self.owner is here:
                    raise Reentered from None
                sleep(0)
            else:
                break
        try:
            return method(self, *args, **kwargs)
        finally:
            self.owner = None
            self.free = True

    return cast("Callable[Concatenate[Log, P], R]", ordered)


class Log:
    """A topic's events, in their one order, and the observers they go to."""

    __slots__ = (
        "_fanned",
        "_folded",
        "_snapshot",
        "dropped",
        "ended",
        "error",
        "failed",
        "feeds",
        "free",
        "hub",
        "loops",
        "name",
        "only",
        "owner",
        "published",
        "retired",
        "singles",
        "tail",
    )

    def __init__(self, name: str, hub: Hub) -> None:
        self.name = name
        self.hub = hub
        # The order lock: a turn like a lane's. Guards the tail and the set of feeds; who draws an id and appends holds
        # it, for a few statements. No user code runs under it, and no other lock is taken. Who finds it taken yields
        # and tries again: a thread that slept on a lock would wake as its owner, without the GIL, and all others would
        # queue up behind it, one switch for each event.
        self.free = True
        self.owner: Here | None = None  # the thread that holds it
        self.tail = Entry(0)
        self.feeds: dict[Feed, None] = {}
        self._snapshot: tuple[Feed, ...] | None = ()  # of the feeds; None: to be made anew
        self.only: Feed | None = None  # the one feed there is, where that one may be served without an entry in the log
        self.loops = 0  # how many feeds need an event loop
        self.ended = False  # the topic's stream has ended: with `error`, if that is not None
        self.error: Exception | None = None
        self.retired = False
        self.singles = 0  # publishes that went to `only`
        self.published = 0  # all others
        self.failed = 0  # deliveries; under the ledger
        self.dropped = 0  # deliveries whose observers had left
        self._fanned = 0  # the deliveries of the first `_folded` of those; all later ones went to the present snapshot
        self._folded = 0

    # -- who listens

    @_in_order
    def add(self, attachment: Attachment) -> bool:
        """Feeds an observer from now on; False where the topic has ended."""
        if self.ended:
            return False
        self._add(attachment)
        return True

    @_in_order
    def add_pattern(self, attachment: Attachment) -> None:
        """Feeds an observer that is attached through a pattern: it outlives the topic's end."""
        self._add(attachment)

    @_in_order
    def remove(self, feed: Feed) -> int:
        """Feeds it no longer; gives the id of the last event that was meant for it."""
        if feed in self.feeds:
            self._remove(feed)
        assert feed.last is not None
        return feed.last

    def end(self, error: Exception | None, outlives: Callable[[Attachment], bool]) -> None:
        """Ends the topic's stream: observers get what was published before, then `on_completed` or `on_error`."""
        ending = self._end(error, outlives)
        try:
            for feed in ending:
                self._tell(feed, error)
        except BaseException:  # interrupted: none minds being told twice
            for feed in ending:
                self._tell(feed, error)
            raise

    def _tell(self, feed: Feed, error: Exception | None) -> None:
        assert feed.last is not None
        feed.lane.inbox.append((feed, feed.last))
        feed.lane.post(partial(feed.attachment.end, error))

    @_in_order
    def _end(self, error: Exception | None, outlives: Callable[[Attachment], bool]) -> list[Feed]:
        ending = [] if self.ended else [feed for feed in self.feeds if not outlives(feed.attachment)]
        if not self.ended:
            self.ended = True
            self.error = error
        for feed in ending:
            self._remove(feed)
        return ending

    @_in_order
    def dispose(self, outlives: Callable[[Attachment], bool]) -> list[Attachment]:
        """Ends the topic's stream without a word; gives those who are to leave."""
        self.ended = True
        self.error = None
        return [feed.attachment for feed in self.feeds if not outlives(feed.attachment)]

    @_in_order
    def reserve(self) -> None:
        """Once it returns, every publish has seen `hub.closing`, or has appended its event."""
        self.only = None

    def retire(self) -> bool:
        """Ends a log that nothing is going on in; False where something is. The lane of `only` wants a visit then."""
        feed = self.only
        if feed is None:
            return self._retire(None)
        try:
            del feed.lane.free  # a publish to a single observer does without the order lock, but has its turn
        except AttributeError:
            return False
        try:
            return self._retire(feed)
        finally:
            feed.lane.free = True  # whoever calls has to visit the lane, once it holds no lock: mail may have come

    @_in_order
    def _retire(self, only: Feed | None) -> bool:
        if self.only is not only or any(feed.cursor is not self.tail for feed in self.feeds):
            return False
        self.retired = True
        self.only = None
        for feed in self.feeds:
            feed.on_next = None
            feed.attachment.feeds.pop(self, None)
        return True

    def release(self) -> None:
        """Gives the order lock free, whoever holds it: that thread exists no more."""
        if not getattr(self, "free", False):
            self.free = True

    def fanned(self) -> int:
        """How many deliveries all its publishes have had to make, but for those to `only`."""
        return self._fanned + len(self._snapshot or ()) * (self.published - self._folded)

    def count_dropped(self, deliveries: int) -> None:
        """Counts deliveries whose observers had left."""
        self.dropped += deliveries
        self.hub.dropped += deliveries

    def pending(self) -> int:
        """How many deliveries have not begun."""
        count = 0
        for feed in list(self.feeds):
            entry = feed.cursor.next
            while entry is not None:
                count += 1
                entry = entry.next
        return count

    def _add(self, attachment: Attachment) -> None:
        feed = Feed(attachment, self)
        self._fold()
        attachment.feeds[self] = feed
        self.feeds[feed] = None
        self.loops += feed.loop is not None
        self._snapshot = self.only = None
        self._find_only()

    def _remove(self, feed: Feed) -> None:
        self._fold()
        del self.feeds[feed]  # from here on there is no call, so that an interrupt cannot leave it half done
        feed.last = self.tail.id
        self.loops -= feed.loop is not None
        self._snapshot = self.only = None
        self._find_only()

    def _fold(self) -> None:
        """The snapshot is about to change: counts up what has gone to it."""
        if self._snapshot is not None:
            self._fanned, self._folded = self.fanned(), self.published

    def _find_only(self) -> None:
        alone = len(self.feeds) == 1 and not self.loops and not self.hub.closing and self.hub.time is time
        self.only = next(iter(self.feeds)) if alone else None

    def append(self, here: Here, payload: Any, raw: bool, loop: AbstractEventLoop | None) -> FanOut:
        """Gives an event its place in the order. `loop` is the event loop that the publisher is going to block.

        From the moment in which the entry is linked it is in `here.begun`, so that an interrupt cannot lose it.
        """
        hub = self.hub
        parent = None if here.feed is None else current_fan_out(here)
        origin = here.origin or parent
        if origin is not None and origin.chain >= hub.max_chain:
            raise FeedbackLoop(
                _loop(self.name, origin), hub.max_chain, "a buffer" if here.feed is None else here.feed.name
            )
        while True:
            try:
                del self.free
                self.owner = here
            except AttributeError:
                if self.owner is here:
                    raise Reentered from None
                sleep(0)
            else:
                break
        try:
            if self.retired:
                raise Retired
            if hub.closing and (origin is None or hub.closed):
                raise BusClosed(hub.why)
            feeds = self._snapshot
            if feeds is None:
                feeds = self._snapshot = tuple(self.feeds)
            if self.loops:
                _check_loops(self.name, feeds, loop, parent)
            id = next(hub.ids)
            cause = None if origin is None else _cause(origin)
            event = payload if raw else Event(self.name, payload, id, hub.time(), cause)
            self.published += 1
            fan = FanOut(self, event, id, feeds, iter(feeds) if GIL else _Once(feeds), None, copy_context(), loop)
            if origin is not None:
                fan.chain = origin.chain + 1
                fan.trail = Trail(origin.log, origin.id, origin.trail)
                fan.origin = here.origin or (None if parent is None else parent.origin)
                if here.origin is not None:
                    here.origin.fans[fan] = None
                fan.parent = parent
                fan.by = here.feed
                fan.root = None if parent is None else parent.top
            if hub.tracers is not None and not here.tracing and isinstance(event, Event):
                fan.tracers = hub.tracers
            if here.waits or here.outer:
                fan.below = (*here.waits, *((None, one, None) for one in here.outer))
            if feeds:
                tail = self.tail
                tail.next = self.tail = here.begun = Entry(id, fan)
        finally:
            self.owner = None
            self.free = True
        return fan


class LockedLog(LockTurn, Log):
    """A log for builds of Python without a GIL."""

    __slots__ = ("lock",)

    def __init__(self, name: str, hub: Hub) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        super().__init__(name, hub)


def new_log(name: str, hub: Hub) -> Log:
    """Makes the log that suits this build of Python."""
    return Log(name, hub) if GIL else LockedLog(name, hub)


class _Once:
    """Gives each item to one caller, where plain iterators promise that only under the GIL."""

    def __init__(self, items: tuple[Feed, ...]) -> None:
        self._items = deque(items)

    def __iter__(self) -> Iterator[Feed]:
        return self

    def __next__(self) -> Feed:
        try:
            return self._items.popleft()
        except IndexError:
            raise StopIteration from None


def _cause(origin: FanOut | Origin) -> int | None:
    return origin.event.id if isinstance(origin.event, Event) else origin.id or None


def _check_loops(topic: str, feeds: tuple[Feed, ...], loop: AbstractEventLoop | None, parent: FanOut | None) -> None:
    """Refuses a publish that would wait for an event loop which it, or a publish around it, blocks."""
    blocked = {loop}
    while parent is not None:
        blocked |= {parent.loop, parent.top.loop}
        parent = parent.parent
    blocked.discard(None)
    for feed in feeds:
        if feed.loop in blocked:
            raise EventLoopBlocked(topic, feed.name)


def _loop(topic: str, origin: FanOut | Origin) -> tuple[str, ...]:
    """The topics that lead from a topic back to itself; where none does, the last few of the chain."""
    names: list[str] = [origin.log.name]
    trail = origin.trail
    while trail is not None and names[-1] != topic:
        names.append(trail.log.name)
        trail = trail.before
    if names[-1] != topic:
        names = [topic, *names[:9]]
    return tuple(reversed(names))
