"""The tools for tests, and the pytest plugin."""

# ruff: noqa: PT012 - what raises is the end of a block

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
import reactivex as rx
from reactivex import operators as ops

from rxbus import (
    BlockingScheduler,
    BusClosed,
    Event,
    EventBus,
    InvalidArgument,
    InvalidTopic,
    PublishError,
    Topic,
    VirtualClock,
    defer,
    matcher,
)
from rxbus.operators import buffered
from rxbus.testing import Check, Leftovers, _check, assert_marbles, expect, expect_failure, virtual_bus

PATIENCE = 10.0
Spawn = Callable[..., Future[Any]]


def fail(value: object) -> None:
    """A handler that fails."""
    raise ValueError(f"cannot take {value!r}")


class TestExpect:
    def test_one_that_comes_in_the_block(self, bus: EventBus) -> None:
        with expect(bus, "orders.*", lambda event: event.payload > 3) as found:
            for n in (1, 5, 7):
                bus.publish("orders.eur", n)
        assert found.event.payload == 5
        assert [event.payload for event in found.events] == [5, 7]

    def test_one_that_comes_later(self, bus: EventBus, spawn: Spawn) -> None:
        go_on = threading.Event()

        def publish() -> None:
            assert go_on.wait(PATIENCE)
            bus.publish("a", 1)

        with expect(bus, Topic("a", int), timeout=PATIENCE) as found:
            spawn(publish)
            with pytest.raises(AssertionError, match="no event on 'a' has come yet"):
                _ = found.event
            go_on.set()
        assert found.event.payload == 1

    def test_waiting_for_ever(self, bus: EventBus, virtual_bus: EventBus, virtual_clock: VirtualClock) -> None:
        with expect(bus, "a", timeout=inf):
            bus.publish("a", 1)
        with pytest.raises(AssertionError, match="no event"):
            expect(virtual_bus, "a", timeout=inf).wait()
        assert virtual_clock.seconds == 0.0

    def test_waiting_for_one_from_now_on(self, bus: EventBus, spawn: Spawn) -> None:
        attached = threading.Event()
        bus.publish("a", "earlier")

        class Attached(expect[Any]):
            def __enter__(self) -> expect[Any]:
                entered = super().__enter__()
                attached.set()
                return entered

        waiting = spawn(Attached(bus, "a", timeout=PATIENCE).wait)
        assert attached.wait(PATIENCE)
        bus.publish("a", "now")
        assert waiting.result(PATIENCE).payload == "now"

    def test_it_is_no_observer(self, bus: EventBus) -> None:
        with expect(bus, "a"):
            assert bus.publish("a").acknowledged == 0
            assert bus.statistics().observers == 0
            assert "a" not in bus.topics

    def test_it_shows_what_came_instead(self, bus: EventBus) -> None:
        def is_large(event: Event[Any]) -> bool:
            return len(str(event.payload)) > 1000

        with pytest.raises(AssertionError) as raised, expect(bus, "a", is_large, timeout=0):
            for n in range(8):
                bus.publish("a", n)
            bus.publish("a", "x" * 999)
        message = str(raised.value)
        assert (
            "no event on 'a' that satisfies TestExpect.test_it_shows_what_came_instead.is_large within 0 s" in message
        )
        assert "others came on it, 9 in all, the latest of which are" in message
        assert [f"payload={n}" in message for n in range(8)] == [False] * 4 + [True] * 4
        assert "xxx..." in message
        assert all(len(line) <= 202 for line in message.splitlines()[1:])

    @pytest.mark.parametrize(
        ("topics", "came"), [(["b", "b", "c"], "nothing came on it, but on 'b' (2), 'c' (1)"), ([], "nor on any other")]
    )
    def test_it_shows_that_nothing_came(self, bus: EventBus, topics: list[str], came: str) -> None:
        with pytest.raises(AssertionError) as raised, expect(bus, "a", timeout=0):
            for topic in topics:
                bus.publish(topic)
        assert came in str(raised.value)
        assert "satisfies" not in str(raised.value)

    def test_what_a_lambda_is_called(self, bus: EventBus) -> None:
        with pytest.raises(AssertionError, match="that satisfies the predicate"), expect(bus, "a", lambda _: 0, 0):
            pass

    def test_a_predicate_that_fails(self, bus: EventBus) -> None:
        with pytest.raises(ZeroDivisionError), expect(bus, "a", lambda event: 1 / event.payload):
            assert bus.publish("a", 0).acknowledged == 0
            bus.publish("a", 1)

    def test_a_block_that_fails_does_not_wait(self, bus: EventBus) -> None:
        with pytest.raises(KeyError), expect(bus, "a", timeout=1000):
            raise KeyError

    async def test_async_blocks_that_fail_do_not_wait(self) -> None:
        async with EventBus() as bus:
            with pytest.raises(KeyError):
                async with expect(bus, "a", timeout=1000):
                    raise KeyError

    def test_it_leaves(self, bus: EventBus) -> None:
        with expect(bus, "a") as found:
            bus.publish("a", 1)
        bus.publish("a", 2)
        assert len(found.events) == 1

    def test_bad_arguments(self, bus: EventBus) -> None:
        with pytest.raises(InvalidArgument):
            expect(bus, "a", timeout=-1)
        with pytest.raises(InvalidTopic):
            expect(bus, "a..b")
        bus.close()
        with pytest.raises(BusClosed), expect(bus, "a"):
            pass

    async def test_on_an_event_loop(self) -> None:
        async with EventBus() as bus:
            async with expect(bus, "a", timeout=PATIENCE) as found:
                asyncio.get_running_loop().call_soon(bus.publish, "a", 1)
            assert found.event.payload == 1
            async with expect(bus, "a", timeout=PATIENCE) as found:
                await bus.publish_async("a", 2)
            assert found.event.payload == 2

    async def test_awaiting_one(self) -> None:
        async with EventBus() as bus:
            waiting = asyncio.ensure_future(_awaited(expect(bus, "a", timeout=PATIENCE)))
            await asyncio.sleep(0)
            await asyncio.to_thread(bus.publish, "a", 1)
            assert (await waiting).payload == 1
            with pytest.raises(AssertionError, match=r"within 0\.001 s"):
                await expect(bus, "a", timeout=0.001)

    def test_in_virtual_time(self, virtual_bus: EventBus, virtual_clock: VirtualClock) -> None:
        rx.interval(60.0, scheduler=virtual_clock).subscribe(virtual_bus.publisher("minutes"))
        assert expect(virtual_bus, "minutes", lambda event: event.payload == 9, timeout=1000).wait().time == 600.0
        with pytest.raises(AssertionError, match="others came on it, 16 in all"):
            expect(virtual_bus, "minutes", lambda event: event.payload > 99, timeout=1000).wait()
        assert virtual_clock.seconds == 1600.0

    async def test_in_virtual_time_on_an_event_loop(self, virtual_bus: EventBus, virtual_clock: VirtualClock) -> None:
        rx.interval(60.0, scheduler=virtual_clock).subscribe(virtual_bus.publisher("minutes"))
        assert (await expect(virtual_bus, "minutes", lambda event: event.payload == 9, timeout=1000)).time == 600.0
        with pytest.raises(AssertionError):
            await expect(virtual_bus, "hours", timeout=1000)
        assert virtual_clock.seconds == 1600.0


