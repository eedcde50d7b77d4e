"""Threads: workers that end when idle, and the monitor's clock."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue

from rxbus._here import Job

logger = logging.getLogger("rxbus")

IDLE_SECONDS = 10.0


def _start(thread: threading.Thread, undo: Callable[[], object]) -> bool:
    """Starts a thread; False where the system has none left. Where it has not been started, `undo` is called.

    An interrupt may strike when the system has started the thread already, so that it takes a look to know.
    """
    try:
        thread.start()
    except RuntimeError:
        undo()
        return False
    except BaseException:  # Ctrl-C
        for _ in range(100):
            if thread.ident is not None:
                raise
            time.sleep(0.001)
        undo()
        raise
    return True


class _Worker:
    __slots__ = ("jobs", "thread")

    def __init__(self, job: Job, run: Callable[[_Worker], None], name: str) -> None:
        # What it is given; None: look whether to end. A queue, for a job put there cannot be lost: an interrupt may
        # strike whoever puts it right behind.
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.jobs.put(job)
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
        started = True
        with self._lock:
            if self._idle:
                worker = next(reversed(self._idle))
                worker.jobs.put(job)
                self._idle.pop(worker, None)
            elif self.limit is None or len(self._threads) < self.limit:
                worker = _Worker(job, self._run, f"rxbus-worker-{len(self._threads) + 1}")
                self._threads[worker] = None
                started = _start(worker.thread, partial(self._threads.pop, worker))
            else:
                self._jobs.append(job)
        if not started:
            logger.warning("no worker thread can be started: a handler runs on the thread of its publisher")
            job()

    def is_worker(self) -> bool:
        """Whether the calling thread is one of them."""
        return any(worker.thread is threading.current_thread() for worker in list(self._threads))

    def join(self, timeout: float | None = None) -> bool:
        """Waits until no worker has anything to do; False when so many seconds have passed."""
        with self._quiet:
            return self._quiet.wait_for(lambda: len(self._idle) == len(self._threads) and not self._jobs, timeout)

    def close(self) -> None:
        """Ends the threads once they have done what there is; they come again when they are needed again."""
        with self._quiet:
            self._closing += 1
            ending = [worker.thread for worker in self._threads]
            for worker in self._threads:
                worker.jobs.put(None)
        try:
            for thread in ending:
                thread.join()
        finally:
            with self._lock:
                self._closing -= 1

    def _run(self, worker: _Worker) -> None:
        while True:
            try:
                job = worker.jobs.get(timeout=IDLE_SECONDS)
                timed_out = False
            except Empty:
                job, timed_out = None, True
            while job is not None:
                with self._lock:
                    self._idle.pop(worker, None)
                try:
                    job()
                except BaseException:  # a handler's has been taken care of: this is ours, and the worker lives on
                    logger.exception("a job of the bus failed; this is a defect of rxbus")
                with self._lock:
                    job = self._jobs.popleft() if self._jobs else None
            with self._lock:
                if worker.jobs.empty():
                    if self._closing or timed_out:
                        self._idle.pop(worker, None)
                        self._end(worker)
                        return
                    self._idle[worker] = None
                    self._quiet.notify_all()

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
        self._interval = min(interval, self.SLOWEST)
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
