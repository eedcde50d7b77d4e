"""`rxbus pipeline`: runs a file's pipeline with its steps on the screen, answers triggers, and reads old builds.

Pipeline -> bus -> `Follower`, on the main thread -> `Screen` or `Lines`; `Triggers` -> `Prompt`, or the home's socket
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType, ModuleType
from typing import Annotated, Any, BinaryIO

import msgspec
import typer
from reactivex.abc import DisposableBase
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rxbus import Event
from rxbus.errors import BusClosed, RxBusError
from rxbus.pipeline import _answers, topics
from rxbus.pipeline._display import Display, Lines, Progress, Screen
from rxbus.pipeline._pipeline import Pipeline
from rxbus.pipeline._prompt import Prompt, Reply, Request, Triggers, Waiting
from rxbus.pipeline._report import (
    BuildRow,
    Results,
    Structure,
    Unusable,
    build_row,
    duration,
    json_line,
    look_of,
    plain,
    step_id_of,
    step_row,
    summary_of,
    tree_of,
    walk,
    without_life,
)
from rxbus.pipeline._results import Status
from rxbus.pipeline._store import DiskStore
from rxbus.pipeline.errors import DamagedState, PipelineClosed, UnknownBuild

TICK = 0.1  # seconds from one look at the screen, and at what has been typed, to the next
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def is_screen(as_json: bool) -> bool:
    return sys.stdout.isatty() and not as_json


def screen_console() -> Console:
    with suppress(AttributeError, ValueError):  # not for what stands in for it in a test
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    return Console()


# -- Following a build

Begin = Callable[[], tuple[int | None, Future[topics.PipelineFinished]]]  # gives the number where it is known


class Follower:
    """Runs a build on the bus and shows it, until it has ended, or a signal has ended it.

    What happens is put in a queue, so that no step waits for the terminal.

    Args:
        pipeline: The pipeline; it is shut down in the end.
        lines: Where to write JSON lines; None: the terminal shows a tree.
    """

    def __init__(self, pipeline: Pipeline, lines: BinaryIO | None) -> None:
        self._pipeline = pipeline
        self._news: SimpleQueue[Event[Any] | int | object] = SimpleQueue()
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
            self._progress.number, future = begin()
            if self._progress.number is not None:
                self._progress.begin(self._progress.number)
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
        if event.topic not in TOPICS:
            return
        if event.topic == topics.STEP_RESULT_UPDATED.name:
            self._triggers.take(event.payload)
        self._news.put(event)

    def _follow(self, prompt: Prompt) -> None:
        due = 0.0
        while True:
            with suppress(Empty):
                news = self._news.get(timeout=max(0.0, due - time.monotonic()))
                if news is self._end:
                    return
                self._take(news)
            if time.monotonic() >= due:
                if self._signals or not prompt.look():
                    self._display.refresh()
                due = time.monotonic() + TICK

    def _take(self, news: Event[Any] | int | object) -> None:
        if isinstance(news, int):
            self._end = object()  # the build's own is not enough
            self._killer = threading.Thread(target=self._kill, args=(self._end,), name="rxbus-shutdown", daemon=True)
            self._killer.start()
        elif isinstance(news, Event):
            self._progress.take(news)
            self._display.take(news)

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
        """Notes the first signal that is to end us, and kills the steps; the second one hits as it always does."""

        def note(number: int, frame: FrameType | None) -> None:
            restore()
            self._signals.append(number)
            self._news.put(number)

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


TOPICS = frozenset(  # what is told of; the update that was consumed would only say again what the update has said
    topic.name
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
)


# -- Files and homes


def load(file: Path) -> Pipeline:
    """Gives the `pipeline` of a file.

    Raises:
        Unusable: There is no such file, it fails, or it has no pipeline.
    """
    if not file.is_file():
        raise Unusable(f"there is no file {file}")
    pipeline = getattr(_module(file.resolve()), "pipeline", None)
    if not isinstance(pipeline, Pipeline):
        what = "nothing of that name" if pipeline is None else f"a {type(pipeline).__name__}"
        raise Unusable(f"{file} has no rxbus.pipeline.Pipeline as its global 'pipeline', but {what}")
    return pipeline


def _module(file: Path) -> ModuleType:
    name = file.stem if file.stem not in sys.modules else f"{file.stem} of rxbus pipeline"
    spec = importlib.util.spec_from_loader(name, importlib.machinery.SourceFileLoader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: it is to define a pipeline, not to end
        raise Unusable(f"{file} fails{_where(error, file)}: {type(error).__name__}: {error}") from error
    return module


def _where(error: BaseException, file: Path) -> str:
    """Names the line of the file that an error came from."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            line = trace.tb_lineno
        trace = trace.tb_next
    return "" if line is None else f" in line {line}"


