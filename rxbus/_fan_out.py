"""What an event still owes: its deliveries, and what its publisher waits for.

A publish that meets only free, fast observers counts on its fingers and touches nothing here. Whatever cannot be done
within its own round (an observer that is busy, a delivery on a worker, a deferral) is written into the *ledger*: one
lock for all counts, since an event's tree may span several buses and each entry is a few assignments long.

    FanOut    one event and the observers it goes to: how many deliveries others must end, how many have ended
    Wait      what one publisher waits for: a count, the failures, the bell that wakes it
"""

from __future__ import annotations

import logging
import threading
from asyncio import AbstractEventLoop
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from rxbus._bell import Bell
from rxbus._here import Frame, Here, Job, Origin, Time, Trail, is_alone, local
from rxbus.errors import RxBusError

if TYPE_CHECKING:
    from rxbus._acknowledgement import Delivery
    from rxbus._lane import Lane
    from rxbus._log import Log
    from rxbus._observer import Feed
    from rxbus._trace import Tracers

logger = logging.getLogger("rxbus")

# Guards FanOut.missing/ended/lost, every field of Wait and Delivery, Lane.deliveries, Feed.cut and Attachment.left.
# Nothing that can block, raise or run foreign code happens while it is held; no other lock is taken under it. An RLock,
# since the garbage collector may run a destructor in the midst of it, and that one may detach an observer.
#
# Ctrl-C leaves no count half done: CPython looks for signals when a function is entered, when it jumps back and when a
# C function has returned, so that statements without calls are atomic. Each section is such a piece, or can be made
# again: what it ends knows that it has ended. Publishers are rung up afterwards, once too often rather than not at all.
#
# From Python 3.12 on, a jump back with a condition (of a `while`, of an `if` that ends a `for`, in a comprehension) is
# not in the `try` or `with` around it: struck there, a lock stays locked, and no `finally` runs. So where one matters,
# such a loop stands in a function of its own. tests/stress/test_jumps.py looks for what the compiler has made of them.
ledger = threading.RLock()


