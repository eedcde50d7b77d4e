"""defer(): acknowledgement given later."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest

from rxbus import (
    Acknowledgement,
    AcknowledgementTimeout,
    Event,
    EventBus,
    InvalidArgument,
    PublishError,
    RxBusError,
    defer,
)

PATIENCE = 10.0


class Publisher:
    """Publishes on a thread of its own."""

    def __init__(self, bus: EventBus, topic: str) -> None:
        self.done = threading.Event()
        self.error: PublishError | None = None
        self._thread = threading.Thread(target=self._publish, args=(bus, topic))
        self._thread.start()

    def _publish(self, bus: EventBus, topic: str) -> None:
        try:
            bus.publish(topic)
        except PublishError as error:
            self.error = error
        self.done.set()

    def join(self) -> None:
        assert self.done.wait(PATIENCE), "hangs"
        self._thread.join()


@pytest.fixture(params=[1, 3], ids=["alone", "among others"])
def deferring(bus: EventBus, request: pytest.FixtureRequest) -> Callable[[int], list[Acknowledgement]]:
    """Attaches an observer that defers so often, and gives what it has deferred."""
    for _ in range(request.param - 1):
        bus.subscribe("a").subscribe(lambda event: None)

    def attach(times: int) -> list[Acknowledgement]:
        given: list[Acknowledgement] = []
        bus.subscribe("a").subscribe(lambda event: given.extend([defer() for _ in range(times)]))
        return given

    return attach


Deferring = Callable[[int], list[Acknowledgement]]


def _wait_for(given: list[Acknowledgement], publisher: Publisher) -> None:
    while not given:
        publisher.done.wait(0.001)


def test_outside_a_delivery_it_is_an_error() -> None:
    with pytest.raises(RxBusError, match="no delivery"):
        defer()


def test_the_publisher_waits_for_all_of_them(bus: EventBus, deferring: Deferring) -> None:
    given = deferring(2)
    publisher = Publisher(bus, "a")
    _wait_for(given, publisher)
    given[0].ack()
    given[0].ack()  # counts once
    assert not publisher.done.is_set()
    given[1].ack()
    publisher.join()
    assert publisher.error is None
    given[1].nack(ValueError("too late"))
    assert bus.statistics().failed == 0


def test_nack_fails_the_publish(bus: EventBus, deferring: Deferring) -> None:
    given = deferring(1)
    publisher = Publisher(bus, "a")
    _wait_for(given, publisher)
    with pytest.raises(InvalidArgument):
        given[0].nack("no exception")  # type: ignore[arg-type]
    given[0].nack(ValueError("no"))
    publisher.join()
    assert publisher.error is not None
    assert [str(error) for error in publisher.error.exceptions] == ["no"]


def test_the_lane_takes_its_next_event_meanwhile(bus: EventBus, deferring: Deferring) -> None:
    given = deferring(1)
    publishers = [Publisher(bus, "a"), Publisher(bus, "a")]
    while len(given) < 2:
        publishers[0].done.wait(0.001)
    for one in given:
        one.ack()
    for publisher in publishers:
        publisher.join()


@pytest.mark.parametrize("observers", [1, 2])
def test_as_a_context_manager(bus: EventBus, observers: int) -> None:
    def handler(event: Event[Any]) -> None:
        with defer():
            if event.payload == "bad":
                raise ValueError("inside")

    for _ in range(observers):
        bus.subscribe("a").subscribe(handler)
    assert bus.publish("a", "good").acknowledged == observers
    with pytest.raises(PublishError) as caught:
        bus.publish("a", "bad")
    assert {str(error) for error in caught.value.exceptions} == {"inside"}


@pytest.mark.parametrize("observers", [1, 2])
def test_raising_with_a_deferral_open_settles_the_delivery_as_failed(bus: EventBus, observers: int) -> None:
    def handler(event: Event[Any]) -> None:
        defer()
        raise ValueError("failed")

    for _ in range(observers):
        bus.subscribe("a").subscribe(handler)
    with pytest.raises(PublishError, match=f"{observers} failed"):
        bus.publish("a")
    assert bus.statistics().pending == 0


def test_a_nested_publish_waits_for_the_deferral_of_a_free_observer(bus: EventBus, deferring: Deferring) -> None:
    given = deferring(1)
    acknowledged: list[int] = []
    bus.subscribe("outer").subscribe(lambda event: acknowledged.append(bus.publish("a").queued))
    publisher = Publisher(bus, "outer")
    _wait_for(given, publisher)
    assert acknowledged == []
    given[0].ack()
    publisher.join()
    assert acknowledged == [0]


def test_a_failure_inside_with_defer_is_told_once(bus: EventBus) -> None:
    def handler(event: Event[Any]) -> None:
        with defer():
            raise ValueError("once")

    bus.subscribe("a").subscribe(handler)
    with pytest.raises(PublishError, match="1 failed"):
        bus.publish("a")
    assert bus.statistics().failed == 1


def test_two_nacks_are_one_failed_delivery(bus: EventBus) -> None:
    def handler(event: Event[Any]) -> None:
        for one in [defer(), defer()]:
            one.nack(ValueError(one))

    bus.subscribe("a").subscribe(handler)
    bus.subscribe("a").subscribe(lambda event: None)
    with pytest.raises(PublishError, match="2 failed"):
        bus.publish("a")
    statistics = bus.statistics()
    assert (statistics.failed, statistics.acknowledged) == (1, 1)


def test_a_nack_after_the_observer_has_left_does_nothing(bus: EventBus) -> None:
    given: list[Acknowledgement] = []
    attached = bus.subscribe("a").subscribe(lambda event: given.append(defer()))
    publisher = Publisher(bus, "a")
    _wait_for(given, publisher)
    attached.dispose()
    given[0].nack(ValueError("too late"))
    publisher.join()
    assert publisher.error is None


def test_a_failed_handlers_deferral_does_not_stand_in_for_its_scheduled_action(bus: EventBus) -> None:
    given: list[Acknowledgement] = []
    gate, ran = threading.Event(), threading.Event()

    def action(*_: object) -> None:
        assert gate.wait(PATIENCE)
        ran.set()

    def handler(event: Event[Any]) -> None:
        given.append(defer())
        bus.scheduler.schedule(action)
        raise ValueError("failed")

    bus.subscribe("a").subscribe(handler)
    publisher = Publisher(bus, "a")
    _wait_for(given, publisher)
    given[0].ack()
    assert not publisher.done.wait(0.05), "it waits for the action"
    gate.set()
    publisher.join()
    assert ran.is_set()


@pytest.mark.parametrize("call", ["statistics", "dispose", "publish"])
def test_a_payloads_destructor_may_use_the_bus(bus: EventBus, call: str) -> None:
    given: list[Acknowledgement] = []
    attached = bus.subscribe("a").subscribe(lambda event: given.append(defer()))
    calls = {"statistics": bus.statistics, "dispose": attached.dispose, "publish": lambda: bus.publish("b")}
    destroyed = threading.Event()

    class Payload:
        def __del__(self) -> None:
            calls[call]()
            destroyed.set()

    with contextlib.suppress(AcknowledgementTimeout):  # pytest.raises would keep the frames, and the payload
        bus.publish("a", Payload(), timeout=0.01)
    assert not destroyed.is_set()
    done = threading.Thread(target=given.pop().ack, daemon=True)
    done.start()
    done.join(PATIENCE)
    assert not done.is_alive(), "hangs"
    assert destroyed.wait(PATIENCE)
