"""Who still owes an acknowledgement, and to whom: the counting behind `publish`.

A publish that meets only free, fast observers counts on its fingers and touches nothing here. Whatever cannot be done
within its own round (an observer that is busy, a delivery on a worker, a deferral) is written into the *ledger*: one
lock for all counts, since an event's tree may span several buses and each entry is a few assignments long.

    FanOut    one event and the observers it goes to: how many deliveries others must end, how many have ended
    Wait      what one publisher waits for: a count, the failures, the bell that wakes it
    Delivery  one event inside one observer, where more than a plain call is needed to know when it ends

An acknowledgement flows one way: Delivery -> FanOut -> the Wait of the outermost publisher (its whole tree), and to
the Wait of a nested publisher for what that one started itself.
"""

from __future__ import annotations

import logging
import threading
from asyncio import AbstractEventLoop, _get_running_loop
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from queue import Empty, SimpleQueue
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from rxbus._event import Event
from rxbus._here import Here, Job, Origin, local, run_later
from rxbus.errors import InvalidArgument, RxBusError

if TYPE_CHECKING:
    from rxbus._lane import Feed
    from rxbus._log import Log

__all__ = ["Acknowledgement", "Receipt", "defer"]

FOREVER = 1e8  # seconds, three years: more than that no clock takes

logger = logging.getLogger("rxbus")

# Guards FanOut.missing/ended/lost, every field of Wait and Delivery, Lane.deliveries, Feed.cut and Attachment.left.
# Nothing that can block, raise or run foreign code happens while it is held; no other lock is taken under it.
ledger = threading.Lock()


class Receipt(msgspec.Struct, frozen=True):
    """What `publish` returns.

    Attributes:
        event: The event that was published.
        acknowledged: How many observers have acknowledged it.
        queued: How many were busy and will get it next; never other than 0 for an outermost publish.
    """

    event: Event[Any]
    acknowledged: int
    queued: int = 0


# What a coroutine works for: an event loop's thread serves many, so its place says nothing about them.
coroutine_place: ContextVar[Delivery | Origin | None] = ContextVar("rxbus_place", default=None)


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


class Hold(Protocol):
    """What keeps a lane's turn beyond the handler's return: a scheduled action, a coroutine."""

    held: bool


