"""The tap: what happens on a bus, told to whoever has attached a tracer.

Whether an event is traced is decided once, when it gets its place in the order; so a tracer sees all of its deliveries
or none. Without a tracer, that is one look at an attribute per publish.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from rxbus._event import Event
from rxbus._here import local

if TYPE_CHECKING:
    from rxbus._acknowledgement import Receipt


_T = TypeVar("_T", bound="Tracer")
Kind = Literal["next", "error", "completed"]  # of what comes to a stage

logger = logging.getLogger("rxbus")


@runtime_checkable
class Tracer(Protocol):
    """What `EventBus.trace` attaches: it is told what happens on the bus.

    It is called on the thread on which the thing happens, as a rule in the turn of the observer concerned: so it
    should be quick, and must not wait for anything that a handler does. Calls come from several threads at once, and
    those about one event in any order. What a tracer publishes itself is not traced. One that raises is detached, and
    the logger `rxbus` tells.
    """

    def published(self, event: Event[Any]) -> None:
        """An event has been given its place in the order of its topic."""

    def delivered(
        self, event: Event[Any], observer: str, start: float, end: float, thread: str, error: BaseException | None
    ) -> None:
        """A delivery has ended: acknowledged, failed, or given up because the observer has left.

        Args:
            event: What was delivered.
            observer: The observer's name.
            start: When its handler was called, in seconds since the epoch.
            end: When the delivery ended: later than the handler's return where that deferred, or is a coroutine.
            thread: The name of the thread that called the handler.
            error: What failed, if anything has.
        """

    def settled(self, receipt: Receipt) -> None:
        """A publish has ended, with what it returns, or what its `PublishError` holds.

        Not where it was given up: timed out, cancelled, interrupted.
        """


@runtime_checkable
class StageTracer(Tracer, Protocol):
    """A tracer that is also told what passes the stages of chains that have been marked by `operators.tap`."""

    def passed(
        self,
        stage: str,
        kind: Kind,
        value: Any,
        event: Event[Any] | None,
        time: float,
    ) -> None:
        """Something has come to a stage.

        Args:
            stage: Its name.
            kind: What has come.
            value: The item, or the error.
            event: What the thread was delivering; None where it was at work for none (on a foreign scheduler).
            time: When, in seconds since the epoch.
        """


class Tracers:
    """The tracers of a bus, as they were when an event was published; one at least."""

    __slots__ = ("_detach", "_stages", "all", "time")

    def __init__(self, all: tuple[Tracer, ...], detach: Callable[[Tracer], object], time: Callable[[], float]) -> None:
        self.all = all
        self.time = time  # of the bus, in seconds since the epoch
        self._stages = tuple(tracer for tracer in all if isinstance(tracer, StageTracer))
        self._detach = detach

    def published(self, event: Event[Any]) -> None:
        self._tell(self.all, lambda tracer: tracer.published(event))

    def settled(self, receipt: Receipt) -> None:
        self._tell(self.all, lambda tracer: tracer.settled(receipt))

    def delivered(
        self, event: Event[Any], observer: str, start: float, thread: str, error: BaseException | None
    ) -> None:
        end = self.time()
        self._tell(self.all, lambda tracer: tracer.delivered(event, observer, start, end, thread, error))

    def passed(self, stage: str, kind: Kind, value: Any, event: Event[Any] | None) -> None:
        if self._stages:
            now = self.time()
            self._tell(self._stages, lambda tracer: tracer.passed(stage, kind, value, event, now))

    def _tell(self, tracers: tuple[_T, ...], call: Callable[[_T], None]) -> None:
        here = local.here
        outer, here.tracing = here.tracing, True
        try:
            for tracer in tracers:
                try:
                    call(tracer)
                except Exception:  # what watches must not harm what it watches
                    self._detach(tracer)
                    logger.exception("a tracer failed, and has been detached: %r", tracer)
        finally:
            here.tracing = outer
