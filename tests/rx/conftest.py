"""Fixtures for the Rx tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rxbus import BlockingScheduler, EventBus


@pytest.fixture(params=[None, 0], ids=["workers", "no workers"])
def any_bus(request: pytest.FixtureRequest) -> Iterator[EventBus]:
    """A bus, once with workers and once with everything on the publishing thread; closed after the test."""
    with EventBus(BlockingScheduler(max_workers=request.param)) as bus:
        yield bus
