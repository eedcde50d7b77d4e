"""Which event caused which."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from rxbus import Event
from rxbus._short import plain
from rxbus.recording._records import Unencodable, safe_repr, shortened

_LINES = 200
_WIDTH = 120
_PREFIX = 60  # characters of branches: those of deeper ones are cut off at the left


class Cause(msgspec.Struct, frozen=True, eq=False):
    """An event with all that it led to; iterating gives what it led to directly.

    Attributes:
        id: The event's id.
        event: The event; None if it is known only by what it led to: it was not recorded, or the ring let go of it.
        effects: What it led to, in order of id.
    """

    id: int
    event: Event[Any] | None
    effects: tuple[Cause, ...] = ()

    def __iter__(self) -> Iterator[Cause]:
        return iter(self.effects)

    def walk(self) -> Iterator[Cause]:
        """Gives it and all that it led to, each event before its effects."""
        ahead: list[Cause] = [self]
        while ahead:
            one = ahead.pop()
            yield one
            ahead.extend(reversed(one.effects))

    def __str__(self) -> str:
        return _text((self,))

    def __repr__(self) -> str:
        topic = "not recorded" if self.event is None else repr(self.event.topic)
        return f"<Cause {self.id}, {topic}, effects: {len(self.effects)}>"


class Causes:
    """The trees of which event caused which; iterating gives their roots, in order of id.

    `str` shows them, the first two hundred events at most.
    """

    def __init__(self, events: list[Event[Any]]) -> None:
        ids = {event.id for event in events}
        effects: dict[int, list[Cause]] = {}
        roots: list[Cause] = []
        for event in sorted(events, key=lambda event: event.id, reverse=True):  # effects come after their cause
            cause = Cause(event.id, event, tuple(reversed(effects.pop(event.id, []))))
            if event.cause is None or event.cause >= event.id:  # the latter in a damaged file only
                roots.append(cause)
            else:
                effects.setdefault(event.cause, []).append(cause)
        roots.extend(Cause(id, None, tuple(reversed(known))) for id, known in effects.items() if id not in ids)
        self.roots: tuple[Cause, ...] = tuple(sorted(roots, key=lambda root: root.id))

    def __iter__(self) -> Iterator[Cause]:
        return iter(self.roots)

    def __len__(self) -> int:
        return len(self.roots)

    def walk(self) -> Iterator[Cause]:
        """Gives all events, each before its effects."""
        for root in self.roots:
            yield from root.walk()

    def __str__(self) -> str:
        return _text(self.roots)

    def __repr__(self) -> str:
        return f"<Causes, roots: {len(self.roots)}, events: {sum(one.event is not None for one in self.walk())}>"


def _text(roots: tuple[Cause, ...]) -> str:
    """Draws trees, in a bounded number of lines of bounded length."""
    lines: list[str] = []
    ahead: list[tuple[str, str, Cause, float | None]] = [("", "", root, None) for root in reversed(roots)]
    while ahead and len(lines) < _LINES:
        branch, indent, cause, before = ahead.pop()
        lines.append(_line(branch, cause, before))
        time = None if cause.event is None else cause.event.time
        for effect in reversed(cause.effects):
            last = effect is cause.effects[-1]
            ahead.append((indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "), effect, time))
    left = sum(1 for _, _, cause, _ in ahead for _ in cause.walk())
    return "\n".join([*lines, f"… and {left} more"] if left else lines)


def _line(branch: str, cause: Cause, before: float | None) -> str:
    if len(branch) > _PREFIX:
        branch = "… " + branch[2 - _PREFIX :]
    if cause.event is None:
        return f"{branch}#{cause.id} (not recorded)"
    event = cause.event
    when = _clock(event.time) if before is None else f"+{(event.time - before) * 1000:.3g} ms"
    payload = event.payload.repr if isinstance(event.payload, Unencodable) else safe_repr(event.payload)
    # Names and reprs may hold what steers a terminal.
    line = plain(f"{branch}#{event.id} {event.topic} {when} {shortened(payload, _WIDTH)}")
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"


def _clock(time: float) -> str:
    """A time of day, here: marble diagrams have the same."""
    try:
        return f"{datetime.fromtimestamp(time):%H:%M:%S.%f}"
    except (ValueError, OverflowError, OSError):  # a file may hold any number
        return "at no time"
