"""A step's result while it changes: what is published of it, and when."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from reactivex import abc

from rxbus._bell import Bell
from rxbus.pipeline._results import Result

logger = logging.getLogger("rxbus.pipeline")

LONGEST = 1.0  # seconds; a disposed EventLoopScheduler may sleep until its next timer, and a shutdown waits for that


class Updates:
    """Publishes a result as it changes, one state at a time and in order, and nothing after the last.

    Whoever changes it publishes, unless another thread is at it: that one goes on with what has come meanwhile. So no
    lock is held while subscribers are called, and a subscriber may change the result itself.

    Args:
        publish: Publishes one state of the result.
        per_second: How many states are published per second: the first at once, then the latest of each interval. None:
            every one.
        clock: Calls back at the end of an interval.
    """

    def __init__(self, publish: Callable[[Result], None], per_second: float | None, clock: abc.SchedulerBase) -> None:
        self._publish = publish
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        self._every = per_second is None
        self._clock = clock
        self._idle = Bell()  # rung when a turn has been given back; no `threading.Condition`, see `Bell`
        self._lock = threading.RLock()  # guards all below; no subscriber is called under it
        self._result: Result = {}
        self._pending: deque[Result] = deque()  # states to be published; where sampled, the latest only
        self._turn: object | None = None  # of the call that publishes; given back without the lock
        self._due = 0.0  # when the next may be published
        self._timed = False  # the clock is going to call
        self._closed = False

    @property
    def result(self) -> Result:
        """The result as it is now; a copy."""
        with self._lock:
            return dict(self._result)

    def begin(self, first: Result) -> None:
        """Publishes the state before all changes. Sampling begins after it, so the first change is told at once."""
        with self._lock:
            self._put(first)
        self._go_on()
        with self._lock:
            self._due = 0.0

    def change(self, change: Callable[[Result], Result]) -> None:
        """Changes the result; nothing happens where it stays the very same, or is closed."""
        with self._lock:
            if self._closed or (result := change(self._result)) is self._result:
                return
            self._put(result)
        self._go_on()

    def stop(self) -> None:
        """Takes no more changes, and publishes what is pending."""
        with self._lock:
            self._closed = True
        self._flush()

    def close(self, last: Result) -> Result:
        """Publishes the last state, and gives it."""
        with self._lock:
            self._closed = True
            self._put(last)
        self._flush()
        return last

    def _put(self, result: Result) -> None:
        if not self._every:
            self._pending.clear()
        self._result = result
        self._pending.append(result)

    def _go_on(self, at_once: bool = False) -> None:
        """Publishes what is due, unless another thread is at it."""
        while self._publish_next(object(), at_once):
            pass

    def _publish_next(self, turn: object, at_once: bool) -> bool:
        try:
            state = self._take(turn, at_once)
            if state is not None:
                self._publish(state)
            return state is not None
        finally:
            if self._turn is turn:
                self._turn = None  # before any call: Ctrl-C may strike there, and nobody else would publish any more
                self._idle.ring()

    def _take(self, turn: object, at_once: bool) -> Result | None:
        with self._lock:
            if self._turn is not None or not self._pending:
                return None
            early = self._due - monotonic()
            if early > 0 and not at_once and not self._closed:
                if not self._timed:
                    self._clock.schedule_relative(min(early, LONGEST), self._ring)
                    self._timed = True
                return None
            self._due = monotonic() + self._interval
            self._turn = turn
            return self._pending.popleft()

    def _ring(self, scheduler: abc.SchedulerBase, state: Any = None) -> None:
        with self._lock:
            self._timed = False
        try:
            self._go_on()
        except Exception:  # the bus has been closed; the clock is for other steps too
            logger.exception("an update cannot be published")

    def _flush(self) -> None:
        while True:
            self._go_on(at_once=True)
            with self._lock:
                if self._turn is None and not self._pending:
                    return
            self._idle.wait(LONGEST)  # not for ever: whoever publishes may be interrupted before it rings
