"""Pipeline: steps, and the builds that are made of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any

from reactivex.scheduler import EventLoopScheduler

from rxbus import EventBus
from rxbus.errors import BusClosed, InvalidArgument, RxBusError
from rxbus.pipeline import topics
from rxbus.pipeline._build import Build, Retrigger, logger, publish, start_thread
from rxbus.pipeline._containers import Container, run_in_sequence, together
from rxbus.pipeline._results import Status, StepId, own_copy, without_life
from rxbus.pipeline._state import State
from rxbus.pipeline._step import Step
from rxbus.pipeline._structure import StepStructure, difference
from rxbus.pipeline.errors import PipelineClosed, StructureChanged, UnknownStep

PipelineFinished = topics.PipelineFinished


class Pipeline:
    """A build pipeline: its steps, the state of its builds, and the bus on which it tells what happens.

    Args:
        steps: What a build consists of, one after another; None is left out.
        home: The directory that keeps the builds' state, made if missing; None: it is kept in memory.
        bus: Where events are told; by default a bus of the pipeline's own, closed with it. One pipeline per bus: its
            events name builds by their numbers alone.
        max_builds: How many builds' state is kept; None: all.
        updates_per_second: How many updates of a step are published; None: all.
        shutdown_timeout: Seconds that `shutdown` waits for builds to end.

    Raises:
        InvalidArgument: A step cannot be called, a number is not more than 0 (`shutdown_timeout`: less than 0), or
            something else is not what it has to be.
    """

    def __init__(
        self,
        steps: Iterable[Step | None],
        *,
        home: str | PathLike[str] | None = None,
        bus: EventBus | None = None,
        max_builds: int | None = None,
        updates_per_second: float | None = 10,
        shutdown_timeout: float = 10.0,
    ) -> None:
        for name, number in (("max_builds", max_builds), ("updates_per_second", updates_per_second)):
            if number is not None and not (_is_number(number) and number > 0):
                raise InvalidArgument(f"{name} is None or more than 0, not {number!r}")
        if not (_is_number(shutdown_timeout) and shutdown_timeout >= 0):
            raise InvalidArgument(f"shutdown_timeout is a number of seconds from 0 on, not {shutdown_timeout!r}")
        if home is not None and not isinstance(home, str | PathLike):
            raise InvalidArgument(f"home is None or the path of a directory, not {home!r}")
        if bus is not None and not isinstance(bus, EventBus):
            raise InvalidArgument(f"bus is None or an EventBus, not {bus!r}")
        if not isinstance(steps, Iterable):
            raise InvalidArgument(f"a pipeline is made of a list of steps, not {steps!r}")
        self._root = Container("pipeline", [step for step in steps if step is not None])
        self._structure = structure_of(self._root, ())
        self._home = None if home is None else Path(home).absolute()
        self.bus = EventBus() if bus is None else bus
        self._owns_bus = bus is None
        self.state = State(self.bus, self._home, max_builds)
        self._updates_per_second = updates_per_second
        self._shutdown_timeout = shutdown_timeout
        self._clock_threads: list[threading.Thread] = []
        self._clock = EventLoopScheduler(self._clock_thread, exit_if_empty=True)
        self._lock = threading.RLock()  # guards all below; an RLock, as all of a pipeline: see `DiskStore`
        self._builds: dict[Build, Future[PipelineFinished]] = {}  # those that run
        self._closed = False
        self._runner: object = None  # what starts builds by itself; one at a time
        self._late = False  # builds have outlived the shutdown: the last of them ends the rest

    @property
    def home(self) -> Path | None:
        """The directory that keeps the builds' state; None if it is in memory."""
        return self._home

    def run(self, args: Mapping[str, Any] | None = None) -> PipelineFinished:
        """Runs a build, and returns when it has ended. Not for handlers: a build may wait for them.

        Nor for coroutines where `async def` handlers of the same event loop listen: they cannot go on before it
        returns. See `start`.

        Raises:
            As `start`.
        """
        return self.start(args).result()

    def start(self, args: Mapping[str, Any] | None = None) -> Future[PipelineFinished]:
        """Starts a build on a thread of its own. A coroutine waits with `await asyncio.wrap_future(...)`.

        Raises:
            InvalidArgument: The arguments are no mapping, or contain themselves.
            PipelineClosed: It has been shut down.
            OSError: The build cannot be written.
        """
        return self._start(_arguments(args))[1]

    def retrigger(self, build_number: int, step_id: StepId) -> PipelineFinished:
        """Runs a new build that goes on from a step of an old one, and returns when it has ended.

        It is started with what the old one was, but for what JSON cannot hold; the steps before the one that is named
        are not run: their old results are told again. The old build does not change.

        Raises:
            UnknownBuild: There is no such build.
            UnknownStep: It did not come to that step.
            StructureChanged: The pipeline's steps are others now, by their kinds and names; commands may have changed.
            InvalidArgument: It is not the id of a step.
            PipelineClosed: It has been shut down.
        """
        return self._start_again(build_number, _step_id(step_id))[1].result()

    def kill(self, build_number: int, step_id: StepId) -> None:
        """Tells a step, and all below it, to end. Where it does not run, nothing happens.

        Raises:
            InvalidArgument: It is not the id of a step.
        """
        self._kill(topics.KillStep(build_number, _step_id(step_id)))

    def kill_all(self) -> None:
        """Tells all steps that run to end."""
        self._kill(topics.KillStep())

    def _kill(self, kill: topics.KillStep) -> None:
        try:
            publish(self.bus, topics.KILL_STEP, kill)
        except BusClosed:  # the user's, before the pipeline: what runs can tell nothing, and ends
            with self._lock:
                builds = list(self._builds)
            self._throw(one for one in builds if kill.build_number in (None, one.number))

    def _throw(self, builds: Iterable[Build]) -> None:
        for build in builds:
            try:
                build.kill.throw()
            except RxBusError as error:  # it cannot be told on the bus; the steps know nevertheless
                if not isinstance(error, BusClosed):
                    logger.exception("a kill cannot be told")

    def shutdown(self) -> None:
        """Stops the runner, kills all builds, waits for them, and ends what belongs to the pipeline.

        It does not wait longer than `shutdown_timeout` for steps that take no notice: the last build to end closes the
        pipeline's own bus then. For handlers of what it tells (`stop-runner`, `received_kill`) it waits however long
        they take, as every publish does. A second call waits as the first did. An interrupted call can be repeated.
        """
        with self._lock:
            first, self._closed = not self._closed, True
            builds = dict(self._builds)
        if first:
            with suppress(BusClosed):  # the user's, before the pipeline
                publish(self.bus, topics.STOP_RUNNER, topics.StopRunner())
        self._throw(builds)
        late = wait_for(builds.values(), self._shutdown_timeout).not_done
        if late:
            logger.warning("builds that have not ended within %s s: %d", self._shutdown_timeout, len(late))
        self.state.close()
        with self._lock:
            self._late = bool(self._builds)
        if not self._late:
            self._end()

    def _end(self) -> None:
        """Ends what builds need."""
        self._clock.dispose()
        for thread in self._clock_threads:
            if thread.is_alive():  # Ctrl-C may have struck as it was started
                thread.join(self._shutdown_timeout)
        if self._owns_bus:
            self.bus.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._builds)} running"
        return f"<Pipeline of {len(self._root.steps)} steps, {state}>"

    def _start(self, args: dict[str, Any], retrigger: Retrigger | None = None) -> tuple[int, Future[PipelineFinished]]:
        """Starts a build; gives its number too."""
        with self._lock:
            if self._closed:
                raise PipelineClosed
            number = self.state.new_build(self._structure, args)
            build = Build(number, self.bus, self._clock, self._updates_per_second, self._home, retrigger)
            finished: Future[PipelineFinished] = Future()
            self._builds[build] = finished  # before it starts: an interrupt must not leave one that nobody knows
            try:
                if self._closed:  # by a signal handler, meanwhile; asked last, as it may have struck right here
                    raise PipelineClosed
                start_thread(partial(self._build, build, args), f"rxbus-build-{number}", finished, _context())
            except BaseException:  # too many threads; or interrupted, and nobody is given its future
                if build.claim():
                    self._forget(build)
                    self.state.end_build(number)
                else:  # its thread has
                    build.kill.throw()
                raise
        return number, finished

    def _start_again(self, build_number: int, step_id: StepId) -> tuple[int, Future[PipelineFinished]]:
        """Starts a build that goes on from a step of an old one; see `retrigger`."""
        results = without_life(self.state.step_results(build_number))  # of a build that runs, too
        if step_id not in results:
            raise UnknownStep(build_number, step_id)
        if (change := difference(self.state.structure(build_number), self._structure)) is not None:
            raise StructureChanged(build_number, change)
        return self._start(self.state.args(build_number), Retrigger(build_number, step_id, results))

    def _build(self, build: Build, args: dict[str, Any]) -> PipelineFinished:
        if not build.claim():  # whoever started it was interrupted, and does not know it
            raise PipelineClosed
        try:
            return self._run(build, args)
        finally:
            self._forget(build)

    def _forget(self, build: Build) -> None:
        """It does not run, or no longer; the last one that has outlived the shutdown ends the rest."""
        with self._lock:
            del self._builds[build]
            last = self._late and not self._builds
        if last:
            self._end()

    def _run(self, build: Build, args: dict[str, Any]) -> PipelineFinished:
        build.publish(topics.PIPELINE_STARTED, topics.PipelineStarted(build.number))
        try:
            outputs = run_in_sequence(build, self._root, args, None)
            told = PipelineFinished(build.number, Status(together(outputs)["status"]), outputs)
        except BusClosed:  # nothing more can be told
            raise
        except BaseException:  # not a step's: no thread can be started, or the bus refuses what is told
            logger.exception("build %d has failed", build.number)
            told = PipelineFinished(build.number, Status.FAILURE, {})
        build.wait_for_threads()
        build.publish(topics.PIPELINE_FINISHED, told)
        return told

    def _clock_thread(self, target: Callable[..., None]) -> threading.Thread:
        thread = threading.Thread(target=target, name="rxbus-pipeline-clock", daemon=True)
        self._clock_threads = [one for one in self._clock_threads if one.is_alive()] + [thread]
        return thread


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _step_id(step_id: StepId) -> StepId:
    if not isinstance(step_id, tuple | list) or not all(isinstance(number, int) for number in step_id):
        raise InvalidArgument(f"a step id is a tuple of numbers, child first, as (2, 1), not {step_id!r}")
    return tuple(step_id)


