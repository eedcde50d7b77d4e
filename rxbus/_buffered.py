"""`buffered`: a bounded buffer between publishers and what follows."""

from __future__ import annotations

import os
import threading
from asyncio import AbstractEventLoop, _get_running_loop
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import msgspec
from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, Disposable

from rxbus._acknowledgement import current_fan_out, work_for
from rxbus._bell import Bell, ring_all
from rxbus._fan_out import FanOut, Pending, is_ctrl_c, ledger, logger, pending
from rxbus._here import Engine, Frame, Here, Origin, Reentered, is_limited, local
from rxbus._put_off import PutOff, may_do_later, run_later
from rxbus._standing import Standing, frames_of, waiting_with
from rxbus._workers import Workers
from rxbus.errors import BufferOverflow, InvalidArgument

_T = TypeVar("_T")

Overflow = Literal["block", "drop_oldest", "drop_newest", "error"]


def buffered(capacity: int, overflow: Overflow = "block") -> Callable[[Observable[_T]], Observable[_T]]:
    """Puts a bounded buffer between publishers and what follows: they wait for a place in it, not for the far side.

    What follows is called on a worker, one item after another, in order. The item in its hand is not counted. What a
    handler there publishes is an outermost publish, whose cause and chain are kept; what fails there has no publisher
    to go to and is logged. Completion, and closing the bus, hand on what is held before they end the stream. Closing
    waits for what is scheduled there on the bus's scheduler, too, and for `map_async`; what is timed is given up.

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
    _waiting.clear()
    buffers._at_fork_reinit()  # type: ignore[attr-defined] # pyright: ignore # as threading's own classes do


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)

# Guards every buffer's fields, and `_waiting`: one for all, since a buffer that is full looks at others to see whether
# it would wait for itself. The ledger may be taken under it; nothing is called under it. An RLock, since the garbage
# collector may run a destructor that publishes.
buffers = threading.RLock()
_waiting: dict[Bell, tuple[Buffer, Place]] = {}  # who waits for room, for room in what, and where


class Place(NamedTuple):
    """Where a thread waits for room."""

    frames: list[Frame]
    loop: AbstractEventLoop | None  # that runs on this thread


class _Door(NamedTuple):
    """Somebody who waits for room, and what waits for that one.

    Found anew each time: the handler of a nested publish that is over, since its timeout was, does not wait any more.
    """

    buffer: Buffer
    standing: Standing
    upstream: list[Buffer]  # whose item in hand waits for it

    def blocks(self, one: Pending) -> bool:
        """Whether a delivery cannot end before there is room."""
        feed, delivery = one.feed, one.delivery
        if feed.loop is not None and feed.loop in self.standing.loops:
            return True
        if delivery is None or delivery.inside or delivery.holds:
            return feed.lane in self.standing.lanes
        return any(delivery.is_behind(other) for other in self.standing.deliveries)


def _door(buffer: Buffer, place: Place) -> _Door:
    """Under the lock."""
    standing = waiting_with(place.frames)
    if place.loop is not None:
        standing.loops.add(place.loop)
    return _Door(buffer, standing, _in_whose_hands(standing.origins))


def _doors() -> list[_Door]:
    """Who waits for room. Under the lock."""
    return [_door(buffer, place) for buffer, place in list(_waiting.values())]


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
        self._stopped = False
        self.name = "a handler"  # whose buffer it is
        self._engine: Engine | Workers = _spare  # by whose workers it hands on

    def use(self, engine: Engine | None) -> None:
        """Hands on by the workers of an engine, so that closing its bus waits for what is held."""
        if engine is not None:
            self._engine = engine

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
            in_ring = self._in_ring(fan) if self._in_hand is fan.origin else []
        self._refuse(in_ring)

    def _in_ring(self, fan: FanOut) -> list[Pending]:
        """What somebody waits for who waits for room in this very buffer, on whatever way. Under the lock."""
        doors = _doors()
        ahead = [door for door in doors if self in _reached(door.buffer, doors)]
        return [one for one in _pending(fan) if any(door.blocks(one) for door in ahead)]

    def _refuse(self, in_ring: list[Pending]) -> None:
        """Not under the lock: tracers are told."""
        for one in in_ring:
            error = BufferOverflow(self._capacity, _RING)
            if one.delivery is None:
                one.fan.refuse(one.feed, error)
            elif not one.delivery.inside:
                one.delivery.refuse(error)

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
        engine = self._engine
        if engine.limit == 0:
            here.later.append(PutOff(self._hand_on_all, engine.submit))
            run_later(here)  # on a thread that delivers nothing
            return
        try:
            begun = engine.submit(self._hand_on_all)
        except BaseException:  # interrupted: it may not be on its way
            self._submitted = False
            raise
        if not begun:
            ring_all(self._at_the_door)

    def _wait_and_enter(self, item: _Item, here: Here) -> bool:
        """Waits for room; False where the buffer has been stopped."""
        place, depth = Place(frames_of(here), _get_running_loop()), len(here.waits)
        bell = Bell()
        try:
            here.waits.append(place.frames[0])  # it may help meanwhile, in the midst of its own
            with buffers:
                self._at_the_door.append(bell)
                _waiting[bell] = self, place
                in_rings = self._in_rings(place)
            self._refuse(in_rings)
            return self._wait_for_room(item, here, bell)
        finally:
            del here.waits[depth:]
            try:
                self._leave_the_door(bell, here)
            except BaseException:  # interrupted
                self._leave_the_door(bell, here)
                raise

    def _wait_for_room(self, item: _Item, here: Here, bell: Bell) -> bool:
        while not (entered := self._enter(item)) and not self._stopped:
            self._begin(here)
            # A full pool must not keep us waiting for a worker.
            if not is_limited(self._engine) or not self._hand_on():
                here.rest(bell.wait)
        return entered

    def _leave_the_door(self, bell: Bell, here: Here) -> None:
        with suppress(ValueError):
            self._at_the_door.remove(bell)
        with buffers:
            _waiting.pop(bell, None)
        if self._items and not self._handing:  # it may have been this thread that was handing on
            self._begin(here)

    def _in_rings(self, place: Place) -> list[Pending]:
        """Somebody is about to wait for room: finds what would wait for itself then. Under the lock.

        That is the caller, where an item in hand waits for it that has to be done with before there is room; else, what
        the handlers that have to make room publish to the very observers which wait for it.
        """
        door = _door(self, place)
        reached = _reached(self, _doors())
        if not reached.isdisjoint(door.upstream):
            raise BufferOverflow(self._capacity, _RING)
        return [one for buffer in reached for one in buffer._published() if door.blocks(one)]

    def _published(self) -> list[Pending]:
        """The deliveries that the item in hand waits for, by what its handler publishes. Under the lock."""
        fans = [] if self._in_hand is None else list(self._in_hand.fans)
        return [pair for fan in fans for pair in _pending(fan)]

    def _hand_on_all(self) -> None:
        here = local.here
        while self._hand_on():
            if may_do_later(here):  # a handler has published to a bus without workers
                break
        with buffers:
            self._submitted = False
            more = bool(self._items) and not self._handing  # it came just now
        if more:
            self._begin(here)
        run_later(here)  # now that others can hand on: what is done here may wait for just that

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
                if is_limited(self._engine):
                    ring_all(self._at_the_door)  # who waits there may have to go on, as all workers may be waiting
        return True

    def _call(self, item: _Item) -> None:
        try:
            work_for(item.origin, lambda: item.context.run(item.call))
        except BaseException as error:
            topic = "" if item.origin is None else f", on topic {item.origin.log.name!r}"
            logger.exception("what follows a buffer failed: in %s%s", self.name, topic)
            if is_ctrl_c(error):
                raise


def _in_whose_hands(origins: Iterable[Origin]) -> list[Buffer]:
    """The buffers that are at work on these items still. Under the lock."""
    holders = [(origin.holder, origin) for origin in origins]
    return [holder for holder, origin in holders if isinstance(holder, Buffer) and holder._in_hand is origin]


def _pending(fan: FanOut) -> list[Pending]:
    """The deliveries that an outermost publish waits for."""
    with ledger:
        return pending({fan, *(() if fan.wait is None else fan.wait.fans)})


def _reached(buffer: Buffer, doors: list[_Door]) -> set[Buffer]:
    """The buffers that one waits for, itself included: what its item in hand waits for, and so on. Under the lock."""
    reached: set[Buffer] = set()
    ahead = [buffer]
    while ahead:
        one = ahead.pop()
        if one not in reached:
            reached.add(one)
            published = one._published()
            ahead += [door.buffer for door in doors if one in door.upstream or any(map(door.blocks, published))]
    return reached


_RING = "the handler that publishes into it is the one it waits for"
