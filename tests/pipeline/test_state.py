"""The state component on the bus: what it takes in, tells and gives, in memory and on disk alike."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from rxbus import EventBus, InvalidArgument
from rxbus.pipeline._results import Result, StepId
from rxbus.pipeline._state import State
from rxbus.pipeline._structure import StepStructure
from rxbus.pipeline.errors import DamagedState, PipelineClosed, StructureChanged, UnknownBuild, UnknownStep
from rxbus.pipeline.topics import (
    PIPELINE_FINISHED,
    STEP_RESULT_UPDATE_CONSUMED,
    STEP_RESULT_UPDATED,
    PipelineFinished,
    StepResultUpdated,
)

PATIENCE = 10.0

STRUCTURE = (
    StepStructure((1,), "compile", "step"),
    StepStructure((2,), "checks", "in_parallel", (StepStructure((1, 2), "unit tests", "step"),)),
)

Open = Callable[..., State]


@pytest.fixture(params=["memory", "disk"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "builds" if request.param == "disk" else None


@pytest.fixture
def open_state(bus: EventBus) -> Iterator[Open]:
    states: list[State] = []

    def open_one(home: Path | None, max_builds: int | None = None) -> State:
        states.append(State(bus, home, max_builds))
        return states[-1]

    yield open_one
    for state in states:
        state.close()


@pytest.fixture
def state(open_state: Open, home: Path | None) -> State:
    return open_state(home)


def update(bus: EventBus, number: int, step_id: StepId, **result: Any) -> None:
    bus.publish(STEP_RESULT_UPDATED, StepResultUpdated(number, step_id, result))


def finish(bus: EventBus, number: int) -> None:
    bus.publish(PIPELINE_FINISHED, PipelineFinished(number, "success", {}))  # type: ignore[arg-type]


def untimed(results: dict[StepId, Result]) -> dict[StepId, Result]:
    """The results without the times that the state sets."""
    for result in results.values():
        assert result.pop("first_updated_at") <= result.pop("most_recent_update_at")
    return results


# -- Builds


def test_builds_are_numbered_from_one(state: State) -> None:
    assert state.build_numbers() == []
    assert [state.new_build(STRUCTURE) for _ in range(12)] == list(range(1, 13))
    assert state.build_numbers() == list(range(1, 13))


def test_numbers_are_unique_among_threads(state: State, spawn: Any) -> None:
    barrier = threading.Barrier(8)

    def make() -> list[int]:
        barrier.wait(PATIENCE)
        return [state.new_build(()) for _ in range(10)]

    made = [spawn(make) for _ in range(8)]
    assert sorted(number for future in made for number in future.result(PATIENCE * 3)) == list(range(1, 81))


def test_a_build_keeps_its_structure(state: State) -> None:
    first, second = state.new_build(STRUCTURE, {"summary": "nightly"}), state.new_build(())
    assert state.structure(first) == STRUCTURE
    assert state.structure(second) == ()


def test_a_build_keeps_its_arguments(state: State, caplog: pytest.LogCaptureFixture) -> None:
    first, second = state.new_build((), {"branch": "main", "deep": {"list": (1, 2)}}), state.new_build(())
    assert state.args(first) == {"branch": "main", "deep": {"list": [1, 2]}}
    assert state.args(second) == {}
    assert caplog.text == ""


def test_arguments_that_json_cannot_hold_are_told_of_when_they_are_missed(
    state: State, caplog: pytest.LogCaptureFixture
) -> None:
    number = state.new_build((), {"by": object(), "branch": "main"})
    assert caplog.text == ""
    assert state.args(number) == {"branch": "main"}
    assert "'by'" in caplog.text


@pytest.mark.parametrize("number", [0, -1, 2, "1", None, "../build-1"])
def test_unknown_builds(state: State, number: Any) -> None:
    state.new_build(())
    for ask in (state.step_results, state.structure, state.args, state.build_path):
        with pytest.raises(UnknownBuild) as caught:
            ask(number)
        assert caught.value.build_number == number
    assert isinstance(caught.value, LookupError)


def test_where_a_build_has_its_files(state: State, home: Path | None) -> None:
    path = state.build_path(state.new_build(()))
    assert path == (None if home is None else home.resolve() / "build-1")


def test_a_relative_home_is_resolved_at_construction(
    open_state: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = open_state(Path("builds"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert state.build_path(state.new_build(())) == (tmp_path / "builds" / "build-1").resolve()


# -- Updates


def test_the_latest_result_of_each_step(bus: EventBus, state: State) -> None:
    first, second = state.new_build(()), state.new_build(())
    update(bus, first, (1,), status="running", out="a")
    update(bus, first, (1, 2), status="running")
    update(bus, second, (1,), status="waiting")
    update(bus, first, (1,), status="success", tests=42)
    assert untimed(state.step_results(first)) == {
        (1,): {"status": "success", "tests": 42},
        (1, 2): {"status": "running"},
    }
    assert untimed(state.step_results(second)) == {(1,): {"status": "waiting"}}


def test_a_build_without_updates_has_no_results(bus: EventBus, state: State) -> None:
    number = state.new_build(())
    assert state.step_results(number) == {}
    finish(bus, number)
    assert state.step_results(number) == {}


def test_outputs_keep_their_step_ids(bus: EventBus, state: State) -> None:
    number = state.new_build(())
    moment = datetime(2024, 2, 29, 12, 30, 1, 123456, UTC)
    outputs = {(1, 2): {"status": "success", "first_updated_at": moment, "outputs": {(1, 1, 2): {"status": "killed"}}}}
    update(bus, number, (2,), status="success", outputs=outputs)
    assert untimed(state.step_results(number)) == {(2,): {"status": "success", "outputs": outputs}}
    finish(bus, number)
    assert untimed(state.step_results(number)) == {(2,): {"status": "success", "outputs": outputs}}


def test_times_are_set(bus: EventBus, state: State) -> None:
    number = state.new_build(())
    before = datetime.now(UTC)
    update(bus, number, (1,), status="running")
    between = datetime.now(UTC)
    update(bus, number, (1,), status="success")
    result = state.step_results(number)[1,]
    assert before <= result["first_updated_at"] <= between <= result["most_recent_update_at"] <= datetime.now(UTC)
    assert result["first_updated_at"].tzinfo == UTC
    finish(bus, number)
    update(bus, number, (1,), status="failure")
    assert state.step_results(number)[1,]["first_updated_at"] == result["first_updated_at"]


def test_times_that_are_present_are_kept(bus: EventBus, state: State) -> None:
    number = state.new_build(())
    first = datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2)))
    last = datetime(2020, 1, 2, 3, 4, 5, 678901, UTC)
    update(bus, number, (1,), status="success", first_updated_at=first, most_recent_update_at=last)
    update(bus, number, (2,), status="success", first_updated_at="yesterday", most_recent_update_at=None)
    results = state.step_results(number)
    assert (results[1,]["first_updated_at"], results[1,]["most_recent_update_at"]) == (first, last)
    assert results[2,]["first_updated_at"] == results[2,]["most_recent_update_at"] > last
    update(bus, number, (1,), status="success")
    result = state.step_results(number)[1,]
    assert result["first_updated_at"] == first < result["most_recent_update_at"]


def test_results_are_copies(bus: EventBus, state: State) -> None:
    number = state.new_build(())
    given = {"status": "running", "list": [1]}
    bus.publish(STEP_RESULT_UPDATED, StepResultUpdated(number, (1,), given))
    given["list"].append(2)  # type: ignore[attr-defined]
    state.step_results(number)[1,]["list"].append(3)
    state.step_results(number).clear()
    assert state.step_results(number)[1,]["list"] == [1]


def test_an_update_to_a_build_that_has_ended_is_taken_in(bus: EventBus, state: State) -> None:
    number = state.new_build(())
    update(bus, number, (1,), status="success")
    finish(bus, number)
    finish(bus, number)
    update(bus, number, (2,), status="failure", out="late")
    update(bus, number, (2,), status="failure", out="later")
    assert untimed(state.step_results(number)) == {
        (1,): {"status": "success"},
        (2,): {"status": "failure", "out": "later"},
    }


def test_what_nobody_runs_is_dead(bus: EventBus, state: State) -> None:
    number, closed = state.new_build(()), state.new_build(())
    for step_id, status in (((1,), "waiting"), ((2,), "running"), ((3,), "killed"), ((4,), "unknown")):
        update(bus, number, step_id, status=status)
    update(bus, number, (5,), status="running", outputs={(1, 5): {"status": "running"}, (2, 5): {"status": "success"}})
    update(bus, number, (6,), status="failure", outputs={"1": 5, "host": {"status": "running"}})
    update(bus, closed, (1,), status="running")
    finish(bus, number)
    assert untimed(state.step_results(number)) == {
        (1,): {"status": "dead"},
        (2,): {"status": "dead"},
        (3,): {"status": "killed"},
        (4,): {"status": "unknown"},
        (5,): {"status": "dead", "outputs": {(1, 5): {"status": "dead"}, (2, 5): {"status": "success"}}},
        (6,): {"status": "failure", "outputs": {"1": 5, "host": {"status": "running"}}},
    }
    assert state.step_results(closed)[1,]["status"] == "running"
    state.close()
    assert state.step_results(closed)[1,]["status"] == "dead"


# -- What is told


def test_consumed_is_the_same_payload_and_the_state_knows_it(bus: EventBus, state: State) -> None:
    number = state.new_build(())
    seen: list[tuple[object, Result]] = []

    @bus.on(STEP_RESULT_UPDATE_CONSUMED)
    def look(event: Any) -> None:
        seen.append((event.payload, untimed(state.step_results(number))[1,]))

    payloads = [StepResultUpdated(number, (1,), {"status": "running", "count": count}) for count in range(5)]
    for payload in payloads:
        bus.publish(STEP_RESULT_UPDATED, payload)
    assert [payload for payload, _ in seen] == payloads
    assert all(mine is theirs for (mine, _), theirs in zip(seen, payloads, strict=True))
    assert [result for _, result in seen] == [payload.step_result for payload in payloads]


@pytest.mark.parametrize("failure", [ValueError("mine"), SystemExit(3)])
@pytest.mark.rxbus_allow("failures")
def test_consumers_that_fail_reach_nobody(
    bus: EventBus, state: State, failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    number = state.new_build(())

    def fail(event: Any) -> None:
        raise failure

    seen: list[Any] = []
    bus.subscribe(STEP_RESULT_UPDATE_CONSUMED).subscribe(fail)
    bus.subscribe(STEP_RESULT_UPDATE_CONSUMED).subscribe(seen.append)
    for count in range(3):
        update(bus, number, (1,), status="running", count=count)
    assert state.step_results(number)[1,]["count"] == 2
    assert len(seen) == 3
    assert "an observer of 'step-result-update-consumed' has failed" in caplog.text


def test_an_interrupt_of_a_consumer_is_passed_on(bus: EventBus, state: State) -> None:
    number = state.new_build(())

    def interrupt(event: Any) -> None:
        raise KeyboardInterrupt

    bus.subscribe(STEP_RESULT_UPDATE_CONSUMED).subscribe(interrupt)
    with pytest.raises(KeyboardInterrupt):
        update(bus, number, (1,), status="running")
    assert state.step_results(number)[1,]["status"] == "running"


def cyclic() -> list[Any]:
    """A value that has no end."""
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [object(), "\ud800", cyclic()],
    ids=["object", "surrogate", "endless"],
)
@pytest.mark.rxbus_allow("failures")
def test_what_cannot_be_written_is_left_out(
    bus: EventBus, state: State, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    number = state.new_build(())
    seen: list[Any] = []
    bus.subscribe(STEP_RESULT_UPDATE_CONSUMED).subscribe(lambda event: seen.append(event.payload.step_result))
    update(bus, number, (1,), status="running", odd=value, out="x")
    assert seen[0]["odd"] is value
    assert untimed(state.step_results(number)) == {(1,): {"status": "running", "out": "x"}}
    assert "build 1, step (1,): JSON cannot hold 'odd'" in caplog.text
    update(bus, number, (1,), status="success")
    finish(bus, number)
    assert untimed(state.step_results(number)) == {(1,): {"status": "success"}}


@pytest.mark.parametrize(
    "payload",
    [None, StepResultUpdated(1, "1", {}), StepResultUpdated(1, (), {}), StepResultUpdated(1, (1,), None)],  # type: ignore[arg-type]
)
@pytest.mark.rxbus_allow("failures")
def test_an_odd_update_does_no_harm(
    bus: EventBus, state: State, payload: Any, caplog: pytest.LogCaptureFixture
) -> None:
    number = state.new_build(())
    seen: list[Any] = []
    bus.subscribe(STEP_RESULT_UPDATE_CONSUMED).subscribe(seen.append)
    bus.publish("step-result-updated", payload)
    bus.publish("pipeline-finished", payload and payload.step_result)
    assert seen == []
    assert "an update is not in the state" in caplog.text
    update(bus, number, (1,), status="running")
    assert untimed(state.step_results(number)) == {(1,): {"status": "running"}}


def test_updates_of_no_build_are_not_consumed(bus: EventBus, state: State, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rxbus.pipeline")
    seen: list[Any] = []
    bus.subscribe(STEP_RESULT_UPDATE_CONSUMED).subscribe(seen.append)
    update(bus, 7, (1,), status="running")
    finish(bus, 7)
    assert seen == []
    assert state.build_numbers() == []
    assert "there is no build 7" in caplog.text


# -- max_builds


def test_the_highest_builds_are_kept(bus: EventBus, open_state: Open, home: Path | None) -> None:
    state = open_state(home, 2)
    for _ in range(12):
        number = state.new_build(())
        update(bus, number, (1,), status="success")
        finish(bus, number)
    assert state.build_numbers() == [11, 12]
    with pytest.raises(UnknownBuild):
        state.step_results(10)
    assert state.new_build(()) == 13
    if home is not None:
        names = sorted(path.name for path in home.iterdir())
        assert names == ["build-11", "build-12", "build-13", "last-build-number"]


def test_running_builds_are_not_removed(bus: EventBus, open_state: Open, home: Path | None) -> None:
    state = open_state(home, 1)
    running, ended, last = (state.new_build(()) for _ in range(3))
    finish(bus, ended)
    assert state.build_numbers() == [running, last]
    update(bus, running, (1,), status="success")
    assert untimed(state.step_results(running)) == {(1,): {"status": "success"}}
    finish(bus, running)
    assert state.build_numbers() == [last]


def test_a_removed_build_does_not_come_back(bus: EventBus, open_state: Open, home: Path | None) -> None:
    state = open_state(home, 1)
    removed, last = state.new_build(()), state.new_build(())
    finish(bus, removed)
    seen: list[Any] = []
    bus.subscribe(STEP_RESULT_UPDATE_CONSUMED).subscribe(seen.append)
    update(bus, removed, (1,), status="success")
    finish(bus, removed)
    assert seen == []
    assert state.build_numbers() == [last]
    if home is not None:
        assert not (home / "build-1").exists()


@pytest.mark.parametrize("number", [0, -1, "2", 1.5])
def test_max_builds_that_cannot_be_meant(bus: EventBus, number: Any) -> None:
    with pytest.raises(InvalidArgument):
        State(bus, None, number)


# -- The end


def test_closing(bus: EventBus, state: State) -> None:
    number = state.new_build(STRUCTURE)
    update(bus, number, (1,), status="success")
    state.close()
    state.close()
    assert bus.publish(STEP_RESULT_UPDATED, StepResultUpdated(number, (1,), {"status": "failure"})).acknowledged == 0
    assert untimed(state.step_results(number)) == {(1,): {"status": "success"}}
    assert state.structure(number) == STRUCTURE
    assert state.build_numbers() == [number]
    with pytest.raises(PipelineClosed):
        state.new_build(())


def test_everything_is_equal_after_a_restart(bus: EventBus, open_state: Open, tmp_path: Path) -> None:
    state = open_state(tmp_path)
    ended, unfinished = state.new_build(STRUCTURE), state.new_build(STRUCTURE)
    values = {"text": "ä\n\u2028\x00", "float": 0.1, "large": 2**70, "nested": {"a": [None, True, {}]}}
    for number in (ended, unfinished):
        update(bus, number, (1, 2, 3), status="success", **values)
    finish(bus, ended)
    before = state.step_results(ended), state.step_results(unfinished)
    state.close()
    again = open_state(tmp_path)
    assert (again.step_results(ended), again.step_results(unfinished)) == before
    assert again.structure(ended) == STRUCTURE
    assert again.build_numbers() == [ended, unfinished]
    assert again.new_build(()) == unfinished + 1


def test_times_without_a_zone_are_none(bus: EventBus, state: State) -> None:
    number = state.new_build(())
    update(bus, number, (1,), status="success", first_updated_at=datetime(2020, 1, 1))
    assert state.step_results(number)[1,]["first_updated_at"].tzinfo is not None


# -- Errors


def test_errors_are_made_of_their_attributes() -> None:
    assert str(UnknownBuild(7)) == "there is no build 7"
    assert str(UnknownStep(7, (1, 2))) == "build 7 has no step (1, 2), or did not come to it"
    assert str(StructureChanged(7, "x")) == "build 7 had other steps than the pipeline has now: x"
    assert str(DamagedState(Path("a/b.json"), "torn")) == f"{Path('a/b.json')} is damaged: torn"
    assert str(PipelineClosed()) == "the pipeline has been shut down"