class FanOut(msgspec.Struct, eq=False):
    """One event and the observers that it goes to."""

    log: Log
    event: Any
    id: int
    feeds: tuple[Feed, ...]
    rest: Iterator[Feed] = iter(())  # those the publisher has not come to; whoever takes one off has it alone
    last: list[Feed] | None = None  # the slow one that the publisher does itself, last; taken off by who comes first
    context: Context | None = None  # the publisher's
    loop: AbstractEventLoop | None = None  # the event loop that the publisher blocks
    parent: FanOut | None = None  # the event whose handler publishes this one, while it does
    by: Feed | None = None  # that handler's, while it does
    below: tuple[Frame, ...] = ()  # where else its publisher's thread waits meanwhile
    root: FanOut | None = None  # the outermost event that led to this one; None: it is that itself
    trail: Trail | None = None  # its causes, the nearest first
    chain: int = 0  # how many causes it has
    origin: Origin | None = None  # the item in a buffer's hand that led to it
    done: int = 0  # how many deliveries ended in the publisher's round
    missing: int = -1  # how many deliveries others must end; known when the publisher's round is over
    ended: int = 0  # how many others have ended
    lost: int = 0  # how many ended without an acknowledgement: failed, or the observer left
    lapsed: dict[Feed, None] | None = None  # whose delivery has ended without having begun: they left, or must not
    wait: Wait | None = None
    tracers: Tracers | None = None  # whom it is told to

    @property
    def top(self) -> FanOut:
        """The outermost event of its tree."""
        return self.root or self

    def is_by(self, lane: Lane) -> bool:
        """Whether a handler of a lane publishes it, or one that waits for the publisher.

        That lane is busy, though the delivery to it may have been refused: it is not to be waited for.
        """
        fan: FanOut | None = self
        while fan is not None:
            if fan.by is not None and fan.by.lane is lane:
                return True
            fan = fan.parent
        return False

    def waiting(self) -> Wait:
        """The Wait of this event's publisher, made when it is needed first."""
        if self.wait is None:
            wait = Wait()
            with ledger:
                self.wait = self.wait or wait
        return self.wait

    def end(self, lost: bool = False, delivery: Delivery | None = None, feed: Feed | None = None) -> bool:
        """Ends one delivery on behalf of the publisher, who is to be rung up then. Under the ledger; atomic.

        Once, which is what it gives: a destructor or signal handler may run at the entry of this very call, and end
        the same.

        Args:
            lost: It is not acknowledged.
            delivery: It has begun, and is counted.
            feed: It has not begun; see `lapsed`.
        """
        if delivery is not None:
            if delivery.ended or (self.lapsed is not None and delivery.feed in self.lapsed):
                return False
            delivery.ended = True
        if feed is not None:
            if self.lapsed is None or feed in self.lapsed:
                return False
            self.lapsed[feed] = None
        self.ended += 1
        self.lost += lost
        if self.ended == self.missing:
            wait = (self.root or self).wait
            if wait is not None and self in wait.fans:
                del wait.fans[self]
                wait.count -= 1
            self.event = self.context = None  # a quiet topic must not pin them: its last entry stays until the next
            self.feeds = ()
        return True

    def lapse(self, feed: Feed, begun: bool = True) -> bool:
        """Ends a delivery that is not to be made; False where it has been ended before, or must not have begun."""
        held = self.contents()
        none: dict[Feed, None] = {}
        with ledger:
            if self.lapsed is None:
                self.lapsed = none
            first = (begun or feed.cursor.id < self.id) and self.end(lost=True, feed=feed)
        self.ring()
        del held
        return first

    def contents(self) -> object:
        """What the end lets go of: to be held until the ledger has been let go of, since destructors are user code."""
        return self.event, self.context, self.feeds

    def ring(self) -> None:
        """Wakes the publisher of the tree if nothing is missing any more. Not under the ledger."""
        wait = (self.root or self).wait
        if wait is not None and wait.count <= 0:
            wait.ring()

    def close_round(self) -> None:
        """Takes in that the publisher's round is over; `done` is known. Idle the second time."""
        held = self.contents()
        missing = len(self.feeds) - self.done
        wait = self.top.waiting()
        with ledger:
            if self.missing < 0:
                self.missing = missing
                if self.ended < missing:
                    wait.fans[self] = None
                    wait.count += 1
                else:
                    self.event = self.context = None
                    self.feeds = ()
        del held
        if wait.count > 0 and is_alone(self.log.hub.engine):
            wait.ring()  # whoever waits for the tree waits for this too now, and may have to do it itself

    def fail(self, error: BaseException, feed: Feed, wait: Wait | None = None, counts: bool = True) -> None:
        """Keeps a failure for the publisher that is told of it: the nested one that waits for it, or the outermost."""
        note = f"in {feed.name}, on topic {self.log.name!r}"
        with suppress(Exception):  # an error that takes no note must not keep the delivery from ending
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
        key = self, feed, id(error)
        outermost = self.top.waiting()
        if self.root is not None and (wait is None or wait.gone) and is_ctrl_c(error):
            error = interrupted(error)  # it goes on being raised here; the outermost publisher may be another thread
        with ledger:
            told = outermost if wait is None or wait.gone else wait
            gone = told.gone
            if key not in told.failures:
                self.log.failed += counts
                self.log.hub.failed += counts
                if not gone:
                    told.failures[key] = error
        if gone:
            logger.error("a handler failed after its publisher had gone: %s", note, exc_info=error)

    def fail_here(self, error: BaseException, feed: Feed) -> None:
        """A handler has failed in the publisher's own round, in which it is counted as ended."""
        with ledger:
            self.lost += 1
        self.fail(error, feed, self.waiting())

    def refuse(self, feed: Feed, error: Exception) -> None:
        """Ends a delivery as failed, unless it has begun: who makes it moves the cursor, then asks `Delivery.enter`."""
        wait = self.top.waiting()
        with ledger:
            wait.count += 1  # its publisher must not leave before it has been told
        try:
            if self.lapse(feed, begun=False):
                self.fail(error, feed)
        finally:
            with ledger:
                wait.count -= 1
            self.ring()


