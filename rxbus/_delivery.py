"""Lanes, logs and fan-outs: how an event gets to its observers. The only place that calls an observer.

A topic's events form a log, a linked list; appending to it fixes their order for all observers. Each observer has a
lane, with a turn that one thread holds at a time, and a cursor into the log of each topic that feeds it. A publisher
appends its event and goes round the lanes: a lane that is free it takes, moves the cursor and calls the observer; to a
lane that is busy it leaves mail, and goes on. Whoever holds a turn drains the mail when it gives the turn back,
whoever published it (flat combining: Hendler, Incze, Shavit, Tzafrir, SPAA 2010).

Why nothing is lost: mail is left before the turn is tried again, and the turn is given back before the mail is looked
at again; so one of the two sees the other.

Why nothing is delivered twice: only the turn's holder moves a cursor, and an event is delivered by who moves it. Hence
visits are idempotent, and any number of threads may be sent to a lane for the same event.

Why nothing deadlocks: a nested publish waits only for deliveries that it began itself; each began after the handler
that waits for it. Waiting points forward in time, and time has no circle.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from time import monotonic, perf_counter, time
from typing import Any

import msgspec
from reactivex.scheduler.currentthreadscheduler import CurrentThreadSchedulerSingleton
from reactivex.scheduler.trampoline import Trampoline

from rxbus._acknowledgement import (
    Delivery,
    Engine,
    FanOut,
    Here,
    Origin,
    Receipt,
    Wait,
    coroutine_delivery,
    ledger,
    local,
    logger,
)
from rxbus._event import Event
from rxbus.errors import (
    AcknowledgementTimeout,
    BusClosed,
    EventLoopBlocked,
    FeedbackLoop,
    PublishError,
)

MAX_DEPTH = 50  # publishes nested deeper on one thread only leave mail: chains do not recurse
COMBINED = 16  # how much of other publishers' mail one publisher drains after its own event
SLOW = 16  # fast deliveries in a row after which an observer no longer counts as slow

GIL = getattr(sys, "_is_gil_enabled", lambda: True)()

Mail = tuple["Feed", int] | Callable[[], None]  # "deliver up to this id", or something to be done in the lane's turn


class Entry(msgspec.Struct, eq=False):
    """A place in a topic's log. The last one stays until the next event, so it lets go of its fan-out when that is done."""

    id: int
    fan: FanOut | None = None
    next: Entry | None = None


