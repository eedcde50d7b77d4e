"""Operators that know about acknowledgement.

All others are reactivex's own. What a publisher waits for behind those: transforming and filtering ones acknowledge
when the chain has returned, holding ones (buffer, zip) when the item is held, time-shifting ones when it is queued, or
done if their scheduler is the bus's.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Literal, TypeVar, get_args

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, Disposable

from rxbus._acknowledgement import (
    Delivery,
    Engine,
    FanOut,
    Job,
    Origin,
    coroutine_delivery,
    current_delivery,
    local,
    logger,
)
from rxbus._event import Event
from rxbus._workers import Workers
from rxbus.errors import BufferOverflow, InvalidArgument, RxBusError

__all__ = ["buffered", "map_async", "observe_on", "only_payload"]

_T = TypeVar("_T")
_R = TypeVar("_R")

Overflow = Literal["block", "drop_oldest", "drop_newest", "error"]


def only_payload(subscription: Observable[Event[_T]]) -> Observable[_T]:
    """Turns events into their payloads.

    A plain function of an Observable, hence an operator: `bus.subscribe(t).pipe(only_payload)`.
    """

    def subscribe(observer: abc.ObserverBase[_T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
        on_next = observer.on_next
        return subscription.subscribe(
            lambda event: on_next(event.payload), observer.on_error, observer.on_completed, scheduler=scheduler
        )

    return Observable(subscribe)


def observe_on(scheduler: abc.SchedulerBase) -> Callable[[Observable[_T]], Observable[_T]]:
    """Calls what follows on a scheduler, any of reactivex's; the publisher waits for the far side.

    The observer's turn is free while the far side is at work: events queue up there, in order. What fails there fails
    the publish. (reactivex's own `observe_on` acknowledges when the event is queued; on the bus's scheduler both wait.)
    """

    def operator(source: Observable[_T]) -> Observable[_T]:
        def subscribe(observer: abc.ObserverBase[_T], near: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            far = _FarSide(scheduler)
            upstream = source.subscribe(
                lambda value: far.put(lambda: observer.on_next(value)),
                lambda error: far.put(lambda: observer.on_error(error)),
                lambda: far.put(observer.on_completed),
                scheduler=near,
            )
            return CompositeDisposable(upstream, Disposable(far.stop))

        return Observable(subscribe)

    return operator


class _FarSide:
    """A queue of calls that a scheduler makes one after the other."""

    def __init__(self, scheduler: abc.SchedulerBase) -> None:
        self._scheduler = scheduler
        self._lock = threading.Lock()  # guards all below; nothing is called under it
        self._calls: deque[tuple[Callable[[], None], Delivery | None, Context]] = deque()
        self._active = False
        self._stopped = False

    def put(self, call: Callable[[], None]) -> None:
        delivery = current_delivery()
        if delivery is not None:
            delivery.defer()
        with self._lock:
            stopped = self._stopped
            if not stopped:
                self._calls.append((call, delivery, copy_context()))
            begin = not stopped and not self._active
            self._active |= begin
        if stopped and delivery is not None:
            delivery.settle()
        if begin:
            try:
                self._scheduler.schedule(self._run)
            except BaseException:
                self._give_up()
                raise

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        self._give_up()

    def _give_up(self) -> None:
        """Drops what is queued; nobody waits for it any more."""
        with self._lock:
            calls, self._calls = self._calls, deque()
            self._active = False
        for _, delivery, _ in calls:
            if delivery is not None:
                delivery.settle()

    def _run(self, scheduler: abc.SchedulerBase, state: Any = None) -> None:
        with self._lock:
            if not self._calls:
                self._active = False
                return
            call, delivery, context = self._calls.popleft()
        error: BaseException | None = None
        try:
            if delivery is None:
                context.run(call)
            else:
                with delivery.resumed():
                    context.run(call)
        except BaseException as raised:
            error = raised
        with self._lock:
            self._active = again = bool(self._calls)
        if delivery is not None:
            delivery.settle(error)
        if again:
            self._scheduler.schedule(self._run)
        if delivery is None and error is not None:
            raise error


def map_async(
    coroutine_function: Callable[[_T], Coroutine[Any, Any, _R]], max_concurrency: int = 1
) -> Callable[[Observable[_T]], Observable[_R]]:
    """Maps each item by a coroutine, run on the event loop that is running at the time of subscribing.

    The publisher waits until the coroutine is done and its result has passed the rest of the chain, which is called on
    the loop's thread. Results keep the order of the items, whatever ends first. A coroutine that raises ends the chain
    through `on_error`, as an error in any operator does; what is still running is cancelled.

    Args:
        coroutine_function: Takes the item, gives the result.
        max_concurrency: How many coroutines run at a time; further items wait, and so do their publishers.

    Raises:
        InvalidArgument: `max_concurrency` is less than 1.
        RxBusError: On subscribing: no event loop is running.
    """
    if max_concurrency < 1:
        raise InvalidArgument(f"max_concurrency is at least 1, not {max_concurrency!r}")

    def operator(source: Observable[_T]) -> Observable[_R]:
        def subscribe(observer: abc.ObserverBase[_R], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            mapping = _Mapping(running_loop("map_async"), coroutine_function, max_concurrency, observer)
            here = local.here
            outer, here.loop = here.loop, mapping.loop
            try:
                upstream = source.subscribe(mapping.on_next, mapping.on_error, mapping.on_completed, scheduler=scheduler)
            finally:
                here.loop = outer
            return CompositeDisposable(upstream, Disposable(mapping.stop))

        return Observable(subscribe)

    return operator


def running_loop(what: str) -> asyncio.AbstractEventLoop:
    """The running event loop.

    Raises:
        RxBusError: There is none, which `what` needs.
    """
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise RxBusError(f"{what} needs a running event loop: attach it inside a coroutine, or in a notebook cell") from None


class _Mapping:
    """The coroutines of one `map_async`. But for the first three methods, all runs on the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        function: Callable[[Any], Coroutine[Any, Any, Any]],
        limit: int,
        observer: abc.ObserverBase[Any],
    ) -> None:
        self.loop = loop
        self._function = function
        self._limit = limit
        self._observer = observer
        self._items: deque[tuple[Any, Delivery | None, Context]] = deque()  # not begun
        self._tasks: deque[tuple[asyncio.Task[Any], Delivery | None]] = deque()  # begun, in order
        self._end: Callable[[], None] | None = None
        self._stopped = False

    def on_next(self, value: Any) -> None:
        delivery = current_delivery()
        context = copy_context()
        if delivery is not None:
            delivery.defer()
            context.run(coroutine_delivery.set, delivery)
        try:
            self.loop.call_soon_threadsafe(self._take, value, delivery, context)
        except RuntimeError as error:
            if delivery is not None:
                delivery.settle()
            raise RxBusError("the event loop of map_async has been closed") from error

    def on_error(self, error: Exception) -> None:
        self._later(lambda: self._finish(lambda: self._observer.on_error(error)))

    def on_completed(self) -> None:
        def end() -> None:
            self._end = self._observer.on_completed
            self._go_on()

        self._later(end)

    def stop(self) -> None:
        self._later(lambda: self._finish(lambda: None))

    def _later(self, call: Callable[[], None]) -> None:
        try:
            self.loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop has been closed: nothing runs there any more
            self._stopped = True

    def _take(self, value: Any, delivery: Delivery | None, context: Context) -> None:
        self._items.append((value, delivery, context))
        self._go_on()

    def _go_on(self) -> None:
        """Hands on the results whose turn it is, and begins what there is room for."""
        while self._tasks and self._tasks[0][0].done() and not self._stopped:
            self._hand_on(*self._tasks.popleft())
        if self._stopped:
            self._finish(lambda: None)
            return
        while self._items and len(self._tasks) < self._limit:
            value, delivery, context = self._items.popleft()
            task = self.loop.create_task(self._call(value), context=context)
            self._tasks.append((task, delivery))
            task.add_done_callback(lambda _: self._go_on())
        if self._end is not None and not self._tasks and not self._items:
            self._finish(self._end)

    async def _call(self, value: Any) -> Any:
        return await self._function(value)

    def _hand_on(self, task: asyncio.Task[Any], delivery: Delivery | None) -> None:
        error: BaseException | None = None
        try:
            if delivery is None:
                self._emit(task)
            else:
                with delivery.resumed():
                    self._emit(task)
        except BaseException as raised:
            error = raised
        if delivery is not None:
            delivery.settle(error)
        elif error is not None:
            logger.error("what follows map_async failed", exc_info=error)

    def _emit(self, task: asyncio.Task[Any]) -> None:
        failure = RxBusError("the coroutine was cancelled") if task.cancelled() else task.exception()
        if failure is None:
            self._observer.on_next(task.result())
        elif isinstance(failure, Exception):
            self._stopped = True
            self._observer.on_error(failure)
        else:
            raise failure

    def _finish(self, tell: Callable[[], None]) -> None:
        self._stopped = True
        self._end = None
        for task, delivery in self._tasks:
            task.cancel()
            if delivery is not None:
                delivery.settle()
        for _, delivery, _ in self._items:
            if delivery is not None:
                delivery.settle()
        self._tasks.clear()
        self._items.clear()
        tell()


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
            fan = here.fan_out()
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
        upstream = origin.holder if origin is not None and origin.holder._in_hand is origin else None
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
