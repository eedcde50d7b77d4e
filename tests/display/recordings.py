"""Recordings that tests make up, so that their times are known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import reactivex
from hypothesis import strategies as st

from rxbus import Event
from rxbus.recording import Delivery, Passage, Recording

BEGAN = 1_780_000_000.0


class MadeUp:
    """What a picture asks of a recording."""

    def __init__(
        self,
        events: Iterable[Event[Any]] = (),
        deliveries: Iterable[Delivery] = (),
        passages: Iterable[Passage] = (),
        dropped: int = 0,
    ) -> None:
        self.events = list(events)
        self.deliveries = list(deliveries)
        self.passages = list(passages)
        self.dropped = dropped
        self.began = BEGAN

    def tape(self) -> MadeUp:
        return self


def made_up(
    events: Iterable[Event[Any]] = (),
    deliveries: Iterable[Delivery] = (),
    passages: Iterable[Passage] = (),
    dropped: int = 0,
) -> Recording:
    """Makes a recording."""
    return cast(Recording, MadeUp(events, deliveries, passages, dropped))


def event(id: int, topic: str = "a", payload: Any = None, at: float = 0.0, cause: int | None = None) -> Event[Any]:
    """Makes an event that was published so many seconds after the recording began."""
    return Event(topic, payload, id, BEGAN + at, cause)


def failed(event: int) -> Delivery:
    """Makes a delivery that has failed."""
    return Delivery(event, "handler", BEGAN, BEGAN, "main", "ValueError('no')")


def passage(stage: str, value: Any, at: float, event: int | None = None, kind: Any = "next") -> Passage:
    """Makes what passed a stage."""
    return Passage(stage, kind, value, BEGAN + at, event)


class Hostile:
    """A payload that does what it should not."""

    def __repr__(self) -> str:
        raise ValueError("<no>")


PAYLOADS: list[Any] = [None, 0, "x", "<b>&\"'</b>", "]]>", "\x00\x1b[31m\ud800\u202e", "x" * 100_000, b"\xff" * 40]
PAYLOADS += [
    "日本語のペイロード" * 9,
    "😀" * 30,
    "العربية مرحبا" * 5,
    "z" + "\u0301" * 60,
    {"a": [1, {"b": 2.5}]},
    Hostile(),
]
PAYLOADS += [reactivex.never(), object(), "﷽" * 20, 10**90_000, float("nan"), "W" * 90]
NAMES = ["<script>alert(1)</script>", "a&b\"'", "\u202eevil", "日本語" * 20, "😀😀", "العربية", "a" * 255, "ﷺ" * 30]
NAMES += ["x.y.z", "ordinary", "z" + "\u0301" * 30, "\ud800"]

names = st.sampled_from(NAMES) | st.text(min_size=1, max_size=40)
payloads = st.sampled_from(PAYLOADS) | st.text() | st.integers()
times = st.floats(0, 10) | st.sampled_from([0.0, 1.0, 1.000001]) | st.floats()


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """Makes recordings of all sorts."""
    count = draw(st.integers(0, 60))
    topics = draw(st.lists(names, min_size=1, max_size=8))
    events = [
        event(id, draw(st.sampled_from(topics)), draw(payloads), draw(times), draw(st.none() | st.integers(0, id)))
        for id in range(count)
    ]
    deliveries = [failed(id) for id in draw(st.lists(st.integers(0, 60), max_size=5))]
    stages = draw(st.lists(names, max_size=3))
    causes = st.none() | st.integers(0, 60)
    kinds = st.sampled_from(["next"] * 8 + ["error", "completed"])
    passages = [
        passage(draw(st.sampled_from(stages)), draw(payloads), draw(times), draw(causes), draw(kinds))
        for _ in range(draw(st.integers(0, 30)) if stages else 0)
    ]
    return made_up(events, deliveries, passages, draw(st.integers(0, 10**9)))
