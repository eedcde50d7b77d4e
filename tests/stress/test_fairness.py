"""No publisher serves the others for ever; nothing is left behind; a million deliveries without a fault."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading

import pytest

from rxbus import BlockingScheduler, EventBus
from tests.stress.topology import switching

MILLION = int(os.environ.get("RXBUS_MILLION", "100000"))


@pytest.mark.parametrize("max_workers", [None, 2])
@pytest.mark.parametrize("observers", [1, 3])
def test_every_publisher_gets_on(max_workers: int | None, observers: int) -> None:
    """Seven publish without a pause; the eighth must come to its end all the same."""
    with EventBus(BlockingScheduler(max_workers)) as bus:
        for _ in range(observers):
            bus.subscribe("a").subscribe(lambda event: None)
        done = threading.Event()

        def publish_for_ever() -> None:
            while not done.is_set():
                bus.publish("a")

        busy = [threading.Thread(target=publish_for_ever) for _ in range(7)]
        eighth = threading.Thread(target=lambda: [bus.publish("a") for _ in range(200)])
        with switching(1e-4):
            for thread in (*busy, eighth):
                thread.start()
            eighth.join(60)
            starved = eighth.is_alive()
            done.set()
            for thread in busy:
                thread.join(20)
        assert not starved


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread that gets no processor counts as slow")
@pytest.mark.parametrize("observers", [10, 1000])
def test_a_busy_machine_starts_no_crowd_of_threads(observers: int) -> None:
    """Other processes want all processors; what the handlers do is fast. (There were 460 threads for 1000 observers.)

    Hardly ever does it take a worker: a fast handler may wait for a page of memory, or for the interpreter.
    """
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        with EventBus() as bus:
            for _ in range(observers):
                bus.subscribe("a").subscribe(lambda event: None)
            workers = 0
            for _ in range(500_000 // observers):
                bus.publish("a")
                workers = max(workers, bus.statistics().workers)
    finally:
        for hog in hogs:
            hog.kill()
        for hog in hogs:
            hog.wait()
    assert workers < 10


def test_a_million_deliveries() -> None:
    """Eight threads, four observers; with RXBUS_MILLION=1000000 it is what it says, and CI makes a tenth of it."""
    counts = [0] * 4
    seen = [0] * 4
    faults: list[str] = []
    with EventBus() as bus:

        def observe(number: int) -> None:
            def handle(event: object) -> None:
                counts[number] += 1  # no lock: the bus lets in one at a time
                if event.id <= seen[number]:  # type: ignore[attr-defined]
                    faults.append("out of order")
                seen[number] = event.id  # type: ignore[attr-defined]

            bus.subscribe("a").subscribe(handle)

        for number in range(4):
            observe(number)
        threads = [
            threading.Thread(target=lambda: [bus.publish("a") for _ in itertools.repeat(None, MILLION // 32)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(110)
        assert not any(thread.is_alive() for thread in threads)
        statistics = bus.statistics()
    assert counts == [8 * (MILLION // 32)] * 4
    assert not faults
    assert (statistics.pending, statistics.failed, statistics.acknowledged) == (0, 0, sum(counts))
