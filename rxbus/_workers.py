"""Threads: workers that end when idle, and the monitor's clock."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from rxbus._bell import Bell, ring_all, wait_until
from rxbus._here import Engine, Job, local
from rxbus._put_off import do_without

logger = logging.getLogger("rxbus")

IDLE_SECONDS = 10.0


class _Unawaited(threading.Event):
    """What `Thread.start` waits for, though it need not.

    Before it is set, the collector may run a destructor on the new thread that publishes, and waits for a turn that the
    starting thread holds.
    """

    def wait(self, timeout: float | None = None) -> bool:
        return True


class _Thread(threading.Thread):
    """A thread that says when it has come; nobody waits for that who starts it.

    An interrupt may strike in the midst of `start`, which leaves it open whether the thread runs, or ever will.
    """

    def __init__(self, name: str, work: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._runs = False  # it has come; the bell, which tells of that, rings once only
        self._coming = Bell()
        self._started = _Unawaited()

    def join(self, timeout: float | None = None) -> None:
        """Waits for its end, though it has not come yet."""
        if self._runs or self._coming.wait(timeout):
            super().join(timeout)

    def run(self) -> None:
        self._runs = True
        self._coming.ring()
        self._work()

    def came(self) -> bool:
        """Whether it has come, or does so soon."""
        return self._runs or self._coming.wait(0.1)


class Worker:
    """A thread, the queue by which it is told what to do, and the bell that tells it to look."""

    __slots__ = ("_name", "_run", "bell", "jobs", "thread")

    def __init__(self, run: Callable[[Worker], None], name: str, job: Job | None = None) -> None:
        # What it is given; None: look whether to end. A queue, for a job put there cannot be lost: an interrupt may
        # strike whoever puts it right behind. (Its timeout may be missed, see `Bell`: then an idle worker stays.)
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.jobs.put(job)
        self.bell = Bell()
        self._run = run
        self._name = name
        self.thread = _Thread(name, self.work)

    def work(self) -> None:
        if threading.current_thread() is self.thread:
            self._run(self)

    def start(self) -> bool:
        """Starts its thread; False where the system has none left."""
        try:
            self.thread.start()
        except RuntimeError:
            return False
        return True

    def start_again(self) -> None:
        """Sees to it that it has a thread, after an interrupt in the midst of `start`."""
        if not self.thread.came():
            self.thread = _Thread(self._name, self.work)
            self.thread.start()


class Workers:
    """Threads that run jobs, as many as are needed at once, ended when idle for ten seconds.

    The worker that was idle for the shortest time gets the next job, so that the others can end (the thread cache of
    trio does the same). A job must not raise; one that does is logged.

    Args:
        limit: The most threads that run at a time; None: no limit, 0: none at all. One that `rest`s in the midst of a
            job does not count, so that jobs may wait for each other (as in Java's fork/join pool, whose blocked workers
            are compensated for). To have those that wait do themselves what they wait for is no way out: not all of
            it can be found, and who has begun it cannot leave it where it waits in its turn.
        name: What the names of the threads begin with.
        lend: Called before the calling thread does what a worker was to do.
    """

    def __init__(
        self, limit: int | None, name: str = "rxbus-worker", lend: Callable[[], object] = lambda: None
    ) -> None:
        self.limit = limit
        self.short: list[None] = []  # see `Engine`
        self._name = name
        self._lend = lend
        # Guards all fields below; held for a few statements. An RLock, since the garbage collector may run a destructor
        # that publishes. No thread is started under it: whoever starts one waits until it has come, and the collector
        # may run such a destructor on that one right before.
        self.lock = threading.RLock()
        self._idle: dict[Worker, None] = {}  # in the order in which they became so
        self._jobs: deque[Job] = deque()  # those that wait for a place
        self._threads: dict[Worker, None] = {}
        self._resting = 0  # how many wait, in the midst of a job, for what others do
        self._closed = False  # no worker stays idle: what comes late is done all the same, and leaves no thread
        self._joining: list[Bell] = []  # rung when a worker has become idle or ended

    @property
    def count(self) -> int:
        """How many threads there are."""
        return len(self._threads)

    def submit(self, job: Job) -> bool:
        """Runs a job on a worker, at once unless the limit is reached or there is no thread; see `Engine`."""
        new: Worker | None = None
        begun = True
        here = local.here
        holding = here.holding
        try:
            here.holding += 1  # what strikes this thread now, and would wait for a worker, might wait for this very one
            with self.lock:
                if not self._has_room():
                    self._jobs.append(job)
                    begun = False
                elif self._idle:
                    worker = next(reversed(self._idle))
                    del self._idle[worker]
                    worker.jobs.put(job)
                else:
                    new = Worker(self._run, f"{self._name}-{len(self._threads) + 1}", job)
                    self._threads[new] = None
            started = new is None or new.start()
        except BaseException:  # interrupted: whether it runs is not known
            if new is not None:
                new.start_again()
            raise
        finally:
            here.holding = holding
        if new is not None and not started:
            self._do_without(new, job)
        return begun and started

    def _do_without(self, worker: Worker, job: Job) -> None:
        """The system has no thread left: leaves a job to the workers there are; else the calling thread does it."""
        self.short[:] = [None]
        logger.warning("no worker thread can be started: a handler runs on the thread of its publisher")
        with self.lock:
            self._threads.pop(worker, None)
            self._jobs.appendleft(job)
            left: deque[Job] = deque()
            if len(self._threads) <= self._resting:  # what had been left for this one, too
                left, self._jobs = self._jobs, left
            ring_all(self._joining)
        if left:
            self._lend()
            do_without(left, self.submit)

    def _has_room(self, beside: int = 0) -> bool:
        """Whether one more may run, beside those that have a job and do not rest in the midst of it. Under the lock.

        Args:
            beside: How many of these are not to be counted.
        """
        return self.limit is None or len(self._threads) - len(self._idle) - self._resting - beside < self.limit

    def rest(self) -> None:
        """The calling worker is going to wait, in the midst of a job, for what others do: another takes its place.

        So whatever has been submitted runs in the end, as without a limit, whatever workers wait for.
        """
        with self.lock:
            self._resting += 1
            called = bool(self._jobs) and self._has_room()
        if called:
            self.submit(_nothing)  # whoever has done it goes on with what waits

    def go_on(self) -> None:
        """It has waited, and goes on at once: should too many run then, the first to be done takes no other job."""
        with self.lock:
            self._resting -= 1

    def is_worker(self) -> bool:
        """Whether the calling thread is one of them."""
        return any(worker.thread is threading.current_thread() for worker in list(self._threads))

    def join(self, timeout: float | None = None) -> bool:
        """Waits until no worker has anything to do; False when so many seconds have passed."""
        return wait_until(lambda: len(self._idle) == len(self._threads) and not self._jobs, self._joining, timeout)

    def close(self) -> None:
        """Ends the threads once they have done what there is; those that are needed later end when they are idle."""
        self.shut()
        self.finish()

    def shut(self) -> None:
        """Lets no worker stay when it is idle."""
        self._closed = True

    def finish(self) -> None:
        """Waits until all have ended that are not to stay; no longer where they may `open` again, meanwhile."""
        while self._closed and (ending := self._all()):  # what they do may start others
            for worker in ending:
                worker.jobs.put(None)
                self._join(worker)

    def _join(self, worker: Worker) -> None:
        wait_until(lambda: not self._closed or worker not in self._threads, self._joining, None)
        if worker not in self._threads and worker.thread.ident is not None:  # else it could not be started
            worker.thread.join()

    def open(self) -> None:
        """Lets idle workers stay, from now on."""
        self._closed = False
        ring_all(self._joining)

    def _all(self) -> list[Worker]:
        with self.lock:
            return [*self._threads]

    def _run(self, worker: Worker) -> None:
        local.here.pool = self if self.limit else None
        while (job := self._next(worker)) is not None:
            try:
                job()
            except BaseException:  # a handler's has been taken care of: this is ours, and the worker lives on
                logger.exception("a job of the bus failed; this is a defect of rxbus")
            del job  # it must not be pinned while there is nothing to do

    def _next(self, worker: Worker) -> Job | None:
        """Waits for what a worker is to do next; None: it ends."""
        timed_out = False
        while True:
            with self.lock:
                if worker.jobs.empty():
                    if self._jobs and self._has_room(beside=worker not in self._idle):
                        self._idle.pop(worker, None)
                        return self._jobs.popleft()
                    if self._closed or timed_out:
                        self._idle.pop(worker, None)
                        self._threads.pop(worker, None)
                        ring_all(self._joining)
                        return None
                    self._idle[worker] = None
                    ring_all(self._joining)
            try:
                job = worker.jobs.get(timeout=IDLE_SECONDS)
            except Empty:
                timed_out = True
                continue
            if job is not None:
                with self.lock:
                    self._idle.pop(worker, None)
                return job


def _nothing() -> None:
    """A job that calls a worker."""


class Crew:
    """The workers as one bus sees them, which may share them: it knows when all that it has submitted is done.

    Args:
        engine: Whose workers they are.
    """

    def __init__(self, engine: Engine) -> None:
        self.limit = engine.limit
        self.short = engine.short
        self.handoff_after = engine.handoff_after
        self.stall_after = engine.stall_after
        self.monitor = engine.monitor
        self.time = engine.time
        self.waiting = engine.waiting
        self.outside = engine.outside
        self.guards = engine.guards
        self._submit = engine.submit
        self._open: dict[object, None] = {}  # what has been submitted and is not done
        self._joining: list[Bell] = []  # rung when nothing is

    def submit(self, job: Job) -> bool:
        """See `Engine`."""
        mark = object()

        def run() -> None:
            try:
                job()
            finally:
                self._end(mark)

        self._open[mark] = None
        try:
            return self._submit(run)
        except BaseException:  # interrupted: it may never run
            self._end(mark)
            raise

    def _end(self, mark: object) -> None:
        self._open.pop(mark, None)
        if not self._open:
            ring_all(self._joining)

    def join(self, timeout: float | None = None) -> bool:
        """Waits until nothing that was submitted is open; False when so many seconds have passed."""
        return wait_until(lambda: not self._open, self._joining, timeout)


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
        # Guards _worker and the changes of asleep. An RLock, since the garbage collector may run a destructor that
        # publishes.
        self.lock = threading.RLock()
        self._worker: Worker | None = None  # whose thread it is; another's ends
        self._ended: dict[Worker, None] = {}  # to be joined
        self._closed = False  # it does not stay: a publisher that woke up late has what it needs, and leaves no thread
        self.asleep = True  # it takes a `wake` to have it look soon; read without the lock by every publish

    def wake(self) -> None:
        """Has it look soon. Starts its thread where there is none."""
        if not self.asleep:
            return
        with self.lock:
            if not self.asleep:
                return
            if self._worker is None:
                self._worker = Worker(self._run, "rxbus-monitor")
                self.asleep = False
                try:
                    started = self._worker.start()
                except BaseException:  # interrupted: whether it runs is not known
                    self._worker.start_again()
                    raise
                if not started:
                    self._worker = None
                    self.asleep = True
            else:
                self.asleep = False
                self._worker.bell.ring()

    def close(self) -> None:
        """Ends its thread; `wake` starts another, which ends as soon as there is nothing to see."""
        self.shut()
        self.finish()

    def shut(self) -> None:
        """Has its thread end, and any that comes later as soon as there is nothing to see."""
        self._closed = True
        with self.lock:
            worker, self._worker = self._worker, None  # before it is rung: it may look at once, and not again
            if worker is not None:
                self._ended[worker] = None
                worker.bell.ring()
            self.asleep = True

    def finish(self) -> None:
        """Waits until the threads have ended that were to end."""
        for worker in list(self._ended):
            if worker.thread is not threading.current_thread():
                worker.thread.join()
            self._ended.pop(worker, None)

    def open(self) -> None:
        """Lets its thread stay, from now on."""
        self._closed = False

    def _run(self, worker: Worker) -> None:
        nothing = 0
        pause = self._interval
        while self._worker is worker:
            seen = self._look()
            nothing = 0 if seen is not None else nothing + 1
            pause = min(2 * pause, self.SLOWEST) if seen is False else self._interval
            if nothing > self.LINGER:
                rung = self._doze(worker, 0.0 if self._closed else IDLE_SECONDS)
                if not rung:
                    self._retire(worker)
            elif pause > self._interval:
                if self._doze(worker, pause):
                    pause = self._interval
            else:
                worker.bell.wait(pause)

    def _doze(self, worker: Worker, seconds: float) -> bool:
        """Sleeps until woken: True, or for so long: False."""
        with self.lock:
            if self._worker is worker:
                self.asleep = True
        # A publish that began before `asleep` was set did not ring: it must be seen now. One that begins later rings.
        rung = self._look() is True or worker.bell.wait(seconds)
        with self.lock:
            rung = rung or not self.asleep
            if rung and self._worker is worker:
                self.asleep = False
        return rung

    def _retire(self, worker: Worker) -> None:
        with self.lock:
            if self._worker is worker and self.asleep:
                self._worker = None
