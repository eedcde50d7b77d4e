"""Results: statuses, merging, and the helpers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rxbus.pipeline import PipelineFinished, Status, StepId, failed_steps, flatten_outputs
from rxbus.pipeline._results import all_must_succeed, is_below, merged, step_id_of, text_of, unified
from tests.pipeline.recording import bad, ok


def test_a_status_equals_its_string() -> None:
    assert [str(status) for status in Status] == [
        "success", "failure", "running", "waiting", "killed", "dead", "unknown",
    ]  # fmt: skip
    assert {Status.KILLED: 1} == {"killed": 1}
    assert Status("waiting") is Status.WAITING


@pytest.mark.parametrize(
    ("step_id", "ancestor", "below"),
    [
        ((1,), (1,), True),
        ((2, 1), (1,), True),
        ((3, 2, 1), (2, 1), True),
        ((3, 2, 1), (1,), True),
        ((1,), (2, 1), False),
        ((1, 2), (1,), False),
        ((2, 1), (2,), False),
        ((3,), (), True),
    ],
)
def test_is_below(step_id: tuple[int, ...], ancestor: tuple[int, ...], below: bool) -> None:
    assert is_below(step_id, ancestor) is below


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        (["success", "failure", "waiting", "running"], "running"),
        (["success", "failure", "waiting"], "waiting"),
        (["success", "failure", "killed"], "failure"),
        (["success", "killed"], "success"),
        (["killed", "dead"], "unknown"),
        ([], "unknown"),
    ],
)
def test_unified(statuses: list[str], status: str) -> None:
    assert unified(statuses) == status


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([], "success"),
        (["success", "success"], "success"),
        (["success", "killed"], "killed"),
        (["killed", "failure"], "failure"),
        (["success", "failure"], "failure"),
        (["success", "unknown"], "failure"),
        (["killed", "dead"], "failure"),
    ],
)
def test_all_must_succeed(statuses: list[str], status: str) -> None:
    assert all_must_succeed(statuses) == status


def test_merging() -> None:
    one = {"status": "success", "a": 1, "map": {"x": 1, "deep": {"p": 1}}, "list": [1], "mixed": [1], "out": "one"}
    two = {"status": "failure", "a": 2, "map": {"y": 2, "deep": {"q": 2}}, "list": [2], "mixed": {"b": 1}, "out": "two"}
    assert merged([one, two]) == {
        "a": 2,
        "map": {"x": 1, "y": 2, "deep": {"q": 2}},
        "list": [1, 2],
        "mixed": {"b": 1},
        "out": "two",
    }
    assert one["list"] == [1]
    assert one["map"] == {"x": 1, "deep": {"p": 1}}


def test_what_belongs_to_one_step_is_not_merged() -> None:
    now = datetime.now(UTC)
    own = {"first_updated_at": now, "most_recent_update_at": now, "outputs": {}, "retrigger_mock_for_build_number": 1}
    assert merged([{"status": "success", "a": 1, **own}]) == {"a": 1}


def test_outputs_are_flattened() -> None:
    inner = {(1, 2, 1): {"status": "success"}}
    outputs: dict[StepId, dict[str, Any]] = {
        (1,): {"status": "failure", "outputs": {(1, 1): {"status": "failure"}, (2, 1): {"outputs": inner}}},
        (2,): {"status": "success"},
    }
    flat = flatten_outputs(outputs)
    assert list(flat) == [(1,), (1, 1), (2, 1), (1, 2, 1), (2,)]
    assert flat[(1, 2, 1)] == {"status": "success"}
    assert flat[(1,)] is outputs[(1,)]
    assert flatten_outputs({}) == {}


def test_failed_steps_are_leaves() -> None:
    failure = {"status": "failure"}
    outputs: dict[StepId, dict[str, Any]] = {
        (1,): {**failure, "outputs": {(1, 1): failure, (2, 1): {"status": "killed"}, (3, 1): failure}},
        (2,): {**failure, "outputs": {}},
        (3,): {"status": "success"},
    }
    assert failed_steps(PipelineFinished(1, Status.FAILURE, outputs)) == [(1, 1), (3, 1), (2,)]


@pytest.mark.parametrize("own", ["a.jar", ["a.jar"], {"jar": "a.jar"}, {"jar": {"status": "failure"}}, None, 3])
def test_what_a_step_calls_outputs_itself_is_no_container(own: object) -> None:
    outputs: dict[StepId, dict[str, Any]] = {(1,): {"status": "failure", "outputs": own}}
    assert flatten_outputs(outputs) == outputs
    assert failed_steps(PipelineFinished(1, Status.FAILURE, outputs)) == [(1,)]


def test_outputs_of_a_steps_own_are_no_steps(make: Any) -> None:
    pipeline = make(ok(outputs={"1": "a.whl"}), bad())
    finished = pipeline.run()
    assert failed_steps(finished) == [(2,)]
    assert failed_steps(pipeline.retrigger(1, (2,))) == [(2,)]
    assert pipeline.state.step_results(2)[(1,)]["outputs"] == {"1": "a.whl"}


@pytest.mark.parametrize("text", ["", "1-", "-1", "01", "1.2", "one", "\uff11", "1_0", " 1"])
def test_what_is_no_step_id(text: str) -> None:
    with pytest.raises(ValueError, match="is no step"):
        step_id_of(text)


@given(st.lists(st.integers(0, 10**6), min_size=1).map(tuple))
def test_step_ids_as_text(step_id: tuple[int, ...]) -> None:
    assert step_id_of(text_of(step_id)) == step_id
