"""Pipeline: builds from start to end, several at once, and the shutdown."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from rxbus import BusClosed, EventBus, InvalidArgument
from rxbus.pipeline import (
    Pipeline,
    PipelineClosed,
    PipelineFinished,
    StepContext,
    alias,
    either,
    failed_steps,
    in_cwd,
    in_parallel,
    run,
    shell,
    start_new_run_after_first_step_finished,
    start_one_run_after_another,
    stop_runner,
    topics,
    wait_for_manual_trigger,
)
from tests.pipeline.recording import PATIENCE, Book, Sees, bad, ok, until_killed

Make = Callable[..., Pipeline]


# -- Builds


def test_a_build(make: Make) -> None:
    pipeline = make(ok(a=1), in_parallel(ok(), bad()))
    book = Book(pipeline.bus)
    finished = pipeline.run()
    failure = {"status": "failure"}
    assert finished == PipelineFinished(
        1,
        "failure",  # type: ignore[arg-type]
        {
            (1,): {"status": "success", "a": 1},
            (2,): {**failure, "outputs": {(1, 2): {"status": "success"}, (2, 2): failure}},
        },
    )
    assert failed_steps(finished) == [(2, 2)]
    assert book.of(topics.PIPELINE_STARTED) == [topics.PipelineStarted(1)]
    assert book.of(topics.PIPELINE_FINISHED) == [finished]
    assert (book.lines()[0], book.lines()[-1]) == (("begun",), ("ended", "failure"))


def test_a_pipeline_without_steps_is_a_success(make: Make) -> None:
    for pipeline in (make(), make(None, None)):
        book = Book(pipeline.bus)
        assert pipeline.start().result(PATIENCE) == PipelineFinished(1, "success", {})  # type: ignore[arg-type]
        assert book.lines() == [("begun",), ("ended", "success")]


def test_it_may_be_run_again(make: Make) -> None:
    sees = Sees()
    pipeline = make(sees)
    assert [pipeline.run({"n": n}).build_number for n in range(3)] == [1, 2, 3]
    assert sees.args == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert pipeline.state.build_numbers() == [1, 2, 3]


def test_start_does_not_wait(make: Make) -> None:
    started = threading.Event()
    pipeline = make(until_killed(started))
    build = pipeline.start()
    assert started.wait(PATIENCE)
    assert not build.done()
    assert not build.cancel()
    pipeline.kill_all()
    assert build.result(PATIENCE).status == "killed"


def test_a_handler_may_start_a_build_and_wait_for_nothing(make: Make) -> None:
    pipeline = make(ok())
    second = []

    def start(event: Any) -> None:
        if event.payload.build_number == 1:
            second.append(pipeline.start())

    pipeline.bus.subscribe(topics.PIPELINE_FINISHED).subscribe(start)
    assert pipeline.run().build_number == 1
    assert second[0].result(PATIENCE).build_number == 2


def test_results_are_on_disk_when_run_returns(make: Make, tmp_path: Path) -> None:
    pipeline = make(ok(a=1), bad(), home=tmp_path / "builds")
    pipeline.run()
    assert pipeline.home == tmp_path / "builds"
    other = make(ok(a=1), bad(), home=tmp_path / "builds")
    results = other.state.step_results(1)
    assert results == pipeline.state.step_results(1)
    assert {step_id: result["status"] for step_id, result in results.items()} == {(1,): "success", (2,): "failure"}
    assert other.run().build_number == 2


def test_builds_that_start_at_the_same_moment(make: Make, tmp_path: Path, spawn: Any) -> None:
    barrier = threading.Barrier(10)
    pipeline = make(ok(), home=tmp_path)

    def start() -> int:
        barrier.wait(PATIENCE)
        return pipeline.run().build_number

    assert sorted(build.result(PATIENCE) for build in [spawn(start) for _ in range(10)]) == list(range(1, 11))


def test_max_builds_and_a_removed_build_does_not_come_back(make: Make, tmp_path: Path) -> None:
    pipeline = make(ok(), home=tmp_path, max_builds=2)
    for _ in range(4):
        pipeline.run()
    assert pipeline.state.build_numbers() == [3, 4]
    update = topics.StepResultUpdated(1, (1,), {"status": "running"})
    pipeline.bus.publish(topics.STEP_RESULT_UPDATED, update)
    assert pipeline.state.build_numbers() == [3, 4]
    assert not (tmp_path / "build-1").exists()


@pytest.mark.parametrize(
    "options",
    [
        *({"max_builds": 0}, {"max_builds": -1}, {"max_builds": True}, {"max_builds": "2"}),
        *({"updates_per_second": 0}, {"updates_per_second": -1.0}, {"updates_per_second": "all"}),
        *({"shutdown_timeout": -1}, {"shutdown_timeout": None}, {"shutdown_timeout": float("nan")}),
        *({"home": 3}, {"bus": 3}),
    ],
)
def test_what_cannot_be_meant(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        Pipeline([], **options)
    with pytest.raises(InvalidArgument):
        Pipeline(["a step"])  # type: ignore[list-item]


def test_its_repr(make: Make) -> None:
    pipeline = make(ok(), ok())
    assert repr(pipeline) == "<Pipeline of 2 steps, 0 running>"
    pipeline.shutdown()
    assert repr(pipeline) == "<Pipeline of 2 steps, closed>"


def test_no_thread_for_a_build(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make(ok())

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            pipeline.start()
    assert repr(pipeline) == "<Pipeline of 1 steps, 0 running>"
    assert pipeline.run().status == "success"


def test_a_working_directory_that_is_gone_is_no_matter_for_who_does_not_need_it(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = make(ok(), shell("true"))
    book = Book(pipeline.bus)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    finished = pipeline.start().result(PATIENCE)
    assert [result["status"] for result in finished.outputs.values()] == ["success", "success"]
    assert book.lines()[-1] == ("ended", "success")


# -- Bad input


def test_what_is_no_list_of_steps(make: Make) -> None:
    with pytest.raises(InvalidArgument, match="a list of steps"):
        Pipeline(ok())  # type: ignore[arg-type]


@pytest.mark.parametrize("step_id", [1, "1", None, ("1",), (1.5,)])
def test_what_is_no_step_id(make: Make, step_id: Any) -> None:
    pipeline = make(ok())
    pipeline.run()
    for call in (pipeline.kill, pipeline.retrigger):
        with pytest.raises(InvalidArgument, match="a step id is a tuple of numbers"):
            call(1, step_id)


def test_what_are_no_arguments(make: Make) -> None:
    for call in (make(ok()).run, make(ok()).start):
        with pytest.raises(InvalidArgument, match="arguments are a dict"):
            call("x")  # type: ignore[arg-type]


def test_a_directory_forgotten() -> None:
    with pytest.raises(InvalidArgument, match="a directory before the steps"):
        in_cwd(ok(), ok())  # type: ignore[arg-type]


@pytest.mark.parametrize("home", [False, True])
def test_a_name_that_is_no_text(make: Make, tmp_path: Path, home: bool) -> None:
    pipeline = make(alias("\udcff", shell(f"true {os.fsdecode(bytes([255]))}")), home=tmp_path if home else None)
    assert pipeline.run().status == "success"
    (step,) = pipeline.state.structure(1)
    assert (step.name, step.children[0].name) == ("\\udcff", "shell: true \\udcff")


def test_a_thread_that_cannot_be_started_leaves_no_build_running(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    pipeline = make(ok())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            pipeline.start()
    assert pipeline.state.step_results(1) == {}
    assert not pipeline.state._store.read(1)[1]
    assert pipeline.run().build_number == 2


def test_nothing_can_be_killed_or_stopped_after_the_end(make: Make) -> None:
    pipeline = make(ok())
    pipeline.run()
    pipeline.shutdown()
    pipeline.kill(1, (1,))
    pipeline.kill_all()
    stop_runner(pipeline)
    for start in (start_one_run_after_another, start_new_run_after_first_step_finished):
        with pytest.raises(PipelineClosed):
            start(pipeline)


# -- Its end


def test_the_end_comes_once_after_all_steps_losers_included(make: Make) -> None:
    go_on = threading.Event()

    def stubborn(args: Any, ctx: StepContext) -> Any:
        ctx.wait_killed(PATIENCE)
        assert go_on.wait(PATIENCE)
        return {"status": "killed"}

    pipeline = make(run(either(ok(), run(stubborn))), ok())
    book = Book(pipeline.bus)
    pipeline.bus.subscribe(topics.STEP_FINISHED).subscribe(
        lambda event: go_on.set() if event.payload.step_id == (2,) else None
    )
    build = pipeline.start()
    assert build.result(PATIENCE).status == "success"
    order = book.order()
    assert order[-1] == ("ended", "success")
    assert [what for what, *_ in order].count("ended") == 1
    assert order.index(("finished", (2,))) < order.index(("finished", (1, 2, 1, 1)))
    started = {line[1] for line in order if line[0] == "started"}
    assert started == {line[1] for line in order if line[0] == "finished"}


def test_the_end_comes_once_per_build(make: Make) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        if ctx.build_number % 3 == 0:
            raise SystemExit
        return {"status": "killed" if ctx.build_number % 3 == 1 else "success"}

    pipeline = make(step)
    book = Book(pipeline.bus)
    for build in [pipeline.start() for _ in range(9)]:
        build.result(PATIENCE)
    pipeline.retrigger(1, (1,))
    assert sorted(one.build_number for one in book.of(topics.PIPELINE_FINISHED)) == list(range(1, 11))
    assert sorted(one.build_number for one in book.of(topics.PIPELINE_STARTED)) == list(range(1, 11))


# -- Shutdown


def test_shutdown_kills_waits_and_ends(tmp_path: Path) -> None:
    started = threading.Barrier(3)

    def step(args: Any, ctx: StepContext) -> Any:
        started.wait(PATIENCE)
        return {"status": "killed" if ctx.wait_killed(PATIENCE) else "failure"}

    pipeline = Pipeline([in_parallel(step, step)], home=tmp_path)
    build = pipeline.start()
    started.wait(PATIENCE)
    pipeline.shutdown()
    assert build.result(0).status == "killed"
    pipeline.shutdown()
    with pytest.raises(BusClosed):
        pipeline.bus.publish("anything")
    for call in (pipeline.run, pipeline.start, lambda: pipeline.retrigger(1, (1,))):
        with pytest.raises(PipelineClosed):
            call()
    assert pipeline.state.step_results(1)[(1, 1)]["status"] == "killed"
    assert (tmp_path / "build-1" / "build-state.json").exists()


def test_shutdown_reaches_steps_that_start_later() -> None:
    started, seen = threading.Event(), []

    def ignores(args: Any, ctx: StepContext) -> Any:
        started.set()
        ctx.wait_killed(PATIENCE)
        return {"status": "success"}

    def later(args: Any, ctx: StepContext) -> Any:
        seen.append(ctx.killed)
        return {"status": "killed"}

    with Pipeline([ignores, later]) as pipeline:
        build = pipeline.start()
        assert started.wait(PATIENCE)
    assert build.result(0).status == "killed"
    assert seen == [True]


def test_a_bus_of_the_users_stays_open(bus: EventBus) -> None:
    with Pipeline([ok()], bus=bus) as pipeline:
        assert pipeline.bus is bus
        pipeline.run()
    assert bus.publish("anything").acknowledged == 0
    assert bus.statistics().observers == 0


def test_a_bus_that_was_closed_before() -> None:
    for steps in ([ok()], [until_killed()]):
        bus = EventBus()
        pipeline = Pipeline(steps, bus=bus)
        build = pipeline.start()
        bus.close()
        pipeline.shutdown()
        assert build.done()
        with pytest.raises(PipelineClosed):
            pipeline.run()


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit("mine")])
@pytest.mark.rxbus_allow("failures")
def test_subscribers_that_raise_do_not_keep_it_from_ending(error: BaseException) -> None:
    started = threading.Event()
    pipeline = Pipeline([until_killed(started)])

    def fail(event: Any) -> None:
        raise error

    pipeline.bus.subscribe(">").subscribe(fail)
    build = pipeline.start()
    assert started.wait(PATIENCE)
    stop_runner(pipeline)
    pipeline.kill_all()
    pipeline.shutdown()
    assert build.result(0).status == "killed"
    with pytest.raises(BusClosed):
        pipeline.bus.publish("anything")


@pytest.mark.parametrize("per_second", [None, 10])
def test_a_step_that_ignores_kills(caplog: pytest.LogCaptureFixture, per_second: float | None) -> None:
    started, go_on = threading.Event(), threading.Event()

    def stubborn(args: Any, ctx: StepContext) -> Any:
        started.set()
        assert go_on.wait(PATIENCE)
        ctx.update(a=1)
        ctx.update(a=2)
        return {"status": "success"}

    pipeline = Pipeline([stubborn], shutdown_timeout=0.05, updates_per_second=per_second)
    build = pipeline.start()
    assert started.wait(PATIENCE)
    with caplog.at_level(logging.WARNING, "rxbus.pipeline"):
        pipeline.shutdown()
    assert "have not ended" in caplog.text
    assert not build.done()
    with pytest.raises(PipelineClosed):
        pipeline.run()
    pipeline.shutdown()
    go_on.set()
    finished = build.result(PATIENCE)
    assert finished.outputs == {(1,): {"status": "success", "a": 2, "received_kill": True}}
    for thread in threading.enumerate():
        if thread.name == "rxbus-build-1":
            thread.join(PATIENCE)
    with pytest.raises(BusClosed):  # the last build closes it
        pipeline.bus.publish("anything")


def test_several_shutdowns_at_once(spawn: Any) -> None:
    started = threading.Event()
    pipeline = Pipeline([until_killed(started)])
    start_one_run_after_another(pipeline)
    assert started.wait(PATIENCE)
    for shutdown in [spawn(pipeline.shutdown) for _ in range(4)]:
        shutdown.result(PATIENCE)
    assert pipeline.state.build_numbers() == [1]


def test_an_unused_pipeline_ends() -> None:
    with Pipeline([ok()]):
        pass


async def test_a_build_started_in_an_async_handler_is_no_part_of_it(make: Make) -> None:
    """Its publishes wait for all who listen, as everywhere: its result is in the state when it is there."""
    pipeline = make(ok())
    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATE_CONSUMED).subscribe(lambda event: time.sleep(0.01))
    known: list[bool] = []

    def look(future: Future[PipelineFinished]) -> None:
        known.append((1,) in pipeline.state.step_results(future.result().build_number))

    @pipeline.bus.on("go")
    async def go(event: Any) -> None:
        builds = [pipeline.start() for _ in range(4)]
        for build in builds:
            build.add_done_callback(look)
        await asyncio.gather(*(asyncio.wrap_future(build) for build in builds))

    await pipeline.bus.publish_async("go")
    assert known == [True] * 4


@pytest.mark.rxbus_allow("failures")  # an update that is due still when the bus is closed is told to the log
def test_kills_reach_steps_whose_bus_has_been_closed() -> None:
    bus = EventBus()
    with Pipeline([wait_for_manual_trigger], bus=bus) as pipeline:
        waiting = threading.Event()
        seen = bus.subscribe(topics.STEP_RESULT_UPDATED).only_payload()
        seen.filter(lambda update: update.step_result["status"] == "waiting").subscribe(lambda _: waiting.set())
        build = pipeline.start()
        assert waiting.wait(PATIENCE)
        bus.close()
        pipeline.kill_all()
        with pytest.raises(BusClosed):  # its end cannot be told
            build.result(PATIENCE)


def test_an_interrupted_start_kills_its_build(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the thread starts: nobody is given its future."""
    begun = threading.Event()
    pipeline = make(until_killed(begun))

    def start(self: threading.Thread) -> None:
        true_start(self)
        if self.name.startswith("rxbus-build"):
            assert begun.wait(PATIENCE)
            raise KeyboardInterrupt

    true_start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        pipeline.start()
    monkeypatch.undo()
    pipeline.shutdown()
    assert pipeline.state.step_results(1)[(1,)]["status"] == "killed"


