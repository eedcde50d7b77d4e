"""Ctrl-C at every single point, one after the other: the bus stays whole. (test_interrupts strikes at random.)"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from reactivex import operators as ops
from reactivex.scheduler import NewThreadScheduler

import rxbus.operators
from rxbus import Acknowledgement, BlockingScheduler, EventBus, RxBusError, Subscription, defer
from rxbus._here import local
from tests.stress.strikes import Strike

pytestmark = pytest.mark.rxbus_allow("failures")  # of publishers that are interrupted

Act = Callable[[], object]
Prepare = Callable[[EventBus], Act]
Leave = Callable[[EventBus, Subscription[Any], Acknowledgement], None]

FIRST = 4  # of the points in `ack` or `nack`: before, it has not begun
EVERY = 1 if "RXBUS_STRESS" in os.environ else 5  # strikes at each point, or at every fifth


def nothing(event: Any) -> None:
    pass


def publishes(bus: EventBus) -> Act:
    return lambda: bus.publish("a")


def one(bus: EventBus) -> Act:
    bus.subscribe("a").subscribe(nothing)
    return publishes(bus)


def nested(bus: EventBus) -> Act:
    for _ in range(2):
        bus.subscribe("a").subscribe(lambda event: bus.publish("b"))
        bus.subscribe("b").subscribe(nothing)
    return publishes(bus)


def to_itself(bus: EventBus) -> Act:
    bus.subscribe("a").subscribe(lambda event: None if event.payload else bus.publish("a", True) and None)
    return publishes(bus)


def failing(bus: EventBus) -> Act:
    bus.subscribe("a").subscribe(lambda event: 1 / 0)
    bus.subscribe("a").subscribe(nothing)
    return publishes(bus)


def deferred(bus: EventBus) -> Act:
    def handle(event: Any) -> None:
        with defer():
            acknowledgement = defer()
        threading.Thread(target=acknowledgement.ack).start()

    bus.subscribe("a").subscribe(handle)
    bus.subscribe("a").subscribe(lambda event: defer().ack())
    return publishes(bus)


def scheduled(bus: EventBus) -> Act:
    for _ in range(2):
        bus.subscribe("a").pipe(ops.observe_on(bus.scheduler)).subscribe(nothing)
    return publishes(bus)


def delayed(bus: EventBus) -> Act:
    bus.subscribe("a").pipe(ops.delay(0.001, scheduler=bus.scheduler)).subscribe(nothing)
    return publishes(bus)


def far_side(bus: EventBus) -> Act:
    bus.subscribe("a").pipe(rxbus.operators.observe_on(NewThreadScheduler())).subscribe(nothing)
    bus.subscribe("a").pipe(rxbus.operators.observe_on(bus.scheduler)).subscribe(nothing)
    return publishes(bus)


def slow(bus: EventBus) -> Act:
    pause = threading.Event()
    for _ in range(3):
        bus.subscribe("a").subscribe(lambda event: pause.wait(0.002) and None)
        bus.subscribe("b").subscribe(lambda event: pause.wait(0.002) and None)
    bus.subscribe("a").subscribe(lambda event: bus.publish("b"))
    bus.publish("a")  # from here on they count as slow
    return publishes(bus)


def with_timeout(bus: EventBus) -> Act:
    for _ in range(2):
        bus.subscribe("a").subscribe(lambda event: bus.publish("b"))
        bus.subscribe("b").subscribe(nothing)
    return lambda: bus.publish("a", timeout=5)


def held_back(bus: EventBus) -> Act:
    bus.subscribe("a").pipe(rxbus.operators.buffered(1)).subscribe(nothing)
    return lambda: [bus.publish("a") for _ in range(3)]


def leaving(bus: EventBus) -> Act:
    stay = bus.subscribe("a")
    stay.subscribe(nothing)
    stay.pipe(ops.take(1)).subscribe(nothing)

    def act() -> None:
        attached = bus.subscribe("*").subscribe(nothing)
        bus.publish("a")
        attached.dispose()
        bus.unsubscribe("a", stay)

    return act


def crowded(bus: EventBus) -> Act:
    """Other publishers' mail comes, and mail is left for others."""
    inside, go = threading.Barrier(2), threading.Event()

    def handle(event: Any) -> None:
        if event.payload == "first":
            inside.wait(10)
            go.wait(10)

    for _ in range(2):
        bus.subscribe("a").subscribe(handle)
    with suppress(threading.BrokenBarrierError):
        threading.Thread(target=bus.publish, args=("a", "first")).start()
        inside.wait(10)
    inside.abort()
    threading.Timer(0.002, go.set).start()
    return publishes(bus)


