"""The bell: it wakes once, keeps its time, and minds neither late ringers nor signals."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from rxbus._bell import Bell, ring_all

PATIENCE = 10.0


def test_it_has_not_rung_to_begin_with() -> None:
    assert not Bell().wait(0.0)


def test_rung_before_anybody_waits_it_wakes_at_once_and_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    assert bell.wait()
    assert not bell.wait(0.0)


def test_it_wakes_who_waits(spawn: Callable[..., Future[Any]]) -> None:
    bell = Bell()
    waiting = spawn(bell.wait)
    bell.ring()
    assert waiting.result(PATIENCE)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, -math.inf])
def test_no_time_left(seconds: float) -> None:
    bell = Bell()
    assert not bell.wait(seconds)
    bell.ring()
    assert bell.wait(seconds)


@pytest.mark.parametrize("seconds", [1e300, math.inf])
def test_more_time_than_any_clock_takes(seconds: float) -> None:
    bell = Bell()
    bell.ring()
    assert bell.wait(seconds)


def test_ring_all_rings_all() -> None:
    bells = [Bell(), Bell()]
    ring_all(bells)
    assert all(bell.wait(0.0) for bell in bells)


@pytest.mark.timeout(60)
def test_a_moment_is_not_for_ever() -> None:
    """What `SimpleQueue.get` does with a timeout that is over before it has begun to wait: this loop ends nowhere."""
    bell = Bell()
    for _ in range(20_000):
        bell.ring()
        assert bell.wait()
        assert not bell.wait(1e-6)


@pytest.mark.timeout(60)
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_a_signal_handler_that_outlasts_the_time_does_not_keep_it_waiting() -> None:
    """The same in a signal handler, which `SimpleQueue.get` runs while it waits."""
    struck = threading.Event()

    def handle(number: int, frame: object) -> None:
        struck.set()
        time.sleep(0.2)  # longer than there is time

    before = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert not Bell().wait(0.1)
        assert struck.is_set()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