class Lane:
    """One observer: its turn, and the mail left for it.

    The turn is the attribute `free`: `del lane.free` takes it, and raises AttributeError where another thread has it;
    `lane.free = True` gives it back. Each is a single bytecode, atomic under the GIL, and five times cheaper than a lock.
    User code runs in the turn: that is what the turn is for. Taking it never blocks.
    """

    __slots__ = ("__weakref__", "deliveries", "engine", "free", "inbox", "slow")

    free: bool

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.free = True
        self.inbox: deque[Mail] = deque()  # anybody appends; the turn's holder takes off
        self.deliveries: set[Delivery] = set()  # those that are counted and have not ended; under the ledger
        self.slow = 0  # it was slow: how many fast deliveries until that is forgotten

    def post(self, mail: Mail) -> None:
        """Leaves mail and sees to it that it is read."""
        self.inbox.append(mail)
        self.visit()

    def visit(self) -> None:
        """Drains the mail, unless another thread is inside: that one will look again when it comes out."""
        here = local.here
        while self.inbox:
            try:
                del self.free
            except AttributeError:
                return
            more = False
            try:
                more = self._drain(here)
            finally:
                if here.kept:
                    here.kept = False
                else:
                    self.free = True
            if more:
                self._pass_on()
                return

    def serve(self, feed: Feed, id: int, wait: Wait | None) -> None:
        """Delivers up to an event on behalf of its publisher; a nested one counts this job in `wait`."""
        here = local.here
        try:
            try:
                del self.free
            except AttributeError:
                self.inbox.append((feed, id))
                return
            try:
                while feed.cursor.id < id and not here.kept:
                    mine = feed.cursor.next is not None and feed.cursor.next.id == id
                    _deliver(here, feed, wait if mine else None)
                    if mine:
                        wait = None
            finally:
                if here.kept:
                    here.kept = False
                    if feed.cursor.id < id:
                        self.inbox.append((feed, id))
                else:
                    self.free = True
        finally:
            if wait is not None:  # busy, or somebody else has delivered it
                with ledger:
                    wait.down()
            self.visit()

    def give_back(self) -> None:
        """Gives back a turn that a delivery had kept beyond its handler's return."""
        self.free = True
        if self.inbox:
            if self.engine.limit != 0 and _get_running_loop() is not None:
                self.engine.submit(self.visit)  # a loop's thread is not for other people's handlers
            else:
                self.visit()

    def _drain(self, here: Here) -> bool:
        """In the turn: handles mail until there is none; True where what is left is for another thread."""
        own = here.fan
        budget = 0 if self.slow else COMBINED
        while self.inbox:
            mail = self.inbox[0]
            if not isinstance(mail, tuple):
                self.inbox.popleft()
                mail()
                continue
            feed, id = mail
            while feed.cursor.id < id:
                head = feed.cursor.next
                assert head is not None
                if own is not None and self.engine.limit != 0 and _others(own, head):
                    if budget == 0:
                        return True
                    budget -= 1
                _deliver(here, feed, None)
                if here.kept:
                    return False
            if self.inbox and self.inbox[0] is mail:
                self.inbox.popleft()
        return False

    def _pass_on(self) -> None:
        """Finds another thread for the mail: the publisher that waits for the first of it, else a worker."""
        try:
            mail = self.inbox[0]
        except IndexError:
            return
        head = mail[0].cursor.next if isinstance(mail, tuple) else None
        fan = None if head is None else head.fan
        if fan is not None:
            with ledger:
                wait = fan.top.wait
                if wait is not None and wait.bell is not None and wait.offer(self.visit):
                    return
        self.engine.submit(self.visit)


class LockedLane(Lane):
    """A lane for builds of Python without a GIL, where taking an attribute off is not atomic."""

    __slots__ = ("_lock",)

    def __init__(self, engine: Engine) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()
        super().__init__(engine)

    def _take(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise AttributeError("free")

    def _give(self, _: bool) -> None:
        self._lock.release()

    free = property(fset=_give, fdel=_take)  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]


def new_lane(engine: Engine) -> Lane:
    """Makes the lane that suits this build of Python."""
    return Lane(engine) if GIL else LockedLane(engine)


class Feed:
    """An observer's place in one topic's log."""

    __slots__ = ("attachment", "cursor", "cut", "lane", "log", "loop", "on_next")

    def __init__(self, attachment: Attachment, log: Log) -> None:
        self.attachment = attachment
        self.lane = attachment.lane
        self.log = log
        self.loop = attachment.loop
        self.cursor = log.tail  # the last event delivered, or skipped; moved by the holder of the lane's turn
        self.on_next: Callable[[Any], object] | None = attachment.on_next  # None: it has left
        self.cut: int | None = None  # the id up to which it had come when it left; what came later is dropped

    @property
    def name(self) -> str:
        """How errors and reports call the observer."""
        return self.attachment.name