async def _awaited(expected: expect[Any]) -> Event[Any]:
    return await expected


class TestExpectFailure:
    def test_it_waits_for_one_behind_a_buffer(self, bus: EventBus) -> None:
        bus.subscribe("a").only_payload().pipe(buffered(3)).subscribe(fail)
        with expect_failure(ValueError, match="take 1", timeout=PATIENCE) as failed:
            with pytest.raises(AssertionError, match="yet"):
                _ = failed.error
            bus.publish("a", 1)
        assert str(failed.error) == "cannot take 1"

    @pytest.mark.rxbus_allow("failures")
    def test_errors_without_words(self, bus: EventBus) -> None:
        class Mute(Exception):
            def __str__(self) -> str:
                raise OSError

            __repr__ = __str__

        def mute(_: object) -> None:
            raise Mute

        bus.subscribe("a").pipe(buffered(3)).subscribe(mute)
        with expect_failure(Mute, timeout=PATIENCE) as failed:
            bus.publish("a")
        assert type(failed.error) is Mute
        with pytest.raises(Leftovers, match="what to say raised OSError"), Check():
            logging.getLogger("rxbus").error("it failed", exc_info=Mute())

    def test_it_waits_for_ever(self) -> None:
        with expect_failure(timeout=inf):
            logging.getLogger("rxbus").error("what failed", exc_info=ValueError("no"))

    @pytest.mark.rxbus_allow("failures")
    def test_others_are_not_looked_at(self, bus: EventBus) -> None:
        with Check() as check, pytest.raises(AssertionError) as raised, expect_failure(OSError, timeout=0):
            logging.getLogger("rxbus").error("what failed", exc_info=ValueError("no"))
            check.forgive()
        assert str(raised.value).startswith("no OSError was left to the log within 0 s, what failed")
        assert "ValueError('no')" in str(raised.value)

    def test_a_block_that_fails_does_not_wait(self) -> None:
        with pytest.raises(KeyError), expect_failure(timeout=1000):
            raise KeyError

    def test_it_says_where_it_cannot_know(self, caplog: pytest.LogCaptureFixture) -> None:
        off = pytest.raises(AssertionError, match="switched off: by its")
        with caplog.at_level(logging.CRITICAL, "rxbus"), off, expect_failure(timeout=0):
            logging.getLogger("rxbus").error("unheard")


