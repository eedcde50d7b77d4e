"""Virtual time: it passes when there is nothing else to do, or when it is told to.

All is done by the thread that lets it pass: a publisher who waits, or who advances the clock.
"""

from __future__ import annotations

import asyncio
import threading
from asyncio import AbstractEventLoop
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime
from math import inf

from reactivex import typing
from reactivex.disposable import CompositeDisposable, Disposable
from reactivex.internal import ArgumentOutOfRangeException
from reactivex.scheduler import VirtualTimeScheduler
from reactivex.scheduler.scheduleditem import ScheduledItem

from rxbus._acknowledgement import Delivery, Outside, coroutine_place, work_for
from rxbus._bell import Bell
from rxbus._here import Job, Timed, local, places
from rxbus._watch import Watch
from rxbus._workers import Monitor
from rxbus.errors import TimeStandsStill

MOST = 100_000  # how many actions a publisher without a timeout sees pass until it has waited for ever; and at a moment
ROUNDS = 10  # of an event loop, before virtual time passes: coroutines that can go on do so first
LAST = datetime.max.replace(tzinfo=UTC).timestamp()
LOOK = 0.005  # seconds between two looks at coroutines that wait for what is not virtual


class VirtualClock(VirtualTimeScheduler):
    """Virtual time for tests, in seconds from 0 on: nobody waits for it, and what happens is the same each time.

    `EventBus(BlockingScheduler(max_workers=0, clock=clock))` goes by it, with its timeouts, what is scheduled on
    `bus.scheduler`, its stall warnings and the time of its events. It is a reactivex scheduler too, for guards such as
    `ops.debounce(1, scheduler=clock)`, which no publisher waits for.

    It passes by `advance_by`, `advance_to` and `start`, and where a publisher waits and nothing can be done: it jumps
    to what is to happen next, or to the publisher's deadline. Where there is neither, an acknowledgement would never
    come, and the publisher gets an `AcknowledgementTimeout` that names who owes it. (`publish_async` goes on waiting
    while the event loop has other tasks or timers, which might acknowledge; a notebook's always has.) An action that
    fails raises where time is let pass. Handlers that take their time advance it: `clock.advance_by(5)`; they may.

    Actions that reschedule themselves without delay would keep time from passing: after a hundred thousand actions at
    one moment, what lets it pass raises `TimeStandsStill`. (A publisher gets its `AcknowledgementTimeout`. RxPY's
    virtual time goes on by a second then; here, nothing happens at a time at which it was not to.)

    It is meant for one thread. What other threads do takes no virtual time; a publish waits for handlers that run on
    them, unless it has a timeout, and for nothing else that they do.
    """

    def __init__(self) -> None:
        super().__init__(0.0)
        # An RLock, since the garbage collector may run a destructor that publishes or schedules.
        self._lock = threading.RLock()  # type: ignore[assignment] # pyright: ignore
        self._spun = 0  # how many actions have been done without time having passed
        self._watches: dict[Watch, None] = {}  # of the schedulers that go by it
        self._awaiting: dict[asyncio.Event, _Awaiting] = {}  # what coroutines wait for in publishes

    @property
    def seconds(self) -> float:
        """What time it is."""
        return self.to_seconds(self._clock)

    def advance_to(self, time: typing.AbsoluteTime) -> None:
        """Lets time pass up to a point, and does all that is due until then. It may be called by what is done.

        Raises:
            ArgumentOutOfRangeException: That was earlier, or lies beyond all dates.
            TimeStandsStill: Actions that add actions keep time from passing.
        """
        goal = self.to_seconds(time)
        if not self.seconds <= goal < LAST:
            raise ArgumentOutOfRangeException
        while self.step(goal):
            pass
        self._move(goal)

    def advance_by(self, time: typing.RelativeTime) -> None:
        """Lets so many seconds pass, and does all that is due."""
        self.advance_to(self.seconds + self.to_seconds(time))

    def start(self) -> None:
        """Lets time pass until nothing is to be done any more, or `stop` is called by what is done."""
        self._is_enabled = True
        while self._is_enabled and self.step():
            pass

    def step(self, goal: float = inf) -> bool:
        """Goes on to what is to happen next and does it; False, and no time passes, where nothing is until then.

        Raises:
            TimeStandsStill: Actions that add actions keep time from passing.
        """
        moment, spun = self.seconds, self._spun
        if not self._do_next(goal):
            self._spun = 0
            return False
        self._spun = spun + 1 if self.seconds == moment else 0  # whatever the action has counted that let time pass
        if self._spun >= MOST:
            self._spun = 0
            raise TimeStandsStill(moment, MOST)
        return True

    def _do_next(self, goal: float) -> bool:
        item = self._take(goal)
        if item is None:
            return False
        self._move(self.to_seconds(item.duetime))
        _from_outside(item.invoke)
        return True

    def _drop_cancelled(self) -> None:
        while self._queue and self._queue.peek().is_cancelled():
            self._queue.dequeue()

    def _take(self, goal: float) -> ScheduledItem | None:
        """Takes off what is to happen next."""
        with self._lock:
            self._drop_cancelled()
            if self._queue and self.to_seconds(self._queue.peek().duetime) <= goal:
                return self._queue.dequeue()
        return None

    def _move(self, goal: float) -> None:
        """Lets time pass in which nothing happens, except that warnings may be due."""
        self._look()  # what has begun by now is taken in
        while (due := min((watch.due() for watch in list(self._watches)), default=inf)) <= goal:
            self._clock = max(self.seconds, due)
            self._look()
        self._clock = max(self.seconds, goal)

    def _expire(self, deadline: float) -> None:
        """A publisher waits no longer. What lies beyond all dates is for ever, to which time does not go."""
        if deadline < LAST:
            self._move(deadline)

    def _look(self) -> None:
        for watch in list(self._watches):
            watch.look()


