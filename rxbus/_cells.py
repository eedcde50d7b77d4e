"""Cells: code that runs again and again, as a notebook's cell does, without doubling its observers.

A block and not an argument of `subscribe`: it holds for whatever is attached in it, in whichever way (`@bus.on`, merged
streams, recordings, what a library attaches), and nothing has to be named twice.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from rxbus._here import local
from rxbus.errors import InvalidArgument

if TYPE_CHECKING:
    from rxbus._log import Hub
    from rxbus._observer import Feed


class Cells:
    """What the cells of a bus have attached, by the cell's name."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._lock = threading.RLock()  # guards `_known`; nothing is called under it
        self._known: dict[str, Cell] = {}

    def cell(self, name: str | None, frame: FrameType) -> Cell:
        """Makes the cell that a block is.

        Raises:
            InvalidArgument: The name is none.
        """
        if name is not None and (not isinstance(name, str) or not name):
            raise InvalidArgument(f"a cell is called by a string, not {name!r}")
        return Cell(self, self._hub, _running_cell(frame) if name is None else name)

    def replace(self, cell: Cell) -> Cell | None:
        """Puts a cell in the place of the one that had its name; gives that one."""
        with self._lock:
            before = self._known.get(cell.name)
            self._known[cell.name] = cell
            return before


class Cell:
    """A block of code; entering it ends what the block of the same name attached before."""

    def __init__(self, cells: Cells, hub: Hub, name: str) -> None:
        self._cells = cells
        self.hub = hub
        self.name = name
        self._members: dict[object, Callable[[], object]] = {}  # what is attached, and what ends it
        self._outer: Cell | None = None
        self.inside: Feed | None = None  # the handler that has entered it

    def add(self, member: object, end: Callable[[], object]) -> None:
        """Something has been attached."""
        self._members[member] = end

    def forget(self, member: object) -> None:
        """It has left."""
        self._members.pop(member, None)

    def __enter__(self) -> Cell:
        before = self._cells.replace(self)
        if before is not None:
            try:
                before._end()
            except BaseException:  # interrupted: what is left ends when the block runs again
                self._members.update(before._members)
                raise
        here = local.here
        self.inside = here.feed
        self._outer, here.cell = here.cell, self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        local.here.cell, self.inside = self._outer, None

    def __repr__(self) -> str:
        return f"<Cell {self.name!r}, attached: {len(self._members)}>"

    def _end(self) -> None:
        while self._members:  # other threads may add some, and some may leave
            for member in list(self._members):  # no `items`: see Watch.look
                if (end := self._members.get(member)) is not None:
                    end()
                self._members.pop(member, None)


def current_cell(hub: Hub) -> Cell | None:
    """The cell that attaches: the block in which the thread is, or the one to which the handler that runs belongs."""
    here = local.here
    cell = here.cell
    if here.feed is not None and (cell is None or cell.inside is not here.feed):
        cell = here.feed.attachment.cell
    return cell if cell is not None and cell.hub is hub else None


def _running_cell(frame: FrameType) -> str:
    """Names the notebook's cell that runs, by its id; where nobody tells one, it is the place in the code.

    A refusal would keep notebooks from running unattended, where there are no ids. To IPython each input is a file of
    its own, so that there it is the same code that is the same cell.
    """
    shell = _shell()
    parent: Any = shell.get_parent() if hasattr(shell, "get_parent") else None
    cell_id = (parent or {}).get("metadata", {}).get("cellId")
    return str(cell_id) if cell_id else f"{frame.f_code.co_filename}:{frame.f_lineno}"


def place_of(frame: FrameType) -> str:
    """Names a line for people: its file and number, or in a notebook that of the cell: `In[5]:9`.

    A cell's file has a name that tells nobody anything: a kernel makes one up below the directory for temporary files.
    """
    file = frame.f_code.co_filename
    cell = getattr(getattr(_shell(), "compile", None), "format_code_name", lambda _: None)(file)
    return f"{cell[1] if cell else os.path.basename(file)}:{frame.f_lineno}"


def _shell() -> Any:
    """IPython's, where that is at work; it is not imported for this."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
