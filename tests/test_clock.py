"""The clock of a scheduler."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from queue import SimpleQueue
from time import monotonic
from typing import Any

import pytest

from rxbus import _clock
from rxbus._clock import Clock

PATIENCE = 10.0


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.close()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rxbus-clock"]


def test_calls_are_made_in_the_order_of_their_times(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    made: SimpleQueue[int] = SimpleQueue()
    now = monotonic()
    with clock.lock, monkeypatch.context() as patch:  # the clock's thread waits meanwhile
        patch.setattr("rxbus._clock.monotonic", lambda: now)
        for number, seconds in enumerate((0.03, 0.01, 0.02, 0.01)):
            clock.call_after(seconds, lambda number=number: made.put(number))
    assert [made.get(timeout=PATIENCE) for _ in range(4)] == [1, 3, 2, 0]


def test_one_that_comes_later_may_be_due_earlier(clock: Clock) -> None:
    made = threading.Event()
    clock.call_after(1000, lambda: None)
    clock.call_after(0.001, made.set)
    assert made.wait(PATIENCE)


def test_what_is_disposed_of_is_not_called(clock: Clock) -> None:
    made: list[str] = []
    done = threading.Event()
    clock.call_after(0.001, lambda: made.append("disposed of")).dispose()
    clock.call_after(0.002, done.set)
    assert done.wait(PATIENCE)
    assert made == []


def test_what_is_disposed_of_is_let_go_of(clock: Clock) -> None:
    class Call:
        def __call__(self) -> None: ...

    calls = []
    for _ in range(1000):
        call = Call()
        calls.append(weakref.ref(call))
        clock.call_after(1000, call).dispose()
        del call
    assert not any(call() for call in calls)
    assert len(clock._queue) <= Clock.SPARSE + 1


@pytest.mark.rxbus_allow("failures")
def test_a_call_that_fails_is_logged_and_the_clock_goes_on(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    clock.call_after(0, lambda: 1 / 0)
    clock.call_after(0.001, done.set)
    assert done.wait(PATIENCE)
    assert "ZeroDivisionError" in caplog.text


def test_close_ends_the_thread_and_forgets_what_was_to_come(clock: Clock) -> None:
    made: list[Any] = []
    for _ in range(200):  # at whichever moment
        clock.call_after(1000, lambda: made.append(1))
        clock.close()
        assert threads() == []
    assert made == []


def test_a_clock_with_nothing_to_do_ends_by_itself(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_clock, "IDLE_SECONDS", 0.001)
    done = threading.Event()
    clock.call_after(0, done.set)
    assert done.wait(PATIENCE)
    for thread in threads():
        thread.join(PATIENCE)
    assert threads() == []
    done.clear()
    clock.call_after(0, done.set)
    assert done.wait(PATIENCE)


def test_a_call_may_close_the_clock(clock: Clock) -> None:
    closed = threading.Event()
    clock.call_after(0, lambda: (clock.close(), closed.set()))
    assert closed.wait(PATIENCE)


def test_a_signal_handler_may_set_one_while_the_queue_is_made_anew(clock: Clock) -> None:
    made = threading.Event()

    class Struck(_clock.Timer):
        """One that is looked at when the signal comes."""

        @property
        def call(self) -> None:  # type: ignore[override]
            if not strikes:
                strikes.append(clock.call_after(0.001, made.set))

        @call.setter
        def call(self, call: Any) -> None: ...

    strikes: list[_clock.Timer] = []
    clock.call_after(500, lambda: None)
    with clock.lock:
        clock._queue.append((2000.0 + time.monotonic(), 10**6, Struck(clock, 0.0, lambda: None, None)))
    for _ in range(Clock.SPARSE + 1):
        clock.call_after(1000, lambda: None).dispose()
    assert len(strikes) == 1
    assert made.wait(PATIENCE)


def test_a_clock_that_is_lent_goes_on(clock: Clock) -> None:
    inside, go_on, made = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        clock.lend()
        assert clock.is_worker()
        inside.set()
        assert go_on.wait(PATIENCE)

    for _ in range(2):  # both are due at once
        clock.call_after(0.001, call)
    clock.call_after(0.002, made.set)
    assert inside.wait(PATIENCE)
    assert made.wait(PATIENCE)
    clock.lend()  # not its thread: nothing happens
    assert not clock.is_worker()
    go_on.set()
    clock.close()
    assert threads() == []
