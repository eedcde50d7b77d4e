"""BlockingScheduler as a reactivex scheduler."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rxbus import BlockingScheduler, Event, EventBus, InvalidArgument, PublishError

PATIENCE = 10.0
SOON = 0.01


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_workers": -1},
        {"max_workers": 1.5},
        {"handoff_after": 0},
        {"stall_after": -1},
        {"stall_after": float("nan")},
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        BlockingScheduler(**arguments)


@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("way", ["now", "relative", "absolute", "past"])
def test_outside_a_delivery_an_action_simply_runs(max_workers: int | None, way: str) -> None:
    scheduler = BlockingScheduler(max_workers)
    ran = threading.Event()
    states: list[object] = []

    def action(_: object, state: object = None) -> None:
        states.append(state)
        ran.set()

    if way == "now":
        scheduler.schedule(action, "state")
    elif way == "absolute":
        scheduler.schedule_absolute(datetime.now(UTC) + timedelta(seconds=SOON), action, "state")
    else:
        scheduler.schedule_relative(SOON if way == "relative" else -1.0, action, "state")
    assert ran.wait(PATIENCE)
    scheduler.close()
    assert states == ["state"]
    assert scheduler.workers == 0


@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("delay", [0.0, SOON])
def test_an_action_scheduled_in_a_delivery_belongs_to_it(max_workers: int | None, delay: float) -> None:
    done: list[str] = []
    with EventBus(BlockingScheduler(max_workers)) as bus:

        def later(*_: object) -> None:
            done.append("later")
            bus.publish("b")  # in the tree of the event

        bus.subscribe("b").subscribe(lambda event: done.append("b"))
        bus.subscribe("a").subscribe(lambda event: bus.scheduler.schedule_relative(delay, later))
        for _ in range(2):
            assert bus.publish("a").acknowledged == 1
            assert done == ["later", "b"]
            done.clear()


def test_the_turn_lasts_until_the_action_has_ended(bus: EventBus) -> None:
    inside = threading.Lock()
    seen: list[int] = []

    def action(_: object, state: Any = None) -> None:
        assert inside.acquire(blocking=False), "two events at a time"
        seen.append(state)
        inside.release()

    bus.subscribe("a").subscribe(lambda event: bus.scheduler.schedule(action, event.payload))
    publishers = [threading.Thread(target=lambda: [bus.publish("a", n) for n in range(50)]) for _ in range(4)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join(PATIENCE)
    assert sorted(seen) == sorted(list(range(50)) * 4)


@pytest.mark.parametrize("max_workers", [None, 0])
def test_an_action_that_fails_fails_the_publish(max_workers: int | None) -> None:
    def failing(*_: object) -> None:
        raise ValueError("later")

    with EventBus(BlockingScheduler(max_workers)) as bus:
        bus.subscribe("a").subscribe(lambda event: bus.scheduler.schedule(failing))
        with pytest.raises(PublishError) as caught:
            bus.publish("a")
    assert str(caught.value.exceptions[0]) == "later"


def test_an_action_that_fails_outside_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = BlockingScheduler()

    def failing(*_: object) -> None:
        raise ValueError("outside")

    scheduler.schedule(failing)
    scheduler.close()
    assert "outside" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


def test_disposing_of_an_action_frees_the_publisher(bus: EventBus) -> None:
    def handler(event: Event[Any]) -> None:
        scheduled = bus.scheduler.schedule_relative(1000.0, lambda *_: None)
        scheduled.dispose()
        scheduled.dispose()

    bus.subscribe("a").subscribe(handler)
    assert bus.publish("a").acknowledged == 1


def test_periodic_actions_run_until_disposed() -> None:
    scheduler = BlockingScheduler()
    twice = threading.Semaphore(0)

    def tick(state: Any) -> Any:
        twice.release()
        return state

    periodic = scheduler.schedule_periodic(0.001, tick)
    assert all(twice.acquire(timeout=PATIENCE) for _ in range(2))
    periodic.dispose()
    scheduler.close()


def test_an_interrupt_while_scheduling_leaves_no_turn_taken(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Struck after the turn is held and before the action is on its way."""
    strikes = [KeyboardInterrupt()]
    submit = bus.scheduler.submit

    def struck(job: Any) -> None:
        if strikes:
            raise strikes.pop()
        submit(job)

    monkeypatch.setattr(bus.scheduler, "submit", struck)
    ran: list[int] = []
    bus.subscribe("a").subscribe(lambda event: bus.scheduler.schedule(lambda *_: ran.append(event.payload)))
    with pytest.raises(KeyboardInterrupt):
        bus.publish("a", 1)
    assert bus.publish("a", 2, timeout=PATIENCE).acknowledged == 1
    assert ran == [2]
