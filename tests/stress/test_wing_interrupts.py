"""Ctrl-C at every single point of what stands around the bus: pipelines, runners, stores, live views."""

from __future__ import annotations

import io
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import rich

from rxbus import BusClosed, Event, EventBus, RxBusError
from rxbus.pipeline import (
    Pipeline,
    StepContext,
    in_parallel,
    post_trigger,
    run,
    start_one_run_after_another,
    stop_runner,
    topics,
    wait_for_manual_trigger,
)
from rxbus.pipeline._disk import DiskStore
from rxbus.pipeline._store import MemoryStore
from tests.stress.strikes import Strike

pytestmark = [
    pytest.mark.rxbus_allow("failures"),  # of what is interrupted
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # struck in a destructor
]

PATIENCE = 8.0  # seconds; less than a pipeline waits for builds that do not end
FIRST = 30  # points at each of which it strikes
EVERY = 1 if "RXBUS_STRESS" in os.environ else 8  # at each of the others too, or at every eighth

LOCKS = [threading.__file__, queue.__file__]  # whose Python code stays locked where it is struck

Scene = Callable[[Path], Iterator[Callable[[], object]]]
"""Gives what is to be struck, and goes on to look whether all is well, on another thread."""


def ok(args: Any, ctx: StepContext) -> Any:
    return {"status": "success"}


def runs(home: Path) -> Iterator[Callable[[], object]]:
    pipeline = Pipeline([ok, ok], home=home)
    yield pipeline.run
    assert pipeline.run().status == "success"
    end(pipeline, home)


def retriggers(home: Path) -> Iterator[Callable[[], object]]:
    pipeline = Pipeline([ok, ok])
    pipeline.run()
    yield lambda: pipeline.retrigger(1, (2,))
    assert pipeline.retrigger(1, (2,)).status == "success"
    end(pipeline)


def opens(home: Path) -> Iterator[Callable[[], object]]:
    """A home in which a process that has crashed has left a build, half a build, and a workspace."""
    end(Pipeline([ok], home=home), home)
    (home / "build-1" / "build.lock").touch()
    (home / "build-7").mkdir()
    (home / "build-7" / "build.lock").touch()
    (home / "workspace-9-1-x").mkdir()
    yield lambda: Pipeline([ok], home=home)
    end(Pipeline([ok], home=home), home)


def kills(home: Path, closed: bool = False) -> Iterator[Callable[[], object]]:
    bus, begun = EventBus(), threading.Semaphore(0)

    def wait(args: Any, ctx: StepContext) -> Any:
        begun.release()
        ctx.wait_killed()
        return {"status": "killed"}

    tree = in_parallel(run(wait), run(run(wait)))
    pipeline = Pipeline([tree], bus=bus, updates_per_second=None)  # the clock is reactivex's, with locks of its own
    builds = [pipeline.start() for _ in range(2)]
    for _ in range(4):
        begun.acquire()
    if closed:
        bus.close()

    def act() -> None:
        for number in (1, 2):
            pipeline.kill(number, (1,))

    yield act
    act()
    for build in builds:
        with suppress(BusClosed):
            assert build.result().status == "killed"
    pipeline.shutdown()
    bus.close()


def kills_where_the_bus_is_closed(home: Path) -> Iterator[Callable[[], object]]:
    return kills(home, closed=True)


def answers(home: Path) -> Iterator[Callable[[], object]]:
    waiting: SimpleQueue[str] = SimpleQueue()

    def hear(event: Event[topics.StepResultUpdated]) -> None:
        if "trigger_id" in event.payload.step_result:
            waiting.put(event.payload.step_result["trigger_id"])

    pipeline = Pipeline([wait_for_manual_trigger])
    with pipeline.bus.subscribe(topics.STEP_RESULT_UPDATED).subscribe(hear):
        build, trigger_id = pipeline.start(), waiting.get()
    yield lambda: post_trigger(pipeline.bus, trigger_id)
    post_trigger(pipeline.bus, trigger_id)
    assert build.result().status == "success"
    end(pipeline)


def shuts_down(home: Path) -> Iterator[Callable[[], object]]:
    begun = threading.Event()

    def wait(args: Any, ctx: StepContext) -> Any:
        begun.set()
        ctx.wait_killed()
        return {"status": "killed"}

    pipeline = Pipeline([wait], home=home)
    build = pipeline.start()
    begun.wait()
    yield pipeline.shutdown
    end(pipeline, home)
    with suppress(BusClosed):
        assert build.result().status == "killed"


def starts_and_stops_a_runner(home: Path) -> Iterator[Callable[[], object]]:
    pipeline = Pipeline([lambda args, ctx: {"status": "killed" if ctx.wait_killed(0.001) else "success"}])

    def act() -> None:
        start_one_run_after_another(pipeline)
        stop_runner(pipeline)

    yield act
    stop_runner(pipeline)
    start_one_run_after_another(pipeline)
    end(pipeline)


def removes(home: Path, store: DiskStore | MemoryStore | None = None) -> Iterator[Callable[[], object]]:
    store = DiskStore(home) if store is None else store
    for number in range(1, 5):
        store.create((), b"{}")
        if number != 2:
            store.finish(number)
    yield lambda: store.truncate(1)
    store.truncate(1)
    store.create((), b"{}")
    assert store.numbers() == [2, 4, 5]
    store.close()


def removes_from_memory(home: Path) -> Iterator[Callable[[], object]]:
    return removes(home, MemoryStore())


def shows_a_table(home: Path) -> Iterator[Callable[[], object]]:
    with EventBus() as bus:
        bus.publish("a")
        yield bus.top
        table = bus.top()
        assert table.running
        table.stop()
        assert not any(thread.name == "rxbus-top" for thread in threading.enumerate())
    shown = sys.stdout.getvalue()  # type: ignore[attr-defined] # a terminal gets its cursor back
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")


def end(pipeline: Pipeline, home: Path | None = None) -> None:
    """Others are not locked out of the home, and nothing of the pipeline is left."""
    if home is not None:
        with Pipeline([ok], home=home) as other:
            assert other.run().status == "success"
    pipeline.shutdown()
    assert repr(pipeline).endswith("closed>")
    with pytest.raises(BusClosed):
        pipeline.bus.publish("a")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "scene",
    [
        *(
            runs,
            retriggers,
            opens,
            kills,
            kills_where_the_bus_is_closed,
            answers,
            shuts_down,
            starts_and_stops_a_runner,
        ),
        *(removes, removes_from_memory, shows_a_table),
    ],
    ids=lambda scene: scene.__name__,
)
def test_every_interrupt(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(rich, "_console", None)  # rich's own, which remembers what it was made for
    for nth in chain(range(1, FIRST), count(FIRST, EVERY)):
        monkeypatch.setattr(sys, "stdout", Terminal())
        if struck(scene, tmp_path / str(nth), nth) is None:
            break
    assert nth > 2  # under coverage, fewer points are come by


def struck(scene: Scene, home: Path, nth: int) -> str | None:
    """Strikes at the n-th point, and looks whether all is well; says where, or None where it ended before."""
    story, strike = (
        scene(home),
        Strike(nth, *(LOCKS if scene in (kills, kills_where_the_bus_is_closed, answers) else ())),
    )
    act = next(story)
    with suppress(KeyboardInterrupt, RxBusError), strike:
        act()
    problems: list[BaseException] = []

    def go_on() -> None:
        try:
            next(story, None)
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    at = f"struck at point {nth}, {strike.where}"
    assert not thread.is_alive(), f"{at}: it hangs"
    assert not problems, f"{at}: {problems[0]!r}"
    return strike.where
