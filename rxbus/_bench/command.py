"""`rxbus bench` at the terminal: tables or JSON lines, and a plot."""

from __future__ import annotations

import math
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Annotated, Self

import msgspec
import typer
from rich import box
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rxbus._bench.peers import ALL, Loop, Peer, Rxbus
from rxbus._bench.plot import draw, formats
from rxbus._bench.rounds import Figures, Scenario, measure
from rxbus._console import (
    AsJson,
    Unusable,
    check_seconds,
    exit_code,
    is_screen,
    noted_signals,
    screen_console,
    standard_output,
    tell,
    told_errors,
    write_line,
)
from rxbus.recording._replaced import replaced

KEYS = {kind.package or "loop": kind for kind in ALL}  # what `--peers` calls them


def bench(
    observers: Annotated[str, typer.Option(metavar="N,...", help="How many observers each topic has.")] = "1,10,100",
    topics: Annotated[str, typer.Option(metavar="N,...", help="How many topics are published to in turn.")] = "1,100",
    peers: Annotated[str, typer.Option(metavar="NAME,...", help="Who takes part.")] = ",".join(KEYS),
    seconds: Annotated[float, typer.Option(metavar="N", help="How long it may take, about.")] = 20.0,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw the figures too, as .svg, .png or .pdf."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure on this machine what publishing costs, beside the peers that are installed.

    For each number of observers and each number of topics: publishes per
    second, and how long it took until all observers had acknowledged, by the
    median, the 99th percentile and the longest. The peers take turns in short
    rounds, and every delivery is counted. Ctrl-C ends it with what there is.

    The extra 'bench' installs the peers, and what draws.
    """
    check_seconds(seconds)
    many = [
        Scenario(each, number)
        for number in numbers(topics, 1, "--topics")
        for each in numbers(observers, 0, "--observers")
    ]
    with told_errors():
        raise typer.Exit(Bench(many, kinds(peers), seconds, plot).run(as_json))


def numbers(text: str, least: int, option: str) -> list[int]:
    """Reads numbers, each once."""
    try:
        found = list(dict.fromkeys(int(word) for word in text.split(",")))
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise typer.BadParameter(f"it is whole numbers from {least} on, with commas between them", param_hint=option)
    return found


def kinds(text: str) -> list[type[Peer]]:
    """Reads names of peers; gives their adapters, in the order of `ALL`."""
    words = {word.strip() for word in text.split(",")}
    if unknown := words - KEYS.keys():
        raise typer.BadParameter(f"{min(unknown)!r} is none of {', '.join(KEYS)}", param_hint="--peers")
    return [kind for key, kind in KEYS.items() if key in words]


class Setting(msgspec.Struct, frozen=True):
    """What the figures are of: they can only be compared with those of the same run."""

    python: str
    cores: int
    seconds: float
    versions: dict[str, str]
    not_installed: list[str]

    def __str__(self) -> str:
        peers = ", ".join(f"{peer} {version}" for peer, version in self.versions.items() if peer != Loop.name)
        missing = f"; not installed: {', '.join(self.not_installed)}" if self.not_installed else ""
        return f"Python {self.python}, {self.cores} cores; {peers}{missing}"


class Bench:
    """What is to be measured, and where it is shown.

    Args:
        scenarios: How many observers and topics.
        kinds: Who takes part; those that are not installed are named.
        seconds: How long it may take, all in all.
        file: Where to draw a plot, if one is wanted.

    Raises:
        MissingExtra: There is nothing to draw it by.
        Unusable: It cannot be drawn there; so it is said before anything is measured.
    """

    def __init__(
        self, scenarios: Sequence[Scenario], kinds: Sequence[type[Peer]], seconds: float, file: Path | None
    ) -> None:
        self._scenarios = scenarios
        found = {kind: kind.version() for kind in kinds}
        self._kinds = [kind for kind, version in found.items() if version is not None]
        versions = {kind.name: version for kind, version in found.items() if version is not None}
        missing = [kind.name for kind, version in found.items() if version is None]
        if not self._kinds:
            raise Unusable(f"not installed: {', '.join(missing)}")
        cores = os.cpu_count() or 1
        self._setting = Setting(platform.python_version(), cores, seconds, versions, missing)
        self._file = file
        if file is not None:
            check_plot(file)

    def run(self, as_json: bool) -> int:
        """Runs it, until its time is over or a signal comes.

        Returns:
            The exit code.

        Raises:
            Miscounted: A peer has not made its deliveries.
            PeerFailed: A peer has raised an error.
        """
        rows: list[Figures] = []
        with noted_signals() as signals, (Screen if is_screen(as_json) else Lines)(self._setting) as display:
            end = perf_counter() + self._setting.seconds
            for number, scenario in enumerate(self._scenarios):
                if signals:
                    break
                display.begin(scenario)
                share = max(0.0, end - perf_counter()) / (len(self._scenarios) - number)
                found = measure(scenario, self._kinds, share, lambda: bool(signals), display.told)
                display.show(scenario, found)
                rows += found
        self._end(rows, interrupted=bool(signals))
        return exit_code(signals)

    def _end(self, rows: list[Figures], interrupted: bool) -> None:
        measured = {(row.observers, row.topics) for row in rows}
        left = [scenario for scenario in self._scenarios if (scenario.observers, scenario.topics) not in measured]
        if left and not interrupted:
            tell(f"there was no time for: {'; '.join(map(str, left))}")
        if self._file is not None and rows:
            with replaced(self._file) as file:
                file.write(draw(rows, suffix_of(self._file), self._setting.versions))


def suffix_of(file: Path) -> str:
    return file.suffix.removeprefix(".").lower()


def check_plot(file: Path) -> None:
    """Sees that a plot can be drawn there.

    Raises:
        MissingExtra: There is nothing to draw it by.
        Unusable: It cannot be.
    """
    known = formats()
    if suffix_of(file) not in known:
        raise Unusable(f"a plot is drawn as one of {', '.join(sorted(known))}: {file} does not say as which")
    if not file.parent.is_dir():
        raise Unusable(f"there is no directory {file.parent}")


class Display(ABC):
    """Shows what has been measured, scenario by scenario."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:  # noqa: B027
        """Ends it; nothing is to be done where nothing is kept on the screen."""

    def begin(self, scenario: Scenario) -> None:  # noqa: B027
        """A scenario is going to be measured; only a screen tells what is going on."""

    def told(self, rounds: int) -> None:  # noqa: B027
        """So many rounds have been measured."""

    @abstractmethod
    def show(self, scenario: Scenario, rows: list[Figures]) -> None:
        """Shows the figures of a scenario."""


class Lines(Display):
    """As JSON lines: the setting, then the figures of each peer in each scenario."""

    def __init__(self, setting: Setting) -> None:
        self._out = standard_output()
        self._write(setting)

    def _write(self, row: object) -> None:
        write_line(self._out, msgspec.json.encode(row))

    def show(self, scenario: Scenario, rows: list[Figures]) -> None:
        for row in rows:
            self._write(row)


class Screen(Display):
    """As tables. What is going on is drawn between the rounds only: a thread that drew would be measured too."""

    def __init__(self, setting: Setting) -> None:
        self._console = screen_console()
        self._console.print(Text(str(setting), "dim"))
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._scenario = ""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def begin(self, scenario: Scenario) -> None:
        self._scenario = str(scenario)
        self._live.update(Text(f"{scenario} ... (Ctrl-C ends it with what there is)", "dim"), refresh=True)

    def told(self, rounds: int) -> None:
        self._live.update(Text(f"{self._scenario}: round {rounds}", "dim"), refresh=True)

    def show(self, scenario: Scenario, rows: list[Figures]) -> None:
        if rows:
            self._live.console.print(table(scenario, rows))


def table(scenario: Scenario, rows: list[Figures]) -> Table:
    """Draws the figures of a scenario in 80 columns, the fastest peer first."""
    own = next((row for row in rows if row.peer == Rxbus.name), None)
    drawn = Table(title=Text(str(scenario), "bold"), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    drawn.add_column("peer", no_wrap=True, min_width=max(len(kind.name) for kind in ALL))
    for heading in ("publishes /s", "p50 µs", "p99 µs", "max µs"):
        drawn.add_column(heading, justify="right", no_wrap=True, min_width=9)
    drawn.add_column("p50 / rxbus", justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: row.p50_us):
        ratio = "" if own is None else f"{row.p50_us / own.p50_us:.2f}"
        times = (significant(value) for value in (row.p50_us, row.p99_us, row.max_us))
        drawn.add_row(row.peer, f"{row.per_second:,.0f}", *times, ratio, style="bold" if row is own else None)
    return drawn


def significant(number: float) -> str:
    """Writes a number with three figures, or all of those before the point."""
    digits = max(0, 2 - math.floor(math.log10(number))) if number > 0 else 0
    return f"{number:,.{digits}f}"
