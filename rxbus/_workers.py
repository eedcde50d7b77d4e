"""Threads: workers that end when idle, and the monitor's clock."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

from rxbus._here import Job
from rxbus.errors import RxBusError

logger = logging.getLogger("rxbus")

IDLE_SECONDS = 10.0


def _start(thread: threading.Thread, undo: Callable[[], object]) -> None:
    """Starts a thread; where it has not been started, `undo` is called.

    An interrupt may strike when the system has started the thread already, so that it takes a look to know.

    Raises:
        RxBusError: The system has no thread left.
    """
    try:
        thread.start()
    except RuntimeError as error:
        undo()
        raise RxBusError(f"{error}: what it was to do waits for another") from error
    except BaseException:
        for _ in range(100):
            if thread.ident is not None:
                raise
            time.sleep(0.001)
        undo()
        raise


class _Worker:
    __slots__ = ("bell", "job", "thread")

    def __init__(self, job: Job, run: Callable[[_Worker], None], name: str) -> None:
        self.job: Job | None = job
        self.bell = threading.Semaphore(0)
        self.thread = threading.Thread(target=run, args=(self,), name=name, daemon=True)


class Workers:
    """Threads that run jobs, as many as are needed at once, ended when idle for ten seconds.

    The worker that was idle for the shortest time gets the next job, so that the others can end (the thread cache of
    trio does the same). A job must not raise; one that does is logged.

    Args:
        limit: The most threads at a time; None: no limit, 0: none at all.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        # Guards all fields below; held for a few statements, except that a thread may be started under it.
        self._lock = threading.Lock()
        self._idle: dict[_Worker, None] = {}  # in the order in which they became so
        self._jobs: deque[Job] = deque()  # those that wait for a place
        self._threads: dict[_Worker, None] = {}
        self._closing = 0  # while anybody ends the threads, no worker stays idle
        self._quiet = threading.Condition(self._lock)  # told when a worker has become idle or ended

    @property
    def count(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    def submit(self, job: Job) -> None:
        """Runs a job on a worker, at once unless the limit is reached."""
        with self._lock:
            if self._idle:
                worker, _ = self._idle.popitem()
                worker.job = job
                worker.bell.release()
            elif self.limit is None or len(self._threads) < self.limit:
                worker = _Worker(job, self._run, f"rxbus-worker-{len(self._threads) + 1}")
                self._threads[worker] = None
                _start(worker.thread, partial(self._not_started, worker, job))
            else:
                self._jobs.append(job)

    def _not_started(self, worker: _Worker, job: Job) -> None:
        del self._threads[worker]
        self._jobs.append(job)

    def join(self) -> None:
        """Waits until no worker has anything to do."""
        with self._quiet:
            self._quiet.wait_for(lambda: len(self._idle) == len(self._threads) and not self._jobs)

    def close(self) -> None:
        """Ends the threads once they have done what there is; they come again when they are needed again."""
        with self._quiet:
            self._closing += 1
            ending = [worker.thread for worker in self._threads]
            for worker in self._idle:
                worker.bell.release()
        try:
            for thread in ending:
                thread.join()
        finally:
            with self._lock:
                self._closing -= 1

    def _run(self, worker: _Worker) -> None:
        while True:
            job, worker.job = worker.job, None
            if job is not None:
                try:
                    job()
                except BaseException:
                    logger.exception("a job of the bus failed; this is a defect of rxbus")
                job = None  # a worker that sleeps pins nothing
            with self._lock:
                if self._jobs:
                    worker.job = self._jobs.popleft()
                    continue
                if self._closing:
                    self._end(worker)
                    return
                self._idle[worker] = None
                self._quiet.notify_all()
            rung = worker.bell.acquire(timeout=IDLE_SECONDS)
            with self._lock:
                if worker not in self._idle:
                    if not rung:  # it was given a job in the very moment in which it gave up waiting
                        worker.bell.acquire()
                elif self._closing or not rung:
                    del self._idle[worker]
                    self._end(worker)
                    return
                else:
                    del self._idle[worker]

    def _end(self, worker: _Worker) -> None:
        self._threads.pop(worker, None)
        self._quiet.notify_all()


class Monitor:
    """A thread that looks at something again and again while there is something to see, and sleeps otherwise.

    Args:
        interval: Seconds between two looks.
        look: Does the looking. True: there is something new, look again soon; False: the same as before, there is no
            hurry; None: there is nothing.
    """

    LINGER = 20  # looks at nothing before it sleeps, so that a lively publisher need not wake it every time
    SLOWEST = 0.05  # seconds between two looks at what does not change

    def __init__(self, interval: float, look: Callable[[], bool | None]) -> None:
        self._interval = interval
        self._look = look
        self._lock = threading.Lock()  # guards _thread, _ending and the changes of asleep
        self._thread: threading.Thread | None = None
        self._ending = False
        self._bell = threading.Semaphore(0)
        self.asleep = True  # it takes a `wake` to have it look soon; read without the lock by every publish

    def wake(self) -> None:
        """Has it look soon. Starts its thread where there is none."""
        with self._lock:
            if not self.asleep:
                return
            self.asleep = False
            if self._thread is None:
                self._ending = False
                self._thread = threading.Thread(target=self._run, name="rxbus-monitor", daemon=True)
                _start(self._thread, self._not_started)
            else:
                self._bell.release()

    def _not_started(self) -> None:
        self._thread = None
        self.asleep = True

    def close(self) -> None:
        """Ends its thread; `wake` starts another."""
        with self._lock:
            thread, self._ending = self._thread, True
            self._bell.release()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        nothing = 0
        pause = self._interval
        while not self._ending:
            seen = self._look()
            nothing = 0 if seen is not None else nothing + 1
            pause = min(2 * pause, self.SLOWEST) if seen is False else self._interval
            if nothing > self.LINGER:
                rung = self._doze(IDLE_SECONDS)
                if not rung and self._retire():
                    return
            elif pause > self._interval:
                if self._doze(pause):
                    pause = self._interval
            else:
                self._bell.acquire(timeout=pause)
        self._retire()

    def _doze(self, seconds: float) -> bool:
        """Sleeps until woken: True, or for so long: False."""
        with self._lock:
            self.asleep = True
        # A publish that began before `asleep` was set did not ring: it must be seen now. One that begins later rings.
        rung = self._look() is True or self._bell.acquire(timeout=seconds)
        with self._lock:
            rung = rung or not self.asleep
            if rung:
                self.asleep = False
        return rung

    def _retire(self) -> bool:
        with self._lock:
            if self._ending or self.asleep:
                self._thread = None
                self.asleep = True
                self._bell = threading.Semaphore(0)
            return self._thread is None
