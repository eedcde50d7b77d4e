"""`bus.top()`: a table of a bus's topics that updates itself, where the program's output goes.

That is decided when it begins: a notebook, a terminal, the prompt of an interactive Python, or any other file.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from html import escape
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from rxbus import EventBus
from rxbus.display._live import Live, require
from rxbus.display._meter import Frame, Row, Selection

if TYPE_CHECKING:
    from rich.live import Live as RichLive
    from rich.segment import Segments

HEADINGS = ("topic", "events", "rate /s", "p50 ms", "p99 ms", "pending", "failures", "slowest observer")
NAMES = (0, 7)  # the columns of names; all others are numbers
GAP = "  "  # between columns
WIDEST, NARROWEST = 60, 12  # characters of a name
IN_A_NOTEBOOK = 30  # rows
NAME_STYLE = "text-align:left;overflow-wrap:anywhere;min-width:8em"  # a long one makes no table wider than its cell
NUMBER_STYLE = "text-align:right;white-space:nowrap"
ABOUT = "p50, p99: until all observers have acknowledged, lately; sampled, if it is busy"  # fits into 80 columns


class Top(Live):
    """A table of a bus's topics that updates itself: one row for each topic, in the order of their names.

    It tells how many events have been published, how many per second lately, the time until all observers have
    acknowledged (half of the publishes took no longer than p50, 99 of 100 no longer than p99), the deliveries that
    have not ended, those that have failed, and the observer that takes longest, by its median. Times are measured of a
    sample where much goes on. Where there are more topics than fit, it shows the liveliest.

    It is drawn four times a second at the most, and only when something has changed. In a notebook it stays in its
    cell and updates itself there, whichever cell runs; called again, `bus.top()` shows it there, too. In a terminal it
    stays below what the program prints. At the prompt of an interactive Python it would write over what you type: there
    each `bus.top()` prints the table as it is. Into a pipe or a file, the table is printed once, when it ends.
    """

    kind: ClassVar[str] = "top"

    def __init__(self, bus: EventBus) -> None:
        shell = running_shell()
        notebook = getattr(shell, "kernel", None) is not None
        self._screen: Screen
        require("jupyter" if notebook else "cli", "bus.top()", "hdrh.histogram")
        if notebook:
            self._screen = Notebook(shell)
        elif shell is not None or hasattr(sys, "ps1") or sys.flags.interactive:
            self._screen = Prompt()
        elif is_terminal():
            require("cli", "bus.top() in a terminal", "rich.live")
            self._screen = Terminal()
        else:
            self._screen = File()
        super().__init__(bus)

    def show(self) -> None:
        """Shows it where the program is: in the notebook's cell that runs, at the prompt."""
        self._tick(self._screen.show, always=True)

    def _selection(self) -> Selection:
        return Selection(limit=self._screen.limit())

    def _begin(self, frame: Frame) -> None:
        self._screen.draw(frame)

    def _draw(self, frame: Frame) -> None:
        self._screen.draw(frame)

    def _close(self, frame: Frame) -> None:
        self._screen.close(frame)

    def _ipython_display_(self) -> None:
        if isinstance(self._screen, Notebook):
            self.show()
        else:  # IPython's prompt: what has called for it has printed it
            print(repr(self))

    def __repr__(self) -> str:
        return f"<Top, {'running' if self.running else 'stopped'}>"


def top(bus: EventBus) -> Top:
    """Gives the table that updates itself; see `EventBus.top`."""
    found = Top.of(bus)
    found.show()
    return found


def running_shell() -> Any:
    """IPython's shell, where the program runs in one. It is not imported for that."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def is_terminal() -> bool:
    """Whether the program's output goes where a table can be drawn over itself."""
    out = sys.stdout
    return not is_closed(out) and out.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def is_closed(out: Any) -> bool:
    """Whether a program's output goes nowhere."""
    return out is None or getattr(out, "closed", False)


class Screen(ABC):
    """Where a table is drawn."""

    @abstractmethod
    def limit(self) -> int:
        """How many rows are to be drawn."""

    @abstractmethod
    def show(self, frame: Frame) -> None:
        """Draws a frame because the program has called for it; on its thread."""

    @abstractmethod
    def draw(self, frame: Frame) -> None:
        """Draws a frame because there is news; on the view's thread."""

    @abstractmethod
    def close(self, frame: Frame) -> None:
        """Draws the last one."""


