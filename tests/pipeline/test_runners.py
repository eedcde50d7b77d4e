"""Runners: when they start builds, and when no more."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from rxbus import EventBus, InvalidArgument
from rxbus.pipeline import (
    Pipeline,
    PipelineClosed,
    StepContext,
    start_new_run_after_first_step_finished,
    start_one_run_after_another,
    stop_runner,
    topics,
)
from tests.pipeline.recording import PATIENCE, Book, ok

Make = Callable[..., Pipeline]
RUNNERS = [start_one_run_after_another, start_new_run_after_first_step_finished]


class Gate:
    """A step that tells that it has begun, and ends when told so."""

    __name__ = "gate"

    def __init__(self) -> None:
        self.begun: SimpleQueue[int] = SimpleQueue()
        self._open: SimpleQueue[str | None] = SimpleQueue()

    def __call__(self, args: Any, ctx: StepContext) -> Any:
        ctx._kill.call(lambda: self._open.put("killed"))
        self.begun.put(ctx.build_number)
        return {"status": self._open.get(timeout=PATIENCE)}

    def next(self) -> int:
        return self.begun.get(timeout=PATIENCE)

    def open(self, status: str = "success") -> None:
        self._open.put(status)


def ends_of(pipeline: Pipeline, topic: Any) -> SimpleQueue[Any]:
    """What is told on a topic, when all others have been told too: the next build, if any, has its number."""
    queue: SimpleQueue[Any] = SimpleQueue()
    pipeline.bus.subscribe(topic).subscribe(lambda event: queue.put(event.payload))
    return queue


def test_one_after_another(make: Make) -> None:
    gate = Gate()
    pipeline = make(gate)
    book = Book(pipeline.bus)
    start_one_run_after_another(pipeline)
    for number, status in enumerate(["success", "failure", "killed", "success"], 1):
        assert gate.next() == number
        gate.open(status)
    assert gate.next() == 5
    lines = [line for line in book.lines() if line[0] in ("begun", "ended")]
    statuses = ["success", "failure", "killed", "success"]
    assert lines == [line for status in statuses for line in [("begun",), ("ended", status)]] + [("begun",)]


def test_after_the_first_step(make: Make) -> None:
    first, second = Gate(), Gate()
    pipeline = make(first, second)
    start_new_run_after_first_step_finished(pipeline)
    assert first.next() == 1
    first.open()
    assert {first.next(), second.next()} == {2, 1}
    first.open("failure")
    assert first.next() == 3  # the first step's status does not matter
    second.open()
    assert pipeline.state.build_numbers() == [1, 2, 3]


@pytest.mark.parametrize("start_runner", RUNNERS)
def test_stopping(make: Make, start_runner: Callable[[Pipeline], None]) -> None:
    gate, last = Gate(), Gate()
    pipeline = make(gate, last)
    ends = ends_of(pipeline, topics.PIPELINE_FINISHED)
    start_runner(pipeline)
    assert gate.next() == 1
    observers = pipeline.bus.statistics().observers
    stop_runner(pipeline)
    stop_runner(pipeline)
    assert pipeline.bus.statistics().observers == observers - 2
    gate.open()
    assert last.next() == 1
    last.open()
    assert ends.get(timeout=PATIENCE).status == "success"
    assert pipeline.state.build_numbers() == [1]


@pytest.mark.parametrize("start_runner", RUNNERS)
def test_stopping_early(make: Make, start_runner: Callable[[Pipeline], None]) -> None:
    pipeline = make(ok())
    ends = ends_of(pipeline, topics.PIPELINE_FINISHED)
    pipeline.bus.subscribe(topics.PIPELINE_STARTED).subscribe(lambda event: stop_runner(pipeline))
    start_runner(pipeline)
    assert ends.get(timeout=PATIENCE).build_number == 1
    with pytest.raises(Empty):
        ends.get_nowait()
    assert pipeline.state.build_numbers() == [1]


@pytest.mark.parametrize("start_runner", RUNNERS)
def test_a_runner_may_be_started_again(make: Make, start_runner: Callable[[Pipeline], None]) -> None:
    gate = Gate()
    pipeline = make(gate)
    start_runner(pipeline)
    stop_runner(pipeline)
    assert gate.next() == 1
    start_runner(pipeline)
    assert gate.next() == 2
    gate.open()
    gate.open()
    assert gate.next() == 3


@pytest.mark.parametrize("start_runner", RUNNERS)
def test_runners_are_not_stacked(make: Make, start_runner: Callable[[Pipeline], None]) -> None:
    """Two would each start a build when theirs has ended, and builds would not follow each other."""
    gate = Gate()
    pipeline = make(gate)
    start_one_run_after_another(pipeline)
    with pytest.raises(InvalidArgument, match="has a runner already"):
        start_runner(pipeline)
    for number in range(1, 4):
        assert gate.next() == number
        gate.open()
    assert gate.next() == 4
    assert pipeline.state.build_numbers() == [1, 2, 3, 4]


@pytest.mark.parametrize("start_runner", RUNNERS)
def test_a_runner_whose_first_build_cannot_be_made_is_none(
    make: Make, start_runner: Callable[[Pipeline], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make(ok())
    observers = pipeline.bus.statistics().observers

    def full(*args: Any) -> int:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.state, "new_build", full)
        with pytest.raises(OSError, match="no space left"):
            start_runner(pipeline)
    assert pipeline.bus.statistics().observers == observers
    start_runner(pipeline)


def test_others_builds_start_none(make: Make) -> None:
    begun: SimpleQueue[int] = SimpleQueue()

    def step(args: Any, ctx: StepContext) -> Any:
        begun.put(ctx.build_number)
        return {"status": "killed" if ctx.wait_killed(PATIENCE) else "failure"}

    pipeline = make(step)
    start_one_run_after_another(pipeline)
    assert begun.get(timeout=PATIENCE) == 1
    other = pipeline.start()
    assert begun.get(timeout=PATIENCE) == 2
    pipeline.kill(2, (1,))
    other.result(PATIENCE)
    assert pipeline.state.build_numbers() == [1, 2]
    pipeline.kill(1, (1,))
    assert begun.get(timeout=PATIENCE) == 3


def test_mocks_and_reruns_start_none(make: Make) -> None:
    first, second = Gate(), Gate()
    pipeline = make(first, second)
    ended = ends_of(pipeline, topics.PIPELINE_FINISHED)
    start_new_run_after_first_step_finished(pipeline)
    first.next()
    first.open()
    assert first.next() == 2
    second.next()
    second.open()
    ended.get(timeout=PATIENCE)
    second.open()
    assert pipeline.retrigger(1, (2,)).build_number == 3
    assert second.next() == 3
    assert pipeline.state.build_numbers() == [1, 2, 3]
    first.open()
    assert first.next() == 4


@pytest.mark.parametrize("start_runner", RUNNERS)
@pytest.mark.rxbus_allow("failures")
def test_subscribers_that_raise_do_not_reach_it(make: Make, start_runner: Callable[[Pipeline], None]) -> None:
    gate = Gate()
    pipeline = make(gate)

    def fail(event: Any) -> None:
        raise SystemExit

    failing = pipeline.bus.subscribe(">").subscribe(fail)
    start_runner(pipeline)
    for number in (1, 2, 3):
        assert gate.next() == number
        gate.open()
    assert gate.next() == 4
    failing.dispose()


@pytest.mark.parametrize("start_runner", RUNNERS)
def test_a_shutdown_stops_it(start_runner: Callable[[Pipeline], None]) -> None:
    gate = Gate()
    with EventBus() as bus:
        with Pipeline([gate], bus=bus) as pipeline:
            start_runner(pipeline)
            gate.next()
        assert bus.statistics().observers == 0
        assert pipeline.state.build_numbers() == [1]


@pytest.mark.parametrize("start_runner", RUNNERS)
@pytest.mark.rxbus_allow("failures")
def test_a_build_that_cannot_be_made_stops_it(
    make: Make,
    start_runner: Callable[[Pipeline], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    pipeline = make(gate)
    start_runner(pipeline)
    ends = ends_of(pipeline, topics.PIPELINE_FINISHED)  # after the runner: it is told when that has tried
    gate.next()

    def full(*args: Any) -> int:
        raise OSError("no space left")

    monkeypatch.setattr(pipeline.state, "new_build", full)
    with caplog.at_level(logging.ERROR, "rxbus.pipeline"):
        gate.open()
        ends.get(timeout=PATIENCE)
    assert "the runner cannot start a build" in caplog.text


def test_builds_that_follow_each_other_are_no_feedback_loop() -> None:
    done = threading.Event()

    def step(args: Any, ctx: StepContext) -> Any:
        if ctx.build_number == 40:
            done.set()
        return {"status": "success"}

    for start_runner in RUNNERS:
        done.clear()
        with EventBus(max_chain=8) as bus, Pipeline([step], bus=bus) as pipeline:
            start_runner(pipeline)
            assert done.wait(PATIENCE)


def test_a_closed_pipeline_is_not_run(make: Make) -> None:
    with EventBus() as bus:
        pipeline = make(ok(), bus=bus)
        pipeline.shutdown()
        with pytest.raises(PipelineClosed):
            start_one_run_after_another(pipeline)
        assert bus.statistics().observers == 0
        assert pipeline.state.build_numbers() == []
