"""BlockingScheduler: the delivery engine as a reactivex scheduler."""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable
from contextvars import Context, copy_context
from datetime import datetime
from math import isnan
from typing import TypeVar
from weakref import WeakSet

from reactivex import abc, typing
from reactivex.disposable import Disposable
from reactivex.scheduler import CurrentThreadScheduler
from reactivex.scheduler.periodicscheduler import PeriodicScheduler

from rxbus._acknowledgement import Acknowledgement, Delivery, Outside, current_place, work_for
from rxbus._clock import Clock
from rxbus._fan_out import FanOut, is_ctrl_c, logger
from rxbus._here import Job, Once, Origin, Time, Timed, is_alone, is_limited, local
from rxbus._put_off import PutOff, run_later
from rxbus._virtual import VirtualClock, VirtualTime
from rxbus._watch import Watch
from rxbus._workers import Workers
from rxbus.errors import InvalidArgument

_TState = TypeVar("_TState")


class BlockingScheduler(PeriodicScheduler):
    """The scheduler that waits for every observer: it delivers a bus's events, on as few threads as will do.

    A publisher calls one handler after another on its own thread. Where one takes longer than `handoff_after`, the
    others are handed to workers, eight at a time for each thread that is stuck, and an observer that was slow goes to a
    worker at once from then on, until it has been fast sixteen times. (The ideas: Go's sysmon and Linux's
    concurrency-managed workqueues.)

    It is a reactivex scheduler too. An action scheduled on it during a delivery belongs to that delivery: the publisher
    waits for it, and the observer's turn lasts until it has ended. What is scheduled outside a delivery simply runs;
    closing the bus waits for it where it is behind a buffer, and gives up what is timed. Since everything scheduled
    during a delivery counts, guards such as `debounce`, `timeout` and `interval` want a scheduler of their own.

    Args:
        max_workers: The most worker threads that run at a time; one that waits for others, in a publish or for room in
            a buffer, is not counted meanwhile. None: as many as observers block at once. 0: none, everything runs on
            the publishing thread in the order of attachment; deterministic, for tests.
        handoff_after: Seconds after which a handler on its publisher's thread counts as slow: of waiting, or of
            computing. Where the system tells (Linux), a thread that could run and gets no processor is not slow.
        stall_after: Seconds after which a publish that does not end is logged, and again each time that has doubled.
        clock: Virtual time instead of the machine's, for tests; `max_workers` is 0 then.

    Raises:
        InvalidArgument: A number is negative, or a time is zero; or there is a clock, and workers, who do not know it.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        handoff_after: float = 0.001,
        stall_after: float = 5.0,
        *,
        clock: VirtualClock | None = None,
    ) -> None:
        if max_workers is not None and (not isinstance(max_workers, int) or max_workers < 0):
            raise InvalidArgument(f"max_workers is None or a number from 0 on, not {max_workers!r}")
        if not all(isinstance(seconds, int | float) and seconds > 0 for seconds in (handoff_after, stall_after)):
            raise InvalidArgument("handoff_after and stall_after are seconds, more than 0")
        if clock is not None and (not isinstance(clock, VirtualClock) or max_workers != 0):
            raise InvalidArgument(
                f"clock is a VirtualClock, and goes with max_workers=0, not {max_workers!r}: {clock!r}"
            )
        self.limit = max_workers
        self.handoff_after = handoff_after
        self.stall_after = stall_after
        self._virtual = clock
        self._begin()
        schedulers.add(self)

    def _begin(self) -> None:
        self.waiting: dict[FanOut, None] = {}
        self.outside: dict[Outside, AbstractEventLoop | None] = {}
        self.time: Time = Clock() if self._virtual is None else VirtualTime(self._virtual, self.outside)
        self._workers = Workers(self.limit, lend=self.time.lend)
        self.short = self._workers.short
        self.monitor = self.time.watch(self.handoff_after, Watch(self, self.handoff_after, self.stall_after))
        self.guards = [self._workers.lock, self.monitor.lock, self.time.lock]
        self._closing = False  # what is scheduled outside of a delivery is given up
        self._lock = threading.RLock()  # guards the fields below
        self._buses: dict[int, None] = {}

    def _inherit(self) -> None:
        """In a forked child: the threads exist in the parent only."""
        self._begin()

    @property
    def clock(self) -> VirtualClock | None:
        """Its virtual time; None if it goes by the machine's."""
        return self._virtual

    @property
    def now(self) -> datetime:
        """The time, in UTC."""
        return self.to_datetime(self.time.time())

    @property
    def workers(self) -> int:
        """How many worker threads there are."""
        return self._workers.count

    def submit(self, job: Job) -> bool:
        """Runs a job on a worker; on the calling thread where there are none. False where it may have to wait."""
        if self.limit == 0:
            job()
            return True
        return self._workers.submit(job)

    def join(self, timeout: float | None = None) -> bool:
        """Waits until no worker has anything to do; False when so many seconds have passed."""
        return self._workers.join(timeout)

    def is_worker(self) -> bool:
        """Whether the calling thread is one of its workers."""
        return self._workers.is_worker() or self.time.is_worker()

    def acquire(self, bus: object) -> None:
        """A bus begins to use it."""
        with self._lock:
            self._buses[id(bus)] = None
            self._closing = False
            self._workers.open()
            self.monitor.open()

    def release(self, bus: object) -> None:
        """A bus has been closed; with the last one all threads end. Can be made again."""
        with self._lock:
            self._buses.pop(id(bus), None)
            last = not self._buses
            if last:  # now: what comes from here on is that of a bus which is just being made
                self._shut()
        if last:
            self._finish()

    def close(self) -> None:
        """Ends all threads, once they have done what they are doing. They start again when they are needed again.

        What is scheduled for later, outside of a delivery, is given up. An interrupted call can be repeated.
        """
        self._shut()
        self._finish()

    def _shut(self) -> None:
        self._closing = True
        self.time.shut()
        self._workers.shut()
        self.monitor.shut()

    def _finish(self) -> None:
        try:
            self.time.finish()
            self._workers.finish()
            self.monitor.finish()
        finally:
            self._closing = False

    def schedule(self, action: typing.ScheduledAction[_TState], state: _TState | None = None) -> abc.DisposableBase:
        """Runs an action on a worker, as soon as may be; see the class for what that means during a delivery."""
        return _Scheduled(self, lambda: self.invoke_action(action, state)).begin(_Scheduled.due)

    def schedule_relative(
        self, duetime: typing.RelativeTime, action: typing.ScheduledAction[_TState], state: _TState | None = None
    ) -> abc.DisposableBase:
        """Runs an action after some time: seconds, or a timedelta.

        Raises:
            InvalidArgument: It is no time.
            RxBusError: The system has no thread left to wait for it.
        """
        seconds = self.to_seconds(duetime)
        if isnan(seconds):
            raise InvalidArgument("an action is scheduled in so many seconds, not in NaN")
        if seconds <= 0:
            return self.schedule(action, state)
        scheduled = _Scheduled(self, lambda: self.invoke_action(action, state), timed=True)
        return scheduled.begin(lambda one: one.also(self.time.call_after(seconds, one.ring, one.disposable.dispose)))

    def schedule_absolute(
        self, duetime: typing.AbsoluteTime, action: typing.ScheduledAction[_TState], state: _TState | None = None
    ) -> abc.DisposableBase:
        """Runs an action at a time: a datetime, or seconds since the epoch."""
        due: datetime = self.to_datetime(duetime)
        return self.schedule_relative((due - self.now).total_seconds(), action, state)


