"""What the terminal shows of builds and their steps: as rows, which become JSON lines, and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import msgspec
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from rxbus import Event
from rxbus._console import plain
from rxbus.pipeline import topics
from rxbus.pipeline._results import (
    ALIVE,
    TIMESTAMPS,
    Result,
    Status,
    StepId,
    all_must_succeed,
    is_time,
    text_of,
    unified,
)
from rxbus.pipeline._structure import StepStructure

LOOKS: dict[str | None, tuple[str, str]] = {  # of a status: a symbol, for those who see no colours, and a colour
    Status.SUCCESS: ("✓", "green"),
    Status.FAILURE: ("✗", "bold red"),
    Status.RUNNING: ("▶", "cyan"),
    Status.WAITING: ("⏸", "bold yellow"),
    Status.KILLED: ("■", "magenta"),
    Status.DEAD: ("†", "magenta"),
    None: ("·", "dim"),
}

NOT_JSON = (TypeError, ValueError, RecursionError)

Structure = tuple[StepStructure, ...]
Results = Mapping[StepId, Result]


class NamedStep(msgspec.Struct, frozen=True):
    """A step, so that it can be told from others, and given to `retrigger`."""

    step_id: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.step_id})"


class BuildRow(msgspec.Struct, frozen=True):
    """A build at a glance; `status` is `damaged`, and there is a `reason`, where it cannot be read."""

    build_number: int
    status: str
    started: datetime | None = None
    seconds: float | None = None
    failed_steps: list[NamedStep] = []
    reason: str | None = None


class StepRow(msgspec.Struct, frozen=True):
    """A step of a build; without a status it has not been started."""

    build_number: int
    step_id: str
    name: str
    kind: str
    status: str | None
    started: datetime | None
    seconds: float | None
    result: Result


def walk(structure: Structure) -> Iterator[StepStructure]:
    """Gives all steps, each before those in it."""
    for step in structure:
        yield step
        yield from walk(step.children)


def failed(structure: Structure, results: Results) -> Iterator[NamedStep]:
    """Gives the steps that have failed themselves: not those in which another did."""
    for step in structure:
        if status_of(results.get(step.step_id)) == Status.FAILURE:
            below = list(failed(step.children, results))
            yield from below or [NamedStep(text_of(step.step_id), step.name)]


def status_of(result: Result | None) -> str | None:
    return None if result is None else str(result.get("status", Status.UNKNOWN))


def build_status(structure: Structure, results: Results, running: bool) -> str:
    """How a build is doing, or has ended, by how its steps are."""
    statuses = [status_of(results[step.step_id]) or "" for step in structure if step.step_id in results]
    if running:
        return Status.WAITING if unified(statuses) == Status.WAITING else Status.RUNNING
    ended = all_must_succeed(statuses)
    if Status.DEAD in statuses or (ended == Status.SUCCESS and len(statuses) < len(structure)):
        return Status.DEAD  # its process has ended, in a step or between two
    return ended


def times_of(results: Iterable[Result]) -> tuple[datetime | None, float | None]:
    """Gives when the first of them began, and how many seconds it all took, or has taken up to now."""
    begins, ends = [], []
    for result in results:
        begin, end = (result.get(key) for key in TIMESTAMPS)
        if is_time(begin) and is_time(end):
            begins.append(begin)
            ends.append(datetime.now(UTC) if result.get("status") in ALIVE else end)
    if not begins:
        return None, None
    return min(begins), round(max(0.0, (max(ends) - min(begins)).total_seconds()), 3)


def build_row(number: int, structure: Structure, results: Results, running: bool) -> BuildRow:
    new = [result for result in results.values() if "retrigger_mock_for_build_number" not in result]
    started, seconds = times_of(new)
    failures = list(failed(structure, results))
    return BuildRow(number, build_status(structure, results, running), started, seconds, failures)


def step_row(number: int, step: StepStructure, result: Result | None) -> StepRow:
    started, seconds = times_of([result] if result is not None else [])
    told = {key: value for key, value in (result or {}).items() if key != "outputs"}  # these have rows of their own
    return StepRow(number, text_of(step.step_id), step.name, step.kind, status_of(result), started, seconds, told)


# -- Drawing


def look_of(status: str | None) -> tuple[str, str]:
    """Gives a status's symbol and colour."""
    return LOOKS.get(status, ("?", "yellow"))


def lines_of(out: object) -> list[str]:
    """Gives a step's output as lines that can be shown. A progress bar that overwrites itself shows as it is last."""
    return [plain(line.rstrip("\r").rpartition("\r")[2]) for line in str(out).rstrip().split("\n")]


