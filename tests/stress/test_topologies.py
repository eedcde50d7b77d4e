"""Handlers that publish to each other and to themselves, from many threads: nothing is lost, doubled, out of order."""

from __future__ import annotations

import os

import pytest

from tests.stress.topology import Habits, Topology, buses, switching

ROUNDS = int(os.environ.get("RXBUS_STRESS", "1"))

CALM = Habits(publish=0.4)
LIVELY = Habits(publish=0.5, fail=0.03, defer=0.05, schedule=0.05, lock=0.3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("max_workers", [None, 0, 1, 3])
@pytest.mark.parametrize("habits", [CALM, LIVELY], ids=["calm", "lively"])
@pytest.mark.parametrize("number_of_buses", [1, 2])
def test_topology(seed: int, max_workers: int | None, habits: Habits, number_of_buses: int) -> None:
    with switching(1e-5):
        for round_ in range(ROUNDS):
            all_buses = buses(number_of_buses, max_workers)
            topology = Topology(seed + 1000 * round_, all_buses, topics=4, observers=8, habits=habits)
            deliveries = topology.run(threads=6, publishes=6, generations=4)
            for bus in all_buses:
                bus.close()
            topology.check()
            assert deliveries > 36
            assert [bus.statistics().pending for bus in all_buses] == [0] * number_of_buses
