"""Closing in the midst of everything: each observer completes once, nothing is left, nobody hangs."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import sleep
from typing import Any

import pytest
import reactivex as rx
from reactivex import Observable
from reactivex import operators as ops

from rxbus import BlockingScheduler, BusClosed, Event, EventBus, RxBusError, defer
from rxbus.operators import buffered, map_async, observe_on
from tests.stress.topology import switching

ROUNDS = int(os.environ.get("RXBUS_STRESS", "1"))
TOPICS = ("a", "b", "c", "d")
PATIENCE = 30.0

Chain = Callable[[Observable[Event[Any]]], Observable[Event[Any]]]


class Trial:
    """A bus with random observers, threads that publish until it is closed, and threads that close it."""

    def __init__(self, seed: int, max_workers: int | None) -> None:
        self.dice = random.Random(seed)
        self.bus = EventBus(BlockingScheduler(max_workers))
        self.completed: list[int] = []
        self.faults: list[BaseException] = []
        self.loop = asyncio.new_event_loop()
        self.looping = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.looping.start()
        for _ in range(6):
            asyncio.run_coroutine_threadsafe(self._attach(), self.loop).result(PATIENCE)

    async def _attach(self) -> None:
        number = len(self.completed)
        self.completed.append(0)

        def complete() -> None:
            self.completed[number] += 1

        source = self.bus.subscribe(self.dice.choice((*TOPICS, "*", ">")))
        source.pipe(self._chain()).subscribe(self._handle, self.faults.append, complete)

    def _chain(self) -> Chain:
        chains: list[Chain] = [
            ops.map(lambda event: event),
            ops.delay(0.003, scheduler=self.bus.scheduler),
            observe_on(self.bus.scheduler),
            ops.observe_on(self.bus.scheduler),
            buffered(2, self.dice.choice(("drop_newest", "drop_oldest"))),
            buffered(self.dice.choice((1, 2)), "block"),  # in rings, since their handlers publish to any topic
            self._on_loop(),
        ]
        behind: list[Chain] = [
            observe_on(self.bus.scheduler),
            ops.observe_on(self.bus.scheduler),
            self._on_loop(),
        ]
        if self.dice.random() < 0.3:
            return rx.compose(buffered(2, self.dice.choice(("block", "drop_oldest"))), self.dice.choice(behind))
        return self.dice.choice(chains)

    def _on_loop(self) -> Chain:
        """What follows leaves the loop's thread again: handlers publish, and would block it."""
        if self.bus.scheduler.limit == 0:  # it would stay there
            return observe_on(self.bus.scheduler)
        return rx.compose(map_async(self._await, self.dice.choice((1, 3))), observe_on(self.bus.scheduler))

    async def _await(self, event: Event[Any]) -> Event[Any]:
        await asyncio.sleep(self.dice.random() * 0.002)
        if self.dice.random() < 0.3 and event.payload < 4:
            with suppress(RxBusError):
                await self.bus.publish_async(self.dice.choice(TOPICS), event.payload + 1)
        return event

    def _handle(self, event: Event[Any]) -> None:
        if self.dice.random() < 0.3:
            sleep(self.dice.random() * 0.004)  # a slow one
        if self.dice.random() < 0.2:
            with suppress(RxBusError):  # not behind a buffer
                threading.Timer(self.dice.random() * 0.01, defer().ack).start()
        if self.dice.random() < 0.3 and event.payload < 4:
            with suppress(RxBusError):
                self.bus.publish(self.dice.choice(TOPICS), event.payload + 1)
        if self.dice.random() < 0.05:
            self.bus.scheduler.schedule_relative(self.dice.random() * 0.01, lambda *_: None)

    def publish(self) -> None:
        while True:
            timeout = 0.002 if self.dice.random() < 0.2 else None
            try:
                self.bus.publish(self.dice.choice(TOPICS), 0, timeout=timeout)
            except BusClosed:
                return
            except RxBusError:  # timeouts
                pass
            except BaseException as fault:
                self.faults.append(fault)
                return

    async def publish_async(self) -> None:
        while True:
            timeout = 0.002 if self.dice.random() < 0.3 else None
            patience = 0.005 if self.dice.random() < 0.3 else None
            try:
                await asyncio.wait_for(self.bus.publish_async(self.dice.choice(TOPICS), 0, timeout=timeout), patience)
            except BusClosed:
                return
            except (RxBusError, TimeoutError):
                pass
            await asyncio.sleep(0)

    def close(self) -> None:
        try:
            self.bus.close()
        except BaseException as fault:
            self.faults.append(fault)

    def run(self) -> None:
        async def three() -> None:
            await asyncio.gather(*(self.publish_async() for _ in range(3)))

        publishing = [self.publish, self.publish, self.publish, lambda: asyncio.run(three())]
        threads = [threading.Thread(target=target, daemon=True) for target in publishing]
        for thread in threads:
            thread.start()
        sleep(self.dice.random() * 0.05)  # at whichever moment
        closing = [threading.Thread(target=self.close, daemon=True) for _ in range(self.dice.choice((1, 2)))]
        for thread in closing:
            thread.start()
        for thread in (*closing, *threads):
            thread.join(PATIENCE)
            assert not thread.is_alive(), self.bus.statistics()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.looping.join(PATIENCE)
        self.loop.close()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("max_workers", [None, 0, 1, 2])
@pytest.mark.parametrize("seed", range(3 * ROUNDS))
@pytest.mark.rxbus_allow("failures")
def test_closing_in_the_midst_of_everything(seed: int, max_workers: int | None) -> None:
    with switching(1e-5):
        for one in range(5):
            trial = Trial(100 * seed + one, max_workers)
            trial.run()
            assert trial.faults == []
            assert trial.completed == [1] * 6
            assert trial.bus.statistics().pending == 0
            assert [thread.name for thread in threading.enumerate() if thread.name.startswith("rxbus-worker")] == []


@pytest.mark.timeout(120)
def test_a_turn_that_what_completes_gives_away_is_not_used_on() -> None:
    """`observe_on` schedules its completion, which ends on a worker before the mail that began it is taken off."""
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(50))

    burning = [threading.Thread(target=burn) for _ in range(2)]
    for thread in burning:
        thread.start()
    try:
        with switching(1e-5):
            for _ in range(40):
                bus = EventBus()
                done: list[int] = []
                for number in range(10):
                    chain = bus.subscribe("t").pipe(ops.observe_on(bus.scheduler))
                    chain.subscribe(lambda event: None, None, partial(done.append, number))
                bus.publish("t")
                bus.close()
                assert sorted(done) == list(range(10))
    finally:
        stop.set()
        for thread in burning:
            thread.join()