def home_of(path: Path) -> Path:
    """Gives a home that is there; reading one must not make it.

    Raises:
        Unusable: There is no such directory.
    """
    if not path.is_dir():
        raise Unusable(f"there is no directory {path}")
    return path.resolve()


class Reader:
    """Reads a home, whoever runs builds there."""

    def __init__(self, home: Path) -> None:
        self._store = DiskStore(home_of(home))

    def rows(self) -> Iterator[BuildRow]:
        for number in self._store.numbers():
            with suppress(UnknownBuild):  # it has been removed meanwhile
                yield self.row(number)

    def row(self, number: int) -> BuildRow:
        try:
            structure, results, running = self.build(number)
        except DamagedState as error:
            return BuildRow(number, "damaged", reason=str(error))
        return build_row(number, structure, results, running)

    def build(self, number: int) -> tuple[Structure, Results, bool]:
        """Gives a build's steps, their results, and whether it is running.

        Raises:
            UnknownBuild: There is no such build.
            DamagedState: It cannot be read.
        """
        structure = self._store.structure(number)
        results, running = self._store.read(number)
        return structure, results if running else without_life(results), running


# -- Commands

application = typer.Typer(no_args_is_help=True, help="Run build pipelines, answer their triggers, look at old builds.")

File = Annotated[Path, typer.Argument(metavar="FILE.py", help="A file whose global 'pipeline' is a Pipeline.")]
Home = Annotated[Path, typer.Argument(metavar="HOME", help="The directory that a pipeline keeps its builds in.")]
Number = Annotated[int, typer.Argument(metavar="N", help="The number of a build.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines, as is done where there is no terminal.")]


@contextmanager
def told_errors() -> Iterator[None]:
    """Says in one line what cannot be done, and exits with 2."""
    try:
        yield
    except BrokenPipeError:  # typer exits quietly
        raise
    except (RxBusError, OSError) as error:
        typer.echo(f"rxbus: {' '.join(plain(line) for line in str(error).splitlines())}", err=True)
        raise typer.Exit(2) from error


def print_lines(rows: Iterable[msgspec.Struct]) -> None:
    for row in rows:
        sys.stdout.buffer.write(json_line(msgspec.structs.asdict(row)) + b"\n")
        sys.stdout.buffer.flush()


@application.command()
def run(file: File, as_json: AsJson = False) -> None:
    """Run a build and watch its steps; Ctrl-C kills them. Exits with 0 if the build succeeds, else with 1.

    What steps print goes to stderr where JSON lines are printed.
    """
    with told_errors():
        raise typer.Exit(_run_file(file, as_json, lambda pipeline: lambda: pipeline._start({})))


@application.command()
def retrigger(
    home: Home,
    file: File,
    number: Number,
    step: Annotated[str, typer.Argument(metavar="STEP", help="A step of that build, child first: 2-1.")],
    as_json: AsJson = False,
) -> None:
    """Run a new build that goes on from a step of an old one, and watch it as `run` does."""

    def prepare(pipeline: Pipeline) -> Begin:
        if pipeline.home is None or pipeline.home.resolve() != home.resolve():
            raise Unusable(f"the home of the pipeline in {file} is not {home}, but {pipeline.home or 'none'}")
        return lambda: (None, _in_background(lambda: pipeline.retrigger(number, step_id)))

    with told_errors():
        step_id = step_id_of(step)
        raise typer.Exit(_run_file(file, as_json, prepare))


def _run_file(file: Path, as_json: bool, prepare: Callable[[Pipeline], Begin]) -> int:
    if is_screen(as_json) and not Console().is_dumb_terminal:
        pipeline = load(file)
        return Follower(pipeline, None).run(prepare(pipeline))
    lines = sys.stdout.buffer
    with redirect_stdout(sys.stderr):
        pipeline = load(file)
        return Follower(pipeline, lines).run(prepare(pipeline))


