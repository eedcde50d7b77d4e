"""A step: what is told of it and in which order, its result, and what it sees."""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rxbus import EventBus, InvalidArgument
from rxbus.pipeline import Pipeline, Status, StepContext, chain, either, failed_steps, in_parallel, run, topics
from tests.pipeline.recording import PATIENCE, Book, Step, ok

Make = Callable[..., Pipeline]


def result_of(make: Make, step: Step, home: Path | None = None) -> dict[str, Any]:
    """What a step comes to; the state must say the same."""
    pipeline = make(step, home=home)
    result = pipeline.run().outputs[(1,)]
    kept = pipeline.state.step_results(1)[(1,)]
    assert topics.encode({key: value for key, value in kept.items() if key in result}) == topics.encode(result)
    return result


# -- The order


def test_the_order_of_events(make: Make) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(a=1)
        pipeline.bus.publish("body")
        ctx.update(a=2, b=1)
        return {"status": "success", "c": 3}

    pipeline = make(step)
    book = Book(pipeline.bus)
    finished = pipeline.run()
    consumed = topics.STEP_RESULT_UPDATE_CONSUMED.name
    updated = topics.STEP_RESULT_UPDATED.name
    assert [event.topic for event in book.events] == [
        "pipeline-started",
        updated, consumed, "step-started",
        updated, consumed, "body", updated, consumed,
        updated, consumed, "step-finished",
        "pipeline-finished",
    ]  # fmt: skip
    assert book.updates((1,)) == [
        {"status": "running"},
        {"status": "running", "a": 1},
        {"status": "running", "a": 2, "b": 1},
        {"status": "success", "a": 2, "b": 1, "c": 3},
    ]
    assert book.finished((1,)) == topics.StepFinished(1, (1,), {"status": "success", "a": 2, "b": 1, "c": 3}, False)
    assert book.of(topics.STEP_RESULT_UPDATE_CONSUMED) == book.of(topics.STEP_RESULT_UPDATED)
    assert book.of(topics.PIPELINE_FINISHED) == [finished]


def test_whoever_sees_consumed_finds_it_in_the_state(make: Make, tmp_path: Path) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(n=1)
        return {"status": "success", "n": 2}

    pipeline = make(step, home=tmp_path)
    found = []

    def look(event: Any) -> None:
        kept = pipeline.state.step_results(1)[(1,)]
        found.append((event.payload.step_result.get("n"), kept.get("n"), kept["status"]))

    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATE_CONSUMED).subscribe(look)
    pipeline.run()
    assert found == [(None, None, "running"), (1, 1, "running"), (2, 2, "success")]


def test_a_step_listens_for_kills_first(make: Make) -> None:
    pipeline = make(ok())
    before = pipeline.bus.statistics().observers
    during = []
    listening = pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(
        lambda event: during.append(pipeline.bus.statistics().observers)
    )
    pipeline.run()
    listening.dispose()
    assert during[0] == before + 2
    assert pipeline.bus.statistics().observers == before


@pytest.mark.parametrize("per_second", [0.001, 10, None])
def test_the_end_flushes_at_once(make: Make, per_second: float | None) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        for n in range(100):
            ctx.update(n=n)
        return {"status": "success"}

    pipeline = make(step, updates_per_second=per_second)
    book = Book(pipeline.bus)
    finished = pipeline.start().result(PATIENCE)
    updates = book.updates((1,))
    assert updates[0] == {"status": "running"}
    assert updates[-2:] == [{"status": "running", "n": 99}, {"status": "success", "n": 99}]
    assert finished.outputs == {(1,): updates[-1]}
    if per_second is None:
        assert [update["n"] for update in updates[1:-1]] == list(range(100))
    if per_second == 0.001:  # the first at once
        assert [update.get("n") for update in updates] == [None, 0, 99, 99]


def test_sampled_updates_come_while_the_step_runs(make: Make) -> None:
    told = threading.Event()

    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(n=1)
        ctx.update(n=2)
        return {"status": "success" if told.wait(PATIENCE) else "failure"}

    pipeline = make(step, updates_per_second=50)
    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(
        lambda event: told.set() if event.payload.step_result.get("n") == 2 else None
    )
    assert pipeline.run().status == "success"


def test_no_update_after_the_end(make: Make) -> None:
    contexts = []

    def step(args: Any, ctx: StepContext) -> Any:
        contexts.append(ctx)
        return {"status": "success"}

    def late(args: Any, ctx: StepContext) -> Any:
        contexts[0].update(late=True)
        contexts[0].replace({"late": True})
        contexts.append(ctx)
        return {"status": "success"}

    pipeline = make(step, late)
    book = Book(pipeline.bus)
    pipeline.run()
    contexts[1].update(late=True)
    assert not any("late" in update for update in book.updates((1,)) + book.updates((2,)))
    assert "late" not in pipeline.state.step_results(1)[(1,)]


