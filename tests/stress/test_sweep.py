"""Quiet topics are swept out while handlers publish to new ones: no handler runs under the registry's lock."""

from __future__ import annotations

import itertools
import threading

import pytest

from rxbus import Event, EventBus
from rxbus._registry import Registry
from tests.stress.topology import switching


def test_sweeping_among_handlers_that_publish_to_new_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Registry, "SWEEP", 4)
    names = itertools.count()
    bus = EventBus()
    counts = [0]

    def handler(event: Event[int]) -> None:
        counts[0] += 1
        if event.payload:
            bus.publish(f"new.{next(names)}", 0)

    bus.subscribe(">").subscribe(handler)
    bus.topic("hot")

    def publish_hot() -> None:
        for _ in range(800):
            bus.publish("hot", 1)

    def publish_new() -> None:
        for _ in range(800):
            bus.publish(f"new.{next(names)}", 0)

    with switching(1e-6):
        threads = [threading.Thread(target=target, daemon=True) for target in (publish_hot, publish_new) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
    assert not any(thread.is_alive() for thread in threads), "deadlock"
    bus.close()
    assert counts == [2 * 800 * 2 + 2 * 800]
