"""Coroutines that work for a delivery: async handlers, and `map_async`."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from itertools import count
from types import FunctionType, MethodType
from typing import Any, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, Disposable

from rxbus._acknowledgement import (
    Delivery,
    Outside,
    copy_context_for,
    current_delivery,
    current_place,
    end_stream,
    work_for,
)
from rxbus._fan_out import logger
from rxbus._here import Origin, local
from rxbus._put_off import run_later
from rxbus.errors import InvalidArgument, RxBusError

_T = TypeVar("_T")
_R = TypeVar("_R")

Place = Delivery | Origin | None


def is_async(function: object) -> bool:
    """Whether a call of it gives a coroutine, which somebody has to run."""
    while isinstance(function, partial):
        function = function.func
    call = None if isinstance(function, FunctionType | MethodType) else getattr(function, "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def check_handler(function: object) -> None:
    """Raises where a call of it would do nothing, or cannot be made.

    Raises:
        InvalidArgument: It is none.
    """
    if not callable(function):
        raise InvalidArgument(f"a handler is a function or an Rx observer, not {function!r}")
    plain: Any = function
    while isinstance(plain, partial):
        plain = plain.func
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        raise InvalidArgument(f"{plain!r} is a generator: a call of it runs nothing")


def on_loop(
    loop: asyncio.AbstractEventLoop, function: Callable[[Any], Coroutine[Any, Any, object]]
) -> Callable[[Any], None]:
    """Makes a handler of an async one: the delivery lasts, and holds the lane's turn, until the coroutine is done."""

    def on_next(event: Any) -> None:
        delivery = current_delivery()
        assert delivery is not None
        context = copy_context_for(delivery)
        held = Outside(delivery, loop, turn=True)

        def done(task: asyncio.Task[object]) -> None:
            held._give(RxBusError("the handler's coroutine was cancelled") if task.cancelled() else task.exception())

        def begin() -> None:
            if delivery.refused:
                held._give()
                return
            coroutine = _call(function, event)
            try:
                loop.create_task(coroutine, context=context).add_done_callback(done)
            except BaseException as error:  # of a task factory
                coroutine.close()
                held._give(error)

        try:
            _check_running(loop)
            loop.call_soon_threadsafe(begin)
        except BaseException as error:
            held._give()
            if isinstance(error, RuntimeError):  # it has been closed just now
                raise RxBusError(_NOT_RUNNING) from error
            raise

    return on_next


def _check_running(loop: asyncio.AbstractEventLoop) -> None:
    """Raises where a publisher would wait for a loop that nobody runs."""
    if not loop.is_running():
        raise RxBusError(_NOT_RUNNING)


_NOT_RUNNING = (
    "the event loop that has to run the handler is not running: publish while it does, with `await bus.publish_async`"
)


