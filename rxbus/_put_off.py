"""What a thread must not do in the midst of something, and puts off until it is in the midst of nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from rxbus._here import Here, Job, Once, local


class PutOff:
    """A job that is put off, and who else can do it; the monitor may take it off too, and no job minds running twice.

    Equal to itself only: who takes off what was done twice must not take off the same that was put off anew.
    """

    __slots__ = ("job", "submit")

    def __init__(self, job: Job, submit: Callable[[Job], object]) -> None:
        self.job = job
        self.submit = submit


def _put_off_first(here: Here) -> PutOff | None:
    try:
        return here.later[0]
    except IndexError:
        return None


def _do(job: Job) -> None:
    job()


def pass_on_later(here: Here, by: Callable[[Job], object] = _do) -> int:
    """Has workers do what a thread has put off; says how much.

    Args:
        here: That thread's place.
        by: Does the passing on, and with it the job, where that one's bus has no workers.

    Not the thread itself in the midst of something: where there is no worker, it would put it off again and again.
    """
    passed = 0
    while (put_off := _put_off_first(here)) is not None and not (here is local.here and _is_busy(here)):
        by(partial(put_off.submit, put_off.job))
        passed += 1
        with suppress(ValueError):
            here.later.remove(put_off)
    return passed


def _do_later(here: Here) -> None:
    """No loop in the `try` of `run_later`: see `ledger` in `_fan_out`."""
    while (put_off := _put_off_first(here)) is not None:
        put_off.job()
        with suppress(ValueError):
            here.later.remove(put_off)


def may_do_later(here: Here) -> bool:
    """Whether there is something put off, and the thread in the midst of no handler, round, or item of a buffer."""
    return bool(here.later) and not _is_busy(here)


def _is_busy(here: Here) -> bool:
    return here.feed is not None or here.fan is not None or here.origin is not None or here.depth > 0


def run_later(here: Here) -> None:
    """Does what was put off, unless the thread is in the midst of something still."""
    if not may_do_later(here):
        return
    depth = here.depth
    try:
        here.depth += 1  # what it publishes is nested in this loop: else chains would recurse through it
        _do_later(here)
    except BaseException:  # interrupted: a worker does the rest
        here.depth = depth  # or this thread, where there is none
        pass_on_later(here)
        raise
    finally:
        here.depth = depth


def do_without(jobs: Iterable[Job], submit: Callable[[Job], object]) -> None:
    """No other thread can do some jobs: does them, as soon as this one is in the midst of nothing.

    Not at once: inside a handler, they would wait for what goes on only when that has returned.
    """
    here = local.here
    for job in jobs:
        here.later.append(PutOff(_alone(job, submit), submit))
    run_later(here)


def _alone(job: Job, submit: Callable[[Job], object]) -> Job:
    """Has a job done by one thread, though the monitor may pass it on, and by that alone: it leaves no mail to others.

    The bus that is being closed waits for it; were it begun twice, the end of the one would be taken for the other's.
    """
    right = Once()

    def run() -> None:
        here = local.here
        outer = here.wait
        if right.take():
            try:
                here.wait = None
                job()
            except BaseException:  # interrupted
                submit(job)
                raise
            finally:
                here.wait = outer

    return run