# -- The result


def test_replace(make: Make) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(a=1)
        ctx.replace({"b": 2})
        ctx.update(c=3)
        return {"status": "success"}

    assert result_of(make, step) == {"status": "success", "b": 2, "c": 3}


def test_a_result_is_a_dict(make: Make) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        with pytest.raises(InvalidArgument, match="a result is a dict"):
            ctx.replace(3)  # type: ignore[arg-type]
        return {"status": "success"}

    assert result_of(make, step) == {"status": "success"}


def test_updates_may_have_any_name(make: Make) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(self=1, fields=2)
        return {"status": "success"}

    assert result_of(make, step) == {"status": "success", "self": 1, "fields": 2}


def test_waiting_is_remembered(make: Make) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(status="waiting")
        ctx.update(status="running")
        return {"status": "success"}

    assert result_of(make, step) == {"status": "success", "has_been_waiting": True}
    assert make(ok(status="waiting")).run().outputs[(1,)]["has_been_waiting"] is True


def test_no_status(make: Make) -> None:
    result = result_of(make, lambda args, ctx: {"a": 1, "out": "said"})
    assert result == {"status": "failure", "a": 1, "out": "said\nstep did not return any status!"}
    assert result_of(make, lambda args, ctx: {})["out"] == "step did not return any status!"


@pytest.mark.parametrize("status", ["running", "waiting"])
@pytest.mark.parametrize("container", [run, in_parallel, chain])
def test_a_status_that_is_no_end(make: Make, status: str, container: Callable[..., Any]) -> None:
    """A build that has ended must not hold steps that seem to go on."""
    pipeline = make(container(lambda args, ctx: {"status": status, "out": "said"}))
    finished = pipeline.run()
    assert failed_steps(finished) == [(1, 1)]
    assert finished.outputs[(1,)]["outputs"][(1, 1)]["status"] == "failure"
    told = f"said\nstep returned the status {status!r}, which is no end"
    assert finished.outputs[(1,)]["outputs"][(1, 1)]["out"] == told
    assert pipeline.state.step_results(1)[(1, 1)]["status"] == "failure"


@pytest.mark.parametrize("returned", [None, 3, "success", [("status", "success")], Status.SUCCESS])
def test_no_dict(make: Make, returned: object) -> None:
    result = result_of(make, lambda args, ctx: returned)
    assert result["status"] == "failure"
    assert repr(returned) in result["out"]


@pytest.mark.parametrize("status", ["succes", "", None, 3, ["success"], "SUCCESS"])
def test_an_unknown_status(make: Make, status: object) -> None:
    result = result_of(make, lambda args, ctx: {"status": status, "a": 1})
    assert (result["status"], result["a"]) == ("failure", 1)
    assert repr(status) in result["out"]


class Secret:
    def __repr__(self) -> str:
        return "<secret>"


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError


UNSTORABLE = [
    (Secret(), "<secret>"),
    ({"deep": [1, {"x": Secret()}]}, "<secret>"),
    (float("nan"), "nan"),
    (float("-inf"), "-inf"),
    ({1, 2}, "{1, 2}"),
    (b"bytes", "b'bytes'"),
    (Decimal(1), "Decimal"),
    (2**64, str(2**64)),
    ({3: "x"}, "the key 3"),
    ({(1, 2): "x"}, "the key (1, 2)"),
    ({"outputs": {"x": {(1, "2"): 3}}}, "the key (1, '2')"),
    ("\ud800", "\\ud800"),
    ({"\ud800": 1}, "\\ud800"),
    (Mute(), "Mute"),
    (1j, "1j"),
]


@pytest.mark.parametrize(("value", "named"), UNSTORABLE)
@pytest.mark.parametrize("status", [{"status": "success"}, {}])
def test_a_value_that_json_cannot_hold(make: Make, value: object, named: str, status: dict[str, Any]) -> None:
    result = result_of(make, lambda args, ctx: {**status, "good": 1, "bad": value})
    assert result["status"] == "failure"
    assert "bad: JSON cannot hold" in result["out"]
    assert named in result["out"]
    assert result["good"] == 1
    assert "bad" not in result


@pytest.mark.parametrize("key", [3, (1, 2), None, Secret()])
def test_a_key_that_json_cannot_hold(make: Make, key: object) -> None:
    result = result_of(make, lambda args, ctx: {"status": "success", key: 1})
    assert result["status"] == "failure"
    assert f"the key {key!r}" in result["out"]
    assert key not in result


