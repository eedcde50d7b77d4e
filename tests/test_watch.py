"""What the monitor takes for slow, and to how many workers it hands what waits behind that."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from rxbus import BlockingScheduler, EventBus, _watch
from rxbus._watch import SHARE, Watch, processor_time
from rxbus.operators import buffered

PATIENCE = 10.0
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a thread does")


class Looker:
    """A bus whose monitor finds nothing slow, and another watch that looks when a test says so, by a clock of its own.

    `processor_time` is what it takes each thread to have run; None: all wait for something.
    """

    def __init__(self, max_workers: int | None = None) -> None:
        self.time = 0.0
        self.processor_time: int | None = None
        self.scheduler = BlockingScheduler(max_workers, handoff_after=1e9, stall_after=1e9)
        self.bus = EventBus(self.scheduler)
        self._watch = Watch(self.scheduler, handoff_after=1.0, stall_after=1e9)

    def look(self) -> bool | None:
        """Looks a second later."""
        self.time += 1.0
        return self._watch.look()


@pytest.fixture
def looker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Looker]:
    looker = Looker()
    monkeypatch.setattr(looker.scheduler.time, "monotonic", lambda: looker.time)
    monkeypatch.setattr(_watch, "processor_time", lambda thread: looker.processor_time)
    with looker.bus:
        yield looker


class Gate:
    """A handler that stands at a gate, on the publisher's thread."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self, event: object) -> None:
        self.entered.set()
        assert self.go.wait(PATIENCE)


def test_a_starved_handler_is_not_slow(looker: Looker, spawn: Callable[..., Future[Any]]) -> None:
    """It is ready to run, and has not run: workers would get no processor either."""
    gate, others = Gate(), []
    looker.bus.subscribe("a").subscribe(gate)
    for _ in range(3):
        looker.bus.subscribe("a").subscribe(others.append)
    published = spawn(looker.bus.publish, "a")
    assert gate.entered.wait(PATIENCE)
    looker.processor_time = 7_000_000_000
    for _ in range(9):
        assert looker.look()  # and soon again: it may block as soon as it runs
    looker.processor_time += 999_999_999
    looker.look()
    assert (looker.scheduler.workers, others) == (0, [])
    gate.go.set()
    assert published.result(PATIENCE).acknowledged == 4
    assert looker.scheduler.workers == 0


@pytest.mark.parametrize("computes", [True, False])
def test_a_handler_that_waits_or_runs_is_slow(
    looker: Looker, spawn: Callable[..., Future[Any]], computes: bool
) -> None:
    gate, other = Gate(), threading.Event()
    looker.bus.subscribe("a").subscribe(gate)
    looker.bus.subscribe("a").subscribe(lambda event: other.set())
    published = spawn(looker.bus.publish, "a")
    assert gate.entered.wait(PATIENCE)
    looker.processor_time = 7_000_000_000
    looker.look()
    looker.look()
    assert looker.scheduler.workers == 0
    looker.processor_time = 8_000_000_000 if computes else None
    looker.look()
    assert other.wait(PATIENCE)
    gate.go.set()
    assert published.result(PATIENCE).acknowledged == 2


