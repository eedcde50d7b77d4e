"""Worker threads and the monitor."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import pytest

from rxbus import _workers
from rxbus._bell import Bell, wait_until
from rxbus._clock import Clock
from rxbus._here import local
from rxbus._workers import Monitor, Workers, _Thread
from tests.stress.strikes import Strike

PATIENCE = 10.0


class Job:
    """A job that stays until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go = threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self) -> None:
        self.thread = threading.current_thread()
        self.begun.set()
        assert self.go.wait(PATIENCE)


def finish(*jobs: Job) -> None:
    for job in jobs:
        job.go.set()


def run(workers: Workers, job: Callable[[], object] = lambda: None) -> threading.Thread:
    """Runs a job, waits until all is quiet, and says on which thread it ran."""
    ran: list[threading.Thread] = []
    workers.submit(lambda: (job(), ran.append(threading.current_thread())))
    workers.join()
    return ran[0]


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers(None)
    yield workers
    workers.close()


# -- Workers


def test_no_thread_before_there_is_a_job(workers: Workers) -> None:
    assert workers.count == 0
    workers.join()
    workers.close()
    assert workers.count == 0


def test_a_job_runs_on_a_daemon_thread_of_its_own(workers: Workers) -> None:
    thread = run(workers)
    assert thread is not threading.current_thread()
    assert thread.daemon
    assert thread.name.startswith("rxbus-worker-")


def test_jobs_run_at_once_without_a_limit(workers: Workers) -> None:
    barrier = threading.Barrier(9)
    for _ in range(8):
        workers.submit(lambda: barrier.wait(PATIENCE))
    barrier.wait(PATIENCE)  # all eight are there
    assert workers.count == 8


def test_an_idle_worker_is_used_again(workers: Workers) -> None:
    assert len({run(workers) for _ in range(20)}) == 1
    assert workers.count == 1


def test_the_worker_that_was_idle_for_the_shortest_time_is_used_again(workers: Workers) -> None:
    first, second = Job(), Job()
    for job in (first, second):
        workers.submit(job)
        assert job.begun.wait(PATIENCE)
    finish(second)
    assert _workers.wait_until(lambda: len(workers._idle) == 1, workers._joining, PATIENCE)
    finish(first)
    workers.join()
    assert run(workers) is first.thread


@pytest.mark.parametrize("limit", [1, 3])
def test_the_limit_holds_and_what_waits_runs_in_order(limit: int) -> None:
    workers = Workers(limit)
    blockers = [Job() for _ in range(limit)]
    order: list[int] = []
    for job in blockers:
        workers.submit(job)
        assert job.begun.wait(PATIENCE)
    for n in range(10):
        workers.submit(lambda n=n: order.append(n))
    assert (workers.count, order) == (limit, [])
    finish(blockers[0])  # one is enough to do it all
    done = threading.Event()
    workers.submit(done.set)
    assert done.wait(PATIENCE)
    assert (workers.count, order) == (limit, list(range(10)))
    finish(*blockers)
    workers.close()


@pytest.mark.parametrize("queued_first", [True, False])
def test_a_worker_that_waits_for_others_keeps_no_place(queued_first: bool) -> None:
    """What it waits for lies in the queue already, or comes later."""
    workers = Workers(1)
    begun, queued, done, waited = (threading.Event() for _ in range(4))

    def wait() -> None:
        begun.set()
        if queued_first:
            assert queued.wait(PATIENCE)
        assert local.here.rest(lambda: done.wait(PATIENCE))
        waited.set()

    workers.submit(wait)
    assert begun.wait(PATIENCE)
    if not queued_first:
        while not workers._resting:
            pass
    workers.submit(done.set)
    queued.set()
    assert waited.wait(PATIENCE)
    workers.close()
    assert workers.count == 0


def test_when_a_worker_goes_on_the_next_to_be_done_takes_no_job() -> None:
    """There are two for one place; the one that is done leaves what waits to the other."""
    workers = Workers(1)
    go, gone_on, resting = threading.Event(), Job(), Job()

    def wait() -> None:
        local.here.rest(lambda: go.wait(PATIENCE))
        gone_on()

    workers.submit(wait)
    workers.submit(resting)
    assert resting.begun.wait(PATIENCE)
    last: list[threading.Thread] = []
    workers.submit(lambda: last.append(threading.current_thread()))
    go.set()
    assert gone_on.begun.wait(PATIENCE)
    finish(resting)
    assert wait_until(lambda: len(workers._idle) == 1, workers._joining, PATIENCE)
    assert last == []
    finish(gone_on)
    workers.join()
    assert last == [gone_on.thread]
    workers.close()