schedulers: WeakSet[BlockingScheduler] = WeakSet()


class _Scheduled:
    """An action on its way: it runs once, or is disposed of once; either settles what it holds of its delivery."""

    def __init__(
        self, scheduler: BlockingScheduler, action: Callable[[], abc.DisposableBase], timed: bool = False
    ) -> None:
        self._scheduler = scheduler
        self._action = action
        self._timed = timed
        self._place = current_place()
        self._delivery = self._place if isinstance(self._place, Delivery) else None
        self._held: Acknowledgement | None = None
        self._context = copy_context()
        self._right = Once()  # of who runs or disposes of it
        self._timer: Timed | None = None
        self._result: abc.DisposableBase | None = None
        self.disposable = Disposable(self._dispose)

    def begin(self, start: Callable[[_Scheduled], object]) -> abc.DisposableBase:
        """Holds what it has to hold, and is started; an interrupt meanwhile ends both."""
        try:
            if self._delivery is not None:
                self._held = Acknowledgement(self._delivery, turn=True)
            elif self._place is not None and not self._timed and self._scheduler.limit != 0:
                self._held = Outside(self._place)
            elif self._scheduler._closing:  # what runs periodically would go on and on
                self.disposable.dispose()
                return self.disposable
            start(self)
        except BaseException:  # interrupted: it may not be on its way
            self._right.take()
            if self._held is not None:
                self._held._give()
            self.disposable.dispose()
            raise
        return self.disposable

    def also(self, timer: Timed) -> None:
        """Takes the timer that will call `due`, to be disposed of with it."""
        self._timer = timer

    def ring(self) -> None:
        """It is time, says the clock, on its thread; see `due`."""
        if self._scheduler.limit == 0:  # it may be done here
            self._scheduler.time.lend()
        self.due()

    def due(self) -> None:
        """Has it run now: on a worker, or by the publisher that waits for it."""
        scheduler, delivery = self._scheduler, self._delivery
        told = is_limited(scheduler) and delivery is not None
        offered = delivery is not None and told and self._offer(delivery)
        if scheduler.limit != 0:
            begun = scheduler.submit(self._run)
            if not begun and not told and delivery is not None:  # there has been a thread each time, till now
                self._offer(delivery)
        elif not offered:
            self._do_here()

    def _do_here(self) -> None:
        place = self._place
        if isinstance(place, Origin):  # closing waits for what a thread has put off
            here = local.here
            here.later.append(PutOff(self._run, place.engine.submit))
            run_later(here)
        else:
            CurrentThreadScheduler.singleton().schedule(lambda *_: self._run())

    def _offer(self, delivery: Delivery) -> bool:
        """Has who waits for it do it; says whether its publisher will."""
        offered = delivery.publisher().offer(self._run)
        if is_alone(self._scheduler):
            delivery.feed.lane.demand(self._run)
        return offered or delivery.fan.top.waiting().offer(self._run)  # the nested publisher may have gone, late

    def _run(self) -> None:
        here = local.here
        holding = here.holding
        try:
            here.holding += self._held is not None  # the turn of its lane, and nobody else gives that back
            self._run_once()
        finally:
            here.holding = holding
        run_later(here)

    def _run_once(self) -> None:
        error: BaseException | None = None
        try:
            if not self._right.take():
                return
            self._is_due_no_more()
            if self._place is None:
                self._act()
            else:
                work_for(self._place, self._act)
        except BaseException as raised:
            error = raised
        try:
            self._end(error)
        except BaseException:  # interrupted
            self._end(error)
            raise

    def _end(self, error: BaseException | None) -> None:
        self._place = self._delivery = None
        held = self._held
        if held is not None:
            held._give(error)
        if error is not None and (held is None or not held._is_told()):
            if is_ctrl_c(error):
                raise error
            logger.error("a scheduled action failed", exc_info=error)
        if self._result is not None and self.disposable.is_disposed:
            self._result.dispose()
        self._held = None  # it may have the event

    def _is_due_no_more(self) -> None:
        if self._delivery is not None:
            self._delivery.feed.lane.due.pop(self._run, None)

    def _act(self) -> None:
        action, context = self._action, self._context
        self._forget()
        self._result = context.run(action)

    def _forget(self) -> None:
        """Lets go of what it need not have any more: whoever keeps its disposable must not pin that."""
        self._action, self._context = Disposable, Context()

    def _dispose(self) -> None:
        try:
            if self._timer is not None:
                self._timer.dispose()
        finally:
            first = self._right.take()
            if first:
                self._is_due_no_more()
                self._forget()
            if first and self._held is not None:
                self._held._give()
            elif self._result is not None:
                self._result.dispose()
