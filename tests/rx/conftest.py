"""Fixtures for the Rx tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rxbus import BlockingScheduler, EventBus, VirtualClock
from rxbus.testing import Check

SCHEDULERS: dict[str, Callable[[], BlockingScheduler]] = {
    "workers": BlockingScheduler,
    "no workers": lambda: BlockingScheduler(max_workers=0),
    "virtual": lambda: BlockingScheduler(max_workers=0, clock=VirtualClock()),
}


@pytest.fixture(params=["workers", "no workers"])
def threaded_bus(request: pytest.FixtureRequest, rxbus_check: Check) -> Iterator[EventBus]:
    """A bus whose publishers wait for other threads of the test, which virtual time does not."""
    with rxbus_check.bus(SCHEDULERS[request.param]()) as bus:
        yield bus


@pytest.fixture(params=SCHEDULERS)
def any_bus(request: pytest.FixtureRequest, rxbus_check: Check) -> Iterator[EventBus]:
    """A bus: with workers, with everything on the publishing thread, and that in virtual time."""
    with rxbus_check.bus(SCHEDULERS[request.param]()) as bus:
        yield bus
