"""What publishing costs, beside the peers: `python -m pytest benchmarks --benchmark-only`.

Compare within one group of one run only. Every benchmark counts the deliveries that were made. abxbus has to be awaited
and takes some hundred times as long as the others: it stands in the group of awaited publishes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from reactivex import Observable

import rxbus
from benchmarks.loads import attach_async, attach_sleepers, publish_together
from rxbus._bench.peers import INLINE, Abxbus, Blinker, Handler, Loop, Peer, Rx, Rxbus, Tally

inline = pytest.mark.parametrize("peer", INLINE, ids=lambda peer: peer.name, indirect=True)


@pytest.fixture
def peer(request: pytest.FixtureRequest) -> Iterator[Peer]:
    peer = request.param()
    yield peer
    peer.close()


def measure(
    benchmark: BenchmarkFixture, call: Callable[..., object], *arguments: Any, iterations: int = 200, rounds: int = 40
) -> int:
    """Measures a call; gives how often it was made."""
    benchmark.pedantic(call, arguments, rounds=rounds, warmup_rounds=2, iterations=iterations)  # type: ignore[no-untyped-call]
    if benchmark.disabled:
        return 1
    return (rounds + 2) * iterations + (iterations > 1)  # where it loops, one more for the result


@inline
@pytest.mark.parametrize("observers", [0, 1, 10, 100])
def test_publish(benchmark: BenchmarkFixture, peer: Peer, observers: int) -> None:
    benchmark.group = f"publish, observers: {observers}"
    tally = Tally()
    tally.attach(peer, "ticks", observers)
    calls = measure(benchmark, peer.publisher("ticks"), 1)
    assert tally.total == observers * calls


@inline
def test_sleepers(benchmark: BenchmarkFixture, peer: Peer) -> None:
    benchmark.group = "eight handlers that sleep 10 ms, from the second publish on"
    tally = Tally()
    attach_sleepers(tally, peer, "ticks", 8, 0.01)
    calls = measure(benchmark, peer.publisher("ticks"), 1, iterations=1, rounds=10)
    assert tally.total == 8 * calls


@inline
def test_threads(benchmark: BenchmarkFixture, peer: Peer) -> None:
    """So many that threads meet: some 2,000 publishes fit into one time slice of the interpreter."""
    benchmark.group = "eight threads publish 10,000 events each to four observers"
    tally = Tally()
    tally.attach(peer, "ticks", 4)
    calls = measure(benchmark, publish_together, peer.publisher("ticks"), 8, 10_000, iterations=1, rounds=5)
    assert tally.total == 8 * 10_000 * 4 * calls


@inline
@pytest.mark.parametrize("topics", [1, 10_000])
def test_topics(benchmark: BenchmarkFixture, peer: Peer, topics: int) -> None:
    benchmark.group = f"publish to the next topic, topics: {topics:,}"
    tally = Tally()
    names = [f"ticks.t{number}" for number in range(topics)]
    for name in names:
        tally.attach(peer, name, 1)
    publishers = cycle([peer.publisher(name) for name in names])
    calls = measure(benchmark, lambda: next(publishers)(1), iterations=500)
    assert tally.total == calls


@inline
@pytest.mark.parametrize("observers", [1, 10_000])
def test_subscribe_and_leave(benchmark: BenchmarkFixture, peer: Peer, observers: int) -> None:
    benchmark.group = f"subscribe and leave, observers present: {observers:,}"
    tally = Tally()
    tally.attach(peer, "ticks", observers)
    passer_by = tally.handler()
    measure(benchmark, lambda: peer.attach("ticks", passer_by)(), iterations=20)
    peer.publish("ticks", 1)
    assert tally.total == observers


@inline
def test_nested_publish(benchmark: BenchmarkFixture, peer: Peer) -> None:
    benchmark.group = "publish in a handler, to another topic"
    tally = Tally()
    tally.attach(peer, "inner", 1)
    publish = peer.publisher("inner")
    peer.attach("outer", lambda _: publish(1))
    calls = measure(benchmark, peer.publisher("outer"), 1)
    assert tally.total == calls


@inline
def test_self_publish(benchmark: BenchmarkFixture, peer: Peer) -> None:
    """rxbus queues what a handler publishes to itself; the others recurse."""
    benchmark.group = "publish in a handler to its own topic, ten in a chain"
    tally = Tally()
    count, publish = tally.handler(), peer.publisher("ticks")

    def handle(message: Any) -> None:
        count(message)
        left = peer.payload(message)
        if left > 1:
            publish(left - 1)

    peer.attach("ticks", handle)
    calls = measure(benchmark, publish, 10, iterations=50)
    assert tally.total == 10 * calls


def test_deferral(benchmark: BenchmarkFixture) -> None:
    """No peer has the like."""
    benchmark.group = "a handler that defers its acknowledgement, and gives it"
    tally = Tally()
    count = tally.handler()

    def handle(event: rxbus.Event[int]) -> None:
        acknowledgement = rxbus.defer()
        count(event)
        acknowledgement.ack()

    with rxbus.EventBus() as bus:
        bus.subscribe("ticks").subscribe(handle)
        calls = measure(benchmark, bus.publish, "ticks", 1)
        acknowledged = bus.statistics().acknowledged
    assert tally.total == acknowledged == calls


def chain(payloads: Observable[int]) -> Observable[int]:
    return payloads.filter(lambda x: x > 0).map(lambda x: x * 2).scan(lambda sum, x: sum + x, 0)


def attach_chain(peer: Peer, handler: Handler) -> None:
    """Attaches behind filter, map and scan: the peer's own, or written out by hand."""
    if isinstance(peer, Rxbus):
        chain(peer.source("ticks").only_payload()).subscribe(handler)
    elif isinstance(peer, Rx):
        chain(peer.source("ticks")).subscribe(handler)
    else:
        sum = 0

        def handle(x: int) -> None:
            nonlocal sum
            if x > 0:
                sum += x * 2
                handler(sum)

        peer.attach("ticks", handle)


@pytest.mark.parametrize("peer", [Loop, Rxbus, Rx], ids=lambda peer: peer.name, indirect=True)
def test_chain(benchmark: BenchmarkFixture, peer: Peer) -> None:
    benchmark.group = "filter, map and scan, per event"
    tally = Tally()
    attach_chain(peer, tally.handler())
    calls = measure(benchmark, peer.publisher("ticks"), 1)
    assert tally.total == calls


@pytest.mark.parametrize("peer", [Rxbus, Blinker, Abxbus], ids=lambda peer: peer.name, indirect=True)
@pytest.mark.parametrize("observers", [1, 10])
def test_awaited(benchmark: BenchmarkFixture, peer: Peer, observers: int) -> None:
    benchmark.group = f"20 awaited publishes, async handlers: {observers}"
    tally = Tally()

    async def attach() -> None:
        attach_async(tally, peer, "ticks", observers)

    async def publish() -> None:
        for _ in range(20):
            await peer.publish_async("ticks", 1)

    peer.run(attach())
    calls = measure(benchmark, lambda: peer.run(publish()), iterations=1, rounds=10)
    assert tally.total == 20 * observers * calls
