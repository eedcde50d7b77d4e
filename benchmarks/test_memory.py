"""That publishing leaves nothing behind: `python -m pytest benchmarks/test_memory.py`. It takes a minute or two."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

import rxbus
from benchmarks.loads import memory, publish_together
from rxbus._bench.peers import Handler, Rxbus, Tally

MILLION = 1_000_000
KEPT = 64 * 1024  # bytes, of what is made once and kept; with one byte per event it would be a million


@pytest.fixture
def peer() -> Rxbus:
    return Rxbus()


@pytest.mark.parametrize("observers", [1, 4])
def test_a_million_publishes_leave_nothing(peer: Rxbus, observers: int) -> None:
    tally = Tally()
    tally.attach(peer, "ticks", observers)
    left, most = memory(peer.publisher("ticks"), MILLION)
    peer.close()
    assert tally.total == observers * (MILLION + MILLION // 100)
    assert left < KEPT
    assert most < KEPT


def chained(peer: Rxbus, handler: Handler) -> Handler:
    """Publishes on, to another topic."""
    return lambda event: (handler(event), peer.bus.publish("tocks", event.payload))


def repeated(peer: Rxbus, handler: Handler) -> Handler:
    """Publishes the same once more to its own topic: queued."""
    return lambda event: (handler(event), event.cause or peer.bus.publish("ticks", event.payload))


def deferring(peer: Rxbus, handler: Handler) -> Handler:
    """Acknowledges by hand."""

    def handle(event: rxbus.Event[int]) -> None:
        with rxbus.defer():
            handler(event)

    return handle


@pytest.mark.parametrize(("wrap", "deliveries"), [(chained, 2), (repeated, 2), (deferring, 1)])
def test_handlers_that_do_more_leave_nothing(
    peer: Rxbus, wrap: Callable[[Rxbus, Handler], Handler], deliveries: int
) -> None:
    tally = Tally()
    tally.attach(peer, "tocks", int(wrap is chained))
    peer.attach("ticks", wrap(peer, tally.handler()))
    left, most = memory(peer.publisher("ticks"), 100_000)
    peer.close()
    assert tally.total == deliveries * 101_000
    assert left < KEPT
    assert most < KEPT


def test_threads_that_have_ended_leave_nothing(peer: Rxbus) -> None:
    tally = Tally()
    tally.attach(peer, "ticks", 4)
    publish = peer.publisher("ticks")
    left, most = memory(lambda _: publish_together(publish, 8, 50), 100)
    peer.close()
    assert tally.total == 4 * 8 * 50 * 101
    assert left < KEPT
    assert most < 4 * KEPT  # while the threads are there


def test_a_thread_that_published_once_keeps_nothing(peer: Rxbus) -> None:
    tally = Tally()
    tally.attach(peer, "ticks", 2)
    publish_together(peer.publisher("ticks"), 1, 1)
    left, most = memory(peer.publisher("ticks"), 100_000)
    peer.close()
    assert tally.total == 2 * 101_001
    assert left <= most < KEPT


def test_names_that_nobody_listens_to_are_forgotten(peer: Rxbus) -> None:
    names = count()
    left, most = memory(lambda payload: peer.bus.publish(f"ticks.t{next(names)}", payload), 200_000)
    assert len(peer.bus.topics) == 0
    peer.close()
    assert left < 16 * 1024**2
    assert most < 32 * 1024**2