def test_join_waits_for_what_runs_and_for_what_waits(spawn: Callable[..., Future[Any]]) -> None:
    workers = Workers(1)
    job, last = Job(), Job()
    workers.submit(job)
    workers.submit(last)
    joined = spawn(workers.join)
    assert job.begun.wait(PATIENCE)
    finish(job)
    assert last.begun.wait(PATIENCE)
    assert not joined.done()
    finish(last)
    joined.result(PATIENCE)
    workers.close()


def test_close_ends_all_threads_when_they_have_done_what_there_is(spawn: Callable[..., Future[Any]]) -> None:
    workers = Workers(2)
    jobs = [Job() for _ in range(5)]
    for job in jobs:
        workers.submit(job)
    assert all(job.begun.wait(PATIENCE) for job in jobs[:2])
    closed = spawn(workers.close)
    finish(*jobs[:-1])
    assert jobs[-1].begun.wait(PATIENCE)
    assert not closed.done()
    finish(*jobs)
    closed.result(PATIENCE)
    assert workers.count == 0
    assert not any(job.thread is None or job.thread.is_alive() for job in jobs)


def test_close_ends_idle_workers(workers: Workers) -> None:
    thread = run(workers)
    workers.close()
    assert not thread.is_alive()
    assert workers.count == 0


def test_workers_come_again_after_close(workers: Workers) -> None:
    before = run(workers)
    workers.close()
    after = run(workers)
    assert after is not before
    after.join(PATIENCE)
    assert run(workers) is not after  # it does not stay
    workers.open()
    last = run(workers)
    assert run(workers) is last  # idle workers are kept again


def test_close_does_not_wait_for_workers_that_may_stay_again(
    workers: Workers, spawn: Callable[..., Future[Any]]
) -> None:
    job = Job()
    workers.submit(job)
    closing = spawn(workers.close)
    while not workers._closed:
        pass
    workers.open()
    closing.result(PATIENCE / 2)
    finish(job)
    workers.join()
    assert run(workers) is job.thread


def test_a_worker_that_is_idle_for_long_ends_by_itself(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workers, "IDLE_SECONDS", 0.01)
    thread = run(workers)
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert workers.count == 0
    assert run(workers) is not thread


def test_no_job_is_lost_when_idle_workers_give_up(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workers, "IDLE_SECONDS", 0.0)  # they give up the moment they are idle
    done = threading.Semaphore(0)
    for _ in range(500):
        workers.submit(done.release)
    assert all(done.acquire(timeout=PATIENCE) for _ in range(500))
    assert not done.acquire(blocking=False)


class _Late(queue.SimpleQueue[Any]):
    """A worker's queue that stops between the end of the worker's patience and its saying so."""

    def __init__(self) -> None:
        super().__init__()
        self.gave_up, self.go = threading.Event(), threading.Event()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if self.gave_up.is_set():
            return super().get(block, timeout)
        self.gave_up.set()
        assert self.go.wait(PATIENCE)
        raise queue.Empty


def test_a_job_given_to_a_worker_that_just_gave_up_waiting_is_done(workers: Workers) -> None:
    first, second = Job(), Job()
    workers.submit(first)
    assert first.begun.wait(PATIENCE)
    (worker,) = workers._threads
    late = worker.jobs = _Late()
    finish(first)
    assert late.gave_up.wait(PATIENCE)
    finish(second)
    workers.submit(second)
    late.go.set()
    assert second.begun.wait(PATIENCE)
    assert second.thread is worker.thread


def test_an_interrupt_right_after_a_job_was_given_does_not_lose_its_worker(workers: Workers) -> None:
    strikes = [KeyboardInterrupt()]

    class Struck(queue.SimpleQueue[Any]):
        def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
            super().put(item, block, timeout)
            if item is second and strikes:
                raise strikes.pop()

    first, second, third = Job(), Job(), Job()
    workers.submit(first)
    assert first.begun.wait(PATIENCE)
    (worker,) = workers._threads
    worker.jobs = Struck()
    finish(first)
    workers.join()
    with pytest.raises(KeyboardInterrupt):
        workers.submit(second)
    finish(second)
    assert second.begun.wait(PATIENCE), "the job is not lost"
    workers.join()
    finish(third)
    workers.submit(third)
    assert third.begun.wait(PATIENCE)