async def _call(function: Callable[[Any], Coroutine[Any, Any, object]], event: Any) -> object:
    return await function(event)


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
        InvalidArgument: `max_concurrency` is less than 1, or `coroutine_function` cannot be called.
        RxBusError: On subscribing: no event loop is running.
    """
    if not callable(coroutine_function):
        raise InvalidArgument(f"map_async wants a coroutine function, not {coroutine_function!r}")
    if not isinstance(max_concurrency, int) or max_concurrency < 1:
        raise InvalidArgument(f"max_concurrency is at least 1, not {max_concurrency!r}")

    def operator(source: Observable[_T]) -> Observable[_R]:
        def subscribe(observer: abc.ObserverBase[_R], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            mapping = Mapping(running_loop("map_async"), coroutine_function, max_concurrency, observer)
            here = local.here
            outer, here.loop = here.loop, mapping.loop
            try:
                upstream = source.subscribe(
                    mapping.on_next, mapping.on_error, mapping.on_completed, scheduler=scheduler
                )
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
        raise RxBusError(
            f"{what} needs a running event loop: attach it inside a coroutine, or in a notebook cell"
        ) from None


class Mapping:
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
        self.observer = observer
        self._numbers = count()
        self._items: deque[tuple[Any, Place, Outside | None, Context, int]] = deque()  # not begun, and places in line
        self._tasks: deque[tuple[asyncio.Task[Any], Place, Outside | None, int]] = deque()  # begun, in order
        self._end: tuple[Callable[[], None], Place, Outside | None] | None = None  # when all are done
        self._stopped = False

    def on_next(self, value: Any) -> None:
        place = current_place()
        context = copy_context_for(place)
        _check_running(self.loop)
        number = next(self._numbers)
        if isinstance(place, Delivery):
            place.stand(self, number)
        if not self._later(self._take, value, place, context, number):
            raise RxBusError(_NOT_RUNNING)

    def on_error(self, error: Exception) -> None:
        self._later(self._finish, lambda: end_stream(lambda: self.observer.on_error(error)), current_place())

    def on_completed(self) -> None:
        self._later(self._end_then, lambda: end_stream(self.observer.on_completed), current_place())

    def stop(self) -> None:
        self._later(self._finish, None, None)

    def _later(self, call: Callable[..., None], what: Any, place: Place, *args: Any) -> bool:
        """Has the loop call it; False where it has been closed: nothing runs there any more."""
        owed = None if place is None else Outside(place, self.loop)
        try:
            self.loop.call_soon_threadsafe(call, what, place, owed, *args)
        except RuntimeError:
            self._stopped = True
            _give(owed)
            return False
        except BaseException:  # interrupted
            _give(owed)
            raise
        return True

    def _take(self, value: Any, place: Place, owed: Outside | None, context: Context, number: int) -> None:
        self._items.append((value, place, owed, context, number))
        self._go_on()

    def _end_then(self, tell: Callable[[], None], place: Place, owed: Outside | None) -> None:
        self._end = tell, place, owed
        self._go_on()

    def _go_on(self) -> None:
        """Hands on the results whose turn it is, and begins what there is room for."""
        while self._tasks and self._tasks[0][0].done() and not self._stopped:
            task, place, owed, number = self._tasks.popleft()
            _tell(partial(self._emit, task, place, number), place, owed)
        if self._stopped:
            self._finish()
            return
        while self._items and len(self._tasks) < self._limit:
            value, place, owed, context, number = self._items.popleft()
            if isinstance(place, Delivery) and place.refused:
                _give(owed)
                continue
            coroutine = self._call(value)
            try:
                task = self.loop.create_task(coroutine, context=context)
            except BaseException as error:  # of a task factory
                coroutine.close()
                _give(owed, error)
                continue
            self._tasks.append((task, place, owed, number))
            task.add_done_callback(lambda _: self._go_on())
        if self._end is not None and not self._tasks and not self._items:
            self._finish(*self._end)

    async def _call(self, value: Any) -> Any:
        return await self._function(value)

    def _emit(self, task: asyncio.Task[Any], place: Place, number: int) -> None:
        try:
            self._hand_on(task)
        finally:
            if isinstance(place, Delivery):
                place.step_out(self, number)

    def _hand_on(self, task: asyncio.Task[Any]) -> None:
        failure = RxBusError("the coroutine was cancelled") if task.cancelled() else task.exception()
        if failure is None:
            self.observer.on_next(task.result())
        elif isinstance(failure, Exception):
            self._stopped = True
            self.observer.on_error(failure)
        else:
            raise failure

    def _finish(self, tell: Callable[[], None] | None = None, place: Place = None, owed: Outside | None = None) -> None:
        """Ends it, and tells what follows, if it is to be told."""
        self._stopped = True
        if self._end is not None and owed is not self._end[2]:
            _give(self._end[2])
        self._end = None
        for task, _, one, _ in self._tasks:
            task.cancel()
            _give(one)
        for _, _, one, _, _ in self._items:
            _give(one)
        self._tasks.clear()
        self._items.clear()
        if tell is not None:
            _tell(tell, place, owed)


def _tell(call: Callable[[], None], place: Place, owed: Outside | None) -> None:
    """Tells what follows `map_async`, in the place that what is told comes from."""
    error: BaseException | None = None
    try:
        work_for(place, call)
    except BaseException as raised:
        error = raised
    _give(owed, error)
    run_later(local.here)


def _give(owed: Outside | None, error: BaseException | None = None) -> None:
    """Gives an acknowledgement; a failure that nobody waits for is logged."""
    if owed is not None:
        owed._give(error)
    if error is not None and (owed is None or not owed._is_told()):
        logger.error("what follows map_async failed", exc_info=error)