def test_a_shutdown_after_an_interrupt_that_kept_the_clock_from_starting(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = threading.Event()

    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(n=1)  # so the next one is left to the clock
        begun.set()
        ctx.wait_killed()
        return {"status": "killed"}

    def start(self: threading.Thread) -> None:
        if self.name == "rxbus-pipeline-clock":
            raise KeyboardInterrupt
        true_start(self)

    true_start = threading.Thread.start
    with Pipeline([step], updates_per_second=0.01) as pipeline:
        pipeline.start()
        assert begun.wait(PATIENCE)
        monkeypatch.setattr(threading.Thread, "start", start)
        with pytest.raises(KeyboardInterrupt):
            pipeline.kill_all()
        monkeypatch.undo()
    with pytest.raises(BusClosed):
        pipeline.bus.publish("anything")


def test_a_shutdown_that_strikes_a_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a signal handler's may: right before the build is known."""

    class Struck(Future[Any]):
        def __init__(self) -> None:
            super().__init__()
            pipeline.shutdown()

    pipeline = make(ok())
    monkeypatch.setattr("rxbus.pipeline._pipeline.Future", Struck)
    with pytest.raises(PipelineClosed):
        pipeline.run()


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_a_signal_handler_may_shut_down(tmp_path: Path) -> None:
    def end(number: int, frame: object) -> None:
        pipeline.shutdown()

    def run_on() -> None:
        while True:
            pipeline.run()

    before = signal.signal(signal.SIGALRM, end)
    try:
        for moment in range(1, 21):
            pipeline = Pipeline([ok()], home=tmp_path, shutdown_timeout=0.2)
            signal.setitimer(signal.ITIMER_REAL, moment * 0.0007)
            with pytest.raises(PipelineClosed):
                run_on()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
