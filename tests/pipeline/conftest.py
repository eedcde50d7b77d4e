"""Fixtures for tests of pipelines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rxbus.pipeline import Pipeline


@pytest.fixture
def make() -> Iterator[Callable[..., Pipeline]]:
    """Makes a pipeline of steps, which publishes every update; shut down after the test."""
    made: list[Pipeline] = []

    def make(*steps: Any, **options: Any) -> Pipeline:
        made.append(Pipeline(steps, **{"updates_per_second": None, **options}))
        return made[-1]

    yield make
    for pipeline in made:
        pipeline.shutdown()