class Pending(NamedTuple):
    """A delivery that has not ended."""

    fan: FanOut
    feed: Feed
    delivery: Delivery | None  # None: it has not begun


def pending(fans: Iterable[FanOut]) -> list[Pending]:
    """Which deliveries of some events have not ended."""
    with ledger:
        return _pending(list(fans))


def _pending(fans: list[FanOut]) -> list[Pending]:
    """Under the ledger; in a function, for the sake of that: see there."""
    lanes = {feed.lane for fan in fans for feed in fan.feeds}
    open_ = {(one.fan, one.feed): one for lane in lanes for one in lane.all_deliveries()}
    return [
        Pending(fan, feed, open_.get((fan, feed)))
        for fan in fans
        for feed in fan.feeds
        if feed.cut is None and feed not in (fan.lapsed or ()) and (feed.cursor.id < fan.id or (fan, feed) in open_)
    ]


class Wait:
    """What one publisher waits for."""

    __slots__ = ("behind", "bell", "count", "failures", "fans", "gone", "idle", "jobs", "serves", "wake")

    def __init__(self) -> None:
        self.count = 0  # the events of the tree that have not ended, and what a nested publisher has begun itself
        self.fans: dict[FanOut, None] = {}  # those events
        self.failures: dict[tuple[FanOut, Feed, int], BaseException] = {}  # each once, though an interrupt tells twice
        self.serves = True  # the publisher may run handlers while it waits; not with a timeout: it could not leave them
        self.gone = False  # the publisher has left: nothing more can be told to it
        self.idle = False  # the publisher sleeps, and has been offered nothing since: it comes at once
        # What it was offered to do; each stays until it is done. A `partial` for each offer, which is equal to itself
        # only: who takes off what was done twice must not take off the same that was offered anew.
        self.jobs: deque[partial[object]] = deque()
        self.bell: Bell | None = None  # what wakes the publisher
        self.wake: Callable[[], object] | None = None  # instead of the bell, where no thread waits
        self.behind: Wait | None = None  # where threads are short, who waits for the coroutine that waits here

    def ring(self) -> None:
        """Has the publisher look. Not under the ledger."""
        if self.bell is not None:
            self.bell.ring()
        if self.wake is not None:
            self.wake()

    def offer(self, job: Job, if_idle: bool = False) -> bool:
        """Gives the publisher something to do, or who waits for it; False where none will come to do it.

        With `if_idle`, nobody else is going to do it: False, too, where none might come at once. One thing at a time,
        then: what a publisher is at work on may wait for just that which is left lying here meanwhile.
        """
        with ledger:
            accepted = self.serves and not self.gone and (self.idle or not if_idle)
            if accepted:
                self.idle = False
                self.jobs.append(partial(job))
        if accepted:
            self.ring()
        return accepted or (self.behind is not None and self.behind.offer(job, if_idle))

    def sleep(self, deadline: float | None, clock: Time) -> bool:
        """Waits until nothing is missing and does meanwhile what is offered; False when the deadline has passed."""
        here = local.here
        owed = [fan.waiting() for fan in here.owed]
        bell = next((wait.bell for wait in (self, *owed) if wait.bell is not None), Bell())
        for wait in (self, *owed):  # one for all: whoever rings any of them wakes this thread
            wait.bell = bell
        depth = len(here.waits)
        outer, here.wait = here.wait, self
        try:
            here.waits.append((here.feed, here.fan, here.origin))
            self._wait(here, bell, deadline, clock)
            return self.count <= 0
        finally:
            here.wait = outer
            del here.waits[depth:]

    def _wait(self, here: Here, bell: Bell, deadline: float | None, clock: Time) -> None:
        """No loop in the `try` of `sleep`: see `ledger`."""
        while not self._is_over(here):
            self.idle = True
            rung = here.rest(partial(clock.wait, bell, deadline))
            with ledger:  # from here on it is offered nothing more that it might not come to
                self.idle = False
            if not rung:
                break

    def _is_over(self, here: Here) -> bool:
        """Does what is offered; says whether nothing is missing then."""
        self.pass_on(_do)
        if here.owed:
            serve_owed(here)
        if self.serves:
            self._do_what_is_due()
        return self.count <= 0

    def _do_what_is_due(self) -> None:
        """Where threads are short: does what the publisher waits for, as nobody else may come to it.

        That is what is due in a lane (see there), and events in lanes that are free.
        """
        for fan in self._all_fans():
            for feed in fan.feeds:
                for job in list(feed.lane.due):
                    job()
                if feed.owes(fan.id) and getattr(feed.lane, "free", False):
                    feed.lane.post((feed, fan.id))

    def _all_fans(self) -> Iterator[FanOut]:
        """Where threads are short: the events that it waits for, and those of the deliveries in line before its own."""
        lanes: set[Lane] = set()
        waits: set[Wait] = {self}
        ahead: list[Wait] = [self]
        while ahead:
            wait = ahead.pop()
            for fan in [fan for fan in list(wait.fans) if is_alone(fan.log.hub.engine)]:
                yield fan
                for lane in {feed.lane for feed in fan.feeds} - lanes:
                    lanes.add(lane)
                    more = {one.fan.top.waiting() for one in lane.all_deliveries() if one.lines} - waits
                    waits |= more
                    ahead += more

    def leave(self, submit: Callable[[Job], object]) -> None:
        """Ends the waiting, done or not, and passes on what it was offered and has not done. Can be made again."""
        with ledger:
            self.gone = True
        self.pass_on(submit)

    def take_failures(self) -> list[BaseException]:
        """Takes off what has failed, to tell of it: the Wait of a quiet topic's last event must not pin it."""
        with ledger:
            failures = self.failures
            self.failures = {}
        return list(failures.values())

    def log_failures(self) -> None:
        """Tells the log of what has failed: the publisher cannot be told, since it was interrupted or cancelled."""
        for error in self.take_failures():
            if not is_ctrl_c(error):
                logger.error("a handler failed, and its publisher was interrupted", exc_info=error)

    def pass_on(self, submit: Callable[[Job], object]) -> int:
        """Passes on what it has been offered; says how much. The monitor may do so too: no job minds being run twice.

        Not what it is offered meanwhile: a lane whose mail is for another thread may come back again and again, and
        its publisher would not see that it need not wait any more.
        """
        passed = 0
        for _ in range(len(self.jobs)):
            try:
                job = self.jobs[0]
            except IndexError:
                break
            submit(job)
            passed += 1
            with suppress(ValueError):
                self.jobs.remove(job)
        return passed


def serve_owed(here: Here) -> None:
    """Does what this thread's publishes were offered: where there are no workers, nobody else can."""
    for fan in list(here.owed):
        if fan.wait is not None:
            fan.wait.pass_on(_do)


def _do(job: Job) -> None:
    job()


def interrupted(error: BaseException) -> RxBusError:
    """What a publisher is told of where Ctrl-C struck the thread that delivered for it, which is not its own."""
    told = RxBusError("the handler was interrupted by Ctrl-C, on the thread of another publisher")
    told.__cause__ = error
    return told


def is_ctrl_c(error: BaseException) -> bool:
    """Python interrupts the main thread only; elsewhere it is what a handler has raised itself."""
    return isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread()
