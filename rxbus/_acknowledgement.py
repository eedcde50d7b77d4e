"""Who still owes an acknowledgement, and to whom: the counting behind `publish`.

A `Delivery` is one event inside one observer, where more than a plain call is needed to know when it ends: a deferral,
a scheduled action, a coroutine, another thread.

An acknowledgement flows one way: Delivery -> FanOut -> the Wait of the outermost publisher (its whole tree), and to
the Wait of a nested publisher for what that one started itself.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, _get_running_loop
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from rxbus._event import Event
from rxbus._fan_out import FanOut, Wait, is_ctrl_c, ledger, logger
from rxbus._here import Engine, Here, Origin, Reentered, local
from rxbus._wings import Shown
from rxbus.errors import InvalidArgument, RxBusError

if TYPE_CHECKING:
    from rxbus._observer import Feed
    from rxbus._span import Span

T = TypeVar("T")

__all__ = ["Acknowledgement", "Receipt", "defer"]


class Receipt(Shown, msgspec.Struct, frozen=True):
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
coroutine_places: list[None] = []  # empty as long as there never was one, so that a publish need not look


def copy_context_for(place: Delivery | Origin | None) -> Context:
    """The context of a coroutine that works for a place: the calling one, but for that."""
    if not coroutine_places:
        coroutine_places.append(None)
    context = copy_context()
    context.run(coroutine_place.set, place)
    return context


class Claim(Protocol):
    """A nested publisher's wait for a delivery that another thread is to make."""

    owed: bool  # it is counted in `wait`
    wait: Wait

    def drop(self) -> None:
        """Waits for it no longer, unless the delivery has taken over its claim."""


