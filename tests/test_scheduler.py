"""BlockingScheduler as a reactivex scheduler."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import Any

import pytest
from reactivex import operators as ops

from rxbus import AcknowledgementTimeout, BlockingScheduler, Event, EventBus, InvalidArgument, PublishError, RxBusError
from rxbus._fan_out import Wait
from rxbus._here import local, places
from rxbus._scheduler import _Scheduled
from rxbus.operators import buffered
from rxbus.testing import expect_failure

PATIENCE = 10.0
SOON = 0.01


def wait_until(true: Callable[[], object]) -> None:
    """For what only the inside of the bus knows: looks again and again."""
    while not true():
        time.sleep(0.001)


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_workers": -1},
        {"max_workers": 1.5},
        {"handoff_after": 0},
        {"stall_after": -1},
        {"stall_after": float("nan")},
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        BlockingScheduler(**arguments)


@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("way", ["now", "relative", "absolute", "past"])
def test_outside_a_delivery_an_action_simply_runs(max_workers: int | None, way: str) -> None:
    scheduler = BlockingScheduler(max_workers)
    ran = threading.Event()
    states: list[object] = []

    def action(_: object, state: object = None) -> None:
        states.append(state)
        ran.set()

    if way == "now":
        scheduler.schedule(action, "state")
    elif way == "absolute":
        scheduler.schedule_absolute(datetime.now(UTC) + timedelta(seconds=SOON), action, "state")
    else:
        scheduler.schedule_relative(SOON if way == "relative" else -1.0, action, "state")
    assert ran.wait(PATIENCE)
    scheduler.close()
    assert states == ["state"]
    assert scheduler.workers == 0


@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("delay", [0.0, SOON])
def test_an_action_scheduled_in_a_delivery_belongs_to_it(max_workers: int | None, delay: float) -> None:
    done: list[str] = []
    with EventBus(BlockingScheduler(max_workers)) as bus:

        def later(*_: object) -> None:
            done.append("later")
            bus.publish("b")  # in the tree of the event

        bus.subscribe("b").subscribe(lambda event: done.append("b"))
        bus.subscribe("a").subscribe(lambda event: bus.scheduler.schedule_relative(delay, later))
        for _ in range(2):
            assert bus.publish("a").acknowledged == 1
            assert done == ["later", "b"]
            done.clear()


def test_the_turn_lasts_until_the_action_has_ended(bus: EventBus) -> None:
    inside = threading.Lock()
    seen: list[int] = []

    def action(_: object, state: Any = None) -> None:
        assert inside.acquire(blocking=False), "two events at a time"
        seen.append(state)
        inside.release()

    bus.subscribe("a").subscribe(lambda event: bus.scheduler.schedule(action, event.payload))
    publishers = [threading.Thread(target=lambda: [bus.publish("a", n) for n in range(50)]) for _ in range(4)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join(PATIENCE)
    assert sorted(seen) == sorted(list(range(50)) * 4)


@pytest.mark.parametrize("max_workers", [None, 0])
def test_an_action_that_fails_fails_the_publish(max_workers: int | None) -> None:
    def failing(*_: object) -> None:
        raise ValueError("later")

    with EventBus(BlockingScheduler(max_workers)) as bus:
        bus.subscribe("a").subscribe(lambda event: bus.scheduler.schedule(failing))
        with pytest.raises(PublishError) as caught:
            bus.publish("a")
    assert str(caught.value.exceptions[0]) == "later"


def test_an_action_that_fails_outside_is_logged() -> None:
    scheduler = BlockingScheduler()

    def failing(*_: object) -> None:
        raise ValueError("outside")

    with expect_failure(ValueError, match="outside"):
        scheduler.schedule(failing)
    scheduler.close()


def test_disposing_of_an_action_frees_the_publisher(bus: EventBus) -> None:
    def handler(event: Event[Any]) -> None:
        scheduled = bus.scheduler.schedule_relative(1000.0, lambda *_: None)
        scheduled.dispose()
        scheduled.dispose()

    bus.subscribe("a").subscribe(handler)
    assert bus.publish("a").acknowledged == 1


def test_periodic_actions_run_until_disposed() -> None:
    scheduler = BlockingScheduler()
    twice = threading.Semaphore(0)

    def tick(state: Any) -> Any:
        twice.release()
        return state

    periodic = scheduler.schedule_periodic(0.001, tick)
    assert all(twice.acquire(timeout=PATIENCE) for _ in range(2))
    periodic.dispose()
    scheduler.close()


def test_an_interrupt_while_scheduling_leaves_no_turn_taken(bus: EventBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Struck after the turn is held and before the action is on its way."""
    strikes = [KeyboardInterrupt()]
    submit = bus.scheduler.submit

    def struck(job: Any) -> None:
        if strikes:
            raise strikes.pop()
        submit(job)

    monkeypatch.setattr(bus.scheduler, "submit", struck)
    ran: list[int] = []
    bus.subscribe("a").subscribe(lambda event: bus.scheduler.schedule(lambda *_: ran.append(event.payload)))
    with pytest.raises(KeyboardInterrupt):
        bus.publish("a", 1)
    assert bus.publish("a", 2, timeout=PATIENCE).acknowledged == 1
    assert ran == [2]


