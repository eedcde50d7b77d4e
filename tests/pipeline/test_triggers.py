"""Triggers: steps that wait for an answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any
from uuid import UUID

import pytest

from rxbus import EventBus, InvalidArgument
from rxbus.pipeline import Pipeline, either, parameterized_trigger, post_trigger, run, topics, wait_for_manual_trigger
from tests.pipeline.recording import PATIENCE, Book, Sees, ok

Make = Callable[..., Pipeline]


def trigger_ids(pipeline: Pipeline) -> SimpleQueue[str]:
    ids: SimpleQueue[str] = SimpleQueue()

    def look(event: Any) -> None:
        result = event.payload.step_result
        if "trigger_id" in result and result["status"] == "waiting":
            ids.put(result["trigger_id"])

    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(look)
    return ids


@pytest.mark.rxbus_allow("failures")
def test_a_kill_that_is_interrupted_ends_it_nevertheless(make: Make) -> None:
    pipeline = make(wait_for_manual_trigger)
    ids = trigger_ids(pipeline)

    def interrupted(event: Any) -> None:
        if event.payload.step_result.get("received_kill"):
            raise KeyboardInterrupt

    build = pipeline.start()
    ids.get(timeout=PATIENCE)
    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.kill_all()
    assert build.result(PATIENCE).status == "killed"


@pytest.mark.parametrize("per_second", [None, 20])
def test_it_waits_for_its_trigger(make: Make, per_second: float | None) -> None:
    pipeline = make(wait_for_manual_trigger, updates_per_second=per_second)
    book, ids = Book(pipeline.bus), trigger_ids(pipeline)
    build = pipeline.start()
    trigger_id = ids.get(timeout=PATIENCE)
    UUID(trigger_id)
    waiting = {
        "status": "waiting",
        "trigger_id": trigger_id,
        "out": "Waiting for trigger...",
        "has_been_waiting": True,
    }
    assert book.updates((1,))[-1] == waiting
    post_trigger(pipeline.bus, "another", {"a": 0})
    assert not build.done()
    post_trigger(pipeline.bus, trigger_id, {"a": 1, "status": "failure"})
    assert build.result(PATIENCE).outputs == {(1,): {**waiting, "status": "success", "a": 1}}
    assert book.of(topics.MANUAL_TRIGGER_RECEIVED) == [
        topics.ManualTriggerReceived("another", {"a": 0}),
        topics.ManualTriggerReceived(trigger_id, {"a": 1, "status": "failure"}),
    ]


def test_an_answer_without_parameters(make: Make) -> None:
    pipeline = make(wait_for_manual_trigger)
    ids = trigger_ids(pipeline)
    build = pipeline.start()
    post_trigger(pipeline.bus, ids.get(timeout=PATIENCE))
    assert build.result(PATIENCE).status == "success"


def test_it_may_be_answered_by_whoever_hears_of_it_first(make: Make) -> None:
    pipeline = make(wait_for_manual_trigger, parameterized_trigger({"version": {"desc": "which"}}))

    def answer(event: Any) -> None:
        result = event.payload.step_result
        if result["status"] == "waiting":
            post_trigger(pipeline.bus, result["trigger_id"], {"version": 3})

    pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(answer)
    finished = pipeline.start().result(PATIENCE)
    assert [result["version"] for result in finished.outputs.values()] == [3, 3]
    first, second = (result["trigger_id"] for result in finished.outputs.values())
    assert first != second


def test_the_parameters_are_told_before(make: Make) -> None:
    pipeline = make(parameterized_trigger({"version": {"desc": "which"}}))
    book, ids = Book(pipeline.bus), trigger_ids(pipeline)
    build = pipeline.start()
    post_trigger(pipeline.bus, ids.get(timeout=PATIENCE), {"version": "1.2"})
    result = build.result(PATIENCE).outputs[(1,)]
    assert (result["version"], result["parameters"]) == ("1.2", {"version": {"desc": "which"}})
    assert book.updates((1,))[1] == {"status": "running", "parameters": {"version": {"desc": "which"}}}
    assert book.updates((1,))[2]["status"] == "waiting"


@pytest.mark.parametrize("inside", [lambda step: step, run, either])
def test_a_kill_ends_it(make: Make, inside: Callable[..., Any]) -> None:
    pipeline = make(inside(wait_for_manual_trigger))
    ids = trigger_ids(pipeline)
    build = pipeline.start()
    trigger_id = ids.get(timeout=PATIENCE)
    observers = pipeline.bus.statistics().observers
    pipeline.kill(1, (1,))
    assert build.result(1).status == "killed"
    assert pipeline.bus.statistics().observers < observers
    post_trigger(pipeline.bus, trigger_id)


def test_the_parameters_are_the_next_steps_args(make: Make) -> None:
    sees = Sees()
    pipeline = make(wait_for_manual_trigger, sees, ok())
    ids = trigger_ids(pipeline)
    build = pipeline.start()
    post_trigger(pipeline.bus, ids.get(timeout=PATIENCE), {"version": 3, "global": {"g": 1}})
    build.result(PATIENCE)
    assert (sees.args[0]["version"], sees.args[0]["global"]) == (3, {"g": 1})


def test_an_answer_that_json_cannot_hold_is_a_failure(make: Make) -> None:
    pipeline = make(wait_for_manual_trigger)
    ids = trigger_ids(pipeline)
    build = pipeline.start()
    trigger_id, parameters = ids.get(timeout=PATIENCE), {"x": threading.Lock()}
    with pytest.raises(InvalidArgument, match="x: JSON cannot hold"):
        post_trigger(pipeline.bus, trigger_id, parameters)
    assert not build.done()
    pipeline.bus.publish(topics.MANUAL_TRIGGER_RECEIVED, topics.ManualTriggerReceived(trigger_id, parameters))
    result = build.result(PATIENCE).outputs[(1,)]
    assert result["status"] == "failure"
    assert "x: JSON cannot hold" in result["out"]


def test_two_wait_at_once(make: Make) -> None:
    pipeline = make(wait_for_manual_trigger)
    ids = trigger_ids(pipeline)
    builds = [pipeline.start(), pipeline.start()]
    posted = [ids.get(timeout=PATIENCE), ids.get(timeout=PATIENCE)]
    for n, trigger_id in enumerate(posted):
        post_trigger(pipeline.bus, trigger_id, {"n": n})
    results = [build.result(PATIENCE).outputs[(1,)] for build in builds]
    assert sorted((posted.index(result["trigger_id"]), result["n"]) for result in results) == [(0, 0), (1, 1)]


@pytest.mark.parametrize("parameters", [5, None, {"a": object()}])
def test_what_are_no_parameters_is_refused(parameters: Any) -> None:
    with pytest.raises(InvalidArgument):
        parameterized_trigger(parameters)


@pytest.mark.parametrize(("trigger_id", "parameters"), [(5, {}), ("x", 5), ("x", "ab")])
def test_what_is_no_answer_is_refused(trigger_id: Any, parameters: Any, bus: EventBus) -> None:
    with pytest.raises(InvalidArgument):
        post_trigger(bus, trigger_id, parameters)
