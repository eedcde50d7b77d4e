"""What watching a bus costs: `python -m pytest benchmarks/test_trace.py --benchmark-only`.

Without a tracer, and after one has left, a publish looks at one attribute: both rows of a group are the same but for
noise. With one, each delivery is counted and timed.
"""

from __future__ import annotations

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from rxbus import Event, EventBus, Receipt


class Deaf:
    """A tracer that does nothing."""

    def published(self, event: Event[Any]) -> None: ...

    def delivered(self, *_: object) -> None: ...

    def settled(self, receipt: Receipt) -> None: ...


@pytest.mark.parametrize("watched", ["untraced", "traced before", "traced", "recorded"])
@pytest.mark.parametrize("observers", [0, 1, 10])
def test_publish(benchmark: BenchmarkFixture, observers: int, watched: str) -> None:
    benchmark.group = f"publish, observers: {observers}"
    count = 0

    def handle(event: Event[Any]) -> None:
        nonlocal count
        count += 1

    with EventBus() as bus:
        for _ in range(observers):
            bus.subscribe("ticks").subscribe(handle)
        if watched == "recorded":
            bus.record(maxlen=1000)
        elif watched != "untraced":
            tapped = bus.trace(Deaf())
            if watched == "traced before":
                tapped.dispose()
        benchmark.pedantic(bus.publish, ("ticks", 1), rounds=100, warmup_rounds=2, iterations=200)  # type: ignore[no-untyped-call]
    assert count == (observers * (1 if benchmark.disabled else 102 * 200 + 1))
