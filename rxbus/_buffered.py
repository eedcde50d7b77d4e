"""`buffered`: a bounded buffer between publishers and what follows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, Literal, TypeVar, get_args

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, Disposable

from rxbus._acknowledgement import FanOut, current_fan_out, logger
from rxbus._here import Engine, Job, Origin, local
from rxbus._workers import Workers
from rxbus.errors import BufferOverflow, InvalidArgument

_T = TypeVar("_T")

Overflow = Literal["block", "drop_oldest", "drop_newest", "error"]


def buffered(capacity: int, overflow: Overflow = "block") -> Callable[[Observable[_T]], Observable[_T]]:
    """Puts a bounded buffer between publishers and what follows: they wait for a place in it, not for the far side.

    What follows is called on a worker, one item after another, in order. The item in its hand is not counted. What a
    handler there publishes is an outermost publish, whose cause and chain are kept; what fails there has no publisher to
    go to and is logged. Completion, and closing the bus, hand on what is held before they end the stream.

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

# Guards every buffer's fields: one for all, since a buffer that is full looks at others to see whether it would wait for
# itself. Nothing is called under it.
_buffers = threading.Lock()


class _Buffer:
    def __init__(self, capacity: int, overflow: Overflow, observer: abc.ObserverBase[Any]) -> None:
        self._capacity = capacity
        self._overflow = overflow
        self._observer = observer
        self._items: deque[tuple[Callable[[], None], Origin | None, Context, bool]] = deque()
        self._held = 0  # items among them, as against the end of the stream
        self._in_hand: Origin | None = None  # the item that what follows is at work on
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
        self._put(lambda: self._observer.on_next(value), item=True)

    def on_error(self, error: Exception) -> None:
        self._put(lambda: self._observer.on_error(error), item=False)

    def on_completed(self) -> None:
        self._put(self._observer.on_completed, item=False)

    def stop(self) -> None:
        with _buffers:
            self._stopped = True
            self._items.clear()
            self._held = 0
            self._room.notify_all()

    def _put(self, call: Callable[[], None], item: bool) -> None:
        here = local.here
        fan = None
        if here.feed is not None:
            fan = current_fan_out(here)
            self.use(here.feed.lane.engine)
        origin = None if fan is None else Origin(fan.log, fan.event, fan.id, fan.trail, fan.chain, self)
        with _buffers:
            if item and self._held >= self._capacity and not self._make_room(fan):
                return
            if self._stopped:
                return
            self._items.append((call, origin, copy_context(), item))
            self._held += item
            if self._submitted:
                return
            self._submitted = True
        self._submit(self._hand_on_all)

    def _make_room(self, fan: FanOut | None) -> bool:
        """Under the lock, which waiting lets go of: sees to it that there is room; False where the item is to be dropped."""
        if self._overflow == "drop_newest":
            return False
        if self._overflow == "error":
            raise BufferOverflow(self._capacity, "overflow='error'")
        if self._overflow == "drop_oldest":
            for place, one in enumerate(self._items):
                if one[3]:
                    del self._items[place]
                    self._held -= 1
                    break
            return True
        origin = None if fan is None else fan.origin
        upstream = origin.holder if origin is not None else None
        if not isinstance(upstream, _Buffer) or upstream._in_hand is not origin:
            upstream = None
        if upstream is not None:
            ahead: _Buffer | None = self
            while ahead is not None:
                if ahead is upstream:
                    raise BufferOverflow(self._capacity, "the handler that publishes into it is the one it waits for")
                ahead = ahead._waits_for
            upstream._waits_for = self
        try:
            while self._held >= self._capacity and not self._stopped:
                if self._limit is not None and not self._handing:  # a full pool must not keep us waiting for a worker
                    self._hand_on()
                else:
                    self._room.wait()
        finally:
            if upstream is not None:
                upstream._waits_for = None
        return True

    def _hand_on_all(self) -> None:
        with _buffers:
            while self._items and not self._handing:
                self._hand_on()
            self._submitted = False

    def _hand_on(self) -> None:
        """Under the lock, which it lets go of meanwhile: hands the first item to what follows."""
        call, origin, context, item = self._items.popleft()
        self._held -= item
        self._handing = True
        self._in_hand = origin
        self._room.notify_all()
        _buffers.release()
        try:
            self._call(call, origin, context)
        finally:
            _buffers.acquire()
            self._handing = False
            self._in_hand = None

    def _call(self, call: Callable[[], None], origin: Origin | None, context: Context) -> None:
        here = local.here
        before = here.feed, here.event, here.fan, here.delivery, here.origin
        here.feed = here.event = here.fan = here.delivery = None
        here.origin = origin
        try:
            context.run(call)
        except Exception:
            logger.exception("what follows a buffer failed")
        finally:
            here.feed, here.event, here.fan, here.delivery, here.origin = before