class TestCheck:
    def test_nothing_is_left(self) -> None:
        with Check() as check, check.bus() as bus:
            bus.subscribe("a").subscribe(fail)
            with pytest.raises(PublishError):
                bus.publish("a")
            bus.subscribe("b").subscribe(lambda event: defer().ack())
            bus.publish("b")

    @pytest.mark.rxbus_allow("failures")
    @pytest.mark.parametrize("allow", [(), ("failures",)])
    def test_a_failure_that_nobody_looked_at(self, allow: tuple[Any, ...]) -> None:
        told = []
        try:
            with Check(allow) as check, check.bus() as bus:
                bus.subscribe("a", name="writer").only_payload().pipe(buffered(3)).subscribe(fail)
                bus.publish("a", 1)
        except Leftovers as leftovers:
            told = str(leftovers).splitlines()
        what = "- a failure that nobody looked at: what follows a buffer failed: in writer, on topic 'a'"
        assert told == ([] if allow else ["left behind:", f"{what}: ValueError('cannot take 1')"])

    @pytest.mark.rxbus_allow("failures")
    def test_a_few_of_many(self) -> None:
        with pytest.raises(Leftovers) as raised, Check():
            for n in range(40):
                logging.getLogger("rxbus").error("failure %s", n // 2)
        lines = [f"- a failure that nobody looked at: failure {n} (2 times)" for n in range(10)]
        assert str(raised.value).splitlines() == ["left behind:", *lines, "- and 10 more"]

    @pytest.mark.parametrize("allow", [(), ("pending",)])
    def test_deliveries_left_pending(self, allow: tuple[Any, ...]) -> None:
        told = ""
        try:
            with Check(allow) as check, check.bus(BlockingScheduler(max_workers=0, clock=VirtualClock())) as bus:
                bus.subscribe("a").subscribe(lambda event: defer())
                for _ in range(2):
                    with pytest.raises(TimeoutError):
                        bus.publish("a", timeout=0)
        except Leftovers as leftovers:
            told = str(leftovers)
        assert told == ("" if allow else "left behind:\n- deliveries pending on 'a': 2")
        with pytest.raises(BusClosed):
            bus.publish("a")

    def test_a_bus_that_does_not_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_check, "MOMENT", 0.01)
        gate = threading.Event()
        with pytest.raises(Leftovers) as raised, Check() as check, check.bus() as bus:
            bus.subscribe("a").subscribe(lambda event: gate.wait(PATIENCE))
            with pytest.raises(TimeoutError):
                bus.publish("a", timeout=0.001)
        gate.set()
        bus.close()
        told = str(raised.value)
        assert "- deliveries pending on 'a': 1" in told
        assert "- a bus that cannot be closed" in told
        assert "- a thread running: rxbus-" in told

    @pytest.mark.parametrize("allow", [(), ("threads",)])
    def test_threads_left_running(self, monkeypatch: pytest.MonkeyPatch, allow: tuple[Any, ...]) -> None:
        monkeypatch.setattr(_check, "MOMENT", 0.01)
        scheduler, ran, told = BlockingScheduler(), threading.Event(), ""
        try:
            with Check(allow):
                scheduler.schedule(lambda *_: ran.set())
                assert ran.wait(PATIENCE)
        except Leftovers as leftovers:
            told = str(leftovers)
        scheduler.close()
        thread = "a thread running: rxbus-worker-1; has a bus or scheduler not been closed?"
        assert told == ("" if allow else f"left behind:\n- {thread}")

    def test_an_error_goes_before(self) -> None:
        with pytest.raises(KeyError), Check() as check, check.bus() as bus:
            bus.subscribe("a").subscribe(lambda event: defer())
            with pytest.raises(TimeoutError):
                bus.publish("a", timeout=0.001)
            raise KeyError

    @pytest.mark.parametrize(("way", "why"), [("level", "by its level"), ("disabled", "disable_existing_loggers")])
    def test_it_says_where_it_cannot_know(self, monkeypatch: pytest.MonkeyPatch, way: str, why: str) -> None:
        logger = logging.getLogger("rxbus")
        with monkeypatch.context() as patch, pytest.raises(Leftovers, match=why), Check():
            if way == "level":
                patch.setattr(logger, "isEnabledFor", lambda level: False)
            else:
                patch.setattr(logger, "disabled", True)

    def test_what_can_be_allowed(self) -> None:
        with pytest.raises(InvalidArgument, match="failures, pending, threads, not 'treads'"):
            Check(["treads"])  # type: ignore[arg-type]


