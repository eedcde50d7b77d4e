"""Fixtures for all tests, besides those of `rxbus.testing`: threads with a result, which are joined."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from time import monotonic, tzset
from typing import Any

import pytest
from hypothesis import settings

from rxbus import _buffered
from rxbus.testing import Check

pytest_plugins = ["rxbus._pytest"]

PATIENCE = 10.0  # seconds that anything in a test may take

settings.register_profile("rxbus", deadline=None)
settings.load_profile("rxbus")


@pytest.fixture
def spawn() -> Iterator[Callable[..., Future[Any]]]:
    """Calls a function on a thread of its own: `spawn(bus.publish, "a", 1).result(PATIENCE)`; joined after the test."""
    threads: list[threading.Thread] = []

    def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(function(*arguments, **named))
            except BaseException as error:
                future.set_exception(error)

        threads.append(threading.Thread(target=run, name=f"spawned-{len(threads)}", daemon=True))
        threads[-1].start()
        return future

    yield call
    _join(threads)


@pytest.fixture
def half_past_five(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's time is India's, five hours and a half ahead of UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "IST-5:30")
        tzset()
        yield
    tzset()


@pytest.fixture(autouse=True)
def _nothing_left(rxbus_check: Check) -> Iterator[None]:
    """Checks all tests; the spare workers, which users need not care for, are to end like all others."""
    yield
    _buffered._spare.close()


def _join(threads: list[threading.Thread]) -> None:
    deadline = monotonic() + PATIENCE / 2
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    assert [thread.name for thread in threads if thread.is_alive()] == []