def _from_outside(call: Job) -> None:
    """Makes a call that belongs to no handler, though its thread may be inside of one."""
    here = local.here
    depth = len(here.waits)
    context = copy_context()
    if coroutine_place.get() is not None:
        context.run(coroutine_place.set, None)
    try:
        here.waits.append((here.feed, here.fan, here.origin))  # it goes on when the call has returned
        context.run(work_for, None, call)
    finally:
        del here.waits[depth:]


class VirtualTime:
    """The time of one scheduler, by a virtual clock; see `Time`.

    Args:
        clock: The clock.
        outside: See `Engine`.
    """

    def __init__(self, clock: VirtualClock, outside: dict[Outside, AbstractEventLoop | None]) -> None:
        self._clock = clock
        self._outside = outside
        self.lock = clock._lock
        self._timers: dict[Timed, tuple[float, Job, Job | None]] = {}  # what is to be called when, and what if not
        self._forgotten: dict[Timed, tuple[float, Job, Job | None]] = {}  # calls that will not be made

    def time(self) -> float:
        return self._clock.seconds

    monotonic = time

    def call_after(self, seconds: float, call: Job, lost: Job | None = None) -> Timed:
        def make(*_: object) -> None:
            timer.dispose()
            call()

        timer = CompositeDisposable(Disposable(lambda: self._timers.pop(timer, None) and None))
        self._timers[timer] = self.time() + seconds, call, lost
        timer.add(self._clock.schedule_relative(seconds, make))
        return timer

    def wait(self, bell: Bell, deadline: float | None) -> bool:
        patience = _Patience(deadline)
        while patience.lasts(self.time()):
            if bell.wait(0):
                return True
            if not self._clock._do_next(patience.goal):
                break
        if deadline is None:
            return self._is_another_inside() and bell.wait()
        self._clock._expire(deadline)
        return False

    def _is_another_inside(self) -> bool:
        """Whether another thread is inside a handler, of this or of what this has led to."""
        own = local.here
        feeds = [(here.feed, here.fan) for here in list(places.values()) if here is not own]
        logs = [log for feed, fan in feeds if feed is not None for log in (feed.log, (fan and fan.top.log) or feed.log)]
        return any(log.hub.engine.time is self for log in logs)

    async def wait_async(self, rung: asyncio.Event, deadline: float | None) -> bool:
        self._clock._awaiting[rung] = own = _Awaiting()
        patience = _Patience(deadline)
        try:
            while not await self._has_rung(rung):
                if self._is_loop_at_work():
                    await own.pause(rung)
                elif patience.lasts(self.time()) and self._clock._do_next(patience.goal):
                    continue
                elif deadline is not None:
                    self._clock._expire(deadline)
                    break
                elif self._may_another_ring(own):
                    await own.pause(rung)
                else:
                    break
            return rung.is_set()
        finally:
            del self._clock._awaiting[rung]

    async def _has_rung(self, rung: asyncio.Event) -> bool:
        for _ in range(ROUNDS):
            if rung.is_set():
                break
            await asyncio.sleep(0)
        return rung.is_set()

    def _is_loop_at_work(self) -> bool:
        """Whether a coroutine waits for something else than a publish: time stands still meanwhile."""
        publishing = {one.place for one in list(self._clock._awaiting.values())}
        places = [owed._place for owed in list(self._outside)]
        return any(isinstance(place, Delivery) and place not in publishing for place in places)

    def _may_another_ring(self, own: _Awaiting) -> bool:
        """Whether something other than time may still acknowledge: a task or timer of the loop, or another thread.

        Of publishes that wait, the innermost gives up first: others may wait for the coroutine that makes it.
        """
        waits = list(self._clock._awaiting.values())
        tasks = asyncio.all_tasks() - {one.task for one in waits}
        # asyncio tells of its timers nowhere else; the loops of others may not have the list.
        timers = [one for one in getattr(asyncio.get_running_loop(), "_scheduled", ()) if not one.cancelled()]
        is_innermost = own.depth == max(one.depth for one in waits)
        pauses = sum(one.is_pausing for one in waits)
        return not is_innermost or bool(tasks) or len(timers) > pauses or self._is_another_inside()

    def skip(self) -> bool:
        """Only to what its own scheduler is to do: a bus that closes waits for no other, which may go on for ever."""
        if not self._timers:
            return False
        timer = min(self._timers, key=lambda one: self._timers[one][0])
        due, call, _ = self._timers[timer]
        timer.dispose()
        self._clock._move(due)
        _from_outside(call)
        return True

    def watch(self, interval: float, watch: Watch) -> Monitor:
        return _Unhurried(interval, watch, self._clock._watches)

    def lend(self) -> None:
        """No thread is the clock's own."""

    def is_worker(self) -> bool:
        return False

    def shut(self) -> None:
        for timer in list(self._timers):
            self._forgotten[timer] = self._timers[timer]
            timer.dispose()

    def finish(self) -> None:
        for timer, (_, _, lost) in list(self._forgotten.items()):
            if lost is not None:
                lost()
            self._forgotten.pop(timer, None)


