"""A build: what its steps share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextvars import Context, copy_context
from enum import Enum, auto
from pathlib import Path
from reprlib import repr as brief  # short, and safe against a `__repr__` that raises
from typing import TypeVar

import msgspec
from reactivex import abc

from rxbus import EventBus, PublishError, RxBusError, Topic
from rxbus.pipeline._kill import KillSwitch
from rxbus.pipeline._results import MOCK, Result, StepId, is_below

logger = logging.getLogger("rxbus.pipeline")

T = TypeVar("T")


class Role(Enum):
    """What a retriggered build does with a step."""

    NORMAL = auto()  # it is new to the build
    RERUN = auto()  # the target, what it stands in and what stands in it: run again
    MOCK = auto()  # not run: the old build's result is told again


class Retrigger(msgspec.Struct, frozen=True):
    """From where a build goes on that another has begun.

    Attributes:
        build_number: The old build.
        target: The step that is run again.
        results: The old build's results.
    """

    build_number: int
    target: StepId
    results: Mapping[StepId, Result]
    _children: dict[StepId, list[StepId]] = {}

    def __post_init__(self) -> None:
        children: dict[StepId, list[StepId]] = {}
        for step_id in sorted(self.results):
            children.setdefault(step_id[1:], []).append(step_id)
        msgspec.structs.force_setattr(self, "_children", children)

    def told_again(self, step_id: StepId) -> Iterator[tuple[StepId, Result]]:
        """What a step had come to, and before it what the steps in it had, marked as told again."""
        for child in self._children.get(step_id, ()):
            yield from self.told_again(child)
        yield step_id, {**self.results[step_id], MOCK: self.build_number}

    def role(self, step_id: StepId, side_by_side: bool, race: bool) -> Role:
        """The role of a step, by how the steps next to it are run.

        Args:
            step_id: The step.
            side_by_side: They are run in parallel.
            race: One success among them is enough.
        """
        target, parent = self.target, step_id[1:]
        if is_below(step_id, target) or is_below(target, step_id):
            return Role.RERUN
        if not is_below(target, parent) or race or step_id not in self.results:
            return Role.NORMAL
        on_the_way = target[len(target) - len(parent) - 1]
        return Role.MOCK if side_by_side or step_id[0] < on_the_way else Role.NORMAL


class Build:
    """One run of a pipeline: what all of its steps share.

    Args:
        number: Its number.
        bus: Where it is told what happens.
        clock: Times the sampling of updates.
        updates_per_second: How many updates of a step are published; None: all.
        home: Where workspaces are made; None: where temporary files are.
        retrigger: Another build that this one goes on from.
    """

    def __init__(
        self,
        number: int,
        bus: EventBus,
        clock: abc.SchedulerBase,
        updates_per_second: float | None,
        home: Path | None,
        retrigger: Retrigger | None = None,
    ) -> None:
        self.number = number
        self.bus = bus
        self.clock = clock
        self.updates_per_second = updates_per_second
        self.home = home
        self.retrigger = retrigger
        self.kill = KillSwitch()
        self._threads: list[threading.Thread] = []  # those that nobody has waited for
        self._claimed = threading.Lock()

    def claim(self) -> bool:
        """Says whether the caller is the first: its thread, or whoever was interrupted while that was started."""
        return self._claimed.acquire(blocking=False)

    def publish(self, topic: Topic[T], payload: T) -> None:
        """Publishes; subscribers that fail are logged, and do not reach the step."""
        publish(self.bus, topic, payload)

    def start(self, call: Callable[[], T], name: str) -> Future[T]:
        """Calls something on a thread of its own; see `start_thread`."""
        future, thread = start_thread(call, name)
        self._threads.append(thread)  # before the thread ends that has started it, so that none is missed
        return future

    def wait_for_threads(self) -> None:
        """Waits until all have ended, those whose result nobody waits for included."""
        while self._threads:
            self._threads.pop().join()


def start_thread(
    call: Callable[[], T], name: str, future: Future[T] | None = None, context: Context | None = None
) -> tuple[Future[T], threading.Thread]:
    """Calls something on a thread of its own.

    Args:
        call: What is called.
        name: How the thread is called.
        future: What is to have the result; None: a new one.
        context: The context variables that it sees; None: those of the calling thread.
    """
    future = Future() if future is None else future
    future.set_running_or_notify_cancel()  # it cannot be cancelled
    variables = copy_context() if context is None else context

    def run() -> None:
        try:
            result = variables.run(call)
        except BaseException as error:  # the bus has been closed, or the disk is full
            future.set_exception(error)
        else:
            future.set_result(result)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return future, thread


def publish(bus: EventBus, topic: Topic[T], payload: T) -> None:
    """Publishes; subscribers that fail are logged.

    Raises:
        RxBusError: It cannot be published: the bus has been closed.
    """
    try:
        bus.publish(topic, payload)
    except PublishError as failed:
        for error in failed.exceptions:
            logger.error("a subscriber to %s failed: %s", topic, about(payload), exc_info=error)
    except RxBusError:
        raise
    except BaseException as error:  # a subscriber's, on whichever thread
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # Ctrl-C, while somebody kills a step from there
        logger.error("a subscriber to %s failed: %s", topic, about(payload), exc_info=error)


def about(payload: object) -> str:
    """Says which build and step something is about, for the log: a payload may hold megabytes of output."""
    told = ((name, getattr(payload, field, None)) for name, field in (("build", "build_number"), ("step", "step_id")))
    return ", ".join(f"{name} {brief(value)}" for name, value in told if value is not None) or brief(payload)
