"""Topics: their names and payloads, and their JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

import msgspec
import pytest

from rxbus import Topic
from rxbus.pipeline import Status, topics

NOW = datetime(2024, 5, 1, 12, 30, 1, 2, tzinfo=UTC)
RESULT = {
    "status": "success",
    "first_updated_at": NOW,
    "most_recent_update_at": NOW,
    "outputs": {(1, 2): {"status": "success", "outputs": {(3, 1, 2): {"n": 1, "first_updated_at": NOW}}}},
    "list": [{"a": None}, 1.5, True],
}


@pytest.mark.parametrize(
    ("topic", "name", "kind", "fields"),
    [
        (topics.PIPELINE_STARTED, "pipeline-started", topics.PipelineStarted, "build_number"),
        (topics.STEP_STARTED, "step-started", topics.StepStarted, "build_number step_id"),
        (topics.STEP_RESULT_UPDATED, "step-result-updated", topics.StepResultUpdated,
         "build_number step_id step_result"),
        (topics.STEP_RESULT_UPDATE_CONSUMED, "step-result-update-consumed", topics.StepResultUpdated,
         "build_number step_id step_result"),
        (topics.STEP_FINISHED, "step-finished", topics.StepFinished,
         "build_number step_id final_result rerun_for_retrigger"),
        (topics.PIPELINE_FINISHED, "pipeline-finished", topics.PipelineFinished, "build_number status outputs"),
        (topics.MANUAL_TRIGGER_RECEIVED, "manual-trigger-received", topics.ManualTriggerReceived,
         "trigger_id parameters"),
        (topics.KILL_STEP, "kill-step", topics.KillStep, "build_number step_id"),
        (topics.STOP_RUNNER, "stop-runner", topics.StopRunner, ""),
    ],
)  # fmt: skip
def test_names_and_fields(topic: Topic[Any], name: str, kind: type[msgspec.Struct], fields: str) -> None:
    assert isinstance(topic, Topic)
    assert topic.name == name
    assert kind.__struct_fields__ == tuple(fields.split())
    assert kind.__struct_config__.frozen


@pytest.mark.parametrize(
    "payload",
    [
        topics.PipelineStarted(3),
        topics.StepStarted(3, (1, 2)),
        topics.StepResultUpdated(3, (1, 2), RESULT),
        topics.StepFinished(3, (2,), RESULT, True),
        topics.PipelineFinished(3, Status.FAILURE, {(2,): RESULT, (1,): {}}),
        topics.ManualTriggerReceived("abc", {"version": "1.2"}),
        topics.ManualTriggerReceived("abc"),
        topics.KillStep(1, (1, 2)),
        topics.KillStep(),
        topics.StopRunner(),
    ],
)
def test_payloads_come_back_from_json(payload: msgspec.Struct) -> None:
    data = topics.encode(payload)
    json.loads(data)
    assert topics.decode(data, type(payload)) == payload
    assert topics.decode(data.decode(), type(payload)) == payload
    assert topics.decode(data, Topic("any", type(payload))) == payload


def test_the_json() -> None:
    finished = topics.PipelineFinished(3, Status.SUCCESS, {(1, 2): {"status": "success", "first_updated_at": NOW}})
    assert json.loads(topics.encode(finished)) == {
        "build_number": 3,
        "status": "success",
        "outputs": {"1-2": {"status": "success", "first_updated_at": "2024-05-01T12:30:01.000002Z"}},
    }


def test_what_steps_call_by_known_names_themselves_stays() -> None:
    result = {"outputs": {"jar": "a.jar"}, "first_updated_at": "yesterday"}
    assert topics.decode(topics.encode(result), dict) == result


def test_kinds_of_strings_and_numbers_become_those() -> None:
    class Text(str):
        def __str__(self) -> str:
            return "something else"

    class Whole(int):
        pass

    class Real(float):
        pass

    class Word(StrEnum):
        ONE = "one"

    class Number(IntEnum):
        ONE = 1

    kinds = [Text("text"), Whole(2), Real(1.5), Word.ONE, Number.ONE]
    assert topics.decode(topics.encode(kinds), list) == ["text", 2, 1.5, "one", 1]


@pytest.mark.parametrize("value", [object(), {object(): 1}, lambda: 1, "\ud800"])
def test_what_json_cannot_hold(value: object) -> None:
    with pytest.raises((TypeError, UnicodeEncodeError)):
        topics.encode({"value": value})


@pytest.mark.parametrize("data", ["{", '{"build_number": "x"}', "[]"])
def test_what_is_no_payload(data: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        topics.decode(data, topics.PipelineStarted)


@pytest.mark.parametrize(
    "own", [{"1": "a.whl"}, {"1": {"a": 1}, "log": {}}, ["1"], "1", {"1": None}, {"01": {}}, {"": {}}]
)
def test_what_a_step_calls_outputs_of_its_own_comes_back_equal(own: Any) -> None:
    told = topics.StepFinished(1, (1,), {"status": "success", "outputs": own, "in": [{"outputs": {"1": {}}}]})
    assert topics.decode(topics.encode(told), topics.StepFinished) == told
