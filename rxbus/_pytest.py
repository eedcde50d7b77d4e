"""The pytest plugin: fixtures for tests of programs that use rxbus.

pytest imports it at its start in every project of the environment, and with it the package: a tenth of a second. (Who
measures the coverage of rxbus itself loads it later, as its own tests do.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rxbus import EventBus, VirtualClock
    from rxbus.testing import Check

_failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "rxbus_allow(*what): what a test may leave behind on rxbus's buses: 'failures', 'pending', 'threads'; see "
        "rxbus.testing.Check",
    )


class _Reports:
    """Notes which tests have failed; registered with the first test that uses a fixture."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        if call.when != "teardown" and call.excinfo is not None:  # another fixture may have failed
            item.stash[_failed] = True


@pytest.fixture
def rxbus_check(request: pytest.FixtureRequest) -> Iterator[Check]:
    """Fails a test that leaves failures nobody looked at, or threads of rxbus; see `rxbus.testing.Check`.

    The other fixtures use it. For all tests of a project, put `usefixtures = rxbus_check` into pytest's settings. What
    a test may leave behind is told by `@pytest.mark.rxbus_allow("failures")`. A test that has failed is let off.
    """
    from rxbus.testing import Check, Leftovers

    plugins = request.config.pluginmanager
    if not plugins.has_plugin("rxbus-reports"):
        plugins.register(_Reports(), "rxbus-reports")
    request.node.stash[_failed] = False  # it may run again
    allowed = [what for marker in request.node.iter_markers("rxbus_allow") for what in marker.args]
    try:
        with Check(allowed) as check:
            yield check
            if request.node.stash.get(_failed, False):
                check.forgive()
    except Leftovers as leftovers:
        message = str(leftovers)
    else:
        return
    pytest.fail(message, pytrace=False)


@pytest.fixture
def bus(rxbus_check: Check) -> Iterator[EventBus]:
    """A bus, closed after the test, which fails where it leaves something behind; see `rxbus.testing.Check`."""
    with rxbus_check.bus() as bus:
        yield bus


@pytest.fixture
def virtual_clock() -> VirtualClock:
    """The clock of `virtual_bus`; a reactivex scheduler too."""
    from rxbus import VirtualClock

    return VirtualClock()


@pytest.fixture
def virtual_bus(rxbus_check: Check, virtual_clock: VirtualClock) -> Iterator[EventBus]:
    """A bus in virtual time, which the test lets pass by `virtual_clock`; checked as `bus` is."""
    from rxbus import BlockingScheduler

    with rxbus_check.bus(BlockingScheduler(max_workers=0, clock=virtual_clock)) as bus:
        yield bus
