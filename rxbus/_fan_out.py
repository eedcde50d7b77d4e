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
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from rxbus._here import Job, Origin, local

if TYPE_CHECKING:
    from rxbus._log import Log
    from rxbus._observer import Feed

FOREVER = 1e8  # seconds, three years: more than that no clock takes

logger = logging.getLogger("rxbus")

# Guards FanOut.missing/ended/lost, every field of Wait and Delivery, Lane.deliveries, Feed.cut and Attachment.left.
# Nothing that can block, raise or run foreign code happens while it is held; no other lock is taken under it.
ledger = threading.Lock()


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
    root: FanOut | None = None  # the outermost event that led to this one; None: it is that itself
    trail: tuple[str, Any] | None = None  # the topics of its causes, the nearest first, as a linked list
    chain: int = 0  # how many causes it has
    origin: Origin | None = None  # the item in a buffer's hand that led to it
    done: int = 0  # how many deliveries ended in the publisher's round
    missing: int = -1  # how many deliveries others must end; known when the publisher's round is over
    ended: int = 0  # how many others have ended
    lost: int = 0  # how many ended without an acknowledgement: failed, or the observer left
    refused: tuple[Feed, ...] = ()  # those that are not to be delivered to, having been ended as failed
    wait: Wait | None = None

    @property
    def top(self) -> FanOut:
        """The outermost event of its tree."""
        return self.root or self

    def waiting(self) -> Wait:
        """The Wait of this event's publisher. Under the ledger."""
        if self.wait is None:
            self.wait = Wait()
        return self.wait

    def end(self, lost: bool = False) -> None:
        """Ends one delivery on behalf of the publisher. Under the ledger."""
        self.ended += 1
        self.lost += lost
        if self.ended == self.missing:
            self.top.waiting().close(self)
            self.forget()

    def forget(self) -> None:
        """Lets go of what a quiet topic must not pin: its last entry stays until the next event comes."""
        self.event = self.context = None
        self.feeds = ()

    def contents(self) -> object:
        """What `forget` lets go of: to be held until the ledger has been let go of, since destructors are user code."""
        return self.event, self.context, self.feeds

    def close_round(self, done: int) -> int:
        """Takes in that the publisher's round is over and `done` deliveries ended in it; says how many are missing."""
        held = self.contents()
        with ledger:
            self.missing = len(self.feeds) - done
            missing = self.missing - self.ended
            if missing:
                self.top.waiting().open(self)
            else:
                self.forget()
        del held
        return missing

    def fail(self, error: BaseException, feed: Feed, wait: Wait | None = None, counts: bool = True) -> None:
        """Keeps a failure for the publisher that is told of it: the nested one that waits for it, or the outermost."""
        note = f"in {feed.name}, on topic {self.log.name!r}"
        with suppress(Exception):  # an error that takes no note must not keep the delivery from ending
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
        with ledger:
            self.log.hub.failed += counts
            told = (self.top.waiting() if wait is None or wait.gone else wait).tell(error)
        if not told:
            logger.error("a handler failed after its publisher had gone: %s", note, exc_info=error)

    def fail_here(self, error: BaseException, feed: Feed) -> None:
        """A handler has failed in the publisher's own round, in which it is counted as ended."""
        with ledger:
            self.lost += 1
            wait = self.waiting()
        self.fail(error, feed, wait)

    def refuse(self, feed: Feed, error: Exception) -> None:
        """Ends a delivery that has not begun as failed; the lane's turn must be held, or its holder blocked."""
        self.fail(error, feed)
        held = self.contents()
        with ledger:
            self.refused = (*self.refused, feed)
            self.end(lost=True)
        del held

    def pending(self) -> tuple[Feed, ...]:
        """Who has not ended the delivery of this event. Under the ledger."""
        return tuple(
            feed
            for feed in self.feeds
            if feed.cut is None
            and feed not in self.refused
            and (feed.cursor.id < self.id or any(d.fan is self and d.feed is feed for d in feed.lane.deliveries))
        )


class Wait:
    """What one publisher waits for. Its methods are called under the ledger, except where they say otherwise."""

    __slots__ = ("bell", "count", "failures", "fans", "fatal", "gone", "jobs", "serves", "wake")

    def __init__(self) -> None:
        self.count = 0
        self.fans: dict[FanOut, None] = {}  # the events of the tree that have not ended
        self.failures: list[Exception] = []
        self.fatal: BaseException | None = None  # a handler's BaseException, raised again at the publisher
        self.serves = True  # the publisher may run handlers while it waits; not with a timeout: it could not leave them
        self.gone = False  # the publisher has left: nothing more can be told to it
        self.jobs: deque[Job] = deque()  # what it was offered to do; each stays until it is done
        # What wakes the publisher. A queue, since ringing twice must be harmless, and ringing a publisher that has left
        # must not raise.
        self.bell: SimpleQueue[None] | None = None
        self.wake: Callable[[], object] | None = None  # instead of the bell, where no thread waits

    def open(self, fan: FanOut) -> None:
        """Takes a fan-out into the tree that the publisher waits for."""
        self.fans[fan] = None
        self.count += 1

    def close(self, fan: FanOut) -> None:
        """Takes it out again."""
        if fan in self.fans:
            del self.fans[fan]
            self.down()

    def down(self) -> None:
        """Counts one down, and wakes the publisher at zero."""
        self.count -= 1
        if self.count == 0:
            if self.bell is not None:
                self.bell.put(None)
            if self.wake is not None:
                self.wake()

    def tell(self, error: BaseException) -> bool:
        """Keeps a failure for the publisher; False where it has gone."""
        if isinstance(error, Exception):
            self.failures.append(error)
        else:
            self.fatal = error
        return not self.gone

    def offer(self, job: Job) -> bool:
        """Gives the publisher something to do; False where it will not come to do it."""
        if self.gone or not self.serves:
            return False
        self.jobs.append(job)
        if self.bell is not None:
            self.bell.put(None)
        return True

    def sleep(self, deadline: float | None) -> bool:
        """Waits until nothing is missing and does meanwhile what is offered; False when the deadline has passed.

        Not under the ledger.
        """
        with ledger:
            if self.bell is None:
                self.bell = SimpleQueue()
        here = local.here
        outer, here.wait = here.wait, self
        try:
            while True:
                while self.jobs:
                    self._do(self.jobs[0])
                if self.count <= 0:
                    return True
                try:
                    self.bell.get(timeout=None if deadline is None else min(max(0.0, deadline - monotonic()), FOREVER))
                except Empty:
                    return self.count <= 0
        finally:
            here.wait = outer

    def _do(self, job: Job) -> None:
        job()
        with suppress(ValueError):  # the monitor may have given it to a worker
            self.jobs.remove(job)

    def leave(self, submit: Callable[[Job], object]) -> None:
        """Ends the waiting, done or not, and passes on what it was offered and has not done. Not under the ledger."""
        with ledger:
            self.gone = True
        self.pass_on(submit)

    def pass_on(self, submit: Callable[[Job], object]) -> int:
        """Passes on what was offered; says how much. Not under the ledger."""
        passed = 0
        while self.jobs:
            job = self.jobs[0]
            submit(job)
            passed += 1
            with suppress(ValueError):
                self.jobs.remove(job)
        return passed
