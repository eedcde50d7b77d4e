"""What a marble diagram costs: `python -m pytest benchmarks/test_display.py --benchmark-only`.

A second is rendered in which 100 to 100,000 events were published to twenty topics, one in a thousand of whose
deliveries failed; then the same with a stage that all events passed. The size of the picture is among the extra info.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from rxbus import Event
from rxbus.display import marbles
from rxbus.recording import Delivery, Passage, Recording

BEGAN = 1_780_000_000.0


class Made:
    """What a picture asks of a recording."""

    def __init__(self, count: int, staged: bool) -> None:
        self.began, self.dropped = BEGAN, 0
        self.events: list[Event[Any]] = [
            Event(f"topic.{number % 20}", {"number": number}, number, BEGAN + number / count) for number in range(count)
        ]
        self.deliveries = [
            Delivery(one.id, "handler", one.time, one.time, "main", None if one.id % 1000 else "ValueError()")
            for one in self.events
        ]
        self.passages = [Passage("seen", "next", one.payload, one.time, one.id) for one in self.events if staged]

    def tape(self) -> Made:
        return self


@pytest.mark.parametrize("staged", [False, True], ids=["events", "events and a stage"])
@pytest.mark.parametrize("count", [100, 10_000, 100_000])
def test_marbles(benchmark: BenchmarkFixture, count: int, staged: bool) -> None:
    benchmark.group = "a marble diagram"
    recording = cast(Recording, Made(count, staged))
    drawn = benchmark.pedantic(lambda: marbles(recording).svg, rounds=10, warmup_rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info["bytes"] = len(drawn)
    assert drawn.endswith("</svg>")