def _in_background(call: Callable[[], topics.PipelineFinished]) -> Future[topics.PipelineFinished]:
    future: Future[topics.PipelineFinished] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="rxbus-retrigger", daemon=True).start()
    return future


@application.command()
def builds(home: Home, as_json: AsJson = False) -> None:
    """List the builds in a home."""
    with told_errors():
        rows = Reader(home).rows()
        if not is_screen(as_json):
            print_lines(rows)
            return
        screen_console().print(builds_table(rows))


def builds_table(rows: Iterable[BuildRow]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("build", "status", "started", "duration", "failed steps"):
        table.add_column(heading, justify="right" if heading in ("build", "duration") else "left")
    for row in rows:
        symbol, colour = look_of(row.status)
        failures = row.reason or ", ".join(map(str, row.failed_steps))
        started = "" if row.started is None else f"{row.started.astimezone():%Y-%m-%d %H:%M:%S}"
        status = Text(f"{symbol} {row.status}", colour)
        table.add_row(str(row.build_number), status, started, duration(row.seconds), Text(plain(failures)))
    return table


@application.command()
def show(home: Home, number: Number, as_json: AsJson = False) -> None:
    """Show the steps of a build, how they have ended, and what they put out."""
    with told_errors():
        structure, results, running = Reader(home).build(number)
        if not is_screen(as_json):
            print_lines(step_row(number, step, results.get(step.step_id)) for step in walk(structure))
            return
        row = build_row(number, structure, results, running)
        console = screen_console()
        console.print(tree_of(row, structure, results, whole=True))
        console.print(Text(summary_of(row)), soft_wrap=True)


@application.command()
def trigger(
    home: Home,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TRIGGER_ID] [KEY=VALUE]...", help="Which trigger, and what it is answered with."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a step that waits for a trigger: the only one, or the one with that id."""
    with told_errors():
        trigger_id, parameters = trigger_words(words or [])
        waiting = waiting_in(home_of(home))
        found = [(path, one) for path, one in waiting if trigger_id in (None, one.trigger_id)]
        if len(found) > 1:
            show_waiting([one for _, one in found], as_json)
            raise Unusable(f"{len(found)} steps wait for a trigger: say which")
        if not found:
            what = f"the trigger {trigger_id}" if trigger_id is not None else "a trigger"
            raise Unusable(f"no step of a pipeline that `rxbus pipeline run` runs in {home} waits for {what}")
        [(path, one)] = found
        if not request(path, Request(one.trigger_id, parameters)).answered:
            raise Unusable(f"{one} does not wait any more")
        show_waiting([one], as_json, "triggered: ")


def trigger_words(words: list[str]) -> tuple[str | None, dict[str, Any]]:
    """Tells the trigger's id from the parameters."""
    trigger_id = words[0] if words and "=" not in words[0] else None
    parameters = {}
    for word in words[trigger_id is not None :]:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise Unusable(f"{word!r} is no parameter: parameters are written as key=value")
        parameters[key] = value
    return trigger_id, parameters


def waiting_in(home: Path) -> list[tuple[Path, Waiting]]:
    """Asks all processes that run builds in a home."""
    return [(path, one) for path in _answers.sockets(home) for one in request(path, Request()).waiting]


def request(path: Path, wanted: Request) -> Reply:
    reply = _answers.ask(path, msgspec.json.encode(wanted))
    if reply is None:  # it has ended
        return Reply([])
    try:
        return msgspec.json.decode(reply, type=Reply)
    except msgspec.DecodeError as error:
        raise _answers.NoSocket(path, f"what it answers is none: {error}") from error


def show_waiting(waiting: list[Waiting], as_json: bool, before: str = "") -> None:
    if not is_screen(as_json):
        print_lines(waiting)
        return
    console = screen_console()
    for one in waiting:
        parameters = f"; parameters: {', '.join(map(plain, one.parameters))}" if one.parameters else ""
        console.print(Text(f"{before}{plain(one.trigger_id)}: {one}{parameters}"), soft_wrap=True)