class TestVirtualBus:
    def test_time_passes_at_once(self) -> None:
        with virtual_bus() as (bus, clock):
            bus.subscribe("a").pipe(ops.delay(3600.0, scheduler=bus.scheduler)).subscribe(lambda event: None)
            assert bus.publish("a").acknowledged == 1
            assert clock.seconds == 3600.0

    def test_it_is_checked(self) -> None:
        with pytest.raises(Leftovers, match="deliveries pending on 'a': 1"), virtual_bus() as (bus, _):
            bus.subscribe("a").subscribe(lambda event: defer())
            with pytest.raises(TimeoutError):
                bus.publish("a", timeout=5)

    def test_it_warns(self, caplog: pytest.LogCaptureFixture) -> None:
        with virtual_bus(stall_after=60.0) as (bus, clock):
            bus.subscribe("a").subscribe(lambda event: clock.advance_by(100.0))
            bus.publish("a")
        assert "has waited 60.0 s" in caplog.text

    def test_the_fixtures_belong_together(self, virtual_bus: EventBus, virtual_clock: VirtualClock) -> None:
        assert virtual_bus.scheduler.clock is virtual_clock


VALUES = {"a": 1, "b": 2, "c": [3], "d": None}


def events(diagram: dict[float, Any], topic: str = "t") -> list[Event[Any]]:
    return [Event(topic, payload, n, time) for n, (time, payload) in enumerate(diagram.items(), 1)]


def passages(*marbles: tuple[float, str, Any], stage: str = "s") -> list[SimpleNamespace]:
    return [SimpleNamespace(stage=stage, kind=kind, value=value, time=time) for time, kind, value in marbles]


