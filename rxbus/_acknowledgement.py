"""Who still owes an acknowledgement, and to whom: the counting behind `publish`.

A `Delivery` is one event inside one observer, where more than a plain call is needed to know when it ends: a deferral,
a scheduled action, a coroutine, another thread.

An acknowledgement flows one way: Delivery -> FanOut -> the Wait of the outermost publisher (its whole tree), and to
the Wait of a nested publisher for what that one started itself.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from rxbus._event import Event
from rxbus._fan_out import FanOut, Wait, ledger, logger
from rxbus._here import Here, Origin, local, run_later
from rxbus.errors import InvalidArgument, RxBusError

if TYPE_CHECKING:
    from rxbus._observer import Feed

__all__ = ["Acknowledgement", "Receipt", "defer"]


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
