"""Observers that come and go while many publish: each sees an unbroken stretch of the topic's one order."""

from __future__ import annotations

import os
import random
import threading
from typing import Any

import pytest

from rxbus import BlockingScheduler, Event, EventBus, defer
from tests.stress.topology import switching

ROUNDS = int(os.environ.get("RXBUS_STRESS", "1"))


@pytest.mark.parametrize("seed", range(3 * ROUNDS))
@pytest.mark.parametrize("max_workers", [None, 0, 2])
def test_churn(seed: int, max_workers: int | None) -> None:
    dice = random.Random(seed)
    bus = EventBus(BlockingScheduler(max_workers))
    everything: list[int] = []
    stretches: list[list[int]] = []
    publishing = threading.Event()
    faults: list[BaseException] = []
    bus.subscribe("t.1").subscribe(lambda event: everything.append(event.id))

    def observer(own: random.Random) -> Any:
        stretch: list[int] = []
        stretches.append(stretch)

        def handle(event: Event[int]) -> None:
            stretch.append(event.id)
            if own.random() < 0.1 and event.topic == "t.1":
                defer()  # counts as given once the observer leaves
            if own.random() < 0.1 and event.cause is None:
                bus.publish("t.2", event.payload)

        return handle

    def guarded(function: Any) -> threading.Thread:
        def run() -> None:
            try:
                function()
            except BaseException as error:
                faults.append(error)

        return threading.Thread(target=run)

    def come_and_go() -> None:
        own = random.Random(dice.random())
        while not publishing.is_set():
            attached = bus.subscribe("t.1" if own.random() < 0.4 else "t.*").subscribe(observer(own))
            for _ in range(own.randrange(20)):
                bus.publish("u", 0)
            attached.dispose()

    def publish() -> None:
        for number in range(150):
            bus.publish("t.1", number)

    with switching(1e-5):
        comers = [guarded(come_and_go) for _ in range(3)]
        publishers = [guarded(publish) for _ in range(4)]
        for thread in comers + publishers:
            thread.start()
        for thread in publishers:
            thread.join(60)
        hanging = [thread for thread in publishers if thread.is_alive()]
        publishing.set()
        for thread in comers:
            thread.join(20)
    assert not hanging
    assert not faults, faults
    statistics = bus.statistics()
    assert (statistics.pending, statistics.observers) == (0, 1)
    bus.close()
    assert len(everything) == 600
    place = {id: number for number, id in enumerate(everything)}
    for stretch in stretches:
        places = [place[id] for id in stretch if id in place]
        assert places == list(range(places[0], places[0] + len(places))) if places else True
