"""The clock: what time it is, and what calls back later."""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
from contextlib import suppress
from itertools import count
from time import monotonic

from rxbus._bell import Bell
from rxbus._fan_out import logger
from rxbus._here import Job
from rxbus._watch import Watch
from rxbus._workers import IDLE_SECONDS, Monitor, Worker
from rxbus.errors import RxBusError


class Timer:
    """A call that is to be made; disposed of, it is not made, and is let go of."""

    __slots__ = ("_clock", "call", "due", "lost")

    def __init__(self, clock: Clock, due: float, call: Job, lost: Job | None) -> None:
        self._clock = clock
        self.due = due
        self.call: Job | None = call
        self.lost = lost

    def dispose(self) -> None:
        """Has the call not be made; nothing happens where it has been."""
        self.call = self.lost = None
        self._clock.forget()


class Clock:
    """The machine's time, and calls at their times, on a thread of its own that ends ten seconds after the last.

    Calls must not raise, and one that may block says so first; see `lend`. (Not reactivex's `EventLoopScheduler`:
    disposed of at the wrong moment, its thread goes on waiting for the next call, and what is disposed of stays in its
    queue until its time comes.)
    """

    time = staticmethod(time.time)
    monotonic = staticmethod(monotonic)

    SPARSE = 64  # how many timers that were disposed of are kept at least until the queue is made anew

    def __init__(self) -> None:
        # Guards all below; held for a few statements, except that the thread may be started under it. An RLock, since
        # the garbage collector may run a destructor that disposes of a timer.
        self.lock = threading.RLock()
        self._queue: list[tuple[float, int, Timer]] = []  # a heap
        self._pushed = 0  # how many there have been
        self._numbers = count()  # of what is due at the same time, the first comes first
        self._disposed = 0  # how many of those in the queue have been, at most
        self._worker: Worker | None = None  # whose thread it is; another's ends
        self._lent: dict[Worker, None] = {}  # those that run user code; each takes itself off
        self._ended: dict[Worker, None] = {}  # those that are to be joined
        self._forgotten: dict[Timer, None] = {}  # calls that will not be made, and are not said to be lost yet

    def call_after(self, seconds: float, call: Job, lost: Job | None = None) -> Timer:
        """Makes a call in so many seconds.

        Args:
            seconds: How many.
            call: The call.
            lost: What is called instead where the clock is closed before.

        Raises:
            RxBusError: The system has no thread left to make it on.
        """
        timer = Timer(self, monotonic() + seconds, call, lost)
        with self.lock:
            self._pushed += 1
            heapq.heappush(self._queue, (timer.due, next(self._numbers), timer))
            if self._worker is not None:
                self._worker.bell.ring()
            elif not self._start():
                timer.call = timer.lost = None
                raise RxBusError("nothing can be scheduled for later: the system can start no thread")
        return timer

    def wait(self, bell: Bell, deadline: float | None) -> bool:
        """Waits until a bell rings; False when the deadline has passed."""
        return bell.wait(None if deadline is None else deadline - monotonic())

    async def wait_async(self, rung: asyncio.Event, deadline: float | None) -> bool:
        """The same without blocking the event loop."""
        with suppress(TimeoutError):
            async with asyncio.timeout(None if deadline is None else deadline - monotonic()):
                return await rung.wait()
        return False

    def skip(self) -> bool:
        """Nothing can be skipped: this time passes by itself."""
        return False

    def watch(self, interval: float, watch: Watch) -> Monitor:
        """What looks at publishes as time passes."""
        return Monitor(interval, watch.look)

    def lend(self) -> None:
        """The calling thread, if it is the clock's, is going to run user code: another calls what that waits for."""
        with self.lock:
            worker = self._worker
            if worker is None or worker.thread is not threading.current_thread():
                return
            self._lent[worker] = None
            self._worker = None
            if self._queue and not self._start():
                self._worker = worker

    def is_worker(self) -> bool:
        """Whether the calling thread is one that was lent."""
        return any(worker.thread is threading.current_thread() for worker in list(self._lent))

    def close(self) -> None:
        """Forgets all calls, and ends the threads; `call_after` starts another."""
        self.shut()
        self.finish()

    def shut(self) -> None:
        """Forgets all calls that there are now, and has the threads end; `finish` does the rest."""
        with self.lock:
            self._ended |= self._lent
            worker, self._worker = self._worker, None  # before it is rung: it may look at once, and not again
            if worker is not None:
                self._ended[worker] = None
                worker.bell.ring()
            self._forgotten |= {timer: None for _, _, timer in self._queue}
            self._queue = []

    def finish(self) -> None:
        """Waits until the threads have ended that were to end, and says which calls are lost. Can be made again."""
        for worker in list(self._ended):
            if worker.thread is not threading.current_thread():
                worker.thread.join()
            self._ended.pop(worker, None)
        for timer in list(self._forgotten):
            if (lost := timer.lost) is not None:
                lost()
            self._forgotten.pop(timer, None)

    def _start(self) -> bool:
        """Starts the thread, under the lock; False where the system has none left."""
        worker = self._worker = Worker(self._run, "rxbus-clock")
        try:
            started = worker.start()
        except BaseException:  # interrupted: whether it runs is not known
            worker.start_again()
            raise
        if not started:
            self._worker = None
        return started

    def forget(self) -> None:
        """A timer has been disposed of: makes the queue anew when there are many such."""
        with self.lock:
            self._disposed += 1
            if self._disposed > max(self.SPARSE, len(self._queue) // 2):
                pushed = self._pushed
                kept = self._still_to_come()
                heapq.heapify(kept)
                if pushed == self._pushed:  # else a signal handler has; from here on there is no call
                    self._queue = kept
                    self._disposed = 0

    def _still_to_come(self) -> list[tuple[float, int, Timer]]:
        """Under the lock."""
        return [entry for entry in self._queue if entry[2].call is not None]

    def _run(self, worker: Worker) -> None:
        try:
            while self._worker is worker:
                due, pause = self._take()
                if due is not None:
                    self._make(due)
                elif not worker.bell.wait(pause):
                    self._retire(worker)
        finally:
            self._lent.pop(worker, None)

    def _take(self) -> tuple[Timer | None, float]:
        """Takes off one that is due, or says how long it is until the next."""
        with self.lock:
            now = monotonic()
            if self._queue and self._queue[0][0] <= now:
                return heapq.heappop(self._queue)[2], 0.0
            return None, self._queue[0][0] - now if self._queue else IDLE_SECONDS

    def _make(self, timer: Timer) -> None:
        call = timer.call
        try:
            if call is not None:
                call()
        except BaseException:  # what is called takes care of its own
            logger.exception("a timed call failed; this is a defect of rxbus")

    def _retire(self, worker: Worker) -> None:
        with self.lock:
            if not self._queue and self._worker is worker:
                self._worker = None
