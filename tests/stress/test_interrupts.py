"""Ctrl-C at any moment leaves the bus whole: nothing stays taken, nothing is lost, nothing comes twice."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress
from typing import Any

import pytest

from rxbus import BlockingScheduler, Event, EventBus, PublishError
from tests.stress.topology import switching

pytestmark = pytest.mark.rxbus_allow("failures")  # of publishers that are interrupted

STRIKES = int(os.environ.get("RXBUS_STRESS", "1")) * 30


class Striker:
    """Sends the main thread SIGINT again and again, at random moments; it strikes only while armed."""

    def __init__(self) -> None:
        self.armed = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._strike, args=(threading.get_ident(), random.Random(7)))

    def _strike(self, main: int, dice: random.Random) -> None:
        while not self._ending.wait(dice.random() * 0.002):
            signal.pthread_kill(main, signal.SIGINT)

    def _handle(self, number: int, frame: object) -> None:
        if self.armed:
            self.armed = False
            raise KeyboardInterrupt

    def __enter__(self) -> Striker:
        self._before = signal.signal(signal.SIGINT, self._handle)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.armed = False
        self._ending.set()
        self._thread.join()
        signal.signal(signal.SIGINT, self._before)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # struck in a destructor
@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("observers", [1, 4])
def test_interrupts(max_workers: int | None, observers: int) -> None:
    seen: list[list[int]] = [[] for _ in range(observers)]
    others = threading.Event()
    bus = EventBus(BlockingScheduler(max_workers))

    def handler(number: int) -> Any:
        def handle(event: Event[int]) -> None:
            seen[number].append(event.id)
            if event.payload % 3 == 0 and event.cause is None:
                bus.publish("b", event.payload)

        return handle

    for number in range(observers):
        bus.subscribe("a").subscribe(handler(number))
        bus.subscribe("b").subscribe(lambda event: None)

    def competitor() -> None:
        number = 0
        while not others.is_set():
            number += 1
            with suppress(PublishError):
                bus.publish("a", number)

    thread = threading.Thread(target=competitor)
    struck = 0
    with switching(1e-4), Striker() as striker:
        thread.start()
        while struck < STRIKES:
            striker.armed = True
            try:
                for _ in range(2000):  # then armed again: where it strikes in a destructor, Python swallows it
                    with suppress(PublishError):
                        bus.publish("a", struck)
            except KeyboardInterrupt:
                struck += 1
    others.set()
    thread.join(20)
    assert not thread.is_alive(), "a lane has stayed taken"
    with suppress(PublishError):
        assert bus.publish("a", 1, timeout=20).acknowledged == observers, "nothing stays taken"
    closer = threading.Thread(target=bus.close)
    closer.start()
    closer.join(20)
    assert not closer.is_alive()
    assert bus.statistics().pending == 0
    everything = set().union(*seen)
    for one in seen:
        assert one == sorted(set(one)), "in order, and none twice"
        # A handler that is struck in its first line has not noted its event: one for a strike, at most.
        assert len(everything) - len(one) <= STRIKES, "none is lost"