def last_line(result: Result) -> str:
    return lines_of(str(result.get("out") or "")[-2000:])[-1]  # cheap, however long it has grown


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {int(rest)} s" if minutes else f"{rest:.1f} s"


def label(name: str, note: str, status: str | None, seconds: float | None, rest: str = "") -> Text:
    """Draws a step, or a build, in one line. Names are drawn as they are: in `Text` square brackets are no markup."""
    symbol, colour = look_of(status)
    parts = [(f"{symbol} ", colour), (plain(name), "" if status else "dim"), (f" {note}" if note else "", "dim")]
    if status is not None:
        parts.append((f" {plain(status)}", colour))
    parts += [(f" {duration(seconds)}" if seconds is not None else "", "dim"), (f"  {rest}" if rest else "", "dim")]
    return Text.assemble(*parts, no_wrap=True, overflow="ellipsis")


def tree_of(
    row: BuildRow, structure: Structure, results: Results, whole: bool = False, room: int | None = None
) -> Tree:
    """Draws a build and its steps.

    Args:
        row: The build.
        structure: Its steps.
        results: Their results.
        whole: With all that each put out, instead of the last line.
        room: How many lines there are; where that is too few, steps that are done or to come are drawn together.
    """
    tree = Tree(label(f"build {row.build_number}", "", row.status, row.seconds), guide_style="dim")
    if room is not None and sum(1 for _ in walk(structure)) > room:
        _add_folded(tree, row.build_number, structure, results)
    else:
        _add(tree, row.build_number, structure, results, whole)
    return tree


def _add(tree: Tree, number: int, steps: Structure, results: Results, whole: bool) -> None:
    for step in steps:
        result = results.get(step.step_id)
        drawn = _line(number, step, result, "" if whole or result is None else last_line(result))
        if whole and result is not None and not any(child.step_id in results for child in step.children):
            drawn = Group(drawn, *details(result))
        _add(tree.add(drawn), number, step.children, results, whole)


def _add_folded(tree: Tree, number: int, steps: Structure, results: Results) -> None:
    """Draws in one line each what has succeeded next to each other, and what is to come."""
    for status, together in groupby(steps, lambda step: status_of(results.get(step.step_id))):
        alike = list(together)
        if status in (Status.SUCCESS, None) and len(alike) > 1:
            first, last = text_of(alike[0].step_id), text_of(alike[-1].step_id)
            tree.add(label(f"{len(alike)} steps", f"({first} to {last})", status, None))
            continue
        for step in alike:
            result = results.get(step.step_id)
            branch = tree.add(_line(number, step, result, "" if result is None else last_line(result)))
            if status not in (Status.SUCCESS, None):
                _add_folded(branch, number, step.children, results)


def _line(number: int, step: StepStructure, result: Result | None, rest: str) -> RenderableType:
    row = step_row(number, step, result)
    return label(row.name, f"({row.step_id})", row.status, row.seconds, rest)


def details(result: Result) -> Iterator[Text]:
    """Draws what a step put out, and what else its result holds."""
    if result.get("out"):
        yield from (Text(f"  {line}") for line in lines_of(result["out"]))
    for key, value in result.items():
        if key not in ("status", "out", "outputs", *TIMESTAMPS):
            yield Text(f"  {plain(key)}: {plain(json_text(value))}", "dim")


def summary_of(row: BuildRow) -> str:
    failures = f"; failed: {', '.join(plain(step) for step in row.failed_steps)}" if row.failed_steps else ""
    return f"build {row.build_number}: {row.status}, {duration(row.seconds) or 'nothing was run'}{failures}"


def json_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return topics.encode(value).decode() if is_json(value) else repr(value)


def json_line(fields: Mapping[str, Any]) -> bytes:
    """Encodes what comes from the bus or a build; what JSON cannot hold (half a surrogate pair) is left out."""
    try:
        return topics.encode(fields)
    except NOT_JSON:
        kept = {key: value for key, value in fields.items() if is_json(value)}
        return topics.encode({**kept, "left_out": sorted(fields.keys() - kept.keys())})


def is_json(value: Any) -> bool:
    try:
        topics.encode(value)
    except NOT_JSON:
        return False
    return True


def event_line(event: Event[Any]) -> dict[str, Any]:
    """What a line says of an event: its topic, which step it is about and how that is doing, and then the rest."""
    fields = msgspec.structs.asdict(event.payload)
    if fields.get("step_id") is not None:
        fields["step_id"] = text_of(fields["step_id"])
    status = status_of(fields.get("step_result", fields.get("final_result")))
    if status is not None:
        fields["status"] = status
    first: dict[str, Any] = {key: fields.pop(key) for key in ("build_number", "step_id", "status") if key in fields}
    return {"topic": event.topic, "time": event.time, **first, **fields}
