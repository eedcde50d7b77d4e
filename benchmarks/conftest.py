"""What pytest-benchmark measures in its own units only, in ours: a line for each benchmark that has such figures."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.hookimpl(trylast=True)  # below the table
def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    session = getattr(config, "_benchmarksession", None)
    for one in [] if session is None else session.benchmarks:
        if one.extra_info:
            figures = ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in one.extra_info.items())
            terminalreporter.write_line(f"{one.name}: {figures}")
