"""Kills: what a switch reaches, and how kills reach steps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from rxbus.pipeline import (
    Pipeline,
    StepContext,
    alias,
    chain,
    either,
    in_cwd,
    in_parallel,
    junction,
    run,
    topics,
    with_workspace,
)
from rxbus.pipeline._kill import KillSwitch
from tests.pipeline.recording import PATIENCE, Book, ok, plain, until_killed

Make = Callable[..., Pipeline]


def test_a_switch_throws_those_below_whenever_they_come() -> None:
    above = KillSwitch()
    early = KillSwitch(above)
    grandchild = KillSwitch(early)
    assert not early.thrown
    assert not early.wait(0)
    early.throw()
    assert (above.thrown, early.thrown, grandchild.thrown) == (False, True, True)
    above.throw()
    late = KillSwitch(above)
    assert late.thrown
    assert late.wait()


def test_a_call_that_raises_keeps_it_from_none_of_the_others() -> None:
    switch, calls = KillSwitch(), []
    switch.call(lambda: calls.append(1))
    switch.call(lambda: [][0])
    KillSwitch(switch).call(lambda: calls.append(2))
    with pytest.raises(IndexError):
        switch.throw()
    assert calls == [1, 2]


def test_a_switch_calls_once() -> None:
    switch, calls = KillSwitch(), []
    switch.call(lambda: calls.append("early"))
    switch.throw()
    switch.throw()
    switch.call(lambda: calls.append("late"))
    assert calls == ["early", "late"]


def test_all_below_are_thrown_before_anybody_is_called() -> None:
    above = KillSwitch()
    below = [KillSwitch(KillSwitch(above)) for _ in range(3)]
    seen = []

    def call() -> None:
        seen.append([switch.thrown for switch in below])
        raise ValueError

    above.call(call)
    try:
        above.throw()
    except ValueError:
        seen.append([switch.wait(0) for switch in below])
    assert seen == [[True] * 3, [True] * 3]


def test_one_that_has_left_is_not_held() -> None:
    above = KillSwitch()
    below = KillSwitch(above)
    below.leave()
    above.leave()
    above.throw()
    assert not below.thrown


def nested(started: Callable[[], Any], kind: str) -> Any:
    def step(args: Any, ctx: StepContext) -> Any:
        started()
        return {"status": "killed" if ctx.wait_killed(PATIENCE) else "failure"}

    return {
        "run": lambda: run(ok(), step),
        "in_parallel": lambda: in_parallel(step, step),
        "either": lambda: either(step, step),
        "chain": lambda: chain(ok(), step),
        "chain of run": lambda: chain(run(step)),
        "alias": lambda: alias("other", step),
        "junction's condition": lambda: junction(step, ok(), ok()),
        "junction's branch": lambda: junction(ok(), step, ok()),
        "in_cwd": lambda: in_cwd("/", step),
        "with_workspace": lambda: with_workspace(step),
        "deep": lambda: run(alias("x", chain(in_parallel(step, junction(ok(), run(step), None))))),
    }[kind]()


def pytest_generate_tests(metafunc: Any) -> None:
    if "kind" in metafunc.fixturenames:
        kinds = ["run", "in_parallel", "either", "chain", "chain of run", "alias", "junction's condition"]
        kinds += ["junction's branch", "in_cwd", "with_workspace", "deep"]
        metafunc.parametrize("kind", kinds)


def test_a_kill_reaches_all_below(make: Make, kind: str) -> None:
    parties = 2 if kind in ("in_parallel", "either", "deep") else 1
    barrier = threading.Barrier(parties + 1)
    pipeline = make(nested(lambda: barrier.wait(PATIENCE), kind), ok())
    book = Book(pipeline.bus)
    build = pipeline.start()
    barrier.wait(PATIENCE)
    pipeline.kill(1, (1,))
    finished = build.result(PATIENCE)
    assert (finished.status, plain(finished)) == ("killed", {(1,): "killed"})
    assert finished.outputs[(1,)]["received_kill"] is True
    killed = [one for one in book.of(topics.STEP_FINISHED) if one.final_result["status"] == "killed"]
    assert len(killed) > parties
    assert all(one.final_result["received_kill"] is True for one in killed)


def test_a_child_that_starts_later_is_killed_too(make: Make) -> None:
    started, seen = threading.Event(), []

    def ignores(args: Any, ctx: StepContext) -> Any:
        started.set()
        ctx.wait_killed(PATIENCE)
        return {"status": "success"}

    def later(args: Any, ctx: StepContext) -> Any:
        seen.append((ctx.killed, ctx.wait_killed(PATIENCE)))
        return {"status": "killed"}

    pipeline = make(run(ignores, later))
    build = pipeline.start()
    assert started.wait(PATIENCE)
    pipeline.kill(1, (1,))
    assert build.result(PATIENCE).status == "killed"
    assert seen == [(True, True)]


def test_siblings_and_other_builds_go_on(make: Make) -> None:
    barrier = threading.Barrier(5)
    end = threading.Event()
    seen = []

    def step(args: Any, ctx: StepContext) -> Any:
        barrier.wait(PATIENCE)
        while not end.wait(0.01) and not ctx.killed:
            pass
        seen.append((ctx.build_number, ctx.step_id, ctx.killed))
        return {"status": "killed" if ctx.killed else "success"}

    pipeline = make(in_parallel(step, step))
    killed = threading.Event()
    pipeline.bus.subscribe(topics.STEP_FINISHED).subscribe(lambda event: killed.set())
    builds = [pipeline.start(), pipeline.start()]
    barrier.wait(PATIENCE)
    pipeline.kill(1, (2, 1))
    assert killed.wait(PATIENCE)
    end.set()
    assert [build.result(PATIENCE).status for build in builds] == ["killed", "success"]
    assert sorted(seen) == [(1, (1, 1), False), (1, (2, 1), True), (2, (1, 1), False), (2, (2, 1), False)]


def test_kill_all_reaches_the_steps_of_all_builds_that_run_now_and_not_later_ones(make: Make) -> None:
    barrier = threading.Barrier(3)
    seen = []

    def ignores(args: Any, ctx: StepContext) -> Any:
        barrier.wait(PATIENCE)
        assert ctx.wait_killed(PATIENCE)
        return {"status": "success"}

    def later(args: Any, ctx: StepContext) -> Any:
        seen.append(ctx.killed)
        return {"status": "success"}

    pipeline = make(ignores, later)
    builds = [pipeline.start(), pipeline.start()]
    barrier.wait(PATIENCE)
    pipeline.kill_all()
    assert [build.result(PATIENCE).status for build in builds] == ["success", "success"]
    assert seen == [False, False]


def test_a_kill_of_what_does_not_run_does_nothing(make: Make) -> None:
    pipeline = make(ok())
    pipeline.kill(1, (1,))
    pipeline.kill_all()
    finished = pipeline.run()
    pipeline.kill(1, (1,))
    pipeline.kill(7, (3, 1))
    assert "received_kill" not in finished.outputs[(1,)]
    assert pipeline.run().status == "success"


def test_a_kill_before_the_body_comes_between_the_first_update_and_step_started(make: Make) -> None:
    pipeline = make(until_killed())
    book = Book(pipeline.bus)

    def kill(event: Any) -> None:
        if event.payload.step_result == {"status": "running"}:
            pipeline.kill(1, (1,))

    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(kill)
    assert pipeline.start().result(PATIENCE).status == "killed"
    assert book.lines()[:4] == [
        ("begun",),
        ("updated", (1,), "running"),
        ("updated", (1,), "running"),
        ("started", (1,)),
    ]
    assert book.updates((1,))[1] == {"status": "running", "received_kill": True}


def test_a_killed_step_tells_so_at_once(make: Make) -> None:
    started = threading.Event()
    pipeline = make(until_killed(started))
    book = Book(pipeline.bus)
    build = pipeline.start()
    assert started.wait(PATIENCE)
    pipeline.kill(1, (1,))
    assert build.result(PATIENCE).outputs == {(1,): {"status": "killed", "received_kill": True}}
    assert book.updates((1,)) == [
        {"status": "running"},
        {"status": "running", "received_kill": True},
        {"status": "killed", "received_kill": True},
    ]


def test_a_step_may_kill_itself(make: Make) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        pipeline.kill(ctx.build_number, ctx.step_id)
        return {"status": "killed" if ctx.killed else "failure"}

    pipeline = make(step)
    assert pipeline.run().status == "killed"


def test_ctrl_c_while_somebody_kills_reaches_him(make: Make) -> None:
    started = threading.Event()
    pipeline = make(until_killed(started))

    def interrupt(event: Any) -> None:
        if "received_kill" in event.payload.step_result and event.payload.step_result["status"] == "running":
            raise KeyboardInterrupt

    attached = pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(interrupt)
    build = pipeline.start()
    assert started.wait(PATIENCE)
    with pytest.raises(KeyboardInterrupt):
        pipeline.kill(1, (1,))
    attached.dispose()
    assert build.result(PATIENCE).status == "killed"


def test_ended_steps_do_not_keep_later_kills_and_stops_waiting(make: Make) -> None:
    pipeline = make(in_parallel(*[ok()] * 5), either(ok(), until_killed()))
    before = pipeline.bus.statistics().observers
    for _ in range(3):
        pipeline.run()
    assert pipeline.bus.statistics().observers == before
    pipeline.bus.publish(topics.KILL_STEP, topics.KillStep(), timeout=PATIENCE)
    pipeline.bus.publish(topics.STOP_RUNNER, topics.StopRunner(), timeout=PATIENCE)


def test_received_kill_stays_in_what_a_container_tells(make: Make) -> None:
    started = threading.Event()
    more = threading.Event()

    def step(args: Any, ctx: StepContext) -> Any:
        started.set()
        assert ctx.wait_killed(PATIENCE)
        ctx.update(status="waiting")
        assert more.wait(PATIENCE)
        ctx.replace({"status": "running"})
        return {"status": "killed"}

    pipeline = make(run(step))
    book = Book(pipeline.bus)
    build = pipeline.start()
    assert started.wait(PATIENCE)
    pipeline.kill(1, (1,))
    more.set()
    build.result(PATIENCE)
    told = [update for update in book.updates((1,)) if "received_kill" in update]
    assert [update["status"] for update in told] == ["running", "waiting", "running", "unknown", "killed"]
    assert book.updates((1, 1))[-2] == {"status": "running", "received_kill": True}


def test_a_step_that_ends_before_it_is_told_of_its_kill_has_received_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are killed before the first is told so: one that waits for it may be through by then."""
    monkeypatch.setattr(StepContext, "_on_kill", lambda self: None)  # it comes too late
    begun = threading.Event()
    pipeline = make(run(until_killed(begun)))
    build = pipeline.start()
    assert begun.wait(PATIENCE)
    pipeline.kill(1, (1,))
    outputs = build.result(PATIENCE).outputs
    assert outputs[(1,)]["received_kill"] is outputs[(1,)]["outputs"][(1, 1)]["received_kill"] is True
