"""Virtual time: what would take long takes none, and is the same each time."""

from __future__ import annotations

import asyncio
import logging
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from math import inf, nan
from typing import Any

import pytest
import reactivex as rx
from reactivex import operators as ops
from reactivex.internal import ArgumentOutOfRangeException

from rxbus import (
    Acknowledgement,
    AcknowledgementTimeout,
    BlockingScheduler,
    Event,
    EventBus,
    InvalidArgument,
    PublishError,
    RxBusError,
    TimeStandsStill,
    VirtualClock,
    _virtual,
    defer,
)
from rxbus.operators import buffered, observe_on, tap
from rxbus.testing import expect, virtual_bus

PATIENCE = 10.0
DAY = 86_400.0
Spawn = Callable[..., Future[Any]]


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def bus(clock: VirtualClock) -> Iterator[EventBus]:
    with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
        yield bus


def seconds_of(clock: VirtualClock, seen: list[Any]) -> Callable[[Any], None]:
    """A handler that notes when it is called, and with what."""
    return lambda value: seen.append((clock.seconds, value))


def ack_after(clock: VirtualClock, seconds: float) -> Callable[[object], object]:
    """A handler whose work is done elsewhere, and takes a while."""

    def handle(event: object) -> None:
        acknowledgement = defer()
        clock.schedule_relative(seconds, lambda *_: acknowledgement.ack())

    return handle


@pytest.mark.parametrize("arguments", [{}, {"max_workers": 1}, {"max_workers": None}])
def test_virtual_time_is_for_one_thread(clock: VirtualClock, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="max_workers=0"):
        BlockingScheduler(**arguments, clock=clock)


def test_what_is_no_virtual_clock_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        BlockingScheduler(max_workers=0, clock=rx.scheduler.TimeoutScheduler())  # type: ignore[arg-type]


def test_a_publisher_that_waits_lets_time_pass(bus: EventBus, clock: VirtualClock) -> None:
    seen: list[Any] = []
    delayed = bus.subscribe("a").only_payload().pipe(ops.delay(DAY, scheduler=bus.scheduler))
    delayed.subscribe(seconds_of(clock, seen))
    for n in range(3):
        receipt = bus.publish("a", n)
        assert (receipt.acknowledged, receipt.event.time) == (1, n * DAY)
    assert seen == [(DAY, 0), (2 * DAY, 1), (3 * DAY, 2)]


def test_the_scheduler_goes_by_it(bus: EventBus, clock: VirtualClock) -> None:
    assert bus.scheduler.clock is clock
    assert EventBus().scheduler.clock is None
    clock.advance_by(timedelta(hours=1))
    assert bus.scheduler.now == clock.now == datetime.fromtimestamp(3600, UTC)
    seen: list[Any] = []
    bus.scheduler.schedule_absolute(datetime.fromtimestamp(7200, UTC), lambda *_: seen.append(clock.seconds))
    clock.start()
    assert seen == [7200.0]


def test_a_timeout_strikes_without_waiting(bus: EventBus, clock: VirtualClock) -> None:
    bus.subscribe("a", name="uploader").subscribe(ack_after(clock, 5.0))
    with pytest.raises(AcknowledgementTimeout) as raised:
        bus.publish("a", timeout=3)
    assert raised.value.pending == ("uploader",)
    assert clock.seconds == 3.0
    assert bus.publish("a", timeout=6).acknowledged == 1
    assert clock.seconds == 8.0


def test_what_would_never_come_is_an_error_at_once(bus: EventBus, clock: VirtualClock) -> None:
    bus.subscribe("a", name="forgets").subscribe(lambda event: defer())
    bus.subscribe("a", name="works").subscribe(lambda event: None)
    with pytest.raises(AcknowledgementTimeout, match="never acknowledged by forgets: in virtual time") as raised:
        bus.publish("a")
    assert (raised.value.pending, raised.value.timeout, clock.seconds) == (("forgets",), inf, 0.0)
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize("timeout", [1e12, 1e300, inf])
def test_a_timeout_beyond_all_dates_is_for_ever(bus: EventBus, clock: VirtualClock, timeout: float) -> None:
    bus.subscribe("a").subscribe(lambda event: defer())
    with pytest.raises(AcknowledgementTimeout):
        bus.publish("a", timeout=timeout)
    assert clock.seconds == 0.0


