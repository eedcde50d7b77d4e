"""Recordings as they come from a bus."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from rxbus import Event, EventBus, PublishError, only_payload
from rxbus.operators import tap
from rxbus.recording import Delivery, Passage, Recording
from rxbus.recording._records import Tape

Wound = Callable[..., Recording]


@pytest.fixture
def chain(bus: EventBus) -> Recording:
    """`a` leads to `b` and to two of `c`, one of which fails; twice."""

    def lead_on(event: Event[Any]) -> None:
        bus.publish("b", {"from": event.payload})
        for number in range(2):
            with suppress(PublishError):
                bus.publish("c", number)

    def fail(event: Event[Any]) -> None:
        if event.payload:
            raise ValueError("one too many")

    bus.subscribe("a", name="lead").subscribe(lead_on)
    bus.subscribe("b", name="tapped").pipe(only_payload, tap("stage")).subscribe()
    bus.subscribe("c", name="fails").subscribe(fail)
    with bus.record() as recording:
        for payload in ("first", None):
            bus.publish("a", payload)
    return recording


@pytest.fixture
def wound() -> Wound:
    """Makes a recording of events, deliveries and passages that never were on a bus."""

    def wind(
        events: list[Event[Any]], deliveries: list[Delivery] | None = None, passages: list[Passage] | None = None
    ) -> Recording:
        return Recording._of(Tape(">", 100_000, 1000.0, 2000.0, 0, 0, events, deliveries or [], passages or []))

    return wind


def content(recording: Recording) -> tuple[Any, ...]:
    """Everything a recording holds."""
    about = recording.pattern, recording.maxlen, recording.began, recording.ended
    dropped = recording.dropped, recording.dropped_passages
    return *about, *dropped, recording.events, recording.deliveries, recording.passages
