"""`rxbus pipeline`: runs a file's pipeline with its steps on the screen, answers triggers, and reads old builds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rxbus._console import (
    AsJson,
    Unusable,
    is_screen,
    plain,
    screen_console,
    standard_output,
    tell,
    told_errors,
    write_line,
)
from rxbus.pipeline import _answers
from rxbus.pipeline._definition import load
from rxbus.pipeline._disk import DiskStore
from rxbus.pipeline._follower import Begin, Follower
from rxbus.pipeline._pipeline import Pipeline, PipelineFinished
from rxbus.pipeline._prompt import Reply, Request, Waiting
from rxbus.pipeline._report import (
    BuildRow,
    Results,
    Structure,
    build_row,
    duration,
    json_line,
    look_of,
    step_row,
    summary_of,
    tree_of,
    walk,
)
from rxbus.pipeline._results import StepId, step_id_of, without_life
from rxbus.pipeline.errors import DamagedState, UnknownBuild, UnknownStep


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


LISTING = 2.0  # seconds that a process has to say what waits


@contextmanager
def kept_for_lines() -> Iterator[BinaryIO]:
    """Keeps standard output for JSON lines: what steps print, and their children, goes to standard error."""
    out = standard_output()
    with ExitStack() as ending:
        errors = sys.stderr or ending.enter_context(open(os.devnull, "w"))  # None: it has been closed, `2>&-`
        with suppress(OSError):  # what stands in for it in a test has no descriptor
            descriptor = out.fileno()
            out = os.fdopen(os.dup(descriptor), "wb")
            ending.callback(_close, out)
            ending.callback(os.dup2, out.fileno(), descriptor)
            os.dup2(errors.fileno(), descriptor)
        ending.enter_context(redirect_stdout(errors))
        yield out


def _close(out: BinaryIO) -> None:
    with suppress(OSError):  # its reader has left, and does not get what is held still
        out.close()


# -- Commands

application = typer.Typer(no_args_is_help=True, help="Run build pipelines, answer their triggers, look at old builds.")

File = Annotated[Path, typer.Argument(metavar="FILE.py", help="A file whose global 'pipeline' is a Pipeline.")]
Home = Annotated[Path, typer.Argument(metavar="HOME", help="The directory that a pipeline keeps its builds in.")]
Number = Annotated[int, typer.Argument(metavar="N", help="The number of a build.")]


def print_lines(rows: Iterable[msgspec.Struct]) -> None:
    out = standard_output()
    for row in rows:
        write_line(out, json_line(msgspec.structs.asdict(row)))


@application.command()
def run(file: File, as_json: AsJson = False) -> None:
    """Run a build and watch its steps; Ctrl-C kills them, and a second one does not wait for their end.

    Exits with 0 if the build succeeds and else with 1; with 128 and the signal's number if one has ended it; with 2 if
    it cannot be run. Where JSON lines are printed, what steps print goes to stderr, and an update says in `out_added`
    what has come to its step's `out`.
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

        def begin() -> tuple[int, Future[PipelineFinished]]:
            try:
                return pipeline._start_again(number, step_id)
            except UnknownStep as error:
                raise Unusable(f"build {number} has no step {step}, or did not come to it") from error

        return begin

    with told_errors():
        step_id = step_of(step)
        raise typer.Exit(_run_file(file, as_json, prepare))


def _run_file(file: Path, as_json: bool, prepare: Callable[[Pipeline], Begin]) -> int:
    if is_screen(as_json) and not Console().is_dumb_terminal:
        pipeline = load(file)
        return Follower(pipeline, None).run(prepare(pipeline))
    with kept_for_lines() as lines:
        pipeline = load(file)
        return Follower(pipeline, lines).run(prepare(pipeline))


def step_of(text: str) -> StepId:
    try:
        return step_id_of(text)
    except ValueError as error:
        raise Unusable(str(error)) from error


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
        if unknown := parameters.keys() - (one.parameters or parameters).keys():
            raise Unusable(f"{min(unknown)!r} is none of its parameters: {', '.join(map(plain, one.parameters or {}))}")
        if missing := (one.parameters or {}).keys() - parameters.keys():
            raise Unusable(f"it wants {', '.join(f'{plain(name)}=...' for name in sorted(missing))} too")
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
    waiting: list[tuple[Path, Waiting]] = []
    silent: list[_answers.NoSocket] = []
    for path in _answers.sockets(home):
        try:
            waiting += [(path, one) for one in request(path, Request(), LISTING).waiting]
        except _answers.NoSocket as failure:  # it may have been stopped; the others are asked nevertheless
            silent.append(failure)
    if silent and not waiting:
        raise silent[0]
    for one in silent:
        tell(one)
    return waiting


def request(path: Path, wanted: Request, patience: float | None = None) -> Reply:
    reply = _answers.ask(path, msgspec.json.encode(wanted), patience)
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