def _arguments(args: Mapping[str, Any] | None) -> dict[str, Any]:
    if args is not None and not isinstance(args, Mapping):
        raise InvalidArgument(f"arguments are a dict, not {args!r}")
    try:
        return {name: own_copy(value) for name, value in (args or {}).items()}
    except RecursionError:
        raise InvalidArgument("arguments must not contain themselves") from None


def _context() -> Context:
    """The caller's context variables, without the bus's: a build is no part of what an `async def` handler is at."""
    context = Context()
    for variable, value in copy_context().items():
        if not variable.name.startswith("rxbus"):
            context.run(variable.set, value)
    return context


def structure_of(container: Container, parent_id: StepId) -> tuple[StepStructure, ...]:
    """What a container consists of: names and kinds, all the way down."""
    structure = []
    for number, step in enumerate(container.steps, 1):
        if step is None:
            continue
        step_id = (number, *parent_id)
        kind = step.kind if isinstance(step, Container) else getattr(step, "kind", "step")
        children = structure_of(step, step_id) if isinstance(step, Container) else ()
        name = str(getattr(step, "__name__", None) or type(step).__name__)
        name = name.encode(errors="backslashreplace").decode()  # it may quote a file's, which need not be text
        structure.append(StepStructure(step_id, name, kind, children))
    return tuple(structure)
