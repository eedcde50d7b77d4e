"""Following a build at the terminal, from its start to its end or to a signal.

Pipeline -> bus -> `Follower`, on the main thread -> `Screen` or `Lines`; `Triggers` -> `Prompt`, or the home's socket
"""

from __future__ import annotations

import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, Queue
from types import FrameType
from typing import Any, BinaryIO

from reactivex.abc import DisposableBase

from rxbus import Event
from rxbus._console import plain, screen_console
from rxbus.errors import BusClosed
from rxbus.pipeline import _answers, topics
from rxbus.pipeline._display import Display, Lines, Progress, Screen
from rxbus.pipeline._pipeline import Pipeline
from rxbus.pipeline._prompt import Prompt, Triggers
from rxbus.pipeline._results import Status
from rxbus.pipeline._shell import end_all_commands
from rxbus.pipeline.errors import PipelineClosed

TICK = 0.1  # seconds from one look at the screen, and at what has been typed, to the next
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

Begin = Callable[[], tuple[int, Future[topics.PipelineFinished]]]


class Follower:
    """Runs a build on the bus and shows it, until it has ended, or a signal has ended it.

    What happens is put in a queue, so that no step waits for the terminal.

    Args:
        pipeline: The pipeline; it is shut down in the end.
        lines: Where to write JSON lines; None: the terminal shows a tree.
    """

    def __init__(self, pipeline: Pipeline, lines: BinaryIO | None) -> None:
        self._pipeline = pipeline
        self._news: Queue[Event[Any] | object] = Queue()
        self._end = object()  # what ends it, when it comes in the queue
        self._signals: list[int] = []
        self._killer: threading.Thread | None = None  # shuts down, while the display goes on
        self._progress = Progress(pipeline)
        self._triggers = Triggers(pipeline)
        self._display: Display = Lines(self._progress, lines) if lines else Screen(self._progress, screen_console())

    def run(self, begin: Begin) -> int:
        """Runs it.

        Returns:
            The exit code: 0 for success, 1 otherwise, and where a signal came 128 and its number, as shells have it.

        Raises:
            RxBusError: It cannot be begun.
        """
        with ExitStack() as ending:
            ending.push(self._leave)
            ending.callback(self._display.close)
            ending.callback(self._attach().dispose)
            ending.enter_context(self._noted_signals())
            prompt = Prompt(self._triggers, self._display, ending.enter_context(self._reachable()))
            number, future = begin()
            self._progress.begin(number)
            first_end = self._end
            future.add_done_callback(lambda _: self._news.put(first_end))
            self._follow(prompt)
            self._progress.leave()
            self._display.end()
        if self._signals:
            return 128 + self._signals[0]
        return 0 if future.result().status == Status.SUCCESS else 1

    def _attach(self) -> DisposableBase:
        try:
            return self._pipeline.bus.subscribe(">", name="terminal").subscribe(self._on_event)
        except BusClosed:
            raise PipelineClosed from None

    def _on_event(self, event: Event[Any]) -> None:
        if not isinstance(event.payload, TOPICS.get(event.topic, ())):  # anybody may publish anything
            return
        if isinstance(event.payload, topics.StepResultUpdated):
            self._triggers.take(event.payload)
        self._news.put(event)

    def _follow(self, prompt: Prompt) -> None:
        due = 0.0
        while True:
            with suppress(Empty):
                news = self._news.get(timeout=max(0.0, due - time.monotonic()))
                if news is self._end:
                    return
                if isinstance(news, Event):
                    self._progress.take(news)
                    self._display.take(news)
            if time.monotonic() >= due:
                if self._signals or not prompt.look():
                    self._display.refresh()
                due = time.monotonic() + TICK

    def _begin_killing(self) -> None:
        """At once, in the signal handler: this thread may be held by a terminal that takes nothing more."""
        self._end = object()  # the build's own is not enough
        self._killer = threading.Thread(target=self._kill, args=(self._end,), name="rxbus-shutdown", daemon=True)
        self._killer.start()

    def _kill(self, end: object) -> None:
        try:
            self._pipeline.shutdown()
        finally:
            self._news.put(end)

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Leaves no step behind, unless it has been killed and somebody will not wait for its end."""
        if self._killer is None:
            self._pipeline.shutdown()
        elif not isinstance(error, KeyboardInterrupt):
            self._killer.join()

    @contextmanager
    def _noted_signals(self) -> Iterator[None]:
        """Notes the first signal that is to end us, and kills the steps.

        The second one leaves nothing of the steps' commands alive, and hits as it always does.
        """

        def note(number: int, frame: FrameType | None) -> None:
            if not self._signals:
                self._signals.append(number)
                self._begin_killing()
                return
            end_all_commands()
            restore()
            signal.raise_signal(number)

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]  # not under nohup
        before = {number: signal.signal(number, note) for number in heeded}
        try:
            yield
        finally:
            restore()

    @contextmanager
    def _reachable(self) -> Iterator[str]:
        """Lets other terminals answer triggers, if they can; gives what is said of it."""
        home = self._pipeline.home
        if home is None:
            yield "the pipeline has no home, so no other terminal can answer it"
            return
        try:
            listener = _answers.Listener(home, self._triggers.reply)
        except _answers.NoSocket as error:
            yield f"no other terminal can answer it: {error}"
            return
        try:
            yield f"from another terminal: rxbus pipeline trigger {plain(shlex.quote(str(home)))}"
        finally:
            listener.close()


TOPICS: dict[str, type] = {  # what is told of; the update that was consumed would only say again what it has said
    topic.name: topic.payload_type
    for topic in (
        topics.PIPELINE_STARTED,
        topics.STEP_STARTED,
        topics.STEP_RESULT_UPDATED,
        topics.STEP_FINISHED,
        topics.PIPELINE_FINISHED,
        topics.MANUAL_TRIGGER_RECEIVED,
        topics.KILL_STEP,
        topics.STOP_RUNNER,
    )
}