def test_what_happens_again_and_again_is_no_hope(
    bus: EventBus, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_virtual, "MOST", 50)
    rx.interval(1.0, scheduler=clock).subscribe(lambda _: None)
    bus.subscribe("a", name="forgets").subscribe(lambda event: defer())
    with pytest.raises(AcknowledgementTimeout):
        bus.publish("a")
    assert clock.seconds == 50.0


def again_and_again(clock: VirtualClock) -> None:
    clock.schedule(lambda *_: again_and_again(clock))


def test_actions_that_keep_time_from_passing_keep_no_timeout_from_striking(
    bus: EventBus, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_virtual, "MOST", 50)
    again_and_again(clock)
    bus.subscribe("a", name="forgets").subscribe(lambda event: defer())
    with pytest.raises(AcknowledgementTimeout, match="within 5 s"):
        bus.publish("a", timeout=5)
    assert clock.seconds == 5.0


@pytest.mark.parametrize("way", ["advance_to", "advance_by", "start", "expect"])
def test_actions_that_keep_time_from_passing_are_an_error(
    bus: EventBus, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(_virtual, "MOST", 50)
    clock.schedule_relative(1.0, lambda *_: again_and_again(clock))
    ways: dict[str, Callable[[], object]] = {
        "advance_to": lambda: clock.advance_to(5.0),
        "advance_by": lambda: clock.advance_by(5.0),
        "start": clock.start,
        "expect": lambda: expect(bus, "a", timeout=5).wait(),
    }
    with pytest.raises(TimeStandsStill, match=r"at 1 s: 50 actions .* without delay") as raised:
        ways[way]()
    assert (raised.value.seconds, raised.value.actions, clock.seconds) == (1.0, 50, 1.0)


def test_actions_that_let_time_pass_keep_it_from_passing_nevertheless(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_virtual, "MOST", 50)

    def act(*_: object) -> None:
        clock.advance_by(0.0)
        clock.schedule(act)

    clock.schedule(act)
    with pytest.raises(TimeStandsStill):
        clock.advance_by(1.0)


def test_many_actions_at_one_moment_are_fine(clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_virtual, "MOST", 50)
    seen: list[Any] = []
    for _ in range(3):
        for _ in range(40):
            clock.schedule(lambda *_: seen.append(clock.seconds))
        clock.advance_by(0.0)
    rx.interval(0.01, scheduler=clock).subscribe(lambda n: clock.schedule(lambda *_: seen.append(n)) and None)
    clock.advance_by(1.0)
    assert len(seen) == 220


def test_guards_run_on_the_clock(bus: EventBus, clock: VirtualClock) -> None:
    settled: list[Any] = []
    silent: list[Any] = []
    numbers = bus.subscribe("a").only_payload()
    numbers.pipe(ops.debounce(2.0, scheduler=clock)).subscribe(seconds_of(clock, settled))
    numbers.pipe(ops.timeout(10.0, rx.of("silence"), scheduler=clock)).subscribe(seconds_of(clock, silent))
    for n in range(3):
        bus.publish("a", n)
        clock.advance_by(1.0)
    clock.advance_by(20.0)
    assert settled == [(4.0, 2)]
    assert silent == [(0.0, 0), (1.0, 1), (2.0, 2), (12.0, "silence")]


@pytest.mark.parametrize("way", ["waits", "takes long"])
def test_stall_warnings_come_in_their_time(
    bus: EventBus, clock: VirtualClock, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    told: list[float] = []
    caplog.handler.addFilter(lambda record: bool(told.append(clock.seconds) or True))
    bus.subscribe("a", name="slow").subscribe(
        ack_after(clock, 25.0) if way == "waits" else lambda event: clock.advance_by(25.0)
    )
    with caplog.at_level(logging.WARNING, "rxbus"):
        clock.advance_by(100.0)  # nothing is going on
        assert bus.publish("a").acknowledged == 1
    assert told == [105.0, 110.0, 120.0]
    assert "publish to 'a' has waited 5.0 s for slow" in caplog.messages[0]
    assert ("in <lambda>" in caplog.messages[0]) is (way == "takes long")


def test_a_nested_publish_lets_time_pass_too(bus: EventBus, clock: VirtualClock) -> None:
    seen: list[Any] = []

    def outer(event: Event[Any]) -> None:
        bus.publish("b", timeout=3)
        seen.append(("outer", clock.seconds))

    bus.subscribe("a").subscribe(outer)
    bus.subscribe("b").pipe(ops.delay(2.0, scheduler=bus.scheduler)).subscribe(seconds_of(clock, seen))
    bus.publish("a")
    assert [what if isinstance(what, str) else when for when, what in seen[:1]] == [2.0]
    assert seen[1] == ("outer", 2.0)


def test_what_is_timed_belongs_to_no_handler(bus: EventBus, clock: VirtualClock) -> None:
    """Though it is done by a thread that is inside of one."""
    caused: list[Event[Any]] = []
    clock.schedule_relative(1.0, lambda *_: bus.publish("timed") and None)
    bus.subscribe("timed").subscribe(caused.append)
    bus.subscribe("a").subscribe(lambda event: clock.advance_by(2.0))
    bus.publish("a")
    assert [(event.time, event.cause) for event in caused] == [(1.0, None)]


def test_a_timed_publish_in_the_midst_of_its_own_observer(bus: EventBus, clock: VirtualClock) -> None:
    """It cannot wait for a handler below it on the stack, which gets the event next."""
    seen: list[str] = []
    queued: list[int] = []

    def handle(event: Event[str]) -> None:
        seen.append(f"{event.payload} begins")
        if event.payload == "first":
            clock.advance_by(2.0)
        seen.append(f"{event.payload} ends")

    bus.subscribe("a").subscribe(handle)
    clock.schedule_relative(1.0, lambda *_: queued.append(bus.publish("a", "second").queued))
    bus.publish("a", "first")
    assert seen == ["first begins", "first ends", "second begins", "second ends"]
    assert queued == [1]


def test_time_does_not_go_back(bus: EventBus, clock: VirtualClock) -> None:
    bus.subscribe("a").subscribe(ack_after(clock, 30.0))
    clock.schedule_relative(5.0, lambda *_: bus.publish("a") and None)  # lets more time pass than is asked for
    clock.advance_by(10.0)
    assert clock.seconds == 35.0
    with pytest.raises(ArgumentOutOfRangeException):
        clock.advance_to(34.0)
    clock.advance_to(35.0)


@pytest.mark.parametrize("time", [inf, 1e300, nan])
def test_time_does_not_go_beyond_all_dates(bus: EventBus, clock: VirtualClock, time: float) -> None:
    with pytest.raises(ArgumentOutOfRangeException):
        clock.advance_to(time)
    assert clock.seconds == 0.0


def test_step_by_step(clock: VirtualClock) -> None:
    seen: list[Any] = []
    for seconds in (2.0, 1.0, 2.0):
        clock.schedule_relative(seconds, lambda _, seconds=None: seen.append(clock.seconds))
    clock.schedule_relative(1.5, lambda *_: seen.append("disposed of")).dispose()
    assert not clock.step(0.5)
    assert clock.step()
    assert not clock.step(1.9)
    assert (seen, clock.seconds) == ([1.0], 1.0)
    clock.start()
    assert (seen, clock.seconds) == ([1.0, 2.0, 2.0], 2.0)
    assert not clock.step()


def test_what_goes_on_for_ever_can_be_stopped(clock: VirtualClock) -> None:
    seen: list[float] = []
    rx.interval(1.0, scheduler=clock).subscribe(lambda n: clock.stop() if n == 4 else seen.append(clock.seconds))
    clock.start()
    assert seen == [1.0, 2.0, 3.0, 4.0]
    clock.advance_by(2.0)
    assert seen == [1.0, 2.0, 3.0, 4.0, 6.0, 7.0]


@pytest.mark.parametrize("way", ["publish", "wait", "schedule"])
def test_a_destructor_may_strike_the_clock(bus: EventBus, clock: VirtualClock, way: str) -> None:
    """As a garbage collection in the midst of it would have it."""
    seen: list[Event[Any]] = []
    bus.subscribe("a").subscribe(seen.append)
    bus.subscribe("late").pipe(ops.delay(1.0, scheduler=bus.scheduler)).subscribe(seen.append)
    with clock._lock:
        if way == "publish":
            bus.publish("a")
        elif way == "wait":
            with pytest.raises(RxBusError, match="destructor"):
                bus.publish("late")
        else:
            clock.schedule_relative(1.0, lambda *_: bus.publish("a") and None)
    clock.start()
    assert len(seen) == 1


def test_what_was_disposed_of_is_not_waited_for(bus: EventBus, clock: VirtualClock) -> None:
    def handle(event: Event[Any]) -> None:
        bus.scheduler.schedule_relative(DAY, lambda *_: None).dispose()

    bus.subscribe("a").subscribe(handle)
    assert bus.publish("a").acknowledged == 1
    assert not clock.step()


def test_an_action_that_fails_raises_where_time_passes(bus: EventBus, clock: VirtualClock) -> None:
    bus.subscribe("a").subscribe(ack_after(clock, 5.0))
    clock.schedule_relative(1.0, lambda *_: 1 / 0 and None)
    with pytest.raises(ZeroDivisionError):
        bus.publish("a")
    clock.start()
    assert bus.statistics().pending == 0
    assert bus.publish("a").acknowledged == 1


def test_a_timed_action_of_a_delivery_that_fails_fails_its_publish(bus: EventBus) -> None:
    bus.subscribe("a").subscribe(lambda event: bus.scheduler.schedule_relative(5.0, lambda *_: 1 / 0 and None))
    with pytest.raises(PublishError) as raised:
        bus.publish("a")
    assert isinstance(raised.value.exceptions[0], ZeroDivisionError)


def test_closing_lets_time_pass(clock: VirtualClock) -> None:
    seen: list[Any] = []
    bus = EventBus(BlockingScheduler(max_workers=0, clock=clock))
    bus.subscribe("a").pipe(ops.delay(DAY, scheduler=bus.scheduler)).subscribe(seconds_of(clock, seen))
    with pytest.raises(AcknowledgementTimeout):
        bus.publish("a", timeout=1)
    bus.close()
    assert [when for when, _ in seen] == [DAY]


def test_closing_gives_up_what_belongs_to_no_delivery(clock: VirtualClock) -> None:
    ran: list[int] = []
    with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
        bus.scheduler.schedule_periodic(10.0, lambda _: ran.append(1))
        clock.advance_by(35.0)
        other = EventBus(BlockingScheduler(max_workers=0, clock=clock))
        attached = bus.subscribe("a").subscribe(
            lambda event: other.scheduler.schedule_relative(DAY, lambda *_: ran.append(2))
        )
        with pytest.raises(AcknowledgementTimeout):
            bus.publish("a", timeout=0)
        other.close()
        assert bus.statistics().pending == 0
        attached.dispose()
    before = list(ran)
    clock.advance_by(DAY)
    assert ran == before == [1, 1, 1]


def test_a_handler_on_another_thread_is_waited_for(bus: EventBus, spawn: Spawn) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def handle(event: Event[int]) -> None:
        if event.payload == 1:
            inside.set()
            assert go_on.wait(PATIENCE)
        else:
            later.append(event.payload)

    later: list[int] = []
    bus.subscribe("a").subscribe(handle)
    bus.subscribe("a").subscribe(lambda event: go_on.set() if event.payload == 2 else None)
    first = spawn(bus.publish, "a", 1)
    assert inside.wait(PATIENCE)
    assert bus.publish("a", 2).acknowledged == 2
    assert first.result(PATIENCE).acknowledged == 2
    assert later == [2]


def test_tracers_are_told_virtual_times(bus: EventBus, clock: VirtualClock) -> None:
    class Book:
        def published(self, event: Event[Any]) -> None: ...
        def settled(self, receipt: object) -> None: ...

        def delivered(self, event: object, observer: str, start: float, end: float, *_: object) -> None:
            times.append((start, end))

        def passed(self, stage: str, kind: str, value: object, event: object, time: float) -> None:
            times.append((time, stage))

    times: list[Any] = []
    clock.advance_by(10.0)
    bus.trace(Book())
    bus.subscribe("a").pipe(ops.delay(2.0, scheduler=bus.scheduler), tap("late")).subscribe(lambda event: None)
    bus.publish("a")
    assert times == [(12.0, "late"), (10.0, 12.0)]


def test_buffers_do_without_workers(bus: EventBus, clock: VirtualClock) -> None:
    seen: list[Any] = []
    bus.subscribe("a").only_payload().pipe(buffered(3), ops.delay(1.0, scheduler=bus.scheduler)).subscribe(
        seconds_of(clock, seen)
    )
    bus.publish("a", 1)
    assert seen == []
    clock.start()
    assert seen == [(1.0, 1)]


def test_two_runs_are_the_same() -> None:
    def run() -> list[Any]:
        clock, seen = VirtualClock(), []
        with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            for delay in (0.3, 0.1, 0.2):
                chain = bus.subscribe("a.*").pipe(ops.delay(delay, scheduler=bus.scheduler))
                chain.subscribe(lambda event, delay=delay: seen.append((clock.seconds, event.topic, delay)))
            rx.interval(0.25, scheduler=clock).subscribe(lambda n: bus.publish(f"a.{n}"))
            clock.advance_by(5.0)
        return seen

    first = run()
    assert first == run()
    assert len(first) >= 30


def run_at_random(seed: int) -> list[tuple[int, int]]:
    """Observers that publish to each other, defer, delay, buffer and take their time; gives who got what, in order."""
    choose, seen = random.Random(seed), []
    with virtual_bus() as (bus, clock):

        def publish(event: Event[int]) -> None:
            if event.payload > 0:
                bus.publish(choose.choice("abcd"), event.payload - 1)

        def attach(number: int) -> None:
            seconds = choose.random()
            acts: list[Callable[[Event[int]], object]] = [
                publish,
                lambda event: clock.advance_by(seconds),
                lambda event: clock.schedule_relative(seconds, lambda *_: publish(event)),
                ack_after(clock, seconds),
            ]
            chains: list[Any] = [
                ops.do_action(),
                observe_on(clock),
                ops.delay(seconds, scheduler=bus.scheduler),
                ops.delay(seconds, scheduler=clock),
                buffered(500),
            ]
            chain = choose.choice(chains)
            act = choose.choice(acts if chain in chains[:3] else acts[:3])  # behind the others nobody waits
            take_in = bus.subscribe(choose.choice("abcd")).pipe(chain)
            take_in.subscribe(lambda event: (seen.append((number, event.id)), act(event)))

        for number in range(5):
            attach(number)
        for _ in range(5):
            bus.publish(choose.choice("abcd"), 3)
        clock.start()
        assert bus.statistics().pending == 0
    assert len(seen) == len(set(seen)), "twice"
    return seen


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_is_the_same_each_time(seed: int) -> None:
    assert run_at_random(seed) == run_at_random(seed)


class TestAsync:
    async def test_it_lets_time_pass(self, clock: VirtualClock) -> None:
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            seen: list[Any] = []
            bus.subscribe("a").pipe(ops.delay(DAY, scheduler=bus.scheduler)).subscribe(seconds_of(clock, seen))
            receipt = await bus.publish_async("a")
            assert (receipt.acknowledged, [when for when, _ in seen]) == (1, [DAY])

    async def test_a_timeout_strikes_without_waiting(self, clock: VirtualClock) -> None:
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            bus.subscribe("a", name="uploader").subscribe(ack_after(clock, 5.0))
            with pytest.raises(AcknowledgementTimeout, match="uploader"):
                await bus.publish_async("a", timeout=3)
            assert clock.seconds == 3.0
            assert (await bus.publish_async("a", timeout=6)).acknowledged == 1
            assert clock.seconds == 8.0

    async def test_actions_that_keep_time_from_passing(
        self, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_virtual, "MOST", 50)
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            again_and_again(clock)
            bus.subscribe("a").subscribe(lambda event: defer())
            with pytest.raises(AcknowledgementTimeout):
                await bus.publish_async("a", timeout=5)

    async def test_other_tasks_may_acknowledge(self, clock: VirtualClock) -> None:
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            owed: list[Acknowledgement] = []
            bus.subscribe("a").subscribe(lambda event: owed.append(defer()))
            publishing = asyncio.ensure_future(bus.publish_async("a"))
            while not owed:
                await asyncio.sleep(0)
            for _ in range(20):
                await asyncio.sleep(0)
            owed[0].ack()
            assert (await publishing).acknowledged == 1

    async def test_what_would_never_come_is_an_error_at_once(self, clock: VirtualClock) -> None:
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            bus.subscribe("a", name="forgets").subscribe(lambda event: defer())
            with pytest.raises(AcknowledgementTimeout, match="never acknowledged by forgets: in virtual") as raised:
                await bus.publish_async("a")
            assert (raised.value.pending, raised.value.timeout, clock.seconds) == (("forgets",), inf, 0.0)

    async def test_what_happens_again_and_again_is_no_hope(
        self, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_virtual, "MOST", 50)
        rx.interval(1.0, scheduler=clock).subscribe(lambda _: None)
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            bus.subscribe("a").subscribe(lambda event: defer())
            with pytest.raises(AcknowledgementTimeout):
                await bus.publish_async("a")
            assert clock.seconds == 50.0

    async def test_of_publishes_that_wait_for_each_other_the_inner_one_tells(self, clock: VirtualClock) -> None:
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:

            @bus.on("a")
            async def handle(event: Event[Any]) -> None:
                with pytest.raises(AcknowledgementTimeout, match="forgets"):
                    await bus.publish_async("b")

            bus.subscribe("b", name="forgets").subscribe(lambda event: defer())
            with pytest.raises(AcknowledgementTimeout, match="never acknowledged by forgets"):  # it is of its tree
                await bus.publish_async("a")

    async def test_tasks_that_publish_on_several_buses_acknowledge_nothing(self, clock: VirtualClock) -> None:
        async with (
            EventBus(BlockingScheduler(max_workers=0, clock=clock)) as one,
            EventBus(BlockingScheduler(max_workers=0, clock=clock)) as other,
        ):
            for bus in (one, other):
                bus.subscribe("a").subscribe(lambda event: defer())
            forgotten = asyncio.ensure_future(one.publish_async("a"))
            with pytest.raises(AcknowledgementTimeout):
                await other.publish_async("a")
            forgotten.cancel()  # to wait for it would be another task that might acknowledge
            with pytest.raises(asyncio.CancelledError):
                await forgotten

    async def test_timers_of_the_loop_may_acknowledge(self, clock: VirtualClock) -> None:
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            loop = asyncio.get_running_loop()
            bus.subscribe("a").subscribe(lambda event: loop.call_later(0.02, defer().ack) and None)
            assert (await bus.publish_async("a")).acknowledged == 1

    async def test_a_handler_on_another_thread_is_waited_for(
        self, clock: VirtualClock, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        inside, go_on = threading.Event(), threading.Event()
        look = _virtual.VirtualTime._is_another_inside

        def look_and_go_on(time: _virtual.VirtualTime) -> bool:
            found = look(time)
            go_on.set()
            return found

        def handle(event: Event[Any]) -> None:
            inside.set()
            assert go_on.wait(PATIENCE)

        monkeypatch.setattr(_virtual.VirtualTime, "_is_another_inside", look_and_go_on)
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            bus.subscribe("a").subscribe(handle)
            spawn(bus.publish, "a")
            assert inside.wait(PATIENCE)
            assert (await bus.publish_async("a")).acknowledged == 1

    async def test_time_stands_still_while_a_coroutine_waits_for_what_is_not_virtual(self, clock: VirtualClock) -> None:
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            times: list[float] = []

            @bus.on("a")
            async def handle(event: Event[Any]) -> None:
                await asyncio.to_thread(lambda: None)
                await asyncio.sleep(0.02)
                times.append(clock.seconds)

            bus.subscribe("a").subscribe(ack_after(clock, 5.0))
            await bus.publish_async("a", timeout=10)
            assert (times, clock.seconds) == ([0.0], 5.0)

    async def test_a_coroutine_that_publishes_lets_time_pass(self, clock: VirtualClock) -> None:
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            times: list[float] = []

            @bus.on("a")
            async def handle(event: Event[Any]) -> None:
                await bus.publish_async("b", timeout=3)
                times.append(clock.seconds)

            bus.subscribe("b").pipe(ops.delay(2.0, scheduler=bus.scheduler)).subscribe(lambda event: None)
            assert (await bus.publish_async("a")).acknowledged == 1
            assert times == [2.0]

    async def test_what_is_timed_belongs_to_no_coroutine(self, clock: VirtualClock) -> None:
        async with EventBus(BlockingScheduler(max_workers=0, clock=clock)) as bus:
            causes: list[int | None] = []
            bus.subscribe("timed").subscribe(lambda event: causes.append(event.cause))

            @bus.on("a")
            async def handle(event: Event[Any]) -> None:
                clock.schedule_relative(1.0, lambda *_: bus.publish("timed") and None)
                clock.advance_by(2.0)

            await bus.publish_async("a")
            assert causes == [None]
