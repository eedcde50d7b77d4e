"""The project's targets, measured: `python -m benchmarks.ratios`. It takes about a minute.

Figures of different runs cannot be compared, nor those of different minutes. So the peers take turns in short rounds,
within one process, and what counts is the ratio of their medians.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import NamedTuple

from benchmarks.loads import attach_sleepers, memory, publish_many, publish_together
from rxbus._bench.peers import Blinker, Peer, Rx, Rxbus, Tally
from rxbus._bench.rounds import Load

MILLION = 1_000_000


class Row(NamedTuple):
    """One line of the table."""

    what: str
    target: str
    measured: str
    met: bool

    def __str__(self) -> str:
        return f"| {self.what} | {self.target} | {self.measured} | {'met' if self.met else 'missed'} |"


def medians(loads: list[Load], rounds: int) -> dict[str, float]:
    """Runs the loads in turn, round by round; gives each one's median time per publish, in seconds."""
    for load in loads:
        load.seconds()  # not counted
    times = [[load.seconds() for load in loads] for _ in range(rounds)]
    return {load.name: median(column) for load, column in zip(loads, zip(*times, strict=True), strict=True)}


def compare(
    peers: tuple[type[Peer], ...], observers: int, rounds: int, publishes: int, threads: int = 1
) -> dict[str, float]:
    """Has each peer publish, so often on each thread, to observers that count; gives medians, by the peer's name."""
    with ExitStack() as stack:
        loads = []
        for peer in [kind() for kind in peers]:
            stack.callback(peer.close)
            tally = Tally()
            tally.attach(peer, "ticks", observers)
            publish = peer.publisher("ticks")
            run = partial(publish_many, publish, publishes)
            if threads > 1:
                run = partial(publish_together, publish, threads, publishes)
            loads.append(Load(peer.name, run, threads * publishes, observers, tally))
        return medians(loads, rounds)


def times_as_long(what: str, found: dict[str, float], peer: type[Peer], most: float) -> Row:
    own, other = found[Rxbus.name], found[peer.name]
    measured = f"{own / other:.2f} ({own * 1e6:.2f} / {other * 1e6:.2f} µs)"
    return Row(what, f"<= {most:g} x {peer.name.split()[-1]}", measured, own <= most * other)


def publishing() -> Iterator[Row]:
    for observers, most in ((1, 1.0), (10, 2.0), (100, 2.0)):
        found = compare((Rxbus, Rx, Blinker), observers, rounds=301, publishes=5000 // (observers + 4))
        yield times_as_long(f"publish, observers: {observers}", found, Rx, most)
        yield times_as_long(f"publish, observers: {observers}", found, Blinker, 1.0)


def threads() -> Iterator[Row]:
    """Two loads: what fits into one of the interpreter's time slices, so that threads hardly meet; and twenty such."""
    for what, rounds, publishes in (("2,000 times each", 25, 2000), ("40,000 times each", 5, 40_000)):
        found = compare((Rxbus, Rx), 4, rounds, publishes, threads=8)
        own, other = (1e-3 / found[peer.name] for peer in (Rxbus, Rx))
        measured = f"{own / other:.2f} ({own:.0f} k / {other:.0f} k per s)"
        yield Row(f"eight threads publish, observers: 4, {what}", ">= 0.5 x Subject", measured, own >= 0.5 * other)


def sleepers() -> Iterator[Row]:
    peer, tally = Rxbus(), Tally()
    attach_sleepers(tally, peer, "ticks", 8, 0.01)
    publish = peer.publisher("ticks")
    load = Load(peer.name, lambda: publish(1), 1, 8, tally)
    first = load.seconds() * 1000
    later = [load.seconds() * 1000 for _ in range(50)]
    peer.close()
    measured = f"{median(later):.1f} ms (first {first:.1f}, worst {max(later):.1f})"
    yield Row("eight observers of 10 ms, from the second publish on", "< 12 ms", measured, median(later) < 12)


def leftovers() -> Iterator[Row]:
    for observers in (1, 4):
        peer, tally = Rxbus(), Tally()
        tally.attach(peer, "ticks", observers)
        left, most = memory(peer.publisher("ticks"), MILLION)
        peer.close()
        assert tally.total >= observers * MILLION
        measured = f"{left / 1024:.0f} KiB (at most {most / 1024:.0f})"
        yield Row(
            f"memory left by a million publishes, observers: {observers}", "none (< 64 KiB)", measured, most < 64 * 1024
        )


def main() -> None:
    print("| what | target | measured | |\n|---|---|---|---|")
    for rows in (publishing, threads, sleepers, leftovers):
        for row in rows():
            print(row, flush=True)


if __name__ == "__main__":
    main()