class Delivery:
    """One event inside one observer, counted: something keeps it open beyond the handler's plain return.

    It ends once: when the handler has returned and all that was deferred or scheduled is done, when it has failed, or
    when its observer leaves. All fields are under the ledger. Every method can be made again after an interrupt.
    """

    __slots__ = (
        *("ended", "failure", "fan", "feed", "holds", "inside"),
        *("keeps", "lines", "open", "refused", "span", "void", "wait", "works"),
    )

    def __init__(self, fan: FanOut, feed: Feed) -> None:
        self.fan = fan
        self.feed = feed
        self.wait: Wait | None = None  # the nested publisher that waits for this delivery, and has counted it
        self.inside = True  # the handler has not returned
        self.open = 1  # what must still be settled: the handler itself, deferrals, holds
        self.holds = 0  # what keeps the lane's turn beyond the handler's return: scheduled actions, a coroutine
        self.works = 0  # what is at work for it, and no mere deferral: scheduled actions, coroutines
        self.keeps = False  # the handler has returned, and the turn is kept; the last hold gives it back
        self.failure: BaseException | None = None
        self.void = False  # the handler has raised: what it deferred does not matter any more
        self.ended = False
        self.refused = False  # it has failed, and what has not begun of it is not to
        self.lines: dict[object, int] = {}  # where it stands in line, beyond its lane, and at which place
        self.span: Span | None = None  # where it is traced

    @property
    def engine(self) -> Engine:
        """What makes it."""
        return self.feed.lane.engine

    def enter(self, claim: Claim | None = None) -> bool:
        """Puts it on its lane's list; who has claimed it waits for it, unless the lane is busy with earlier ones.

        False where it must not be made: it has been refused.
        """
        if claim is not None and self.fan.is_by(self.feed.lane):
            claim = None
        with ledger:
            if self.fan.lapsed is not None and self.feed in self.fan.lapsed:
                return False
            deliveries = self.feed.lane.deliveries
            if claim is not None and claim.owed and not deliveries:
                claim.owed = False
                self.wait = claim.wait
            deliveries[self] = None
            return True

    def enter_own(self) -> bool:
        """As `enter`, on its publisher's thread, or one that works for the same event: one that is nested waits for it.

        Unless its round is over: it may have returned, having left the observer busy.
        """
        nested = self.fan.root is not None and self.fan.missing < 0 and not self.fan.is_by(self.feed.lane)
        wait = self.fan.waiting() if nested else None
        with ledger:
            if self.fan.lapsed is not None and self.feed in self.fan.lapsed:
                return False
            deliveries = self.feed.lane.deliveries
            if wait is not None and self.wait is None and not deliveries:
                self.wait = wait
                wait.count += 1
            deliveries[self] = None
            return True

    def keep_open(self, by: Acknowledgement) -> None:
        """Keeps it open for one more."""
        with ledger:
            if not by._owed:
                self.open += 1
                self.holds += by._turn
                self.works += by._works
                by._owed = True

    def returned(self, here: Here, error: BaseException | None = None) -> None:
        """The handler has returned, or raised. Sets `here.kept` where the turn is not to be given back yet."""
        if self.inside:
            if error is not None:
                self._fail(error)
            held = self.fan.contents()
            with ledger:
                if error is not None:
                    self.void = True
                    self.open = self.holds + 1
                if self.feed.on_next is None:  # the observer has left meanwhile
                    self.open = 1
                self._settle()
                self.inside = False
                self.keeps = here.kept = self.holds > 0
            del held
        self._close()
        self._ring()
        self._check()

    def settle(self, by: Acknowledgement, error: BaseException | None = None, unless_late: bool = False) -> None:
        """One of those that kept it open is done; the last hold gives the turn back."""
        lane = self.feed.lane
        interrupted = error is not None and is_ctrl_c(error)
        if by._owed:
            if error is not None and (by._turn or not self.void) and not (unless_late and self.ended):
                self._fail(error)
            held = self.fan.contents()
            with ledger:
                if by._owed:
                    if interrupted:  # what was about to be done may never be: it is not waited for any more
                        self.void = True
                        self.open = self.holds + self.inside + (not by._turn)
                    if by._turn or interrupted or not self.void:
                        self._settle()
                    by._owed = False
                    self.holds -= by._turn
                    self.works -= by._works
                    if self.keeps and self.holds == 0:
                        self.keeps = False
                        lane.free = True
            del held
        self._close()
        self._ring()
        if by._turn:
            lane.given_back()

    def _fail(self, error: BaseException) -> None:
        """Tells of a failure, once: what `with defer()` lets through is not told again when the handler raises it."""
        if error is self.failure:
            return
        if self.ended:
            logger.error("a handler failed after its observer had left: %s", self.feed.name, exc_info=error)
        else:
            self.fan.fail(error, self.feed, self.wait, self.failure is None)
        self.failure = error

    def publisher(self) -> Wait:
        """What the nearest publisher waits for that waits for it."""
        return self.wait or self.fan.top.waiting()

    def stand(self, line: object, number: int) -> None:
        """It has a place in a line, and is not done before those before it."""
        self.lines[line] = number
        if not self.inside:
            self._check()

    def _check(self) -> None:
        """Those before it in its line may wait for its very publisher, as one that hands on what a buffer has held."""
        if self.lines and (origin := self.fan.top.origin) is not None:
            origin.holder.check(self.fan.top)

    def is_behind(self, other: Delivery) -> bool:
        """Whether both stand in a line, and this one comes after the other."""
        its = dict(other.lines)
        return any(line in its and its[line] < self.lines.get(line, 0) for line in list(self.lines))

    def step_out(self, line: object, number: int) -> None:
        """It was its turn in a line, and that is over."""
        if self.lines.get(line) == number:
            del self.lines[line]

    def is_deferred(self) -> bool:
        """Whether nothing but acknowledgements that handlers have deferred keeps it open."""
        with ledger:
            return not self.inside and not self.works

    def is_over(self) -> bool:
        """Whether nothing works for it any more. A coroutine that was refused goes on, and is in nobody else's way."""
        return self.ended and not (self.refused and self.works)

    def refuse(self, error: Exception) -> None:
        """Fails it: its handler has returned, and what is open is not to be waited for."""
        self.refused = True
        self.leave(error)

    def leave(self, error: Exception | None = None) -> None:
        """Its observer has left: nobody waits any more, and what is open counts as given, or has failed."""
        try:
            self._leave(error)
        except BaseException:  # interrupted: it may have ended, and not have woken its publisher
            self._leave(error)
            raise

    def _leave(self, error: Exception | None) -> None:
        if error is not None:
            self._fail(error)
        held = self.fan.contents()
        with ledger:
            self.open = 1
            self._settle()
        del held
        self._close()
        self._ring()

    def _close(self) -> None:
        """Once it has ended, tells of it; whoever keeps it must not pin what has failed, and with it the payload."""
        if self.ended:
            if self.span is not None:
                self.span.end(self.failure)
            self.failure = None

    def _settle(self) -> None:
        """Under the ledger; atomic but for the entry of `end`, before which nothing has changed."""
        if self.open <= 1 and not self.ended and self.fan.end(self.failure is not None, self):
            if self.wait is not None:
                self.wait.count -= 1
            deliveries = self.feed.lane.deliveries
            if self in deliveries:
                del deliveries[self]
        self.open -= 1

    def _ring(self) -> None:
        """Wakes those who wait for it, if they wait for nothing else."""
        self.fan.ring()
        if self.wait is not None and self.wait.count <= 0:
            self.wait.ring()

    def resume(self, call: Callable[[], T]) -> T:
        """Has this thread work for the delivery: what a call publishes, defers and schedules belongs to it.

        Whoever gives an acknowledgement for the call runs what was put off (`run_later`) afterwards: it may wait for
        the very turn that goes with it.
        """
        here = local.here
        before = here.feed, here.event, here.fan, here.delivery, here.origin
        here.feed, here.event, here.fan, here.delivery, here.origin = self.feed, self.fan.event, self.fan, self, None
        try:
            return call()
        finally:  # no context manager: an interrupt could strike when it has been entered, or is to be left
            here.feed, here.event, here.fan, here.delivery, here.origin = before


