"""Updates: which states of a result are published, when, and by whom; in virtual time."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest

from rxbus import BusClosed
from rxbus.pipeline import _updates
from rxbus.pipeline._results import Result
from rxbus.pipeline._updates import Updates
from tests.pipeline.recording import PATIENCE


class Clock:
    """A scheduler that calls when told so, and the time that goes with it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.calls: list[Any] = []

    def schedule_relative(self, seconds: float, action: Any) -> None:
        self.calls.append((self.now + seconds, action))

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        due = [action for at, action in self.calls if at <= self.now + 1e-9]
        self.calls = [call for call in self.calls if call[1] not in due]
        for action in due:
            action(self)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_updates, "monotonic", lambda: clock.now)
    return clock


class Told:
    def __init__(self, clock: Clock, per_second: float | None) -> None:
        self.states: list[Result] = []
        self.updates = Updates(self.states.append, per_second, clock)  # type: ignore[arg-type]

    def set(self, number: int) -> None:
        self.updates.change(lambda result: {**result, "n": number})

    @property
    def numbers(self) -> list[int]:
        return [state["n"] for state in self.states]


def test_every_one(clock: Clock) -> None:
    told = Told(clock, None)
    for number in range(20):
        told.set(number)
    assert told.numbers == list(range(20))
    assert clock.calls == []


def test_the_first_at_once_then_the_latest_per_interval(clock: Clock) -> None:
    told = Told(clock, 10)
    for number in range(5):
        told.set(number)
    assert told.numbers == [0]
    assert len(clock.calls) == 1
    clock.pass_(0.1)
    assert told.numbers == [0, 4]
    told.set(5)
    assert told.numbers == [0, 4]
    clock.pass_(0.1)
    assert told.numbers == [0, 4, 5]
    clock.pass_(1)
    assert told.numbers == [0, 4, 5]
    told.set(6)
    assert told.numbers == [0, 4, 5, 6]


def test_a_clock_that_is_early_is_asked_again(clock: Clock) -> None:
    told = Told(clock, 10)
    told.set(0)
    told.set(1)
    [(_, action)] = clock.calls
    clock.calls = []
    action(clock)
    assert told.numbers == [0]
    clock.pass_(0.1)
    assert told.numbers == [0, 1]


def test_the_last_one_precedes_the_final_at_once(clock: Clock) -> None:
    told = Told(clock, 10)
    for number in range(5):
        told.set(number)
    told.updates.stop()
    assert told.numbers == [0, 4]
    assert told.updates.close({"n": 9}) == {"n": 9}
    assert told.numbers == [0, 4, 9]


@pytest.mark.parametrize("per_second", [None, 10])
def test_nothing_after_the_end(clock: Clock, per_second: float | None) -> None:
    told = Told(clock, per_second)
    told.set(0)
    told.updates.stop()
    told.set(1)
    told.updates.close({"n": 2})
    told.set(3)
    clock.pass_(1)
    assert told.numbers == [0, 2]
    assert told.updates.result == {"n": 2}


def test_the_same_is_not_told_again(clock: Clock) -> None:
    told = Told(clock, None)
    told.set(0)
    told.updates.change(lambda result: result)
    assert told.numbers == [0]


def test_the_result_is_a_copy(clock: Clock) -> None:
    told = Told(clock, None)
    told.set(0)
    told.updates.result["n"] = 1
    assert told.updates.result == {"n": 0}


def test_a_subscriber_that_changes_it(clock: Clock) -> None:
    states = []

    def publish(state: Result) -> None:
        states.append(state["n"])
        if state["n"] < 3:
            updates.change(lambda result: {"n": result["n"] + 1})
        states.append("done")

    updates = Updates(publish, None, clock)  # type: ignore[arg-type]
    updates.change(lambda result: {"n": 1})
    assert states == [1, "done", 2, "done", 3, "done"]


def test_others_do_not_wait_for_whoever_publishes_but_the_end_does(clock: Clock, spawn: Any) -> None:
    inside, go_on, states = threading.Event(), threading.Event(), []

    def publish(state: Result) -> None:
        if state["n"] == 0:
            inside.set()
            assert go_on.wait(PATIENCE)
        states.append(state["n"])

    updates = Updates(publish, None, clock)  # type: ignore[arg-type]
    first = spawn(updates.change, lambda result: {"n": 0})
    assert inside.wait(PATIENCE)
    updates.change(lambda result: {"n": 1})
    assert states == []
    ending = spawn(updates.close, {"n": 2})
    go_on.set()
    assert ending.result(PATIENCE) == {"n": 2}
    first.result(PATIENCE)
    assert states == [0, 1, 2]


def test_many_threads_lose_nothing(clock: Clock, spawn: Any) -> None:
    told = Told(clock, None)
    told.updates.change(lambda result: {"n": 0})
    barrier = threading.Barrier(4)

    def count() -> None:
        barrier.wait(PATIENCE)
        for _ in range(200):
            told.updates.change(lambda result: {"n": result["n"] + 1})

    for future in [spawn(count) for _ in range(4)]:
        future.result(PATIENCE)
    told.updates.stop()
    assert told.numbers == list(range(801))


@pytest.mark.rxbus_allow("failures")
def test_publishing_that_fails_does_not_end_the_clock(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    open_ = [True]

    def publish(state: Result) -> None:
        if not open_[0]:
            raise BusClosed("the bus is closed")

    updates = Updates(publish, 10, clock)  # type: ignore[arg-type]
    updates.change(lambda result: {"n": 0})
    updates.change(lambda result: {"n": 1})
    open_[0] = False
    with caplog.at_level(logging.ERROR, "rxbus.pipeline"):
        clock.pass_(0.1)
    assert "an update cannot be published" in caplog.text
    with pytest.raises(BusClosed):
        updates.close({"n": 2})
