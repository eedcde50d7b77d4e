"""What a pipeline costs: `python -m pytest benchmarks/test_pipeline.py --benchmark-only --benchmark-json=FILE`.

Builds of steps that do nothing, their state on disk. What a step costs must not grow with the number of steps:
`extra_info` in the file has its processor time too, which what else the machine does disturbs least.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from rxbus.pipeline import Pipeline, PipelineFinished, StepContext, in_parallel, run

EVENTS_PER_STEP = 6  # started, finished, two updates, and that both have been consumed
CONTAINERS: dict[str, Callable[..., Any]] = {
    "sequence": lambda *steps: steps,
    "run": lambda *steps: [run(*steps)],
    "in_parallel": lambda *steps: [in_parallel(*steps)],
}


def nothing(args: dict[str, Any], ctx: StepContext) -> dict[str, Any]:
    return {"status": "success"}


def measure(
    benchmark: BenchmarkFixture, pipeline: Pipeline, build: Callable[[], PipelineFinished], number: int, rounds: int = 5
) -> None:
    """Measures builds of so many steps; the first is not counted."""
    seen = 0
    processor = float("inf")

    def count(event: object) -> None:
        nonlocal seen
        seen += 1

    def measured() -> None:
        nonlocal seen, processor
        seen, begin = 0, process_time()
        assert build().status == "success"
        processor = min(processor, process_time() - begin)

    pipeline.bus.subscribe(">").subscribe(count)
    benchmark.pedantic(measured, rounds=rounds, warmup_rounds=1)  # type: ignore[no-untyped-call]
    assert seen >= number * EVENTS_PER_STEP or build != pipeline.run  # more: containers tell of their own. Mocks, less
    if benchmark.stats is not None:
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["events_per_second"] = round(seen / seconds)
        benchmark.extra_info["microseconds_per_step"] = round(seconds / number * 1e6)
        benchmark.extra_info["processor_microseconds_per_step"] = round(processor / number * 1e6)


@pytest.mark.parametrize("number", [100, 300, 1000])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_on_disk(benchmark: BenchmarkFixture, tmp_path: Path, kind: str, number: int) -> None:
    benchmark.group = f"a build of steps that do nothing, {kind}"
    with Pipeline(CONTAINERS[kind](*[nothing] * number), home=tmp_path) as pipeline:
        measure(benchmark, pipeline, pipeline.run, number)


def test_in_memory(benchmark: BenchmarkFixture) -> None:
    benchmark.group = "a build of steps that do nothing, sequence"
    with Pipeline([nothing] * 1000) as pipeline:
        measure(benchmark, pipeline, pipeline.run, 1000)


@pytest.mark.parametrize("number", [100, 300, 1000])
def test_retrigger(benchmark: BenchmarkFixture, tmp_path: Path, number: int) -> None:
    benchmark.group = "a build retriggered from its last step: all others are mocked"
    with Pipeline([nothing] * number, home=tmp_path) as pipeline:
        pipeline.run()
        measure(benchmark, pipeline, lambda: pipeline.retrigger(1, (number,)), number)


@pytest.mark.parametrize("builds", [1, 100, 1000])
def test_builds_at_home(benchmark: BenchmarkFixture, tmp_path: Path, builds: int) -> None:
    benchmark.group = "a build of one step, where many are kept"
    with Pipeline([nothing], home=tmp_path) as pipeline:
        for _ in range(builds - 1):
            pipeline.run()
        measure(benchmark, pipeline, pipeline.run, 1, rounds=20)