class TestMarbles:
    @pytest.mark.parametrize("diagram", ["a-b-c-d", "a- b---(c,d)", "-a(b,c)d", "a-b-c-d--"])
    def test_only_the_order_counts(self, diagram: str) -> None:
        assert_marbles(events({10.0: 1, 10.5: 2, 11.0: [3], 99.0: None}), diagram, VALUES)

    def test_marbles_stand_for_themselves(self) -> None:
        assert_marbles(events({0.0: 1, 1.0: "b", 2.0: 2.5}), "1-b-2.5")

    def test_times_count_where_asked(self) -> None:
        came = events({10.0: 1, 10.4: 2, 11.0: [3]})
        assert_marbles(came, "a---b-----c", VALUES, unit=0.1)
        assert_marbles(came, "--a---b-----c", VALUES, unit=0.1)  # so that the first meet
        assert_marbles(came, "----------a---b-----c", VALUES, unit=1e-1, start=9.0)
        assert_marbles(came, "a-b-c", VALUES, unit=0.25, tolerance=0.5)
        for diagram, more in (("a--b------c", {}), ("a-b-c", {"tolerance": 0.1}), ("a---b-----c", {"start": 9.9})):
            with pytest.raises(AssertionError):
                assert_marbles(came, diagram, VALUES, unit=0.1, **more)

    def test_both_are_shown_one_under_the_other(self) -> None:
        with pytest.raises(AssertionError) as raised:
            assert_marbles(events({0.0: 1, 1.0: 2, 6.0: {"x": 1}, 8.0: {"x": 1}}), "a-(b,c)--d", VALUES, unit=1.0)
        assert str(raised.value).splitlines() == [
            "the marbles differ at the 2. of them: 2 was expected at 2 s, but b came at 1 s",
            "expected: a-(b,c)--d",
            "     got: a b----?1 ?1",
            "where ?1 is {'x': 1}",
        ]

    @pytest.mark.parametrize(
        ("came", "what"),
        [
            ({0.0: 1}, "2. of them: 2 was expected, but nothing more came"),
            ({0.0: 1, 1.0: 2, 2.0: [3]}, "3. of them: nothing more was expected, but c came"),
            ({0.0: 1, 1.0: "x-y"}, "2. of them: 2 was expected, but ?1 came"),
            ({}, "1. of them: 1 was expected, but nothing more came"),
        ],
    )
    def test_the_difference_in_words(self, came: dict[float, Any], what: str) -> None:
        with pytest.raises(AssertionError) as raised:
            assert_marbles(events(came), "a-b", VALUES)
        assert what in str(raised.value)

    def test_what_comes_at_once_is_in_brackets(self) -> None:
        with pytest.raises(AssertionError, match=r"got: --\(a,b\)-c\n?$"):
            assert_marbles(events({2.0: 1, 2.001: 2, 8.0: [3]}), "-", VALUES, unit=1.0, start=0.0)

    def test_nothing_came(self) -> None:
        assert_marbles([], "---")
        with pytest.raises(AssertionError, match=r"got: -$"):
            assert_marbles([], "a", unit=1.0)

    def test_topics_and_stages_of_a_recording(self) -> None:
        recording = SimpleNamespace(
            events=[*events({11.0: 1}, "t.a"), *events({12.0: 2}, "u")],
            passages=[*passages((12.0, "next", 2), (13.0, "completed", None)), *passages((1, "next", 0), stage="x")],
            began=10.0,
        )
        assert_marbles(recording, "--1-2", unit=0.5)
        assert_marbles(recording, "-1", topic="t.*", unit=1.0)
        assert_marbles(recording, "2", topic=Topic("u"))
        assert_marbles(recording, "--2|", stage="s", unit=1.0)
        assert_marbles(recording.passages, "2-|", stage="s")

    @pytest.mark.parametrize(
        ("wanted", "meets"),
        [(None, True), (ValueError, True), (OSError, False), (ValueError("no"), True), (ValueError("yes"), False)],
    )
    @pytest.mark.parametrize("value", [ValueError("no"), "ValueError('no')"])
    def test_errors(self, wanted: Any, meets: bool, value: Any) -> None:
        if isinstance(wanted, type) and isinstance(value, str):
            meets = False  # a class cannot be told from a repr
        came = passages((0.0, "next", 1), (1.0, "error", value))
        if meets:
            assert_marbles(came, "1-#", error=wanted)
        else:
            with pytest.raises(AssertionError, match=r"2\. of them: # was expected, but # came"):
                assert_marbles(came, "1-#", error=wanted)

    def test_the_end_is_not_an_item(self) -> None:
        with pytest.raises(AssertionError, match=r"\| was expected, but 2 came"):
            assert_marbles(passages((0.0, "next", 1), (1.0, "next", 2), (2.0, "completed", None)), "1-|")

    @pytest.mark.parametrize(
        ("diagram", "why"),
        [
            ("a-b,c", "Comma is only allowed"),
            ("a|-b", "cannot be declared after"),
            ("a-(bc)", r"'bc' is one marble in RxPY's notation: '\(b,c\)'"),
            ("a-b|", "events do not tell of errors and the end"),
        ],
    )
    def test_diagrams_that_cannot_be_meant(self, diagram: str, why: str) -> None:
        with pytest.raises(InvalidArgument, match=why):
            assert_marbles(events({0.0: 1, 1.0: 2}), diagram, VALUES)

    def test_what_cannot_be_compared(self) -> None:
        class Array:
            def __eq__(self, other: object) -> Any:
                raise ValueError("ambiguous")

            __hash__ = None  # type: ignore[assignment]

            def __repr__(self) -> str:
                return "Array" + "x" * 999

        assert_marbles(events({0.0: Array()}), "a", {"a": Array()})
        with pytest.raises(AssertionError, match=r"where \?1 is Arrayx*\.\.\.$"):
            assert_marbles(events({0.0: Array()}), "a", {"a": 1})

    def test_in_virtual_time(self, virtual_bus: EventBus, virtual_clock: VirtualClock) -> None:
        seen: list[Event[Any]] = []
        virtual_bus.subscribe("late").subscribe(seen.append)
        late = virtual_bus.subscribe("a").only_payload().pipe(ops.delay(3.0, scheduler=virtual_clock))
        late.subscribe(virtual_bus.publisher("late"))
        for payload in "xy":
            virtual_bus.publish("a", payload)
            virtual_clock.advance_by(2.0)
        virtual_clock.start()
        assert_marbles(seen, "---x-y", unit=1.0, start=0.0)


