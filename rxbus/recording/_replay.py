"""Publishing again what has been recorded."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any, Literal

from reactivex import abc
from reactivex.disposable import SerialDisposable

from rxbus import Event, EventBus
from rxbus.errors import InvalidArgument, PublishError
from rxbus.recording._records import is_topic

_KEPT = 100  # errors
_TICK = 1e-6  # seconds: what virtual clocks count in


class Replay(abc.DisposableBase):
    """A recording that is being replayed, or has been.

    Attributes:
        published: How many events have been published.
        acknowledged: How many times observers have acknowledged one.
        failed: How many times observers have failed.
        skipped: How many events are left out, as their topics are none.
        errors: The first hundred errors that publishes have ended with.
        done: Whether everything has been published.
    """

    def __init__(self, bus: EventBus, events: list[Event[Any]], speed: float, skipped: int) -> None:
        self.published = self.acknowledged = self.failed = 0
        self.skipped = skipped
        self.errors: list[PublishError] = []
        self._bus = bus
        self._events = events
        self._speed = speed
        self._disposed = False
        self._scheduled = SerialDisposable()

    @property
    def done(self) -> bool:
        return self.published == len(self._events)

    def dispose(self) -> None:
        """Ends it: nothing more is published."""
        self._disposed = True
        self._scheduled.dispose()

    def run(self) -> None:
        """Publishes everything in real time, on this thread."""
        began, closed = monotonic(), threading.Event()
        told = self._bus.on_close(closed.set)
        try:
            self._run(began, closed)
        finally:
            told.dispose()

    def _run(self, began: float, closed: threading.Event) -> None:
        while (left := self._left(monotonic() - began)) is not None:
            if left <= 0 or closed.wait(min(left, threading.TIMEOUT_MAX)):
                self._publish()  # on a closed bus, this raises

    def run_on(self, scheduler: abc.SchedulerBase) -> None:
        """Publishes everything as time goes by on a scheduler."""
        began = scheduler.now

        def step(_scheduler: abc.SchedulerBase, _state: object = None) -> None:
            elapsed = (scheduler.now - began).total_seconds()
            while (left := self._left(elapsed)) is not None:
                if left > _TICK:
                    self._scheduled.disposable = scheduler.schedule_relative(left, step)
                    return
                self._publish()

        self._scheduled.disposable = scheduler.schedule(step)

    def _left(self, elapsed: float) -> float | None:
        """How many seconds there are until the next event; None if there is none."""
        if self._disposed or self.done:
            return None
        return (self._events[self.published].time - self._events[0].time) / self._speed - elapsed

    def _publish(self) -> None:
        event = self._events[self.published]
        try:
            receipt = self._bus.publish(event.topic, event.payload)
        except PublishError as error:
            receipt = error.receipt
            self.failed += len(error.exceptions)
            if len(self.errors) < _KEPT:
                self.errors.append(error)
        self.acknowledged += receipt.acknowledged
        self.published += 1

    def __repr__(self) -> str:
        state = "done" if self.done else "ended" if self._disposed else "going on"
        return f"<Replay {state}, published: {self.published} of {len(self._events)}, failed: {self.failed}>"


def play(
    events: list[Event[Any]],
    bus: EventBus,
    speed: float,
    scheduler: abc.SchedulerBase | None,
    causes: Literal["all", "outermost"],
) -> Replay:
    """Replays events; see `Recording.replay`."""
    if not isinstance(speed, int | float) or isinstance(speed, bool) or not speed > 0:
        raise InvalidArgument(f"speed is a number above zero, not {speed!r}")
    if causes not in ("all", "outermost"):
        raise InvalidArgument(f"causes is 'all' or 'outermost', not {causes!r}")
    bus.on_close(int).dispose()  # raises where it is closed
    playable = [event for event in events if is_topic(event.topic)]
    skipped, events = len(events) - len(playable), playable
    if causes == "outermost":
        ids = {event.id for event in events}
        events = [event for event in events if event.cause not in ids]
    replay = Replay(bus, events, speed, skipped)
    if scheduler is None:
        replay.run()
    else:
        replay.run_on(scheduler)
    return replay