class Notebook(Screen):
    """Outputs of notebook cells that are known by one id, and are updated together."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._id = f"rxbus-top-{uuid4().hex}"
        self._shown_in: int | None = None  # the count of the cell that was the last to show it

    def limit(self) -> int:
        return IN_A_NOTEBOOK

    def show(self, frame: Frame) -> None:
        if self._shown_in != self._shell.execution_count:  # not again for `bus.top()` as a cell's last line
            self._shown_in = self._shell.execution_count
            self._send(frame, update=False)

    def draw(self, frame: Frame) -> None:
        if self._shown_in is not None:
            self._send(frame, update=True)

    def close(self, frame: Frame) -> None:
        self.draw(frame)

    def _send(self, frame: Frame, update: bool) -> None:
        data = {"text/html": as_html(frame), "text/plain": as_text(frame)}
        self._shell.display_pub.publish(data, {}, transient={"display_id": self._id}, update=update)


class Prompt(Screen):
    """An interactive Python: the table is printed when it is called for."""

    def limit(self) -> int:
        return max(1, shutil.get_terminal_size().lines - 4)

    def show(self, frame: Frame) -> None:
        print(as_text(frame))

    def draw(self, frame: Frame) -> None: ...

    def close(self, frame: Frame) -> None: ...


class File(Screen):
    """A pipe or a file: the table is printed when all is over."""

    def limit(self) -> int:
        return 1000

    def show(self, frame: Frame) -> None: ...

    def draw(self, frame: Frame) -> None: ...

    def close(self, frame: Frame) -> None:
        out = sys.stdout
        if is_closed(out):
            return
        coding = getattr(out, "encoding", None) or "utf-8"  # a name may hold what the file cannot
        with suppress(BrokenPipeError):  # nobody reads it
            print(as_text(frame).encode(coding, "replace").decode(coding), flush=True)


class Terminal(Screen):
    """A terminal. The tables of several buses share the one live display that there can be."""

    _lock: ClassVar = threading.RLock()  # guards both below
    _tables: ClassVar[dict[Terminal, Segments]] = {}
    _live: ClassVar[RichLive | None] = None

    def limit(self) -> int:
        return max(1, shutil.get_terminal_size().lines // max(1, len(self._tables)) - 4)

    def show(self, frame: Frame) -> None: ...  # it is there

    def draw(self, frame: Frame) -> None:
        from rich.live import Live as RichLive

        with self._lock:
            if Terminal._live is None:
                # What the program prints passes above; what it writes to a file does not.
                # Known before it starts, so that it is stopped where Ctrl-C strikes meanwhile.
                Terminal._live = RichLive(auto_refresh=False, redirect_stderr=sys.stderr.isatty())
                Terminal._live.start()
            self._tables[self] = as_segments(frame, Terminal._live.console.width)
            self._update(Terminal._live)

    def close(self, frame: Frame) -> None:
        with self._lock:
            live = Terminal._live
            if live is None:  # it has not even begun
                return
            self._tables[self] = as_segments(frame, live.console.width)
            if len(self._tables) == 1:
                Terminal._live = None
                self._update(live)
                live.stop()
            else:
                live.console.print(self._tables.pop(self))
                self._update(live)
            self._tables.pop(self, None)

    def _update(self, live: RichLive) -> None:
        from rich.console import Group

        live.update(Group(*self._tables.values()), refresh=True)


def cells(row: Row) -> tuple[str, ...]:
    """What a row shows, in the order of `HEADINGS`."""
    slowest = "" if row.slowest is None else f"{milliseconds(row.slowest_ms)} ms {printable(row.slowest)}"
    return (
        printable(row.topic),
        f"{row.events:,}",
        f"{row.rate:,.1f}",
        milliseconds(row.p50_ms),
        milliseconds(row.p99_ms),
        f"{row.pending:,}",
        f"{row.failures:,}",
        slowest,
    )


def milliseconds(number: float | None) -> str:
    """Three digits behind the point, two from one millisecond on."""
    return "" if number is None else f"{number:.3f}" if number < 1 else f"{number:,.2f}"


def printable(text: str) -> str:
    """Replaces what could steer a terminal, or cannot be encoded: topics and observers may have such names."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def shorten(text: str, width: int = WIDEST) -> str:
    """Cuts what is too long."""
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def remark(frame: Frame) -> str:
    """What is said below the table."""
    if not frame.rows:
        return "no topics yet"
    return f"and {frame.hidden:,} more topics, less lively" if frame.hidden else ABOUT


def lines(frame: Frame, width: int | None = None) -> list[tuple[str, ...]]:
    """Lays a frame out, heading first: cells of the same width in each column. Names are cut where `width` asks."""
    table = [HEADINGS, *(cells(row) for row in frame.rows)]
    widths = [min(WIDEST, max(map(len, column))) for column in zip(*table, strict=True)]
    if width is not None:
        first, last = (widths[column] for column in NAMES)
        room = max(2 * NARROWEST, width - (sum(widths) - first - last) - len(GAP) * (len(widths) - 1))
        if first + last > room:  # the longer one is cut; both, if they are longer than their half
            first = min(first, max(room // 2, room - last))
            widths[NAMES[0]], widths[NAMES[1]] = first, room - first
    return [
        tuple(
            shorten(text, size).ljust(size) if column in NAMES else text.rjust(size)
            for column, (text, size) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    ]


def as_text(frame: Frame) -> str:
    """Draws a frame in plain text."""
    return "\n".join([*(GAP.join(line).rstrip() for line in lines(frame)), remark(frame)])


def as_html(frame: Frame) -> str:
    """Draws a frame for notebooks. All text is escaped."""

    def drawn(kind: str, texts: tuple[str, ...]) -> str:
        styles = (NAME_STYLE if column in NAMES else NUMBER_STYLE for column in range(len(texts)))
        parts = zip(texts, styles, strict=True)
        return "".join(f'<{kind} style="{style}">{escape(shorten(text))}</{kind}>' for text, style in parts)

    rows = (f'<tr data-topic="{escape(row.topic)}">{drawn("td", cells(row))}</tr>' for row in frame.rows)
    return (
        f'<table class="rxbus-top"><thead><tr>{drawn("th", HEADINGS)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table><small>{escape(remark(frame))}</small>"
    )


def as_segments(frame: Frame, width: int) -> Segments:
    """Draws a frame for rich; not as one of its tables, which take as long to be drawn as all the rest together."""
    from rich.segment import Segment, Segments
    from rich.style import Style

    heading, *rest = lines(frame, width)
    failed, drawn = HEADINGS.index("failures"), [Segment(GAP.join(heading), Style(bold=True)), Segment.line()]
    for row, line in zip(frame.rows, rest, strict=True):
        drawn += [
            Segment(GAP.join(line[:failed]) + GAP),
            Segment(line[failed], Style(bold=True, color="red") if row.failures else None),
            Segment(GAP + GAP.join(line[failed + 1 :])),
            Segment.line(),
        ]
    return Segments([*drawn, Segment(remark(frame), Style(dim=True)), Segment.line()])