def current_fan_out(here: Here) -> FanOut:
    """The fan-out of the event a thread delivers; a topic with a single observer makes it only when asked."""
    if here.fan is None:
        assert here.feed is not None
        if here.event is None:
            raise Reentered
        here.fan = FanOut(here.feed.log, here.event, here.event.id, (here.feed,), loop=_get_running_loop())
    return here.fan


def current_delivery() -> Delivery | None:
    """The delivery that the calling code works for, counted from now on; None outside of one."""
    here = local.here
    if here.origin is not None:  # behind a buffer: nobody waits
        return None
    if here.feed is not None:
        if here.delivery is None:
            delivery = here.delivery = Delivery(current_fan_out(here), here.feed)
            delivery.enter_own()
        return here.delivery
    place = coroutine_place.get()
    return place if isinstance(place, Delivery) and not place.is_over() else None


def current_place() -> Delivery | Origin | None:
    """What the calling code works for: a delivery, or an item that a buffer has let go of."""
    here = local.here
    if here.origin is None and here.feed is None:
        place = coroutine_place.get()
        if isinstance(place, Origin):
            return place
    return here.origin or current_delivery()


def end_stream(call: Callable[[], object]) -> None:
    """Ends a stream for what follows a far side or a coroutine; a failure there is logged, if it is a delivery's.

    Its observer leaves by that. So it would be a matter of chance whether its publisher still waits to be told.
    """
    try:
        call()
    except BaseException as error:
        delivery = local.here.delivery
        if delivery is None or is_ctrl_c(error):
            raise
        where = delivery.feed.name, delivery.fan.log.name
        logger.error("an observer failed when its stream ended: in %s, on topic %r", *where, exc_info=error)


