"""The clock: what calls back later."""

from __future__ import annotations

import heapq
import threading
from itertools import count
from time import monotonic

from rxbus._fan_out import FOREVER, logger
from rxbus._here import Job
from rxbus._workers import IDLE_SECONDS, Worker, is_rung


class Timer:
    """A call that is to be made; disposed of, it is not made, and is let go of."""

    __slots__ = ("_clock", "call", "due")

    def __init__(self, clock: Clock, due: float, call: Job) -> None:
        self._clock = clock
        self.due = due
        self.call: Job | None = call

    def dispose(self) -> None:
        """Has the call not be made; nothing happens where it has been."""
        self.call = None
        self._clock.forget()


class Clock:
    """Makes calls at their times, on a thread of its own that ends when there has been none to make for ten seconds.

    Calls must neither block nor raise. (Not reactivex's `EventLoopScheduler`: disposed of at the wrong moment, its
    thread goes on waiting for the next call, and what is disposed of stays in its queue until its time comes.)
    """

    SPARSE = 64  # how many timers that were disposed of are kept at least until the queue is made anew

    def __init__(self) -> None:
        # Guards all below; held for a few statements, except that the thread may be started under it. An RLock, since
        # the garbage collector may run a destructor that disposes of a timer.
        self.lock = threading.RLock()
        self._queue: list[tuple[float, int, Timer]] = []  # a heap
        self._numbers = count()  # of what is due at the same time, the first comes first
        self._disposed = 0  # how many of those in the queue have been, at most
        self._worker: Worker | None = None  # whose thread it is; another's ends

    def call_after(self, seconds: float, call: Job) -> Timer:
        """Makes a call in so many seconds."""
        timer = Timer(self, monotonic() + min(seconds, FOREVER), call)
        with self.lock:
            heapq.heappush(self._queue, (timer.due, next(self._numbers), timer))
            if self._worker is not None:
                self._worker.jobs.put(None)
            else:
                self._worker = Worker(None, self._run, "rxbus-clock")
                try:
                    self._worker.start()
                except BaseException:  # interrupted: whether it runs is not known
                    self._worker.start_again()
                    raise
        return timer

    def close(self) -> None:
        """Forgets all calls, and ends the thread; `call_after` starts another."""
        with self.lock:
            self._queue.clear()
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.jobs.put(None)
            if worker.thread is not threading.current_thread():
                worker.thread.join()

    def forget(self) -> None:
        """A timer has been disposed of: makes the queue anew when there are many such."""
        with self.lock:
            self._disposed += 1
            if self._disposed > max(self.SPARSE, len(self._queue) // 2):
                self._queue = [entry for entry in self._queue if entry[2].call is not None]
                heapq.heapify(self._queue)
                self._disposed = 0

    def _run(self, worker: Worker) -> None:
        while self._worker is worker:
            due, pause = self._take()
            for timer in due:
                self._make(timer)
            if not due and not is_rung(worker, pause):
                self._retire(worker)

    def _take(self) -> tuple[list[Timer], float]:
        """Takes off what is due, and says how long it is until the next."""
        due: list[Timer] = []
        with self.lock:
            now = monotonic()
            while self._queue and self._queue[0][0] <= now:
                due.append(heapq.heappop(self._queue)[2])
            pause = self._queue[0][0] - now if self._queue else IDLE_SECONDS
        return due, pause

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