@pytest.mark.parametrize(
    ("pattern", "topic", "meets"),
    [("a.*", "a.b", True), ("a.>", "a.b.c", True), ("a", "b", False), ("*", "a.b", False)],
)
def test_matching_topics(pattern: str, topic: str, meets: bool) -> None:
    assert matcher(pattern)(topic) is meets


@pytest.mark.rxbus_allow("failures", "threads")  # of the tests that are tested
class TestPlugin:
    @pytest.fixture(autouse=True)
    def _project(self, pytester: pytest.Pytester) -> None:
        pytester.makepyprojecttoml(
            '[tool.pytest.ini_options]\naddopts = "--strict-markers -p no:asyncio"\nfilterwarnings = ["error"]\n'
        )

    def run(self, pytester: pytest.Pytester, code: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile("import pytest\nfrom rxbus import *\nfrom rxbus.operators import buffered\n\n" + code)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)

    def test_a_test_that_leaves_nothing(self, pytester: pytest.Pytester) -> None:
        code = """
def test_bus(bus):
    bus.subscribe("a").subscribe(lambda event: 1 / 0)
    with pytest.raises(PublishError):
        bus.publish("a")

def test_virtual(virtual_bus, virtual_clock):
    virtual_bus.subscribe("a").subscribe(lambda event: virtual_clock.advance_by(60))
    virtual_bus.publish("a")
    assert virtual_clock.seconds == 60
"""
        self.run(pytester, code).assert_outcomes(passed=2)

    def test_what_is_left_fails_the_test(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_check, "MOMENT", 0.05)
        code = """
def buffer(bus):
    bus.subscribe("log").pipe(buffered(3)).subscribe(lambda event: 1 / 0)
    bus.publish("log")

def owe(bus):
    bus.subscribe("a").subscribe(lambda event: defer())
    with pytest.raises(AcknowledgementTimeout):
        bus.publish("a", timeout=0.001)

def test_failure(bus):
    buffer(bus)

def test_pending(bus):
    owe(bus)

def test_threads(rxbus_check):
    global scheduler
    scheduler = BlockingScheduler()
    scheduler.schedule(lambda *_: None)

def test_it_is_another_tests_thread(rxbus_check):
    pass

def test_closing(rxbus_check):
    scheduler.close()

@pytest.mark.rxbus_allow("failures", "pending")
def test_allowed(bus):
    buffer(bus)
    owe(bus)

def test_failed_already(bus):
    buffer(bus)
    owe(bus)
    assert False, "the reason"
"""
        result = self.run(pytester, code)
        result.assert_outcomes(passed=6, failed=1, errors=3)
        result.stdout.fnmatch_lines_random(
            [
                "- a failure that nobody looked at: what follows a buffer failed: *ZeroDivisionError*",
                "- deliveries pending on 'a': 1",
                "- a thread running: rxbus-worker-1;*",
                "ERROR *::test_failure - Failed: left behind:*",
            ]
        )

    def test_what_has_failed_shows_the_test_alone(self, pytester: pytest.Pytester) -> None:
        code = """
import asyncio
from rxbus.testing import assert_marbles, expect, expect_failure

def test_expect(bus):
    with expect(bus, "a", timeout=0):
        pass

def test_expect_on_a_loop(bus):
    async def wait():
        async with expect(bus, "a", timeout=0):
            pass

    asyncio.run(wait())

def test_expect_failure(bus):
    with expect_failure(OSError, timeout=0):
        pass

def test_marbles():
    assert_marbles([Event("a", 1, 1, 0.0)], "2")
"""
        result = self.run(pytester, code)
        result.assert_outcomes(failed=4)
        places = [line for line in result.outlines if line.endswith(": AssertionError")]
        assert [place.partition(":")[0] for place in places] == ["test_what_has_failed_shows_the_test_alone.py"] * 4

    def test_a_fixture_that_fails_lets_it_off(self, pytester: pytest.Pytester) -> None:
        code = """
@pytest.fixture
def broken(bus):
    bus.subscribe("log").pipe(buffered(3)).subscribe(lambda event: 1 / 0)
    bus.publish("log")
    raise OSError("the reason")

def test_it(broken):
    ...
"""
        result = self.run(pytester, code)
        result.assert_outcomes(errors=1)
        result.stdout.no_fnmatch_line("*left behind*")

    def test_for_all_tests_of_a_project(self, pytester: pytest.Pytester) -> None:
        code = """
def test_own_bus():
    with EventBus() as bus:
        bus.subscribe("log").pipe(buffered(3)).subscribe(lambda event: 1 / 0)
        bus.publish("log")
"""
        self.run(pytester, code).assert_outcomes(passed=1)
        self.run(pytester, code, "-o", "usefixtures=rxbus_check").assert_outcomes(passed=1, errors=1)

    def test_a_projects_own_bus_goes_before(self, pytester: pytest.Pytester) -> None:
        pytester.makeconftest("import pytest\n@pytest.fixture\ndef bus():\n    return 'a vehicle'\n")
        self.run(pytester, "def test_bus(bus):\n    assert bus == 'a vehicle'\n").assert_outcomes(passed=1)

    def test_it_can_be_switched_off(self, pytester: pytest.Pytester) -> None:
        result = self.run(pytester, "def test_bus(bus): ...\n", "-p", "no:rxbus")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*fixture 'bus' not found"])

    def test_the_package_does_not_import_pytest(self) -> None:
        names = [name for name, module in sys.modules.items() if name.startswith("rxbus") and hasattr(module, "pytest")]
        assert names == ["rxbus._pytest"]
