"""Operators that know about acknowledgement.

All others are reactivex's own. What a publisher waits for behind those: transforming and filtering ones acknowledge
when the chain has returned, holding ones (buffer, zip) when the item is held, time-shifting ones when it is queued, or
done if their scheduler is the bus's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from itertools import count
from typing import Any, NamedTuple, TypeVar

from reactivex import Observable, abc
from reactivex.disposable import CompositeDisposable, Disposable

from rxbus._acknowledgement import Acknowledgement, Delivery, current_place, end_stream, work_for
from rxbus._buffered import Overflow, buffered
from rxbus._coroutines import map_async
from rxbus._event import Event
from rxbus._here import Origin, local
from rxbus._log import Hub
from rxbus._put_off import run_later
from rxbus._scheduler import BlockingScheduler
from rxbus._trace import Kind
from rxbus.errors import InvalidArgument

__all__ = ["Overflow", "buffered", "map_async", "observe_on", "only_payload", "tap"]

_T = TypeVar("_T")

Place = Delivery | Origin | None


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

    Raises:
        InvalidArgument: It is not a scheduler.
    """
    if not isinstance(scheduler, abc.SchedulerBase):
        raise InvalidArgument(f"observe_on wants one of reactivex's schedulers, not {scheduler!r}")

    def operator(source: Observable[_T]) -> Observable[_T]:
        def subscribe(observer: abc.ObserverBase[_T], near: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            far = _FarSide(scheduler)
            upstream = source.subscribe(
                lambda value: far.put(lambda: observer.on_next(value)),
                lambda error: far.put(lambda: end_stream(lambda: observer.on_error(error))),
                lambda: far.put(lambda: end_stream(observer.on_completed)),
                scheduler=near,
            )
            return CompositeDisposable(upstream, Disposable(far.stop))

        return Observable(subscribe)

    return operator


def tap(stage: str) -> Callable[[Observable[_T]], Observable[_T]]:
    """Tells the tracers of the bus what passes here, and changes nothing: `.pipe(ops.map(f), tap("mapped"))`.

    Recordings draw a lane for each stage in their marble diagrams. Where nothing is traced it costs next to nothing.
    The bus is the one that the chain's source is attached to; where it has several, the one attached last.

    Args:
        stage: How the stage is called.

    Raises:
        InvalidArgument: It has no name.
    """
    if not isinstance(stage, str) or not stage:
        raise InvalidArgument(f"a stage is called by a string, not {stage!r}")

    def operator(source: Observable[_T]) -> Observable[_T]:
        def subscribe(observer: abc.ObserverBase[_T], scheduler: abc.SchedulerBase | None = None) -> abc.DisposableBase:
            on_next, on_error, on_completed = observer.on_next, observer.on_error, observer.on_completed
            told = _Stage(stage)

            def pass_on(value: _T) -> None:
                told.passed("next", value)
                on_next(value)

            def fail(error: Exception) -> None:
                told.passed("error", error)
                on_error(error)

            def complete() -> None:
                told.passed("completed", None)
                on_completed()

            here = local.here
            here.hub = None
            attached = source.subscribe(pass_on, fail, complete, scheduler=scheduler)
            told.hub = here.hub
            return attached

        return Observable(subscribe)

    return operator


class _Stage:
    """A place in a chain that tracers are told of."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.hub: Hub | None = None  # of the source; None: it is being attached, or is no bus's

    def passed(self, kind: Kind, value: Any) -> None:
        here = local.here
        hub = self.hub if self.hub is not None or here.feed is None else here.feed.log.hub
        if hub is not None and hub.tracers is not None and not here.tracing:
            hub.tracers.passed(self._name, kind, value, here.event if isinstance(here.event, Event) else None)


class _Call(NamedTuple):
    """What is to be told to the far side."""

    call: Callable[[], None]
    place: Place
    owed: Acknowledgement | None
    context: Context
    number: int  # its place in the line

    def make(self, line: _FarSide) -> None:
        place = self.place
        if not isinstance(place, Delivery):
            work_for(place, lambda: self.context.run(self.call))
        elif not place.refused:
            try:
                work_for(place, lambda: self.context.run(self.call))
            finally:
                place.step_out(line, self.number)


class _FarSide:
    """A queue of calls that a scheduler makes one after the other."""

    def __init__(self, scheduler: abc.SchedulerBase) -> None:
        self._scheduler = scheduler
        self._lock = threading.RLock()  # guards all below; nothing is called under it
        self._calls: deque[_Call] = deque()
        self._numbers = count()
        self._active = False  # a run is scheduled, or running
        self._running = False
        self._stopped = False

    def put(self, call: Callable[[], None]) -> None:
        place = current_place()
        works = isinstance(self._scheduler, BlockingScheduler)  # whose actions closing waits for
        owed = Acknowledgement(place, works=works) if isinstance(place, Delivery) else None
        begin = False
        number = next(self._numbers)
        try:
            if isinstance(place, Delivery):
                place.stand(self, number)
            with self._lock:
                stopped = self._stopped
                begin = not stopped and (not self._active or self._is_lost())
                if not stopped:
                    self._calls.append(_Call(call, place, owed, copy_context(), number))
                    self._active = True
            if begin:
                self._scheduler.schedule(self._run)
        except BaseException:  # interrupted, or the scheduler has been closed
            if begin:
                self._give_up()
            raise
        if stopped and owed is not None:
            owed._give()

    def _is_lost(self) -> bool:
        """An interrupt may have struck the scheduler right before the run. A run too many does no harm."""
        owed = self._calls[0].owed if self._calls and not self._running else None
        return owed is not None and owed._is_void()

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        self._give_up()

    def _give_up(self) -> None:
        """Nothing will run any more: drops what is queued; nobody must wait for it."""
        with self._lock:
            calls, self._calls = self._calls, deque()
            self._active = False
        for one in calls:
            if one.owed is not None:
                one.owed._give()

    def _run(self, scheduler: abc.SchedulerBase, state: Any = None) -> None:
        one: _Call | None = None
        error: BaseException | None = None
        try:
            with self._lock:
                if self._running or not self._calls:
                    self._active = self._running
                    return
                one = self._calls[0]
                del self._calls[0]
                self._running = True
            one.make(self)
        except BaseException as raised:
            error = raised
        owed = None if one is None else one.owed
        try:
            self._done(owed, error)
        except BaseException:  # interrupted
            self._done(owed, error)
            raise
        run_later(local.here)
        if error is not None and owed is None:
            raise error

    def _done(self, owed: Acknowledgement | None, error: BaseException | None) -> None:
        if owed is not None:
            owed._give(error)
        with self._lock:
            self._running = False
            self._active = bool(self._calls)
            following = self._calls[0].place if self._calls else None
        if self._active:
            try:  # for the next one: what was done in this one's name would keep this one open until that is done, too
                work_for(following, lambda: self._scheduler.schedule(self._run))
            except BaseException:  # as above
                self._give_up()
                raise
