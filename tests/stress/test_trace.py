"""Tracers amid handlers that publish to each other: each delivery is told once, and nothing else changes."""

from __future__ import annotations

import os
import threading
from collections import Counter
from typing import Any

import pytest

from rxbus import Event, EventBus, Receipt
from tests.stress.topology import Habits, Topology, buses, switching

ROUNDS = int(os.environ.get("RXBUS_STRESS", "1"))
LIVELY = Habits(publish=0.5, fail=0.03, defer=0.05, schedule=0.05, lock=0.3)


class Ledger:
    """A tracer that counts."""

    def __init__(self) -> None:
        self.topics: dict[int, str] = {}
        self.delivered_to: Counter[int] = Counter()
        self.failed: Counter[int] = Counter()
        self.receipts: Counter[int] = Counter()
        self._lock = threading.Lock()

    def published(self, event: Event[Any]) -> None:
        with self._lock:
            assert event.id not in self.topics
            self.topics[event.id] = event.topic

    def delivered(
        self, event: Event[Any], observer: str, start: float, end: float, thread: str, error: BaseException | None
    ) -> None:
        with self._lock:
            self.delivered_to[event.id] += 1
            self.failed[event.id] += error is not None

    def settled(self, receipt: Receipt) -> None:
        with self._lock:
            self.receipts[receipt.event.id] += 1


class Passer:
    """A tracer that comes and goes."""

    def __init__(self, bus: EventBus, stop: threading.Event) -> None:
        self._bus = bus
        self._stop = stop
        self.times = 0

    def published(self, event: Event[Any]) -> None: ...

    def delivered(self, *_: object) -> None: ...

    def settled(self, receipt: Receipt) -> None: ...

    def run(self) -> None:
        while not self._stop.is_set():
            self._bus.trace(self).dispose()
            self.times += 1


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("max_workers", [None, 0, 1, 3])
def test_each_delivery_is_told_once(seed: int, max_workers: int | None) -> None:
    with switching(1e-5):
        for round_ in range(ROUNDS):
            all_buses = buses(2, max_workers)
            topology = Topology(seed + 1000 * round_, all_buses, topics=4, observers=8, habits=LIVELY)
            ledgers = {bus: Ledger() for bus in all_buses}
            stop = threading.Event()
            passers = [Passer(bus, stop) for bus in all_buses]
            threads = [threading.Thread(target=passer.run) for passer in passers]
            for bus, ledger in ledgers.items():
                bus.trace(ledger)
            for thread in threads:
                thread.start()
            deliveries = topology.run(threads=6, publishes=10, generations=3)
            stop.set()
            for thread in threads:
                thread.join()
            for bus in all_buses:
                bus.close()
            topology.check()
            assert all(passer.times for passer in passers)
            assert sum(ledger.delivered_to.total() for ledger in ledgers.values()) == deliveries
            for bus, ledger in ledgers.items():
                assert set(ledger.receipts) == set(ledger.topics)
                assert set(ledger.receipts.values()) == {1}
                for id_, topic in ledger.topics.items():
                    assert ledger.delivered_to[id_] == topology.counts[id(bus), topic]
                assert ledger.failed.total() == bus.statistics().failed