class Delivery:
    """One event inside one observer, counted: something keeps it open beyond the handler's plain return.

    It ends once: when the handler has returned and all that was deferred or scheduled is done, when it has failed, or
    when its observer leaves. All fields are under the ledger.
    """

    __slots__ = ("ended", "failure", "fan", "feed", "holds", "inside", "open", "void", "wait")

    def __init__(self, fan: FanOut, feed: Feed, wait: Wait | None = None) -> None:
        self.fan = fan
        self.feed = feed
        self.wait = wait  # the nested publisher that waits for this delivery; already counted there
        self.inside = True  # the handler has not returned
        self.open = 1  # what must still be settled: the handler itself, deferrals, holds
        self.holds = 0  # what keeps the lane's turn after the handler's return: scheduled actions, a coroutine
        self.failure: BaseException | None = None
        self.void = False  # the handler has raised: what it deferred does not matter any more
        self.ended = False

    def enter(self, awaited: bool = False) -> None:
        """Puts it on its lane's list. A nested publisher waits for it if `awaited`, unless the lane was busy before."""
        with ledger:
            deliveries = self.feed.lane.deliveries
            if deliveries and self.wait is not None:
                self.wait.down()
                self.wait = None
            elif awaited and self.fan.root is not None and not deliveries:
                self.wait = self.fan.waiting()
                self.wait.count += 1
            deliveries.add(self)

    def defer(self) -> None:
        """Keeps it open for one more."""
        with ledger:
            self.open += 1

    def hold(self, by: Hold) -> None:
        """Keeps it open for one more, and the lane's turn with it. `by` knows then, whatever interrupts."""
        with ledger:
            self.open += 1
            self.holds += 1
            by.held = True

    def returned(self, here: Here, error: BaseException | None = None) -> None:
        """The handler has returned, or raised; once. Sets `here.kept` where the turn is not to be given back yet."""
        if not self.inside:
            return
        self._fail(error)
        held = self.fan.contents()
        with ledger:
            here.kept = self.holds > 0
            if error is not None:
                self.void = True
                self.open = self.holds + 1
            if self.feed.on_next is None:  # the observer has left meanwhile
                self.open = 1
            self._settle()
            self.inside = False  # last: an interrupted call is made again
        del held

    def settle(self, error: BaseException | None = None, holds: bool = False) -> None:
        """One of those that kept it open is done; the last hold gives the turn back."""
        if not holds and (self.ended or self.void):  # nobody waits for it any more
            return
        self._fail(error)
        held = self.fan.contents()
        with ledger:
            if holds or not self.void:
                self._settle()
            self.holds -= holds
            give_back = holds and self.holds == 0 and not self.inside
        del held
        if give_back:
            self.feed.lane.give_back()

    def _fail(self, error: BaseException | None) -> None:
        """Tells of a failure, once: what `with defer()` lets through is not told again when the handler raises it."""
        if error is not None and error is not self.failure:
            first, self.failure = self.failure is None, error
            if self.ended:
                logger.error("a handler failed after its observer had left: %s", self.feed.name, exc_info=error)
            else:
                self.fan.fail(error, self.feed, self.wait, first)

    def leave(self) -> None:
        """Its observer has left: nobody waits any more, and what is open counts as given. Under the ledger."""
        self.open = 1
        self._settle()

    def _settle(self) -> None:
        self.open -= 1
        if self.open <= 0 and not self.ended:
            self.feed.lane.deliveries.discard(self)
            self.ended = True
            self.fan.end(self.failure is not None)
            if self.wait is not None:
                self.wait.down()

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Lets this thread work for the delivery: what it publishes, defers and schedules belongs to it."""
        here = local.here
        before = here.feed, here.event, here.fan, here.delivery, here.origin
        here.feed, here.event, here.fan, here.delivery, here.origin = self.feed, self.fan.event, self.fan, self, None
        try:
            yield
        finally:
            here.feed, here.event, here.fan, here.delivery, here.origin = before
            if here.later:
                run_later(here)


def current_fan_out(here: Here) -> FanOut:
    """The fan-out of the event a thread delivers; a topic with a single observer makes it only when asked."""
    if here.fan is None:
        assert here.feed is not None
        here.fan = FanOut(here.feed.log, here.event, here.event.id, (here.feed,), loop=_get_running_loop())
    return here.fan


def current_delivery() -> Delivery | None:
    """The delivery that the calling code works for, counted from now on; None outside of one."""
    here = local.here
    if here.origin is not None:  # behind a buffer: nobody waits
        return None
    if here.feed is not None:
        if here.delivery is None:
            here.delivery = Delivery(current_fan_out(here), here.feed)
            here.delivery.enter(awaited=True)
        return here.delivery
    place = coroutine_place.get()
    return place if isinstance(place, Delivery) and not place.ended else None


def current_place() -> Delivery | Origin | None:
    """What the calling code works for: a delivery, or an item that a buffer has let go of."""
    here = local.here
    if here.origin is None and here.feed is None:
        place = coroutine_place.get()
        if isinstance(place, Origin):
            return place
    return here.origin or current_delivery()


@contextmanager
def working_for(place: Delivery | Origin | None) -> Iterator[None]:
    """Lets this thread work for a place; see `current_place`."""
    if isinstance(place, Delivery):
        with place.resumed():
            yield
        return
    here = local.here
    outer, here.origin = here.origin, place
    try:
        yield
    finally:
        here.origin = outer


@contextmanager
def standing() -> Iterator[None]:
    """Lets this thread work for what its coroutine works for; no change in a handler, or outside of coroutines."""
    here = local.here
    place = coroutine_place.get()
    if here.feed is not None or here.origin is not None or (isinstance(place, Delivery) and place.ended):
        place = None
    if place is None:
        yield
    else:
        with working_for(place):
            yield


class Acknowledgement:
    """The word that a delivery is done, to be given later, once, from any thread.

    It is a context manager too: leaving the block acknowledges, an exception in it is a `nack` and goes on.
    """

    __slots__ = ("_delivery", "_owed")

    def __init__(self, delivery: Delivery) -> None:
        delivery.defer()
        self._delivery = delivery
        self._owed = [True]  # taken off once: list.pop is atomic

    def ack(self) -> None:
        """Says that the delivery is done. Later calls, and calls after the observer has left, do nothing."""
        self._settle(None)

    def nack(self, error: BaseException) -> None:
        """Says that the delivery has failed: `error` is reported to the publisher. Later calls do nothing.

        Raises:
            InvalidArgument: `error` is not an exception; nothing is settled.
        """
        if not isinstance(error, BaseException):
            raise InvalidArgument(f"nack wants the exception that says what failed, not {error!r}")
        self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        try:
            try:
                self._owed.pop()
            except IndexError:
                return
            self._delivery.settle(error)
        except BaseException:  # interrupted: the word can be given again
            self._owed[:] = [True]
            raise

    def __enter__(self) -> Acknowledgement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._settle(error)


def defer() -> Acknowledgement:
    """Keeps the current delivery open: it is not done when the handler returns, but when the result is settled.

    Called inside a handler, or by what works for one (a scheduled action, a coroutine handler). Several may be open in
    one delivery: all must be settled. The observer takes its next event meanwhile; the publisher waits. Should the
    handler raise, the delivery has failed, whatever is still open. Should the observer leave or the bus be closed, what
    is open counts as given.

    Raises:
        RxBusError: Called outside a delivery.
    """
    delivery = current_delivery()
    if delivery is None:
        raise RxBusError("defer() is for handlers: there is no delivery here whose acknowledgement could be deferred")
    return Acknowledgement(delivery)
