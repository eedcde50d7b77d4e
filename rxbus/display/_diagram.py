"""A recording's timeline as a marble diagram in text: a line per lane."""

from __future__ import annotations

from rxbus._short import Shortener, plain
from rxbus.display._axis import ticks
from rxbus.display._text import columns, fit_columns, telling
from rxbus.display._timeline import Lane, Mark, Timeline

LEAST = 20  # columns


def diagram(timeline: Timeline, title: str, width: int) -> str:
    """Draws a timeline in lines of so many columns at the most."""
    width = max(width, LEAST)
    short = Shortener()
    names = [("  " if lane.is_stage else "") + plain(lane.name) for lane in timeline.lanes]
    left = min(max(map(columns, names), default=0), width // 3)
    room = width - left - 1
    lines = []
    for lane, name in zip(timeline.lanes, names, strict=True):
        fitted = fit_columns(name, left)
        lines.append(f"{fitted}{' ' * (left - columns(fitted))} {_line(timeline, lane, room, short)}")
    if timeline.end > timeline.start:
        lines.append(f"{' ' * left} {_axis(timeline, room)}".rstrip())
    zero = f"; 0 is {timeline.zero}" if timeline.zero else ""
    return "\n".join([*lines, fit_columns(title + zero, width)])


def _line(timeline: Timeline, lane: Lane, room: int, short: Shortener) -> str:
    span = _span(room)
    marks = timeline.gather(lane, span)
    text, column, place = "", 0, 0
    while place < len(marks):
        text += "-" * (int(marks[place].first) - column)
        column = max(column, int(marks[place].first))
        token, place = _token(lane, marks, place, column, room - 3, short)
        text += token
        column += columns(token)
    for time, error in sorted(lane.ends, key=lambda end: end[0])[-1:]:
        text += "-" * (int(timeline.place(time, span)) - column) + ("|" if error is None else "#")
        if time >= max(lane.times, default=time):
            return text
    return text + "-" * (room - 1 - columns(text)) + ">"


def _span(room: int) -> int:
    """Where the last moment is: far enough from the end for a count to follow."""
    return max(room - 14, room // 2)


def _token(lane: Lane, marks: list[Mark], place: int, column: int, end: int, short: Shortener) -> tuple[str, int]:
    """What is written for a mark, and the place of the next one: those that it leaves no room for are counted in."""
    mark, following = marks[place], place + 1
    free = (int(marks[following].first) if following < len(marks) else end) - column
    if mark.count == 1 and int(mark.first) == column and free > 0:
        sign = "!" if mark.failed and free > 1 else ""
        whole = lane.label(mark.index, short, 40) if free > 2 else ""
        return (telling(fit_columns(whole, free - 1 - len(sign)), whole) or "o") + sign, following
    count, failed = mark.count, mark.failed
    while True:
        token = f"(×{count:,}{f' !{failed:,}' if failed else ''})"
        if following == len(marks) or column + columns(token) <= int(marks[following].first):
            return fit_columns(token, max(end - column, 1)) or "o", following
        count, failed, following = count + marks[following].count, failed + marks[following].failed, following + 1


def _axis(timeline: Timeline, room: int) -> str:
    text = ""
    for moment, label in ticks(timeline.span, room // 12):
        text = text.ljust(int(moment / timeline.span * _span(room)))
        if len(text) + len(label) > room:
            break
        text += f"{label} "
    return text
