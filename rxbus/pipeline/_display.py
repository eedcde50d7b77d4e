"""How the terminal shows a build that runs: as JSON lines, or as a live tree."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any, BinaryIO, Protocol

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from rxbus import Event
from rxbus._console import plain
from rxbus.pipeline import topics
from rxbus.pipeline._pipeline import Pipeline
from rxbus.pipeline._report import (
    BuildRow,
    Structure,
    build_row,
    event_line,
    json_line,
    lines_of,
    summary_of,
    tree_of,
)
from rxbus.pipeline._results import TIMESTAMPS, Result, Status, StepId, step_id_of, without_life

TAIL = 20  # lines of a failed step's output that are shown at the end


class Progress:
    """The build that was begun here: what its steps have told."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.number = 0  # not begun
        self.structure: Structure = ()
        self.results: dict[StepId, Result] = {}
        self.ended: str | None = None  # how

    def begin(self, number: int) -> None:
        self.number = number
        self.structure = self._pipeline.state.structure(number)

    def take(self, event: Event[Any]) -> None:
        """Takes in what has happened."""
        told = event.payload
        if getattr(told, "build_number", None) != self.number:
            return
        if isinstance(told, topics.StepResultUpdated):
            now = datetime.fromtimestamp(event.time, UTC)
            first = self.results.get(told.step_id, {}).get(TIMESTAMPS[0], now)
            self.results[told.step_id] = {TIMESTAMPS[0]: first, TIMESTAMPS[1]: now, **told.step_result}
        elif isinstance(told, topics.PipelineFinished):
            self.ended = str(told.status)

    def leave(self) -> None:
        """What still runs is left to die: it has not ended in time."""
        if self.ended is None:
            self.results = without_life(self.results)
            self.ended = Status.DEAD

    def row(self) -> BuildRow:
        row = build_row(self.number, self.structure, self.results, self.ended is None)
        return msgspec.structs.replace(row, status=self.ended or row.status)


class Display(Protocol):
    """How what happens is shown; used by the main thread only."""

    def take(self, event: Event[Any]) -> None:
        """Shows an event."""

    def refresh(self) -> None:
        """Shows how things are now."""

    def pause(self) -> None:
        """Leaves the screen to a question, until the next refresh."""

    def note(self, text: str, end: str = "\n") -> None:
        """Says something besides."""

    def end(self) -> None:
        """Shows how it has all ended."""

    def close(self) -> None:
        """Leaves the terminal as it was."""


class Lines:
    """Shows events as JSON lines, in UTF-8 whatever the locale is, and in the end a summary. Notes go to stderr.

    Updates hold all of a step's `out` each; a line says in `out_added` what has come to it.
    """

    def __init__(self, progress: Progress, file: BinaryIO) -> None:
        self._progress = progress
        self._file = file
        self._outs: dict[tuple[int, StepId], str] = {}  # what was told last of each step

    def take(self, event: Event[Any]) -> None:
        line = event_line(event)
        if isinstance(event.payload, topics.StepResultUpdated):
            line["step_result"] = self._news(event.payload)
        self._write(line)

    def _news(self, update: topics.StepResultUpdated) -> Result:
        step, result = (update.build_number, update.step_id), dict(update.step_result)
        before, out = self._outs.get(step), result.get("out")
        if not isinstance(out, str):
            return result
        self._outs[step] = out
        if before is not None and out.startswith(before):
            del result["out"]
            if len(out) > len(before):
                result["out_added"] = out[len(before) :]
        return result

    def refresh(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def note(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=sys.stderr, flush=True)

    def end(self) -> None:
        row = self._progress.row()
        fields = ("build_number", "status", "seconds", "failed_steps")
        self._write({"summary": {key: getattr(row, key) for key in fields}})

    def close(self) -> None:
        pass

    def _write(self, value: Any) -> None:
        self._file.write(json_line(value) + b"\n")
        self._file.flush()


class Screen:
    """Shows the steps as a live tree, and in the end what has failed."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._live: Live | None = None

    def take(self, event: Event[Any]) -> None:
        pass

    def refresh(self) -> None:
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._tree(room=self._console.height - 2), refresh=True)

    def pause(self) -> None:
        self.close()
        self._console.print(self._tree())

    def note(self, text: str, end: str = "\n") -> None:
        self._console.print(Text(text), end=end, soft_wrap=True)

    def end(self) -> None:
        """Shows the whole tree, which may have been higher than the screen, and what failed steps put out last."""
        self.pause()
        row = self._progress.row()
        for step in row.failed_steps:
            out = self._progress.results[step_id_of(step.step_id)].get("out") or ""
            lines = [Text(f"  {line}") for line in lines_of(out)[-TAIL:]]
            self._console.print(Text(f"\n{plain(step)}:", "bold"), *lines, sep="\n")
        self._console.print(Text(summary_of(row)), soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tree(self, room: int | None = None) -> Tree:
        return tree_of(self._progress.row(), self._progress.structure, self._progress.results, room=room)