def test_nan_is_no_time(bus: EventBus) -> None:
    for schedule in (bus.scheduler.schedule_relative, bus.scheduler.schedule_absolute):
        with pytest.raises((InvalidArgument, ValueError)):
            schedule(float("nan"), lambda *_: None)
    done = threading.Event()
    bus.scheduler.schedule_relative(SOON, lambda *_: done.set())
    assert done.wait(PATIENCE)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("max_workers", [None, 0, 1])
@pytest.mark.parametrize("period", [0.0, 0.001])
def test_what_runs_periodically_ends_with_the_bus(max_workers: int | None, period: float) -> None:
    if max_workers == 0 and period == 0:
        period = 0.0001  # at once would be on this very thread, again and again
    bus = EventBus(BlockingScheduler(max_workers))
    often, ran = threading.Event(), [0]

    def action(state: Any) -> None:
        ran[0] += 1
        if ran[0] == 20:
            often.set()

    bus.scheduler.schedule_periodic(period, action)
    assert often.wait(PATIENCE)
    bus.close()
    ended = ran[0]
    assert [thread for thread in threading.enumerate() if thread.name.startswith("rxbus-")] == []
    assert ran[0] == ended


@pytest.mark.timeout(30)
@pytest.mark.parametrize("max_workers", [None, 0, 1])
def test_an_action_may_wait_for_what_is_scheduled_for_later(max_workers: int | None) -> None:
    with EventBus(BlockingScheduler(max_workers)) as bus:
        seen: list[str] = []
        done = threading.Event()
        bus.subscribe("a").pipe(ops.delay(SOON, scheduler=bus.scheduler)).subscribe(lambda event: seen.append("later"))

        def action(*_: object) -> None:
            bus.publish("a")
            seen.append("published")
            done.set()

        bus.scheduler.schedule_relative(SOON, action)
        assert done.wait(PATIENCE)
        assert seen == ["later", "published"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("max_workers", [None, 0, 1])
def test_an_action_that_closes_while_another_thread_does_is_refused(max_workers: int | None) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    inside, go_on = threading.Event(), threading.Event()
    refused: list[RxBusError] = []

    def action(*_: object) -> None:
        inside.set()
        assert go_on.wait(PATIENCE)
        with pytest.raises(RxBusError) as caught:
            bus.close()
        refused.append(caught.value)

    bus.scheduler.schedule_relative(SOON, action)
    assert inside.wait(PATIENCE)
    closing = threading.Thread(target=bus.close)
    closing.start()
    go_on.set()
    closing.join(PATIENCE)
    assert not closing.is_alive()
    assert len(refused) == 1


def test_an_interrupt_in_an_action_is_raised_where_it_runs() -> None:
    with EventBus(BlockingScheduler(0)) as bus, pytest.raises(KeyboardInterrupt):
        bus.scheduler.schedule(lambda *_: signal.raise_signal(signal.SIGINT))


def test_a_thread_that_cannot_be_started_fails_the_publish_only(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_but(thread: threading.Thread) -> None:
        if thread.name == "rxbus-clock":
            raise RuntimeError("can't start new thread")
        start(thread)

    with EventBus() as bus:
        seen: list[Any] = []
        bus.subscribe("a").subscribe(lambda e: bus.scheduler.schedule_relative(SOON, lambda *_: seen.append(e.id)))
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start_but)
            with pytest.raises(PublishError) as caught:
                bus.publish("a")
        assert "can start no thread" in str(caught.value.exceptions[0])
        event = bus.publish("a").event
        assert seen == [event.id]


@pytest.mark.parametrize("way", ["run", "disposed of"])
def test_a_kept_disposable_pins_nothing(bus: EventBus, way: str) -> None:
    class Big: ...

    state, done = Big(), threading.Event()
    gone = weakref.ref(state)
    kept = bus.scheduler.schedule_relative(SOON if way == "run" else 1000, lambda *_: done.set(), state)
    del state
    if way == "run":
        assert done.wait(PATIENCE)
    else:
        kept.dispose()
    bus.close()
    assert gone() is None


@pytest.mark.timeout(30)
@pytest.mark.parametrize("max_workers", [None, 0, 1])
def test_an_action_is_done_by_the_thread_that_waits_for_it_above(max_workers: int | None) -> None:
    """Behind a buffer another publish begins while the first waits for an action that keeps the observer's turn."""
    with EventBus(BlockingScheduler(max_workers)) as bus:
        seen: list[str] = []
        for chain in (ops.observe_on(bus.scheduler), ops.delay(SOON, scheduler=bus.scheduler)):
            bus.subscribe("log.*").pipe(chain).subscribe(lambda event: seen.append(event.topic))
        bus.subscribe("log.a").pipe(buffered(9)).subscribe(lambda event: bus.publish("log.b"))
        bus.publish("log.a")
    assert sorted(seen) == ["log.a", "log.a", "log.b", "log.b"]


@pytest.mark.timeout(30)
def test_the_only_worker_does_what_a_nested_publisher_has_left_behind(spawn: Callable[..., Future[Any]]) -> None:
    """That one was late, and has gone before its action was due."""
    bus = EventBus(BlockingScheduler(max_workers=1))
    done = threading.Event()

    def relay(event: Event[None]) -> None:
        with pytest.raises(AcknowledgementTimeout):
            bus.publish("late", timeout=0)

    def work(event: Event[None]) -> None:
        bus.publish("relay")
        done.set()

    bus.subscribe("late").pipe(ops.delay(SOON, scheduler=bus.scheduler)).subscribe()
    bus.subscribe("relay").subscribe(relay)
    bus.subscribe("items").pipe(buffered(1)).subscribe(work)
    bus.publish("items")
    assert done.wait(PATIENCE)
    spawn(bus.close).result(PATIENCE)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("attempt", range(5))  # it need not be asleep yet when the gate opens
def test_what_joins_the_tree_of_the_only_worker_later_is_done(spawn: Callable[..., Future[Any]], attempt: int) -> None:
    """The worker waits, and another takes its place; see `Workers.rest`."""
    bus = EventBus(BlockingScheduler(max_workers=1, handoff_after=100.0))
    got: list[str] = []
    entered, go = threading.Event(), threading.Event()

    def waiting() -> list[Wait]:
        others = [here for here in list(places.values()) if here is not local.here]
        return [here.wait for here in others if here.wait is not None]

    def relay(event: Event[str]) -> None:
        if event.payload == "mine":
            entered.set()
            assert go.wait(PATIENCE)
        else:
            bus.publish("late", "theirs")

    def gate(event: Event[str]) -> None:
        """The round of the nested publish stays open until the worker, woken by the action, sleeps again."""
        if event.payload == "theirs":
            wait_until(lambda: all(wait.bell is not None and wait.bell._lock.locked() for wait in waiting()))

    bus.subscribe("items").pipe(buffered(1)).subscribe(lambda event: bus.publish("relay", "the worker's") and None)
    bus.subscribe("relay").subscribe(relay)
    bus.subscribe("late").pipe(ops.observe_on(bus.scheduler)).subscribe(lambda event: got.append(event.payload))
    bus.subscribe("late").subscribe(gate)
    publishing = spawn(bus.publish, "relay", "mine")
    assert entered.wait(PATIENCE)
    bus.publish("items")
    wait_until(waiting)
    with suppress(AcknowledgementTimeout):  # its action is the pool's alone: nobody waits for it
        bus.publish("late", "early", timeout=0.01)
    go.set()
    publishing.result(PATIENCE)
    spawn(bus.close).result(PATIENCE)
    assert got == ["early", "theirs"]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("max_workers", [None, 0, 1])
async def test_closing_where_the_publisher_has_to_do_what_is_scheduled(max_workers: int | None) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    seen: list[Any] = []
    bus.subscribe("a").pipe(ops.delay(SOON, scheduler=bus.scheduler)).subscribe(seen.append)
    publishing = asyncio.ensure_future(bus.publish_async("a"))
    await asyncio.sleep(0)
    bus.close()
    assert [event.id for event in seen] == [(await publishing).event.id]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("max_workers", [None, 0, 1])
def test_closing_in_a_signal_handler_where_the_publisher_waits(max_workers: int | None) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    seen: list[Any] = []

    def wait(event: Any) -> None:
        threading.Timer(SOON, signal.raise_signal, (signal.SIGUSR1,)).start()

    bus.subscribe("a").subscribe(wait)
    bus.subscribe("a").pipe(ops.delay(10 * SOON, scheduler=bus.scheduler)).subscribe(seen.append)
    before = signal.signal(signal.SIGUSR1, lambda *_: bus.close())
    try:
        assert bus.publish("a").acknowledged == 2
    finally:
        signal.signal(signal.SIGUSR1, before)
    bus.close()
    assert len(seen) == 1


@pytest.mark.parametrize("max_workers", [0, 1])
def test_closing_in_a_signal_handler_that_strikes_an_action_before_it_gives_its_turn_back(
    max_workers: int, spawn: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = EventBus(BlockingScheduler(max_workers))
    told: list[RxBusError] = []
    end = _Scheduled._end

    def strike(self: _Scheduled, error: BaseException | None) -> None:
        with pytest.raises(RxBusError) as refused:
            bus.close()
        told.append(refused.value)
        end(self, error)

    bus.subscribe("a").pipe(ops.observe_on(bus.scheduler)).subscribe()
    monkeypatch.setattr(_Scheduled, "_end", strike)
    assert spawn(bus.publish, "a").result(PATIENCE).acknowledged == 1
    spawn(bus.close).result(PATIENCE)
    assert told


@pytest.mark.timeout(30)
def test_what_a_delivery_has_scheduled_is_given_up_with_its_scheduler() -> None:
    """The one that has scheduled it is another bus's: nobody else waits for it."""
    other = EventBus()
    with EventBus() as bus:
        scheduled = threading.Event()

        def handle(event: Any) -> None:
            other.scheduler.schedule_relative(1000, lambda *_: None)
            scheduled.set()

        bus.subscribe("a").subscribe(handle)
        publishing = threading.Thread(target=bus.publish, args=("a",))
        publishing.start()
        assert scheduled.wait(PATIENCE)
        other.close()
        publishing.join(PATIENCE)
        assert not publishing.is_alive()


@pytest.mark.parametrize("way", ["observe_on", "delay"])
def test_the_cause_is_kept_behind_a_buffer_on_the_scheduler(bus: EventBus, way: str) -> None:
    chain = ops.observe_on(bus.scheduler) if way == "observe_on" else ops.delay(SOON, scheduler=bus.scheduler)
    causes: SimpleQueue[int | None] = SimpleQueue()
    bus.subscribe("b").subscribe(lambda event: causes.put(event.cause))
    bus.subscribe("a").pipe(buffered(5), chain).subscribe(lambda event: bus.publish("b"))
    cause = bus.publish("a").event.id
    assert causes.get(timeout=PATIENCE) == cause


@pytest.mark.parametrize("way", ["observe_on", "delay"])
def test_a_failed_action_pins_no_payload(bus: EventBus, way: str) -> None:
    class Big: ...

    def fail(event: Any) -> None:
        raise ValueError

    chain = ops.observe_on(bus.scheduler) if way == "observe_on" else ops.delay(SOON, scheduler=bus.scheduler)
    kept = bus.subscribe("a").pipe(chain).subscribe(fail)
    payload = Big()
    gone = weakref.ref(payload)
    with suppress(PublishError):
        bus.publish("a", payload)
    del payload
    bus.scheduler.join(PATIENCE)
    gc.collect()
    assert gone() is None
    kept.dispose()


def test_an_idle_worker_pins_nothing(bus: EventBus) -> None:
    class Big: ...

    state, done = Big(), threading.Event()
    gone = weakref.ref(state)
    bus.scheduler.schedule(lambda *_: done.set(), state)
    del state
    assert done.wait(PATIENCE)
    bus.scheduler.join(PATIENCE)
    assert gone() is None