@pytest.mark.parametrize(("value", "named"), UNSTORABLE)
@pytest.mark.parametrize("way", ["update", "replace"])
def test_an_update_that_json_cannot_hold(make: Make, value: object, named: str, way: str) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        with pytest.raises(InvalidArgument):
            ctx.update(bad=value)
        ctx.update(good=1)
        if way == "update":
            ctx.update(bad=value)
        ctx.replace({"bad": value})

    result = result_of(make, step)
    assert (result["status"], result["good"]) == ("failure", 1)
    assert "InvalidArgument: bad: JSON cannot hold" in result["out"]
    assert named in result["out"]


def test_a_value_that_holds_itself(make: Make) -> None:
    endless: list[Any] = []
    endless.append(endless)
    result = result_of(make, lambda args, ctx: {"status": "success", "bad": endless})
    assert result["status"] == "failure"
    assert "bad: JSON cannot hold what is nested so deeply" in result["out"]


def test_what_json_can_hold_comes_back_equal(make: Make, tmp_path: Path) -> None:
    class Text(str):
        pass

    fields: dict[str, Any] = {
        "none": None, "list": [1, 1.5, True, "é\n\0"], "dict": {"": {}}, "time": "12:00",
        "big": 2**64 - 1, "low": -(2**63),
        "text": Text("text"), "status too": Status.DEAD, "ordered": OrderedDict(a=1),
        "outputs": {(1, 1): {"status": "success", "outputs": {(1, 1, 1): {}}}},
        "first_updated_at": datetime(2020, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    pipeline = make(ok(**fields), home=tmp_path)
    pipeline.run()
    kept = pipeline.state.step_results(1)[(1,)]
    assert kept.pop("most_recent_update_at") <= datetime.now(UTC)
    assert kept == {"status": "success", **fields}
    assert make(home=tmp_path).state.step_results(1)[(1,)]["text"] == "text"


def test_timestamps(make: Make) -> None:
    before = datetime.now(UTC)
    pipeline = make(ok())
    pipeline.run()
    kept = pipeline.state.step_results(1)[(1,)]
    assert before <= kept["first_updated_at"] <= kept["most_recent_update_at"] <= datetime.now(UTC)
    assert kept["first_updated_at"].tzinfo is UTC


# -- Exceptions


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit("broken"), KeyboardInterrupt("broken")])
@pytest.mark.parametrize("parallel", [False, True])
def test_an_exception(make: Make, error: BaseException, parallel: bool) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(out="said", a=1)
        raise error

    pipeline = make(in_parallel(step) if parallel else run(step))
    book = Book(pipeline.bus)
    finished = pipeline.run()
    result = book.finished((1, 1)).final_result
    assert finished.status == "failure"
    assert (result["status"], result["a"]) == ("failure", 1)
    assert result["out"].startswith("said\nTraceback (most recent call last):\n")
    assert f"{type(error).__name__}: broken" in result["out"]


@pytest.mark.parametrize("call", [sys.exit, lambda: sys.exit(0), lambda: [][1], lambda: Path("\0").read_text()])
def test_other_ends(make: Make, call: Callable[[], object]) -> None:
    result = result_of(make, lambda args, ctx: call())
    assert result["status"] == "failure"
    assert "Traceback" in result["out"]


def test_an_exception_whose_text_is_none(make: Make) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    def step(args: Any, ctx: StepContext) -> Any:
        raise ValueError("\ud800") from Odd()

    result = result_of(make, step)
    assert "ValueError: \\ud800" in result["out"]


async def coroutine_function(args: Any, ctx: StepContext) -> Any:
    return {"status": "success"}


class Coroutine:
    async def __call__(self, args: Any, ctx: StepContext) -> Any:
        return {"status": "success"}


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (lambda: {"status": "success"}, "too many positional arguments"),
        (lambda args, ctx, more: {"status": "success"}, "missing a required argument: 'more'"),
        (coroutine_function, "no coroutine function"),
        (Coroutine(), "no coroutine function"),
        (partial(coroutine_function), "no coroutine function"),
        ("a step", "a function of arguments and context"),
    ],
)
def test_a_step_that_cannot_be_called_so_is_refused(step: Any, why: str) -> None:
    for container in (in_parallel, chain, run):
        with pytest.raises(InvalidArgument, match=why):
            container(step)
    with pytest.raises(InvalidArgument, match=why):
        Pipeline([step])


