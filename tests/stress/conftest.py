"""Coverage does not look at stress tests: to them, a tracer between any two lines is another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# But for those that strike at every point, which are the only ones to come by the paths that an interrupt takes.
LOOKED_AT = ("test_every_interrupt", "test_wing_interrupts")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.path.stem not in LOOKED_AT:
            item.add_marker("no_cover")
