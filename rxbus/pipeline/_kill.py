"""Kills: how a step learns that it is to end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack

from rxbus._bell import Bell, ring_all


class KillSwitch:
    """Whether a step is to end. Thrown once, it throws those below it too, also those that come later.

    Args:
        above: The switch of what the step is part of.
    """

    def __init__(self, above: KillSwitch | None = None) -> None:
        self._thrown = False
        self._bells: dict[Bell, None] = {}  # of those who wait; no `threading.Event`, see `Bell`
        self._lock = threading.RLock()  # guards the two below; nothing is called under it
        self._below: dict[KillSwitch, None] = {}
        self._calls: list[Callable[[], None]] = []
        self._above = above
        if above is not None:
            above._add(self)

    @property
    def thrown(self) -> bool:
        """Whether it has been."""
        return self._thrown

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until it is thrown; False when so many seconds have passed."""
        bell = Bell()
        self._bells[bell] = None
        try:
            return self._thrown or bell.wait(timeout)
        finally:
            del self._bells[bell]

    def throw(self) -> None:
        """Throws it, and all below; a second time does only what an interrupt has kept the first from doing.

        All are thrown before the first call: it may take long, or raise, which keeps it from none of the others.
        """
        calls = self._throw()
        with ExitStack() as made:  # calls what is pushed whatever the others raise; the last pushed first
            for call in reversed(calls):
                made.callback(call)

    def call(self, call: Callable[[], None]) -> None:
        """Calls a function when it is thrown; at once where it has been."""
        with self._lock:
            thrown = self._thrown
            if not thrown:
                self._calls.append(call)
        if thrown:
            call()

    def leave(self) -> None:
        """Its step has ended."""
        if self._above is not None:
            with self._above._lock:
                self._above._below.pop(self, None)

    def _throw(self) -> list[Callable[[], None]]:
        """Throws it, and all below; gives what is to be called."""
        self._thrown = True
        ring_all(self._bells)
        with self._lock:
            below, calls = list(self._below), self._calls
            self._calls = []
        return [*calls, *(call for switch in below for call in switch._throw())]

    def _add(self, switch: KillSwitch) -> None:
        with self._lock:
            self._below[switch] = None
            thrown = self._thrown
        if thrown:
            switch.throw()
