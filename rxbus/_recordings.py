"""`rxbus replay` and `rxbus report`: recordings, played again at the terminal or told as a page."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from rxbus import BlockingScheduler, Event, EventBus, matcher
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
from rxbus.display import report as make_report
from rxbus.recording import DamagedRecording, Recording, Unencodable
from rxbus.recording._replaced import replaced

LONGEST = 2_000  # characters of a payload that are looked at for a line

File = Annotated[Path, typer.Argument(metavar="FILE", help="What `recording.save(FILE)` has written.")]


def load(file: Path) -> Recording:
    """Loads a recording; of a damaged one, what is whole, and tells what is not.

    Raises:
        NotARecording: It is none.
        OSError: It cannot be read.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DamagedRecording)
        recording = Recording.load(file)
    for warning in told:
        tell(warning.message)
    return recording


# -- replay


def replay(
    file: File,
    speed: Annotated[float, typer.Option(metavar="N", help="How many times as fast; inf is at once.")] = 1.0,
    topic: Annotated[str, typer.Option(metavar="PATTERN", help="Show the events of these topics only.")] = ">",
    as_json: AsJson = False,
) -> None:
    """Play a recording on a bus, at its distances in time, and show each event when its turn has come.

    A line has the time at which the event was recorded, its topic, its id and
    its cause's, and its payload. A JSON line is as in the file: what could not
    be encoded there has a `repr` instead of a `payload`. Ctrl-C ends it.
    """
    if not speed > 0:  # so put, it holds for nan as well
        raise typer.BadParameter("it is a number greater than 0", param_hint="--speed")
    with told_errors():
        wanted = matcher(topic)
        show = Drawn(screen_console()) if is_screen(as_json) else Lines(standard_output())
        raise typer.Exit(play(load(file), speed, wanted, show))


def play(recording: Recording, speed: float, wanted: Callable[[str], bool], show: Callable[[Event[Any]], None]) -> int:
    """Plays a recording.

    Returns:
        The exit code: 0, or 130 if Ctrl-C has ended it.

    Raises:
        OSError: What it is shown on takes nothing more.
    """
    recorded = iter(recording.events)

    def on_next(played: Event[Any]) -> None:
        # As it was: what has been published has another id, and the time of now. Others may have been left out.
        event = next(one for one in recorded if one.topic == played.topic)
        if wanted(event.topic):
            try:
                show(event)
            except OSError as error:
                raise _Over(error) from error

    # All on this thread: what is shown is shown before the next one is published.
    with EventBus(BlockingScheduler(max_workers=0)) as bus:
        bus.subscribe(">", name="terminal").subscribe(on_next)
        try:
            recording.replay(bus, speed)
        except KeyboardInterrupt:
            return 130
        except _Over as over:
            raise over.error from None
    return 0


class _Over(BaseException):
    """Ends a replay from inside a handler: mere errors of handlers do not."""

    def __init__(self, error: OSError) -> None:
        self.error = error


class EventLine(msgspec.Struct, omit_defaults=True):
    """An event as a JSON line: as in the file."""

    time: float
    id: int
    topic: str
    cause: int | None = None
    payload: Any = msgspec.UNSET
    repr: str | msgspec.UnsetType = msgspec.UNSET


class Lines:
    """Shows events as JSON lines."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def __call__(self, event: Event[Any]) -> None:
        line = EventLine(event.time, event.id, event.topic, event.cause)
        if isinstance(event.payload, Unencodable):
            line.repr = event.payload.repr
        else:
            line.payload = event.payload
        write_line(self._out, msgspec.json.encode(line))


class Drawn:
    """Shows events on the screen, a line for each."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Event[Any]) -> None:
        cause = "" if event.cause is None else f" <- #{event.cause}"
        line = Text.assemble(
            (f"{clock(event.time)}  ", "dim"),
            (plain(event.topic), "bold"),
            (f"  #{event.id}{cause}  ", "dim"),
            text_of(event.payload),  # last: of a long line the end is cut off
        )
        self._console.print(line, no_wrap=True, overflow="ellipsis")


def clock(time: float) -> str:
    """Writes a time of day, here."""
    try:
        return f"{datetime.fromtimestamp(time):%H:%M:%S.%f}"[:-3]
    except (OverflowError, ValueError, OSError):  # a file may hold any number
        return f"{time:g}"


def text_of(payload: object) -> str:
    """Writes a payload in one line: as JSON, or as what stands for what JSON has not."""
    text = payload.repr if isinstance(payload, Unencodable) else msgspec.json.encode(payload).decode()
    return plain(text[:LONGEST])


# -- report


def report(
    file: File,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it; a file there is replaced.")
    ] = None,
) -> None:
    """Make a page of a recording: topics, rates, latencies, failures, marbles, and what led to what.

    The page is HTML, in a single file that needs no network. Without -o, or
    with -o -, it is written to standard output, unless that is a terminal.
    """
    with told_errors():
        to_stdout = output is None or str(output) == "-"
        if to_stdout and is_screen(as_json=False):
            raise Unusable("a page is nothing for a terminal: say where to write it, by -o report.html")
        page = make_report(load(file)).encode()
        if output is None or to_stdout:
            out = standard_output()
            out.write(page)
            out.flush()
        else:
            with replaced(output) as written:
                written.write(page)