class _Interjecting:
    """A lock that has something done right after its n-th release by a worker."""

    def __init__(self, nth: int, interjection: Callable[[], object]) -> None:
        self._lock = threading.RLock()
        self._left = nth
        self._interjection = interjection

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if threading.current_thread().name.startswith("rxbus-worker"):
            self._left -= 1
            if self._left == 0:
                self._interjection()


@pytest.mark.parametrize("nth", range(1, 6))
def test_a_job_that_comes_between_two_looks_of_the_only_worker_is_done(nth: int) -> None:
    workers = Workers(1)
    done = threading.Semaphore(0)
    workers.lock = _Interjecting(nth, lambda: workers.submit(done.release))  # type: ignore[assignment]
    for _ in range(3):
        workers.submit(done.release)
    assert all(done.acquire(timeout=PATIENCE) for _ in range(4))
    workers.close()


@pytest.mark.parametrize("error", [ValueError("oops"), SystemExit("oops")], ids=repr)
@pytest.mark.rxbus_allow("failures")
def test_a_job_that_fails_is_logged_and_its_worker_lives(
    workers: Workers, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise error

    workers.submit(fail)
    workers.join()
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("rxbus", logging.ERROR)
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    run(workers)
    assert workers.count == 1


def test_where_no_thread_can_be_started_the_job_runs_here(
    workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    job = Job()
    finish(job)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        workers.submit(job)
    assert job.thread is threading.current_thread()
    assert workers.count == 0
    assert "no worker thread" in caplog.text


def test_a_join_that_ctrl_c_has_struck_can_be_repeated(spawn: Callable[..., Future[Any]]) -> None:
    """At whatever point, also in the standard library's own code."""
    for nth in itertools.count(1):
        thread = _Thread("short", lambda: None)
        thread.start()
        while thread.is_alive():
            pass
        strike = Strike(nth, threading.__file__)
        with suppress(KeyboardInterrupt), strike:
            thread.join()
        spawn(thread.join).result(PATIENCE)
        if strike.where is None:
            break
    assert nth > 3


def test_a_worker_knows_that_it_is_one(workers: Workers) -> None:
    told: list[bool] = []
    workers.submit(lambda: told.append(workers.is_worker()))
    workers.join()
    assert (told, workers.is_worker()) == ([True], False)


# -- Monitor


class Look:
    """What a monitor looks at: gives the answers one after the other, then None for ever."""

    def __init__(self, *answers: bool | None) -> None:
        self.answers = list(answers)
        self.looks = 0
        self.monitor = Monitor(0.0005, self)
        self.told = threading.Event()  # all answers have been given
        self.sleeping = threading.Event()  # it has looked while asleep

    def __call__(self) -> bool | None:
        self.looks += 1
        if self.monitor.asleep:
            self.sleeping.set()
        if self.answers:
            return self.answers.pop(0)
        self.told.set()
        return None

    @property
    def thread(self) -> threading.Thread:
        assert self.monitor._worker is not None
        return self.monitor._worker.thread


def test_a_monitor_has_no_thread_before_it_is_woken() -> None:
    look = Look()
    assert look.monitor.asleep
    assert look.monitor._worker is None
    look.monitor.close()
    assert look.looks == 0


def test_a_monitor_looks_as_long_as_there_is_something() -> None:
    look = Look(*[True] * 50, *[False] * 3, True, None, True)
    look.monitor.wake()
    assert not look.monitor.asleep
    assert look.told.wait(PATIENCE)
    assert look.looks >= 56
    look.monitor.close()


def test_a_monitor_falls_asleep_when_there_is_nothing_and_can_be_woken() -> None:
    look = Look(True)
    look.monitor.wake()
    thread = look.thread
    assert look.sleeping.wait(PATIENCE)
    assert Monitor.LINGER < look.looks <= Monitor.LINGER + 5
    for _ in range(3):
        look.sleeping.clear()
        look.told.clear()
        look.answers = [True, False]
        look.monitor.wake()
        look.monitor.wake()  # a second ring does no harm
        assert look.told.wait(PATIENCE)
        assert look.sleeping.wait(PATIENCE)
    assert look.thread is thread
    look.monitor.close()
    assert not thread.is_alive()


def test_what_came_while_the_monitor_fell_asleep_is_seen() -> None:
    look = Look(*[None] * (Monitor.LINGER + 1), True, True)
    look.monitor.wake()
    assert look.told.wait(PATIENCE)  # the first True is what it sees when it is already asleep, nobody having rung
    assert look.sleeping.wait(PATIENCE)
    look.monitor.close()


def test_a_monitor_that_sleeps_for_long_ends_and_can_be_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_workers, "IDLE_SECONDS", 0.001)
    look = Look()
    look.monitor.wake()
    thread = look.thread
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert look.monitor.asleep
    look.told.clear()
    monkeypatch.undo()
    look.monitor.wake()
    assert look.told.wait(PATIENCE)
    assert look.thread is not thread
    look.monitor.close()


def test_close_ends_the_monitor_and_wake_starts_another() -> None:
    look = Look(*[True] * 10_000)
    look.monitor.wake()
    thread = look.thread
    look.monitor.close()
    assert not thread.is_alive()
    assert look.monitor.asleep
    look.answers.clear()
    look.monitor.wake()
    assert look.told.wait(PATIENCE)
    look.monitor.close()
    look.monitor.close()


def test_close_by_the_monitor_itself_does_not_wait_for_itself() -> None:
    threads: list[threading.Thread] = []

    def look() -> bool:
        threads.append(threading.current_thread())
        begun.set()
        assert go.wait(PATIENCE)
        monitor.close()
        return True

    begun, go = threading.Event(), threading.Event()
    monitor = Monitor(0.001, look)
    monitor.wake()
    assert begun.wait(PATIENCE)
    go.set()
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    assert len(threads) == 1


def test_wakes_from_many_threads_start_one_monitor(spawn: Callable[..., Future[Any]]) -> None:
    look = Look(*[True] * 10)
    barrier = threading.Barrier(8)

    def wake() -> threading.Thread | None:
        barrier.wait(PATIENCE)
        look.monitor.wake()
        return look.thread

    threads = [spawn(wake) for _ in range(8)]
    assert len({thread.result(PATIENCE) for thread in threads}) == 1
    look.monitor.close()


@pytest.mark.parametrize("what", [Clock(), Monitor(0.001, lambda: None)])
def test_what_is_to_end_is_told_so_before_it_is_rung(what: Clock | Monitor) -> None:
    """Else a thread that looks as soon as it is rung sees no change, and sleeps for ten seconds more."""
    told: list[bool] = []

    class Told(Bell):
        def ring(self) -> None:
            told.append(what._worker is not worker)
            super().ring()

    if isinstance(what, Clock):
        what.call_after(3600, lambda: None)
    else:
        what.wake()
    worker = what._worker
    assert worker is not None
    bell, worker.bell = worker.bell, Told()
    bell.ring()
    what.close()
    assert told == [True]


def test_a_monitor_that_is_woken_after_its_end_does_not_stay() -> None:
    looked = threading.Event()
    monitor = Monitor(0.001, lambda: looked.set())  # nothing to see
    monitor.wake()
    assert looked.wait(PATIENCE)
    monitor.close()
    looked.clear()
    monitor.wake()
    late = next(thread for thread in threading.enumerate() if thread.name == "rxbus-monitor")
    assert looked.wait(PATIENCE)
    late.join(PATIENCE / 2)
    assert not late.is_alive()


@pytest.mark.timeout(30)
def test_a_thread_that_has_not_come_may_want_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a destructor does that the collector runs there, before whoever starts the thread is told that it runs."""
    workers = Workers(None)
    ran: list[int] = []
    come = threading.Thread._set_ident  # type: ignore[attr-defined]

    def collect(self: threading.Thread) -> None:
        come(self)
        if self.name == "rxbus-worker-1":
            workers.submit(lambda: ran.append(2))

    monkeypatch.setattr(threading.Thread, "_set_ident", collect)
    workers.submit(lambda: ran.append(1))
    workers.close()
    assert sorted(ran) == [1, 2]


def test_what_was_left_for_a_worker_that_cannot_start_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(1)
    ran: list[int] = []

    def start(self: threading.Thread) -> None:
        workers.submit(lambda: ran.append(2))  # by another thread, say
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    workers.submit(lambda: ran.append(1))
    monkeypatch.undo()
    workers.close()
    assert ran == [1, 2]
    assert workers.count == 0