class Attachment:
    """One `subscribe`: the callbacks of an observer, and the topics that feed them.

    Args:
        lane: The observer's lane; several attachments share one where operators join them.
        name: How errors and reports call the observer.
        loop: The event loop that has to run for it to acknowledge, if there is one.
    """

    __slots__ = ("feeds", "lane", "left", "loop", "name", "on_completed", "on_error", "on_next")

    def __init__(
        self,
        lane: Lane,
        on_next: Callable[[Any], object],
        on_error: Callable[[Exception], object],
        on_completed: Callable[[], object],
        name: str,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.lane = lane
        self.on_next = on_next
        self.on_error = on_error
        self.on_completed = on_completed
        self.name = name
        self.loop = loop
        self.feeds: dict[Log, Feed] = {}
        self.left = False

    def leave(self) -> None:
        """Gets nothing more, and nobody waits for it: what is queued is dropped, what is deferred counts as given."""
        with ledger:
            if self.left:
                return
            self.left = True
        for log, feed in list(self.feeds.items()):
            last = log.remove(feed)
            with ledger:
                feed.on_next = None
                # A thread that delivers moves the cursor before it reads `on_next`: what it has come to is its own to
                # count, and what lies beyond is ours.
                feed.cut = feed.cursor.id
                entry = feed.cursor.next
                while entry is not None and entry.id <= last:
                    assert entry.fan is not None
                    log.hub.dropped += 1
                    entry.fan.end(lost=True)
                    entry = entry.next
        with ledger:
            inside = local.here.delivery
            for delivery in [d for d in self.lane.deliveries if d.feed.attachment is self and d is not inside]:
                delivery.leave()
        self.feeds.clear()

    def finish(self, error: Exception | None = None) -> None:
        """Leaves, and tells the observer so in its turn: `on_completed`, or `on_error`."""
        self.leave()
        self.lane.post(lambda: self.tell(error))

    def tell(self, error: Exception | None) -> None:
        """Calls `on_completed` or `on_error`; what they raise has no publisher to go to, so it is logged."""
        try:
            if error is None:
                self.on_completed()
            else:
                self.on_error(error)
        except Exception:
            logger.exception("an observer failed when its stream ended: %s", self.name)


class Retired(Exception):
    """The log has been swept out of the registry: its topic has another one now."""


class Hub:
    """What the topics of one bus share."""

    __slots__ = ("closed", "closing", "dropped", "engine", "failed", "ids", "max_chain", "resolve")

    def __init__(self, engine: Engine, max_chain: int, resolve: Callable[[str], Log]) -> None:
        self.engine = engine
        self.max_chain = max_chain
        self.resolve = resolve  # the log of a topic name
        self.ids = itertools.count(1)
        self.closing = False  # outermost publishes are refused; set before each log's lock has been taken once
        self.closed = False
        self.failed = 0  # deliveries; under the ledger
        self.dropped = 0


class Log:
    """A topic's events, in their one order, and the observers they go to."""

    __slots__ = (
        "_fanned",
        "_folded",
        "_snapshot",
        "ended",
        "error",
        "feeds",
        "hub",
        "lock",
        "locked",
        "loops",
        "name",
        "only",
        "published",
        "retired",
        "singles",
        "tail",
    )

    def __init__(self, name: str, hub: Hub) -> None:
        self.name = name
        self.hub = hub
        # The order lock. Guards the tail and the set of feeds: whoever draws an id and appends holds it, for a few
        # statements. No user code runs under it, and no other lock is taken.
        self.lock = threading.Lock()
        self.locked = self.lock.locked
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
        self._fanned = 0  # the deliveries of the first `_folded` of those; all later ones went to the present snapshot
        self._folded = 0

    # -- who listens

    def add(self, attachment: Attachment) -> bool:
        """Feeds an observer from now on; False where the topic has ended."""
        with self.lock:
            if self.ended:
                return False
            self._add(attachment)
            return True

    def add_pattern(self, attachment: Attachment) -> None:
        """Feeds an observer that is attached through a pattern: it outlives the topic's end."""
        with self.lock:
            self._add(attachment)

    def remove(self, feed: Feed) -> int:
        """Feeds it no longer; gives the id of the last event that was meant for it."""
        with self.lock:
            if feed in self.feeds:
                del self.feeds[feed]
                self.loops -= feed.loop is not None
                self._changed()
            return self.tail.id

    def end(self, error: Exception | None, outlives: Callable[[Attachment], bool]) -> None:
        """Ends the topic's stream: observers get what was published before, then `on_completed` or `on_error`."""
        with self.lock:
            if self.ended:
                return
            self.ended = True
            self.error = error
            ending = [feed for feed in self.feeds if not outlives(feed.attachment)]
            last = self.tail.id
            for feed in ending:
                del self.feeds[feed]
                self.loops -= feed.loop is not None
            self._changed()
        for feed in ending:
            feed.lane.inbox.append((feed, last))
            feed.lane.post(lambda feed=feed: (feed.attachment.leave(), feed.attachment.tell(error)) and None)  # type: ignore[misc]

    def dispose(self, outlives: Callable[[Attachment], bool]) -> list[Attachment]:
        """Ends the topic's stream without a word; gives those who are to leave."""
        with self.lock:
            self.ended = True
            self.error = None
            return [feed.attachment for feed in self.feeds if not outlives(feed.attachment)]

    def reserve(self) -> None:
        """Once it returns, every publish has seen `hub.closing`, or has appended its event."""
        with self.lock:
            self.only = None

    def retire(self) -> bool:
        """Ends a log that nothing is going on in; False where something is."""
        feed = self.only
        if feed is not None:  # a publish to a single observer needs no lock, but its turn
            try:
                del feed.lane.free
            except AttributeError:
                return False
        try:
            with self.lock:
                if self.only is not feed or any(one.cursor is not self.tail for one in self.feeds):
                    return False
                self.retired = True
                self.only = None
                for one in self.feeds:
                    one.on_next = None
                    one.attachment.feeds.pop(self, None)
                return True
        finally:
            if feed is not None:
                feed.lane.free = True
                feed.lane.visit()

    def fanned(self) -> int:
        """How many deliveries all its publishes have had to make, but for those to `only`."""
        return self._fanned + len(self._snapshot or ()) * (self.published - self._folded)

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
        attachment.feeds[self] = feed
        self.feeds[feed] = None
        self.loops += feed.loop is not None
        self._changed()

    def _changed(self) -> None:
        if self._snapshot is not None:
            self._fanned, self._folded = self.fanned(), self.published
            self._snapshot = None
        alone = len(self.feeds) == 1 and not self.loops and not self.hub.closing
        self.only = next(iter(self.feeds)) if alone else None

    # -- publishing

    def publish(self, payload: Any, timeout: float | None = None) -> Receipt:
        """Publishes, and waits; see `EventBus.publish`.

        This is the short way, for an outermost publish to a single observer that is free: the turn of its lane orders
        the events, so that neither the lock nor an entry in the log is needed. An id is drawn before the log is found
        to be empty and unlocked; hence an event that another publisher appends later has a higher one.
        """
        here = local.here
        if (
            timeout is not None
            or here.feed is not None
            or here.origin is not None
            or coroutine_delivery.get() is not None
            or not here.trampoline._idle
        ):
            return self.publish_to_all(payload, timeout=timeout)
        feed = self.only
        if feed is None:
            return self._publish_to_all(here, payload)
        lane = feed.lane
        try:
            del lane.free
        except AttributeError:
            return self._publish_to_all(here, payload)
        event = error = None
        called = given = False
        try:
            event = Event(self.name, payload, next(self.hub.ids), time())
            on_next = feed.on_next
            if feed.cursor is self.tail and on_next is not None and not self.locked():
                if self.hub.engine.monitor.asleep:
                    self.hub.engine.monitor.wake()
                here.event = event
                here.feed = feed
                called = True
                on_next(event)
                if here.fan is None:
                    here.feed = here.event = None
                    self.singles += 1
                    lane.free = given = True
                    if lane.inbox:
                        lane.visit()
                    return Receipt(event, 1)
        except BaseException as raised:
            error = raised
        fan = delivery = None
        try:
            if called and not given:
                fan = here.fan_out()
                delivery = here.delivery
                self._take_in(here, fan, feed, error)
        finally:
            here.feed = here.event = here.fan = here.delivery = None
            if here.kept:
                here.kept = False
            elif not given:
                lane.free = True
        lane.visit()
        if fan is None:
            if error is not None:
                raise error
            return self._publish_to_all(here, payload)
        self.singles += 1
        return self._settle(event, fan, 1 if delivery is None else 0, None, None)

    def publish_to_all(self, payload: Any, *, timeout: float | None = None, raw: bool = False) -> Receipt:
        """Publishes, whoever listens and wherever the thread stands; with `raw`, `payload` itself is the event."""
        here = local.here
        coroutine = coroutine_delivery.get()
        if here.feed is None and coroutine is not None and not coroutine.ended:
            with coroutine.resumed():
                return self._publish_to_all(here, payload, timeout, raw)
        if not here.trampoline._idle:
            with _own_trampoline(here):
                return self._publish_to_all(here, payload, timeout, raw)
        return self._publish_to_all(here, payload, timeout, raw)

    def _publish_to_all(self, here: Here, payload: Any, timeout: float | None = None, raw: bool = False) -> Receipt:
        deadline = None if timeout is None else monotonic() + timeout
        before = None if here.feed is None else (here.feed, here.event, here.fan, here.delivery)
        here.begun = None
        fan: FanOut | None = None
        try:
            fan = self._append(here, payload, raw, _get_running_loop())
            event = fan.event
            if not fan.feeds:
                return Receipt(event, 0)
            entry = here.begun
            assert entry is not None
            if before is None and timeout is None:
                done = self._round(here, entry, fan)
            else:
                done = self._nested_round(here, entry, fan, timeout is not None)
        except Retired:
            return self.hub.resolve(self.name).publish_to_all(payload, timeout=timeout, raw=raw)
        except BaseException as error:
            if fan is None and here.begun is not None:
                fan = here.begun.fan
            if fan is not None and fan.missing < 0:
                self._abandon(here, fan, 0, None, error)
            raise
        finally:
            if before is None:
                here.feed = here.event = here.fan = None
            else:
                here.feed, here.event, here.fan, here.delivery = before
            if here.later and here.depth == 0:
                visit_later(here)
        if done == len(fan.feeds) and fan.wait is None:
            entry.fan = None
            return Receipt(event, done)
        return self._settle(event, fan, done, deadline, timeout)

    def _append(
        self, here: Here, payload: Any, raw: bool, loop: asyncio.AbstractEventLoop | None
    ) -> FanOut:
        """Gives an event its place in the order. `loop` is the event loop that the publisher is going to block.

        From the moment in which the entry is linked it is in `here.begun`, so that an interrupt cannot lose it.
        """
        hub = self.hub
        parent = None if here.feed is None else here.fan_out()
        origin = parent or here.origin
        if origin is not None and origin.chain >= hub.max_chain:
            raise FeedbackLoop(_loop(self.name, origin), hub.max_chain, "a buffer" if here.feed is None else here.feed.name)
        with self.lock:
            if self.retired:
                raise Retired
            if hub.closing and (origin is None or hub.closed):
                raise BusClosed("the bus is closed")
            feeds = self._snapshot
            if feeds is None:
                feeds = self._snapshot = tuple(self.feeds)
            if self.loops:
                _check_loops(self.name, feeds, loop, parent)
            id = next(hub.ids)
            event = payload if raw else Event(self.name, payload, id, time(), None if origin is None else _cause(origin))
            self.published += 1
            fan = FanOut(self, event, id, feeds, iter(feeds) if GIL else _Once(feeds), copy_context(), loop)
            if origin is not None:
                fan.chain = origin.chain + 1
                fan.trail = (origin.log.name, origin.trail)
                fan.origin = here.origin if parent is None else parent.origin
                fan.parent = parent
                fan.root = None if parent is None else parent.top
            if feeds:
                tail = self.tail
                tail.next = self.tail = here.begun = Entry(id, fan)
        return fan

    def _nested_round(self, here: Here, entry: Entry, fan: FanOut, remote: bool) -> int:
        """A round that is not on the publisher's fingers alone: nested in a handler, or `remote`, on workers only."""
        here.depth += 1
        try:
            if here.depth > MAX_DEPTH:
                for feed in fan.rest:
                    feed.lane.inbox.append((feed, fan.id))
                    here.later.append(feed.lane)
                return 0
            if remote and self.hub.engine.limit != 0:
                with ledger:
                    fan.waiting().serves = False
                hand_over(fan)
                return 0
            return self._round(here, entry, fan)
        finally:
            here.depth -= 1

    def _round(self, here: Here, entry: Entry, fan: FanOut) -> int:
        """Goes round the lanes once, and calls the observers of those that are free; says how many deliveries ended."""
        engine = self.hub.engine
        if engine.monitor.asleep:
            engine.monitor.wake()
        here.fan = fan
        here.event = event = fan.event
        here.delivery = None
        done = 0
        held: Lane | None = None
        slow: Feed | None = None
        try:
            for feed in fan.rest:
                lane = feed.lane
                if lane.slow and engine.limit != 0:
                    if slow is None:
                        slow = feed  # one is the publisher's own, done last
                    else:
                        hand(feed, fan)
                    continue
                try:
                    del lane.free
                except AttributeError:
                    lane.post((feed, fan.id))
                    continue
                if feed.cursor.next is not entry:  # earlier mail first, or somebody was here before
                    lane.free = True
                    lane.post((feed, fan.id))
                    continue
                feed.cursor = entry
                on_next = feed.on_next  # after the cursor has moved: see Attachment.leave
                if on_next is None:
                    lane.free = True
                    _drop(feed, entry.id, fan)
                    continue
                held = lane
                here.feed = feed
                try:
                    on_next(event)
                except Exception as error:
                    if here.delivery is None:
                        fan.fail_here(error, feed)
                    else:
                        here.delivery.returned(here, error)
                if here.delivery is None:
                    done += 1
                    lane.free = True
                else:
                    here.delivery.returned(here)
                    if not here.kept:
                        lane.free = True
                    here.delivery = None
                    here.kept = False
                held = None
                if lane.inbox:
                    lane.visit()
            if slow is not None:
                slow.lane.post((slow, fan.id))
        except BaseException as error:
            self._abandon(here, fan, done, held, error)
            raise
        return done

    def _settle(self, event: Any, fan: FanOut, done: int, deadline: float | None, timeout: float | None) -> Receipt:
        """Waits for what the round has left over, and tells how it all ended."""
        count = len(fan.feeds)
        fan.close_round(done)
        wait = fan.wait
        in_time = True
        if wait is not None and wait.fatal is None and wait.count > 0:
            engine = self.hub.engine
            if fan.root is None:
                engine.waiting[fan] = None
            try:
                in_time = wait.sleep(deadline)
            finally:
                engine.waiting.pop(fan, None)
                for job in wait.leave():
                    engine.submit(job)
        elif wait is not None:
            wait.leave()
        return self._outcome(event, fan, count, in_time, timeout)

    def _outcome(self, event: Any, fan: FanOut, count: int, in_time: bool, timeout: float | None) -> Receipt:
        with ledger:
            wait = fan.wait
            queued = fan.missing - fan.ended
            receipt = Receipt(event, count - queued - fan.lost, queued)
            pending: tuple[str, ...] = ()
            if wait is not None and not in_time:
                late = (fan,) if fan.root is not None else tuple(wait.fans)
                pending = tuple(dict.fromkeys(feed.name for one in late for feed in one.pending()))
        if wait is None:
            return receipt
        failures = wait.failures
        if wait.fatal is not None:
            raise wait.fatal
        if not in_time and timeout is not None:
            late_error = AcknowledgementTimeout(self.name, timeout, pending)
            for failure in failures:
                late_error.add_note("failed: " + "; ".join((repr(failure), *getattr(failure, "__notes__", ()))))
            raise late_error
        if failures:
            raise PublishError(f"publish to {self.name!r}: {len(failures)} failed", failures, receipt)
        return receipt

    def _abandon(self, here: Here, fan: FanOut, done: int, held: Lane | None, error: BaseException) -> None:
        """The publisher was interrupted: what it has not done goes to workers, and nothing stays taken."""
        if held is not None:
            if here.delivery is not None:
                here.delivery.returned(here, error)
            else:
                done += 1
                fan.lost += 1
            if here.kept:
                here.kept = False
            else:
                held.free = True
            here.delivery = None
        fan.close_round(done)
        with ledger:
            fan.waiting().gone = True
        engine = self.hub.engine
        for feed in fan.feeds or ():
            if feed.cursor.id < fan.id:
                feed.lane.inbox.append((feed, fan.id))
                engine.submit(feed.lane.visit)
        if held is not None:
            engine.submit(held.visit)

    def _take_in(self, here: Here, fan: FanOut, feed: Feed, error: BaseException | None) -> None:
        if here.delivery is not None:
            here.delivery.returned(here, error)
        elif error is not None:
            fan.fail_here(error, feed)

    # -- publishing without a thread that waits

    async def publish_async(self, payload: Any, timeout: float | None = None) -> Receipt:
        """Publishes and waits without blocking the event loop; see `EventBus.publish_async`."""
        loop = asyncio.get_running_loop()
        here = local.here
        coroutine = coroutine_delivery.get()
        try:
            if here.feed is None and coroutine is not None and not coroutine.ended:
                with coroutine.resumed():
                    fan = self._append(here, payload, False, None)
            else:
                fan = self._append(here, payload, False, None)
        except Retired:
            return await self.hub.resolve(self.name).publish_async(payload, timeout)
        event = fan.event
        entry = here.begun
        if not fan.feeds or entry is None:
            return Receipt(event, 0)
        engine = self.hub.engine
        settled = asyncio.Event()
        count = len(fan.feeds)
        with ledger:
            wait = fan.waiting()
            wait.count += 1  # the round itself
            wait.serves = engine.limit == 0
            wait.wake = lambda: _call_soon(loop, settled.set)
        context = copy_context()
        engine.submit(lambda: context.run(self._round_async, entry, fan))
        in_time = True
        if fan.root is None:
            engine.waiting[fan] = None
        try:
            await asyncio.wait_for(settled.wait(), timeout)
        except TimeoutError:
            in_time = False
        finally:
            engine.waiting.pop(fan, None)
            for job in wait.leave():
                engine.submit(job)
        return self._outcome(event, fan, count, in_time, timeout)

    def _round_async(self, entry: Entry, fan: FanOut) -> None:
        here = local.here
        before = here.feed, here.event, here.fan, here.delivery
        here.depth += 1
        done = 0
        try:
            done = self._round(here, entry, fan)
        finally:
            here.feed, here.event, here.fan, here.delivery = before
            here.depth -= 1
            if here.later and here.depth == 0:
                visit_later(here)
            fan.close_round(done)
            with ledger:
                fan.waiting().down()


class Handover:
    """A delivery that a worker is to make, or the waiting publisher, whoever comes first."""

    __slots__ = ("_claim", "_feed", "_id", "_wait")

    def __init__(self, feed: Feed, id: int, wait: Wait | None) -> None:
        self._feed = feed
        self._id = id
        self._wait = wait
        self._claim = [True]  # taken off by who comes first: list.pop is atomic

    def __call__(self) -> None:
        try:
            self._claim.pop()
        except IndexError:
            return
        self._feed.lane.serve(self._feed, self._id, self._wait)


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


def hand(feed: Feed, fan: FanOut) -> None:
    """Has a worker deliver to one lane; a nested publisher waits for it."""
    engine = feed.lane.engine
    with ledger:
        wait = None
        if fan.root is not None:
            wait = fan.waiting()
            wait.count += 1
        job = Handover(feed, fan.id, wait)
        if engine.limit is not None:  # a full pool must not keep a publisher waiting that could do it itself
            (wait or fan.waiting()).offer(job)
    engine.submit(job)


def hand_over(fan: FanOut) -> int:
    """Has workers deliver to all lanes that the publisher has not come to; says to how many."""
    rest = list(fan.rest)
    for feed in rest:
        hand(feed, fan)
    return len(rest)


def visit_later(here: Here) -> None:
    """Visits the lanes that publishes nested too deep have only left mail for."""
    here.depth += 1  # what they publish is nested in this loop: else chains would recurse through it
    try:
        while here.later:
            here.later.pop().visit()
    finally:
        here.depth -= 1


def _deliver(here: Here, feed: Feed, wait: Wait | None) -> None:
    """In the lane's turn: hands the next event of a feed to its observer, and counts it for its publisher.

    `here.kept` is set where the delivery goes on holding the turn.
    """
    entry = feed.cursor.next
    assert entry is not None
    fan = entry.fan
    feed.cursor = entry
    on_next = feed.on_next  # after the cursor has moved: see Attachment.leave
    if on_next is None or fan is None:
        if fan is not None:
            _drop(feed, entry.id, fan)
        if wait is not None:
            with ledger:
                wait.down()
        return
    own = here.fan is fan
    delivery = Delivery(fan, feed, wait)
    delivery.enter(awaited=own)
    before = here.feed, here.event, here.fan, here.delivery
    here.feed, here.event, here.fan, here.delivery = feed, fan.event, fan, delivery
    context = None if own else fan.context
    error: BaseException | None = None
    began = perf_counter()
    try:
        try:
            if context is None:
                on_next(fan.event)
            else:
                context.copy().run(on_next, fan.event)
        except BaseException as raised:
            error = raised
        delivery.returned(here, error)
    except BaseException as interrupt:  # struck between two lines of our own
        delivery.returned(here, interrupt)
        raise
    finally:
        here.feed, here.event, here.fan, here.delivery = before
    lane = feed.lane
    if perf_counter() - began >= lane.engine.handoff_after:
        lane.slow = SLOW
    elif lane.slow:
        lane.slow -= 1
    if isinstance(error, KeyboardInterrupt):
        raise error


def _drop(feed: Feed, id: int, fan: FanOut) -> None:
    """The observer has left: ends a delivery that its leaving has not ended."""
    with ledger:
        if feed.cut is not None and id <= feed.cut:
            fan.log.hub.dropped += 1
            fan.end(lost=True)


def _others(own: FanOut, head: Entry) -> bool:
    """Whether an event is other publishers' business, come after one's own."""
    fan = head.fan
    return fan is not None and fan.top is not own.top and head.id > own.id


def _cause(origin: FanOut | Origin) -> int:
    return origin.event.id if isinstance(origin.event, Event) else origin.id


def _check_loops(
    topic: str, feeds: tuple[Feed, ...], loop: asyncio.AbstractEventLoop | None, parent: FanOut | None
) -> None:
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
        names.append(trail[0])
        trail = trail[1]
    if names[-1] != topic:
        names = [topic, *names[:9]]
    return tuple(reversed(names))


@contextmanager
def _own_trampoline(here: Here) -> Iterator[None]:
    """Gives a publish inside a cold source a trampoline of its own.

    A cold source that emits while it is being subscribed runs on Rx's trampoline of this thread, which would put off
    what handlers subscribe to until the source is done: `publish` would return before they had emitted.
    """
    threads = CurrentThreadSchedulerSingleton._local
    outer = here.trampoline
    here.trampoline = threads.tramp = Trampoline()
    try:
        yield
    finally:
        here.trampoline = threads.tramp = outer


def _call_soon(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(callback)
    except RuntimeError:  # the loop has been closed: nobody waits there any more
        pass


# Where observers are called: what a frame stack shows above one of these is somebody else's subscribe.
DELIVERING = frozenset(one.__code__ for one in (Log.publish, Log._round, _deliver))
