"""Turns for builds of Python without a GIL, where taking an attribute off is not atomic."""

from __future__ import annotations

import sys
import threading

GIL = getattr(sys, "_is_gil_enabled", lambda: True)()


class LockTurn:
    """The turn `free`, for builds of Python without a GIL, where taking an attribute off is not atomic."""

    __slots__ = ()

    lock: threading.Lock

    def _take(self) -> None:
        if not self.lock.acquire(blocking=False):
            raise AttributeError("free")

    def _give(self, _: bool) -> None:
        self.lock.release()

    def _is_free(self) -> bool:
        if self.lock.locked():
            raise AttributeError("free")
        return True

    free = property(_is_free, _give, _take)