class _Awaiting:
    """A coroutine that waits in a publish."""

    def __init__(self) -> None:
        self.place = coroutine_place.get()  # what it works for
        self.depth = self.place.fan.chain + 1 if isinstance(self.place, Delivery) else 0
        self.task = asyncio.current_task()
        self.is_pausing = False  # by a timer of the loop

    async def pause(self, rung: asyncio.Event) -> None:
        """Lets the event loop go on with what is not virtual, until it rings or there is to be looked again."""
        self.is_pausing = True
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await rung.wait()
        finally:
            self.is_pausing = False


class _Patience:
    """Of a publisher, who has waited for ever when so many actions have passed; with a timeout, so many at one moment.

    Actions that add actions keep time from passing: its deadline would never come.
    """

    def __init__(self, deadline: float | None) -> None:
        self.goal = inf if deadline is None else deadline
        self._is_by_moment = deadline is not None
        self._left = MOST
        self._moment = 0.0

    def lasts(self, now: float) -> bool:
        """Whether there may be one more, now."""
        if self._is_by_moment and now > self._moment:
            self._left, self._moment = MOST, now
        self._left -= 1
        return self._left >= 0


class _Unhurried(Monitor):
    """Looks when time passes, on the thread that lets it."""

    def __init__(self, interval: float, watch: Watch, watches: dict[Watch, None]) -> None:
        super().__init__(interval, watch.look)
        self._watch = watch
        self._watches = watches
        self.asleep = False  # nobody need wake it

    def wake(self) -> None:
        """It is told when to look."""

    def shut(self) -> None:
        self._watches.pop(self._watch, None)

    def open(self) -> None:
        self._watches[self._watch] = None