def work_for(place: Delivery | Origin | None, call: Callable[[], T]) -> T:
    """Has this thread work for a place; see `current_place`."""
    if isinstance(place, Delivery):
        return place.resume(call)
    here = local.here
    before = here.feed, here.event, here.fan, here.delivery, here.origin, here.depth, here.holding
    here.feed = here.event = here.fan = here.delivery = None  # it may be a publisher that helps, inside of a handler
    here.origin, here.depth, here.holding = place, 0, 0
    try:
        return call()
    finally:
        here.feed, here.event, here.fan, here.delivery, here.origin, here.depth, here.holding = before


def work_for_coroutine(call: Callable[[], T]) -> T:
    """Has this thread work for what its coroutine works for; no change in a handler, or outside of coroutines."""
    here = local.here
    place = coroutine_place.get()
    if here.feed is not None or here.origin is not None or (isinstance(place, Delivery) and place.is_over()):
        place = None
    return call() if place is None else work_for(place, call)


class Acknowledgement:
    """The word that a delivery is done, to be given later, once, from any thread.

    It is a context manager too: leaving the block acknowledges, an exception in it is a `nack` and goes on.
    """

    __slots__ = ("_owed", "_place", "_turn", "_works")

    def __init__(self, place: Delivery | Origin, turn: bool = False, works: bool = False) -> None:
        self._place = place
        self._works = turn or works  # closing waits for it, as for what runs
        self._turn = turn  # the lane's turn is kept, too, until it is given
        self._owed = False  # the delivery waits for it; under the ledger
        try:
            place.keep_open(self)
        except BaseException:  # interrupted: nobody is going to have it
            self._give()
            raise

    def ack(self) -> None:
        """Says that the delivery is done. Later calls, and calls after the observer has left, do nothing."""
        self._give()

    def nack(self, error: BaseException) -> None:
        """Says that the delivery has failed: `error` is reported to the publisher. Later calls do nothing.

        Raises:
            InvalidArgument: `error` is not an exception; nothing is settled.
        """
        if not isinstance(error, BaseException):
            raise InvalidArgument(f"nack wants the exception that says what failed, not {error!r}")
        self._give(error, unless_late=True)

    def _give(self, error: BaseException | None = None, unless_late: bool = False) -> None:
        """Gives it, with what has failed if anything has, which is logged where the delivery has ended without it.

        Args:
            error: What has failed.
            unless_late: Says nothing then.
        """
        try:
            self._place.settle(self, error, unless_late)
        except BaseException:  # interrupted: what was not done yet is done now
            self._place.settle(self, error, unless_late)
            raise

    def _is_told(self) -> bool:
        """Whether there is, or was, a publisher to be told of failures; else they are logged."""
        return isinstance(self._place, Delivery)

    def _is_void(self) -> bool:
        """Whether nobody waits for it any more: the handler has failed."""
        return isinstance(self._place, Delivery) and self._place.void

    def __enter__(self) -> Acknowledgement:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._give(error, unless_late=True)


class Outside(Acknowledgement):
    """One that is owed by no lane's turn: closing the bus waits for it, behind a buffer too.

    Where an event loop owes it, the monitor gives it, should the loop be closed before it can.
    """

    __slots__ = ("_outside",)

    def __init__(self, place: Delivery | Origin, loop: AbstractEventLoop | None = None, turn: bool = False) -> None:
        self._outside = place.engine.outside
        super().__init__(place, turn, works=True)
        try:
            self._outside[self] = loop
            if loop is not None:
                place.engine.monitor.wake()
        except BaseException:  # interrupted: nobody is going to have it
            self._give()
            raise

    def _give(self, error: BaseException | None = None, unless_late: bool = False) -> None:
        self._outside.pop(self, None)
        super()._give(error, unless_late)

    def _offer(self, call: Callable[[], object]) -> bool:
        """Gives the outermost publisher something to do; False where none waits."""
        return isinstance(self._place, Delivery) and self._place.fan.top.waiting().offer(call)


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
