"""Pipelines under load: many steps, many updates, many builds."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rxbus import Event
from rxbus.pipeline import Pipeline, StepContext, either, flatten_outputs, in_parallel, run, topics
from tests.stress.topology import switching

ROUNDS = int(os.environ.get("RXBUS_STRESS", "1"))
STEPS, UPDATES = 40, 999


@pytest.mark.parametrize("per_second", [None, 10, 1000])
def test_many_steps_with_many_updates(per_second: float | None) -> None:
    updates: Counter[Any] = Counter()
    finished: list[Any] = []

    def step(args: Any, ctx: StepContext) -> Any:
        for n in range(UPDATES):
            ctx.update(n=n)
        return {"status": "success"}

    def count(event: Event[topics.StepResultUpdated]) -> None:
        updates[event.payload.step_id] += 1

    with Pipeline([in_parallel(*[step] * STEPS)], updates_per_second=per_second) as pipeline:
        pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(count)
        pipeline.bus.subscribe(topics.STEP_FINISHED).subscribe(lambda event: finished.append(event.payload))
        build = pipeline.start().result(100)
    assert build.status == "success"
    assert len(finished) == STEPS + 1
    assert finished[-1].step_id == (1,)
    assert {one.final_result["n"] for one in finished} == {UPDATES - 1}
    children = [updates[(n, 1)] for n in range(1, STEPS + 1)]
    if per_second is None:
        assert children == [UPDATES + 2] * STEPS
    else:
        assert all(3 <= number <= UPDATES + 2 for number in children)
    results = pipeline.state.step_results(1)
    assert {results[(n, 1)]["n"] for n in range(1, STEPS + 1)} == {UPDATES - 1}


@pytest.mark.parametrize("at_home", [False, True])
def test_builds_that_start_at_the_same_moment(tmp_path: Path, at_home: bool) -> None:
    barrier, together = threading.Barrier(10), threading.Barrier(10)
    numbers: list[int] = []

    def step(args: Any, ctx: StepContext) -> Any:
        together.wait(60)
        return {"status": "success"}

    with switching(1e-5), Pipeline([step, in_parallel(step)], home=tmp_path if at_home else None) as pipeline:

        def start() -> None:
            barrier.wait(60)
            numbers.append(pipeline.start().result(60).build_number)

        threads = [threading.Thread(target=start) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(100)
        assert sorted(numbers) == pipeline.state.build_numbers() == list(range(1, 11))


@pytest.mark.parametrize("seed", range(2 * ROUNDS))
def test_kills_and_shutdown_in_the_midst(seed: int) -> None:
    """Builds of all kinds that are killed at any moment: each ends once, all of its steps do, nothing is left."""
    begun = threading.Semaphore(0)

    def step(args: Any, ctx: StepContext) -> Any:
        begun.release()
        while not ctx.wait_killed(0.0005):
            ctx.update(n=1)
            if (sum(ctx.step_id) + ctx.build_number + seed) % 3:
                return {"status": "success"}
        return {"status": "killed"}

    tree = in_parallel(run(step, step), either(step, run(step), in_parallel(step, step)), step)
    events: list[tuple[str, Any]] = []
    with switching(1e-5):
        with Pipeline([tree, step, tree]) as pipeline:
            for topic in (topics.STEP_STARTED, topics.STEP_FINISHED, topics.PIPELINE_FINISHED):
                pipeline.bus.subscribe(topic).subscribe(lambda event: events.append((event.topic, event.payload)))
            builds = [pipeline.start() for _ in range(8)]
            for _ in range(10):
                assert begun.acquire(timeout=60)
            for number in range(1, 5):
                pipeline.kill(number, (1,))
            pipeline.kill_all()
        finished = [build.result(60) for build in builds]
    for build in finished:
        number = build.build_number
        started = Counter(one.step_id for name, one in events if name == "step-started" and one.build_number == number)
        ended = Counter(one.step_id for name, one in events if name == "step-finished" and one.build_number == number)
        assert started == ended
        assert set(started.values()) == {1}
        assert set(flatten_outputs(build.outputs)) <= set(started)
    assert sorted(one.build_number for name, one in events if name == "pipeline-finished") == list(range(1, 9))
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("rxbus-step")] == []