def closing(bus: EventBus) -> Act:
    bus.subscribe("a").pipe(rxbus.operators.buffered(5)).subscribe(nothing)
    bus.subscribe("a").subscribe(lambda event: defer() and None)
    with suppress(RxBusError):
        bus.publish("a", timeout=0)
    return bus.close


class Tracing:
    """A tracer that must be told of the end of each delivery once."""

    def __init__(self) -> None:
        self.delivered_to: list[int] = []

    def published(self, event: Any) -> None: ...

    def delivered(self, event: Any, *_: object) -> None:
        self.delivered_to.append(event.id)

    def settled(self, receipt: Any) -> None: ...


def traced(bus: EventBus) -> Act:
    bus.trace(Tracing())
    return deferred(bus)


SCENES = (
    *(one, nested, to_itself, failing, deferred, scheduled, delayed),
    *(far_side, slow, with_timeout, held_back, leaving, crowded, closing, traced),
)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # struck in a destructor
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize(
    ("prepare", "max_workers"),
    [
        (scene, workers)
        for scene in SCENES
        for workers in (None, 0, 1)
        if not (scene is crowded and workers == 0)  # its other thread would have to be inside of both at once
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_every_interrupt(prepare: Prepare, max_workers: int | None) -> None:
    nth = 1
    while struck(prepare, max_workers, nth) is not None:
        nth += EVERY
    assert nth > 5


def struck(prepare: Prepare, max_workers: int | None, nth: int) -> str | None:
    """Strikes at the n-th point, and looks whether all is well; says where, or None where it ended before."""
    bus = EventBus(BlockingScheduler(max_workers))
    act = prepare(bus)
    strike = Strike(nth)
    with suppress(KeyboardInterrupt, RxBusError), strike:
        act()
    at = f"struck at point {nth}, {strike.where}"
    here = local.here
    assert (here.feed, here.depth, here.holding, here.wait, here.kept) == (None, 0, 0, None, False), at
    assert not here.later, at
    problems: list[BaseException] = []

    def afterwards() -> None:
        try:
            with suppress(ExceptionGroup):
                if prepare is not closing:
                    bus.publish("a", timeout=5)
            bus.close()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=afterwards, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), f"{at}: it hangs"
    assert not problems, f"{at}: {problems[0]!r}"
    assert bus.statistics().pending == 0, at
    return strike.where


@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("error", [None, ValueError("no")], ids=["ack", "nack"])
@pytest.mark.parametrize("traced", [False, True])
def test_every_interrupt_of_who_acknowledges(max_workers: int | None, error: Exception | None, traced: bool) -> None:
    """The publisher waits on another thread, and is to be woken all the same."""

    def give(bus: EventBus, subscription: Subscription[Any], owed: Acknowledgement) -> None:
        owed.ack() if error is None else owed.nack(error)

    nth = FIRST
    while struck_while_another_waits(max_workers, give, nth, Tracing() if traced else None) is not None:
        nth += 1
    assert nth > FIRST + 5


def unsubscribe(bus: EventBus, subscription: Subscription[Any], owed: Acknowledgement) -> None:
    bus.unsubscribe("a", subscription)


def dispose(bus: EventBus, subscription: Subscription[Any], owed: Acknowledgement) -> None:
    bus.topic("a").dispose()


@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("leave", [unsubscribe, dispose])
def test_every_interrupt_of_who_has_observers_leave(max_workers: int | None, leave: Leave) -> None:
    """Struck, it is done again, as whoever sees Ctrl-C there would have to."""

    def twice(bus: EventBus, subscription: Subscription[Any], owed: Acknowledgement) -> None:
        try:
            leave(bus, subscription, owed)
        except KeyboardInterrupt:
            leave(bus, subscription, owed)

    nth = 1
    while struck_while_another_waits(max_workers, twice, nth) is not None:
        nth += 1
    assert nth > 20


def struck_while_another_waits(
    max_workers: int | None, act: Leave, nth: int, tracer: Tracing | None = None
) -> str | None:
    with EventBus(BlockingScheduler(max_workers)) as bus:
        if tracer is not None:
            bus.trace(tracer)
        owed, begun = [], threading.Event()

        def handle(event: Any) -> None:
            owed.append(defer())
            begun.set()

        def publish() -> None:
            with suppress(ExceptionGroup):
                bus.publish("a")

        subscription = bus.subscribe("a")
        subscription.subscribe(handle)
        publisher = threading.Thread(target=publish, daemon=True)
        publisher.start()
        assert begun.wait(10)
        engine = bus._crew
        while not engine.waiting:  # it has come to wait, but for a few lines
            pass
        strike = Strike(nth)
        with suppress(KeyboardInterrupt), strike:
            act(bus, subscription, owed[0])
        publisher.join(10)
        assert not publisher.is_alive(), f"struck at point {nth}, {strike.where}: the publisher hangs"
        return strike.where
