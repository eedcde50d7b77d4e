"""The bell: how one thread wakes another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from time import monotonic


class Bell:
    """Wakes the one thread that waits for it, now or as soon as it does; rung twice before that, it wakes it once.

    No `queue.SimpleQueue`: before Python 3.13 its `get(timeout=...)` waits for ever where the time is up before it
    begins to wait, or in a signal handler meanwhile. No `threading.Event`: struck in its Python code, it stays locked.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()  # locked as long as it has not rung
        self._lock.acquire()

    def ring(self) -> None:
        """Wakes the thread; harmless where it has been woken, or has gone."""
        try:  # noqa: SIM105 - `suppress` takes longer than all the rest
            self._lock.release()
        except RuntimeError:  # it has rung already
            pass

    def wait(self, seconds: float | None = None) -> bool:
        """Waits until it rings; False where so many seconds have passed, or none are left."""
        if seconds is None:
            return self._lock.acquire()
        return self._lock.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX))


def ring_all(bells: Iterable[Bell]) -> None:
    """Rings those that there are now: they may become more or fewer meanwhile."""
    for bell in list(bells):
        bell.ring()


def wait_until(done: Callable[[], bool], bells: list[Bell], timeout: float | None) -> bool:
    """Waits until something is done, looking each time that one of the bells rings."""
    deadline = None if timeout is None else monotonic() + timeout
    bell = Bell()
    bells.append(bell)
    try:
        return _until(done, bell, deadline)
    finally:
        bells.remove(bell)


def _until(done: Callable[[], bool], bell: Bell, deadline: float | None) -> bool:
    while not done():
        if not bell.wait(None if deadline is None else deadline - monotonic()):
            return done()
    return True
