"""What a recording holds: plain records, apart from the bus they come from."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal

import msgspec

from rxbus import Event, Topic
from rxbus.errors import InvalidTopic

Kind = Literal["next", "error", "completed"]


class Delivery(msgspec.Struct, frozen=True):
    """One event for one observer, which has ended.

    Attributes:
        event: The event's id.
        observer: The observer's name.
        start: When its handler was called, in seconds since the epoch.
        end: When the delivery ended: later than the handler's return where that deferred, or is a coroutine.
        thread: The name of the thread that called the handler.
        error: The repr of what failed, if anything has. (The error itself would keep whole stacks alive.)
    """

    event: int
    observer: str
    start: float
    end: float
    thread: str
    error: str | None = None


class Passage(msgspec.Struct, frozen=True):
    """What has passed a stage that is marked by `operators.tap`.

    Attributes:
        stage: The stage's name.
        kind: What has passed.
        value: The item, or the repr of the error.
        time: When, in seconds since the epoch.
        event: The id of the event that the thread was delivering; None where it was at work for none.
    """

    stage: str
    kind: Kind
    value: Any
    time: float
    event: int | None = None


class Unencodable(msgspec.Struct, frozen=True):
    """Stands in a loaded recording for what could not be written as JSON.

    Attributes:
        repr: What it looked like.
    """

    repr: str


class Tape(msgspec.Struct, frozen=True):
    """All that has been recorded, at one moment; the lists are not to be changed."""

    pattern: str
    maxlen: int
    began: float
    ended: float | None
    dropped: int
    dropped_passages: int
    events: list[Event[Any]]  # in order of id
    deliveries: list[Delivery]  # in order of start, of these events
    passages: list[Passage]  # in order of time, of these events or none


@lru_cache(1000)
def is_topic(name: str) -> bool:
    """Whether something can be published to it: files may be damaged, and `TopicSubject.on_next` takes any event."""
    try:
        Topic(name)
    except InvalidTopic:
        return False
    return True


def safe_repr(value: object) -> str:
    """The repr of anything, also of what has none."""
    try:
        return str.__str__(repr(value))  # plain: a subclass may do anything when it is cut
    except Exception as error:
        return f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"


def writable(text: str) -> str:
    """Makes text that UTF-8 can hold: half a character (a lone surrogate) is written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode()


def shortened(text: str, length: int) -> str:
    """Text on one line of so many characters at most."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"


def moment(time: float) -> datetime | None:
    """A time in seconds since the epoch, in UTC; None where there is none such, as in a damaged file."""
    try:
        return datetime.fromtimestamp(time, UTC)
    except (ValueError, OverflowError, OSError):
        return None