def test_a_handler_that_returns_while_it_is_asked_about_is_not_slow(
    looker: Looker, spawn: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has been waiting for the interpreter, which the question lets go of."""
    first, second = Gate(), Gate()
    looker.bus.subscribe("a").subscribe(first)
    looker.bus.subscribe("a").subscribe(second)
    looker.bus.subscribe("a").subscribe(lambda event: None)

    def asked(thread: int) -> None:
        first.go.set()
        assert second.entered.wait(PATIENCE)

    monkeypatch.setattr(_watch, "processor_time", asked)
    published = spawn(looker.bus.publish, "a")
    assert first.entered.wait(PATIENCE)
    looker.look()
    looker.look()
    assert looker.scheduler.workers == 0
    second.go.set()
    assert published.result(PATIENCE).acknowledged == 3


def test_one_slow_handler_among_many_costs_few_threads(looker: Looker, spawn: Callable[..., Future[Any]]) -> None:
    gate, others = Gate(), []
    looker.bus.subscribe("a").subscribe(gate)
    for _ in range(200):
        looker.bus.subscribe("a").subscribe(others.append)
    published = spawn(looker.bus.publish, "a")
    assert gate.entered.wait(PATIENCE)
    looker.look()
    looker.look()
    assert 0 < looker.scheduler.workers <= SHARE
    gate.go.set()
    assert published.result(PATIENCE).acknowledged == 201
    assert looker.scheduler.workers <= SHARE
    assert len(others) == 200


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("observers", [8, 64, 200])
def test_handlers_that_wait_for_each_other_all_get_a_thread(
    looker: Looker, spawn: Callable[..., Future[Any]], observers: int, nested: bool
) -> None:
    """Each that is stuck hands over in its turn, so it takes few looks, however many there are."""
    barrier, met = threading.Barrier(observers), []

    def meet(event: object) -> None:
        met.append(barrier.wait(PATIENCE))

    for _ in range(observers):
        looker.bus.subscribe("meeting").subscribe(meet)
    looker.bus.subscribe("a").subscribe(lambda event: nested and looker.bus.publish("meeting") and None)
    published = spawn(looker.bus.publish, "a" if nested else "meeting")
    while not published.done():
        looker.look()
    assert published.result(PATIENCE).acknowledged == (1 if nested else observers)
    assert sorted(met) == list(range(observers))
    assert looker.scheduler.workers == observers - 1


def test_what_waits_on_a_bus_without_workers_is_its_publisher_s(
    looker: Looker, spawn: Callable[..., Future[Any]]
) -> None:
    """The monitor would be stuck in a handler that blocks."""
    gate, threads = Gate(), []
    looker.bus.subscribe("gate").subscribe(gate)
    with EventBus(BlockingScheduler(0)) as without:
        without.subscribe("a").subscribe(lambda event: looker.bus.publish("gate") and None)
        without.subscribe("a").subscribe(lambda event: threads.append(threading.current_thread().name))
        published = spawn(without.publish, "a")
        assert gate.entered.wait(PATIENCE)
        for _ in range(3):
            looker.look()
        assert threads == []
        gate.go.set()
        assert published.result(PATIENCE).acknowledged == 2
    assert threads == ["spawned-0"]


def test_a_stuck_thread_s_buffer_of_a_bus_without_workers_is_emptied_by_workers(
    looker: Looker, spawn: Callable[..., Future[Any]]
) -> None:
    threads, item = [], threading.Event()

    def note(event: object) -> None:
        threads.append(threading.current_thread().name)
        item.set()

    def wait_for_it(event: object) -> None:
        without.publish("a")
        assert item.wait(PATIENCE)

    looker.bus.subscribe("a").subscribe(wait_for_it)
    with EventBus(BlockingScheduler(0)) as without:
        without.subscribe("a").pipe(buffered(1)).subscribe(note)
        published = spawn(looker.bus.publish, "a")
        while not published.done():
            looker.look()
        assert published.result(PATIENCE).acknowledged == 1
    assert threads == ["rxbus-worker-1"]


@LINUX
def test_a_thread_that_runs_has_a_processor_time_and_one_that_waits_has_none() -> None:
    own = threading.get_native_id()
    before = processor_time(own)
    assert before is not None
    while processor_time(own) == before:
        pass
    done = threading.Event()
    waiting = threading.Thread(target=done.wait, args=(PATIENCE,))
    waiting.start()
    assert waiting.native_id is not None
    while processor_time(waiting.native_id) is not None:
        assert waiting.is_alive()
    done.set()
    waiting.join()
    while processor_time(waiting.native_id) is not None:  # to the system, it may end a little later
        pass


def test_where_the_system_does_not_say_time_by_the_clock_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", refuse)
    assert processor_time(threading.get_native_id()) is None
