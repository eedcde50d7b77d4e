"""Random topologies of handlers that publish to each other, and the book in which every delivery is kept."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import reactivex as rx

from rxbus import BlockingScheduler, Event, EventBus, PublishError, defer


class Expected(Exception):
    """What handlers raise on purpose."""


@contextlib.contextmanager
def switching(interval: float) -> Iterator[None]:
    """Has threads switched as often as that, so that races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@dataclass
class Tree:
    """An outermost publish and all that it led to."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    owed: int = 0  # deliveries of its events, by the number of observers of their topics
    ended: int = 0
    failures: int = 0

    def owe(self, count: int) -> None:
        with self.lock:
            self.owed += count

    def end(self, failed: bool = False) -> None:
        with self.lock:
            self.ended += 1
            self.failures += failed


@dataclass(frozen=True)
class Load:
    """What an event carries: whose tree it is in, and how many generations may follow it."""

    tree: Tree
    generations: int


@dataclass(frozen=True)
class Habits:
    """How often, of 1, a handler does what."""

    publish: float = 0.5
    fail: float = 0.0
    defer: float = 0.0
    schedule: float = 0.0
    lock: float = 0.0


class Topology:
    """Observers on topics, patterns and merged topics of one bus or more."""

    def __init__(self, seed: int, buses: list[EventBus], topics: int, observers: int, habits: Habits) -> None:
        self.random = random.Random(seed)
        self.buses = buses
        self.names = [(bus, f"t.{number}") for number in range(topics) for bus in buses]
        self.habits = habits
        self.counts: dict[tuple[int, str], int] = defaultdict(int)
        self.seen: list[list[tuple[int, str, int]]] = []
        self.faults: list[str] = []
        self.helpers = ThreadPoolExecutor(4, thread_name_prefix="helper")
        for _ in range(observers):
            self._attach()

    def _attach(self) -> None:
        seen: list[tuple[int, str, int]] = []
        self.seen.append(seen)
        bus = self.random.choice(self.buses)
        own = [name for one, name in self.names if one is bus]
        kind = self.random.choice(["one", "one", "pattern", "merge"])
        chosen = own if kind == "pattern" else self.random.sample(own, 1 if kind == "one" else 2)
        for name in chosen:
            self.counts[id(bus), name] += 1
        source = (
            bus.subscribe("t.*")
            if kind == "pattern"
            else rx.merge(*(bus.subscribe(name) for name in chosen))
            if kind == "merge"
            else bus.subscribe(chosen[0])
        )
        source.subscribe(self._handler(seen, bus, random.Random(self.random.random())))

    def _handler(
        self, seen: list[tuple[int, str, int]], bus: EventBus, dice: random.Random
    ) -> Callable[[Event[Load]], None]:
        inside = threading.Lock()
        lock = threading.RLock()
        habits = self.habits

        def work(event: Event[Load]) -> None:
            load = event.payload
            if load.generations > 0 and dice.random() < habits.publish:
                self.publish(dice, load.tree, load.generations - 1)

        def scheduled(event: Event[Load]) -> None:
            try:
                work(event)
            finally:
                event.payload.tree.end()

        def handler(event: Event[Load]) -> None:
            if not inside.acquire(blocking=False):
                self.faults.append(f"entered twice: {event.topic} {event.id}")
                return
            failed = False
            tree = event.payload.tree
            try:
                seen.append((id(bus), event.topic, event.id))
                with lock if dice.random() < habits.lock else contextlib.nullcontext():
                    work(event)
                deferred = dice.random() < habits.defer
                if deferred:
                    tree.owe(1)
                    self.helpers.submit(self._acknowledge, tree, defer())
                if dice.random() < habits.schedule:
                    tree.owe(1)
                    bus.scheduler.schedule(lambda *_: scheduled(event))
                if not deferred and dice.random() < habits.fail:  # a failure would settle what is deferred, too
                    failed = True
                    raise Expected(event.id)
            finally:
                inside.release()
                tree.end(failed)

        return handler

    @staticmethod
    def _acknowledge(tree: Tree, acknowledgement: Any) -> None:
        tree.end()
        acknowledgement.ack()

    def publish(self, dice: random.Random, tree: Tree, generations: int) -> None:
        """Publishes to a topic at random; what fails below is passed on as itself."""
        bus, name = dice.choice(self.names)
        tree.owe(self.counts[id(bus), name])
        bus.publish(name, Load(tree, generations))

    def run(self, threads: int, publishes: int, generations: int) -> int:
        """Publishes from many threads; gives how many deliveries there were."""
        start = threading.Barrier(threads)
        trees: list[Tree] = []

        def publisher(number: int) -> None:
            dice = random.Random(self.random.random() + number)
            start.wait(30)
            for _ in range(publishes):
                tree = Tree()
                trees.append(tree)
                try:
                    self.publish(dice, tree, generations)
                except PublishError as error:
                    if error.split(Expected)[1] is not None:
                        self.faults.append(repr(error))
                    if not tree.failures:
                        self.faults.append(f"failed without a failure: {error!r}")
                else:
                    if tree.failures:
                        self.faults.append(f"{tree.failures} failures of a tree were not told")
                if tree.owed != tree.ended:
                    self.faults.append(f"publish returned with {tree.ended} of {tree.owed} ended")

        workers = [
            threading.Thread(target=self._guarded, args=(publisher, n), name=f"publisher-{n}") for n in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self.helpers.shutdown()
        return sum(len(seen) for seen in self.seen)

    def _guarded(self, publisher: Callable[[int], None], number: int) -> None:
        try:
            publisher(number)
        except BaseException as error:
            self.faults.append(f"publisher died: {error!r}")

    def check(self) -> None:
        """One order per topic for all observers, nothing twice; ids rise."""
        assert not self.faults, self.faults[:5]
        orders: dict[tuple[int, str], list[list[int]]] = defaultdict(list)
        for seen in self.seen:
            mine: dict[tuple[int, str], list[int]] = defaultdict(list)
            for bus, topic, number in seen:
                mine[bus, topic].append(number)
            for key, order in mine.items():
                orders[key].append(order)
        for key, all_of_it in orders.items():
            for order in all_of_it:
                assert order == sorted(set(order)), f"{key}: not in order, or twice"
                assert order == all_of_it[0], f"{key}: two observers differ"


def buses(count: int, max_workers: int | None) -> list[EventBus]:
    return [EventBus(BlockingScheduler(max_workers, handoff_after=0.001)) for _ in range(count)]
