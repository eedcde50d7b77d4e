"""Runners: what starts builds by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from reactivex.disposable import CompositeDisposable

from rxbus import Event
from rxbus.errors import BusClosed, InvalidArgument
from rxbus.pipeline import topics
from rxbus.pipeline._build import logger, publish
from rxbus.pipeline._pipeline import Pipeline
from rxbus.pipeline.errors import PipelineClosed


def start_one_run_after_another(pipeline: Pipeline) -> None:
    """Starts a build, and the next one each time that one has ended, until `stop_runner`.

    Raises:
        InvalidArgument: The pipeline has a runner already.
        PipelineClosed: It has been shut down.
        OSError: The first build cannot be written.
    """
    runner = _Runner(pipeline)

    def ended(event: Event[topics.PipelineFinished]) -> None:
        if runner.is_last(event.payload.build_number):
            runner.start_next()

    runner.listen(topics.PIPELINE_FINISHED.name, ended)


def start_new_run_after_first_step_finished(pipeline: Pipeline) -> None:
    """Starts a build, and the next one each time that the first step of the last has ended, until `stop_runner`.

    So a first step that waits (for a commit, a trigger) starts a build each time that something has come.

    Raises:
        InvalidArgument: The pipeline has a runner already.
        PipelineClosed: It has been shut down.
        OSError: The first build cannot be written.
    """
    runner = _Runner(pipeline)

    def ended(event: Event[topics.StepFinished]) -> None:
        step = event.payload
        if step.step_id == (1,) and not step.rerun_for_retrigger and runner.is_last(step.build_number):
            runner.start_next()

    runner.listen(topics.STEP_FINISHED.name, ended)


def stop_runner(pipeline: Pipeline) -> None:
    """Starts no new builds; what runs goes on. A second call does nothing."""
    with suppress(BusClosed):  # there is none any more
        publish(pipeline.bus, topics.STOP_RUNNER, topics.StopRunner())


class _Runner:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._lock = threading.RLock()  # held while a build is started, so that its number is known to its events
        self._last: int | None = None  # the build that it has started last
        self._stopped = False
        self._attached = CompositeDisposable()

    def listen(self, topic: str, ended: Callable[[Event[Any]], None]) -> None:
        """Listens, and starts the first build."""
        bus = self._pipeline.bus
        try:
            self._take_place()
            self._attached.add(bus.subscribe(topics.STOP_RUNNER, name="runner").subscribe(self._stop))
            self._attached.add(bus.subscribe(topic, name="runner").subscribe(ended))
            self._start()
        except BusClosed:
            self._stop()
            raise PipelineClosed from None
        except BaseException:  # no build will end, so none would follow
            self._stop()
            raise

    def _take_place(self) -> None:
        with self._pipeline._lock:
            if self._pipeline._runner is not None:  # builds would no longer follow each other
                raise InvalidArgument("the pipeline has a runner already: stop it before another is started")
            self._pipeline._runner = self

    def is_last(self, build_number: int) -> bool:
        """Whether a build is the one it has started last."""
        with self._lock:
            return build_number == self._last

    def start_next(self) -> None:
        """Starts a build, unless it has been stopped."""
        with self._lock:  # who stops it waits until it is told why it has stopped itself
            try:
                self._start()
            except PipelineClosed:
                self._stop()
            except Exception:  # a full disk
                logger.exception("the runner cannot start a build, and stops")
                self._stop()

    def _start(self) -> None:
        with self._lock:
            if not self._stopped:
                self._last, _ = self._pipeline._start({})

    def _stop(self, event: Event[topics.StopRunner] | None = None) -> None:
        with self._lock:
            self._stopped = True
        with self._pipeline._lock:
            if self._pipeline._runner is self:
                self._pipeline._runner = None
        self._attached.dispose()  # last: an interrupt would leave one that stands in the way, and hears of no stop
