"""`buffered`: a bounded buffer between publishers and what follows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import msgspec
from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, Disposable

from rxbus._acknowledgement import current_fan_out, working_for
from rxbus._fan_out import FanOut, ledger, logger
from rxbus._here import Engine, Here, Holder, Job, Origin, local
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
            buffer = _Buffer(capacity, overflow, observer)
            here = local.here
            here.engine = None
            upstream = source.subscribe(buffer.on_next, buffer.on_error, buffer.on_completed, scheduler=scheduler)
            buffer.use(here.engine)
            return CompositeDisposable(upstream, Disposable(buffer.stop))

        return Observable(subscribe)

    return operator


_spare = Workers(None)  # for buffers behind sources that are no bus's

# Guards every buffer's fields, and Lane.blocked: one for all, since a buffer that is full looks at others to see
# whether it would wait for itself. The ledger may be taken under it; nothing is called under it.
_buffers = threading.Lock()


class _Item(msgspec.Struct, eq=False):
    """A call to be made to what follows."""

    call: Callable[[], None]
    origin: Origin | None  # the event it comes from, where it comes from one
    context: Context
    counts: bool  # an item, as against the end of the stream


class _Buffer:
    def __init__(self, capacity: int, overflow: Overflow, observer: abc.ObserverBase[Any]) -> None:
        self._capacity = capacity
        self._overflow = overflow
        self._observer = observer
        self._items: deque[_Item] = deque()
        self._held = 0  # those among them that count
        self._in_hand: Origin | None = None  # of the item that what follows is at work on
        self._handing = False
        self._submitted = False  # a worker is on its way, or at work
        self._room = threading.Condition(_buffers)  # told when an item has been taken out
        self._waits_for: _Buffer | None = None  # the buffer that the item in hand waits for room in
        self._stopped = False
        self._limit: int | None = None  # of the workers that hand on
        self._submit: Callable[[Job], None] = _spare.submit

    def use(self, engine: Engine | None) -> None:
        """Hands on by the workers of an engine, so that closing its bus waits for what is held."""
        if engine is not None:
            self._limit, self._submit = engine.limit, engine.submit

    def on_next(self, value: Any) -> None:
        self._put(lambda: self._observer.on_next(value), counts=True)

    def on_error(self, error: Exception) -> None:
        self._put(lambda: self._observer.on_error(error), counts=False)

    def on_completed(self) -> None:
        self._put(self._observer.on_completed, counts=False)

    def stop(self) -> None:
        with _buffers:
            self._stopped = True
            self._items.clear()
            self._held = 0
            self._room.notify_all()

    def check(self, fan: FanOut) -> None:
        """See `Holder`."""
        with _buffers:
            if self._in_hand is not fan.origin:
                return
            for one, feed in _pending(fan):
                if feed.lane.blocked is not None and self in _reached(feed.lane.blocked):
                    one.refuse(feed, BufferOverflow(self._capacity, _RING))

    def _put(self, call: Callable[[], None], counts: bool) -> None:
        here = local.here
        if here.feed is not None:
            self.use(here.feed.lane.engine)
        source = here.origin or (None if here.feed is None else current_fan_out(here))
        origin = None
        if source is not None:
            origin = Origin(source.log, source.event, source.id, source.trail, source.chain, self)
        with _buffers:
            if counts and self._held >= self._capacity and not self._make_room(here):
                return
            if self._stopped:
                return
            self._items.append(_Item(call, origin, copy_context(), counts))
            self._held += counts
            if self._submitted:
                return
            self._submitted = True
        if self._limit == 0:
            here.later.append(self._hand_on_all)
        else:
            self._submit(self._hand_on_all)

    def _make_room(self, here: Here) -> bool:
        """Sees to it that there is room; False: drop the item. Under the lock, which waiting lets go of."""
        if self._overflow == "drop_newest":
            return False
        if self._overflow == "error":
            raise BufferOverflow(self._capacity, "overflow='error'")
        if self._overflow == "drop_oldest":
            self._items.remove(next(item for item in self._items if item.counts))
            self._held -= 1
            return True
        led_by = here.origin or (None if here.fan is None else here.fan.origin)
        upstream = led_by.holder if led_by is not None else None
        if not isinstance(upstream, _Buffer) or upstream._in_hand is not led_by:
            upstream = None
        elif upstream in _reached(self):
            raise BufferOverflow(self._capacity, _RING)
        lanes = _held_by(here)
        try:
            for lane in lanes:
                lane.blocked = self
            self._refuse_those_for(lanes)
            if upstream is not None:
                upstream._waits_for = self
            while self._held >= self._capacity and not self._stopped:
                if self._limit is not None and not self._handing:  # a full pool must not keep us waiting for a worker
                    self._hand_on()
                else:
                    self._room.wait()
        finally:
            for lane in lanes:
                lane.blocked = None
            if upstream is not None:
                upstream._waits_for = None
        return True

    def _refuse_those_for(self, lanes: set[Lane]) -> None:
        """The lanes will wait for room: fails what the handlers that have to make it publish to those very lanes."""
        for holder in _reached(self):
            if isinstance(holder, _Buffer):
                for fan, feed in holder._published():
                    if feed.lane in lanes:
                        fan.refuse(feed, BufferOverflow(self._capacity, _RING))

    def _published(self) -> list[tuple[FanOut, Feed]]:
        """The deliveries that the item in hand waits for, by what its handler publishes. Under the lock."""
        fan = None if self._in_hand is None else self._in_hand.fan
        return [] if fan is None else _pending(fan)

    def _hand_on_all(self) -> None:
        with _buffers:
            try:
                while self._items and not self._handing:
                    self._hand_on()
            finally:
                self._submitted = False

    def _hand_on(self) -> None:
        """Hands the first item to what follows. Under the lock, which it lets go of meanwhile."""
        item = self._items.popleft()
        self._held -= item.counts
        self._handing = True
        self._in_hand = item.origin
        self._room.notify_all()
        _buffers.release()
        try:
            _call(item)
        finally:
            _buffers.acquire()
            self._handing = False
            self._in_hand = None


def _held_by(here: Here) -> set[Lane]:
    """The lanes that wait with this thread: the one it is in, and those whose handlers' nested publishes led there."""
    lanes: set[Lane] = set()
    feed, fan = here.feed, here.fan
    while feed is not None:
        lanes.add(feed.lane)
        feed, fan = (None, None) if fan is None else (fan.by, fan.parent)
    return lanes


def _pending(fan: FanOut) -> list[tuple[FanOut, Feed]]:
    """The deliveries that an outermost publish waits for."""
    with ledger:
        tree = {fan, *(() if fan.wait is None else fan.wait.fans)}
        return [(one, feed) for one in tree for feed in one.pending()]


def _reached(buffer: Holder) -> set[Holder]:
    """The buffers that one waits for, itself included: what its item in hand waits for, and so on. Under the lock."""
    reached: set[Holder] = set()
    ahead: list[Holder | None] = [buffer]
    while ahead:
        one = ahead.pop()
        if one is not None and one not in reached:
            reached.add(one)
            if isinstance(one, _Buffer):
                ahead += [one._waits_for, *(feed.lane.blocked for _, feed in one._published())]
    return reached


def _call(item: _Item) -> None:
    try:
        with working_for(item.origin):
            item.context.run(item.call)
    except BaseException as error:
        logger.exception("what follows a buffer failed")
        if isinstance(error, KeyboardInterrupt):
            raise


_RING = "the handler that publishes into it is the one it waits for"
