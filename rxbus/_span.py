"""Spans: deliveries that tracers are told of."""

from __future__ import annotations

import threading
from typing import Any

from rxbus._event import Event
from rxbus._fan_out import Wait, ledger
from rxbus._trace import Tracers


class Span:
    """One delivery that is traced: from the call of its handler to its end, which is told once.

    The outermost publisher waits until it has been told: who looks at a recording when `publish` has returned finds all
    of it, though another thread has delivered.
    """

    __slots__ = ("_event", "_observer", "_owed", "_start", "_thread", "_tracers", "_wait", "open")

    def __init__(self, tracers: Tracers, event: Event[Any], observer: str, wait: Wait) -> None:
        self._tracers = tracers
        self._event = event
        self._observer = observer
        self._wait = wait
        self._thread = threading.current_thread().name
        self._owed = False  # it is counted in `_wait`; under the ledger
        self.open = True  # taken off by who tells: a single bytecode
        self._start = tracers.time()

    def begin(self) -> None:
        """Has the publisher wait. Not when it is made: an interrupt could strike before anybody has it."""
        with ledger:
            self._wait.count += 1
            self._owed = True

    def end(self, error: BaseException | None) -> None:
        """Tells of the end. Can be made again."""
        try:
            del self.open
        except AttributeError:
            return
        try:
            self._tracers.delivered(self._event, self._observer, self._start, self._thread, error)
        finally:
            try:
                self._release()
            except BaseException:  # interrupted
                self._release()
                raise

    def _release(self) -> None:
        with ledger:
            self._wait.count -= self._owed
            self._owed = False
        if self._wait.count <= 0:
            self._wait.ring()
