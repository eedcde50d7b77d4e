"""What the terminal's commands have in common: where they write, how they tell errors, and how a signal ends them."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, BinaryIO

import typer
from rich.console import Console

from rxbus.errors import RxBusError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines, as is done where there is no terminal.")]


class Unusable(RxBusError):
    """What was given to the terminal cannot be meant, or is not there; the message says why."""


def check_seconds(seconds: float) -> None:
    """Refuses what is no time, as an error of usage."""
    if not seconds > 0:  # so put, it holds for nan as well
        raise typer.BadParameter("it is a number greater than 0", param_hint="--seconds")


def is_screen(as_json: bool) -> bool:
    return sys.stdout is not None and sys.stdout.isatty() and not as_json


def screen_console() -> Console:
    with suppress(AttributeError, ValueError):  # not for what stands in for it in a test
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    return Console()


def standard_output() -> BinaryIO:
    if sys.stdout is None:
        raise Unusable("standard output is closed")
    return sys.stdout.buffer


def write_line(out: BinaryIO, line: bytes) -> None:
    """Writes a line as it is, so in UTF-8, whatever the locale, and at once."""
    out.write(line + b"\n")
    out.flush()


def plain(text: object) -> str:
    """Makes a line of what may hold anything, so that it cannot steer the terminal; colours are taken out."""
    uncoloured = re.sub(r"\x1b\[[0-9;?]*[ -/]*[@-~]", "", str(text)).replace("\t", "    ")
    return "".join(one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in uncoloured)


def tell(message: object) -> None:
    """Says something in one line, on standard error."""
    typer.echo(f"rxbus: {' '.join(plain(line) for line in str(message).splitlines())}", err=True)


@contextmanager
def told_errors() -> Iterator[None]:
    """Says in one line what cannot be done, and exits with 2."""
    try:
        yield
    except BrokenPipeError:  # typer exits quietly
        raise
    except (RxBusError, OSError) as error:
        tell(error)
        raise typer.Exit(2) from error


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Notes Ctrl-C and SIGTERM, so that a command ends in good order; the second one hits as it always does."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield noted
    finally:
        restore()


def exit_code(signals: list[int]) -> int:
    """0 or, as shells have it, 128 and the number of the signal that came."""
    return 128 + signals[0] if signals else 0