def test_what_a_thread_left_behind_changes_is_not_what_was_told(make: Make) -> None:
    told: dict[str, Any] = {"status": "success", "lines": ["one"], "deep": {"by": [1, (2, 3)]}}
    pipeline = make(lambda args, ctx: told)
    finished = pipeline.start().result(PATIENCE)
    told["lines"].append("two")
    told["deep"]["by"][1:] = []
    assert finished.outputs[(1,)] == {"status": "success", "lines": ["one"], "deep": {"by": [1, (2, 3)]}}


class Hostile:
    """Ends the program when it is looked at."""

    def __repr__(self) -> str:
        raise SystemExit(3)


class HostileDict(dict[str, Any]):
    def items(self) -> Any:
        raise SystemExit(3)


@pytest.mark.parametrize("returned", [Hostile(), HostileDict(status="success"), {"status": "success", "it": Hostile()}])
def test_a_result_that_cannot_be_looked_at_is_a_failure(make: Make, returned: Any) -> None:
    pipeline = make(ok(), lambda args, ctx: returned)
    book = Book(pipeline.bus)
    finished = pipeline.start().result(PATIENCE)
    assert [result["status"] for result in finished.outputs.values()] == ["success", "failure"]
    assert "SystemExit" in finished.outputs[(2,)]["out"]
    assert book.lines()[-1] == ("ended", "failure")


@pytest.mark.parametrize("status", ["compiling", 3, None, ["success"]])
def test_an_update_of_unknown_status_is_the_steps_error(make: Make, status: Any) -> None:
    def step(args: Any, ctx: StepContext) -> Any:
        for tell in (lambda: ctx.update(status=status), lambda: ctx.replace({"status": status})):
            with pytest.raises(InvalidArgument, match="unknown status"):
                tell()
        return {"status": "success"}

    assert result_of(make, step)["status"] == "success"


# -- Subscribers that raise


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit("mine"), KeyboardInterrupt("mine")])
@pytest.mark.rxbus_allow("failures")
def test_subscribers_that_raise_are_logged_and_reach_nobody(
    make: Make, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fail(event: Any) -> None:
        raise error

    def step(args: Any, ctx: StepContext) -> Any:
        ctx.update(a=1)
        return {"status": "success"}

    pipeline = make(step, in_parallel(step, step))
    book = Book(pipeline.bus)
    failing = pipeline.bus.subscribe(">").subscribe(fail)
    with caplog.at_level(logging.ERROR, "rxbus.pipeline"):
        finished = pipeline.start().result(PATIENCE)
    failing.dispose()
    assert finished.status == "success"
    assert book.of(topics.PIPELINE_FINISHED) == [finished]
    assert len(book.of(topics.STEP_FINISHED)) == 4
    assert set(pipeline.state.step_results(1)) == {(1,), (2,), (1, 2), (2, 2)}
    assert any(record.exc_info and record.exc_info[1] is error for record in caplog.records)
    for topic in ("pipeline-started", "step-started", "step-result-updated", "step-finished", "pipeline-finished"):
        assert topic in caplog.text


@pytest.mark.rxbus_allow("failures")
def test_subscribers_that_raise_while_updates_are_sampled(make: Make) -> None:
    told = threading.Event()

    def fail(event: Any) -> None:
        if event.payload.step_result.get("n") == 3:
            told.set()
        raise SystemExit

    def step(args: Any, ctx: StepContext) -> Any:
        for n in range(4):
            ctx.update(n=n)
        return {"status": "success" if told.wait(PATIENCE) else "failure"}

    pipeline = make(step, step, updates_per_second=50)
    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(fail)
    assert pipeline.run().status == "success"


# -- The context


def test_what_a_step_sees(make: Make) -> None:
    contexts = []

    def step(args: Any, ctx: StepContext) -> Any:
        contexts.append((ctx.build_number, ctx.step_id, ctx.bus, ctx.killed, ctx.wait_killed(0), ctx.cwd))
        return {"status": "success"}

    pipeline = make(step, run(ok(), step))
    pipeline.run()
    rest = (pipeline.bus, False, False, Path.cwd())
    assert contexts == [(1, (1,), *rest), (1, (2, 2), *rest)]


def test_the_bus_closed_in_the_midst_fails_the_build_and_nothing_hangs(make: Make) -> None:
    with EventBus() as bus:
        closed, inside = threading.Event(), threading.Barrier(3)

        def step(args: Any, ctx: StepContext) -> Any:
            inside.wait(PATIENCE)
            assert closed.wait(PATIENCE)
            return {"status": "success"}

        pipeline = make(in_parallel(either(step), either(step)), bus=bus)
        build = pipeline.start()
        inside.wait(PATIENCE)
        bus.close()
        closed.set()
        assert type(build.exception(PATIENCE)).__name__ == "BusClosed"
        pipeline.shutdown()
