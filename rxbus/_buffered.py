"""`buffered`: a bounded buffer between publishers and what follows."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import msgspec
from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, Disposable

from rxbus._acknowledgement import current_fan_out, waiting_with, work_for
from rxbus._bell import Bell, ring_all
from rxbus._fan_out import FanOut, ledger, logger, pending
from rxbus._here import Engine, Here, Holder, Job, Origin, PutOff, Reentered, local, run_later
from rxbus._workers import Workers
from rxbus.errors import BufferOverflow, InvalidArgument

if TYPE_CHECKING:
    from rxbus._lane import Lane
    from rxbus._observer import Feed

_T = TypeVar("_T")

Overflow = Literal["block", "drop_oldest", "drop_newest", "error"]


def buffered(capacity: int, overflow: Overflow = "block") -> Callable[[Observable[_T]], Observable[_T]]:
    """Puts a bounded buffer between publishers and what follows: they wait for a place in it, not for the far side.

    What follows is called on a worker, one item after another, in order. The item in its hand is not counted. What a
    handler there publishes is an outermost publish, whose cause and chain are kept; what fails there has no publisher
    to go to and is logged. Completion, and closing the bus, hand on what is held before they end the stream.

    Args:
        capacity: How many items are held, at least 1.
        overflow: When full: `block` the publisher until there is room (the back-pressure), `drop_oldest` or
            `drop_newest` item, or `error`: the publish fails with a `BufferOverflow`. A handler that publishes into its
            own full buffer, on whatever way, gets that error too: it would wait for itself.

    Raises:
        InvalidArgument: `capacity` is less than 1, or `overflow` is none of these.
    """
    if not isinstance(capacity, int) or capacity < 1:
        raise InvalidArgument(f"capacity is at least 1, not {capacity!r}")
    if overflow not in get_args(Overflow):
        raise InvalidArgument(f"overflow is one of {', '.join(get_args(Overflow))}, not {overflow!r}")

    def operator(source: Observable[_T]) -> Observable[_T]:
        def subscribe(observer: abc.ObserverBase[_T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            buffer = Buffer(capacity, overflow, observer)
            here = local.here
            here.hub, here.attached = None, "a handler"
            upstream = source.subscribe(buffer.on_next, buffer.on_error, buffer.on_completed, scheduler=scheduler)
            buffer.use(None if here.hub is None else here.hub.engine)
            buffer.name = here.attached
            return CompositeDisposable(upstream, Disposable(buffer.stop))

        return Observable(subscribe)

    return operator


_spare = Workers(None, "rxbus-spare")  # for buffers behind sources that are no bus's


def _inherit() -> None:
    """In a forked child: the threads of the spare workers exist in the parent only."""
    global _spare
    _spare = Workers(None, "rxbus-spare")
    buffers._at_fork_reinit()  # type: ignore[attr-defined] # pyright: ignore # as threading's own classes do


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)

# Guards every buffer's fields, and Lane.blocked: one for all, since a buffer that is full looks at others to see
# whether it would wait for itself. The ledger may be taken under it; nothing is called under it. An RLock, since the
# garbage collector may run a destructor that publishes.
buffers = threading.RLock()


class _Item(msgspec.Struct, eq=False):
    """A call to be made to what follows."""

    call: Callable[[], None]
    origin: Origin | None  # the event it comes from, where it comes from one
    context: Context
    counts: bool  # an item, as against the end of the stream


class Buffer:
    def __init__(self, capacity: int, overflow: Overflow, observer: abc.ObserverBase[Any]) -> None:
        self._capacity = capacity
        self._overflow = overflow
        self.observer = observer
        self._items: deque[_Item] = deque()
        self._held = 0  # those among them that count
        self._in_hand: Origin | None = None  # of the item that what follows is at work on
        self._handing = False
        self._submitted = False  # a worker is on its way, or at work
        self._at_the_door: list[Bell] = []  # those who wait for room: rung when an item is taken out
        self._waits_for: tuple[tuple[Bell, Buffer], ...] = ()  # where the item in hand waits for room, by who waits
        self._stopped = False
        self.name = "a handler"  # whose buffer it is
        self._limit: int | None = None  # of the workers that hand on
        self._submit: Callable[[Job], None] = _spare.submit

    def use(self, engine: Engine | None) -> None:
        """Hands on by the workers of an engine, so that closing its bus waits for what is held."""
        if engine is not None:
            self._limit, self._submit = engine.limit, engine.submit

    def on_next(self, value: Any) -> None:
        self._put(lambda: self.observer.on_next(value), counts=True)

    def on_error(self, error: Exception) -> None:
        self._put(lambda: self.observer.on_error(error), counts=False)

    def on_completed(self) -> None:
        self._put(self.observer.on_completed, counts=False)

    def stop(self) -> None:
        none: deque[_Item] = deque()
        with buffers:
            self._stopped = True
            dropped, self._items = self._items, none
            self._held = 0
        del dropped  # not under the lock: destructors are user code
        ring_all(self._at_the_door)

    def check(self, fan: FanOut) -> None:
        """See `Holder`."""
        with buffers:
            if self._in_hand is fan.origin:
                self._refuse_in_ring(fan)

    def _refuse_in_ring(self, fan: FanOut) -> None:
        """Under the lock."""
        for one, feed in _pending(fan):
            if any(self in _reached(holder) for _, holder in feed.lane.blocked):
                one.refuse(feed, BufferOverflow(self._capacity, _RING))

    def _put(self, call: Callable[[], None], counts: bool) -> None:
        here = local.here
        if ledger._is_owned():  # type: ignore[attr-defined] # pyright: ignore
            raise Reentered  # the order of the two locks is the other one
        source = here.origin or (None if here.feed is None else current_fan_out(here))
        origin = None
        if source is not None:
            self.use(source.log.hub.engine)
            origin = Origin(source.log, source.event, source.id, source.trail, source.chain, self)
        item = _Item(call, origin, copy_context(), counts)
        if self._enter(item) or (self._overflow == "block" and self._wait_and_enter(item, here)):
            self._begin(here)

    def _enter(self, item: _Item) -> bool:
        """Takes an item in, if there is room or room can be made; says whether."""
        dropped: _Item | None = None  # held until the lock has been let go of: destructors are user code
        with buffers:
            if self._stopped:
                return False
            if item.counts and self._held >= self._capacity:
                if self._overflow == "error":
                    raise BufferOverflow(self._capacity, "overflow='error'")
                if self._overflow != "drop_oldest":
                    return False
                dropped = next(item for item in self._items if item.counts)
                self._items.remove(dropped)
                self._held -= 1
            self._items.append(item)
            self._held += item.counts
            return True

    def _begin(self, here: Here) -> None:
        """Has what is held handed on, unless somebody is at it."""
        if self._submitted:
            return
        self._submitted = True
        if self._limit == 0:
            here.later.append(PutOff(self._hand_on_all, self._submit))
            run_later(here)  # on a thread that delivers nothing
            return
        try:
            self._submit(self._hand_on_all)
        except BaseException:  # interrupted: it may not be on its way
            self._submitted = False
            raise

    def _wait_and_enter(self, item: _Item, here: Here) -> bool:
        """Waits for room; False where the buffer has been stopped."""
        lanes, origins = waiting_with(here)
        upstream: list[Buffer] = []
        bell = Bell()
        try:
            with buffers:
                self._at_the_door.append(bell)
                upstream = _in_whose_hands(origins)
                if not _reached(self).isdisjoint(upstream):
                    raise BufferOverflow(self._capacity, _RING)
                for lane in lanes:
                    lane.blocked = (*lane.blocked, (bell, self))
                self._refuse_those_for(lanes)
                for buffer in upstream:
                    buffer._waits_for = (*buffer._waits_for, (bell, self))
            return self._wait_for_room(item, here, bell)
        finally:
            try:
                self._leave_the_door(bell, lanes, upstream)
            except BaseException:  # interrupted
                self._leave_the_door(bell, lanes, upstream)
                raise

    def _wait_for_room(self, item: _Item, here: Here, bell: Bell) -> bool:
        while not (entered := self._enter(item)) and not self._stopped:
            self._begin(here)
            # A full pool must not keep us waiting for a worker.
            if self._limit is None or not self._hand_on():
                bell.wait()
        return entered

    def _leave_the_door(self, bell: Bell, lanes: set[Lane], upstream: list[Buffer]) -> None:
        with suppress(ValueError):
            self._at_the_door.remove(bell)
        with buffers:
            for lane in lanes:
                lane.blocked = tuple(door for door in lane.blocked if door[0] is not bell)
            for buffer in upstream:
                buffer._waits_for = tuple(door for door in buffer._waits_for if door[0] is not bell)
        if self._items and not self._handing:  # it may have been this thread that was handing on
            self._begin(local.here)

    def _refuse_those_for(self, lanes: set[Lane]) -> None:
        """The lanes will wait for room: fails what the handlers that have to make it publish to those very lanes."""
        for holder in _reached(self):
            if isinstance(holder, Buffer):
                for fan, feed in holder._published():
                    if feed.lane in lanes:
                        fan.refuse(feed, BufferOverflow(self._capacity, _RING))

    def _published(self) -> list[tuple[FanOut, Feed]]:
        """The deliveries that the item in hand waits for, by what its handler publishes. Under the lock."""
        fan = None if self._in_hand is None else self._in_hand.fan
        return [] if fan is None else _pending(fan)

    def _hand_on_all(self) -> None:
        while self._hand_on():
            pass
        with buffers:
            self._submitted = False
            more = bool(self._items) and not self._handing  # it came just now
        if more:
            self._begin(local.here)

    def _hand_on(self) -> bool:
        """Hands the first item to what follows; False where there is none, or somebody else is at it."""
        item: _Item | None = None
        try:
            with buffers:
                if not self._handing and self._items:
                    item = self._items[0]
                    del self._items[0]
                    self._held -= item.counts
                    self._in_hand = item.origin
                    self._handing = True
            if item is None:
                return False
            ring_all(self._at_the_door)
            self._call(item)
        finally:
            if item is not None:
                self._handing, self._in_hand = False, None
        return True

    def _call(self, item: _Item) -> None:
        try:
            work_for(item.origin, lambda: item.context.run(item.call))
        except BaseException as error:
            topic = "" if item.origin is None else f", on topic {item.origin.log.name!r}"
            logger.exception("what follows a buffer failed: in %s%s", self.name, topic)
            if isinstance(error, KeyboardInterrupt):
                raise


def _in_whose_hands(origins: Iterable[Origin]) -> list[Buffer]:
    """The buffers that are at work on these items still. Under the lock."""
    holders = [(origin.holder, origin) for origin in origins]
    return [holder for holder, origin in holders if isinstance(holder, Buffer) and holder._in_hand is origin]


def _pending(fan: FanOut) -> list[tuple[FanOut, Feed]]:
    """The deliveries that an outermost publish waits for, and that wait for their observers."""
    with ledger:
        return pending({fan, *(() if fan.wait is None else fan.wait.fans)}, deferred=False)


def _reached(buffer: Holder) -> set[Holder]:
    """The buffers that one waits for, itself included: what its item in hand waits for, and so on. Under the lock."""
    reached: set[Holder] = set()
    ahead: list[Holder | None] = [buffer]
    while ahead:
        one = ahead.pop()
        if one is not None and one not in reached:
            reached.add(one)
            if isinstance(one, Buffer):
                doors = [one._waits_for, *(feed.lane.blocked for _, feed in one._published())]
                ahead += [to for waiting in doors for _, to in waiting]
    return reached


_RING = "the handler that publishes into it is the one it waits for"
